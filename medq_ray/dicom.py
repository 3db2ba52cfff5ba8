"""DICOM files: whose they are, how many frames they have, and one frame as it would be displayed.

Floor 1. A `source` is a path or an open binary stream. Refusals say what was expected and the type of what went wrong,
never pydicom's own message: that may quote a name or an id.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from medq_ray.depth import Depth, packed
from medq_ray.images import MAX_PIXELS, Refused

pydicom.config.logger.propagate = False  # what it warns of, it also logs, values included

Source = str | Path | BinaryIO

CT_WINDOW = (-160.0, 240.0)
"""Black and white in HU where a CT file gives none: the usual soft-tissue window, centre 40 and width 400."""
PERCENTILES = (0.5, 99.5)
"""Black and white of other grey frames that give none. Our choice: a few bright vessels do not darken the rest."""
MAX_FRAMES = 1_000_000
"""More are refused: the largest slides have some 100,000 tiles a level."""
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations that decode to RGB."""
TRANSFORMS = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
"""Where an enhanced multi-frame file keeps the rescaling, the window and the spacing of a frame."""
PLUGINS = {
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",
    JPEG2000: "pylibjpeg",
    JPEG2000Lossless: "pylibjpeg",
    RLELossless: "pydicom",
}
"""Decoder by compression. GDCM, which pydicom would ask first, ends the whole process over some damaged JPEG files; it
is left with what only it can decode here: lossless JPEG and JPEG-LS."""
DICOM_ERRORS = (
    InvalidDicomError,  # no DICOM
    BytesLengthException,  # a number of a wrong length
    OSError,  # cut off in the middle
    ValueError,  # an element whose value does not parse, too few pixel bytes
    TypeError,  # several values, or none, where one belongs
    AttributeError,  # no Rows, no PixelData, no transfer syntax
    LookupError,  # an element that a decoder needs, an empty sequence
    ArithmeticError,  # a number without bound
    AssertionError,  # pydicom checks some of its own steps
    RuntimeError,  # a compression that nothing here decodes, a decoder that failed, endless nesting
    struct.error,  # cut off within a number
    zlib.error,  # deflated and damaged
)
"""What pydicom and its decoders raise on damaged or unsupported files: 40,000 mutated ones gave no other. Around
their calls only."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself."""

    modality: str
    """The standard's code: MR, CT, ES ...; '' if it is missing."""
    patient: str
    """PatientID; '' if it is missing. Without its issuer, which some files of a patient name and others do not: two
    hospitals' patient 7 as one fails loudly when the splits are proven, one patient as two is never seen."""
    study: str
    """StudyInstanceUID; '' if it is missing."""
    frames: int
    """0 for an object without pixels: a report, a plan, a contour."""
    channels: int
    """1 for grey and palettes, 3 for colour."""
    burned_in: str
    """BurnedInAnnotation: 'yes', 'no', or '' where it says neither."""
    about: bool
    """A slide's label or its overview, which shows the label: names, not tissue."""


@contextmanager
def _refusing(expected: str) -> Iterator[None]:
    """Everything that pydicom raises becomes Refused, without its cause; its warnings quote values too: off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Refused:
            raise
        except DICOM_ERRORS as error:
            raise Refused(f"expected {expected}, found {type(error).__name__}") from None


def _text(dataset: pydicom.Dataset, name: str) -> str:
    return str(dataset.get(name) or "").strip()


def _dataset(source: Source, pixels: bool = False) -> pydicom.Dataset:
    """All elements, without the pixels unless they are asked for."""
    if not isinstance(source, str | Path):
        source.seek(0)
    return pydicom.dcmread(source, stop_before_pixels=not pixels)


def _frames(dataset: pydicom.Dataset) -> int:
    """Number of frames, 0 without a picture. Raises Refused when there are too many, or they are too large."""
    if "Rows" not in dataset or "Columns" not in dataset:
        return 0
    height, width, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
    if not 0 < height * width <= MAX_PIXELS:
        raise Refused(f"expected 1 to {MAX_PIXELS} pixels, found {height}x{width}")
    if not 0 < frames <= MAX_FRAMES:
        raise Refused(f"expected 1 to {MAX_FRAMES} frames, found {frames}")
    return frames


def read_header(source: Source) -> Header:
    """The facts of a file, its pixels unread. Raises Refused for anything that is no DICOM file."""
    with _refusing("a DICOM file"):
        dataset = _dataset(source)
        burned = _text(dataset, "BurnedInAnnotation").lower()
        return Header(
            modality=_text(dataset, "Modality").upper(),
            patient=_text(dataset, "PatientID"),
            study=_text(dataset, "StudyInstanceUID"),
            frames=_frames(dataset),
            channels=int(dataset.get("SamplesPerPixel") or 1),
            burned_in=burned if burned in ("yes", "no") else "",
            about=not {"LABEL", "OVERVIEW"}.isdisjoint(map(str, np.ravel(dataset.get("ImageType") or []))),
        )


def read_frame(source: Source, index: int, modality: str) -> np.ndarray:
    """uint8 (H, W, 3) of one frame, as a viewer shows it at first; the other frames are not decoded.

    Grey values go through the rescaling, then the lookup table or first window of the file; without either, CT gets
    CT_WINDOW and others the frame's PERCENTILES. Grey padding around the image does not count and is black.
    modality: one of schema.MODALITIES, which decides between the two defaults only.
    Raises Refused for what cannot be decoded.
    """
    with _refusing("a DICOM image that can be decoded"):
        return _display(*_stored(source, index), modality)


def read_depth(source: Source, index: int, modality: str) -> Depth | None:
    """One frame in all its bits, with the window in which `read_frame` shows it; None where it has no more than 8, or
    is no grey. A CT's values are HU, unless its file says otherwise; padding is as dark as the darkest pixel.
    Raises Refused for what cannot be decoded."""
    with _refusing("a DICOM image that can be decoded"):
        values, dataset = _stored(source, index)
        kind, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
        if kind not in ("MONOCHROME1", "MONOCHROME2") or values.ndim != 2 or values.dtype.kind not in "iu" or bits <= 8:
            return None
        slope, intercept, units, padding = 1.0, 0.0, values, _padding(values, dataset)
        if dataset.get("ModalityLUTSequence"):
            units = values = apply_modality_lut(values, dataset)
        elif "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
            slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
            units = apply_modality_lut(values, dataset)
        if dataset.get("VOILUTSequence"):
            count, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
            window = float(first), float(first + (count or 2**16) - 1)
        else:
            center, width, _ = _window(units, padding, dataset, modality)
            window = center - width / 2, center + width / 2
        if padding.any():
            image = values if padding.all() else values[~padding]
            dark = image.min() if (kind == "MONOCHROME2") == (slope > 0) else image.max()
            values = np.where(padding, dark, values)
        return packed(values, window, bits=bits, slope=slope, intercept=intercept, unit=_unit(dataset),
                      inverted=kind == "MONOCHROME1", spacing=_spacing(dataset))  # fmt: skip


def _unit(dataset: pydicom.Dataset) -> str:
    """'HU' of a CT that is rescaled and does not say to what, or says so (PS3.3, C.8.2.1); a scout has none."""
    rescaled = "RescaleIntercept" in dataset and _text(dataset, "RescaleType").upper() in ("", "HU")
    scout = "LOCALIZER" in map(str, np.ravel(dataset.get("ImageType") or []))
    return "HU" if _text(dataset, "Modality").upper() == "CT" and rescaled and not scout else ""


def _spacing(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Millimetres between rows and between columns."""
    found = np.ravel(dataset.get("PixelSpacing") or [])
    return (float(found[0]), float(found[1])) if len(found) == 2 else None


def _stored(source: Source, index: int) -> tuple[np.ndarray, pydicom.Dataset]:
    """Stored values of a frame, and its elements. Raises Refused, and whatever pydicom does."""
    dataset = _dataset(source)
    frames = _frames(dataset)
    if index >= frames:
        raise Refused(f"expected a frame {index}, found {frames} frames")
    syntax = dataset.file_meta.TransferSyntaxUID
    inflated = _dataset(source, pixels=True) if syntax == DeflatedExplicitVRLittleEndian else source
    values = pixel_array(inflated, index=index, decoding_plugin=PLUGINS.get(syntax, ""))
    return values, _of_frame(dataset, index)


def _of_frame(dataset: pydicom.Dataset, index: int) -> pydicom.Dataset:
    """The dataset with a frame's own rescaling and window, if it has any, where single-frame files have theirs."""
    flat = copy(dataset)
    shared, own = dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence")
    for group in [*(shared or [])[:1], *(own or [])[index : index + 1]]:
        for name in TRANSFORMS:
            for item in group.get(name) or []:
                flat.update(item)
    for name, neutral in (("RescaleSlope", 1), ("RescaleIntercept", 0)):  # present and empty in some files
        if name in flat and flat.get(name) in (None, ""):
            setattr(flat, name, neutral)
    return flat


def _display(values: np.ndarray, dataset: pydicom.Dataset, modality: str) -> np.ndarray:
    """Stored values, (H, W) or RGB (H, W, 3), -> uint8 (H, W, 3)."""
    kind, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
    if kind in COLOURS and values.ndim == 3:
        values = np.clip(values, 0, None)
        return (values if bits == 8 else values * (255 / (2**bits - 1)) + 0.5).astype(np.uint8)
    if kind not in ("MONOCHROME1", "MONOCHROME2") or values.ndim != 2:
        raise Refused(f"expected grey, a palette or {', '.join(COLOURS)}, found another photometric interpretation")
    padding = _padding(values, dataset)
    grey = (_shown(apply_modality_lut(values, dataset), padding, dataset, modality) + 0.5).astype(np.uint8)
    grey = 255 - grey if kind == "MONOCHROME1" else grey
    grey[padding] = 0
    return np.repeat(grey[..., None], 3, axis=2)


def _padding(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """bool (H, W): stored values that fill the frame outside of the image (PS3.3, C.7.5.1.1.2)."""
    value, limit = (dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(values.shape, bool)
    ends = [int(np.ravel(end)[0]) % 2**16 for end in (value, limit) if end is not None]
    if values.dtype.kind == "i":  # some files write the 16 bits of -2000 as 63536
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    return (values >= min(ends)) & (values <= max(ends))


def _shown(values: np.ndarray, padding: np.ndarray, dataset: pydicom.Dataset, modality: str) -> np.ndarray:
    """Grey values in their own units -> 0 to 255 by lookup table, window or default; padding: bool, not looked at."""
    if dataset.get("VOILUTSequence"):
        depth = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi(values, dataset) * (255 / (2**depth - 1))
    window = pydicom.Dataset()  # of its own: 8 bits and no rescaling, so that its output is 0 to 255
    window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = _window(values, padding, dataset, modality)
    return apply_windowing(values, window)


def _window(
    values: np.ndarray, padding: np.ndarray, dataset: pydicom.Dataset, modality: str
) -> tuple[float, float, str]:
    """(centre, width, the standard's function): the file's first window, or the default."""
    given = [np.ravel(dataset.get(name)) for name in ("WindowCenter", "WindowWidth")]
    if all(len(value) and value[0] not in (None, "") for value in given) and float(given[1][0]) > 0:
        return float(given[0][0]), float(given[1][0]), _text(dataset, "VOILUTFunction") or "LINEAR"
    image = values if padding.all() else values[~padding]
    low, high = CT_WINDOW if modality == "ct" else np.percentile(image, PERCENTILES)
    return float((low + high) / 2), float(max(high - low, 1e-6)), "LINEAR_EXACT"
