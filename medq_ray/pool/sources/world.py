"""A synthetic world written by `medq synth`: its PNG files with the splits that it was made with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.pool.sources import Row, Terms
from medq_ray.pool.sources._files import read_picture
from medq_ray.synthetic.world import read_world

TERMS = Terms("generated", share=True, train=True, note="synthetic; what was made of your own images stays with you")


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when `root` holds no finished world."""
    names = ["uri", "modality", "patient", "session", "split", "source"]
    for row in read_world(root).images.select(names).to_pylist():
        row["session"] = row["session"] and f"{row['patient']} {row['session']}"  # every patient has a first one
        yield Row(row.pop("uri"), private=row.pop("source") != "synthetic", **row)


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path)
