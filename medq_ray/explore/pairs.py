"""Pairs of images for comparisons: of one anatomy, as far as the encoder can tell, and of two patients."""

import numpy as np
import pyarrow as pa

from medq_ray.explore.questions import generator
from medq_ray.explore.sampling import Embedded

NEAREST = 10
"""Look-alikes that a partner is drawn from."""


def partners(selection: pa.Table, embedded: Embedded, seed: int) -> dict[str, dict]:
    """image id -> the row of schema.SELECTION to compare it with: of the same modality and another patient, drawn from
    the NEAREST most similar of these, those that were selected for another weakness first.

    The nearest one mostly has the same degradation, and two images that are equally bad teach nothing but "both alike".
    No two images are compared twice. An image without such a partner is left out. Pools do not know anatomies; our
    choice.
    """
    rows = sorted(selection.to_pylist(), key=lambda row: row["image_id"])
    vectors, found, paired = embedded([row["image_id"] for row in rows]), {}, set()
    for modality in sorted({row["modality"] for row in rows}):
        own = [i for i, row in enumerate(rows) if row["modality"] == modality]
        cosine = vectors[own] @ vectors[own].T
        for place, i in enumerate(own):
            open_ = [
                own[j] for j in np.argsort(-cosine[place], kind="stable")
                if rows[own[j]]["patient"] != rows[i]["patient"] and frozenset((i, own[j])) not in paired
            ][:NEAREST]  # fmt: skip
            others = [j for j in open_ if rows[j]["capability"] != rows[i]["capability"]] or open_
            if others:
                best = others[generator(rows[i]["image_id"], seed).integers(len(others))]
                found[rows[i]["image_id"]] = rows[best]
                paired.add(frozenset((i, best)))
    return found
