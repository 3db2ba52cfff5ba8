"""One result: ours beside the peer's, in one run."""

import re
from pathlib import Path


def row(name: str, ours: float, peer: float | None, ratio: float | None, unit: str, note: str) -> dict:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "note": note}


def peak_gb() -> float:
    """Peak memory of this process; ru_maxrss would be that of the process that started it, if that has had more."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024 / 1e9
