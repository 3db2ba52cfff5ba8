"""A model on a published benchmark: perception, descriptions and comparisons, beside the published rows.

    OUT/MODEL/questions.parquet completions.parquet scores.parquet judgements.parquet dropped.parquet result.json
    OUT/result.json table.txt table.md       all models together
    OUT/cache/  OUT/images/                  answers that are not asked for again; the benchmark's pictures
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from medq_ray.artifacts import write_json, write_table
from medq_ray.console import say
from medq_ray.evaluate.failures import rates
from medq_ray.evaluate.guard import check_sight, check_tokens
from medq_ray.evaluate.medqbench import LETTERS, Release
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.evaluate.standing import standing, table
from medq_ray.judging.judge import ITEM, aggregate, judge, warnings
from medq_ray.judging.wording import Wording, fill
from medq_ray.model.ask import Answer, ask
from medq_ray.model.chat import Endpoint, Sampling
from medq_ray.model.prompts import uris_of
from medq_ray.schema import BENCH_QUESTION, COMPLETION, DROP, JUDGEMENT, PROMPT, QUESTION, SCORE
from medq_ray.serving import one_line

LOG = "log.txt"
"""In the output folder: what Ray had to say."""
GAMMA = 0.6
"""Failure threshold of rates.json (Sec. 3.1)."""
JUDGED = ("description", "comparison")


@dataclass(frozen=True)
class Protocol:
    """How a model is asked and judged; the defaults are the official ones."""

    wording: Wording
    runs: int = 1
    """Answers to each perception question; of descriptions and comparisons there is one."""
    temperature: float = 0.0
    max_tokens: int = 2048
    seed: int = 0
    rounds: int = 1
    """Judge rounds."""
    judge_temperature: float = 0.0
    trust_sight: bool = False
    """Go on where it cannot be told whether a model sees images, or whether it is still the same model."""

    def warnings(self) -> list[str]:
        """What the user may have meant otherwise."""
        repeated = {"runs": (self.runs, self.temperature), "judge rounds": (self.rounds, self.judge_temperature)}
        return [
            f"{count} {name} at temperature 0 repeat one answer: what scatter they have is the endpoint's own"
            for name, (count, temperature) in repeated.items()
            if count > 1 and temperature == 0
        ]


def models_of(base_url: str | None, name: str | None, file: Path | None, **limits: float) -> list[Endpoint]:
    """The models to run, one or those of a YAML file, all with these limits (fields of Endpoint).

    Raises ValueError for anything else, EndpointError for a key that is not there.
    """
    if (file is None) != bool(base_url and name) or (file and (base_url or name)):
        raise ValueError("give --base-url and --model, or --models with a file of several")
    rows = [{"base_url": base_url, "model": name}]
    try:
        rows = yaml.safe_load(file.read_text()) if file else rows
        found = [Endpoint(**{"key_from": "ENGINE_API_KEY"} | row, **limits) for row in rows]
    except (yaml.YAMLError, TypeError) as error:
        expected = "expected a YAML list of {model, base_url, key_from}"
        raise ValueError(f"{file}: {expected} ({one_line(error)})") from error
    if not found or len(set(map(folder_of, found))) < len(found):
        raise ValueError(f"{file}: expected one or more models with different names")
    for endpoint in found:
        endpoint.key()
    return found


def judge_at(base_url: str | None, model: str, **limits: float) -> Endpoint | None:
    """The judge, None without an address. Raises EndpointError for a key that is not there."""
    if base_url is None:
        return None
    endpoint = Endpoint(base_url, model, key_from="JUDGE_API_KEY", **limits)
    endpoint.key()
    return endpoint


def column_map(columns: Iterable[str]) -> dict[str, str]:
    """{ours: theirs} of OURS=THEIRS. Raises ValueError for another form."""
    pairs = [column.partition("=") for column in columns]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise ValueError(f"--map {ours}{equals}{theirs}: expected OURS=THEIRS, such as severity=level")
    return {ours: theirs for ours, _, theirs in pairs}


def bench(
    out: Path, release: Release, models: Sequence[Endpoint], judge_endpoint: Endpoint | None, protocol: Protocol
) -> list[dict]:
    """Run every model, write what the module says, and return the results as `standing.table` takes them.

    Descriptions and comparisons need a judge; without one they are not asked. Raises EndpointError as
    `ask` and `check_sight`; the same call goes on where a killed one was, after another look at each endpoint.
    """
    results = []
    for endpoint in models:
        say(f"\n{endpoint.model} at {endpoint.base_url}")
        results.append(run_model(out, release, endpoint, judge_endpoint, protocol))
        write_json(out / "result.json", {"results": results, "ranks": [standing(result) for result in results]})
        for name, markdown in (("table.txt", False), ("table.md", True)):
            (out / name).write_text(table(results, markdown=markdown))
    return results


def run_model(
    out: Path, release: Release, endpoint: Endpoint, judge_endpoint: Endpoint | None, protocol: Protocol
) -> dict:
    """The result of one model."""
    folder = out / folder_of(endpoint)
    kept = out / "cache" / folder.name
    answer = asker(endpoint, kept)
    tasks = {task: questions for task, questions in release.tables.items() if task == "perception" or judge_endpoint}
    write_table(folder / "dropped.parquet", release.dropped, DROP)
    if not tasks:
        raise ValueError(f"this release has only {', '.join(release.tables)} questions, which need --judge-url")
    questions = pa.concat_tables(tasks.values())
    write_table(folder / "questions.parquet", questions, BENCH_QUESTION)
    prompts = {task: prompts_of(own, release.name, protocol.wording) for task, own in tasks.items()}
    sampling = Sampling(n=protocol.runs, temperature=protocol.temperature, max_tokens=protocol.max_tokens,
                        seed=protocol.seed, logprobs=True)  # fmt: skip
    sight = check_sight(next(iter(prompts.values())), answer, sampling, endpoint.model, trusted=protocol.trust_sight,
                        remembered=kept / "sight.parquet")  # fmt: skip
    said = {
        task: answer(own, sampling if task == "perception" else replace(sampling, n=1), f"{release.split} {task}")
        for task, own in prompts.items()
    }
    completions = pa.concat_tables(said.values())
    check_tokens(completions)
    write_table(folder / "completions.parquet", completions, COMPLETION)
    result = {"model": endpoint.model, "release": release.name, "split": release.split,
              "wording": protocol.wording.label, "runs": protocol.runs,
              "temperature": protocol.temperature, "seed": protocol.seed, "sight": sight,
              "failed": pc.sum(pc.not_equal(completions["error"], "")).as_py(), "notes": release.notes,
              **dict.fromkeys(("perception", *JUDGED))}  # fmt: skip
    if "perception" in tasks:
        scores = score(tasks["perception"].select(QUESTION.names).sort_by("question_id"), said["perception"], GAMMA)
        write_table(folder / "scores.parquet", scores, SCORE)
        write_json(folder / "rates.json", rates(scores))
        result["perception"] = accuracy(scores)
    if any(task in tasks for task in JUDGED):
        judgements = judged(tasks, said, judge_endpoint, out / "cache", protocol)
        write_table(folder / "judgements.parquet", judgements, JUDGEMENT)
        result |= aggregate(judgements)
        result["warnings"] = warnings(judge_endpoint.model, endpoint.model, None)
        for line in result["warnings"]:
            say(f"warning: {line}")
    write_json(folder / "result.json", result)
    return result


def folder_of(endpoint: Endpoint) -> str:
    """The name of a model's folder."""
    return re.sub(r"[^\w.-]+", "-", endpoint.model).strip("-.") or "model"


def asker(endpoint: Endpoint, cache: Path) -> Answer:
    """A way to ask one endpoint, its answers kept in a folder."""
    return lambda prompts, sampling, label: ask(prompts, endpoint, sampling, cache, label)


def prompts_of(questions: pa.Table, release: str, wording: Wording) -> pa.Table:
    """schema.PROMPT of schema.BENCH_QUESTION rows: options that the release leaves out are not shown."""
    rows = []
    for question in questions.to_pylist():
        uris = uris_of(question)
        text = text_of(question, release, wording)
        rows.append({"question_id": question["question_id"], "uris": uris, "prompt": text})
    return pa.Table.from_pylist(rows, schema=PROMPT)


def text_of(question: Mapping, release: str, wording: Wording) -> str:
    """What a model is asked. Descriptions and comparisons have the release's own words, or else the protocol's."""
    if question["task"] == "description":
        return question["text"] or wording.description
    if question["task"] == "comparison":
        return question["text"] or wording.comparison
    pairs = zip(LETTERS[release], question["options"], strict=True)
    shown = [f"{letter}. {option}" for letter, option in pairs if option]
    if release not in wording.mcq:
        raise ValueError(f"this copy of the evaluator has no prompt of {release}; give --templates a newer one")
    return fill(wording.mcq[release], {"{question}": question["text"], "{option_text}": "\n".join(shown)})


def judged(
    tasks: Mapping[str, pa.Table], said: Mapping[str, pa.Table], endpoint: Endpoint, cache: Path, protocol: Protocol
) -> pa.Table:
    """schema.JUDGEMENT of the descriptions and comparisons; a question without an answer is judged as a missing one."""
    items = []
    for task in (task for task in JUDGED if task in tasks):
        golden = dict(zip(tasks[task]["question_id"].to_pylist(), tasks[task]["answer"].to_pylist(), strict=True))
        for row in said[task].select(["question_id", "text"]).to_pylist():
            items.append({"question_id": row["question_id"], "task": task, "golden": golden[row["question_id"]],
                          "prediction": row["text"] or None})  # fmt: skip
    return judge(pa.Table.from_pylist(items, schema=ITEM), asker(endpoint, cache / f"judge-{folder_of(endpoint)}"),
                 wording=protocol.wording, model=endpoint.model, rounds=protocol.rounds,
                 temperature=protocol.judge_temperature)  # fmt: skip
