"""Radiopaedia by M3D-Cap: a series is a folder, its slices are counted by number, a case is a patient."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, radiopaedia, rows_of


def slices(folder: Path, count: int, ending: str = "png") -> None:
    """Slice n is n grey levels bright; the later ones are larger."""
    folder.mkdir(parents=True)
    for n in range(count):
        side = 16 if n < count // 2 else 24
        Image.fromarray(np.full((side, side), n, np.uint8)).save(folder / f"{n}.{ending}")


def layout(root: Path) -> None:
    cases = root / "M3D_Cap" / "ct_case"
    slices(cases / "006" / "Axial_C+_Pöschl", 12)
    slices(cases / "006" / "Coronal", 3, "jpeg")
    slices(cases / "31415" / "1", 40)
    (cases / "006" / "text.txt").write_text("study_findings: ...")
    (cases / "006" / "Coronal" / "text.txt").write_text("discussion: ...")


def test_a_series_is_a_folder_and_a_case_is_patient_and_session(tmp_path):
    layout(tmp_path)
    rows = list(radiopaedia.find(tmp_path))
    assert [(Path(row.path).name, row.patient, row.session) for row in rows] == [
        ("Axial_C+_Pöschl", "006", "006"),
        ("Coronal", "006", "006"),
        ("1", "31415", "31415"),
    ]
    assert {(row.modality, row.split) for row in rows} == {("ct", "")}
    for root in (tmp_path / "M3D_Cap", tmp_path / "M3D_Cap" / "ct_case"):
        assert list(radiopaedia.find(root)) == rows


def test_slices_are_in_the_order_of_their_numbers_and_decode_to_their_pixels(tmp_path):
    layout(tmp_path)
    first = next(radiopaedia.find(tmp_path))
    rows = rows_of("radiopaedia", first, Options(slices=0))
    assert [row.path for row in rows] == [f"{first.path}/{n}.png" for n in range(12)]  # each its own
    assert {(row.patient, row.session, row.modality) for row in rows} == {("006", "006", "ct")}
    for n, row in enumerate(rows):
        side = 16 if n < 6 else 24
        np.testing.assert_array_equal(radiopaedia.decode(row, 512), np.full((side, side, 3), n, np.uint8))


def test_a_few_slices_are_taken_from_the_middle(tmp_path):
    layout(tmp_path)
    *_, last = radiopaedia.find(tmp_path)
    numbers = [int(Path(row.path).stem) for row in rows_of("radiopaedia", last, Options(slices=4))]
    assert numbers == [8, 16, 24, 32]


def test_a_series_without_slices_is_refused_and_another_root_is_told(tmp_path):
    (tmp_path / "ct_case" / "7" / "empty").mkdir(parents=True)
    [row] = radiopaedia.find(tmp_path)
    with pytest.raises(Refused, match="found none"):
        rows_of("radiopaedia", row, Options())
    with pytest.raises(ValueError, match="no folder ct_case"):
        list(radiopaedia.find(tmp_path / "ct_case" / "7"))


def test_its_terms_forbid_sharing_and_training():
    assert not radiopaedia.TERMS.share and not radiopaedia.TERMS.train
