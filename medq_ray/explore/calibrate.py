"""tau_sim for the encoder at hand, from dev data: each encoder has its own scale of similarity (eq. 2).

Each dev image is held against the mean of the others of its cell, as a look-alike is against a prototype: the share of
images of the cell that pass a threshold is what retrieval finds, the share of others what it finds beside. Proposed is
the threshold with the largest difference between the two (Youden's J), others being those of the same modality, which
are the hard ones. Our choice; the paper's 0.75 is for BiomedCLIP and not explained.
"""

from collections.abc import Sequence

import numpy as np

GRID = np.arange(100) / 100
"""Thresholds that are tried."""
RESAMPLED = 200
"""Draws of dev images that tell how sure a proposal is."""
WIDE = 0.1
"""A proposal that another dev set could move farther than this is of too few images."""


def similarities(
    vectors: np.ndarray, modality: Sequence[str], cell: Sequence[str], times: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Cosines of dev images to the mean of each cell, the image itself left out: {'same': of their own cell, 'other':
    of other cells of their modality, 'elsewhere': of cells of other modalities}.

    vectors: float (n, d), of length 1; times: int (n,), how often each image counts, None: once. Cells of fewer than
    two images have no mean to compare with. Raises ValueError when there is none of two.
    """
    modality, cell = np.array(modality), np.array(cell)
    times = np.ones(len(cell), int) if times is None else times
    there = times > 0
    names = [name for name in np.unique(cell) if (there & (cell == name)).sum() > 1]
    if not names:
        raise ValueError("no capability cell has two dev images; a calibration needs more of them")
    if not any((there & (modality == modality[cell == name][0]) & (cell != name)).any() for name in names):
        raise ValueError("no modality has dev images of two capability cells; a calibration needs others to tell from")
    weighed = vectors * times[:, None]
    found: dict[str, list[np.ndarray]] = {"same": [], "other": [], "elsewhere": []}
    for name in names:
        own = cell == name
        total = weighed[own].sum(axis=0, dtype=np.float64)
        rest = total - weighed[own]  # all copies of an image are left out, else it would be compared with itself
        with np.errstate(invalid="ignore"):  # of images that do not count
            cosine = (rest * vectors[own]).sum(axis=1) / np.linalg.norm(rest, axis=1)
        found["same"].append(np.repeat(cosine, times[own]))
        cosine = vectors @ total / np.linalg.norm(total)
        near = modality == modality[own][0]
        found["other"].append(np.repeat(cosine[near & ~own], times[near & ~own]))
        found["elsewhere"].append(np.repeat(cosine[~near], times[~near]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def passing(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The share of each kind of pair above each threshold of GRID."""
    return {
        name: 1 - np.searchsorted(np.sort(values), GRID, side="right") / len(values) if len(values) else 0 * GRID
        for name, values in found.items()
    }


def propose(shares: dict[str, np.ndarray]) -> float:
    """The threshold of GRID with the largest share of the same less share of others, the highest of equals."""
    gain = shares["same"] - shares["other"]
    return float(GRID[np.flatnonzero(gain >= gain.max() - 1e-12)[-1]])


def spread(vectors: np.ndarray, modality: Sequence[str], cell: Sequence[str]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of the proposals of RESAMPLED draws of as many images, cell by cell: how far
    another dev set of this size would move it."""
    rng, cell = np.random.default_rng(0), np.array(cell)
    groups = [np.flatnonzero(cell == name) for name in np.unique(cell)]
    found = []
    for _ in range(RESAMPLED):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        times = np.bincount(rows, minlength=len(cell))
        found.append(propose(passing(similarities(vectors, modality, cell, times))))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def table(shares: dict[str, np.ndarray], tau: float, width: int = 40) -> str:
    """The shares around the proposal as lines of bars: '#' of the same cell, '.' of others of the modality."""
    low = max(0, int(np.flatnonzero(shares["same"] < 0.999)[0]) - 1) if (shares["same"] < 0.999).any() else 0
    step = max(1, (len(GRID) - low) // 20)
    rows = sorted({*range(low, len(GRID), step), int(np.argmin(np.abs(GRID - tau)))})
    lines = [f"{'tau_sim':>9}  same cell  same modality  elsewhere"]
    for i in rows:
        same, other, elsewhere = (shares[name][i] for name in ("same", "other", "elsewhere"))
        bar = "#" * round(width * same)
        bar = "." * round(width * other) + bar[round(width * other) :]
        mark = " <-" if abs(GRID[i] - tau) < 1e-9 else ""
        lines.append(f"{GRID[i]:>9.2f}{100 * same:>9.1f} %{100 * other:>12.1f} %{100 * elsewhere:>9.1f} %  {bar}{mark}")
    return "\n".join(lines)
