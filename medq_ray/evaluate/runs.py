"""The evaluating phase: ask, score, collect failures, cluster them."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.evaluate.failures import failures, rates
from medq_ray.evaluate.prototypes import prototypes
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import render
from medq_ray.schema import COMPLETION, FAILURE, PROTOTYPE, SCORE

Answer = Callable[[pa.Table, Sampling, str], pa.Table]
"""answer(prompts with question_id, uri, prompt; sampling; label for the progress bar) -> schema.COMPLETION."""


def prompts(questions: pa.Table) -> pa.Table:
    """(question_id, uri, prompt) of questions, sorted by question_id."""
    questions = questions.sort_by("question_id")
    texts = zip(questions["text"].to_pylist(), questions["options"].to_pylist(), strict=True)
    rendered = pa.array([render(text, options) for text, options in texts], pa.string())
    return questions.select(["question_id", "uri"]).append_column("prompt", rendered)


def ask(path: Path, questions: pa.Table, sampling: Sampling, label: str, answer: Answer) -> pa.Table:
    """Ask all questions and write the completions, sorted by (question_id, run)."""
    completions = answer(prompts(questions), sampling, label)
    completions = completions.select(COMPLETION.names)
    return write_table(path, completions.sort_by([("question_id", "ascending"), ("run", "ascending")]), COMPLETION)


def evaluate(
    folder: Path, *, config: Config, dev: pa.Table, test: pa.Table, images: pa.Table, answer: Answer
) -> dict:
    """Phase 1 (Sec. 2.2). D_dev is asked R times at a temperature, with logprobs; D_test once, greedily.

    dev, test: schema.QUESTION with answers; images: embedded images, those of dev among them; answer: see `Answer`.
    Writes completions, scores, failures, prototypes (.parquet) and rates.json from dev, test_completions and
    test_scores (.parquet) from test, and metrics.json from both. Nothing but metrics.json's "test" depends on test
    answers. Dev questions on images that ingest quarantined are left out, and said. Returns numbers for the manifest.
    """
    settings = config.evaluate
    readable = pc.is_in(dev["image_id"], images["image_id"].combine_chunks())
    if (lost := dev.num_rows - (pc.sum(readable).as_py() or 0)) > 0:
        say(f"  {lost} of {dev.num_rows} dev questions are left out: their images are in quarantine")
        dev = dev.filter(readable)
    if dev.num_rows == 0:
        raise ValueError("no dev question has a readable image; see quarantine.parquet of the pool")
    sampling = Sampling(
        n=settings.runs,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=config.seed,
        logprobs=True,
    )
    completions = ask(folder / "completions.parquet", dev, sampling, f"dev x {settings.runs}", answer)
    scores = write_table(folder / "scores.parquet", score(dev, completions, settings.gamma), SCORE)
    failed = write_table(folder / "failures.parquet", failures(dev, completions, scores), FAILURE)
    found = prototypes(failed, images, text_weight=settings.text_weight, most=settings.max_prototypes)
    write_table(folder / "prototypes.parquet", found, PROTOTYPE)
    write_json(folder / "rates.json", rates(dev, scores))

    greedy = Sampling(n=1, temperature=0.0, max_tokens=settings.max_tokens, seed=config.seed, logprobs=False)
    test_completions = ask(folder / "test_completions.parquet", test, greedy, "test", answer)
    test_scores = write_table(folder / "test_scores.parquet", score(test, test_completions, settings.gamma), SCORE)
    metrics = {"dev": accuracy(dev, scores), "test": accuracy(test, test_scores)}
    write_json(folder / "metrics.json", metrics)
    return {
        "dev_questions": dev.num_rows,
        "dev_accuracy": metrics["dev"]["accuracy"],
        "failures": failed.num_rows,
        "prototypes": found.num_rows,
        "unanswered": pc.sum(pc.not_equal(completions["error"], "")).as_py(),
        "test_questions": test.num_rows,
        "test_accuracy": metrics["test"]["accuracy"],
    }
