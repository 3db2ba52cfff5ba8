"""The evaluating phase: ask, score, collect failures, cluster them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.evaluate.descriptions import judged
from medq_ray.evaluate.failures import failures, rates
from medq_ray.evaluate.guard import check_sight, check_tokens
from medq_ray.evaluate.prototypes import prototypes
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import prompt_of
from medq_ray.schema import COMPLETION, FAILURE, PROMPT, PROTOTYPE, SCORE

def prompts(questions: pa.Table) -> pa.Table:
    """schema.PROMPT of questions, sorted by question_id."""
    rows = questions.sort_by("question_id").select(["question_id", "uri", "text", "options"]).to_pylist()
    return pa.Table.from_pylist([prompt_of(row) for row in rows], schema=PROMPT)


def ask(path: Path, questions: pa.Table, sampling: Sampling, label: str, answer: Answer) -> pa.Table:
    """Ask all questions and write the completions, sorted by (question_id, run). Raises EndpointError when they were
    given without looking."""
    completions = answer(prompts(questions), sampling, label).select(COMPLETION.names)
    check_tokens(completions)
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
    folder: Path,
    *,
    config: Config,
    dev: pa.Table,
    test: pa.Table,
    images: pa.Table,
    answer: Answer,
    ask_judge: Answer | None = None,
) -> dict:
    """Phase 1 (Sec. 2.2). D_dev is asked R times at a temperature, with logprobs; D_test once, greedily.

    dev, test: schema.QUESTION with answers; images: embedded images of dev and test; answer: asks the model; ask_judge:
    asks the judge of descriptions, where the settings name one. Writes completions, scores, failures, prototypes
    (.parquet), rates.json and crossings.json from dev, test_completions and test_scores (.parquet) from test,
    judgements of both, and metrics.json. Nothing but metrics.json's "test" depends on test answers. Returns numbers for
    the manifest. Raises ValueError when a split has no question with a readable image, EndpointError when the model
    does not see images (`guard`).
    """
    settings = config.evaluate
    dev, test = (with_image(split, name, images) for split, name in ((dev, "dev"), (test, "test")))
    sight = check_sight(prompts(dev), answer, "dev")
    patient_of = dict(zip(images["image_id"].to_pylist(), images["patient"].to_pylist(), strict=True))

    def asked(prefix: str, questions: pa.Table, sampling: Sampling, label: str) -> tuple[pa.Table, pa.Table]:
        """(completions, scores) of a split, which are on disk by then."""
        completions = ask(folder / f"{prefix}completions.parquet", questions, sampling, label, answer)
        outcomes = None
        if ask_judge is not None:
            outcomes = judged(folder / f"{prefix}judgements.parquet", questions, completions, config.judge, ask_judge)
        scores = score(questions, completions, settings.gamma, patient_of=patient_of, judged=outcomes)
        return completions, write_table(folder / f"{prefix}scores.parquet", scores, SCORE)

    several = Sampling(n=settings.runs, temperature=settings.temperature, max_tokens=settings.max_tokens,
                       seed=config.seed, logprobs=True)  # fmt: skip
    completions, scores = asked("", dev, several, f"dev x {settings.runs}")
    failed = write_table(folder / "failures.parquet", failures(dev, completions, scores), FAILURE)
    found = prototypes(failed, images, text_weight=settings.text_weight, most=settings.max_prototypes)
    write_table(folder / "prototypes.parquet", found, PROTOTYPE)
    write_json(folder / "rates.json", rates(scores))
    write_json(folder / "crossings.json", rates(scores, settings.crossings))

    greedy = Sampling(n=1, temperature=0.0, max_tokens=settings.max_tokens, seed=config.seed, logprobs=False)
    _, test_scores = asked("test_", test, greedy, "test")
    metrics = {"dev": accuracy(scores), "test": accuracy(test_scores), "sight": sight}
    write_json(folder / "metrics.json", metrics)
    return {
        "dev_questions": dev.num_rows,
        "dev_accuracy": metrics["dev"]["accuracy"],
        "failures": failed.num_rows,
        "prototypes": found.num_rows,
        "unanswered": pc.sum(scores["failed"]).as_py() + pc.sum(test_scores["failed"]).as_py(),
        "test_questions": test.num_rows,
        "test_accuracy": metrics["test"]["accuracy"],
    }
