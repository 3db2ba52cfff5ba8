"""Fifty reviewers at once against the real server, which is killed halfway: nothing is held twice, nothing is lost.

How long it takes is in benchmarks/review.py, here it does not matter.
"""

import asyncio
import random

import pytest
from reading_room import KINDS, MODALITIES, draw, furnish, piece

from medq_ray.review.store import Store
from tests.review.crowd import Server, check, crowd

REVIEWERS, ITEMS = 50, 250

pytestmark = pytest.mark.e2e


def test_fifty_reviewers_and_a_killed_server_lose_nothing(address, tmp_path):
    pictures, store, rng = draw(tmp_path / "pictures", 56), Store(address), random.Random(0)
    pieces = [piece(n, KINDS[n % 5], MODALITIES[n // 5 % 5], pictures, reads=2 if n % 10 == 7 else 1)
              | {"patient": f"p{n // 3:03d}"} for n in range(ITEMS)]  # fmt: skip
    tokens = furnish(store, pieces, {f"r{n:02d}": "reviewer" for n in range(REVIEWERS)})
    store.close()
    with Server(address) as server:
        seen = asyncio.run(crowd(server, tokens, ITEMS, lambda: rng.uniform(0, 0.1), kill_at=ITEMS // 3))
    assert check(address, seen) == {"items": ITEMS, "verdicts": ITEMS + ITEMS // 10}
    assert seen.again > 0 and len({name for name, *_ in seen.events.values()}) == REVIEWERS
