"""The data card: what a data set consists of, whose it is and who labelled it, for programs and for people."""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import digest_of
from medq_ray.pool.terms import described as terms_of

AXES = {
    "iteration": "iteration", "route": "route", "kind": "kind", "modality": "modality", "capability": "capabilities",
    "licence": "licences",
}  # fmt: skip
"""What samples are counted by, beside their sources and labellers, and the column of schema.CHAT that says it."""
TERMS = ("source", "licence", "share", "train")
"""Columns of schema.POOL_IMAGE that say whose an image is and what may be done with it."""


def card(rows: pa.Table, images: pa.Table, digest: str) -> dict:
    """What card.json holds, of schema.CHAT `rows` whose content has this digest; images: schema.POOL_IMAGE of all that
    they show.

    {samples, images, simulated (samples), counts: axis -> value -> samples, labelled_by: who -> {samples, simulated},
    sources: [{source, licence, share, train, images, samples}], digests: {samples, images}}. `share` and `train` are
    what the source's terms say of its pixels: given to others, trained on. A sample counts once for each of its
    capabilities, and a comparison for each of its sources.
    """
    samples = rows.to_pylist()
    shown = sorted({image for sample in samples for image in sample["image_ids"]})
    own = images.filter(pc.is_in(images["image_id"], value_set=pa.array(shown, pa.string())))
    own = own.select(["image_id", *TERMS])
    terms = {row["image_id"]: terms_in(row) for row in own.to_pylist()}
    made_of = Counter(some for sample in samples for some in {terms[image] for image in sample["image_ids"]})
    labelled, simulated = (
        Counter(sample["labelled_by"] for sample in some)
        for some in (samples, [sample for sample in samples if sample["simulated"]])
    )
    return {
        "samples": len(samples),
        "images": len(shown),
        "simulated": simulated.total(),
        "counts": {axis: counted(sample[column] for sample in samples) for axis, column in AXES.items()},
        "labelled_by": {
            name: {"samples": count, "simulated": simulated[name]} for name, count in sorted(labelled.items())
        },
        "sources": [row | {"samples": made_of[terms_in(row)]} for row in terms_of(own)],
        "digests": {"samples": digest, "images": digest_of(shown)},
    }


def terms_in(row: dict) -> tuple:
    return tuple(row[name] for name in TERMS)


def counted(column: Iterable) -> dict[str, int]:
    """Value -> in how many rows it is, alone or in the row's list, by value."""
    rows = (set(row) if isinstance(row, list) else {row} for row in column)
    return dict(sorted(Counter(str(one) for row in rows for one in row).items()))


def described(card: dict) -> str:
    """The card as Markdown."""
    lines = [
        "# Data card",
        "",
        f"{card['samples']:,} questions with answers about {card['images']:,} medical images and their quality, "
        "as chat messages; made by medq_ray.",
        "",
    ]
    if card["simulated"]:
        lines += [f"**{card['simulated']:,} of the {card['samples']:,} labels are simulated**: a program that knows "
                  "the truth of synthetic images wrote or confirmed them. They are no person's judgement.",
                  ""]  # fmt: skip
    lines += ["## Sources and terms", "", *table(
        ["source", "licence", "may be given to others", "may be trained on", "images", "samples"],
        [[row["source"], row["licence"], *("yes" if row[name] else "no" for name in ("share", "train")),
          f"{row['images']:,}", f"{row['samples']:,}"] for row in card["sources"]],
    )]  # fmt: skip
    if closed := sorted({row["source"] for row in card["sources"] if not row["share"]}):
        lines += [f"The terms of {', '.join(closed)} do not allow that its images are given to others.", ""]
    lines += ["## Who labelled", "", *table(
        ["labelled by", "samples", "of them simulated"],
        [[who, f"{row['samples']:,}", f"{row['simulated']:,}"] for who, row in card["labelled_by"].items()],
    )]  # fmt: skip
    for axis in AXES:
        rows = [[value, f"{count:,}"] for value, count in card["counts"][axis].items()]
        lines += [f"## By {axis}", "", *table([axis, "samples"], rows)]
    lines += ["## Digests", ""]
    lines += [f"- {name}: `{digest}`" for name, digest in sorted(card["digests"].items())]
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one; '|' within a cell is escaped."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)] + [""]
