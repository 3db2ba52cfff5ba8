"""The phase: ask the oracle and the model itself, route every question, write the records."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.annotate.agreement import agreement, judged
from medq_ray.annotate.routing import Opinion, Routed, Thresholds, route, route_cold_start
from medq_ray.annotate.thresholds import affordable
from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.draws import drawn
from medq_ray.labels import readable
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import prompt_of
from medq_ray.schema import ANNOTATION, PROMPT
from medq_ray.synthetic.answers import MODEL as SIMULATED_ORACLE

ORACLE_MAX_TOKENS = 256
"""Longest answer of the oracle in tokens; it may be wordier than the model under training. Our choice."""
NO_ANSWER = {"text": "", "model": "", "entropy": None, "error": "the endpoint was not asked or returned no row"}


class Sample:
    """One question, what was said of it, and what follows."""

    def __init__(self, question: dict, oracle: dict, own: dict, again: dict | None):
        """oracle, own, again: completions; again: of the second time that the model was asked."""
        self.question, self.oracle, self.own, self.again = question, oracle, own, again
        self.kind, self.options = question["kind"], len(question["options"])
        self.theirs, self.mine = self._opinion(oracle), self._opinion(own)
        self.delta = agreement(self.kind, own["text"], oracle["text"], self.options)
        self.twice = None if again is None else agreement(self.kind, again["text"], oracle["text"], self.options)

    def _opinion(self, completion: dict) -> Opinion:
        text = completion["text"]
        return Opinion(text, readable(self.kind, text, self.options), completion["error"])

    def routed(self, tau: Thresholds) -> Routed:
        return route(self.own["entropy"], self.delta, self.theirs, self.mine, tau)

    def routed_again(self, tau: Thresholds) -> Routed:
        """The same by what the model said the second time."""
        return route(self.again["entropy"], self.twice, self.theirs, self._opinion(self.again), tau)


def annotate(
    folder: Path, *, config: Config, iteration: int, questions: pa.Table, ask_oracle: Answer, ask_self: Answer,
    ask_judge: Answer | None = None,
) -> dict:  # fmt: skip
    """Annotate `questions` (schema.QUESTION) by the paper's progressive strategy (Sec. 2.3); return route counts.

    The oracle and the model annotate, the model greedily and with logprobs; a question that the oracle wrote has its
    answer, and is not put to it again. At t = 0 everything goes to review, and what the model said only calibrates
    thresholds later (`annotate.calibrate`). At t > 0 each question takes one route of `annotate.routing`, with the
    tau_H of the settings or a lower one that the experts' share affords. Writes annotations.parquet
    (schema.ANNOTATION, by question id) and routes.json.

    ask_judge: says how far two descriptions agree, where config.annotate.agreement is 'judge'.
    """
    samples = opinions(config, questions, ask_oracle, ask_self)
    if config.annotate.agreement == "judge":
        ask_agreement(samples, config, ask_judge)
    band = config.annotate.dead_band
    band = (moved(samples) or 0.0) if band is None else band
    tau = Thresholds(config.annotate.tau_entropy, config.annotate.tau_agreement, band)
    if iteration > 0:
        tau = afforded(samples, tau, config)
    rows = [record(sample, tau, config, iteration) for sample in samples]
    write_table(folder / "annotations.parquet", rows, ANNOTATION)
    summary = summarise(rows, samples, tau, config, iteration)
    write_json(folder / "routes.json", summary)
    return {"annotations": len(rows), "expert_share": summary["expert_share"], **summary["routes"]}


def opinions(config: Config, questions: pa.Table, ask_oracle: Answer, ask_self: Answer) -> list[Sample]:
    """Every question with what the oracle and the model said, by question id."""
    oracle = oracle_answers(questions, config, ask_oracle)
    sampling = Sampling(n=1, temperature=0.0, max_tokens=config.evaluate.max_tokens, seed=config.seed, logprobs=True)
    own = by_question(ask_self(prompts_of(questions), sampling, "self"))
    twice = pa.array([drawn("again", name, config.annotate.rescored, config.seed)
                      for name in questions["question_id"].to_pylist()], pa.bool_())  # fmt: skip
    again = {}
    if pc.any(twice).as_py():  # another seed changes nothing at temperature 0 but that it is no answer from the cache
        other = replace(sampling, seed=config.seed + 1)
        again = by_question(ask_self(prompts_of(questions.filter(twice)), other, "self, again"))
    return [
        Sample(question, oracle.get(name, NO_ANSWER), own.get(name, NO_ANSWER), again.get(name))
        for question in questions.sort_by("question_id").to_pylist()
        for name in [question["question_id"]]
    ]


def ask_agreement(samples: list[Sample], config: Config, ask_judge: Answer) -> None:
    """Put the judge's R in the place of ours for descriptions; 0 where it gave no score: nothing is confirmed."""
    pairs = {}
    for sample in samples:
        if sample.kind == "description" and sample.theirs.readable is not None:
            name = sample.question["question_id"]
            for key, own in ((name, sample.own), (f"{name}/again", sample.again)):
                if own is not None and readable(sample.kind, own["text"], sample.options) is not None:
                    pairs[key] = (key, own["text"], sample.oracle["text"])
    found = judged(list(pairs.values()), config.judge, ask_judge)
    for sample in samples:
        if sample.kind == "description":
            name = sample.question["question_id"]
            sample.delta = found.get(name, 0.0)
            sample.twice = None if sample.again is None else found.get(f"{name}/again", 0.0)


def oracle_answers(questions: pa.Table, config: Config, ask_oracle: Answer) -> dict[str, dict]:
    """question id -> completion: what the oracle wrote beside its question, or says when it is asked."""
    known = {
        row["question_id"]: NO_ANSWER | {"text": row["answer"], "error": ""}
        for row in questions.to_pylist()
        if row["answer"]
    }
    open_ = questions.filter(pc.equal(questions["answer"], ""))
    if open_.num_rows == 0:
        return known
    sampling = Sampling(n=1, temperature=config.oracle.temperature, max_tokens=ORACLE_MAX_TOKENS, seed=config.seed,
                        logprobs=False)  # fmt: skip
    return by_question(ask_oracle(prompts_of(open_), sampling, "oracle")) | known


def prompts_of(questions: pa.Table) -> pa.Table:
    """schema.PROMPT of each question, by question id."""
    rows = questions.sort_by("question_id").to_pylist()
    return pa.Table.from_pylist([prompt_of(row) for row in rows], schema=PROMPT)


def by_question(completions: pa.Table) -> dict[str, dict]:
    return {row["question_id"]: row for row in completions.to_pylist()}


def audited(sample: Sample, config: Config) -> bool:
    """Whether an expert looks although the route asks for none."""
    return drawn("audit", sample.question["question_id"], config.annotate.audit_share, config.seed)


def afforded(samples: list[Sample], tau: Thresholds, config: Config) -> Thresholds:
    """`tau`, or with the lower tau_H that keeps config.annotate.expert_share; says so."""
    low = [sample.routed(replace(tau, entropy=-np.inf)).route for sample in samples]
    high = [sample.routed(replace(tau, entropy=np.inf, band=0.0)).route for sample in samples]
    forced = np.array([route == "expert" for route in low], bool)
    entropy = np.array([np.nan if sample.own["entropy"] is None else sample.own["entropy"] for sample in samples])
    kept = sum(route != "dropped" for route in low)
    most = int(config.annotate.expert_share * kept)
    draws = [audited(sample, config) and route != "dropped" for sample, route in zip(samples, low, strict=True)]
    disagrees = np.array([route == "expert" for route in high], bool)
    limit = affordable(entropy, disagrees, forced, np.array(draws, bool), most, tau.band)
    if limit >= tau.entropy:
        return tau
    lower = replace(tau, entropy=limit)
    seen = sum(drawn_ or sample.routed(lower).route == "expert" for sample, drawn_ in zip(samples, draws, strict=True))
    over = "" if seen <= most else f", more than annotate.expert_share: {seen:,} have no usable label, or are audited"
    say(f"  tau_H is {limit:.4f} instead of {tau.entropy:g}: experts see {100 * seen / max(1, kept):.1f} %{over}")
    return lower


def record(sample: Sample, tau: Thresholds, config: Config, iteration: int) -> dict:
    """One row of schema.ANNOTATION."""
    routed = sample.routed(tau) if iteration > 0 else route_cold_start(sample.theirs)
    used = (tau.entropy, tau.agreement, tau.band) if iteration > 0 else (None, None, None)
    return {
        "question_id": sample.question["question_id"],
        "image_id": sample.question["image_id"],
        "oracle_text": sample.oracle["text"],
        "oracle_model": sample.oracle["model"] or config.oracle.model,
        "oracle_simulated": config.oracle.model == SIMULATED_ORACLE,  # the simulated one answers to no other name
        "self_text": sample.own["text"],
        "self_model": sample.own["model"],
        "entropy": sample.own["entropy"],
        "entropy_again": None if sample.again is None else sample.again["entropy"],
        "agreement": sample.delta,
        **dict(zip(("tau_entropy", "tau_agreement", "dead_band"), used, strict=True)),
        "route": routed.route,
        "audit": routed.route in ("oracle", "self") and audited(sample, config),
        "reason": routed.reason,
        "label": routed.label,
        "labelled_by": routed.labelled_by,
    }


def summarise(rows: list[dict], samples: list[Sample], tau: Thresholds, config: Config, iteration: int) -> dict:
    """routes.json: counts per route, and per kind and route; `expert_share` is the share of the annotations not
    dropped that an expert has to see, audits among them (Table 3: 100 % at t = 0, 18 % after); `noise` of `flips`."""
    routes = Counter(row["route"] for row in rows)
    by_kind: dict[str, Counter] = {}
    for row, sample in zip(rows, samples, strict=True):
        by_kind.setdefault(sample.kind, Counter())[row["route"]] += 1
    kept, audits = len(rows) - routes["dropped"], sum(row["audit"] for row in rows)
    seen = routes["cold_start"] + routes["expert"] + audits
    summary = {
        "iteration": iteration,
        "routes": {name: routes[name] for name in ("cold_start", "oracle", "expert", "self", "dropped")},
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        "audits": audits,
        "expert_share": seen / kept if kept else 0.0,
        "oracle_simulated": config.oracle.model == SIMULATED_ORACLE,
    }
    if iteration == 0:
        return summary
    return summary | {"tau_entropy": tau.entropy, "tau_agreement": tau.agreement, "dead_band": tau.band,
                      "noise": flips([sample for sample in samples if sample.again is not None], tau)}  # fmt: skip


def flips(twice: list[Sample], tau: Thresholds) -> dict:
    """What annotating twice shows: {samples, flips, flips_without_band, moved_95}.

    flips: samples that would have taken another route the second time; flips_without_band: the same had there been no
    dead band; moved_95: nats a token that 95 % of the entropies moved by at most, null without samples.
    """
    bare = replace(tau, band=0.0)
    return {
        "samples": len(twice),
        "flips": sum(sample.routed(tau).route != sample.routed_again(tau).route for sample in twice),
        "flips_without_band": sum(sample.routed(bare).route != sample.routed_again(bare).route for sample in twice),
        "moved_95": moved(twice),
    }


def moved(samples: list[Sample]) -> float | None:
    """Nats a token that 95 % of the entropies moved by at most where the model annotated twice, None where it did not.
    """
    both = [(sample.own["entropy"], sample.again["entropy"]) for sample in samples if sample.again is not None]
    found = [abs(first - second) for first, second in both if None not in (first, second)]
    return float(np.quantile(found, 0.95)) if found else None
