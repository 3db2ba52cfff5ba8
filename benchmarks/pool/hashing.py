"""Decoding and pHash of 512-pixel JPEGs on one core, beside imagehash on the whole picture.

The pictures are synthetic ones of every modality, clean and degraded, as JPEG of quality 90.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from benchmarks.pool.rows import row
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.sources._files import read_picture
from medq_ray.schema import DEGRADATIONS
from medq_ray.synthetic.world import make_image

SIDE, ROUNDS = 512, 7
DRAFTS = (64, 128, 256)
"""Sides asked of the decoder, which then decodes an eighth, a quarter and a half of each side."""


def write_pictures(folder: Path, seeds: int) -> list[Path]:
    paths = []
    for modality, names in DEGRADATIONS.items():
        for seed in range(seeds):
            name = ("none", *names)[seed % (len(names) + 1)]
            pixels, _ = make_image(modality, name, "none" if name == "none" else "severe", seed, SIDE)
            paths.append(folder / f"{modality}-{seed}.jpg")
            Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def rates(paths: list[Path], works: dict[str, Callable[[Path], object]]) -> dict[str, float]:
    """Pictures a second of each work: the best of ROUNDS rounds, in turns; times are of the processor."""
    best = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.process_time()
            for path in paths:
                work(path)
            best[name] = max(best[name], len(paths) / (time.process_time() - start))
    return best


def by_imagehash(path: Path) -> int:
    return int(str(imagehash.phash(Image.open(path))), 16)


def grey_draft(path: Path) -> int:
    """What decoding the luminance alone would give; `read_picture` decodes colours."""
    with Image.open(path) as image:
        image.draft("L", (DRAFTS[0], DRAFTS[0]))
        return phash(np.asarray(image))


def measure(quick: bool) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), 2 if quick else 12)
        works = {"imagehash": by_imagehash, "whole": lambda path: phash(read_picture(path))}
        works |= {f"draft {side}": lambda path, side=side: phash(read_picture(path, side)) for side in DRAFTS}
        works[f"draft {DRAFTS[0]}, grey"] = grey_draft
        rate = rates(paths, works)
        hashes = {name: np.array([work(path) for path in paths], np.uint64) for name, work in works.items()}
        pixels = read_picture(paths[0])
        own = {name: rates([paths[0]] * 50, {name: lambda _, work=work: work(pixels)})[name]
               for name, work in {"phash": phash, "thumb": thumb, "quality": quality}.items()}  # fmt: skip
    rows = []
    for name in list(works)[1:]:
        bits = np.bitwise_count(hashes[name] ^ hashes["imagehash"])
        note = f"{len(paths)} pictures; bits moved: {bits.mean():.2f} on average, {bits.max()} at most"
        label = f"decode + pHash of 512 px JPEG, {name}"
        rows.append(row(label, rate[name], rate["imagehash"], rate[name] / rate["imagehash"], "1/s/core", note))
    for name, value in own.items():
        rows.append(row(f"{name} of 512 px, decoded", value, None, None, "1/s/core", "one picture"))
    return rows
