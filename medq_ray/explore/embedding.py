"""Dev images of a world in the space of an encoder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from medq_ray.console import progress
from medq_ray.images import read_image
from medq_ray.model.encoder import load_encoder
from medq_ray.questions import cell_of
from medq_ray.synthetic.world import read_world

BATCH = 64


class DevImages(NamedTuple):
    vectors: np.ndarray
    """float32 (n, d), of length 1."""
    modality: list[str]
    cell: list[str]
    """The capability cell that the questions about each image are on."""


def dev_images(world_path: Path, encoder: str) -> DevImages:
    """Those that a dev question is about. Raises ValueError for a world or encoder that cannot be used."""
    world = read_world(world_path)
    cells = {
        row["image_id"]: cell_of(row["capabilities"])
        for row in world.questions.select(["image_id", "capabilities"]).to_pylist()
    }
    dev = world.images.filter(pc.equal(world.images["split"], "dev")).to_pylist()
    rows = [row for row in dev if cells.get(row["image_id"])]
    if not rows:
        raise ValueError(f"{world_path}: no dev question names a capability cell")
    loaded, vectors = load_encoder(encoder), []
    with progress(len(rows), "embedding") as bar:
        for low in range(0, len(rows), BATCH):
            part = rows[low : low + BATCH]
            vectors.append(loaded.images([read_image(row["uri"]) for row in part]))
            bar.update(len(part))
    return DevImages(np.concatenate(vectors), [row["modality"] for row in rows],
                     [cells[row["image_id"]] for row in rows])  # fmt: skip
