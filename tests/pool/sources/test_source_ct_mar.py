"""CT-MAR reader: pairs that stay together, the window, and files that are not what their name says."""

from pathlib import Path

import numpy as np
import pytest

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, ct_mar, list_rows

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"


def release(root: Path) -> Path:
    """Two archives in the layout of the release, of slices that are empty files."""
    for archive, part, numbers in (("body1", "body", (1, 2)), ("head1", "head", (1,)), ("body2", "body", (1,))):
        for i in numbers:
            for name in (
                f"Target/training_{part}_nometal_img{i}_512x512x1.raw",
                f"Target/training_{part}_nometal_sino{i}_900x1000.raw",
                f"Baseline/training_{part}_metalart_img{i}_512x512x1.raw",
                f"Baseline/training_{part}_metalart_sino{i}_900x1000.raw",
                f"Mask/training_{part}_metalonlymask_img{i}_512x512x1.raw",
                f"Mask/training_{part}_metalinfo{i}.json",
            ):
                path = root / archive / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root


def test_a_pair_is_one_session_and_masks_are_no_images(tmp_path):
    rows = list(list_rows("ct-mar", release(tmp_path), Options()))
    assert [(row.session, row.labels["metal"]) for row in rows] == [
        ("body1/body1", "yes"),
        ("body1/body2", "yes"),
        ("body1/body1", "no"),
        ("body1/body2", "no"),
        ("body2/body1", "yes"),
        ("body2/body1", "no"),
        ("head1/head1", "yes"),
        ("head1/head1", "no"),
    ]
    assert all((row.modality, row.patient, row.key, row.split) == ("ct", "", "", "") for row in rows)
    one = list(ct_mar.find(tmp_path / "body1"))
    assert {row.session for row in one} == {"body1/body1", "body1/body2"}


def test_rows_and_columns_and_the_window(tmp_path):
    values = np.full((512, 512), -1000, "<f4")
    values[0, :4] = (-160, 40, 240, 9000)
    values[7, 0] = 40
    path = tmp_path / "case_512x512.raw"
    values.tofile(path)
    (row,) = ct_mar.find(tmp_path)
    pixels = ct_mar.decode(row, 512)
    assert pixels.shape == (512, 512, 3) and pixels[0, :5, 0].tolist() == [0, 128, 255, 255, 0]
    assert pixels[7, 0].tolist() == [128] * 3 and row.labels == {} and row.session == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf, -3000, 2e5])
def test_values_that_are_no_hounsfield_units(tmp_path, bad):
    values = np.zeros((512, 512), "<f4")
    values[3, 3] = bad
    values.tofile(tmp_path / "a.raw")
    with pytest.raises(Refused, match="expected HU in .* found"):
        ct_mar.decode(Row(str(tmp_path / "a.raw")), 512)


def test_other_sizes_and_other_folders(tmp_path):
    (tmp_path / "a_512x512x1.raw").write_bytes(bytes(3_600_000))
    with pytest.raises(Refused, match="expected 1048576 bytes, found 3600000"):
        ct_mar.decode(next(ct_mar.find(tmp_path)), 512)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="expected files such as"):
        list(ct_mar.find(tmp_path / "none"))


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_real_samples_of_the_scoring_set():
    rows = list(list_rows("ct-mar", REALDATA / "ct", Options()))
    assert len(rows) == 6 and all(row.path.endswith(".raw") and row.labels == {} for row in rows)
    for row in rows:
        pixels = ct_mar.decode(row, 512)[..., 0]
        assert pixels[0, 0] == 0 and pixels.std() > 30  # air in the corner, a body within
