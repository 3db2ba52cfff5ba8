"""A complete run directory without a run: every table true to schema.py, every number made up from a seed.

    python tests/report/fake_run.py OUT [--pool N]

Images are real ones of the synthetic world. For looking at the report and for its tests, nothing else.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from medq_ray import questions as ask
from medq_ray.artifacts import Run, write_json, write_table
from medq_ray.config import Config, Explore, Loop
from medq_ray.ledger import Ledger
from medq_ray.promotion import decide, named
from medq_ray.review.stats import audit
from medq_ray.schema import (
    ANNOTATION, DEGRADATIONS, DROP, EVERYDAY, FAILURE, HIT, KINDS, MODALITIES, PROTOTYPE, QUESTION, SAMPLE, SCORE,
    POOL_IMAGE, SELECTION, SHARE, TRUTH, VERDICT,
)  # fmt: skip
from medq_ray.synthetic.world import make_image

VERDICTS = ["accept", "edit", "reject"]


def build(
    root: Path, *, pool: int = 60, dev: int = 30, iterations: int = 2, size: int = 56, seed: int = 0, rejected: set = frozenset()
) -> Path:
    """Write the run directory `root`/run (beside its world `root`/world) and return it. rejected: iterations whose
    checkpoint is not promoted."""
    rng = np.random.default_rng(seed)
    world, run = root / "world", root / "run"
    images = [make(world, "pool", i, rng, size) for i in range(pool)]
    images += [make(world, "dev", i, rng, size) for i in range(dev)]
    write_table(world / "truth.parquet", [{**row, "parameters": "{}"} for row in images], TRUTH)
    write_table(run / "pool" / "images.parquet", [{k: r.get(k) for k in POOL_IMAGE.names} for r in images], POOL_IMAGE)
    config = Config(recipe="demo", seed=seed, explore=Explore(budget=24), loop=Loop(max_iterations=max(1, iterations)))
    run.joinpath("run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    ledger, rows = Ledger(run / "ledger.jsonl"), []
    serving = 0
    by_split = {split: [row for row in images if row["split"] == split] for split in ("pool", "dev")}
    for t in range(iterations + 1):
        row, prototypes = evaluated(run / f"iter-{t:02d}", t, by_split["dev"], rng)
        row["promotion"] = promotion(run, serving, t, t in rejected) if t else None
        serving = serving if t in rejected else t
        ledger.add(step=f"iter-{t:02d}/evaluate", what="model output", amount=48213 - 900 * t, unit="tokens")
        if t < iterations:
            row |= improved(run / f"iter-{t:02d}", t, prototypes, by_split["pool"], rng)
            ledger.add(step=f"iter-{t:02d}/annotate", what="oracle money", amount=0.0912, unit="money", simulated=True)
            ledger.add(step=f"iter-{t:02d}/review", what="reviewer", amount=2700, unit="seconds", simulated=True)
        row["cost"] = ledger.total(f"iter-{t:02d}/")
        rows.append(row)
    write_json(run / "summary.json", {
        "recipe": "demo", "seed": seed, "world": str(world), "world_kind": "synthetic", "iterations": rows,
        "serving": named(serving),
        "comparison": {"base_to_serving": {"difference": 0.193, "ci95": [0.152, 0.234], "p_mcnemar": 3.1e-16, "n": 900,
                                           "gained": 241, "lost": 67},
                       "base_to_last": {"difference": 0.1, "ci95": [0.05, 0.15], "p_mcnemar": 1e-5, "n": 900,
                                        "gained": 200, "lost": 110}},
        "stopped": "max_iterations",
    })  # fmt: skip
    return run


def promotion(run: Path, serving: int, t: int, worse: bool) -> dict:
    """iter-TT/promote: 12 points more than what served, or 3 less."""
    numbers = {"difference": -0.03, "ci95": [-0.07, 0.01], "gained": 9, "lost": 22} if worse else \
        {"difference": 0.12, "ci95": [0.08, 0.16], "gained": 70, "lost": 16}  # fmt: skip
    fell = {"cell:ct/ring": {"moved": "down"}} if worse else {}
    found = decide(numbers | {"p_mcnemar": 0.02, "n": 450, "unanswered": 0, "capabilities": fell}, serving, t)
    Run(run).step(f"iter-{t:02d}/promote", lambda folder: write_json(folder / "decision.json", found), settings={}, inputs={})
    return found


def make(world: Path, split: str, number: int, rng: np.random.Generator, size: int) -> dict:
    """One image with its truth; the pool is long-tailed, dev is balanced over cells."""
    modality = MODALITIES[number % 5]
    names = list(DEGRADATIONS[modality])
    kind = rng.random() if split == "pool" else 0.99
    if kind < 0.6:
        degradation, severity = "none", "none"
    else:
        degradation = str(rng.choice([n for n in names if n in EVERYDAY] if kind < 0.8 else names))
        severity = str(rng.choice(["mild", "severe"]))
    pixels, truth = make_image(modality, degradation, severity, seed=number, size=size)
    path = world / split / f"{number:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return {"image_id": f"{split}{number:05d}", "uri": str(path), "split": split, "modality": modality,
            "source": "synthetic", "patient": f"p{number}", "session": "s0", "anatomy": truth["anatomy"],
            "degradation": degradation, "severity": severity, "base": "phantom"}  # fmt: skip


def share(rate: float, n: int) -> dict:
    half = 1.96 * (rate * (1 - rate) / n) ** 0.5
    return {"accuracy": round(rate, 4), "ci95": [round(max(0, rate - half), 4), round(min(1, rate + half), 4)], "n": n}


def accuracy(t: int, n: int, rng: np.random.Generator) -> dict:
    rates = {"yes_no": 0.66, "what": 0.44, "how": 0.49, "description": 0.28}
    by_kind = {k: share(min(0.97, r + 0.1 * t + rng.normal(0, 0.015)), n // 3) for k, r in rates.items()}
    overall = float(np.mean([by_kind[kind]["accuracy"] for kind in KINDS[:3]]))
    severity = {name: share(overall + d, n // 3) for name, d in (("none", 0.15), ("mild", -0.12), ("severe", 0.02))}
    scope = {name: share(overall + d, n // 2) for name, d in (("general", 0.1), ("specific", -0.14 + 0.06 * t))}
    modality = {name: share(overall + rng.normal(0, 0.04), n // 5) for name in MODALITIES}
    return share(overall, n) | {"unparsed": 0.004, "by_kind": by_kind, "by_severity": severity, "by_scope": scope,
                                "by_modality": modality}  # fmt: skip


def evaluated(folder: Path, t: int, dev: list[dict], rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """iter-TT/evaluate: rates over every cell, failures of the specific ones, one prototype a modality."""
    rates, failures = {}, []
    for modality, names in DEGRADATIONS.items():
        for name in ("none", *names):
            start = 0.15 if name in (*EVERYDAY, "none") else 0.75
            e = float(np.clip(start - 0.2 * t + rng.normal(0, 0.1), 0, 1))
            rates[f"cell:{modality}/{name}"] = {"e": round(e, 3), "failures": round(20 * e), "questions": 20}
    for kind in KINDS:
        rates[f"kind:{kind}"] = {"e": 0.4 - 0.1 * t, "failures": 20, "questions": 50}
    for i, image in enumerate(dev):
        if image["degradation"] in EVERYDAY:
            continue
        text, options = ask.what(image["modality"], ask.offered_with(image["modality"], image["degradation"], rng), rng)
        failures.append({
            "question_id": f"q{i:05d}", "image_id": image["image_id"], "uri": image["uri"], "kind": KINDS[i % 3],
            "modality": image["modality"], "text": text, "expected": image["degradation"].replace("_", " "),
            "given": next(o for o in options if o != image["degradation"].replace("_", " ")),
            "error_rate": 0.8 + 0.2 * (i % 2),
            "capabilities": ask.capabilities(KINDS[i % 3], image["modality"], image["degradation"], image["severity"]),
        })  # fmt: skip
    groups = [[f for f in failures if f["modality"] == modality] for modality in MODALITIES]
    prototypes = [prototype(number, members) for number, members in enumerate(groups) if members]
    out = folder / "evaluate"
    write_table(out / "failures.parquet", failures, FAILURE)
    write_table(out / "prototypes.parquet", prototypes, PROTOTYPE)
    quality = {"failures": 20, "prototypes": 2, "silhouette": 0.4, "chance": 0.1, "p": 0.05, "agreement": 0.8}
    few = quality | {"silhouette": None, "chance": None, "p": None}
    write_json(out / "clusters.json", {"mri": quality, "ct": quality | {"p": 0.4}, "fundus": few})
    write_json(out / "rates.json", rates)
    scores = [{"question_id": f["question_id"], "kind": f["kind"], "modality": f["modality"], "patient": f["image_id"],
               "capabilities": f["capabilities"], "right": [True, *[False] * 4], "wrong": 4, "unparsed": 0, "failed": 0,
               "error_rate": 0.8, "failure": True} for f in failures]  # fmt: skip
    write_table(out / "scores.parquet", scores, SCORE)
    write_table(out / "test_scores.parquet", scores, SCORE)
    checkpoint = "base" if t == 0 else f"iter-{t - 1:02d}/evolve/checkpoint"
    metrics = {"dev": accuracy(t, 450, rng), "test": accuracy(t, 900, rng)}
    write_json(out / "metrics.json", metrics)
    return {"t": t, "checkpoint": checkpoint, **metrics, "failures": len(failures), "prototypes": len(prototypes),
            "seconds": {"evaluate": 61.4}}, prototypes  # fmt: skip


def prototype(number: int, members: list[dict]) -> dict:
    names = sorted({c for m in members for c in m["capabilities"]})
    mixture = {c: sum(c in m["capabilities"] for m in members) / len(members) for c in names}
    return {"prototype_id": number, "size": len(members), "members": [m["question_id"] for m in members],
            "medoid": members[0]["image_id"], "medoid_uri": members[0]["uri"], "silhouette": 0.41, "cohesion": 0.87,
            "capabilities": list(mixture.items()), "visual": [1.0, 0.0]}  # fmt: skip


def improved(folder: Path, t: int, prototypes: list[dict], pool: list[dict], rng: np.random.Generator) -> dict:
    """iter-TT/{explore,annotate,review,evolve}: the degraded images of a prototype's modality are retrieved."""
    hits, selection = [], []
    for p in prototypes:
        modality = MODALITIES[p["prototype_id"]]
        alike = [row for row in pool if row["modality"] == modality]
        near = [row for row in alike if row["degradation"] != "none" or rng.random() < 0.2]
        for k, row in enumerate(near):
            similarity = 0.97 - 0.2 * k / len(near)
            hits.append({"image_id": row["image_id"], "prototype_id": p["prototype_id"], "similarity": similarity})
            if k % 3 != 2:
                selection.append({**pick(row), "strategy": "failure_driven", "similarity": similarity,
                                  "capability": f"cell:{modality}/{row['degradation']}",
                                  "prototype_id": p["prototype_id"]})  # fmt: skip
    selection += [{**pick(row), "strategy": "random", "capability": "", "prototype_id": None, "similarity": None}
                  for row in pool[t :: max(2, len(pool) // 8)]]  # fmt: skip
    questions = [question(row, kind, rng) for row in selection for kind in KINDS]
    routes = ["cold_start"] * len(questions) if t == 0 else \
        rng.choice(["oracle", "expert", "self", "dropped"], len(questions), p=[0.3, 0.2, 0.45, 0.05]).tolist()
    annotations = [{
        "question_id": q["question_id"], "image_id": q["image_id"], "oracle_text": "A",
        "oracle_model": "simulated-oracle", "oracle_simulated": True, "self_text": "AB"[int(rng.random() < 0.4)],
        "self_model": f"iteration-{t}", "entropy": float(rng.random()), "agreement": float(rng.random() < 0.6),
        "tau_entropy": None if t == 0 else 0.3, "route": route, "reason": "made up",
        "audit": route in ("oracle", "self") and rng.random() < 0.1, "label": "A", "labelled_by": "oracle",
    } for q, route in zip(questions, routes, strict=True)]  # fmt: skip
    verdicts = [{
        "question_id": a["question_id"], "image_id": a["image_id"],
        "action": str(rng.choice(VERDICTS, p=[0.63, 0.29, 0.08])), "before": "A", "after": "A", "reviewer": "simulated-expert", "simulated": True, "seconds": 30.0,
    } for a in annotations if a["route"] in ("cold_start", "expert") or a["audit"]]  # fmt: skip
    later = {"tau_entropy": 0.3, "tau_agreement": 0.7, "dead_band": 0.01,
             "noise": {"samples": 40, "flips": 1, "flips_without_band": 2, "moved_95": 0.004}}  # fmt: skip
    write_json(folder / "annotate" / "routes.json", {"iteration": t, "expert_share": 1.0 if t == 0 else 0.2, "audits": 9}
               | (later if t else {}))  # fmt: skip
    write_json(folder / "review" / "stats.json", {"audit": audit(annotations, verdicts)})
    samples = [{
        "question_id": q["question_id"], "image_id": q["image_id"], "uri": q["uri"], "kind": q["kind"],
        "modality": q["modality"], "prompt": q["text"], "options": q["options"], "answer": "A", "route": "cold_start", "labelled_by": "oracle",
        "simulated": True, "iteration": t,
    } for q in questions[: int(len(questions) * 0.8)]]  # fmt: skip
    drops = [{"id": q["question_id"], "step": ("rejected", "phash", "tfidf")[i % 3], "reason": "made up", "keeper": ""}
             for i, q in enumerate(questions[len(samples) :])]  # fmt: skip
    write_table(folder / "explore" / "retrieved.parquet", hits, HIT)
    write_table(folder / "explore" / "selection.parquet", selection, SELECTION)
    write_table(folder / "explore" / "questions.parquet", questions, QUESTION)
    paid = sorted({row["capability"] for row in selection} - {""})
    shares = [{"name": name, "error_rate": 0.5, "weight": 1 / len(paid), "quota": 3, "look_alikes": 9,
               "drawn": sum(row["capability"] == name for row in selection)} for name in paid]  # fmt: skip
    write_table(folder / "explore" / "shares.parquet", shares, SHARE)
    refused = [{"id": f"{row['image_id']}-what", "step": "question", "reason": "two options are the same", "keeper": ""}
               for row in selection[:2]]  # fmt: skip
    write_table(folder / "explore" / "dropped.parquet", refused, DROP)
    write_table(folder / "annotate" / "annotations.parquet", annotations, ANNOTATION)
    write_table(folder / "review" / "verdicts.parquet", verdicts, VERDICT)
    write_table(folder / "evolve" / "train" / "samples.parquet", samples, SAMPLE)
    write_table(folder / "evolve" / "dropped.parquet", drops, DROP)
    losses = [{"step": i, "epoch": 0, "loss": 4 / (1 + i / 8) + 0.1 * float(rng.random())} for i in range(60)]
    (folder / "evolve" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))
    drawn = sum(row["strategy"] == "random" for row in selection)
    return {
        "selected": {"retrieved": len(hits), "selected": len(selection), "targeted": len(selection) - drawn},
        "routes": {route: routes.count(route) for route in sorted(set(routes))},
        "verdicts": {action: sum(v["action"] == action for v in verdicts) for action in VERDICTS},
        "dropped": {step: sum(d["step"] == step for d in drops) for step in ("phash", "rejected", "tfidf")},
        "trained_on": len(samples),
        "seconds": {"evaluate": 61.4, "explore": 2.1, "annotate": 20.7 + 11 * t, "review": 0.4, "evolve": 74.9},
    }


def pick(row: dict) -> dict:
    return {key: row[key] for key in ("image_id", "uri", "modality", "patient")}


def question(row: dict, kind: str, rng: np.random.Generator) -> dict:
    text, options = ask.how(row["modality"], True, rng)
    options, answer = ([], text) if kind == "description" else (options, "A")
    return {"question_id": f"{row['image_id']}-{kind}", "image_id": row["image_id"], "uri": row["uri"], "kind": kind,
            "scope": "general", "modality": row["modality"], "text": text, "options": options, "answer": answer,
            "capabilities": []}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pool", type=int, default=600)
    arguments = parser.parse_args()
    sys.stdout.write(f"{build(arguments.out, pool=arguments.pool, dev=150, size=112)}\n")
