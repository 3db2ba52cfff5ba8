"""A blind endpoint is found whatever else it does; one that sees passes, however little it sees."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medq_ray.evaluate.guard import GREY, change, check_sight, check_tokens, probes
from medq_ray.images import encode_png, read_image
from medq_ray.model.chat import EndpointError, Sampling
from medq_ray.schema import COMPLETION, PROMPT

SAMPLING = Sampling(n=5, temperature=0.7, max_tokens=2048)


@pytest.fixture
def prompts(tmp_path) -> pa.Table:
    """Twenty questions about ten pictures, each brighter than the one before."""
    rows = []
    for i in range(20):
        path = tmp_path / f"{i // 2}.png"
        pixels = np.random.default_rng(i // 2).integers(0, 20 + 10 * i, (24, 32, 3), dtype=np.uint8)
        path.write_bytes(encode_png(pixels))
        rows.append({"question_id": f"q{i:02d}", "uris": [str(path)], "prompt": f"Question {i}?"})
    return pa.Table.from_pylist(rows, schema=PROMPT)


class Endpoint:
    """Answers like a model that looks at images by `sees` and whose prompt tokens count them by `counts`."""

    def __init__(self, sees: bool = True, counts: bool | None = True, noise: float = 0.0, logprobs: bool = True,
                 contrast: float = 1.0, seed: int = 0):  # fmt: skip
        self.sees, self.counts, self.noise, self.logprobs, self.contrast = sees, counts, noise, logprobs, contrast
        self.rng = np.random.default_rng(seed)
        self.asked: list[dict] = []

    def __call__(self, prompts: pa.Table, sampling, label: str) -> pa.Table:
        rows = []
        for row in prompts.to_pylist():
            self.asked.append(row)
            light = float(np.mean([read_image(uri).mean() for uri in row["uris"]])) if row["uris"] and self.sees else 100.0
            entropy = self.contrast * light / 100 + float(self.rng.normal(0, self.noise))
            tokens = None if self.counts is None else len(row["prompt"]) + 16 * len(row["uris"]) * self.counts
            rows.append({"question_id": row["question_id"], "run": 0, "text": "A", "error": "", "prompt_tokens": tokens,
                         "entropy": entropy if self.logprobs else None})  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)


def test_who_sees_passes_even_if_every_answer_is_the_same_letter(prompts):
    found = check_sight(prompts, Endpoint(), SAMPLING, "dev")
    assert found["probes"] == 8 and found["image_tokens"] == 16
    assert found["grey"] > 0 == found["again"]
    assert check_sight(prompts, Endpoint(counts=None), SAMPLING, "dev")["image_tokens"] is None


def test_prompts_that_are_as_long_without_images_explain_blindness_and_prove_none(prompts):
    with pytest.raises(EndpointError, match="does not look at images: .* prompts are as long without images"):
        check_sight(prompts, Endpoint(sees=False, counts=False), SAMPLING, "dev")
    found = check_sight(prompts, Endpoint(counts=False), SAMPLING, "dev")  # some count no image tokens
    assert (found["verdict"], found["image_tokens"]) == ("sees", 0)


@pytest.mark.parametrize(
    ("noise", "complaint"), [(0.0, "does not look at images"), (0.01, "cannot tell whether"), (0.3, "cannot tell whether")]
)
def test_an_endpoint_that_does_not_look_does_not_pass(prompts, noise, complaint):
    with pytest.raises(EndpointError, match=complaint):
        check_sight(prompts, Endpoint(sees=False, noise=noise), SAMPLING, "dev")


def test_trust_helps_where_it_cannot_be_told_and_not_who_is_blind(prompts, capsys):
    found = check_sight(prompts, Endpoint(sees=False, noise=0.3), SAMPLING, "dev", trusted=True)
    assert found["verdict"] == "cannot tell" and "warning: cannot tell whether" in capsys.readouterr().out
    with pytest.raises(EndpointError, match="does not look at images"):
        check_sight(prompts, Endpoint(sees=False), SAMPLING, "dev", trusted=True)


def test_a_blind_restless_endpoint_passes_hardly_ever(prompts):
    def passes(seed: int) -> bool:
        try:
            return check_sight(prompts, Endpoint(sees=False, noise=0.3, seed=seed), SAMPLING, "dev")["verdict"] == "sees"
        except EndpointError:
            return False

    assert sum(map(passes, range(100))) <= 2  # three standard errors: 0.13 % for many probes, more for 20


def test_a_logprob_that_is_missing_changes_nothing():
    given, missing = {"text": "A", "entropy": 0.5}, {"text": "A", "entropy": None}
    assert change("?", given, missing) == change("?", missing, missing) == 0.0
    assert change("?", given, missing | {"text": "B"}) == 1.0 and change("?", given, given | {"entropy": 0.75}) == 0.25


class Talker:
    """Names a letter by the brightness of the picture, in prose that differs every time; no logprobs."""

    def __init__(self, sees: bool):
        self.sees, self.said = sees, 0

    def __call__(self, prompts: pa.Table, sampling, label: str) -> pa.Table:
        rows = []
        for row in prompts.to_pylist():
            self.said += 1
            light = np.mean([read_image(uri).mean() for uri in row["uris"]]) if row["uris"] and self.sees else 0
            text = f"The picture, seen {self.said} times now, suggests that the answer must be ({'BC'[int(light > 60)]})."
            rows.append({"question_id": row["question_id"], "run": 0, "text": text, "error": "", "entropy": None})
        return pa.Table.from_pylist(rows, schema=COMPLETION)


def test_prose_about_the_same_letter_is_the_same_answer(prompts):
    rows = [row | {"prompt": row["prompt"] + "\nA. x\nB. y\nC. z"} for row in prompts.to_pylist()]
    lettered = pa.Table.from_pylist(rows, schema=PROMPT)
    assert check_sight(lettered, Talker(True), SAMPLING, "dev")["again"] == 0
    with pytest.raises(EndpointError, match="cannot tell whether"):
        check_sight(lettered, Talker(False), SAMPLING, "dev")
    with pytest.raises(EndpointError, match="cannot tell whether"):
        check_sight(prompts, Talker(True), SAMPLING, "dev")


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_another_model_behind_the_same_name_is_noticed_and_the_same_one_is_not(prompts, tmp_path, noise, capsys):
    means = {"remembered": tmp_path / "cache" / "sight.parquet"}
    for seed in range(50 if noise else 2):
        check_sight(prompts, Endpoint(noise=noise, contrast=5.0, seed=seed), SAMPLING, "m", **means)
    other = Endpoint(noise=noise, contrast=4.0, seed=99)
    with pytest.raises(EndpointError, match="m: another model answers under this name .* give another --out"):
        check_sight(prompts, other, SAMPLING, "m", **means)
    check_sight(prompts, other, SAMPLING, "m", trusted=True, **means)
    assert "warning: m: another model answers" in capsys.readouterr().out


def test_other_questions_are_no_other_model_and_are_remembered_too(prompts, tmp_path):
    """Another split or release has the same names for other questions; longer answers are other answers."""
    means = {"remembered": tmp_path / "sight.parquet"}
    check_sight(prompts, Endpoint(), SAMPLING, "m", **means)
    rows = [row | {"prompt": "Another q" + row["prompt"][1:]} for row in prompts.to_pylist()]
    others = pa.Table.from_pylist(rows[::-1], schema=PROMPT)
    check_sight(others, Endpoint(contrast=2.0), SAMPLING, "m", **means)
    check_sight(prompts, Endpoint(contrast=3.0), replace(SAMPLING, max_tokens=9), "m", **means)
    for asked, contrast in ((prompts, 2.0), (others, 1.0)):
        with pytest.raises(EndpointError, match="another model"):
            check_sight(asked, Endpoint(contrast=contrast), SAMPLING, "m", **means)


@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_a_restless_endpoint_that_sees_passes(prompts, noise):
    """Pictures of another brightness change its answers by more than its noise does, on average."""
    assert check_sight(prompts, Endpoint(noise=noise, contrast=5.0), SAMPLING, "dev")["probes"] == 20


def test_without_logprobs_texts_decide(prompts):
    """One letter for every picture and no logprobs: nobody can tell it from a blind one."""
    with pytest.raises(EndpointError, match="cannot tell whether"):
        check_sight(prompts, Endpoint(logprobs=False), SAMPLING, "dev")


def test_grey_pictures_have_the_size_of_the_true_ones_and_pictures_come_once(prompts):
    endpoint, seen = Endpoint(), {}
    real = endpoint.__call__

    def looked(table: pa.Table, sampling, label: str) -> pa.Table:
        for row in table.to_pylist():
            kind = row["question_id"].split("/")[0]
            seen.setdefault(kind, []).append([read_image(uri) for uri in row["uris"]])
        return real(table, sampling, label)

    check_sight(prompts, looked, SAMPLING, "dev")
    assert all((pixels == GREY).all() and pixels.shape == (24, 32, 3) for (pixels,) in seen["grey"])
    assert len({pixels.tobytes() for (pixels,) in seen["true"]}) == 8 and seen["none"] == [[]] * 8


def test_pictures_that_cannot_be_read_are_no_probes(prompts):
    for row in prompts.to_pylist()[:10]:
        Path(row["uris"][0]).write_bytes(b"no picture")
    assert [row["question_id"] for row in probes(prompts, 8)] == ["q10", "q12", "q14", "q16", "q18"]
    assert len(probes(prompts, 64)) == 10


def test_an_answer_without_an_image_token_stops_the_run():
    rows = [{"question_id": f"q{i}", "run": 0, "error": "", "image_tokens": tokens} for i, tokens in enumerate([16, None, 0])]
    check_tokens(pa.Table.from_pylist(rows[:2], schema=COMPLETION))
    with pytest.raises(EndpointError, match="1 of 3 answers were given without any image token"):
        check_tokens(pa.Table.from_pylist(rows, schema=COMPLETION))
    check_tokens(pa.Table.from_pylist([rows[2] | {"error": "HTTP 400"}], schema=COMPLETION))


def test_probes_are_asked_greedily_and_as_long_as_the_evaluation(prompts):
    asked = []

    def endpoint(table, sampling, label):
        asked.append(sampling)
        return Endpoint()(table, sampling, label)

    check_sight(prompts, endpoint, SAMPLING, "dev")
    assert {(own.n, own.temperature, own.max_tokens) for own in asked} == {(1, 0.0, 2048)}


def test_an_endpoint_that_refuses_every_image_is_told_and_not_scored(prompts):
    """A text model behind vLLM: 'At most 0 image(s) may be provided'. It is asked eight questions, not 64."""
    asked = []

    def refusing(table, sampling, label):
        asked.append(table.num_rows)
        rows = [{"question_id": row["question_id"], "run": 0, "text": "" if row["uris"] else "A",
                 "error": "HTTP 400: at most 0 images" if row["uris"] else "", "prompt_tokens": 9}
                for row in table.to_pylist()]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)

    with pytest.raises(EndpointError, match="answers no question with an image: HTTP 400: at most 0 images"):
        check_sight(prompts, refusing, SAMPLING, "dev")
    assert asked == [24, 8]
