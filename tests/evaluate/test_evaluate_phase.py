"""The evaluating phase: what it asks, what it writes, and that test answers stay out of everything but reports."""

import json

import numpy as np
import pyarrow as pa
import pytest
from test_prototypes import planted
from test_scoring import completion, question

from medq_ray.artifacts import read_table
from medq_ray.config import Config, override
from medq_ray.evaluate import evaluate
from medq_ray.evaluate.prototypes import tfidf
from medq_ray.schema import COMPLETION, QUESTION

FILES = ["clusters.json", "completions.parquet", "crossings.json", "failures.parquet", "metrics.json", "prototypes.parquet", "rates.json",
         "scores.parquet", "test_completions.parquet", "test_scores.parquet"]  # fmt: skip


class Model:
    """Answers 'A' to odd questions and 'B' to even ones, every run, and 'hm' to grey pictures; remembers how it was
    asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, sampling, label):
        self.asked.append((prompts, sampling, label))
        rows = [
            completion(name, run, "hm" if name.startswith("grey") else "AB"[int(name.rpartition("/")[2]) % 2 == 0])
            for name in sorted(prompts["question_id"].to_pylist())
            for run in range(sampling.n)
        ]
        return pa.Table.from_pylist(rows, schema=COMPLETION)


def questions(count: int, images: pa.Table, answer: str = "A") -> pa.Table:
    names = images["image_id"].to_pylist()
    rows = [question(str(i), answer=answer) | {"image_id": names[i % len(names)]} for i in range(count)]
    return pa.Table.from_pylist(rows, schema=QUESTION)


@pytest.fixture
def images() -> pa.Table:
    return planted(12)[1]


CONFIG = override(Config(), ["evaluate.runs=3", "seed=4"])


def test_dev_is_asked_R_times_and_test_once_greedily(tmp_path, images):
    model = Model()
    counts = evaluate(tmp_path, config=CONFIG, dev=questions(24, images), test=questions(10, images), images=images,
                      answer=model, texts=tfidf)  # fmt: skip
    *_, (dev, sampled, _), (test, greedy, _) = model.asked
    assert (sampled.n, sampled.temperature, sampled.logprobs, sampled.seed) == (3, 0.7, True, 4)
    assert (greedy.n, greedy.temperature) == (1, 0)
    assert dev.column_names == ["question_id", "uris", "prompt"]
    assert dev["prompt"][0].as_py().splitlines()[1] == "A. x"
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert counts["failures"] == 12 and counts["dev_accuracy"] == counts["test_accuracy"] == 0.5
    assert counts["prototypes"] > 0 and counts["unanswered"] == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dev"]["n"] == 24 and metrics["test"]["n"] == 10
    assert json.loads((tmp_path / "rates.json").read_text())["cell:mri/motion"]["e"] == 0.5


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_rows(tmp_path, images):
    rng = np.random.default_rng(0)
    dev, test = questions(24, images), questions(10, images)
    evaluate(tmp_path / "a", config=CONFIG, dev=dev, test=test, images=images, answer=Model(), texts=tfidf)
    evaluate(tmp_path / "b", config=CONFIG, dev=dev.take(rng.permutation(24)), test=test.take(rng.permutation(10)),
             images=images.take(rng.permutation(12)), answer=Model(), texts=tfidf)  # fmt: skip
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_test_answers_reach_reports_only(tmp_path, images):
    dev = questions(24, images)
    for name, answer in (("a", "A"), ("b", "B")):
        evaluate(tmp_path / name, config=CONFIG, dev=dev, test=questions(9, images, answer), images=images,
                 answer=Model(), texts=tfidf)  # fmt: skip
    differ = [n for n in FILES if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()]
    assert differ == ["metrics.json", "test_scores.parquet"]
    dev_metrics = [json.loads((tmp_path / n / "metrics.json").read_text())["dev"] for n in "ab"]
    assert dev_metrics[0] == dev_metrics[1]


def test_dev_questions_on_quarantined_images_are_left_out_and_said(tmp_path, images, capsys):
    dev = questions(24, images)
    evaluate(tmp_path, config=CONFIG, dev=dev, test=dev, images=images.slice(1), answer=Model(), texts=tfidf)
    said = capsys.readouterr().out
    assert "2 of 24 dev questions" in said and "2 of 24 test questions" in said
    with pytest.raises(ValueError, match="no dev question"):
        evaluate(tmp_path, config=CONFIG, dev=dev, test=dev, images=images.slice(0, 0), answer=Model(), texts=tfidf)


def test_a_judge_decides_about_descriptions_where_there_is_one(tmp_path, images):
    names = images["image_id"].to_pylist()
    described = [question(str(100 + i), "description", "free text") | {"image_id": names[i]} for i in range(4)]
    dev = pa.concat_tables([questions(24, images), pa.Table.from_pylist(described, schema=QUESTION)])

    def judge(prompts, sampling, label):
        """Finds fault with question 101, in every run."""
        rows = [
            completion(name, 0, "Score: 0" if name.startswith("101/") else "Score: 2")
            for name in prompts["question_id"].to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    evaluate(tmp_path, config=CONFIG, dev=dev, test=questions(9, images), images=images, answer=Model(),
             texts=tfidf, ask_judge=judge)  # fmt: skip
    scores = {row["question_id"]: row for row in read_table(tmp_path / "scores.parquet").to_pylist()}
    assert [scores[str(100 + i)]["wrong"] for i in range(4)] == [0, 3, 0, 0] and scores["101"]["failure"]
    assert read_table(tmp_path / "judgements.parquet").num_rows == 4 * 3 * 4
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dev"]["n"] == 24 and metrics["dev"]["by_kind"]["description"]["accuracy"] == 0.75
