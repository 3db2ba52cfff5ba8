"""Exact threshold search: every image whose cosine to a prototype exceeds tau (paper Sec. 2.3, eq. 2)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from medq_ray.schema import HIT

BLOCK = 65_536
"""Embeddings compared at once: 24 prototypes x 65,536 similarities are 6 MB, whatever the pool's size."""


def within(prototypes: np.ndarray, ids: Sequence[str], embeddings: np.ndarray, tau: float) -> pa.Table:
    """All pairs with cosine > tau, strictly, as schema.HIT sorted by image_id, then prototype_id.

    prototypes: float32 (P, d) and embeddings: float32 (N, d), rows of unit length; ids: N image ids, unique.
    `prototype_id` is the row number in `prototypes`. The order of the N rows does not matter: they are compared in
    the order of their ids, since the last bits of a matrix product depend on where a row stands in its block.
    """
    assert prototypes.ndim == embeddings.ndim == 2 and len(ids) == len(embeddings), "one id for each embedding"
    assert prototypes.shape[1] == embeddings.shape[1], "prototypes and images come from one encoder"
    names = np.asarray(ids, dtype=object)
    order = np.argsort(names, kind="stable")
    found = [(np.empty(0, object), np.empty(0, np.int32), np.empty(0, np.float32))]
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        cosine = embeddings[rows].astype(np.float32) @ prototypes.astype(np.float32).T
        image, prototype = np.nonzero(cosine > tau)
        found.append((names[rows[image]], prototype.astype(np.int32), cosine[image, prototype]))
    columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, HIT, strict=True)], schema=HIT)
