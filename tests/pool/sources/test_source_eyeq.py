"""EyeQ: labels from its tables, pictures by their stem, both eyes of a person together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.pool.sources import _files, eyeq

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8)
TRAIN = ",image,quality,DR_grade\n0,10009_left.jpeg,0,0\n1,10009_right.jpeg,1,2\n2,1000_left.jpeg,2,4\n"
TEST = ",image,quality,DR_grade\n0,77_left.jpeg,1,0\n"


def layout(root: Path) -> None:
    for folder in ("data", "train", "preprocessed", "zoomed"):
        (root / folder).mkdir()
    (root / "data" / "Label_EyeQ_train.csv").write_text(TRAIN)
    (root / "data" / "Label_EyeQ_test.csv").write_text(TEST)
    Image.fromarray(PIXELS).save(root / "train" / "10009_left.jpeg")
    Image.fromarray(PIXELS).save(root / "preprocessed" / "10009_left.png")
    Image.fromarray(PIXELS).save(root / "zoomed" / "10009_left.png")
    Image.fromarray(PIXELS).save(root / "preprocessed" / "10009_right.png")
    Image.fromarray(PIXELS).save(root / "train" / "77_left.jpeg")
    Image.fromarray(PIXELS).save(root / "train" / "5_left.jpeg")  # without a label


def test_each_label_is_a_row_and_originals_go_before_preprocessed_pictures(tmp_path):
    layout(tmp_path)
    rows = list(eyeq.find(tmp_path))
    base = tmp_path.resolve()
    assert [str(Path(row.path).relative_to(base)) for row in rows] == [
        "train/77_left.jpeg",
        "train/10009_left.jpeg",
        "preprocessed/10009_right.png",
        "data/1000_left.jpeg",
    ]
    assert [row.labels for row in rows] == [{"quality": q} for q in ("usable", "good", "usable", "reject")]
    assert [row.patient for row in rows] == [row.session for row in rows] == ["77", "10009", "10009", "1000"]
    assert [row.split for row in rows] == ["test", "pool", "pool", "pool"]
    assert {row.modality for row in rows} == {"fundus"}
    np.testing.assert_array_equal(eyeq.decode(rows[2], 0), PIXELS)


def test_a_label_without_a_picture_is_a_row_that_cannot_be_decoded(tmp_path):
    layout(tmp_path)
    missing = list(eyeq.find(tmp_path))[-1]
    assert not Path(missing.path).exists()
    with pytest.raises(ValueError):
        eyeq.decode(missing, 512)


def test_one_table_alone_will_do_but_none_will_not(tmp_path):
    (tmp_path / "Label_EyeQ_test.csv").write_text(TEST)
    assert [row.split for row in eyeq.find(tmp_path)] == ["test"]
    (tmp_path / "Label_EyeQ_test.csv").unlink()
    with pytest.raises(ValueError, match="found neither"):
        list(eyeq.find(tmp_path))


@pytest.mark.parametrize(
    "text, reason",
    [
        (b",image,DR_grade\n0,1_left.jpeg,0\n", "columns image and quality, found .*DR_grade"),
        (b"", "columns image and quality, found none"),
        (b",image,quality,DR_grade\n0,1_left.jpeg,3,0\n", "found row 1"),
        (b",image,quality,DR_grade\n0,1_left.jpeg,0,0\n1,../1_left.jpeg,0,0\n", "found row 2"),
        (b",image,quality,DR_grade\n0\n", "found row 1"),
        ("\ufeff,image,quality\n".encode("utf-16"), "UTF-8"),
    ],
)
def test_a_table_of_another_kind_is_told_in_one_line_that_names_it(tmp_path, text, reason):
    (tmp_path / "Label_EyeQ_train.csv").write_bytes(text)
    with pytest.raises(ValueError, match=reason) as error:
        list(eyeq.find(tmp_path))
    assert "Label_EyeQ_train.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_table_too_large_to_be_read_whole_is_told(tmp_path, monkeypatch):
    layout(tmp_path)
    monkeypatch.setattr(_files, "MAX_TABLE", len(TEST))
    with pytest.raises(ValueError, match=f"train.csv: expected .* at most {len(TEST)} bytes, found {len(TRAIN)}"):
        list(eyeq.find(tmp_path))
