"""AAPM CT-MAR: CT slices with simulated metal, each beside the same slice without.

Layout: `{body,head}N/Target/training_{body,head}_nometal_imgI_512x512x1.raw`, the same slice with metal artifacts in
`Baseline/..._metalart_imgI_...`; masks and sinograms are no images for a pool. Other names that end in
`_512x512.raw` are taken without a label: the samples of the challenge's scoring set.

Patients are not told, so near-duplicates have to stand in for them; a slice and its pair are one session, so that no
split can tear them apart. Every slice is shown in the usual soft-tissue window, where streaks are seen, heads too, so
that the window does not tell the part of the body (our choice).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.depth import Depth, packed
from medq_ray.dicom import CT_WINDOW
from medq_ray.images import Refused
from medq_ray.pool.sources import Row, Terms
from medq_ray.pool.sources._files import shown, walk

TERMS = Terms(
    "not stated", share=False, train=True, note="BSD-3-Clause covers the code and samples, not the data set: ask AAPM"
)
TRAINING = re.compile(r"training_(body|head)_(nometal|metalart)_img(\d+)_512x512x1\.raw")
SAMPLE = re.compile(r"(?!.*(mask|sino)).*_512x512(x1)?\.raw")
METAL = {"nometal": "no", "metalart": "yes"}
SIDE = 512
BYTES = 4 * SIDE * SIDE
HOUNSFIELD = (-2000.0, 1e5)
"""What a value may be: metal that nothing corrects goes beyond 5,000."""


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when nothing has a name of the release."""
    empty = True
    for path in walk(root):
        if case := TRAINING.fullmatch(path.name):
            part, kind, number = case.groups()
            archive = path.parents[1].name
            session, labels = f"{archive}/{part}{number}", {"metal": METAL[kind]}
        elif SAMPLE.fullmatch(path.name):
            session, labels = "", {}
        else:
            continue
        empty = False
        yield Row(str(path), modality="ct", session=session, labels=labels)
    if empty:
        raise ValueError(f"{root}: expected files such as Target/training_body_nometal_img1_512x512x1.raw, found none")


def decode(row: Row, side: int) -> np.ndarray:
    """Headerless little-endian float32, 512 x 512, HU. Raises Refused for any other size, and for other values."""
    return shown(_values(row), *CT_WINDOW)


def depth(row: Row) -> Depth:
    """The same in HU. Raises Refused."""
    return packed(_values(row), CT_WINDOW, bits=32, unit="HU")


def _values(row: Row) -> np.ndarray:
    path = Path(row.path)
    if path.stat().st_size != BYTES:
        raise Refused(f"expected {BYTES} bytes, found {path.stat().st_size}")
    values = np.fromfile(path, "<f4").reshape(SIDE, SIDE)
    low, high = values.min(), values.max()  # NaN if there is one
    if not HOUNSFIELD[0] <= low <= high <= HOUNSFIELD[1]:
        raise Refused(f"expected HU in {HOUNSFIELD}, found {low:g} to {high:g}")
    return values
