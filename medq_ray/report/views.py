"""From the run's tables to what each section of the page shows: plain dicts and lists for the template."""

import json
import re
from collections import Counter
from collections.abc import Callable

import yaml

from medq_ray.config import Config
from medq_ray.ledger import Ledger
from medq_ray.report import charts
from medq_ray.report.reading import RunFiles
from medq_ray.report.text import interval, kinds_of, p_value, percent, rejected, served, words
from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES, SEVERITIES

GROUPS = (
    ("by_kind", "question"),
    ("by_scope", "degradation"),
    ("by_severity", "severity"),
    ("by_modality", "modality"),
)
"""Axes of metrics.json that the base and the checkpoint that serves are compared by, with their headings."""
STRETCH = 10
"""Training steps that the loss curve averages."""
SEVERITY_WORDS = {"none": "no degradation"}
PAPER = {  # Table 3 of the paper: cold start and later iterations
    "human review rate": ("100 %", "18 %"),
    "accepted": ("63 %", "–"),
    "edited": ("29 %", "–"),
    "rejected": ("8 %", "–"),
    "time an item": ("0.5 min", "0.5 min"),
}


def headline(run: RunFiles) -> dict:
    """The result in one sentence and its numbers."""
    rows, (serving, compared) = run.summary["iterations"], served(run.summary)
    first, last = rows[0]["test"], rows[serving]["test"]
    low, high = (100 * bound for bound in compared["ci95"])
    difference = 100 * compared["difference"]
    picks = [pick for row in rows[:serving] for pick in selected(run, row["t"])]
    return {
        "base": percent(first["accuracy"]),
        "last": percent(last["accuracy"]),
        "verb": "rose" if difference > 0 else "fell" if difference < 0 else "changed",
        "size": f"{abs(difference):.1f}",
        "interval": f"{low:+.1f} to {high:+.1f}".replace("-", "−"),
        "p": p_value(compared["p_mcnemar"]),
        "settled": compared["p_mcnemar"] < 0.05,
        "n": compared["n"],
        "trainings": len(rows) - 1,  # what the last row trained is not yet evaluated
        "promoted": serving > 0,
        "images": len(picks),
        "targeted": sum(pick["strategy"] != "random" for pick in picks),
        "gained": compared.get("gained"),
        "lost": compared.get("lost"),
    }


def selected(run: RunFiles, t: int) -> list[dict]:
    """The images that iteration t selected."""
    return run.table(f"iter-{t:02d}/explore/selection.parquet")


def simulated(run: RunFiles) -> list[str]:
    """What in this run stands for something real, in words; empty for a run on real images, oracle and experts."""
    stand_ins = []
    if run.truth:
        stand_ins.append("the images' degradations and their ground truth (a synthetic world)")
    annotations = run.table("iter-00/annotate/annotations.parquet")
    if any(row["oracle_simulated"] for row in annotations):
        stand_ins.append("the oracle that annotates (it knows the truth and errs at set rates)")
    if any(row["simulated"] for row in run.table("iter-00/review/verdicts.parquet")):
        stand_ins.append("the expert who reviews")
    return stand_ins


def progress(run: RunFiles) -> dict:
    """The drawings of section 1."""
    rows, (serving, _) = run.summary["iterations"], served(run.summary)
    groups = []
    for axis, heading in GROUPS:
        base, last = (row["test"].get(axis, {}) for row in (rows[0], rows[serving]))
        order = [*kinds_of(run.summary), *SEVERITIES, "general", "specific", *MODALITIES]
        pairs = [
            (SEVERITY_WORDS.get(name, words(name)), base[name], last[name])
            for name in order
            if name in base and name in last and None not in (base[name]["accuracy"], last[name]["accuracy"])
        ]
        if pairs:
            groups.append((heading, pairs))
    return {
        "main": charts.progress(rows),
        "kinds": [(words(k), charts.progress(rows, k, width=250, height=165)) for k in kinds_of(run.summary)],
        "groups": charts.dumbbells(groups) if groups and serving else None,
    }


def accuracies(run: RunFiles) -> dict:
    """Rows of the accuracy table: (t, checkpoint, whether it was rejected, split, n, cells)."""
    kinds = kinds_of(run.summary)

    def cell(score: dict | None) -> tuple[str, str] | None:
        if score is None or score["accuracy"] is None:
            return None
        return percent(score["accuracy"]), interval(score["ci95"])

    rows = [
        {"t": row["t"], "checkpoint": row["checkpoint"], "rejected": rejected(row), "split": split,
         "n": row[split]["n"],
         "cells": [cell(row[split]), *(cell(row[split]["by_kind"].get(kind)) for kind in kinds)]}
        for row in run.summary["iterations"]
        for split in ("dev", "test")
    ]  # fmt: skip
    return {"heads": ["perception", *map(words, kinds)], "rows": rows}


def promotions(run: RunFiles) -> dict:
    """What serves, and why each checkpoint was promoted or not: (t, sentence)."""
    rows, (serving, _) = run.summary["iterations"], served(run.summary)
    reasons = [(row["t"], row["promotion"]["why"]) for row in rows if row.get("promotion")]
    return {"serving": rows[serving]["checkpoint"], "t": serving, "reasons": reasons}


def work(run: RunFiles) -> list[dict]:
    """What each iteration did: failures, prototypes, selection, routes, verdicts, drops, samples, seconds."""

    def listed(counts: dict | None) -> list[tuple[str, str]]:
        numbers = {k: v for k, v in (counts or {}).items() if isinstance(v, int | float) and v}
        return [(words(name), f"{count:,}") for name, count in sorted(numbers.items(), key=lambda item: -item[1])]

    rows = []
    for row in run.summary["iterations"]:
        folder, picks = f"iter-{row['t']:02d}", selected(run, row["t"])
        failures = run.columns(f"{folder}/evaluate/failures.parquet")
        prototypes = run.columns(f"{folder}/evaluate/prototypes.parquet")
        rows.append({
            "t": row["t"], "last": "trained_on" not in row,
            "failures": "–" if failures is None else failures.num_rows,
            "prototypes": "–" if prototypes is None else prototypes.num_rows,
            "images": len(picks), "random": sum(pick["strategy"] == "random" for pick in picks),
            "routes": listed(row.get("routes")), "verdicts": listed(row.get("verdicts")),
            "dropped": listed(row.get("dropped")), "trained_on": row.get("trained_on"),
            "seconds": round(sum(row["seconds"].values())),
        })  # fmt: skip
    return rows


def losses(run: RunFiles) -> str | None:
    """The training loss of every fine-tuning, by STRETCH steps: single steps of a dozen samples hide the trend."""
    curves = []
    for row in run.summary["iterations"]:
        path = run.root / f"iter-{row['t']:02d}" / "evolve" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        stretches = [lines[start : start + STRETCH] for start in range(0, len(lines), STRETCH)]
        points = [(part[-1]["step"], sum(line["loss"] for line in part) / len(part)) for part in stretches]
        if points:
            curves.append((f"t = {row['t']}", points))
    return charts.losses(curves) if curves else None


def heat(run: RunFiles) -> dict:
    """e_k of the cells: columns in blocks (everyday degradations first), one body of rows an iteration."""
    specific = [name for modality in MODALITIES for name in DEGRADATIONS[modality] if name not in EVERYDAY]
    columns = ["none", *EVERYDAY, *dict.fromkeys(specific)]
    bodies = []
    for row in run.summary["iterations"]:
        rates = run.json(f"iter-{row['t']:02d}/evaluate/rates.json") or {}
        lines = [(words(m), [cell(rates.get(f"cell:{m}/{name}"), m, name) for name in columns]) for m in MODALITIES]
        bodies.append({"t": row["t"], "rejected": rejected(row), "lines": lines})
    return {"columns": [words(name) if name != "none" else "clean" for name in columns],
            "everyday": len(EVERYDAY), "specific": len(columns) - len(EVERYDAY) - 1, "bodies": bodies}  # fmt: skip


def cell(rate: dict | None, modality: str, degradation: str) -> dict | None:
    if rate is None:
        return None
    title = f"{words(modality)}, {words(degradation)}: {rate['failures']} of {rate['questions']} questions fail"
    return {"e": rate["e"], "text": f"{100 * rate['e']:.0f}", "title": title}


def composition(run: RunFiles) -> dict | None:
    """Shares of the pool and of each iteration's selection: by modality, and by true cell where the truth is known."""
    pool = [row["image_id"] for row in run.pool]
    picks = {}
    for row in run.summary["iterations"]:
        if selection := selected(run, row["t"]):
            picks[row["t"]] = selection
    if not pool or not picks:
        return None
    chosen = [pick for selection in picks.values() for pick in selection]
    modality_of = {row["image_id"]: row["modality"] for row in run.pool}
    view = {
        "modality": compare(Counter(modality_of.values()), Counter(pick["modality"] for pick in chosen), words),
        "chosen": len(chosen), "pool": len(pool),
    }  # fmt: skip
    if run.truth:
        known = [pick for pick in chosen if pick["image_id"] in run.truth]
        cells = [cell_of(run.truth[image]) for image in pool if image in run.truth]
        view["cells"] = compare(Counter(cells), Counter(cell_of(run.truth[p["image_id"]]) for p in known), cell_words)
        view["scopes"] = [("pool", scopes([scope_of(run.truth[i]) for i in pool if i in run.truth]))] + [
            (f"t = {t}, {words(strategy)}", scopes([
                scope_of(run.truth[p["image_id"]]) for p in selection
                if p["strategy"] == strategy and p["image_id"] in run.truth]))
            for t, selection in picks.items() for strategy in sorted({p["strategy"] for p in selection})
        ]  # fmt: skip
    return view


def compare(pool: Counter, chosen: Counter, name: Callable[[str], str]) -> list[dict]:
    """Shares of each group in pool and selection, rarest in the pool last, and how many times enriched it is."""
    totals = sum(pool.values()), max(1, sum(chosen.values()))
    rows = []
    for group, count in sorted(pool.items(), key=lambda item: (-item[1], item[0])):
        before, after = count / totals[0], chosen[group] / totals[1]
        rows.append({"name": name(group), "pool": before, "chosen": after, "factor": after / before})
    return rows


def cell_of(truth: dict) -> str:
    return f"{truth['modality']}/{truth['degradation']}"


def cell_words(cell: str) -> str:
    modality, _, degradation = cell.partition("/")
    return f"{words(modality)} · {'clean' if degradation == 'none' else words(degradation)}"


def scope_of(truth: dict) -> str:
    if truth["degradation"] == "none":
        return "clean"
    return "everyday" if truth["degradation"] in EVERYDAY else "specific"


def scopes(values: list[str]) -> list[tuple[str, float]]:
    counts = Counter(values)
    return [(name, counts[name] / max(1, len(values))) for name in ("clean", "everyday", "specific")]


def verdicts(run: RunFiles) -> dict | None:
    """Table 3 of the paper for this run: one column an iteration, the paper's two beside them."""
    columns, reviewers = [], set()
    for row in run.summary["iterations"]:
        folder = f"iter-{row['t']:02d}"
        annotations = run.table(f"{folder}/annotate/annotations.parquet")
        given = run.table(f"{folder}/review/verdicts.parquet")
        if not annotations:
            continue
        kept = max(1, sum(a["route"] != "dropped" for a in annotations))
        actions = Counter(v["action"] for v in given)
        reviewers |= {(v["reviewer"], v["simulated"]) for v in given}
        oracle = next((a["oracle_model"] for a in annotations if a["oracle_model"]), "–")
        shares = {name: f"{100 * actions[key] / len(given):.0f} %" if given else "–"
                  for name, key in (("accepted", "accept"), ("edited", "edit"), ("rejected", "reject"))}  # fmt: skip
        minutes = sum(v["seconds"] for v in given) / 60
        columns.append({
            "t": row["t"], "annotations": f"{len(annotations):,}",
            "annotated by": f"{oracle}" if row["t"] == 0 else f"self + {oracle}",
            "human review rate": f"{100 * len(given) / kept:.0f} %", **shares,
            "time an item": f"{minutes / len(given):.1f} min" if given else "–",
            "reviewer time": f"{minutes / 60:.1f} h",
        })  # fmt: skip
    if not columns:
        return None
    names = [name for name in columns[0] if name != "t"]
    return {
        "heads": [f"t = {column['t']}" for column in columns],
        "rows": [(name, [column[name] for column in columns], PAPER.get(name)) for name in names],
        "simulated": any(flag for _, flag in reviewers),
    }


def costs(run: RunFiles) -> dict:
    """The ledger by iteration, and seconds by phase. Simulated expenses keep their mark and are in no real sum."""
    rows = run.summary["iterations"]
    ledger = Ledger(run.root / "ledger.jsonl")
    total = ledger.total() or {key: 0 for row in rows for key in row.get("cost", {})}
    by_iteration = [row.get("cost") or ledger.total(f"iter-{row['t']:02d}/") for row in rows]
    phases = list(dict.fromkeys(phase for row in rows for phase in row["seconds"]))
    phases.sort(key=lambda phase: ("evaluate", "explore", "annotate", "review", "evolve").index(phase))
    longest = max(sum(row["seconds"].values()) for row in rows) or 1
    return {
        "heads": [row["t"] for row in rows],
        "rows": [
            (re.sub(r"(\w+) \(\1\)", r"\1", name.replace(", simulated", "")), "simulated" in name,
             [amount(cost[name]) if name in cost else "" for cost in by_iteration], amount(total[name]))
            for name in total
        ],
        "phases": phases,
        "seconds": [(row["t"], [(p, row["seconds"].get(p, 0), row["seconds"].get(p, 0) / longest) for p in phases],
                     sum(row["seconds"].values())) for row in rows],
    }  # fmt: skip


def amount(number: float) -> str:
    """Whole, but for little money."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:,.4g}"


def settings(run: RunFiles) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """run.yaml by section: (field, value, what the field means)."""
    path = run.root / "run.yaml"
    data = yaml.safe_load(path.read_text()) if path.exists() else {}
    sections = []
    for name, values in data.items():
        if isinstance(values, dict) and name in Config.model_fields:
            fields = Config.model_fields[name].annotation.model_fields
            meaning = {field: (info.description or "").replace("\n", " ") for field, info in fields.items()}
            rows = [(field, shown(value), meaning.get(field, "")) for field, value in values.items()]
            sections.append((name, rows))
    return sections


def shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
