"""What the sources of a pool allow, against what a run would do with their images."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.privacy import is_external

BURNED_IN = '"burned_in": "yes"'
"""In the labels of an image in which a name may be written: to be acknowledged on its own, as 'dicom:burned-in'."""


def check_terms(images: pa.Table, endpoints: Sequence[str], acknowledged: Sequence[str]) -> None:
    """Raise ValueError with the sources that a run would use against their terms and that nobody has acknowledged.

    images: schema.POOL_IMAGE of what the run may select, train on and send; endpoints: base URLs that images go to.
    """
    abroad = [url for url in endpoints if is_external(url)]
    burned = pc.match_substring(images["labels"], BURNED_IN)
    named = pc.if_else(burned, pc.binary_join_element_wise(images["source"], "burned-in", ":"), images["source"])
    images = images.set_column(images.schema.get_field_index("source"), "source", named)
    sources = images.group_by(["source", "licence", "share", "train"]).aggregate([]).sort_by("source").to_pylist()
    refused = []
    for row in sources:
        against = [] if row["train"] else ["trained on"]
        against += [] if row["share"] or not abroad else [f"sent to {', '.join(abroad)}"]
        if against and row["source"] not in acknowledged:
            line = f"{row['source']} (licence: {row['licence']}) may not be {' or '.join(against)}"
            refused.append((row["source"], line))
    if refused:
        every = ", ".join(sorted({*acknowledged, *(name for name, _ in refused)}))
        lines, say_so = "; ".join(line for _, line in refused), f"--set 'pool.acknowledged=[{every}]'"
        raise ValueError(f"the pool's sources do not allow this run: {lines}. If you may, say so: {say_so}")


def described(images: pa.Table) -> list[dict]:
    """One row for each source, licence and set of terms: how many images it has."""
    counts = images.group_by(["source", "licence", "share", "train"]).aggregate([("image_id", "count")])
    return counts.rename_columns(["source", "licence", "share", "train", "images"]).sort_by("source").to_pylist()


