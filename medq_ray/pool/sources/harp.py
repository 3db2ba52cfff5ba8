"""HARP (Fuchs et al. 2024): BCSS patches of 256 x 256 pixels, a hundred of them with synthetic FrOoDo artifacts.

Its own loaders take every picture of a folder tree, and so does this one; folders of masks are passed over. Artifact
patches lie at `{id}/artifacts/{artifact}/...`. How the folders of the released zip are called is not documented.
BCSS is cut from TCGA slides: where a path still has a slide's barcode, its first twelve characters are the patient.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.pool.sources import Row, Terms
from medq_ray.pool.sources._files import base, read_picture, walk_ending

TERMS = Terms(
    "not stated",
    share=False,
    train=True,
    note="the zip has no licence of its own; its code is CC BY 4.0, the BCSS patches in it CC0 as far as known",
)
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp")
ARTIFACTS = (
    "air_bubble", "blood_cells", "blood_group", "compression", "cut",
    "dark_spot", "folding", "overlap", "squamos", "thread",
)  # fmt: skip
"""The ten of HARP's evaluation script (pipeline/eval.py), in its spelling."""
MASKS = {"mask", "masks"}
BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when there is no such folder or no picture below it."""
    top = base(root)
    for path in walk_ending(root, ENDINGS):
        place = path.relative_to(top)
        folders = place.parts[:-1]
        if MASKS.isdisjoint(folders):
            barcode = BARCODE.search(str(place))
            patient = barcode[0] if barcode else ""
            yield Row(str(path), modality="histopathology", patient=patient, labels=labels_of(folders))


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path, side)


def labels_of(folders: tuple[str, ...]) -> dict[str, str]:
    """{'artifact': name} if a folder of that name lies in one called 'artifacts', else {}: unknown, not clean."""
    for outer, inner in zip(folders, folders[1:], strict=False):
        if outer == "artifacts" and inner in ARTIFACTS:
            return {"artifact": inner}
    return {}
