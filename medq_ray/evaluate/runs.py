"""The evaluating phase: ask, score, collect failures, cluster them."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import write_json, write_table
from medq_ray.config import Config
from medq_ray.console import say
from medq_ray.evaluate.descriptions import judged
from medq_ray.evaluate.failures import failures, rates
from medq_ray.evaluate.guard import check_sight, check_tokens
from medq_ray.evaluate.prototypes import Texts, prototypes
from medq_ray.evaluate.scoring import accuracy, score
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import prompt_of
from medq_ray.schema import COMPLETION, FAILURE, PROMPT, PROTOTYPE, SCORE
from medq_ray.synthetic.world import World
from medq_ray.tables import rows_of, table_of


def prompts(questions: pa.Table) -> pa.Table:
    """schema.PROMPT of questions."""
    rows = rows_of(questions.select(["question_id", "uri", "text", "options"]))
    return table_of(map(prompt_of, rows), PROMPT)


def ask(path: Path, questions: pa.Table, sampling: Sampling, label: str, answer: Answer) -> pa.Table:
    """Ask all questions and write the completions, sorted by (question_id, run). Raises EndpointError when they were
    given without looking."""
    completions = answer(prompts(questions), sampling, label)
    check_tokens(completions)
    return write_table(path, completions, COMPLETION)


def with_image(questions: pa.Table, split: str, images: pa.Table) -> pa.Table:
    """Those questions whose image ingest did not quarantine, sorted by question_id; says how many others there are."""
    readable = pc.is_in(questions["image_id"], images["image_id"].combine_chunks())
    kept = questions.filter(readable)
    if kept.num_rows == 0:
        raise ValueError(f"no {split} question has a readable image; see quarantine.parquet of the pool")
    if lost := questions.num_rows - kept.num_rows:
        say(f"  {lost} of {questions.num_rows} {split} questions are left out: their images are in quarantine")
    return kept.sort_by("question_id")


def measure(
    folder: Path,
    prefix: str,
    questions: pa.Table,
    sampling: Sampling,
    label: str,
    *,
    config: Config,
    answer: Answer,
    ask_judge: Answer | None,
    patient_of: Mapping[str, str],
) -> tuple[pa.Table, pa.Table]:
    """(schema.COMPLETION, schema.SCORE) of some questions; both, and judgements where there is a judge, are in files of
    `folder` whose names begin with `prefix`. answer: asks the model; patient_of: image id -> patient."""
    completions = ask(folder / f"{prefix}completions.parquet", questions, sampling, label, answer)
    outcomes = None
    if ask_judge is not None:
        outcomes = judged(folder / f"{prefix}judgements.parquet", questions, completions, config.judge, ask_judge)
    scores = score(questions, completions, config.evaluate.gamma, patient_of=patient_of, judged=outcomes)
    return completions, write_table(folder / f"{prefix}scores.parquet", scores, SCORE)


def several(config: Config) -> Sampling:
    """R answers a question."""
    settings = config.evaluate
    return Sampling(settings.runs, settings.temperature, settings.max_tokens, config.seed, logprobs=True)


def found_weak(folder: Path, questions: pa.Table, completions: pa.Table, scores: pa.Table, config: Config) -> pa.Table:
    """The failure pool (schema.FAILURE); writes failures.parquet, rates.json and crossings.json."""
    write_json(folder / "rates.json", rates(scores))
    write_json(folder / "crossings.json", rates(scores, config.evaluate.crossings))
    return write_table(folder / "failures.parquet", failures(questions, completions, scores), FAILURE)


def evaluate_endpoint(
    folder: Path,
    world: World,
    split: str,
    name: str,
    *,
    config: Config,
    answer: Answer,
    remembered: Path,
    ask_judge: Answer | None = None,
) -> dict:
    """R runs of any model on one split of a world: completions, scores, failures (.parquet), rates.json, crossings.json
    and metrics.json, which is returned.

    name: the model's, for messages; remembered: as in `check_sight`. The same call needs the endpoint again, for that
    look, even if all answers are there. Raises as `evaluate`.
    """
    images = world.images.filter(pc.equal(world.images["split"], split))
    questions = world.questions.filter(pc.is_in(world.questions["image_id"], images["image_id"].combine_chunks()))
    questions = with_image(questions, split, images)
    trusted = config.evaluate.trust_sight
    sight = check_sight(prompts(questions), answer, several(config), name, trusted=trusted, remembered=remembered)
    patient_of = dict(zip(images["image_id"].to_pylist(), images["patient"].to_pylist(), strict=True))
    label = f"{split} x {config.evaluate.runs}"
    completions, scores = measure(folder, "", questions, several(config), label, config=config, answer=answer,
                                  ask_judge=ask_judge, patient_of=patient_of)  # fmt: skip
    found_weak(folder, questions, completions, scores, config)
    metrics = {"split": split, split: accuracy(scores), "sight": sight}
    write_json(folder / "metrics.json", metrics)
    return metrics


def evaluate(
    folder: Path,
    *,
    config: Config,
    dev: pa.Table,
    test: pa.Table,
    images: pa.Table,
    answer: Answer,
    texts: Texts,
    ask_judge: Answer | None = None,
) -> dict:
    """Phase 1 (Sec. 2.2). D_dev is asked R times at a temperature, with logprobs; D_test once, greedily.

    dev, test: schema.QUESTION with answers; images: embedded images of dev and test; answer: asks the model; texts:
    embeds questions and answers; ask_judge: asks the judge of descriptions, where the settings name one. Writes
    completions, scores, failures, prototypes (.parquet), rates, crossings and clusters (.json) from dev,
    test_completions and test_scores (.parquet) from test, judgements of both, and metrics.json. Nothing but
    metrics.json's "test" depends on test answers. Returns numbers for the manifest. Raises ValueError when a split has
    no question with a readable image, EndpointError when the model does not see images (`guard`).
    """
    settings = config.evaluate
    dev, test = (with_image(split, name, images) for split, name in ((dev, "dev"), (test, "test")))
    sight = check_sight(prompts(dev), answer, several(config), "dev", trusted=settings.trust_sight)
    patient_of = dict(zip(images["image_id"].to_pylist(), images["patient"].to_pylist(), strict=True))

    means = {"config": config, "answer": answer, "ask_judge": ask_judge, "patient_of": patient_of}
    completions, scores = measure(folder, "", dev, several(config), f"dev x {settings.runs}", **means)
    failed = found_weak(folder, dev, completions, scores, config)
    found, quality = prototypes(failed, images, texts=texts, weight=settings.text_weight,
                                most=settings.max_prototypes)  # fmt: skip
    write_table(folder / "prototypes.parquet", found, PROTOTYPE)
    write_json(folder / "clusters.json", quality)

    greedy = Sampling(n=1, temperature=0.0, max_tokens=settings.max_tokens, seed=config.seed, logprobs=False)
    _, test_scores = measure(folder, "test_", test, greedy, "test", **means)
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
