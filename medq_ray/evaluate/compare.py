"""Two evaluations of the same questions: is the second better, and in what?"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from medq_ray.artifacts import read_json, read_table
from medq_ray.intervals import Z95
from medq_ray.schema import PERCEPTION_KINDS
from medq_ray.tables import rows_of

SIGNIFICANT = 0.05
"""Of Holm's adjusted p, below which a capability has moved (our choice)."""


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: of the questions whose outcome changed, `gained` became right and `lost`
    wrong; under no difference each is a fair coin. With several runs a question, the sign test on their shares."""
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def paired(changes: Sequence[tuple[str, float]]) -> dict:
    """{difference, ci95, p_mcnemar, n, gained, lost} of (patient, change of the share of right runs) a question.

    The interval is Bonett and Price's (2012) with patients as clusters: three questions about one image, or about two
    images of a patient, are not independent observations (McNemar's test, which the field reports, takes them as such).
    It is Wald's with one patient more whose answers all became right and one whose all became wrong, else a few
    questions that agree by chance would have an interval of no width.
    """
    n = len(changes)
    gained, lost = sum(change > 0 for _, change in changes), sum(change < 0 for _, change in changes)
    difference = math.fsum(change for _, change in changes) / n
    imagined = n / len({patient for patient, _ in changes})  # questions of each of the two
    centre = difference * n / (n + 2 * imagined)
    deviation: dict[str, float] = defaultdict(float)
    for patient, change in changes:
        deviation[patient] += change - centre
    squares = [value**2 for value in deviation.values()] + [(imagined * (end - centre)) ** 2 for end in (-1, 1)]
    half = Z95 * math.sqrt(math.fsum(squares)) / (n + 2 * imagined)
    return {
        "difference": round(difference, 6),
        "ci95": [round(max(-1.0, centre - half), 6), round(min(1.0, centre + half), 6)],
        "p_mcnemar": mcnemar(gained, lost),
        "n": n,
        "gained": gained,
        "lost": lost,
    }


def compare(before: pa.Table, after: pa.Table) -> dict:
    """`paired` of the perception questions of two schema.SCORE tables, after minus before, and 'capabilities': the
    same of each capability, with p_holm, adjusted for looking at all of them, and moved ('up', 'down' or '').

    Runs without an answer say something about the endpoint only: shares are of the others, and questions without any
    answer in one of the tables are left out and counted as 'unanswered'. Raises ValueError when the tables are of
    different questions, or have none to compare.
    """
    every: list[tuple[str, float]] = []
    groups: dict[str, list[tuple[str, float]]] = defaultdict(list)
    unanswered = 0
    for old, new in zip_longest(perception(before), perception(after)):
        names = {row["question_id"] for row in (old, new) if row}
        if len(names) > 1 or not (old and new):
            raise ValueError(f"the two score tables are of different questions; only one has {min(names)}")
        if old["error_rate"] is None or new["error_rate"] is None:
            unanswered += 1
            continue
        every.append((new["patient"], old["error_rate"] - new["error_rate"]))
        for capability in new["capabilities"]:
            groups[capability].append(every[-1])
    if not every:
        raise ValueError("the two score tables have no perception questions to compare")
    found = {capability: paired(changes) for capability, changes in sorted(groups.items())}
    worst = 0.0
    for rank, row in enumerate(sorted(found.values(), key=lambda row: row["p_mcnemar"])):
        worst = max(worst, min(1.0, row["p_mcnemar"] * (len(found) - rank)))  # Holm
        row["p_holm"] = worst
        row["moved"] = "" if worst >= SIGNIFICANT else "up" if row["difference"] > 0 else "down"
    return paired(every) | {"unanswered": unanswered, "capabilities": found}


def perception(scores: pa.Table) -> Iterator[dict]:
    """The rows of perception questions, sorted by question_id."""
    return (row for row in rows_of(scores.sort_by("question_id")) if row["kind"] in PERCEPTION_KINDS)


ITERATION = {"dev": "scores.parquet", "test": "test_scores.parquet"}


def scores_of(folder: Path, split: str | None) -> tuple[pa.Table, str]:
    """The schema.SCORE table of an evaluation and its split: of an iteration or its evaluate step dev's, unless `split`
    says test; of `medq evaluate` or a model of `medq bench` what is there.

    Raises ValueError when there is none, or only one of another split.
    """
    folder = folder if (folder / "scores.parquet").exists() else folder / "evaluate"
    if (folder / ITERATION["test"]).exists() and split in (None, *ITERATION):
        return read_table(folder / ITERATION[split or "dev"]), split or "dev"
    records = [folder / name for name in ("result.json", "metrics.json") if (folder / name).exists()]
    if not (folder / "scores.parquet").exists() or not records:
        where = folder.parent if folder.name == "evaluate" else folder
        expected = "an iteration, an output of `medq evaluate` or a model's folder in one of `medq bench`"
        raise ValueError(f"{where}: no finished evaluation; give {expected}")
    there = read_json(records[0]).get("split", "dev and test")  # an iteration's holds both
    if split not in (None, there):
        raise ValueError(f"{folder}: an evaluation of {there}, not of {split}")
    return read_table(folder / "scores.parquet"), there


def describe(result: dict, most: int = 12) -> str:
    """A comparison for a person: the whole, then the capabilities that changed most, those that moved marked."""

    def line(name: str, row: dict) -> str:
        low, high = (100 * end for end in row["ci95"])
        arrow = {"up": "+", "down": "-"}.get(row.get("moved", ""), " ")
        return (
            f"  {arrow} {name:<36}{100 * row['difference']:>+7.1f}  [{low:+.1f}, {high:+.1f}]"
            f"{row['n']:>7}{row['gained']:>8}{row['lost']:>6}  {row.get('p_holm', row['p_mcnemar']):.2g}"
        )

    found = sorted(result["capabilities"].items(), key=lambda item: (not item[1]["moved"], -abs(item[1]["difference"])))
    lines = [f"    {'points, after minus before':<36}{'change':>7}  95 % interval{'n':>5}  gained  lost  p"]
    lines += [line("all perception questions", result), *(line(name, row) for name, row in found[:most])]
    moved = sum(bool(row["moved"]) for _, row in found)
    lines.append(
        f"  {moved} of {len(found)} capabilities moved (+ up, - down): p below {SIGNIFICANT}, McNemar's adjusted for "
        f"{len(found)} looks (Holm)"
    )
    if result["unanswered"]:
        lines.append(f"  {result['unanswered']} questions without an answer in one of the two are left out")
    return "\n".join(lines)
