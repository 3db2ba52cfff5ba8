"""The synthetic world: one image, a whole world on disk, and a world read back.

    OUT/images/<split>/<number>.png
    OUT/images.parquet      schema.IMAGE, uris relative to OUT
    OUT/truth.parquet       schema.TRUTH
    OUT/questions.parquet   schema.QUESTION, dev and test
    OUT/world.json          settings, counts, digest; written last: without it there is no world

The same call gives the same bytes; a call that was killed is simply made again.
"""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_file, digest_of, read_json, read_table, write_json, write_table
from medq_ray.images import encode_png, pixel_digest
from medq_ray.schema import DEGRADATIONS, IMAGE, MODALITIES, QUESTION, SEVERITIES, SPLITS, TRUTH
from medq_ray.synthetic.asking import ask_all
from medq_ray.synthetic.base import BaseImage, crop, find_base
from medq_ray.synthetic.degradations import degrade
from medq_ray.synthetic.phantoms import GREY, phantom
from medq_ray.synthetic.plan import RESERVED_SEEDS, Item, make_plan, split_sizes

UNFINISHED = "world.part"
"""Says that a folder without world.json is a world in the making."""
FORMAT = 1
TABLES = {"images": IMAGE, "truth": TRUTH, "questions": QUESTION}
CHUNK = 32
INLINE = 150
"""Smaller worlds are made in this process: starting others takes longer."""


def nuisance(image: np.ndarray, modality: str, rng: np.random.Generator) -> np.ndarray:
    """Device-to-device variation well below any 'mild': gamma, gain, faint grain (our choice). Float image in, out."""
    gamma, gain, grain = rng.uniform(0.92, 1.08), rng.uniform(0.95, 1.03), rng.uniform(0.002, 0.008)
    height, width = image.shape[:2]
    channels = 1 if modality in GREY else 3
    noisy = rng.standard_normal((height, width, channels), dtype=np.float32) * np.float32(grain)
    varied = np.clip(image[..., :channels] ** np.float32(gamma) * np.float32(gain) + noisy, 0, 1)
    return np.repeat(varied, 3 // channels, axis=2)


def make_image(
    modality: str,
    degradation: str,
    severity: str,
    seed: int,
    size: int = 112,
    base: tuple[Path, BaseImage] | None = None,
) -> tuple[np.ndarray, dict]:
    """(uint8 (size, size, 3), truth) of one synthetic image, a pure function of its arguments.

    Anatomy and device depend on `seed` alone, so the clean twin of a degraded image is the same call with
    ('none', 'none'). With `base` (folder, image in it) a crop of that real image stands in for the phantom. truth has
    'anatomy' and 'parameters' (what the operator drew). Raises ValueError for a cell that schema.DEGRADATIONS lacks.
    """
    if degradation not in (*DEGRADATIONS.get(modality, ()), "none") or modality not in MODALITIES:
        raise ValueError(f"no cell {modality}/{degradation}: see schema.DEGRADATIONS")
    rng = np.random.default_rng(np.random.SeedSequence([MODALITIES.index(modality), int(seed)]))
    if base is None:
        image, anatomy = phantom(modality, rng, size)
    else:
        image, anatomy = crop(*base, rng, size), "real"
    image = nuisance(image, modality, rng)
    cell = (*DEGRADATIONS[modality], "none").index(degradation)
    entropy = [MODALITIES.index(modality), cell, SEVERITIES.index(severity), int(seed)]
    pixels, parameters = degrade(image, modality, degradation, severity, np.random.default_rng(entropy))
    return pixels, {"anatomy": anatomy, "parameters": parameters}


def _make_chunk(items: list[Item], out: Path, size: int, root: Path | None) -> list[tuple[str, str, str]]:
    """Write the PNGs of some items; (image id, anatomy, parameters as JSON) of each."""
    made = []
    for item in items:
        base = (root, item.base) if item.base else None
        pixels, truth = make_image(item.modality, item.degradation, item.severity, item.seed, size, base)
        (out / item.uri).write_bytes(encode_png(pixels))
        made.append((pixel_digest(pixels), truth["anatomy"], json.dumps(truth["parameters"], sort_keys=True)))
    return made


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started inside run one numeric thread each: they are as many as there are cores."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _make_all(items: list[Item], work: Callable, progress: Callable[[int], object]) -> list[tuple[str, str, str]]:
    """`work` on chunks of items in order, in as many processes as there are cores."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    made = []
    if len(items) < INLINE:
        for chunk in chunks:
            made += work(chunk)
            progress(len(chunk))
        return made
    from joblib import cpu_count

    spawn = multiprocessing.get_context("spawn")  # forking a process that has threads, such as Ray's, may hang
    with _single_threaded_children(), ProcessPoolExecutor(cpu_count(), spawn) as pool:
        for result in pool.map(work, chunks):
            made += result
            progress(len(result))
    return made


def _clear(out: Path, asked: dict) -> None:
    """Unmake the same world or an unfinished one: first the file that says it is one, then its images.

    Raises ValueError for a finished world that is not as `asked` (some runs may use it) and for a folder with anything
    else in it: their files are not ours to delete.
    """
    if (out / "world.json").exists():
        try:
            known = read_json(out / "world.json")
        except ValueError as error:
            raise ValueError(f"{out}: its world.json is damaged; choose another folder, or delete it first") from error
        if asked != {name: known.get(name) for name in asked}:
            raise ValueError(f"{out}: holds another finished world; choose another folder, or delete it first")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in ("world.json", UNFINISHED)):
        raise ValueError(f"{out}: not empty and no world of ours; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()
    (out / "world.json").unlink(missing_ok=True)
    for split in SPLITS:
        folder = out / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("[0-9]*.png"):
            path.unlink()


def _rows(items: list[Item], made: list[tuple[str, str, str]]) -> tuple[list[dict], list[dict]]:
    """(rows of schema.IMAGE, rows of schema.TRUTH)."""
    images, truths = [], []
    for item, (image_id, anatomy, parameters) in zip(items, made, strict=True):
        shared = {"image_id": image_id, **{k: getattr(item, k) for k in ("split", "modality", "patient", "session")}}
        images.append({**shared, "uri": item.uri, "source": "synthetic-on-real" if item.base else "synthetic"})
        known = {"degradation": item.degradation, "severity": item.severity, "anatomy": anatomy}
        truths.append({**shared, **known, "parameters": parameters, "base": "real" if item.base else "phantom"})
    return images, truths


def write_world(
    out: Path,
    images: int,
    seed: int,
    size: int = 112,
    base: Path | None = None,
    dev_images: int | None = None,
    test_images: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Make a world of `images` images in all and return the summary that world.json holds.

    `progress(n)` is told of every n images made. Raises ValueError for a seed that is reserved for training the
    embedded models, splits that do not fit, a base folder without a usable image, or an `out` that is a file.
    """
    if not 0 <= seed < RESERVED_SEEDS:
        raise ValueError(f"seed {seed}: use 0 to {RESERVED_SEEDS - 1}, the others trained the embedded models")
    sizes = split_sizes(images, dev_images, test_images)
    out, root = Path(out), Path(base).resolve() if base else None
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file, a world is a folder")
    found, skipped = find_base(root, f"medq-synth-{seed}") if root else ([], [])
    items = make_plan(seed, sizes, found)
    _clear(out, {"seed": seed, "size": size, "images": sizes})
    made = _make_all(items, partial(_make_chunk, out=out, size=size, root=root), progress or (lambda count: None))
    image_rows, truth_rows = _rows(items, made)
    asked = [(t, i["uri"]) for i, t in zip(image_rows, truth_rows, strict=True) if t["split"] != "pool"]
    rows = {"images": image_rows, "truth": truth_rows, "questions": ask_all(*zip(*asked, strict=True), seed)}
    for name, schema in TABLES.items():
        write_table(out / f"{name}.parquet", rows[name], schema)
    summary = {
        "format": FORMAT,
        "seed": seed,
        "size": size,
        "images": sizes,
        "questions": len(rows["questions"]),
        "degraded": sum(item.degradation != "none" for item in items),
        "on_real_images": _on_real(items) if root else {},
        "skipped": _by_reason(skipped),
        "digest": _content_digest(out),
    }
    write_json(out / "world.json", summary)
    (out / UNFINISHED).unlink()
    return summary


def _on_real(items: list[Item]) -> dict[str, dict[str, str]]:
    """Modality -> split -> 'real' or 'phantom' (where too few patients left none for it)."""
    kinds = Counter((item.modality, item.split, "real" if item.base else "phantom") for item in items)
    return {m: {split: kind for (mod, split, kind) in kinds if mod == m} for m in MODALITIES}


def _by_reason(skipped: list[dict[str, str]]) -> dict[str, list[str]]:
    """Reason -> files of the base folder that were not used."""
    return {reason: [s["file"] for s in skipped if s["reason"] == reason] for reason in {s["reason"] for s in skipped}}


def _content_digest(out: Path) -> str:
    """Over the tables, whose image ids are digests of the pixels."""
    return digest_of([digest_file(out / f"{name}.parquet") for name in TABLES])


@dataclass(frozen=True)
class World:
    """A world read back; uris are absolute."""

    path: Path
    settings: dict
    images: pa.Table
    truth: pa.Table
    questions: pa.Table

    @property
    def digest(self) -> str:
        """Changes with any pixel, truth or question."""
        return self.settings["digest"]


def _absolute(table: pa.Table, root: Path) -> pa.Table:
    place = table.schema.get_field_index("uri")
    uris = pc.binary_join_element_wise(str(root), table["uri"], "/")
    return table.set_column(place, table.schema.field(place), uris)


def read_world(path: Path) -> World:
    """Raises ValueError in one line when `path` holds no finished world, one of another format, or a damaged one."""
    root = Path(path).resolve()
    try:
        settings = read_json(root / "world.json")
    except (OSError, ValueError) as error:
        reason = "no finished world (world.json is missing or damaged); make it with `medq synth`"
        raise ValueError(f"{path}: {reason}") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise ValueError(f"{path}: a world of another format; make it again with `medq synth`")
    tables = {name: read_table(root / f"{name}.parquet") for name in TABLES}
    for name, schema in TABLES.items():
        if tables[name].schema.names != schema.names:
            raise ValueError(f"{path}: {name}.parquet has other columns than this version; make it again")
    if _content_digest(root) != settings["digest"]:
        raise ValueError(f"{path}: tables and world.json do not belong together; make it again with `medq synth`")
    images, questions = _absolute(tables["images"], root), _absolute(tables["questions"], root)
    return World(root, settings, images, tables["truth"], questions)
