"""EAD: frames of both layouts with the number of boxes of each class; malformed boxes refuse their frame only."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, ead2020, rows_of

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata" / "endoscopy"
real = pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
PIXELS = np.full((32, 32, 3), 90, np.uint8)
EAD2019 = "specularity\nsaturation\nartifact\nblur\ncontrast\nbubbles\ninstrument\n"


def frame(root: Path, place: str, boxes: str | None = None, boxes_at: str = "") -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path, quality=95)
    if boxes is not None:
        target = root / boxes_at if boxes_at else path.with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(boxes)


def rows(root: Path) -> dict:
    return {Path(row.path).stem: row for found in ead2020.find(root) for row in rows_of("ead2020", found, Options())}


def test_frames_find_their_boxes_in_both_layouts_and_forms(tmp_path):
    top = "EAD2020_dataType_framesOnly"
    frame(tmp_path, f"{top}/frames/EAD2020_frameOnly_01111.jpg", "7 0.5 0.5 0.1 0.1\n5 0.1 0.1 0.1 0.1\n5 0.2 0.2 0 0",
          f"{top}/gt_bbox/EAD2020_frameOnly_01111.txt")  # fmt: skip
    frame(tmp_path, f"{top}/frames/EAD2020_frameOnly_01112.jpg", "blur 10 20 30 40\nblood 0 0 5 5\nblur 1 1 2 2\n",
          f"{top}/gt_bbox/EAD2020_frameOnly_01112.txt")  # fmt: skip
    frame(tmp_path, "flat/00003.jpg", "\n0 0.5 0.5 0.1 0.1\n\n")
    frame(tmp_path, "seg/EAD2020_semantic_00007.jpg")
    Image.fromarray(PIXELS).save(tmp_path / "seg" / "EAD2020_semantic_00007.tif")
    found = rows(tmp_path)
    assert {name: row.labels for name, row in found.items()} == {
        "EAD2020_frameOnly_01111": {"blood": "1", "bubbles": "2"},
        "EAD2020_frameOnly_01112": {"blood": "1", "blur": "2"},
        "00003": {"specularity": "1"},
        "EAD2020_semantic_00007": {},
    }
    for row in found.values():
        assert (row.modality, row.patient, row.session, row.split, row.key) == ("endoscopy", "", "", "", "")
        np.testing.assert_array_equal(ead2020.decode(row, 32), PIXELS)


def test_files_that_decide_about_the_labels_are_named_whether_they_exist_or_not(tmp_path):
    frame(tmp_path, "frames/1.jpg", "0 0.5 0.5 0.1 0.1", "gt_bbox/1.txt")
    [row] = ead2020.find(tmp_path)
    names = ("gt_bbox/1.txt", "frames/1.txt", "frames/class_list.txt", "class_list.txt")
    assert row.beside == tuple(str(tmp_path.resolve() / name) for name in names)
    assert rows_of("ead2020", row, Options())[0].beside == row.beside


def test_videos_of_ead2019_group_and_edd2020_is_passed_over(tmp_path):
    for name in ("1772_A_M62_00012", "1772_A_M62_00013", "EDD2020_BA0001", "00005"):
        frame(tmp_path, f"{name}.jpg")
    assert {name: (row.patient, row.session) for name, row in rows(tmp_path).items()} == {
        "1772_A_M62_00012": ("1772_A_M62", "1772_A_M62"),
        "1772_A_M62_00013": ("1772_A_M62", "1772_A_M62"),
        "00005": ("", ""),
    }


def test_with_ead2019s_class_list_blood_is_no_class(tmp_path):
    (tmp_path / "class_list.txt").write_text(EAD2019)
    frame(tmp_path, "frames/1.jpg", "6 0.5 0.5 0.1 0.1\n")
    assert rows(tmp_path)["1"].labels == {"instrument": "1"}
    frame(tmp_path, "frames/1.jpg", "7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(Refused, match="none of 7"):
        rows(tmp_path)
    (tmp_path / "class_list.txt").write_text("BE\nsuspicious\n")
    with pytest.raises(Refused, match="class_list.txt: expected .* found 2 others"):
        rows(tmp_path)


@pytest.mark.parametrize(
    "boxes, reason",
    [
        ("5 0.5 0.5 0.1", "one of 4 fields"),
        ("blur 0.9 10 20 30 40", "one of 6 fields"),
        ("8 0.5 0.5 0.1 0.1", "none of 8"),
        ("Mueller 1 2 3 4", "none of 8"),
        ("5 0.5 x 0.1 0.1", "no number"),
        ("5 0.5 1.5 0.1 0.1", "outside its frame"),
        ("5 0.5 nan 0.1 0.1", "outside its frame"),
        ("blur 30 20 10 40", "turned over"),
        ("\udcff\udcfe", "UTF-8"),
    ],
)
def test_malformed_boxes_refuse_their_frame_and_are_not_quoted(tmp_path, boxes, reason):
    frame(tmp_path, "1.jpg", "")
    (tmp_path / "1.txt").write_bytes(boxes.encode(errors="surrogateescape"))
    [row] = ead2020.find(tmp_path)
    with pytest.raises(Refused, match=reason) as refused:
        rows_of("ead2020", row, Options())
    assert "Mueller" not in str(refused.value)


@real
def test_real_frames_have_the_boxes_that_their_manifest_counts(tmp_path):
    for path in REALDATA.glob("ead2019_*"):
        shutil.copy(path, tmp_path / path.name.removeprefix("ead2019_"))
    found = rows(tmp_path)
    assert {name: row.labels for name, row in found.items()} == {
        "00003": {"bubbles": "8"},
        "00016": {"artifact": "1", "blur": "3", "bubbles": "4"},
        "00017": {"blur": "1", "bubbles": "1", "saturation": "1", "specularity": "2"},
        "0000600": {},
    }
    assert all(ead2020.decode(row, 512).shape == (512, 512, 3) for row in found.values())
