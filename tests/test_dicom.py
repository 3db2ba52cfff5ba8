"""DICOM: header facts, display values that can be computed by hand, one frame of many, refusals that quote nothing."""

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medq_ray.dicom import read_frame, read_header
from medq_ray.images import Refused

REALDATA = Path(__file__).parents[1].parent / "shared" / "realdata"
PLANTED = "Doe^Jane"


def dicom_file(values: np.ndarray, **tags) -> io.BytesIO:
    """Frames (H, W) or (N, H, W) of int16 grey, or uint8 RGB (H, W, 3), as a file; tags overrule."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["x"])
    dataset.Modality, dataset.PatientID, dataset.PatientName, dataset.StudyInstanceUID = "CT", "id7", PLANTED, "1.2.3"
    colour = values.dtype == np.uint8
    dataset.Rows, dataset.Columns = values.shape[:2] if colour else values.shape[-2:]
    if not colour and values.ndim == 3:
        dataset.NumberOfFrames = len(values)
    bits = 8 * values.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.SamplesPerPixel, dataset.PixelRepresentation = (3, 0) if colour else (1, 1)
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = ("RGB", 0) if colour else ("MONOCHROME2", None)
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer


def row(*values: int) -> np.ndarray:
    return np.array([values, values], np.int16)


def grey(source, index: int = 0, modality: str = "ct") -> list[int]:
    """The first line of a frame whose channels are equal."""
    pixels = read_frame(source, index, modality)
    assert pixels.dtype == np.uint8 and (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def test_header_facts():
    source = dicom_file(np.zeros((3, 4, 5), np.int16), IssuerOfPatientID="Hospital", BurnedInAnnotation="NO")
    header = read_header(source)
    assert (header.modality, header.patient, header.study, header.frames) == ("CT", "id7", "1.2.3", 3)
    assert header.channels == 1 and header.burned_in == "no"
    plain = read_header(dicom_file(row(0, 1)))
    assert (plain.patient, plain.frames, plain.burned_in) == ("id7", 1, "")  # one patient, with or without an issuer
    assert read_header(dicom_file(row(0, 1), PatientID="", IssuerOfPatientID="Hospital")).patient == ""


def test_ct_without_a_window_is_shown_at_40_and_400_hounsfield():
    source = dicom_file(row(0, 864, 1064, 1264, 4000), RescaleSlope=1, RescaleIntercept=-1024)
    assert grey(source) == [0, 0, 128, 255, 255]  # -1024, -160, 40, 240, 2976 HU


def test_other_grey_without_a_window_is_shown_by_percentiles():
    values = np.arange(1000, dtype=np.int16).reshape(25, 40)
    pixels = read_frame(dicom_file(values, Modality="MR"), 0, "mri")[..., 0].ravel().astype(int)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values.ravel() - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.51
    constant = read_frame(dicom_file(np.full((4, 4), 7, np.int16), Modality="MR"), 0, "mri")
    assert constant.min() == constant.max()


@pytest.mark.parametrize(
    "filling, tags",
    [
        (-32768, {"PixelPaddingValue": -32768}),
        (-2000, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}),
        (-1995, {"PixelPaddingValue": -1990, "PixelPaddingRangeLimit": -2000}),
    ],
)
def test_padding_does_not_count_for_the_percentiles_and_is_black(filling, tags):
    image = np.arange(1000, 2000, dtype=np.int16).reshape(25, 40)
    framed = np.vstack([np.full((20, 40), filling, np.int16), image])
    for kind in ("MONOCHROME2", "MONOCHROME1"):
        shown = {"Modality": "MR", "PhotometricInterpretation": kind}
        pixels = read_frame(dicom_file(framed, **shown, **tags), 0, "mri")
        assert (pixels[:20] == 0).all()
        assert np.array_equal(pixels[20:], read_frame(dicom_file(image, **shown), 0, "mri"))
    everything = read_frame(dicom_file(np.full((4, 4), filling, np.int16), Modality="MR", **tags), 0, "mri")
    assert (everything == 0).all()


def test_padding_of_signed_pixels_that_is_written_without_a_sign():
    source = dicom_file(row(-2000, 40), Modality="MR", PixelPaddingValue=-2000)
    data = source.getvalue().replace(b"\x28\x00\x20\x01SS", b"\x28\x00\x20\x01US")
    assert data != source.getvalue() and grey(io.BytesIO(data), modality="mri")[0] == 0
    window = {"WindowCenter": 0, "WindowWidth": 100}
    assert grey(dicom_file(row(7, 7, 40), PixelPaddingValue=7, PixelPaddingRangeLimit=None, **window))[:2] == [0, 0]


def test_the_first_window_of_a_file_and_its_function():
    values = row(-200, 0, 50, 100, 300)
    linear = dicom_file(values, WindowCenter=[50, 0], WindowWidth=[100, 9])
    assert grey(linear) == [0, 0, 129, 255, 255]  # the standard's LINEAR: (50 - 49.5) / 99 + 0.5 is 0.505
    exact = dicom_file(values, WindowCenter=50, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    assert grey(exact) == [0, 0, 128, 255, 255]
    sigmoid = grey(dicom_file(values, WindowCenter=50, WindowWidth=100, VOILUTFunction="SIGMOID"))
    assert sigmoid == [round(255 / (1 + np.exp(-4 * (v - 50) / 100))) for v in values[0]]


def test_a_window_without_width_is_none_and_an_empty_slope_is_one():
    """Some scanners write them; a viewer shows the image all the same."""
    plain = dicom_file(row(0, 864, 1064, 1264, 4000), RescaleSlope=1, RescaleIntercept=-1024)
    for tags in ({"WindowCenter": 40, "WindowWidth": 0}, {"WindowCenter": 40, "WindowWidth": -5}, {"WindowWidth": None}):
        source = dicom_file(row(0, 864, 1064, 1264, 4000), RescaleSlope=1, RescaleIntercept=-1024, **tags)
        assert grey(source) == grey(plain)
    empty = dicom_file(row(-160, 40, 240), RescaleSlope=None, RescaleIntercept=None)
    assert grey(empty) == [0, 128, 255]


def test_a_slides_label_is_known():
    assert read_header(dicom_file(row(0, 1), ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])).about
    assert not read_header(dicom_file(row(0, 1), ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])).about


def test_monochrome1_is_inverted():
    tags = {"WindowCenter": 50, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    assert grey(dicom_file(row(0, 100), PhotometricInterpretation="MONOCHROME1", **tags)) == [255, 0]


def test_lookup_tables_go_before_windows():
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [255, 10, 20, 0]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    source = dicom_file(row(-5, 0, 1, 2, 3, 9), VOILUTSequence=Sequence([table]), WindowCenter=0, WindowWidth=10)
    assert grey(source) == [255, 255, 10, 20, 0, 0]


def test_enhanced_files_have_a_window_and_a_slope_for_each_frame():
    def functional_groups(slope, centre):
        transform, window, group = Dataset(), Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept = slope, 0
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, 100, "LINEAR_EXACT"
        group.PixelValueTransformationSequence = Sequence([transform])
        group.FrameVOILUTSequence = Sequence([window])
        return group

    shared = functional_groups(1, 50)
    del shared.FrameVOILUTSequence
    frames = [functional_groups(1, 50), functional_groups(2, 150)]
    del frames[0].PixelValueTransformationSequence
    source = dicom_file(
        np.stack([row(0, 50, 100)] * 2),
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    assert grey(source, 0) == [0, 128, 255]
    assert grey(source, 1) == [0, 0, 255]  # 0, 100 and 200 in 100 to 200


def test_colour_stays_colour():
    values = np.zeros((2, 3, 3), np.uint8)
    values[0], values[1] = (200, 10, 30), (0, 255, 1)
    assert np.array_equal(read_frame(dicom_file(values, Modality="ES"), 0, "endoscopy"), values)
    palette = pydicom.dcmread(get_testdata_file("examples_palette.dcm", download=False))
    red = np.frombuffer(palette.RedPaletteColorLookupTableData, "<u2")[palette.pixel_array] >> 8
    shown = read_frame(palette.filename, 0, "endoscopy")
    assert np.array_equal(shown[..., 0], red) and (shown[..., 0] != shown[..., 2]).any()


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm"],
)
def test_lossless_encodings_of_one_image_are_shown_alike(name):
    plain = read_frame(get_testdata_file("MR_small.dcm", download=False), 0, "mri")
    assert np.array_equal(read_frame(get_testdata_file(name, download=False), 0, "mri"), plain)


@pytest.mark.parametrize(
    "name", ["SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_rle_16bit.dcm"]
)
def test_jpeg_and_sixteen_bits_are_the_same_red_green_and_blue(name):
    pixels = read_frame(get_testdata_file(name, download=False), 0, "endoscopy").astype(int)
    assert np.abs(pixels[[5, 25, 45], 50] - 255 * np.eye(3)).max() <= 8  # JPEG is lossy


def test_one_frame_is_decoded_and_no_other():
    """The second frame is damaged: the first and third are read all the same."""
    values = np.stack([row(0, 864, 1264), row(1, 1, 1), row(1264, 864, 0)])
    source = dicom_file(values, RescaleSlope=1, RescaleIntercept=-1024)
    assert grey(source, 0) == [0, 0, 255] and grey(source, 2) == [255, 0, 0]
    path = get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)
    data = Path(path).read_bytes()
    second = data.rindex(b"\xfe\xff\x00\xe0") + 8
    damaged = io.BytesIO(data[:second] + b"\xff" * 16 + data[second + 16 :])
    assert np.array_equal(read_frame(damaged, 0, "ct"), read_frame(path, 0, "ct"))
    with pytest.raises(Refused, match="can be decoded"):
        read_frame(damaged, 1, "ct")


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_refusals_say_what_was_expected_and_no_header_value(caplog):
    source = dicom_file(row(0, 1), PatientID=PLANTED, WindowCenter=0, WindowWidth=100, PatientComments=PLANTED)
    cut = io.BytesIO(source.getvalue()[:-3])
    odd_window = dicom_file(row(0, 1), WindowCenter=0, WindowWidth=100, VOILUTFunction=PLANTED)
    odd_kind = dicom_file(row(0, 1), PhotometricInterpretation=PLANTED.upper())
    huge = dicom_file(row(0, 1), Rows=60_000, Columns=60_000)
    many = dicom_file(row(0, 1), NumberOfFrames=2_000_000)
    for broken in (cut, odd_window, odd_kind, huge, many, io.BytesIO(PLANTED.encode() * 40)):
        with warnings.catch_warnings(record=True) as heard, pytest.raises(Refused, match="expected .*found") as caught:
            read_frame(broken, 0, "mri")
        assert "doe" not in str(caught.value).lower() and caught.value.__cause__ is None
        assert not heard and "doe" not in caplog.text.lower()  # pydicom's warnings quote values
    with pytest.raises(Refused, match="frame 1, found 1"):
        read_frame(source, 1, "mri")
    with pytest.raises(Refused, match="60000x60000"):
        read_header(huge)
    report = read_header(get_testdata_file("reportsi.dcm", download=False))
    assert report.frames == 0 and report.modality == "SR"


def test_damaged_files_are_refused_and_nothing_else():
    """Byte by byte: whatever is changed in a header, the answer is an image or Refused."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(Path(get_testdata_file("MR_small_RLE.dcm", download=False)).read_bytes(), np.uint8)
    outcomes = set()
    for _ in range(150):
        data = whole.copy()
        data[rng.integers(132, 1800, 8)] = rng.integers(0, 256, 8)
        try:
            outcomes.add(read_frame(io.BytesIO(data.tobytes()), 0, "mri").dtype.name)
        except Refused:
            outcomes.add("refused")
    assert outcomes == {"uint8", "refused"}


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_a_ct_whose_stream_and_header_disagree_about_signs():
    """Air, brain and bone of a head have the greys that they should have in the window 40/100 of its file."""
    pixels = read_frame(REALDATA / "ct" / "pydicom_J2K_pixelrep_mismatch.dcm", 0, "ct")[..., 0]
    assert pixels.shape == (512, 512) and (pixels[:20, :20] == 0).all()
    brain = pixels[300:340, 230:280]  # cerebellum: about 35 HU, so somewhat below the middle
    assert 60 < np.median(brain) < 160 and 0.02 < (pixels == 255).mean() < 0.2
