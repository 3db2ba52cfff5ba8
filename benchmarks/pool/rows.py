"""One result: ours beside the peer's, in one run."""


def row(name: str, ours: float, peer: float | None, ratio: float | None, unit: str, note: str) -> dict:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "note": note}
