"""What labels cost and how good they are, for the page: errors against the truth, audits, curves, money and minutes."""

from pathlib import Path

import numpy as np

from medq_ray.annotate import calibrate
from medq_ray.labels import says_same
from medq_ray.ledger import Ledger
from medq_ray.report import charts
from medq_ray.report.reading import RunFiles
from medq_ray.report.text import interval, percent
from medq_ray.synthetic.truth import gold

RESAMPLED = 2_000
"""Bootstrap samples of an interval."""
ENGINE_PHASES = ("evaluate", "explore", "annotate", "evolve")
"""Whose wall time is that of an engine."""


def errors(run: RunFiles) -> list[dict]:
    """One row an iteration, where the truth is known: the share of the oracle's answers that are wrong, that of the
    labels that entered training, and the second over the first, each with an interval."""
    if not run.truth:
        return []
    rows = []
    for row in run.summary["iterations"]:
        folder = f"iter-{row['t']:02d}"
        asked = {q["question_id"]: q for q in run.table(f"{folder}/explore/questions.parquet")}
        annotations = run.table(f"{folder}/annotate/annotations.parquet")
        samples = run.table(f"{folder}/evolve/train/samples.parquet")
        if not asked:
            continue
        said = [(a["image_id"], wrong(asked[a["question_id"]], a["oracle_text"], run.truth)) for a in annotations]
        taught = [(s["image_id"], wrong(asked[s["question_id"]] | {"options": s["options"]}, s["answer"], run.truth))
                  for s in samples if s["iteration"] == row["t"]]  # fmt: skip
        oracle, trained = ([pair for pair in pairs if pair[1] is not None] for pairs in (said, taught))
        if oracle and trained:
            rows.append({"t": row["t"]} | compared(oracle, trained))
    return rows


def wrong(question: dict, label: str, truth: dict[str, dict]) -> bool | None:
    """Whether a label is wrong, None where the truth of its image is not known, no answer is right, or nobody can tell.
    """
    known, second = truth.get(question["image_id"]), truth.get(question.get("second_id") or "")
    if known is None:
        return None
    try:
        right = gold(question, known, second)
    except ValueError:
        return None
    same = says_same(question["kind"], label, right, len(question["options"]))
    return None if same is None else not same


def compared(oracle: list[tuple[str, bool]], trained: list[tuple[str, bool]]) -> dict:
    """Error rates of two lists of (image, wrong), and their ratio; intervals by resampling images, whose questions have
    much in common."""
    images = sorted({image for image, _ in oracle + trained})
    place = {image: number for number, image in enumerate(images)}
    table = np.zeros((len(images), 4))  # wrong and all of the oracle's, wrong and all of those trained on
    for column, pairs in ((0, oracle), (2, trained)):
        for image, failed in pairs:
            table[place[image], column : column + 2] += failed, 1
    draws = np.random.default_rng(0).multinomial(len(images), np.full(len(images), 1 / len(images)), RESAMPLED) @ table
    rates, sums = np.full((RESAMPLED, 2), np.nan), table.sum(axis=0)
    np.divide(draws[:, ::2], draws[:, 1::2], out=rates, where=draws[:, 1::2] > 0)
    first, second = sums[0] / sums[1], sums[2] / sums[3]
    found = {"oracle": shown(first, rates[:, 0]), "trained": shown(second, rates[:, 1]), "ratio": None}
    if first > 0:
        low, high = np.nanquantile(rates[:, 1] / np.where(rates[:, 0] > 0, rates[:, 0], np.nan), [0.025, 0.975])
        found |= {"ratio": f"{second / first:.2f}", "ratio_ci": f"{low:.2f} to {high:.2f}"}
    return found


def shown(rate: float, draws: np.ndarray) -> tuple[str, str]:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return percent(rate), interval([low, high])


def audits(run: RunFiles) -> list[dict]:
    """One row an iteration: of the labels that no expert saw, how many of those that one saw to find out were wrong;
    and how many routes flipped when the model annotated twice."""
    rows = []
    for row in run.summary["iterations"]:
        folder = f"iter-{row['t']:02d}"
        routes, stats = run.json(f"{folder}/annotate/routes.json"), run.json(f"{folder}/review/stats.json")
        if not routes or "noise" not in routes or not stats or "audit" not in stats:
            continue
        cells = {
            route: f"{found['wrong']} of {found['seen']} ({percent(found['ci95'][0])} to {percent(found['ci95'][1])} %)"
            for route, found in stats["audit"].items()
        }
        rows.append({"t": row["t"], "tau": f"{routes['tau_entropy']:.3f}", "share": percent(routes["expert_share"]),
                     "cells": cells, "noise": routes["noise"]})  # fmt: skip
    return rows


def curves(run: RunFiles) -> str | None:
    """The error of labels against the share that experts see, a line for each reviewed iteration, and where it was."""
    lines = []
    for row in run.summary["iterations"]:
        routes = run.json(f"iter-{row['t']:02d}/annotate/routes.json")
        if not routes:
            continue
        try:
            samples = calibrate.reviewed(Path(run.root), row["t"])
        except ValueError:  # not reviewed, or nothing of it accepted
            continue
        points = [(p["expert_share"], p["label_error"]) for p in calibrate.curve(samples)]
        used = None
        if "tau_entropy" in routes:
            here = calibrate.outcome(samples, routes["tau_entropy"], routes["tau_agreement"])
            used = (routes["expert_share"], here["label_error"])
        lines.append((f"t = {row['t']}", points, used))
    return charts.frontier(lines) if lines else None


def value(run: RunFiles) -> list[tuple[str, list[str]]]:
    """What the labels of each iteration cost and brought: (name, a cell for each iteration that trained)."""
    ledger, rows = Ledger(run.root / "ledger.jsonl"), run.summary["iterations"]
    columns = []
    for row, after in zip(rows[:-1], rows[1:], strict=True):
        if "trained_on" not in row:
            continue
        spent = ledger.total(f"iter-{row['t']:02d}/")
        samples = run.table(f"iter-{row['t']:02d}/evolve/train/samples.parquet")
        accepted = sum(sample["iteration"] == row["t"] for sample in samples)
        money = {mark: sum(amount for name, amount in spent.items() if name.endswith(f" money (money{mark})"))
                 for mark in ("", ", simulated")}  # fmt: skip
        paid = money[""] or money[", simulated"]
        minutes = sum(amount for name, amount in spent.items() if name.startswith("reviewer")) / 60
        before = rows[after["promotion"]["against"]["t"]] if after.get("promotion") else row
        both = (after["dev"]["accuracy"], before["dev"]["accuracy"])
        gained = None if None in both else 100 * (both[0] - both[1])
        engine = sum(row["seconds"].get(phase, 0) for phase in ENGINE_PHASES)
        columns.append([
            f"{money['']:.4f}", f"{money[', simulated']:.4f}", f"{engine:,.0f}", f"{minutes:,.0f}",
            f"{accepted:,}", f"{paid / accepted:.6f}" if accepted else "–",
            "–" if gained is None else f"{gained:+.1f}".replace("-", "−"),
            f"{gained / minutes:+.3f}".replace("-", "−") if minutes and gained is not None else "–",
        ])  # fmt: skip
    names = ("oracle and judge, money", "simulated oracle, money", "engine, seconds", "reviewer, minutes",
             "labels that entered training", "money a label", "dev accuracy gained, points",
             "points an expert's minute")  # fmt: skip
    return [(name, [column[i] for column in columns]) for i, name in enumerate(names)] if columns else []
