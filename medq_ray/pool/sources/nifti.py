"""NIfTI volumes (.nii, .nii.gz, .img beside .hdr), cut into slices.

A picture is upright: anterior is up in axial slices, superior in coronal and sagittal ones. Left in it is the patient's
right, as radiologists look at it; in sagittal slices, anterior. Pixels are shown as they are, square, whatever their
spacing. A key is 'axial 12' or, where there are several volumes, of which the first is taken, 'axial 12 volume 0'.

A volume with a single slice in some direction is cut that way and no other. CT is shown in the usual soft-tissue window
where its numbers are HU, everything else between PERCENTILES. Folders named after a modality say what the images are;
`sub-` and `ses-` in a path (BIDS) say whose.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from medq_ray.depth import Depth, packed
from medq_ray.dicom import CT_WINDOW
from medq_ray.images import MAX_PIXELS, Refused, modality_of
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import base, chosen, shown, walk

TERMS = Terms("not stated", share=False, train=True, note="the files' owner decides; ask before anything leaves")
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> the axis along which it is cut, once axes go to the right, anterior and superior."""
DESCRIPTION = "dataset_description.json"
"""What BIDS has at the top of a data set and of each of its derivatives."""
MAX_BYTES = 1 << 30
"""Of one volume as 4-byte numbers: 268 million voxels, 640 each way. Checked before anything is unpacked."""
PERCENTILES = (0.5, 99.5)
"""Black and white, of the whole volume, so that its slices can be compared. Our choice."""
SAMPLE = 4_000_000
"""About as many voxels of a larger volume decide about them: copies of all would cost as much memory again, twice."""
NIFTI_ERRORS = (
    ImageFileError,  # another format
    HeaderDataError,  # a type or size that is none
    OSError,  # cut off, no gzip
    EOFError,  # gzip that ends early
    zlib.error,  # damaged gzip
    ValueError,  # fewer bytes than promised
    TypeError,  # a size that is no number
    OverflowError,  # an offset beyond all files
)
"""What nibabel raises on damaged files; around its calls only."""


def find(root: Path) -> Iterator[Row]:
    top = base(root)
    for path in walk(root):
        name, header = path.name.lower(), path.with_suffix(".hdr")
        pair = name.endswith(".img") and header.exists()
        if pair or name.endswith((".nii", ".nii.gz")):
            patient, session = identity(path, top)
            beside = (str(header),) if pair else ()
            yield Row(str(path), modality=modality_of(path, top), patient=patient, session=session, beside=beside)


def identity(path: Path, top: Path) -> tuple[str, str]:
    """(patient, session) of a BIDS path, by the innermost `sub-` and `ses-` from the folder `top` on.

    Every data set has a sub-01 and every patient a ses-1: the patient names the data set too, and the session the
    patient. The data set is the outermost folder with a DESCRIPTION, so that its derivatives and whatever else its
    folders stand for do not make a patient several. Without one the patient is `sub-01` alone: two data sets' patients
    as one fail loudly when the splits are proven, one patient as two is never seen. Without `sub-` the patient is '',
    and the session the file: its slices are one patient's, whoever that is.
    """
    place = str(path.relative_to(top.parent))  # a folder further out may be called sub-projects
    found = {key: re.findall(rf"(?:^|[/_]){key}-([A-Za-z0-9]+)", place) for key in ("sub", "ses")}
    if not found["sub"]:
        return "", str(path)
    data_set = next((f"{folder} " for folder in reversed(path.parents) if (folder / DESCRIPTION).is_file()), "")
    patient = f"{data_set}sub-{found['sub'][-1]}"
    return patient, f"{patient} ses-{found['ses'][-1]}" if found["ses"] else ""


def expand(row: Row, options: Options) -> list[Row]:
    """The chosen slices, by the header alone."""
    modality = options.modality or row.modality
    if not modality:
        raise Refused("expected a folder named after a modality, found none: say --modality")
    _, shape, axes = _opened(row.path)
    sizes = dict(zip(axes, (*shape, 1)[:3], strict=True))
    plane = next((name for name, axis in PLANES.items() if sizes[axis] == 1), options.plane)
    others = [size for axis, size in sizes.items() if axis != PLANES[plane]]
    if others[0] * others[1] > MAX_PIXELS:
        raise Refused(f"expected at most {MAX_PIXELS} pixels, found {others[0]}x{others[1]}")
    ending = " volume 0" if len(shape) == 4 else ""
    slices = chosen(sizes[PLANES[plane]], options.slices)
    return [replace(row, key=f"{plane} {index}{ending}", modality=modality) for index in slices]


def decode(row: Row, side: int) -> np.ndarray:
    """One slice. Raises Refused."""
    values, slope, _, low, high, _ = _cut(row)
    return shown(values.astype(np.float32) * np.float32(slope), low, high)


def depth(row: Row) -> Depth | None:
    """The same in all its bits; None where there are no more than 8. Raises Refused."""
    values, slope, intercept, low, high, unit = _cut(row)
    if values.dtype.itemsize == 1:
        return None
    return packed(values, (low + intercept, high + intercept), bits=8 * values.dtype.itemsize, slope=slope,
                  intercept=intercept, unit=unit)  # fmt: skip


def _cut(row: Row) -> tuple[np.ndarray, float, float, float, float, str]:
    """(stored numbers (H, W), slope, intercept, black and white between these two steps, 'HU' or '') of one slice."""
    plane, index, *_ = row.key.split()
    values, slope, intercept, low, high = _volume(row.path, Path(row.path).stat().st_mtime_ns)
    black, white = (level - intercept for level in CT_WINDOW)
    unit = ""
    if row.modality == "ct" and low < black:  # nothing as dark as fat or air: numbers from 0 to 1 or 255, not HU
        low, high, unit = black, white, "HU"
    cut = np.moveaxis(values, PLANES[plane], 0)[int(index)]
    return cut[::-1, ::-1].T, slope, intercept, low, high, unit


def _opened(path: str) -> tuple[SpatialImage, tuple[int, ...], list[int]]:
    """(image with its header read, shape without trailing ones, for each array axis which of right, anterior, superior
    it follows: 0, 1, 2). Raises Refused for what is no NIfTI volume of real numbers."""
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti1Pair):
            raise Refused(f"expected NIfTI, found {type(image).__name__}")
        shape, kind, affine = image.shape, image.get_data_dtype(), image.affine
        while len(shape) > 2 and shape[-1] == 1:
            shape = shape[:-1]
    except Refused:
        raise
    except NIFTI_ERRORS as error:
        raise Refused(f"expected a NIfTI file, found {type(error).__name__}") from error
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise Refused(f"expected 2 to 4 dimensions, found {shape}")
    if kind.kind not in "iuf":
        raise Refused(f"expected real numbers, found {'colours' if kind.fields else kind}")
    if 4 * int(np.prod(shape[:3], dtype=object)) > MAX_BYTES:
        raise Refused(f"expected at most {MAX_BYTES} bytes a volume, found {shape[:3]}")
    axes = nibabel.io_orientation(affine)[:, 0] if np.isfinite(affine).all() else np.full(3, np.nan)
    if np.isnan(axes).any():
        raise Refused("expected an affine that says which way is up, found one that does not")
    return image, shape, axes.astype(int).tolist()


@lru_cache(maxsize=1)
def _volume(path: str, changed: int) -> tuple[np.ndarray, float, float, float, float]:
    """(numbers of a file's first volume as they are stored, with axes to the right, anterior, superior; what they are
    to be multiplied by; what is to be added then; PERCENTILES between the two steps).

    changed: when the file was, so that another one of its name is read anew. Kept, since the slices of a file are asked
    for one after the other.
    """
    image, _, _ = _opened(path)
    proxy, first = image.dataobj, [0] * (len(image.shape) - 3)
    try:  # without the header's scale: with it, 16-bit numbers become 64-bit ones, and a large CT 1.3 GB
        stored = ArrayProxy(proxy.file_like, (image.shape, proxy.dtype, proxy.offset), mmap=False)
        values = np.asarray(stored[..., *first])
    except NIFTI_ERRORS as error:
        raise Refused(f"expected as many voxels as the header says, found {type(error).__name__}") from error
    sample = values.ravel("K")[:: values.size // SAMPLE | 1]  # odd: no step along the rows of a power of two
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        raise Refused("expected numbers, found none that is finite")
    low, high = np.percentile(finite * float(proxy.slope), PERCENTILES)
    values = nibabel.apply_orientation(values.reshape((*values.shape, 1)[:3]), nibabel.io_orientation(image.affine))
    return values, float(proxy.slope), float(proxy.inter), float(low), float(high)
