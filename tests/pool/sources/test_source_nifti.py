"""NIfTI reader: which way is up, which side is left, one window for a volume, and what is refused."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, list_rows, nifti

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"
SHAPE = (10, 12, 8)
"""Right, anterior, superior."""


def save(path: Path, values: np.ndarray, axes: str = "RAS", kind=nibabel.Nifti1Image) -> str:
    """Values with axes to the right, anterior, superior, stored along the given axes instead."""
    image = kind(values, np.diag([1.5, 1.5, 1.5, 1]))
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.as_reoriented(turn), path)
    return str(path)


def marked() -> np.ndarray:
    """Dim, with the patient's right, front and top each a level brighter."""
    values = np.zeros(SHAPE, np.int16)
    values[5:] += 100
    values[:, 6:] += 200
    values[:, :, 4:] += 400
    return values


def quarters(pixels: np.ndarray) -> list[list[int]]:
    """Means of the four quarters in 7 steps: 1 is the patient's right, 2 front, 4 top, and sums of these."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    halves = [pixels[:height], pixels[height:]]
    return [[round(part.mean() / 255 * 7) for part in (half[:, :width], half[:, width:])] for half in halves]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "IRA", "ALI"])
def test_slices_are_upright_however_they_are_stored(tmp_path, axes):
    path = save(tmp_path / "mri" / "a.nii.gz", marked(), axes)
    shown = {}
    for plane in nifti.PLANES:
        rows = list(list_rows("nifti", tmp_path, Options(slices=0, plane=plane)))
        assert [row.key for row in rows] == [f"{plane} {i}" for i in range(SHAPE[nifti.PLANES[plane]])]
        shown[plane] = nifti.decode(rows[-1], 512)  # the last: right, anterior or superior end
        assert rows[0].path == path and rows[0].modality == "mri"
    assert shown["axial"].shape == (12, 10, 3)
    assert shown["coronal"].shape == (8, 10, 3)
    assert shown["sagittal"].shape == (8, 12, 3)
    assert quarters(shown["axial"]) == [[7, 6], [5, 4]]  # front up, the patient's right on the left
    assert quarters(shown["coronal"]) == [[7, 6], [3, 2]]  # top up, the patient's right on the left
    assert quarters(shown["sagittal"]) == [[7, 5], [3, 1]]  # top up, front on the left


def test_one_window_for_all_slices_of_a_volume(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values += np.arange(8)
    values[0, 0, 0] = np.nan
    save(tmp_path / "ct" / "a.nii", values)  # no HU: nothing is as dark as air
    rows = list(list_rows("nifti", tmp_path, Options(slices=0)))
    levels = [int(nifti.decode(row, 512)[5, 5, 0]) for row in rows]
    assert levels == [round(i / 7 * 255) for i in range(8)]
    assert [row.key for row in list_rows("nifti", tmp_path, Options(slices=2))] == ["axial 2", "axial 5"]


@pytest.mark.parametrize("slope", [0.25, -2.0])
def test_the_scale_of_the_header_counts(tmp_path, slope):
    """A negative one turns black into white; the stored numbers are the same."""
    image = nibabel.Nifti1Image(marked(), np.diag([1.0, 1, 1, 1]))
    image.to_filename(tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[112:120] = np.array([slope, 900], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "a.nii").write_bytes(data)
    pixels = nifti.decode(Row(str(tmp_path / "a.nii"), key="axial 7"), 512)
    assert quarters(pixels) == ([[7, 6], [5, 4]] if slope > 0 else [[0, 1], [2, 3]])


def test_a_changed_file_is_read_anew(tmp_path):
    path = save(tmp_path / "mri" / "a.nii", marked())
    row = Row(path, key="axial 0")
    first = nifti.decode(row, 512)
    save(Path(path), marked()[::-1].copy())
    assert not np.array_equal(nifti.decode(row, 512), first)


def test_several_volumes_and_single_slices(tmp_path):
    series = np.stack([marked(), 5 - marked()], axis=-1)
    save(tmp_path / "mri" / "series.nii.gz", series)
    save(tmp_path / "mri" / "plain.nii.gz", marked()[..., None, None])
    rows = {Path(row.path).name: row for row in list_rows("nifti", tmp_path, Options(slices=1))}
    assert rows["series.nii.gz"].key == "axial 4 volume 0" and rows["plain.nii.gz"].key == "axial 4"
    assert np.array_equal(*(nifti.decode(row, 512) for row in rows.values()))
    for name, values in {"flat": marked()[:, :, 7], "coronal": marked()[:, 11:]}.items():
        save(tmp_path / "one" / "mri" / f"{name}.nii.gz", values)
    flat = {row.key: nifti.decode(row, 512) for row in list_rows("nifti", tmp_path / "one", Options(plane="sagittal"))}
    assert quarters(flat["axial 0"]) == [[7, 5], [2, 0]]
    assert flat["coronal 0"].shape == (8, 10, 3)


def bids(root: Path, *places: str) -> dict[str, Row]:
    """What `find` finds below `root` after scans were saved at some places of it."""
    for place in places:
        save(root / place, marked())
    return {str(Path(row.path).relative_to(root)): row for row in nifti.find(root)}


def test_patient_and_session_by_bids(tmp_path):
    """Data sets do not share their sub-01, nor patients their ses-1; a loose file's slices stay together."""
    for data in ("a", "b"):
        (tmp_path / data).mkdir()
        (tmp_path / data / "dataset_description.json").write_text("{}")
    scans = [f"{data}/sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}_T1w.nii.gz"
             for data in "ab" for sub in ("01", "02") for ses in (1, 2)]  # fmt: skip
    rows = bids(tmp_path, *scans, "a/sub-03/anat/sub-03_T1w.nii.gz", "loose.nii.gz")
    assert len({row.patient for row in rows.values()} - {""}) == 5 and len({rows[scan].session for scan in scans}) == 8
    assert rows["loose.nii.gz"].patient == "" and rows["loose.nii.gz"].session == str(tmp_path / "loose.nii.gz")
    assert rows["a/sub-03/anat/sub-03_T1w.nii.gz"].session == ""
    scan = tmp_path / scans[0]
    for root in (tmp_path / "a", tmp_path / "a" / "sub-01", scan.parent, scan):  # whatever the root
        (again,) = (row for row in nifti.find(root) if row.path == str(scan))
        assert (again.patient, again.session) == (rows[scans[0]].patient, rows[scans[0]].session)


@pytest.mark.parametrize("described", [[], ["ds"], ["ds", "ds/derivatives/x"]])
def test_folders_of_a_data_set_do_not_tear_a_patient_apart(tmp_path, described):
    for folder in described:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "dataset_description.json").write_text("{}")
    above = ("train", "test", "derivatives/x")
    rows = bids(tmp_path, *(f"ds/{folder}/sub-01/ses-2/sub-01_ses-2_T1w.nii" for folder in above))
    patient = f"{tmp_path}/ds sub-01" if described else "sub-01"
    assert len(rows) == 3 and {(row.patient, row.session) for row in rows.values()} == {(patient, f"{patient} ses-2")}


def test_folders_further_out_than_the_root_are_no_patients(tmp_path):
    home = tmp_path / "sub-projects" / "ses-9" / "mine"
    rows = bids(home / "mri", "a.nii", "sub-7_T1w.nii")
    assert (rows["a.nii"].patient, rows["sub-7_T1w.nii"].patient) == ("", "sub-7")
    assert rows["sub-7_T1w.nii"].session == "" and {row.modality for row in rows.values()} == {"mri"}
    (alone,) = nifti.find(home / "mri" / "a.nii")
    assert alone == rows["a.nii"]


@pytest.mark.parametrize("slope, intercept", [(1, 0), (1, -1024), (0.5, 100)])
def test_ct_in_hounsfield_units_is_shown_in_the_usual_window(tmp_path, slope, intercept):
    units = np.zeros(SHAPE, np.float32) - 1000
    units[:, :, 4] = np.array([-1000, -160, 40, 240, 2900, -1000, -1000, 0, 0, 0])[:, None]
    save(tmp_path / "ct" / "a.nii", ((units - intercept) / slope).astype(np.int16))
    data = bytearray((tmp_path / "ct" / "a.nii").read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "ct" / "a.nii").write_bytes(data)
    (row,) = (row for row in list_rows("nifti", tmp_path, Options(slices=0)) if row.key == "axial 4")
    assert nifti.decode(row, 512)[5, ::-1, 0][:5].tolist() == [0, 0, 128, 255, 255]


def test_pairs_of_header_and_image(tmp_path):
    save(tmp_path / "mri" / "a.img", marked(), kind=nibabel.Nifti1Pair)
    save(tmp_path / "mri" / "b.img", marked(), kind=nibabel.AnalyzeImage)
    (tmp_path / "mri" / "disk.img").write_bytes(b"x")
    found = list(nifti.find(tmp_path))
    assert [Path(row.path).name for row in found] == ["a.img", "b.img"]
    assert [row.beside for row in found] == [(row.path.replace(".img", ".hdr"),) for row in found]
    assert not next(nifti.find(Path(save(tmp_path / "c.nii", marked())))).beside
    assert nifti.decode(nifti.expand(found[0], Options())[0], 512).shape == (12, 10, 3)
    with pytest.raises(Refused, match="expected NIfTI, found"):
        nifti.expand(found[1], Options())


def test_refusals(tmp_path):
    def refusal(path: str, **options) -> str:
        with pytest.raises(Refused, match="expected .* found") as caught:
            nifti.decode(nifti.expand(Row(path, modality="mri"), Options(**options))[0], 512)
        assert str(tmp_path) not in str(caught.value)
        return str(caught.value)

    good = save(tmp_path / "scan" / "a.nii", marked())
    with pytest.raises(Refused, match="found none: say --modality"):
        nifti.expand(next(nifti.find(tmp_path)), Options())
    assert nifti.expand(next(nifti.find(tmp_path)), Options(modality="ct"))[0].modality == "ct"
    data = Path(good).read_bytes()
    for name, content in {"no.nii": b"x" * 400, "no.nii.gz": b"x" * 400, "cut.nii": data[:-9], "none.nii": b""}.items():
        (tmp_path / name).write_bytes(content)
        refusal(str(tmp_path / name))
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(data)[:-40])
    refusal(str(tmp_path / "cut.nii.gz"))
    bomb = bytearray(data)
    bomb[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()  # dim[1..3]
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(bomb)))
    assert "bytes a volume, found (2000, 2000, 2000)" in refusal(str(tmp_path / "bomb.nii.gz"))
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "found colours" in refusal(save(tmp_path / "rgb.nii", colours))
    assert "complex64" in refusal(save(tmp_path / "complex.nii", marked().astype(np.complex64)))
    assert "2 to 4 dimensions" in refusal(save(tmp_path / "five.nii", np.zeros((4, 4, 4, 2, 2), np.int16)))
    assert "none that is finite" in refusal(save(tmp_path / "nan.nii", np.full(SHAPE, np.nan, np.float32)))
    lost = nibabel.Nifti1Image(marked(), np.diag([1.0, 1, 1, 1]))
    lost.header.set_sform(np.diag([1.0, 1, 0, 1]), 1)
    lost.to_filename(tmp_path / "lost.nii")
    raw = bytearray((tmp_path / "lost.nii").read_bytes())
    raw[252:256] = np.array([0, 1], "<i2").tobytes()  # qform_code, sform_code
    raw[280:328] = np.zeros(12, "<f4").tobytes()  # srow_x, y, z
    (tmp_path / "lost.nii").write_bytes(raw)
    assert "which way is up" in refusal(str(tmp_path / "lost.nii"))


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_a_real_series():
    rows = list(list_rows("nifti", REALDATA / "brain_mri", Options(slices=4)))
    assert [row.key for row in rows] == [f"axial {i} volume 0" for i in (4, 9, 14, 19)]
    pixels = [nifti.decode(row, 512) for row in rows]
    assert all(image.shape == (96, 128, 3) and image.std() > 20 for image in pixels)
    assert all(image[40:56, 56:72].mean() > 4 * image[:8].mean() for image in pixels)  # a brain in air
