"""Planted weaknesses of a synthetic world are found by the embedded encoder: as clusters, and in the selection."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from medq_ray.config import Config, override
from medq_ray.evaluate.failures import failures, rates
from medq_ray.evaluate.prototypes import prototypes
from medq_ray.evaluate.scoring import score
from medq_ray.explore.phase import explore
from medq_ray.images import read_image
from medq_ray.model.encoder import load_encoder, text_embedder
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.search import within
from medq_ray.questions import LETTERS, cell_of, describe
from medq_ray.schema import COMPLETION, embedded_image_schema
from medq_ray.synthetic.plan import SPECIFIC_CELLS
from medq_ray.synthetic.truth import load_truth
from medq_ray.synthetic.world import read_world, write_world

BUDGET = 60
RARE = {f"cell:{modality}/{degradation}" for modality, degradation in SPECIFIC_CELLS}
"""5 % of the pool."""


class Land(NamedTuple):
    images: pa.Table
    """schema.embedded_image_schema"""
    questions: pa.Table
    cell: dict[str, str]
    """True cell of each image."""


@pytest.fixture(scope="module")
def land(tmp_path_factory) -> Land:
    folder = tmp_path_factory.mktemp("land")
    write_world(folder, 2900, 21, size=112, dev_images=400, test_images=100)
    world, truth, encoder = read_world(folder), load_truth(folder), load_encoder("embedded")
    rows = world.images.to_pylist()
    for low in range(0, len(rows), 128):
        pixels = [read_image(row["uri"]) for row in rows[low : low + 128]]
        for row, image, vector in zip(rows[low:], pixels, encoder.images(pixels), strict=False):
            sharpness, noise = quality(image)
            row |= {"phash": phash(image), "thumb": thumb(image), "sharpness": sharpness, "noise": noise,
                    "embedding": vector.tolist()}  # fmt: skip
    cell = {name: f"cell:{row['modality']}/{row['degradation']}" for name, row in truth.items()}
    return Land(pa.Table.from_pylist(rows, schema=embedded_image_schema(encoder.dim)), world.questions, cell)


def evaluated(land: Land, planted: set[str], seed: int) -> tuple[pa.Table, pa.Table, dict]:
    """(questions, failures, rates) of a model that fails on the planted cells, and on 3 % of all else."""
    rng = np.random.default_rng(seed)
    dev = land.images.filter(pc.equal(land.images["split"], "dev"))["image_id"].combine_chunks()
    questions = land.questions.filter(pc.is_in(land.questions["image_id"], dev)).sort_by("question_id")
    rows = []
    for question in questions.to_pylist():
        text = question["answer"]
        if land.cell[question["image_id"]] in planted or rng.random() < 0.03:
            others = [letter for letter in LETTERS[: len(question["options"])] if letter != text]
            text = others[rng.integers(len(others))] if others else describe(question["modality"], "none", "none")
            text = text if text != question["answer"] else "nothing"
        rows.append({"question_id": question["question_id"], "run": 0, "text": text, "error": ""})
    completions = pa.Table.from_pylist(rows, schema=COMPLETION)
    scores = score(questions, completions, 0.6)
    return questions, failures(questions, completions, scores), rates(scores)


def found(land: Land, failed: pa.Table) -> pa.Table:
    texts = text_embedder("embedded", 256)
    settings = Config().evaluate
    return prototypes(failed, land.images, texts=texts, weight=settings.text_weight, most=settings.max_prototypes)[0]


def some(count: int, seed: int) -> set[str]:
    cells = sorted(RARE)
    return {cells[i] for i in np.random.default_rng(seed).permutation(len(cells))[:count]}


def test_clusters_recover_the_planted_cells(land):
    from sklearn.metrics import adjusted_rand_score

    for planted in (RARE, some(8, 1), some(8, 2), some(6, 3)):
        _, failed, _ = evaluated(land, planted, seed=5)
        label = {name: row["prototype_id"] for row in found(land, failed).to_pylist() for name in row["members"]}
        cells = {row["question_id"]: cell_of(row["capabilities"]) for row in failed.to_pylist()}
        weak = [name for name in label if cells[name] in planted]
        for names in (weak, list(label)):  # also with the failures that are mere noise
            assert adjusted_rand_score([cells[name] for name in names], [label[name] for name in names]) >= 0.7, planted


def shares(land: Land, folder: Path, *assignments: str, seed: int = 6) -> float:
    """Of a selection by these settings, the share that truly has one of the planted weaknesses."""
    asked, failed, error = evaluated(land, RARE, seed=seed)
    pool = land.images.filter(pc.equal(land.images["split"], "pool"))
    vectors = np.array(land.images["embedding"].to_pylist(), np.float32)
    row_of = {name: row for row, name in enumerate(land.images["image_id"].to_pylist())}
    own = [f"explore.budget={BUDGET}", "explore.tau_sim=0.85", "explore.questions=seed_rule", *assignments]
    counts = explore(
        folder, config=override(Config(), own), iteration=0, prototypes=found(land, failed), rates=error,
        asked=asked, failures=failed, images=land.images, allowed=pool["image_id"].combine_chunks(), taken=set(),
        embedded=lambda names: vectors[[row_of[name] for name in names]], fetch=None, ask_self=None, ask_oracle=None,
        search=lambda anchors, tau: within(anchors, list(row_of), vectors, tau),
    )  # fmt: skip
    assert counts["selected"] == BUDGET
    among = np.mean([land.cell[name] in RARE for name in pool["image_id"].to_pylist()])
    assert among == pytest.approx(0.05, abs=0.001)
    names = pa.parquet.read_table(folder / "selection.parquet")["image_id"].to_pylist()
    return sum(land.cell[name] in RARE for name in names) / BUDGET


def test_most_of_the_selection_has_the_planted_weakness(land, tmp_path):
    ours = [shares(land, tmp_path / f"ours-{seed}", f"seed={seed}", seed=6 + seed) for seed in range(3)]
    assert min(ours) >= 0.6, ours
    assert shares(land, tmp_path / "random", "explore.strategy=random") < 0.15
    assert shares(land, tmp_path / "alone", "explore.neighbours=0") < ours[0]  # dev images know more than prototypes
