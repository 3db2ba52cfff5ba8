"""What a world is to hold, before a pixel is made: cells, severities, seeds, patients, base images.

Everything is drawn from SeedSequences of (world seed, split), so a plan is a pure function of its arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES, SEVERITIES, SPLITS
from medq_ray.synthetic.base import BaseImage

CLEAN_SHARE, SPECIFIC_SHARE = 0.70, 0.05
"""Of the pool; the rest, 25 %, is everyday degradations. After the prototype of the loop; our choice."""
RESERVED_SEEDS = 900_000_000
"""Seeds from here to 2**32 train the embedded models. A world's seed lies below; its images' seeds lie above 2**63."""
CELLS = tuple((modality, name) for modality in MODALITIES for name in (*DEGRADATIONS[modality], "none"))
SPECIFIC_CELLS = tuple(cell for cell in CELLS if cell[1] != "none" and cell[1] not in EVERYDAY)
ZIPF_ORDER = tuple(SPECIFIC_CELLS[i] for i in np.random.default_rng(2026).permutation(len(SPECIFIC_CELLS)))
"""Specific cells from common to rare, shuffled once for all worlds: the r-th has a share of the tail as 1 / r."""


class Item(NamedTuple):
    """One image to be made."""

    split: str
    number: int
    modality: str
    degradation: str
    severity: str
    seed: int
    patient: str
    session: str
    base: BaseImage | None

    @property
    def uri(self) -> str:
        """Relative to the world."""
        return f"images/{self.split}/{self.number:06d}.png"


def split_sizes(images: int, dev: int | None, test: int | None) -> dict[str, int]:
    """Images by split. By default dev and test have a sixth each, but 60 where a third allows it.

    Raises ValueError when a split would be empty.
    """
    share = max(images // 6, min(60, images // 3))
    dev, test = share if dev is None else dev, share if test is None else test
    sizes = {"pool": images - dev - test, "dev": dev, "test": test}
    if min(sizes.values()) < 1:
        raise ValueError(f"{images} images cannot hold {dev} dev and {test} test images and a pool")
    return sizes


def image_seed(seed: int, split: str, number: int) -> int:
    """63 random bits with bit 63 set: no two alike in practice, none below 2**63."""
    state = np.random.SeedSequence([seed, SPLITS.index(split), number]).generate_state(1, np.uint64)
    return int(state[0]) | 1 << 63


def pool_cells(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(modality, degradation) of a long-tailed pool in random order: exact shares of clean, everyday and specific
    images, a Zipf tail over the specific cells, modalities equally frequent over all."""
    specific = round(SPECIFIC_SHARE * count)
    everyday = count - specific - round(CLEAN_SHARE * count)
    weights = 1 / np.arange(1, len(ZIPF_ORDER) + 1)
    cells = [ZIPF_ORDER[i] for i in rng.choice(len(ZIPF_ORDER), specific, p=weights / weights.sum())]
    taken = [sum(cell[0] == modality for cell in cells) for modality in MODALITIES]
    free = [m for k, m in enumerate(MODALITIES) for _ in range(max(0, -(-count // 5) - taken[k]))]
    others = [free[i] for i in rng.permutation(len(free))][: count - specific]
    usual = {m: [name for name in DEGRADATIONS[m] if name in EVERYDAY] for m in MODALITIES}
    cells += [(m, usual[m][rng.integers(len(usual[m]))]) for m in others[:everyday]]
    cells += [(m, "none") for m in others[everyday:]]
    return [cells[i] for i in rng.permutation(len(cells))]


def split_cells(split: str, count: int, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(modality, degradation, severity) of every image of a split.

    Pool severities are drawn evenly. Dev and test go round all cells in a drawn order, so counts differ by one at
    most, and the severities of a cell alternate.
    """
    if split == "pool":
        drawn = [(m, d, SEVERITIES[1 + rng.integers(2)]) for m, d in pool_cells(count, rng)]
    else:
        order = rng.permutation(len(CELLS))
        drawn = [
            (*CELLS[order[i % len(CELLS)]], SEVERITIES[1 + (i // len(CELLS) + i % len(CELLS)) % 2])
            for i in range(count)
        ]
    return [(m, d, "none" if d == "none" else severity) for m, d, severity in drawn]


def share_patients(images: Sequence[BaseImage], rng: np.random.Generator) -> dict[str, str]:
    """Patient -> split, one split a patient whatever modalities it has.

    Of every modality a sixth of the patients go to dev and to test each, at least one. Where patients are too few, the
    pool gets the first, test the second: real images to train on, then real images to be measured on.
    """
    of_modality = {m: sorted({image.patient for image in images if image.modality == m}) for m in MODALITIES}
    place: dict[str, str] = {}
    for patients in sorted(of_modality.values(), key=len):
        held = max(1, len(patients) // 6)
        room = {"pool": 1, "test": held, "dev": held}
        for patient in patients:
            if patient in place:
                room[place[patient]] -= 1
        for patient in (patients[i] for i in rng.permutation(len(patients)) if patients[i] not in place):
            place[patient] = next((split for split, left in room.items() if left > 0), "pool")
            room[place[patient]] -= 1
    return place


class _Patients:
    """Hands out synthetic patients of one split: 1 to 4 images a pool patient in one session, one elsewhere."""

    def __init__(self, split: str, rng: np.random.Generator) -> None:
        self.split, self.rng, self.count = split, rng, 0
        self.current: dict[str, tuple[str, int]] = {}

    def next(self, modality: str) -> str:
        """The patient of the next image of a modality (a patient has one modality)."""
        patient, left = self.current.get(modality, ("", 0))
        if left == 0:
            patient, left = f"synthetic-{self.split}-{self.count:06d}", 1
            self.count += 1
            if self.split == "pool":
                left = int(self.rng.integers(1, 5))
        self.current[modality] = patient, left - 1
        return patient


def make_plan(seed: int, sizes: dict[str, int], base: Sequence[BaseImage] = ()) -> list[Item]:
    """Every image of a world, split by split in order of its number."""
    place = share_patients(base, np.random.default_rng([seed, len(SPLITS)]))
    items = []
    for split, count in sizes.items():
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        cells, patients, turn = split_cells(split, count, rng), _Patients(split, rng), dict.fromkeys(MODALITIES, 0)
        real = [image for image in base if place[image.patient] == split]
        offered = {m: [real[i] for i in rng.permutation(len(real)) if real[i].modality == m] for m in MODALITIES}
        for number, (modality, degradation, severity) in enumerate(cells):
            choices = offered[modality]
            image = choices[turn[modality] % len(choices)] if choices else None
            turn[modality] += 1
            patient = image.patient if image else patients.next(modality)
            drawn = image_seed(seed, split, number)
            cell = (modality, degradation, severity, drawn)
            items.append(Item(split, number, *cell, patient, f"{patient}-1", image))
    return items
