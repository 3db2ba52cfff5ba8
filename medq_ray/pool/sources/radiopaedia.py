"""Radiopaedia's CT cases as M3D-Cap redistributes them: `ct_case/{caseId}/{series}/{number}.png` or .jpeg.

Slices are 8-bit pictures, windowed by whoever uploaded them, without units or spacing; a series may mix sizes. A case
is a patient; two cases may still be one patient (an author's follow-up). Studies are not told apart: the case is the
session too. The report of a case (.txt) is not read.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import chosen, read_picture

TERMS = Terms(
    "CC BY-NC-SA 3.0, modified",
    share=False,
    train=False,
    note='terms of use: "not designed or intended to be used as an imaging data-set for Machine Learning"; ask first',
)
CASES = "ct_case"
ENDINGS = (".png", ".jpeg")


def find(root: Path) -> Iterator[Row]:
    """One Row for each folder of a series. Raises ValueError when `root` neither is nor has a folder ct_case."""
    root = Path(root).resolve()
    places = [root] if root.name == CASES else [root / CASES, root / "M3D_Cap" / CASES]
    cases = next((place for place in places if place.is_dir()), None)
    if cases is None:
        raise ValueError(f"{root}: expected M3D_Cap/ct_case/{{caseId}}/{{series}}, found no folder ct_case")
    for case in folders_in(cases):
        for series in folders_in(case):
            yield Row(str(series), modality="ct", patient=case.name, session=case.name)


def expand(row: Row, options: Options) -> list[Row]:
    """The chosen slices of one series, in the order of their numbers."""
    pictures = [p for p in Path(row.path).iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".")]
    if not pictures:
        raise Refused("expected a series of .png or .jpeg slices, found none")
    pictures.sort(key=lambda path: in_order(path.name))
    return [replace(row, path=str(pictures[i])) for i in chosen(len(pictures), options.slices)]


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path, side)


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def in_order(name: str) -> list[str | int]:
    """A key that puts 2.png before 10.png."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
