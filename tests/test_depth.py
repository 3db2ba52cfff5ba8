"""All bits of a grey image: the original's values, the window that models see it in, and nothing else of its file."""

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_dicom import PLANTED, REALDATA, dicom_file, row

from medq_ray.depth import LEVELS, Depth, beside, packed, shrunk, write_depth
from medq_ray.depth import read_depth as read_file
from medq_ray.dicom import read_depth, read_frame
from medq_ray.images import read_image
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.sources import Options, Row, list_rows

CLOSE = 1.5
"""Grey levels: half of one is rounded, and DICOM's LINEAR windows are half a value off (PS3.3, C.11.2.1.2.1)."""
real = pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")


def values(depth: Depth) -> np.ndarray:
    return depth.meaning.slope * depth.numbers.astype(float) + depth.meaning.intercept


def windowed(depth: Depth) -> np.ndarray:
    """The grey levels that a page makes of a depth in its own window."""
    meaning = depth.meaning
    level = np.clip(((values(depth) - meaning.center) / meaning.width + 0.5) * 255, 0, 255)
    return 255 - level if meaning.inverted else level


@pytest.mark.parametrize("numbers", [
    np.array([[-2000, 3000]], np.int16), np.array([[0, 65535]], np.uint16), np.array([[7, 7]], np.int32),
])  # fmt: skip
def test_whole_numbers_are_kept_exactly(numbers):
    depth = packed(numbers, (0.0, 10.0), bits=16, slope=-2.0, intercept=100.0)
    assert depth.numbers.dtype == np.uint16 and np.array_equal(values(depth), -2.0 * numbers + 100)


@pytest.mark.parametrize("numbers", [
    np.array([[-0.5, 0.1, 1e5, np.nan, np.inf]], np.float32), np.array([[0, 1, 2**20]], np.int32),
])  # fmt: skip
def test_other_numbers_are_kept_to_half_a_step(numbers):
    found, finite = values(packed(numbers, (0.0, 1.0), bits=32)), np.isfinite(numbers)
    assert np.abs(found - numbers)[finite].max() <= np.ptp(numbers[finite]) / LEVELS
    assert (found[~finite] == numbers[finite].min()).all()


def test_a_file_holds_numbers_and_their_meaning_and_nothing_else(tmp_path):
    source = dicom_file(np.arange(12, dtype=np.int16).reshape(3, 4), PixelSpacing=[0.5, 0.25], BitsStored=12, HighBit=11)
    depth, path = read_depth(source, 0, "ct"), beside(tmp_path / "x.png")
    write_depth(path, depth)
    again = read_file(path)
    assert again.meaning == depth.meaning and np.array_equal(again.numbers, depth.numbers)
    assert again.meaning.spacing == (0.5, 0.25) and again.meaning.bits == 12
    text = path.read_bytes()
    assert path.name == "x.depth.png" and not any(word in text for word in (PLANTED.encode(), b"id7", b"1.2.3"))
    with pytest.raises(ValueError, match="grey with more than 8 bits"):
        read_image(path)  # no model is ever shown one
    Image.new("L", (2, 2)).save(tmp_path / "other.png")
    for bad in (tmp_path / "other.png", tmp_path / "gone.png"):
        with pytest.raises(ValueError, match=bad.name):
            read_file(bad)


def test_a_reduced_one_is_as_wide_as_before():
    depth = packed(np.full((40, 20), 9, np.int16), (0.0, 10.0), bits=16, spacing=(1.0, 2.0))
    small = shrunk(depth, (10, 20))
    assert small.numbers.shape == (20, 10) and small.meaning.spacing == (2.0, 4.0) and (values(small) == 9).all()


CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


@pytest.mark.parametrize("tags, unit", [
    (CT, "HU"), (CT | {"RescaleType": "HU"}, "HU"), (CT | {"RescaleType": "US"}, ""), ({}, ""),
    (CT | {"Modality": "MR"}, ""), (CT | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ""),
])  # fmt: skip
def test_only_a_ct_that_is_rescaled_has_hounsfield_units(tags, unit):
    depth = read_depth(dicom_file(row(0, 864, 1064, 1264, 4000), **tags), 0, "ct")
    assert depth.meaning.unit == unit
    assert values(depth)[0].tolist() == [value - (1024 if "RescaleSlope" in tags else 0)
                                         for value in (0, 864, 1064, 1264, 4000)]  # fmt: skip


def test_a_window_of_its_own_shows_what_the_model_sees():
    rng = np.random.default_rng(0)
    image, modality_lut, voi = rng.integers(0, 3000, (40, 50)).astype(np.int16), Dataset(), Dataset()
    modality_lut.LUTDescriptor, modality_lut.LUTData = [3000, 0, 16], np.arange(0, 30000, 10, dtype="<u2").tobytes()
    modality_lut.ModalityLUTType = "US"
    voi.LUTDescriptor, voi.LUTData = [3000, 0, 16], (np.arange(3000) * 65535 // 2999).astype("<u2").tobytes()
    for tags in (
        {}, CT, {"Modality": "MR"}, {"Modality": "MR", "PhotometricInterpretation": "MONOCHROME1"},
        CT | {"WindowCenter": [300, 40], "WindowWidth": [1500, 80]}, {"RescaleSlope": 0.1, "RescaleIntercept": 3},
        {"RescaleSlope": -1, "RescaleIntercept": 0, "WindowCenter": -1500, "WindowWidth": 2000},
        {"ModalityLUTSequence": Sequence([modality_lut]), "PixelRepresentation": 0},
        {"VOILUTSequence": Sequence([voi]), "PixelRepresentation": 0},
    ):  # fmt: skip
        modality = "mri" if tags.get("Modality") == "MR" else "ct"
        source = dicom_file(image, **tags)
        shown = read_frame(source, 0, modality)[..., 0].astype(float)
        assert np.abs(windowed(read_depth(source, 0, modality)) - shown).max() <= CLOSE, tags


def test_padding_is_as_dark_as_the_darkest_and_takes_no_room():
    framed = np.vstack([np.full((5, 8), -32768, np.int16), np.arange(1000, 1080, dtype=np.int16).reshape(10, 8)])
    for kind, dark in (("MONOCHROME2", 1000), ("MONOCHROME1", 1079)):
        tags = {"PhotometricInterpretation": kind, "PixelPaddingValue": -32768, "Modality": "MR"}
        depth = read_depth(dicom_file(framed, **tags), 0, "mri")
        assert (values(depth)[:5] == dark).all() and np.ptp(depth.numbers) == 79
        assert np.abs(windowed(depth) - read_frame(dicom_file(framed, **tags), 0, "mri")[..., 0]).max() <= CLOSE


def test_a_frame_of_padding_alone_tells_nothing():
    tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 100, "Modality": "MR"}
    source = dicom_file(row(3, 50, 100), **tags)
    assert not read_frame(source, 0, "mri").any() and np.ptp(read_depth(source, 0, "mri").numbers) == 0


def test_eight_bits_and_colours_have_no_more():
    assert read_depth(dicom_file(row(1, 2), BitsStored=8, HighBit=7), 0, "ct") is None
    assert read_depth(dicom_file(np.zeros((2, 2, 3), np.uint8)), 0, "endoscopy") is None


@real
def test_real_slices_come_out_of_the_jail_in_all_their_bits():
    found = {}
    with Sandbox(Limits(seconds=100)) as sandbox:
        for source, folder in (("dicom", "ct"), ("dicom", "brain_mri"), ("nifti", "brain_mri"), ("ct-mar", "ct")):
            options = Options(modality="mri" if folder == "brain_mri" else "ct", slices=1)
            for one in list(list_rows(source, REALDATA / folder, options))[:3]:
                seen, depth = (ask(source, one, 2048) for ask in (sandbox.decode, sandbox.deepen))
                assert np.abs(windowed(depth) - seen.pixels[..., 0]).max() <= CLOSE, one.path
                found.setdefault((source, folder), set()).add((depth.meaning.unit, depth.meaning.bits))
        jpeg = Row(str(next((REALDATA / "endoscopy").glob("*.jpg"))), modality="endoscopy")
        assert sandbox.deepen("images", jpeg, 2048) is None
    assert found[("dicom", "ct")] == {("HU", 16)} and found[("ct-mar", "ct")] == {("HU", 32)}
    assert found[("dicom", "brain_mri")] <= {("", 12), ("", 16)} and found[("nifti", "brain_mri")] == {("", 16)}
