"""Pairs of images for comparisons: of one anatomy, as far as the encoder can tell, and of two patients."""

import numpy as np
import pyarrow as pa

from medq_ray.explore.sampling import Embedded


def partners(selection: pa.Table, embedded: Embedded) -> dict[str, dict]:
    """image id -> the row of schema.SELECTION to compare it with: of the same modality and another patient, and the
    most similar of these, the first by id of equals. Pools do not know anatomies; our choice. An image without such a
    partner is left out."""
    rows = sorted(selection.to_pylist(), key=lambda row: row["image_id"])
    vectors, found = embedded([row["image_id"] for row in rows]), {}
    for modality in sorted({row["modality"] for row in rows}):
        own = np.array([i for i, row in enumerate(rows) if row["modality"] == modality])
        patient = np.array([rows[i]["patient"] for i in own])
        cosine = vectors[own] @ vectors[own].T
        cosine[patient[:, None] == patient] = -np.inf
        for i, best in zip(own, cosine.argmax(axis=1), strict=True):
            if rows[own[best]]["patient"] != rows[i]["patient"]:
                found[rows[i]["image_id"]] = rows[own[best]]
    return found
