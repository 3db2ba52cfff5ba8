"""Random shares that a name decides alone. Floor 0."""

import hashlib


def drawn(purpose: str, name: str, share: float, seed: int) -> bool:
    """Whether what is called `name` (a question, an item) is of a random share: a function of the name alone, so that
    no order and no kill changes the draw."""
    digest = hashlib.sha256(f"{seed}|{purpose}|{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64
