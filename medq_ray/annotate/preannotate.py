"""The phase: ask the oracle (and, after the cold start, the model itself), route every question, write the records."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.annotate.agreement import agreement, readable
from medq_ray.annotate.routing import Opinion, route, route_cold_start
from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import prompt_of
from medq_ray.schema import ANNOTATION, PROMPT
from medq_ray.synthetic.answers import MODEL as SIMULATED_ORACLE

ORACLE_MAX_TOKENS = 256
"""Longest answer of the oracle in tokens; it may be wordier than the model under training. Our choice."""
NO_ANSWER = {"text": "", "model": "", "entropy": None, "error": "the endpoint was not asked or returned no row"}


def annotate(
    folder: Path, *, config: Config, iteration: int, questions: pa.Table, ask_oracle: Answer, ask_self: Answer | None
) -> dict:
    """Annotate `questions` (schema.QUESTION) by the paper's progressive strategy (Sec. 2.3); return route counts.

    A question that the oracle wrote has its answer, and is not put to it again. At t = 0 everything goes to review. At
    t > 0 the model annotates too, greedily and with logprobs, and each question takes one route of `annotate.routing`.
    Writes annotations.parquet (schema.ANNOTATION, by question id) and routes.json.
    """
    assert iteration == 0 or ask_self is not None, "self-evolution needs the model under training"
    prompts = prompts_of(questions)
    name = f"iter-{iteration:02d}/annotate"
    oracle = oracle_answers(questions, config, ask_oracle, f"{name} oracle")
    own = {}
    if iteration > 0:
        own = by_question(
            ask_self(
                prompts, Sampling(n=1, temperature=0.0, max_tokens=config.evaluate.max_tokens,
                                  seed=config.seed, logprobs=True), f"{name} self")
        )  # fmt: skip
    rows = [
        record(question, oracle.get(question["question_id"], NO_ANSWER), own.get(question["question_id"], NO_ANSWER),
               config, iteration)
        for question in sorted(questions.to_pylist(), key=lambda question: question["question_id"])
    ]  # fmt: skip
    write_table(folder / "annotations.parquet", rows, ANNOTATION)
    summary = summarise(rows, {row["question_id"]: row["kind"] for row in questions.to_pylist()}, config, iteration)
    write_json(folder / "routes.json", summary)
    return {"annotations": len(rows), "expert_share": summary["expert_share"], **summary["routes"]}


def oracle_answers(questions: pa.Table, config: Config, ask_oracle: Answer, label: str) -> dict[str, dict]:
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
    return by_question(ask_oracle(prompts_of(open_), sampling, label)) | known


def prompts_of(questions: pa.Table) -> pa.Table:
    """schema.PROMPT of each question, by question id."""
    rows = sorted(questions.to_pylist(), key=lambda row: row["question_id"])
    return pa.Table.from_pylist([prompt_of(row) for row in rows], schema=PROMPT)


def by_question(completions: pa.Table) -> dict[str, dict]:
    return {row["question_id"]: row for row in completions.to_pylist()}


def record(question: dict, oracle: dict, own: dict, config: Config, iteration: int) -> dict:
    """One row of schema.ANNOTATION from one question and the two completions about it."""
    kind, options = question["kind"], len(question["options"])
    theirs = Opinion(oracle["text"], readable(kind, oracle["text"], options), oracle["error"])
    if iteration == 0:
        delta, routed = None, route_cold_start(theirs)
    else:
        mine = Opinion(own["text"], readable(kind, own["text"], options), own["error"])
        delta = agreement(kind, own["text"], oracle["text"], options)
        routed = route(own["entropy"], delta, theirs, mine, tau_entropy=config.annotate.tau_entropy,
                       tau_agreement=config.annotate.tau_agreement)  # fmt: skip
    return {
        "question_id": question["question_id"],
        "image_id": question["image_id"],
        "oracle_text": oracle["text"],
        "oracle_model": oracle["model"] or config.oracle.model,
        "oracle_simulated": config.oracle.model == SIMULATED_ORACLE,  # the simulated one answers to no other name
        "self_text": "" if iteration == 0 else own["text"],
        "self_model": "" if iteration == 0 else own["model"],
        "entropy": None if iteration == 0 else own["entropy"],
        "agreement": delta,
        "route": routed.route,
        "reason": routed.reason,
        "label": routed.label,
        "labelled_by": routed.labelled_by,
    }


def summarise(rows: list[dict], kinds: dict[str, str], config: Config, iteration: int) -> dict:
    """routes.json: counts per route, and per kind and route; `expert_share` is the share of the annotations not
    dropped that an expert has to see (Table 3: 100 % at t = 0, 18 % after)."""
    routes = Counter(row["route"] for row in rows)
    by_kind: dict[str, Counter] = {}
    for row in rows:
        by_kind.setdefault(kinds[row["question_id"]], Counter())[row["route"]] += 1
    kept = len(rows) - routes["dropped"]
    seen = routes["cold_start"] + routes["expert"]
    return {
        "iteration": iteration,
        "routes": {name: routes[name] for name in ("cold_start", "oracle", "expert", "self", "dropped")},
        "by_kind": {kind: dict(counts) for kind, counts in by_kind.items()},
        "expert_share": seen / kept if kept else 0.0,
        "tau_entropy": config.annotate.tau_entropy,
        "tau_agreement": config.annotate.tau_agreement,
        "oracle_simulated": config.oracle.model == SIMULATED_ORACLE,
    }
