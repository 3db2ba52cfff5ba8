"""The simulated expert: verdicts from the synthetic truth, marked as simulated in every record.

It stands where the paper's domain experts stand, so that the loop closes without people. Nothing it writes may be
reported as a person's judgement.
"""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.intervals import wilson
from medq_ray.labels import readable, says_same
from medq_ray.schema import VERDICT
from medq_ray.synthetic.truth import Truth, gold

REVIEWER = "simulated-expert"
REVIEWED_ROUTES = ("cold_start", "expert")


def review(folder: Path, *, config: Config, annotations: pa.Table, questions: pa.Table, truth: Truth) -> dict:
    """Give a verdict on every annotation (schema.ANNOTATION) of a reviewed route; others keep their label.

    Writes verdicts.parquet (schema.VERDICT, by question id) and stats.json: verdict counts, the rates of Table 3,
    booked minutes, `audit`. Returns counts.
    """
    asked = {row["question_id"]: row for row in questions.to_pylist()}
    rows = []
    for annotation in sorted(annotations.to_pylist(), key=lambda row: row["question_id"]):
        if annotation["route"] not in REVIEWED_ROUTES and not annotation["audit"]:
            continue
        action, after = verdict(asked[annotation["question_id"]], annotation["label"], truth)
        rows.append(
            {
                "question_id": annotation["question_id"],
                "image_id": annotation["image_id"],
                "action": action,
                "before": annotation["label"],
                "after": after,
                "reviewer": REVIEWER,
                "simulated": True,
                "seconds": config.review.seconds_per_item,
            }
        )
    write_table(folder / "verdicts.parquet", rows, VERDICT)
    kept = sum(route != "dropped" for route in annotations["route"].to_pylist())
    summary = statistics(rows, kept) | {"audit": audit(annotations.to_pylist(), rows)}
    write_json(folder / "stats.json", summary)
    return {"reviewed": len(rows), **summary["verdicts"]}


def verdict(question: dict, label: str, truth: Truth) -> tuple[str, str]:
    """(action, label after it): accept what is right, edit what is readable but wrong into the right answer, reject
    what is unreadable or about an image or question without truth ('' after)."""
    known, options = truth.get(question["image_id"]), len(question["options"])
    if known is None or readable(question["kind"], label, options) is None:
        return "reject", ""
    try:
        right = gold(question, known, truth.get(question.get("second_id") or ""))
    except ValueError:  # none of its options is right: nothing to edit it into
        return "reject", ""
    return ("accept", label) if says_same(question["kind"], label, right, options) else ("edit", right)


def audit(annotations: list[dict], verdicts: list[dict]) -> dict:
    """How good the labels are that no expert sees, from those of them that one saw to find out: route -> {unseen, seen,
    wrong, error, ci95}, error: wrong over seen, null for none; what was edited or rejected was wrong."""
    action = {row["question_id"]: row["action"] for row in verdicts}
    found = {}
    for route in ("oracle", "self"):
        own = [row for row in annotations if row["route"] == route]
        seen = [action[row["question_id"]] for row in own if row["question_id"] in action]
        wrong = sum(verdict != "accept" for verdict in seen)
        error = wrong / len(seen) if seen else None
        found[route] = {"unseen": len(own) - len(seen), "seen": len(seen), "wrong": wrong, "error": error,
                        "ci95": [round(end, 6) for end in wilson(error or 0.0, len(seen))]}  # fmt: skip
    return found


def statistics(rows: list[dict], annotations: int) -> dict:
    """stats.json from verdicts and the number of annotations that were not dropped. Rates are None without a verdict:
    no review is not a rate of 0."""
    actions = Counter(row["action"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    return {
        "verdicts": {action: actions[action] for action in ("accept", "edit", "reject")},
        "rates": {
            action: actions[action] / len(rows) if rows else None for action in ("accept", "edit", "reject")
        },
        "review_rate": len(rows) / annotations if annotations else None,
        "minutes": seconds / 60,
        "average_minutes": seconds / 60 / len(rows) if rows else None,
        "reviewer": REVIEWER,
        "simulated": True,
    }
