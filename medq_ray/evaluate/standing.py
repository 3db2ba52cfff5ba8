"""A result beside the published rows of MedQ-Bench: the rank that it would take, and the paper's Table 1 with it.

A result is what one model reached on one split:

    {"model": name, "release": Release.name, "split": Release.split, "wording": "official" | "own wording" (of what was
     asked), "runs": completions a question, "temperature": theirs,
     "perception": of scoring.accuracy | None, "description" and "comparison": of judge.aggregate | None}

Published scores are of one answer a question on the test split. A result on another split has no published rows beside
it and takes no rank, nor does a judged score for which either question or rubric was in our own wording.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medq_ray.evaluate.published import CAVEATS, COUNTS, KIND_COUNTS, PAPER, README, ROWS
from medq_ray.judging.wording import AXES

TASKS = ("perception", "description", "comparison")
HEADS = {
    "perception": ("Yes/No", "What", "How", "All"),
    "description": ("Comp", "Prec", "Cons", "Qual", "Sum"),
    "comparison": ("Comp", "Prec", "Cons", "Qual", "Sum"),
}
TITLES = {
    "perception": "Perception, % right",
    "description": "Description, 0 to 2 each",
    "comparison": "Comparison, 0 to 2 each",
}
UNANSWERED = 0.01
"""Share of runs without an answer above which a score says more of the endpoint than of the model. Our choice."""
DIGITS = {"perception": 2, "description": 3, "comparison": 3}
"""As published. Scores are rounded to them before they are ranked: equal counts of right answers rank equal."""
NAME, CELL, GAP = 28, 10, 2
"""Widths in the text table: with a gap between two tasks it has 28 + 9 x 10 + 2 = 120 characters."""


class Score(NamedTuple):
    """A score in published units."""

    value: float
    ci95: Sequence[float] | None


@dataclass
class Line:
    """One row of a table."""

    model: str
    scores: list[Score | None]
    """One for each column."""
    digits: list[int]
    """Behind the point, of each column."""
    ours: bool = False
    label: str = ""
    """What has to be said in the row itself."""
    key: float = float("-inf")
    """What rows are sorted by."""


def standing(result: dict) -> dict[str, dict]:
    """Task -> {rank, best, worst, of, among} that the result would take, for each task that it has.

    rank: one more than there are published models above it; best and worst: the same at the ends of its 95 % interval,
    null without one; of: the published models and itself; among: who they are. People and guessing are not ranked.
    Where nothing can be compared, {rank: null, reason}. The published scores have an interval, too, which nobody
    states: best and worst are of this result's alone.
    """
    return {task: place(result, task) for task in TASKS if result[task]}


def place(result: dict, task: str) -> dict:
    """The rank in one task."""
    own = scores_of(result, task)[-1]
    if reason := incomparable(result):
        return {"rank": None, "reason": reason}
    if task != "perception" and reworded(result, task):
        return {"rank": None, "reason": "own wording, not comparable with published scores"}
    if own is None:
        return {"rank": None, "reason": "no score"}
    if task == "perception" and (lost := result[task].get("failed") or 0.0) > UNANSWERED:
        return {"rank": None, "reason": f"{lost:.0%} of the runs have no answer; see `failed` in result.json"}
    published = [scores[-1] for row in ROWS if row.ranked and (scores := getattr(row, task))]

    def rank(value: float) -> int:
        return 1 + sum(other > round(value, DIGITS[task]) for other in published)

    worst, best = map(rank, own.ci95) if own.ci95 else (None, None)
    among = "the published top 5" if task == "comparison" else f"the {len(published)} published models"
    return {"rank": rank(own.value), "best": best, "worst": worst, "of": len(published) + 1, "among": among}


def incomparable(result: dict) -> str:
    """Why a result has no published rows, '' if it has."""
    if result["release"] != "MedQ-Bench":
        return f"we have no published scores of {result['release']}"
    if result["split"] != "test":
        return f"published scores are of the test split, not of {result['split']}"
    return ""


def reworded(result: dict, task: str) -> bool:
    """Whether a judged task was asked or judged in our own wording."""
    return "own wording" in (result["wording"], result[task]["wording"])


def scores_of(result: dict, task: str) -> list[Score | None]:
    """One for each of HEADS[task], None where the task has none. A sum has one only if all four axes have."""
    own = result[task]
    if not own:
        return [None] * len(HEADS[task])
    if task == "perception":
        rates = [*(own["by_kind"].get(kind, {"accuracy": None}) for kind in KIND_COUNTS), own]
        return [
            None if rate["accuracy"] is None else Score(100 * rate["accuracy"], [100 * end for end in rate["ci95"]])
            for rate in rates
        ]
    axes = [Score(own[axis]["mean"], own[axis]["ci95"]) if own[axis]["scored"] else None for axis in AXES]
    return [*axes, Score(own["overall"]["sum"], own["overall"]["ci95"]) if all(axes) else None]


def table(results: Sequence[dict], markdown: bool) -> str:
    """The results in the layout of the paper's Table 1, best first, with the published rows if all are comparable.

    Perception and description are one table, comparison is a second; then follow ranks and notes. Text has at most 120
    characters a line, but for the line of a longer model name.
    """
    published = not any(incomparable(result) for result in results)
    has = [task for task in TASKS if any(result[task] for result in results)]
    parts = []
    for tasks in (("perception", "description"), ("comparison",)):
        if not set(tasks) & set(has):
            continue
        tasks = tasks if published else [task for task in tasks if task in has]
        lines = [own_line(result, tasks) for result in results if any(result[task] for task in tasks)]
        lines += published_lines(tasks) if published else []
        lines.sort(key=lambda line: (-line.key, line.model))
        parts.append((as_markdown if markdown else as_text)(tasks, lines))
    for title, items in (("Ranks", ranks(results)), ("Notes", [*notes(results, published)])):
        if items:
            parts.append(listed(title, items, markdown))
    return "\n\n".join(parts) + "\n"


def own_line(result: dict, tasks: Sequence[str]) -> Line:
    scores = {task: scores_of(result, task) for task in tasks}
    judged = [task for task in tasks if task != "perception" and result[task]]
    wordings = {result["wording"], *(result[task]["wording"] for task in judged)}
    last = scores[tasks[0]][-1]
    return Line(
        result["model"],
        sum(scores.values(), []),
        digits_of(tasks),
        ours=True,
        label="own wording" if "own wording" in wordings else "",
        key=last.value if last else float("-inf"),
    )


def published_lines(tasks: Sequence[str]) -> list[Line]:
    """Published rows that have the first of the tasks."""
    return [
        Line(
            row.model,
            [Score(value, None) for task in tasks for value in getattr(row, task) or ()]
            + [None] * sum(len(HEADS[task]) for task in tasks if not getattr(row, task)),
            digits_of(tasks),
            key=getattr(row, tasks[0])[-1],
        )
        for row in ROWS
        if getattr(row, tasks[0])
    ]


def digits_of(tasks: Sequence[str]) -> list[int]:
    return [DIGITS[task] for task in tasks for _ in HEADS[task]]


def spans(line: Line) -> list[str]:
    """95 % intervals with one digit less than the scores; '' where there is none."""
    return [
        "-".join(f"{end:.{digits - 1}f}" for end in score.ci95).replace("100.0", "100") if score and score.ci95 else ""
        for score, digits in zip(line.scores, line.digits, strict=True)
    ]


def values(line: Line) -> list[str]:
    pairs = zip(line.scores, line.digits, strict=True)
    return [f"{score.value:.{digits}f}" if score else "-" for score, digits in pairs]


def as_text(tasks: Sequence[str], lines: Sequence[Line]) -> str:
    """A table for a terminal; ours are marked '>', with their intervals below."""

    def row(name: str, cells: Sequence[str]) -> str:
        rest, blocks = list(cells), []
        for task in tasks:
            blocks.append("".join(f"{cell:>{CELL}}" for cell in rest[: len(HEADS[task])]))
            del rest[: len(HEADS[task])]
        return f"{name:{NAME}}{(' ' * GAP).join(blocks)}"

    titles = (" " * GAP).join(f"{TITLES[task]:>{CELL * len(HEADS[task])}}" for task in tasks)
    head = row("Model", [head for task in tasks for head in HEADS[task]])
    rule = "-" * len(head)
    rows = [" " * NAME + titles, head, rule]
    for line in lines:
        name = f"{'>' if line.ours else ' '} {line.model}"
        if len(name) > NAME:
            rows.append(name)
            name = ""
        rows.append(row(name, values(line)))
        if line.ours:
            rows.append(row(f"  95 %{', ' * bool(line.label)}{line.label}", spans(line)).rstrip())
    return "\n".join([*rows, rule])


def as_markdown(tasks: Sequence[str], lines: Sequence[Line]) -> str:
    """A table for a page; ours are bold, with their intervals in the cells."""
    heads = ["Model", *(head for task in tasks for head in HEADS[task])]
    rows = ["; ".join(f"{TITLES[task]} ({', '.join(HEADS[task])})" for task in tasks) + ".", ""]
    rows += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for line in lines:
        name, cells = line.model.replace("|", r"\|"), values(line)
        if line.ours:
            name = f"**{name}**" + f" ({line.label})" * bool(line.label)
            cells = [f"{cell} [{span}]" if span else cell for cell, span in zip(cells, spans(line), strict=True)]
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(rows)


def listed(title: str, items: Sequence[str], markdown: bool) -> str:
    """A headed list; in text, wrapped."""
    if markdown:
        return "\n".join([f"{title}:", "", *(f"- {item}" for item in items)])
    wrapped = (textwrap.fill(item, 118, initial_indent="- ", subsequent_indent="  ") for item in items)
    return "\n".join([f"{title}:", *wrapped])


def ranks(results: Sequence[dict]) -> list[str]:
    """What `standing` says, a line for each model and task that takes a rank."""
    lines = []
    for result in results:
        for task, own in standing(result).items():
            if own["rank"] is None:
                lines.append(f"{result['model']}, {task}: no rank ({own['reason']})")
                continue
            ends = f"{own['best']} to {own['worst']}" if own["best"] != own["worst"] else "the same"
            within = "" if own["best"] is None else f", {ends} within its 95 % interval"
            lines.append(f"{result['model']}, {task}: rank {own['rank']} of {own['of']}, among {own['among']}{within}")
    return lines


def notes(results: Sequence[dict], published: bool) -> Iterator[str]:
    """What to know before comparing, published rows first; what holds for several models is said once."""
    if published:
        first = [row.model for row in ROWS if row.source == README]
        yield f"Published rows: {PAPER}; {', '.join(first)} and the comparison task: {README}."
        for task in TASKS:
            if task != "comparison" or any(result[task] for result in results):
                yield from CAVEATS[task]
    else:
        reasons = dict.fromkeys(reason for result in results if (reason := incomparable(result)))
        yield f"No published rows: {'; '.join(reasons)}."
    said = defaultdict(list)
    for result in results:
        for note in facts(result, published):
            said[note].append(result["model"])
    for note, models in said.items():
        yield f"{', '.join(models)}: {note}"


def facts(result: dict, published: bool) -> Iterator[str]:
    """How one result came about, as far as it bears on comparing it."""
    runs = f"{result['runs']} runs, perception is the mean over them" if result["runs"] > 1 else "one run"
    yield f"temperature {result['temperature']:g}{' (greedy)' * (result['temperature'] == 0)}, {runs}."
    if (verdict := (result.get("sight") or {}).get("verdict", "sees")) != "sees":
        yield f"the guard's verdict on whether it sees images: {verdict}; it was trusted to."
    if result["wording"] == "own wording" and result["perception"]:
        yield "perception asked in our own wording, not in the benchmark's; letters matched by its rules."
    for task in TASKS:
        if not (own := result[task]):
            continue
        n = own["n"] if task == "perception" else questions_of(own)
        known = COUNTS["test"][task]
        if published and n != known:
            yield f"{n:,} {task} questions; published rows are over {known:,}."
        if task == "perception":
            continue
        rounds = f"{own['rounds']} round{'s' * (own['rounds'] > 1)}"
        ours = "our own wording: not comparable with published scores"
        rubric = ours if reworded(result, task) else "the official wording"
        yield f"{task} judged by {own['judge']} in {rounds}, in {rubric}."
        missing, scored = (sum(own[axis][name] for axis in AXES) for name in ("missing", "scored"))
        if missing:
            yield f"{missing:,} of {missing + scored:,} {task} scores missing: left out of the means, as officially."


def questions_of(own: dict) -> int:
    """Items behind a judge's aggregate, which counts scores: of every item one a round for each axis."""
    return (own[AXES[0]]["scored"] + own[AXES[0]]["missing"]) // own["rounds"]
