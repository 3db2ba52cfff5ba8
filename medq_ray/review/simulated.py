"""The simulated expert: verdicts from the synthetic truth, marked as simulated in every record.

It stands where the paper's domain experts stand, so that the loop closes without people. Nothing it writes may be
reported as a person's judgement.
"""

from pathlib import Path

import pyarrow as pa

from medq_ray.config import Config
from medq_ray.labels import readable, says_same
from medq_ray.review.handover import needs_review, write_verdicts
from medq_ray.review.stats import table3
from medq_ray.synthetic.truth import Truth, gold

REVIEWER = "simulated-expert"


def review(folder: Path, *, config: Config, annotations: pa.Table, questions: pa.Table, truth: Truth) -> dict:
    """Give a verdict on every annotation (schema.ANNOTATION) of a reviewed route; others keep their label.

    Writes verdicts.parquet (schema.VERDICT, by question id) and stats.json, as `handover.write_verdicts` does: Table 3
    with the minutes that are booked. Returns counts.
    """
    asked = {row["question_id"]: row for row in questions.to_pylist()}
    rows = []
    for annotation in sorted(annotations.to_pylist(), key=lambda row: row["question_id"]):
        if not needs_review(annotation):
            continue
        question = asked[annotation["question_id"]]
        action, after = verdict(question, annotation["label"], truth)
        rows.append(
            {
                "question_id": annotation["question_id"],
                "image_id": annotation["image_id"],
                "kind": question["kind"],  # not of schema.VERDICT: for the statistics
                "action": action,
                "before": annotation["label"],
                "after": after,
                "reviewer": REVIEWER,
                "simulated": True,
                "seconds": config.review.seconds_per_item,
            }
        )
    kept = sum(route != "dropped" for route in annotations["route"].to_pylist())
    return write_verdicts(folder, rows, annotations, table3(rows, kept))


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
