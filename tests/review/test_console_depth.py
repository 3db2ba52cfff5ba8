"""All bits of an image over HTTP: to whom, what of it, and what of its origin is told."""

import json

import numpy as np
import pytest
from reading_room import draw, piece, thorax
from test_console_api import Room, error

from medq_ray.depth import beside, read_depth


@pytest.fixture
def room(tmp_path):
    pictures = draw(tmp_path / "pictures", size=56)
    made = Room(tmp_path / "review.db", [piece(0, "how", "ct", pictures | {"ct-severe": thorax(tmp_path, 64)}),
                                         piece(1, "comparison", "mri", pictures)])  # fmt: skip
    yield made
    made.store.close()


def test_all_bits_and_their_meaning_go_to_who_holds_the_item(room, tmp_path):
    ann, ben = room.client("ann"), room.client("ben")
    item = ann.post("/api/next").json()
    assert item["about"] == [{"source": "synthetic", "licence": "CC0-1.0", "width": 64, "height": 64, "bits": 12,
                              "spacing": [0.7, 0.7], "deep": True}]  # fmt: skip
    reply = ann.get(f"/api/items/{item['item_id']}/depth/0")
    meaning, depth = json.loads(reply.headers["x-depth"]), read_depth(beside(tmp_path / "thorax.png"))
    assert set(meaning) == {"slope", "intercept", "unit", "center", "width", "inverted", "bits", "spacing",
                            "width_px", "height_px"}  # fmt: skip
    numbers = np.frombuffer(reply.content, "<u2").reshape(meaning["height_px"], meaning["width_px"])
    assert np.array_equal(numbers, depth.numbers)
    assert (meaning["unit"], meaning["center"], meaning["width"]) == ("HU", 40, 400)
    assert reply.headers["cache-control"] == "no-store" and room.logged("depth")[-1]["reviewer"] == "ann"
    assert "is not ben's to see" in error(ben.get(f"/api/items/{item['item_id']}/depth/0"), 403)
    error(room.client().get(f"/api/items/{item['item_id']}/depth/0"), 401)
    assert room.client("lea").get(f"/api/items/{item['item_id']}/depth/0").status_code == 200


def test_where_there_are_no_more_bits_nothing_is_sent_and_no_path_told(room, tmp_path):
    ann = room.client("ann")
    first = ann.post("/api/next").json()
    second = ann.post(f"/api/next?after={first['token']}").json()
    assert [(one["deep"], one["bits"], one["spacing"]) for one in second["about"]] == [(False, 8, None)] * 2
    for path in (f"/api/items/{second['item_id']}/depth/0", f"/api/items/{first['item_id']}/depth/1"):
        assert str(tmp_path) not in error(ann.get(path), 404)
    beside(tmp_path / "thorax.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    assert str(tmp_path) not in error(ann.get(f"/api/items/{first['item_id']}/depth/0"), 404)


def test_a_verdict_that_means_another_stores_lease_is_refused(room):
    ann = room.client("ann")
    item = ann.post("/api/next").json()
    path = f"/api/leases/{item['token']}"
    for action, body in (("verdict", {"action": "accept"}), ("skip", {"reason": "x"}), ("flag", {"reason": "x"})):
        sent = body | {"seconds": 1, "taken_at": item["taken_at"] + 1}
        assert "another one here" in error(ann.post(f"{path}/{action}", json=sent), 403)
    right = {"action": "accept", "seconds": 1, "taken_at": item["taken_at"]}
    assert ann.post(f"{path}/verdict", json=right).json()["counts"]
