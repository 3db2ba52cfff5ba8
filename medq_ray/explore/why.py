"""Why this image? What brought a selected image in, read back from the records of a run."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import Run, Step
from medq_ray.promotion import serving_at
from medq_ray.questions import LETTERS

SHOWN = 3
"""Failures of a prototype that are shown, of different images if there are so many, those in the paying cell first."""


def why(run_dir: Path, image_id: str) -> str:
    """The reasons, in lines for people. Raises ValueError when no finished iteration has retrieved or selected it."""
    run, t = Run(run_dir), 0
    lines: list[str] = []
    while (explored := run.finished(f"iter-{t:02d}/explore")) is not None:
        lines += iteration(t, explored, run.finished(f"iter-{serving_at(run, t):02d}/evaluate"), image_id)
        t += 1
    if t == 0:
        hint = "give the folder of a run, and wait for its first selection"
        raise ValueError(f"{run_dir}: no iteration has finished exploring there; {hint}")
    if not lines:
        raise ValueError(f"image {image_id!r} {whereabouts(run, image_id)} in the {t} iterations of {run_dir}")
    return "\n".join(lines)


def whereabouts(run: Run, image_id: str) -> str:
    """What else is known of an image that was not selected."""
    pooled = run.finished("pool")
    rows = of_image(pooled.table("images"), image_id) if pooled is not None and image_id else []
    if not rows:
        return "is none of this run's (ids are in selection.parquet and in the report's gallery), and was not seen"
    if rows[0]["split"] != "pool":
        return f"is of split {rows[0]['split']}, whose images are never selected, and was not"
    return "is in the pool, and was neither retrieved nor selected"


def iteration(t: int, explored: Step, evaluated: Step, image_id: str) -> list[str]:
    """Lines on what one iteration did with an image, none where it did nothing."""
    picked = of_image(explored.table("selection"), image_id)
    hits = sorted(of_image(explored.table("retrieved"), image_id), key=lambda hit: -hit["similarity"])
    settings = explored.manifest["identity"]["settings"]["explore"]
    if not picked and not hits:
        return []
    retrieved = ", ".join(f"prototype {hit['prototype_id']} ({hit['similarity']:.3f})" for hit in hits)
    if not picked:
        return [f"iteration {t}: retrieved by {retrieved}, all above tau_sim = {settings['tau_sim']}, and not selected"]
    (pick,) = picked
    lines = [f"iteration {t}: {image_id}, {pick['modality']}, selected by strategy {pick['strategy']}"]
    if pick["prototype_id"] is None:
        score = "" if pick["score"] is None else f", with a score of {pick['score']:.3f}"
        lines.append(f"  no prototype chose it{score}")
    else:
        lines += share(explored, pick) + prototype(evaluated, pick, settings)
    if len(hits) > (pick["prototype_id"] is not None):
        lines.append(f"  retrieved by {retrieved}")
    return lines + questions(explored, image_id)


def of_image(table: pa.Table, image_id: str) -> list[dict]:
    return table.filter(pc.equal(table["image_id"], image_id)).to_pylist()


def share(explored: Step, pick: dict) -> list[str]:
    """The share of the budget that paid for it."""
    names = (pick["capability"], f"prototype {pick['prototype_id']}")
    (own,) = [row for row in explored.table("shares").to_pylist() if row["name"] in names]
    rate = "" if own["error_rate"] is None else f"error rate {100 * own['error_rate']:.0f} %, "
    aimed = sum(row["quota"] for row in explored.table("shares").to_pylist())
    more = own["drawn"] - own["quota"]
    gave = f", {more} more than that from shares without look-alikes" if more > 0 else ""
    return [
        f"  paid for by {own['name']}: {rate}weight {100 * own['weight']:.1f} % of the {aimed} images that are not "
        f"drawn at random, which is {own['quota']}; {own['drawn']} drawn from {own['look_alikes']} look-alikes{gave}"
    ]


def prototype(evaluated: Step, pick: dict, settings: dict) -> list[str]:
    """The prototype that it resembles, and failures that this stands for."""
    table, tau = evaluated.table("prototypes"), settings["tau_sim"]
    (own,) = table.filter(pc.equal(table["prototype_id"], pick["prototype_id"])).to_pylist()
    shares = sorted(dict(own["capabilities"]).items(), key=lambda item: (-item[1], item[0]))
    mixture = ", ".join(f"{name} {100 * part:.0f} %" for name, part in shares if part >= 0.2)
    failures = {row["question_id"]: row for row in evaluated.table("failures").to_pylist()}
    scored = ""
    if pick["strategy"] == "failure_driven":
        weighed = ", times what the nearest dev images say of the weakness" if settings["neighbours"] else ""
        scored = f"; score {pick['score']:.3f}: similarity times the cell's share of the prototype{weighed}"
    lines = [
        f"  looks like prototype {own['prototype_id']}: similarity {pick['similarity']:.3f} (tau_sim = {tau}){scored}",
        f"  which is {own['size']} failures: {mixture}",
        f"  nearest to its middle: {own['medoid']} {own['medoid_uri']}",
    ]
    shown = examples([failures[name] for name in own["members"]], pick["capability"])
    for row in shown:
        lines.append(
            f"    {row['question_id']}: {row['text']} expected {row['expected']!r}, given {row['given']!r} "
            f"(wrong in {100 * row['error_rate']:.0f} % of runs)"
        )
    return lines + ([f"    and {own['size'] - len(shown)} more"] if own["size"] > len(shown) else [])


def examples(failures: list[dict], cell: str) -> list[dict]:
    """SHOWN failures: of the cell first, one an image before any other."""
    turns, seen = [], Counter()
    for row in sorted(failures, key=lambda row: (cell not in row["capabilities"], row["question_id"])):
        turns.append((cell not in row["capabilities"], seen[row["image_id"]], row))
        seen[row["image_id"]] += 1
    return [row for *_, row in sorted(turns, key=lambda turn: turn[:2])[:SHOWN]]


def in_words(question: dict) -> str:
    """The oracle's answer: the option, not its letter."""
    answer, options = question["answer"], question["options"]
    return options[LETTERS.index(answer)] if answer in tuple(LETTERS[: len(options)]) else answer


def questions(explored: Step, image_id: str) -> list[str]:
    """What was asked about it."""
    rows = of_image(explored.table("questions"), image_id)
    asked = [
        f"  asked ({row['kind']}): {row['text']} {' / '.join(row['options'])}".rstrip()
        + (f" -> {in_words(row)}" if row["answer"] else "")
        for row in rows
    ]
    dropped = [row for row in explored.table("dropped").to_pylist() if row["id"].partition("-")[0] == image_id]
    return asked + [f"  not asked ({row['id'].partition('-')[2]}): {row['reason']}" for row in dropped]
