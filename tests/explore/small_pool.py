"""A small pool with three rare cells, prototypes of them, and the phase run on it."""

import numpy as np
import pyarrow as pa

from medq_ray.config import Config, override
from medq_ray.explore.phase import explore
from medq_ray.pool.search import within
from medq_ray.schema import COMPLETION, FAILURE, PROTOTYPE, QUESTION, embedded_image_schema

DIM = 24
CELLS = ("cell:mri/motion", "cell:mri/bias_field", "cell:ct/metal", "cell:mri/none")


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def centres() -> np.ndarray:
    return units(np.random.default_rng(5).standard_normal((len(CELLS), DIM)))


def make_pool(count: int = 600, seed: int = 0) -> tuple[pa.Table, dict[str, str]]:
    """Embedded images and each one's true cell: 5 % rare (three cells), the rest 'mri/none'; two images a patient."""
    rng = np.random.default_rng(seed)
    rows, truth = [], {}
    for i in range(count):
        cell = (i // 20) % 3 if i % 20 == 0 else 3
        name = f"{rng.integers(2**60):016x}"
        truth[name] = CELLS[cell]
        vector = units(centres()[cell][None] + 0.12 * rng.standard_normal((1, DIM)))[0]
        rows.append({"image_id": name, "uri": f"/{name}", "split": "pool", "modality": "ct" if cell == 2 else "mri",
                     "source": "s", "patient": f"p{i // 2}", "session": f"p{i // 2}",
                     "phash": int(rng.integers(2**63)), "sharpness": 1.0, "noise": 1.0, "thumb": bytes(256),
                     "embedding": vector.tolist()})  # fmt: skip
    return pa.Table.from_pylist(rows, schema=embedded_image_schema(DIM)), truth


def with_dev(pool: pa.Table, count: int = 80) -> tuple[pa.Table, dict[str, pa.Table]]:
    """(the pool and `count` dev images, {asked, failures} of them): most of those with a rare cell fail, few others."""
    rng, rows, asked, failed = np.random.default_rng(9), [], [], []
    for i in range(count):
        cell = i % len(CELLS)
        name, modality = f"{rng.integers(2**60):016x}", "ct" if cell == 2 else "mri"
        vector = units(centres()[cell][None] + 0.12 * rng.standard_normal((1, DIM)))[0]
        rows.append({"image_id": name, "uri": f"/{name}", "split": "dev", "modality": modality, "source": "s",
                     "patient": f"d{i}", "session": f"d{i}", "phash": int(rng.integers(2**63)), "sharpness": 1.0,
                     "noise": 1.0, "thumb": bytes(256), "embedding": vector.tolist()})  # fmt: skip
        asked.append({"question_id": f"{name}-what", "image_id": name, "kind": "what", "modality": modality,
                      "capabilities": [CELLS[cell]]})  # fmt: skip
        if rng.random() < (0.1 if cell == 3 else 0.8):
            failed.append({**asked[-1], "error_rate": 1.0})
    both = pa.concat_tables([pool, pa.Table.from_pylist(rows, schema=pool.schema)])
    return both, {"asked": pa.Table.from_pylist(asked, schema=QUESTION),
                  "failures": pa.Table.from_pylist(failed, schema=FAILURE)}  # fmt: skip


def searcher(pool: pa.Table):
    """What the run does over shards, over a table."""
    vectors = np.array(pool["embedding"].to_pylist(), np.float32).reshape(pool.num_rows, DIM)
    return lambda anchors, tau: within(anchors, pool["image_id"].to_pylist(), vectors, tau)


def embedder(pool: pa.Table):
    """Embeddings of ids, as the run's pool gives them."""
    vectors = dict(zip(pool["image_id"].to_pylist(), np.array(pool["embedding"].to_pylist(), np.float32), strict=True))
    return lambda names: np.array([vectors[name] for name in names], np.float32).reshape(-1, DIM)


def unsure(prompts: pa.Table, sampling, label: str) -> pa.Table:
    """A model whose entropy is a function of the image: the last two digits of its id."""
    assert sampling.logprobs and sampling.temperature == 0
    rows = [{"question_id": row["question_id"], "run": 0, "text": "?", "error": "",
             "entropy": int(row["question_id"][-2:], 16) / 256} for row in prompts.to_pylist()]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COMPLETION)


def nobody(prompts: pa.Table, sampling, label: str) -> pa.Table:
    raise AssertionError("nobody is to be asked")


def fetch(names: list[str], folder) -> dict[str, str]:
    return {name: f"{folder}/{name}.png" for name in names}


def make_prototypes(cells: range = range(3)) -> pa.Table:
    modality = [f"modality:{cell.removeprefix('cell:').partition('/')[0]}" for cell in CELLS]
    rows = [{"prototype_id": 10 + i, "size": 5, "members": [], "medoid": "", "medoid_uri": "", "silhouette": 0.5,
             "cohesion": 0.9, "capabilities": [(CELLS[i], 0.8), (CELLS[(i + 1) % 2], 0.2), (modality[i], 1.0)],
             "visual": centres()[i].tolist()} for i in cells]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PROTOTYPE)


def rates(*values: float) -> dict[str, dict]:
    return {cell: {"e": e} for cell, e in zip(CELLS, values, strict=True)} | {"kind:what": {"e": 0.9}}


RATES = rates(0.8, 0.6, 0.4, 0.1)


def settings(*assignments: str) -> Config:
    own = ["budget=24", "random_fraction=0.25", "tau_sim=0.6", "questions=seed_rule"]
    return override(Config(), [*(f"explore.{name}" for name in own), *assignments])


def phase(
    folder, config: Config, pool: pa.Table, error=RATES, *, anchors=None, iteration=0, taken=frozenset(), **other
) -> dict:
    """Run the phase; returns its counts."""
    nobody_failed = {"asked": QUESTION.empty_table(), "failures": FAILURE.empty_table()}
    means = {"allowed": pool["image_id"].combine_chunks(), "search": searcher(pool), "embedded": embedder(pool),
             "fetch": fetch, "ask_self": unsure, "ask_oracle": nobody} | nobody_failed | other  # fmt: skip
    anchors = make_prototypes() if anchors is None else anchors
    return explore(folder, config=config, iteration=iteration, prototypes=anchors, rates=error, images=pool,
                   taken=set(taken), **means)  # fmt: skip
