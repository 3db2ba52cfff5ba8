"""What comes out of Ray Data: every row in order, or the sample that can no longer be read."""

import shutil
from pathlib import Path

import pytest

from medq_ray.evolve.feed import stream
from medq_ray.evolve.packing import Row
from medq_ray.model.tiny import embedded_checkpoint

pytestmark = pytest.mark.engine


def test_rows_come_in_order_until_one_is_gone_which_is_named(ray_local, rows, tmp_path):
    kept = [row | {"images": [shutil.copy(uri, tmp_path) for uri in row["images"]]} for row in rows[:6]]
    places = [Row(step, (step - 1,), 1, True) for step in range(1, 7)]
    found = list(stream(places, kept, embedded_checkpoint(), 1))
    assert [row for row, _ in found] == places
    for row, tensors in found:
        assert tensors["lengths"].tolist() == [len(tensors["input_ids"])] and tensors["labels"].max() > 0, row
    gone = tmp_path / "elsewhere.png"
    kept[4]["images"] = [str(gone)] * len(kept[4]["images"])
    with pytest.raises(ValueError, match=f"sample {kept[4]['question_id']}: .*{Path(gone).name}"):
        list(stream(places, kept, embedded_checkpoint(), 1))
