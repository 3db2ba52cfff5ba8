"""What the synthetic world knows of its images, and the right answer to any question about one of them.

Only the simulated oracle and the simulated expert may look: the loop itself never imports this for pool images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medq_ray import questions
from medq_ray.artifacts import read_table
from medq_ray.schema import TRUTH

Truth = dict[str, dict[str, Any]]
"""image id -> row of schema.TRUTH."""


def load_truth(world: str | Path) -> Truth:
    """Read WORLD/truth.parquet. Raises ValueError naming the file when it is missing, damaged or no truth table."""
    path = Path(world) / "truth.parquet"
    table = read_table(path)
    missing = sorted(set(TRUTH.names) - set(table.column_names))
    if missing:
        raise ValueError(f"{path}: no truth table, it lacks {', '.join(missing)}; make the world with `medq synth`")
    return {row["image_id"]: row for row in table.select(TRUTH.names).to_pylist()}


def gold(question: Mapping[str, Any], truth: Mapping[str, Any], second: Mapping[str, Any] | None = None) -> str:
    """The right answer: the letter of a perception question, the reference description otherwise.

    `question` needs the fields kind, text and options of schema.QUESTION; `truth` is a row of schema.TRUTH about its
    image, `second` the one about image B of a comparison. Raises ValueError when no option of the question is right.
    """
    if question["kind"] == "description":
        return questions.describe(truth["modality"], truth["degradation"], truth["severity"])
    return questions.gold_letter(
        question["kind"], question["text"], question["options"], truth["degradation"], truth["severity"],
        None if second is None else second["severity"],
    )  # fmt: skip
