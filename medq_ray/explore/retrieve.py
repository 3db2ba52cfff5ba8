"""Look-alikes of the failure prototypes in the pool (paper Sec. 2.3, eq. 2)."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.console import say
from medq_ray.schema import HIT

Search = Callable[[np.ndarray, float], pa.Table]
"""search(float32 (P, d) unit vectors, tau) -> schema.HIT of all images with cosine > tau, prototype_id the row."""


def retrieve(prototypes: pa.Table, pool: pa.Table, search: Search, tau: float) -> pa.Table:
    """schema.HIT of all pool images with cosine > tau to a prototype's visual component, sorted by image_id, then
    prototype_id. Says which prototypes retrieve nothing.

    prototypes: schema.PROTOTYPE; pool: schema.POOL_IMAGE of the images that may be retrieved.
    """
    if prototypes.num_rows == 0 or pool.num_rows == 0:
        return HIT.empty_table()
    hits = search(np.array(prototypes["visual"].to_pylist(), np.float32), tau)
    hits = hits.filter(pc.is_in(hits["image_id"], pool["image_id"].combine_chunks()))
    numbers = prototypes["prototype_id"].combine_chunks().take(hits["prototype_id"].combine_chunks())
    silent = sorted(set(prototypes["prototype_id"].to_pylist()) - set(pc.unique(numbers).to_pylist()))
    if silent:
        names = ", ".join(map(str, silent))
        say(f"  nothing in the pool is closer than tau_sim = {tau} to prototype {names}; a lower tau_sim finds more")
    return pa.table([hits["image_id"], numbers, hits["similarity"]], schema=HIT)
