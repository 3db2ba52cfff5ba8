"""Training images of the embedded models: synthetic, drawn once into a memory map.

Seeds start at FIRST_SEED, far above those of any world, so no demo split shares an anatomy with the training images.
"""

import multiprocessing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES, SEVERITIES
from medq_ray.synthetic.world import make_image

FIRST_SEED = 900_000_000
SIZE = 112
CHUNK = 64


class Drawn(NamedTuple):
    """What `make_image` was asked for; also an image's truth."""

    modality: str
    degradation: str
    severity: str
    seed: int


def everyday_plan(count: int) -> list[Drawn]:
    """Clean images and everyday degradations, modalities evenly: 30 % clean, 40 % mild (the harder), 30 % severe."""
    rows = []
    for i in range(count):
        modality = MODALITIES[i % 5]
        usual = [name for name in DEGRADATIONS[modality] if name in EVERYDAY]
        slot = i // 5 % 20
        if slot < 6:
            degradation, severity = "none", "none"
        else:
            degradation, severity = usual[slot % 2], "mild" if slot < 14 else "severe"
        rows.append(Drawn(modality, degradation, severity, FIRST_SEED + i))
    return rows


def specific_plan(count: int) -> list[Drawn]:
    """Modality-specific degradations, cells and severities evenly."""
    cells = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d not in EVERYDAY]
    return [
        Drawn(*cells[i % len(cells)], SEVERITIES[1 + i // len(cells) % 2], FIRST_SEED + 10_000_000 + i)
        for i in range(count)
    ]


def balanced_plan(count: int) -> list[Drawn]:
    """Held-out images, evenly over modality x (its degradations and 'none'), severities alternating."""
    cells = [(m, d) for m in MODALITIES for d in (*DEGRADATIONS[m], "none")]
    rows = []
    for i in range(count):
        modality, degradation = cells[i % len(cells)]
        severity = "none" if degradation == "none" else SEVERITIES[1 + i // len(cells) % 2]
        rows.append(Drawn(modality, degradation, severity, FIRST_SEED + 50_000_000 + i))
    return rows


def retrieval_plan(each: int, common: int) -> list[Drawn]:
    """Held-out pool: `each` images of every modality-specific cell, cells by turns, then `common` clean and everyday
    images, 74 % of them clean as in a world's pool (70 of 95)."""
    offset = FIRST_SEED + 60_000_000
    cells = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d not in EVERYDAY]
    rows = [Drawn(*cells[i % 15], SEVERITIES[1 + i // 15 % 2], offset + i) for i in range(15 * each)]
    for i in range(common):
        modality = MODALITIES[i % 5]
        usual = [name for name in DEGRADATIONS[modality] if name in EVERYDAY]
        slot = i // 5 % 50
        cell = ("none", "none") if slot < 37 else (usual[slot % 2], SEVERITIES[1 + slot // 2 % 2])
        rows.append(Drawn(modality, *cell, offset + 100_000 + i))
    return rows


def _draw_chunk(task: tuple[str, int, list[Drawn]]) -> None:
    path, start, rows = task
    images = np.lib.format.open_memmap(path, mode="r+")
    for i, row in enumerate(rows):
        images[start + i] = make_image(*row, size=SIZE)[0]


def draw_missing(plan: list[Drawn], path: Path, workers: int = 2) -> None:
    """Draw `plan` into `path`, uint8 (len(plan), SIZE, SIZE, 3), by worker processes; a finished file is kept."""
    if path.exists():
        return
    unfinished = path.with_suffix(".part")
    shape = (len(plan), SIZE, SIZE, 3)
    np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape).flush()
    tasks = [(str(unfinished), start, plan[start : start + CHUNK]) for start in range(0, len(plan), CHUNK)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for _ in tqdm(pool.imap_unordered(_draw_chunk, tasks), path.name, len(tasks), mininterval=10):
            pass
    unfinished.rename(path)
