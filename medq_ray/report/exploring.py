"""What exploring did, for the page: how good the clusters are, how the budget was split, what was asked."""

from collections import Counter

from medq_ray.questions import LETTERS
from medq_ray.report.reading import RunFiles
from medq_ray.report.text import capability_words, words

SHOWN = 12
"""Shares of an iteration that are shown, the largest first."""


def quality(run: RunFiles, t: int) -> list[dict]:
    """One row a modality: whether its clusters are better than chance."""
    found = run.json(f"iter-{t:02d}/evaluate/clusters.json") or {}
    return [{"modality": words(name), **row, "unsure": row["p"] is not None and row["p"] > 0.05}
            for name, row in found.items()]  # fmt: skip


def budget(run: RunFiles) -> list[dict]:
    """One entry an iteration that split a budget: its shares, and how many smaller ones there are."""
    chapters = []
    for row in run.summary["iterations"]:
        shares = run.table(f"iter-{row['t']:02d}/explore/shares.parquet")
        shares.sort(key=lambda share: (-share["quota"], -share["drawn"], share["name"]))
        largest = max((max(share["quota"], share["drawn"]) for share in shares), default=0)
        if largest:
            rows = [share | {"words": capability_words(share["name"]) if ":" in share["name"] else share["name"],
                             "quota_part": share["quota"] / largest, "drawn_part": share["drawn"] / largest}
                    for share in shares[:SHOWN]]  # fmt: skip
            chapters.append({"t": row["t"], "rows": rows, "others": len(shares[SHOWN:]),
                             "drawn": sum(share["drawn"] for share in shares)})  # fmt: skip
    return chapters


def asked(run: RunFiles) -> list[dict]:
    """One row for each kind of question: how many were asked, how its right answers are spread, what was dropped."""
    questions, dropped = [], []
    for row in run.summary["iterations"]:
        folder = f"iter-{row['t']:02d}/explore"
        questions += run.table(f"{folder}/questions.parquet")
        dropped += run.table(f"{folder}/dropped.parquet")
    rows = []
    kinds = [question["kind"] for question in questions] + [drop["id"].partition("-")[2] for drop in dropped]
    for kind in dict.fromkeys(kinds):
        own = [question for question in questions if question["kind"] == kind]
        answers = Counter(question["answer"] for question in own if question["answer"] in tuple(LETTERS))
        names = {"A": "Yes", "B": "No"} if kind == "yes_no" else {}
        reasons = Counter(drop["reason"] for drop in dropped if drop["id"].endswith(f"-{kind}"))
        rows.append({
            "kind": words(kind), "count": len(own), "dropped": sum(reasons.values()),
            "reason": reasons.most_common(1)[0][0] if reasons else "",
            "free": kind == "description",
            "said": ", ".join(f"{said} {100 * n / len(own):.0f} %" for said, n in in_words(own).most_common(3)),
            "answers": [(names.get(letter, letter), answers[letter] / answers.total()) for letter in sorted(answers)],
        })  # fmt: skip
    return rows


def in_words(questions: list[dict]) -> Counter:
    """How often each option is the right answer; letters say nothing about what is taught."""
    known = [question for question in questions if question["options"] and question["answer"] in tuple(LETTERS)]
    return Counter(question["options"][LETTERS.index(question["answer"])] for question in known)
