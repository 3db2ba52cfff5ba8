"""What the loop hands to reviewers and takes back: annotations into the store, verdicts into the run directory."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, UnidentifiedImageError

from medq_ray.artifacts import Run, Step, write_json, write_table
from medq_ray.config import Config
from medq_ray.depth import beside, read_meaning
from medq_ray.draws import drawn
from medq_ray.labels import REVIEWED_ROUTES
from medq_ray.model.prompts import uris_of
from medq_ray.promotion import serving_at
from medq_ray.review.stats import audit, overview
from medq_ray.schema import VERDICT

if TYPE_CHECKING:  # SQLAlchemy takes 0.3 s, and the simulated expert needs no store
    from medq_ray.review.store import Store, Transaction

NOBODY = {"source": "", "licence": ""}
"""Of an image that the run's pool does not have."""
SHOWN = 4
"""The prototype's failures that are shown beside an item, the most certain first."""


def needs_review(annotation: dict) -> bool:
    """Whether an expert gives a verdict on a row of schema.ANNOTATION."""
    return annotation["route"] in REVIEWED_ROUTES or annotation["audit"]


def fill(store: "Store", run_dir: Path, iteration: int, config: Config) -> dict:
    """Put the annotations of an iteration that need review into the store; the same again adds nothing.

    The most urgent come first (`priorities`) or, with review.patients_together, the patient with the most urgent one.
    Returns {items: in the store, added: now}. Raises ValueError when the iteration has not annotated yet, and when
    the store holds another run's.
    """
    run = Run(Path(run_dir))
    evaluated = _step(run, serving_at(run, iteration), "evaluate")
    explored, annotated = (_step(run, iteration, phase) for phase in ("explore", "annotate"))
    rows = annotated.table("annotations").to_pylist()
    chosen = [row for row in rows if needs_review(row)]
    asked = {row["question_id"]: row for row in explored.table("questions").to_pylist()}
    selected = {row["image_id"]: row for row in explored.table("selection").to_pylist()}
    failures = _failures(evaluated)
    known_images = _origins(run, asked.values())
    urgent = priorities(chosen, [asked[row["question_id"]] for row in chosen], evaluated.json("rates"))
    items = []
    for annotation, priority in zip(chosen, urgent, strict=True):
        question_id, image_id = annotation["question_id"], annotation["image_id"]
        why = selected[image_id]
        twice = drawn("double read", f"{iteration}|{question_id}", config.review.double_share, config.seed)
        items.append(_clean({
            "iteration": iteration, "question_id": question_id, "image_id": image_id,
            "patient": why["patient"] or image_id, "kind": asked[question_id]["kind"], "before": annotation["label"],
            "priority": float(priority), "reads": 2 if twice else 1,
            "payload": payload_of(asked[question_id], annotation, why, failures.get(why["prototype_id"], []),
                                  known_images),
        }))  # fmt: skip
    kept = sum(row["route"] != "dropped" for row in rows)
    known = {"iteration": iteration, "fingerprint": annotated.fingerprint, "annotations": kept, "closed_at": None}
    with store.writing(alone=True) as transaction:
        before = transaction.iteration(iteration)
        if before is None:
            transaction.add_iteration(known, in_order(items, config.review.patients_together))
        elif before["fingerprint"] != annotated.fingerprint:
            raise ValueError(f"{store.address} holds iteration {iteration} of another run than {run.root}: give each "
                             "run a store of its own")  # fmt: skip
    return {"items": len(items), "added": len(items) if before is None else 0}


def payload_of(
    question: dict, annotation: dict, why: dict, failures: list[dict], origins: dict[str, dict]
) -> dict:
    """What there is to see of an item: {question: schema.QUESTION, annotation: schema.ANNOTATION, images: paths in
    their order, about: what may be said of each, selection: why the image was selected, failures: of its prototype, as
    `_failures` gives them}. origins: image id -> {source, licence}."""
    selection = {name: why[name] for name in ("strategy", "capability", "prototype_id", "similarity", "score")}
    uris = uris_of(question)
    about = [about_image(uri, origins.get(name, NOBODY)) for name, uri in
             zip((question["image_id"], question["second_id"]), uris, strict=False)]  # fmt: skip
    return {"question": question, "annotation": annotation, "images": uris, "about": about, "selection": selection,
            "failures": failures}  # fmt: skip


def about_image(uri: str, origin: dict) -> dict:
    """{source, licence} of where an image is from, and what its files say: width and height in pixels (None where it
    cannot be read), bits of a grey level, spacing in mm, and whether all bits are there (`deep`). Nothing else leaves:
    no patient, no date, no path."""
    try:
        with Image.open(uri) as image:
            width, height = image.size
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        width = height = None
    meaning = read_meaning(beside(uri)) if beside(uri).exists() else None
    return origin | {
        "width": width, "height": height, "bits": meaning.bits if meaning else 8,
        "spacing": list(meaning.spacing) if meaning and meaning.spacing else None, "deep": meaning is not None,
    }  # fmt: skip


def priorities(annotations: Sequence[dict], questions: Sequence[dict], rates: dict[str, dict]) -> np.ndarray:
    """How urgent each annotation is, float (n,) from 0 to 2: the highest error rate e_k among the capabilities of its
    question, and the share of the others whose entropy is not higher (unknown: 1). Both count alike: our choice."""
    rate = {name: found["e"] or 0.0 for name, found in rates.items()}
    weak = [max((rate.get(name, 0.0) for name in row["capabilities"]), default=0.0) for row in questions]
    entropy = np.array([np.nan if row["entropy"] is None else row["entropy"] for row in annotations], float)
    entropy[~np.isfinite(entropy)] = np.inf
    rank = np.searchsorted(np.sort(entropy), entropy, side="right") / max(1, len(entropy))
    return np.array(weak, float) + rank


def in_order(items: list[dict], together: bool) -> list[dict]:
    """The items as they are to be reviewed. together: those of a patient, and of an image, one after another."""
    highest: dict[str, float] = defaultdict(float)
    for item in items:
        for name in ("patient", "image_id"):
            highest[item[name]] = max(highest[item[name]], item["priority"])
    if not together:
        return sorted(items, key=lambda item: (-item["priority"], item["question_id"]))
    return sorted(items, key=lambda item: (-highest[item["patient"]], item["patient"], -highest[item["image_id"]],
                                           item["image_id"], -item["priority"], item["question_id"]))  # fmt: skip


def export(store: "Store", run_dir: Path, iteration: int, now: Callable[[], float] = time.time) -> dict:
    """Write what reviewers decided on an iteration into its review folder, and close it: nobody undoes anything of it
    after. The same again writes the same.

    verdicts.parquet (schema.VERDICT, by question id) and stats.json: the iteration's row of `stats.overview`, `audit`
    and who it was. Returns counts. Raises ValueError, naming how many items are left, while there are any, and when
    the store does not hold this iteration of this run.
    """
    run = Run(Path(run_dir))
    annotated = _step(run, iteration, "annotate")
    with store.writing(alone=True) as transaction:
        known = transaction.iteration(iteration)
        if known is None or known["fingerprint"] != annotated.fingerprint:
            raise ValueError(f"{store.address} does not hold iteration {iteration} of {run.root}")
        left = sum(row["items"] for row in transaction.left()
                   if row["iteration"] == iteration and row["stage"] != "done")  # fmt: skip
        if left:
            raise ValueError(f"awaiting review: {left:,} items of iteration {iteration}")
        if known["closed_at"] is None:
            transaction.close_iteration(iteration, now())
        rows = verdicts(transaction, iteration)
        (found,) = (row for row in overview(transaction)["iterations"] if row["iteration"] == iteration)
    return write_verdicts(run.root / f"iter-{iteration:02d}" / "review", rows, annotated.table("annotations"), found)


def verdicts(transaction: "Transaction", iteration: int) -> list[dict]:
    """The verdicts that hold now: schema.VERDICT as dicts, by question id."""
    items = {row["item_id"]: row for row in transaction.items(("item_id", "iteration", "question_id", "image_id"))
             if row["iteration"] == iteration}  # fmt: skip
    simulated = {row["name"]: row["simulated"] for row in transaction.reviewers()}
    holds = {row["event_id"] for row in transaction.outcomes()}
    rows = [
        {name: (items[event["item_id"]] | event)[name] for name in VERDICT.names if name != "simulated"}
        | {"simulated": simulated[event["reviewer"]]}
        for event in transaction.events()
        if event["event_id"] in holds and event["item_id"] in items
    ]
    return sorted(rows, key=lambda row: row["question_id"])


def write_verdicts(folder: Path, rows: list[dict], annotations: Any, found: dict) -> dict:
    """Write verdicts.parquet of `rows`, and stats.json of what was `found`, `audit` and who they are by; counts."""
    write_table(folder / "verdicts.parquet", rows, VERDICT)
    by = {"reviewers": sorted({row["reviewer"] for row in rows}), "simulated": any(row["simulated"] for row in rows)}
    write_json(folder / "stats.json", found | by | {"audit": audit(annotations.to_pylist(), rows)})
    return {"reviewed": len(rows), **found["verdicts"]}


def _step(run: Run, iteration: int, phase: str) -> Step:
    step = run.finished(f"iter-{iteration:02d}/{phase}")
    if step is None:
        raise ValueError(f"{run.root}: {phase} of iteration {iteration} is not finished")
    return step


def _origins(run: Run, questions: Iterable[dict]) -> dict[str, dict]:
    """Image id -> {source, licence}, of the images of questions."""
    pooled = run.finished("pool")
    if pooled is None:
        raise ValueError(f"{run.root}: its pool is not finished")
    asked = {question[name] for question in questions for name in ("image_id", "second_id")} - {None}
    images = pooled.table("images").select(["image_id", "source", "licence"])
    own = images.filter(pc.is_in(images["image_id"], pa.array(sorted(asked), pa.string())))
    return {row.pop("image_id"): row for row in own.to_pylist()}


def _failures(evaluated: Step) -> dict[int, list[dict]]:
    """Prototype id -> its SHOWN failures with the highest error rates: {question_id, uri, text, expected, given}."""
    rows = {row["question_id"]: row for row in evaluated.table("failures").to_pylist()}
    found = {}
    for prototype in evaluated.table("prototypes").select(["prototype_id", "members"]).to_pylist():
        own = [rows[name] for name in prototype["members"]]
        own.sort(key=lambda row: (-row["error_rate"], row["question_id"]))
        found[prototype["prototype_id"]] = [
            {name: row[name] for name in ("question_id", "uri", "text", "expected", "given")} for row in own[:SHOWN]
        ]
    return found


def _clean(value: Any) -> Any:
    """The same without what PostgreSQL's text and JSON cannot hold: NUL characters, and numbers that are not finite."""
    if isinstance(value, dict):
        return {name: _clean(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    return None if isinstance(value, float) and not math.isfinite(value) else value
