"""The paper's Table 3 from verdicts: rates, time, how much was edited, and how well blind reads agree.

Intervals are 95 %. They take verdicts for independent, which those on one image are not quite: they are a little too
narrow.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medq_ray.intervals import wilson
from medq_ray.review.labels import grade

if TYPE_CHECKING:  # SQLAlchemy takes 0.3 s, and the simulated expert needs no store
    from medq_ray.review.store import Transaction

ACTIONS = ("accept", "edit", "reject")
RESAMPLED = 2_000
"""Bootstrap samples of a kappa's interval."""
LEVELS = 3
"""Of a grade (`labels.grade`)."""


def table3(rows: Sequence[dict], annotations: int) -> dict:
    """Table 3 of verdicts (schema.VERDICT with the question's `kind`), of `annotations` that were not dropped.

    {verdicts: action -> count, rates: action -> share, ci95: action -> interval, review_rate, minutes, average_minutes,
    edit_distance}. Rates and averages are None without a verdict: no review is not a rate of 0. edit_distance: the mean
    `distance` of edited descriptions, None without one; that of a letter would always be 1.
    """
    actions, n = Counter(row["action"] for row in rows), len(rows)
    seconds = sum(row["seconds"] for row in rows)
    edits = [distance(row["before"], row["after"]) for row in rows
             if row["action"] == "edit" and row["kind"] == "description"]  # fmt: skip
    rates = {action: actions[action] / n if n else None for action in ACTIONS}
    return {
        "verdicts": {action: actions[action] for action in ACTIONS},
        "rates": rates,
        "ci95": {action: _rounded(wilson(rate or 0.0, n)) for action, rate in rates.items()},
        "review_rate": n / annotations if annotations else None,
        "minutes": seconds / 60,
        "average_minutes": seconds / 60 / n if n else None,
        "edit_distance": sum(edits) / len(edits) if edits else None,
    }


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
                        "ci95": _rounded(wilson(error or 0.0, len(seen)))}  # fmt: skip
    return found


def distance(before: str, after: str) -> float:
    """Levenshtein distance of two texts in words, over the words of the longer: 0 equal, 1 nothing in common. Of words,
    since an edit replaces a finding or a grade: 'mild' for 'severe' is one thing. The paper has none; our choice."""
    first, second = before.split(), after.split()
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(len(first), len(second), 1)


def kappa(first: Sequence[int], second: Sequence[int], levels: int, weighted: bool = False) -> dict:
    """Cohen's kappa of two readers' categories (integers below `levels`), item by item: {n, kappa, ci95}; weighted:
    quadratically, for ordered ones. None where it is not defined: no items, or all in one category. The interval is the
    percentile bootstrap's, over items."""
    counts = np.zeros((levels, levels), int)
    np.add.at(counts, (np.asarray(first, int), np.asarray(second, int)), 1)
    i, j = np.indices(counts.shape)
    weights = (i - j) ** 2 if weighted else i != j
    n = int(counts.sum())
    value = float(_kappas(counts[None], weights)[0])
    if np.isnan(value):
        return {"n": n, "kappa": None, "ci95": None}
    draws = np.random.default_rng(0).multinomial(n, counts.ravel() / n, RESAMPLED).reshape(-1, levels, levels)
    ends = np.nanquantile(_kappas(draws, weights), [0.025, 0.975])
    return {"n": n, "kappa": value, "ci95": _rounded(ends)}


def _kappas(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One minus the disagreement seen over that expected by chance; counts: (samples, levels, levels)."""
    expected = counts.sum(2)[:, :, None] * counts.sum(1)[:, None, :] / np.maximum(counts.sum((1, 2)), 1)[:, None, None]
    chance = (weights * expected).sum((1, 2))
    seen = (weights * counts).sum((1, 2))
    return 1 - np.divide(seen, chance, out=np.full(len(counts), np.nan), where=chance > 0)


def agreement(pairs: Sequence[tuple[str, str, str]]) -> dict:
    """Of blind double reads, as (kind, first meaning, second meaning): {pairs, agree, ci95, kappa}.

    agree: the share that needs no adjudication. kappa: that of each kind with letters but 'how', a rejected label being
    a category of its own; of the degradation in descriptions; and the weighted one of `grade` in 'how' questions and
    descriptions that neither rejected.
    """
    same = sum(first == second for _, first, second in pairs)
    share = same / len(pairs) if pairs else None
    named: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, *meant in pairs:
        if kind == "description":  # modality|degradation|severity|grade
            meant = [meaning and meaning.split("|")[1] for meaning in meant]
        if kind != "how":
            named[kind].append(tuple(meant))
    found = {}
    for kind, both in sorted(named.items()):
        names = sorted({name for pair in both for name in pair})
        found[kind] = kappa(*([names.index(name) for name in side] for side in zip(*both, strict=True)), len(names))
    grades = [(grade(kind, first), grade(kind, second)) for kind, first, second in pairs if first and second]
    grades = [pair for pair in grades if None not in pair]
    if grades:
        found["grade"] = kappa(*zip(*grades, strict=True), LEVELS, weighted=True)
    return {"pairs": len(pairs), "agree": share, "ci95": _rounded(wilson(share or 0.0, len(pairs))), "kappa": found}


def overview(transaction: "Transaction") -> dict:
    """Table 3 as it stands: {total, iterations, reviewers}; the first is a row, the others lists of rows.

    Each row has what `table3` gives, and `double_reads` (see `agreement`). A row of an iteration, and the total, count
    the verdicts that hold, one an item, and adds {items, done}; a reviewer's counts their own reads and adjudications
    in force, and adds {skipped, flagged, undone, late}. average_minutes is that of these verdicts; minutes is all
    active time, also of what was skipped, undone, late or read twice.
    """
    items = {row["item_id"]: row for row in transaction.items(("item_id", "iteration", "kind", "reads"))}
    events = transaction.events()
    holds = {row["event_id"]: row for row in transaction.outcomes() if row["event_id"] is not None}
    iterations, people = transaction.iterations(), transaction.reviewers()
    for event in events:
        event["kind"] = items[event["item_id"]]["kind"]
        event["iteration"] = items[event["item_id"]]["iteration"]
    given = [event for event in events if event["counts"] and event["action"] in ACTIONS]
    pairs = _pairs(given, items)

    def row(own: list[dict], verdicts: list[dict], reads: list[tuple[dict, dict]], annotations: int) -> dict:
        minutes = {"minutes": sum(event["seconds"] for event in own) / 60}
        both = [(first["kind"], first["meaning"], second["meaning"]) for first, second in reads]
        return table3(verdicts, annotations) | minutes | {"double_reads": agreement(both)}

    def of_iterations(numbers: set[int]) -> dict:
        annotations = sum(known["annotations"] for known in iterations if known["iteration"] in numbers)
        own = [event for event in events if event["iteration"] in numbers]
        verdicts = [event for event in own if event["event_id"] in holds]
        reads = [pair for pair in pairs if pair[0]["iteration"] in numbers]
        count = sum(item["iteration"] in numbers for item in items.values())
        return row(own, verdicts, reads, annotations) | {"items": count, "done": len(verdicts)}

    def of_reviewer(person: dict) -> dict:
        own = [event for event in events if event["reviewer"] == person["name"]]
        reads = [pair for pair in pairs if person["name"] in (pair[0]["reviewer"], pair[1]["reviewer"])]
        verdicts = [event for event in given if event["reviewer"] == person["name"]]
        done = Counter(event["action"] for event in own if event["counts"] or event["action"] == "undo")
        late = sum(event["late"] for event in own)
        numbers = {"skipped": done["skip"], "flagged": done["flag"], "undone": done["undo"], "late": late}
        known = {name: person[name] for name in ("name", "role", "simulated", "active")}
        return known | row(own, verdicts, reads, sum(known["annotations"] for known in iterations)) | numbers

    numbers = [known["iteration"] for known in iterations]
    return {
        "total": of_iterations(set(numbers)),
        "iterations": [{"iteration": number} | of_iterations({number}) for number in numbers],
        "reviewers": [of_reviewer(person) for person in people],
    }


def _pairs(given: list[dict], items: dict[int, dict]) -> list[tuple[dict, dict]]:
    """The two reads in force of each item that has both, in their order."""
    reads = defaultdict(list)
    for event in given:
        if event["stage"] == "read" and items[event["item_id"]]["reads"] == 2:
            reads[event["item_id"]].append(event)
    return [(both[0], both[1]) for both in reads.values() if len(both) == 2]


def _rounded(ends: Sequence[float]) -> list[float]:
    return [round(float(end), 6) for end in ends]
