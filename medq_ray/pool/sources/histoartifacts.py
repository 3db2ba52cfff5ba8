"""HistoArtifacts (Kanwal 2024, Zenodo 10809442): 53,496 PNG patches, 224 x 224 RGBA, one artifact class each.

Names are `{split}_{class}[_20x]_{index}.png`. There is no slide id, coordinate or sidecar: patient and session stay
'', and patient-disjointness cannot be shown. The release's own split is kept.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import read_picture, walk_ending

TERMS = Terms(
    "not stated",
    share=False,
    train=True,
    note="readers of the record disagree: CC BY 4.0, or unclear; look at the Zenodo record before passing it on",
)
NAME = re.compile(r"(train|val|test)[a-z]*_(artifact_free|fold|blood|blur|bubble|damage)(?:_20x)?_\d+\.png")
SPLITS = {"train": "pool", "val": "dev", "test": "test"}
SIDE = 224


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when there is no such folder or no PNG below it. A name that does not fit, `expand` refuses."""
    for path in walk_ending(root, (".png",)):
        name = NAME.fullmatch(path.name)
        split, labels = (SPLITS[name[1]], {"artifact": name[2]}) if name else ("", {})
        yield Row(str(path), modality="histopathology", split=split, labels=labels)


def expand(row: Row, options: Options) -> list[Row]:
    if not row.labels:
        raise Refused("expected a name like train_fold_20x_12.png with one of six known classes, found another")
    return [row]


def decode(row: Row, side: int) -> np.ndarray:
    """Alpha is dropped. Raises Refused for another size."""
    pixels = read_picture(row.path)
    if pixels.shape[:2] != (SIDE, SIDE):
        raise Refused(f"expected {SIDE}x{SIDE} pixels, found {pixels.shape[1]}x{pixels.shape[0]}")
    return pixels
