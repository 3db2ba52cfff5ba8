"""OmniMedVQA: one row for each image of our modalities, and no path out of its folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, _files, omnimedvqa, rows_of

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8)
MR, CT = "MR (Mag-netic Resonance Imaging)", "CT(Computed Tomography)"
SLIDE = "Images/BreakHis/benign/SOB_B_A-14-22549AB-40-005.png"


def item(place: str, kind: str, key: str = "modality_type") -> dict:
    return {"dataset": "d", "question_id": "d_0000", "question": "?", "gt_answer": "A", "image_path": place, key: kind}


def table(root: Path, name: str, items: list, part: str = "Open-access") -> Path:
    path = root / "QA_information" / part / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items))
    return path


def picture(root: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(root / place)


def found(root: Path) -> dict:
    return {str(Path(row.path).relative_to(root.resolve())): row for row in omnimedvqa.find(root)}


def test_each_image_of_our_modalities_comes_once_whatever_the_questions(tmp_path):
    table(tmp_path, "RadImageNet", [item("Images/RadImageNet/a.png", MR), item("Images/RadImageNet/a.png", MR),
                                    item("Images/RadImageNet/b.png", "ultrasound")])  # fmt: skip
    table(tmp_path, "Chest CT Scan", [item("Images/Chest CT Scan/c.png", CT, key="modality")])
    table(tmp_path, "ACRIMA", [item("Images/ACRIMA/Im553_g_ACRIMA.png", "Fundus Photography")])
    table(tmp_path, "BreakHis", [item(SLIDE, "Microscopy Images")])
    table(tmp_path, "Blood Cell", [item("Images/Blood Cell/d.png", "Microscopy Images")])
    table(tmp_path, "Other", [item("Images/Other/e.png", "OCT (Optical Coherence Tomography"),
                              item("Images/Other/f.png", "X-Ray"), {"image_path": "Images/Other/g.png"}])  # fmt: skip
    picture(tmp_path, SLIDE)
    rows = found(tmp_path)
    assert len(list(omnimedvqa.find(tmp_path))) == len(rows)
    assert {place: (row.modality, row.patient) for place, row in rows.items()} == {
        "Images/RadImageNet/a.png": ("mri", ""),
        "Images/Chest CT Scan/c.png": ("ct", ""),
        "Images/ACRIMA/Im553_g_ACRIMA.png": ("fundus", ""),
        SLIDE: ("histopathology", "14-22549AB"),
    }
    assert all((row.session, row.split, row.labels) == ("", "", {}) for row in rows.values())
    [row] = rows_of("omnimedvqa", rows[SLIDE], Options())
    np.testing.assert_array_equal(omnimedvqa.decode(row, 512), PIXELS)


def test_restricted_images_come_only_where_somebody_put_them(tmp_path):
    items = [item("Images/R/a.png", "Endoscopy"), item("Images/R/b.png", "Endoscopy")]
    table(tmp_path, "R", items, "Restricted-access")
    picture(tmp_path, "Images/R/b.png")
    assert list(found(tmp_path)) == ["Images/R/b.png"]
    table(tmp_path, "R", items)
    assert list(found(tmp_path)) == ["Images/R/a.png", "Images/R/b.png"]  # of open ones, a missing file is told later


@pytest.mark.parametrize("place", ["/etc/passwd", "Images/../../secret.png", "", None, 7, "a\0b"])
def test_a_path_out_of_the_root_is_one_refused_row(tmp_path, place):
    path = table(tmp_path, "Evil", [item(place, MR), item("Images/good.png", MR), item(place, CT)])
    rows = list(omnimedvqa.find(tmp_path))
    assert [row.path for row in rows] == [str(path), f"{tmp_path.resolve()}/Images/good.png", str(path)]
    assert len({(row.path, row.key) for row in rows}) == 3
    for row in (rows[0], rows[2]):
        with pytest.raises(Refused, match="below the root") as refused:
            rows_of("omnimedvqa", row, Options())
        assert "secret" not in str(refused.value) and "passwd" not in str(refused.value)


@pytest.mark.parametrize("text", [b"{", b'{"a": 1}', b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_table_of_another_kind_is_told_in_one_line_that_names_it(tmp_path, text):
    table(tmp_path, "Odd", []).write_bytes(text)
    with pytest.raises(ValueError, match="Odd.json: expected") as error:
        list(omnimedvqa.find(tmp_path))
    assert "\n" not in str(error.value)


def test_the_zip_and_another_folder_are_told(tmp_path):
    (tmp_path / "OmniMedVQA.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="unzip it first"):
        list(omnimedvqa.find(tmp_path / "OmniMedVQA.zip"))
    with pytest.raises(ValueError, match="QA_information"):
        list(omnimedvqa.find(tmp_path))


def test_a_table_too_large_to_be_read_whole_is_told(tmp_path, monkeypatch):
    table(tmp_path, "Large", [item("Images/a.png", MR)])
    monkeypatch.setattr(_files, "MAX_TABLE", 20)
    with pytest.raises(ValueError, match="Large.json: expected a table of at most 20 bytes, found"):
        list(omnimedvqa.find(tmp_path))
