"""A pool written by hand: its rows are what a test says, no image is decoded."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from medq_ray.artifacts import write_table
from medq_ray.pool.ingest import write_shard
from medq_ray.pool.store import Pool, create_pool
from medq_ray.schema import LISTED, looked_schema


def listed(number: int, **row) -> dict:
    """A manifest row; only what matters to a test is given."""
    base = {"item": f"{number:016x}", "found": f"{number:016x}", "uri": f"/nowhere/{number}.png", "key": "", "source": "s",
            "modality": "ct", "release": "", "split": "pool", "patient": f"p{number}", "session": "", "licence": "CC0", "share": True,
            "train": True, "labels": json.dumps({}), "problem": ""}  # fmt: skip
    return base | {name: value for name, value in row.items() if name in base}


def looked(number: int, **row) -> dict:
    """A shard row: by default like no other image."""
    rng = np.random.default_rng(number)
    vector = rng.standard_normal(8)
    base = {"item": f"{number:016x}", "image_id": f"{number:016x}", "problem": "", "height": 8, "width": 8,
            "phash": int(rng.integers(2**63)), "sharpness": 5.0, "noise": 1.0, "thumb": rng.bytes(256),
            "digest": f"{number}", "embedding": (vector / np.linalg.norm(vector)).tolist()}  # fmt: skip
    return base | {name: value for name, value in row.items() if name in base}


def fake_pool(root: Path, rows: list[dict], shards: int = 2) -> Pool:
    """A pool with these rows; keys are columns of schema.LISTED (problem excepted) and looked_schema."""
    pool = create_pool(root, "embedded", 256)
    known = [listed(i, **{k: v for k, v in row.items() if k != "problem"}) for i, row in enumerate(rows)]
    write_table(pool.private / "manifests" / "s.parquet", known, LISTED)
    seen = [looked(i, **row) for i, row in enumerate(rows)]
    for part in range(shards):
        table = pa.Table.from_pylist(seen[part::shards], schema=looked_schema(len(seen[0]["embedding"])))
        write_shard(root / "shards" / f"{part}.parquet", table)
    return pool
