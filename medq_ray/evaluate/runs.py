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
from medq_ray.model.prompts import prompt_of
from medq_ray.schema import COMPLETION, FAILURE, PROMPT, PROTOTYPE, SCORE

Answer = Callable[[pa.Table, Sampling, str], pa.Table]
"""answer(schema.PROMPT; sampling; label for the progress bar) -> schema.COMPLETION."""


def prompts(questions: pa.Table) -> pa.Table:
    """schema.PROMPT of questions, sorted by question_id."""
    rows = questions.sort_by("question_id").select(["question_id", "uri", "text", "options"]).to_pylist()
    return pa.Table.from_pylist([prompt_of(row) for row in rows], schema=PROMPT)


def ask(path: Path, questions: pa.Table, sampling: Sampling, label: str, answer: Answer) -> pa.Table:
    """Ask all questions and write the completions, sorted by (question_id, run)."""
    completions = answer(prompts(questions), sampling, label)
    completions = completions.select(COMPLETION.names)
    return write_table(path, completions.sort_by([("question_id", "ascending"), ("run", "ascending")]), COMPLETION)


def with_image(questions: pa.Table, split: str, images: pa.Table) -> pa.Table:
    """Those questions whose image ingest did not quarantine; says how many others there are."""
    readable = pc.is_in(questions["image_id"], images["image_id"].combine_chunks())
    kept = questions.filter(readable)
    if kept.num_rows == 0:
        raise ValueError(f"no {split} question has a readable image; see quarantine.parquet of the pool")
    if lost := questions.num_rows - kept.num_rows:
        say(f"  {lost} of {questions.num_rows} {split} questions are left out: their images are in quarantine")
    return kept


def evaluate(
    folder: Path, *, config: Config, dev: pa.Table, test: pa.Table, images: pa.Table, answer: Answer
) -> dict:
    """Phase 1 (Sec. 2.2). D_dev is asked R times at a temperature, with logprobs; D_test once, greedily.

    dev, test: schema.QUESTION with answers; images: embedded images of dev and test; answer: see `Answer`.
    Writes completions, scores, failures, prototypes (.parquet) and rates.json from dev, test_completions and
    test_scores (.parquet) from test, and metrics.json from both. Nothing but metrics.json's "test" depends on test
    answers. Returns numbers for the manifest. Raises ValueError when a split has no question with a readable image.
    """
    settings = config.evaluate
    dev, test = (with_image(split, name, images) for split, name in ((dev, "dev"), (test, "test")))
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
        "unanswered": sum(
            pc.sum(pc.not_equal(table["error"], "")).as_py() for table in (completions, test_completions)
        ),
        "test_questions": test.num_rows,
        "test_accuracy": metrics["test"]["accuracy"],
    }
