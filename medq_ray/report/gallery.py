"""Each prototype beside what it fetched: the failures it stands for, and look-alikes from the pool."""

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import Run
from medq_ray.promotion import serving_at
from medq_ray.report.exploring import quality
from medq_ray.report.reading import RunFiles, thumbnail
from medq_ray.report.text import capability_words, words

MEMBERS, SELECTED, PASSED_OVER = 7, 14, 7
"""Pictures shown of each prototype: its failures, what it retrieved and selected, what it retrieved only."""
SHOWN = 6
"""Prototypes of an iteration that are open on the page; the smaller ones are folded."""
AXES = ("cell", "modality", "kind", "severity", "scope")


def gallery(run: RunFiles) -> list[dict]:
    """One entry an iteration with explored prototypes, each with its cards, largest prototype first."""
    chapters = []
    for row in run.summary["iterations"]:
        folder, of = f"iter-{row['t']:02d}", serving_at(Run(run.root), row["t"])
        hits = run.columns(f"{folder}/explore/retrieved.parquet")
        picks = run.columns(f"{folder}/explore/selection.parquet")
        prototypes = run.table(f"iter-{of:02d}/evaluate/prototypes.parquet")
        if not prototypes or hits is None or picks is None:
            continue
        failures = {f["question_id"]: f for f in run.table(f"iter-{of:02d}/evaluate/failures.parquet")}
        prototypes.sort(key=lambda p: (-p["size"], p["prototype_id"]))
        cards = [
            card(run, p, failures, of_prototype(hits, p["prototype_id"]), of_prototype(picks, p["prototype_id"]))
            for p in prototypes
        ]
        chapters.append({"t": row["t"], "of": of, "open": cards[:SHOWN], "folded": cards[SHOWN:], "count": len(cards),
                         "quality": quality(run, of)})  # fmt: skip
    return chapters


def of_prototype(rows: pa.Table, number: int) -> pa.Table:
    """Rows of a prototype, most similar first; of a million images there may be 100,000."""
    own = rows.filter(pc.equal(rows["prototype_id"], number))
    return own.sort_by([("similarity", "descending"), ("image_id", "ascending")])


def card(run: RunFiles, prototype: dict, failures: dict[str, dict], hits: pa.Table, picks: pa.Table) -> dict:
    """One prototype: pictures of its members, its mixture in words, an example answer, pictures of what it fetched."""
    members = [failures[name] for name in prototype["members"] if name in failures]
    images = {m["image_id"]: m for m in members if m["image_id"] != prototype["medoid"]}
    mixture = dict(prototype["capabilities"])
    example = next((m for m in members if m["image_id"] == prototype["medoid"]), members[0] if members else None)
    passed = hits.filter(pc.invert(pc.is_in(hits["image_id"], picks["image_id"].combine_chunks())))
    return {
        "number": prototype["prototype_id"],
        "size": prototype["size"],
        "cohesion": f"{prototype['cohesion']:.2f}",
        "title": title(mixture),
        "mixture": mixture_words(mixture),
        "example": example,
        "medoid": picture(run, prototype["medoid"], prototype["medoid_uri"], None),
        "members": [picture(run, m["image_id"], m["uri"], None) for m in list(images.values())[:MEMBERS]],
        "hits": hits.num_rows,
        "picks": picks.num_rows,
        "selected": [
            picture(run, p["image_id"], p["uri"], p["similarity"]) | {"paid": capability_words(p["capability"])}
            for p in spaced(picks, SELECTED)
        ],
        "passed": [
            picture(run, hit["image_id"], run.uris.get(hit["image_id"]), hit["similarity"])
            for hit in spaced(passed, PASSED_OVER)
        ],
    }


def spaced(rows: pa.Table, count: int) -> list[dict]:
    """`count` rows evenly from first to last, so that what is shown is neither the best nor picked by hand."""
    if rows.num_rows <= count:
        return rows.to_pylist()
    return rows.take([round(i * (rows.num_rows - 1) / (count - 1)) for i in range(count)]).to_pylist()


def picture(run: RunFiles, image_id: str, uri: str | None, similarity: float | None) -> dict:
    truth = run.truth.get(image_id)
    what = None
    if truth:
        clean = truth["degradation"] == "none"
        what = "clean" if clean else f"{truth['severity']} {words(truth['degradation'])}"
    return {
        "source": thumbnail(uri),
        "id": image_id,
        "similarity": None if similarity is None else f"{similarity:.2f}",
        "truth": what,
        "modality": words(truth["modality"]) if truth else "",
        "paid": "",
    }


def title(mixture: dict[str, float]) -> str:
    """The cell of at least two fifths of the members, else the modality of at least half, else neither."""
    for axis, least in (("cell:", 0.4), ("modality:", 0.5)):
        share, name = max(((share, name) for name, share in mixture.items() if name.startswith(axis)), default=(0, ""))
        if share >= least:
            return capability_words(name)
    return "several modalities"


def mixture_words(mixture: dict[str, float]) -> list[tuple[str, str, float]]:
    """(axis, words, share) of the capabilities that at least a fifth of the members have, by axis."""
    ordered = sorted(mixture.items(), key=lambda item: (-item[1], item[0]))
    return [
        (axis, capability_words(name), share)
        for axis in AXES
        for name, share in ordered
        if name.startswith(f"{axis}:") and share >= 0.2
    ]
