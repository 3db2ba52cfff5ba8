"""fastMRI: HDF5 files with k-space and, except for test files, its reconstruction. Its knee DICOMs are for `dicom`.

The reconstruction of the release is taken where there is one (`reconstruction_rss`, then `reconstruction_esc`), else
`kspace` goes through a centred inverse Fourier transform, the root of the sum of squares over coils, and a crop to the
matrix of its ISMRMRD header. Test files are undersampled, so theirs show the aliasing. The files are upside down:
fastMRI+ flips them for its readers, and so does this reader.

One attribute, `patient_id`, joins the contrasts of a patient; it is the session too, since the release names no visits.
A key is a data set and a slice: 'reconstruction_rss 12'.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np

from medq_ray.images import MAX_PIXELS, Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import base, chosen, shown, walk

TERMS = Terms("NYU data sharing agreement", share=False, train=True, note="signed, academic use, no redistribution")
SPLITS = {"train": "pool", "val": "dev", "test": "test"}
"""Word in the release's folders (`multicoil_train`, `singlecoil_test_v2`) -> our reading of it; a suggestion."""
SPLIT = re.compile(r"_(train|val|test)(?:_|$)")
DATASETS = {"reconstruction_rss": ("f", (3,)), "reconstruction_esc": ("f", (3,)), "kspace": ("c", (3, 4))}
"""What images are made of, best first -> kind of number and dimensions: (slices, H, W), of many coils (S, C, H, W)."""
MAX_BYTES = 1 << 30
"""Of one slice's k-space; 15 coils of 640 x 372 have 29 MB."""
MAX_HEADER = 1 << 20
PERCENTILES = (0.5, 99.5)
"""Black and white, of the slice: values are near 1e-4, and k-space knows no others. Our choice."""
HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)
"""What h5py raises on damaged files; around its calls only."""


def find(root: Path) -> Iterator[Row]:
    top = base(root)
    for path in walk(root):
        if path.suffix.lower() == ".h5":
            folders = [*reversed(path.relative_to(top).parts[:-1]), top.name]
            named = [match[1] for folder in folders if (match := SPLIT.search(folder))]
            yield Row(str(path), modality="mri", split=SPLITS[named[0]] if named else "")


def expand(row: Row, options: Options) -> list[Row]:
    with _opened(row.path) as file:
        name = next((name for name in DATASETS if name in file), "")
        count = _dataset(file, name).shape[0]
        patient = file.attrs.get("patient_id")
        patient = patient.decode() if isinstance(patient, bytes) else patient
    if not isinstance(patient, str) or not patient:
        raise Refused("expected the attribute patient_id, found none: contrasts of one patient could be torn apart")
    facts = replace(row, patient=patient, session=patient)
    return [replace(facts, key=f"{name} {index}") for index in chosen(count, options.slices)]


def decode(row: Row, side: int) -> np.ndarray:
    name, index = row.key.split()
    with _opened(row.path) as file:
        values = _dataset(file, name)[int(index)]
        size = _matrix(file) if name == "kspace" else values.shape
    if name == "kspace":
        values = _cropped(reconstruct(values), *size)
    if not np.isfinite(values).all():
        raise Refused("expected finite values, found others")
    return shown(values[::-1], *np.percentile(values, PERCENTILES))


def reconstruct(kspace: np.ndarray) -> np.ndarray:
    """Complex k-space (H, W) or (coils, H, W), its centre in the middle -> float magnitude (H, W)."""
    axes = (-2, -1)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), axes=axes, norm="ortho"), axes)
    return np.sqrt((np.abs(image.reshape(-1, *kspace.shape[-2:])) ** 2).sum(axis=0))


def _cropped(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of (H, W), or all of it where it is smaller; 0 is the shorter side."""
    sides = [min(size, wanted or min(values.shape)) for size, wanted in zip(values.shape, (height, width), strict=True)]
    top, left = ((size - side) // 2 for size, side in zip(values.shape, sides, strict=True))
    return values[top : top + sides[0], left : left + sides[1]]


@contextmanager
def _opened(path: str) -> Iterator[h5py.File]:
    """The file, its errors turned into Refused."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Refused:
        raise
    except HDF5_ERRORS as error:
        raise Refused(f"expected a fastMRI HDF5 file, found {type(error).__name__}") from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The data set that images come from, in this file and no other, checked. Raises Refused."""
    if not name or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise Refused(f"expected one of {', '.join(DATASETS)}, found none")
    found, (kind, dimensions) = file[name], DATASETS[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise Refused(f"expected {name} to be stored in the file, found it elsewhere")
    if found.dtype.kind != kind or found.ndim not in dimensions or 0 in found.shape:
        number = "a compound type" if found.dtype.names else f"{found.dtype.kind}{found.dtype.itemsize}"  # no names
        raise Refused(f"expected {name} of kind {kind} with {dimensions} dimensions, found {number} {found.shape}")
    if found.shape[-1] * found.shape[-2] > MAX_PIXELS or found.nbytes // found.shape[0] > MAX_BYTES:
        raise Refused(f"expected at most {MAX_PIXELS} pixels and {MAX_BYTES} bytes a slice, found {found.shape}")
    return found


def _matrix(file: h5py.File) -> tuple[int, int]:
    """(height, width) of the reconstructed image by the ISMRMRD header: x is the readout, which runs down. Zeros where
    it does not say."""
    text = file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    if len(text) > MAX_HEADER or "<!" in text:  # no entities that grow
        return 0, 0
    try:
        matrix = ElementTree.fromstring(text).find("{*}encoding/{*}reconSpace/{*}matrixSize")
        return int(matrix.findtext("{*}x")), int(matrix.findtext("{*}y"))
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError):
        return 0, 0
