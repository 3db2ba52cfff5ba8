"""The phase on stub endpoints: what it asks, what it writes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from medq_ray import config as settings
from medq_ray.annotate import annotate
from medq_ray.questions import describe
from medq_ray.schema import ANNOTATION, COMPLETION, QUESTION

CONFIG = settings.override(settings.Config(), ["annotate.expert_share=1", "annotate.rescored=0", "annotate.audit_share=0"])


def question(question_id, kind="yes_no", options=("Yes", "No")):
    asked = {"yes_no": "Is the quality of this MRI image impaired?",
             "description": "Describe the quality of this MRI image."}  # fmt: skip
    return {"question_id": question_id, "image_id": "i" + question_id, "uri": f"/{question_id}.png", "kind": kind,
            "scope": "general", "modality": "mri", "text": asked[kind], "options": list(options), "answer": "",
            "capabilities": []}  # fmt: skip


QUESTIONS = pa.Table.from_pylist(
    [question("q3"), question("q1"), question("q2"), question("q4", "description", ()), question("q5")], schema=QUESTION
)


class Endpoint:
    """Answers from a dict question id -> (text, entropy); keeps what it was asked."""

    def __init__(self, model, answers):
        self.model, self.answers, self.asked = model, answers, []

    def __call__(self, prompts, sampling, label):
        self.asked.append((prompts.to_pylist(), sampling, label))
        rows = [
            {"question_id": key, "run": 0, "model": self.model, "text": text, "entropy": entropy, "tokens": 1,
             "finish_reason": "stop" if text else "", "error": "" if text else "HTTP 500"}
            for key, (text, entropy) in self.answers.items()
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=COMPLETION)


def oracle():
    fog = describe("mri", "motion", "mild")
    texts = {"q1": "A", "q2": "A", "q3": "I cannot judge this image.", "q4": fog, "q5": ""}
    return Endpoint("simulated-oracle", {key: (text, None) for key, text in texts.items()})


def own():
    fog = describe("mri", "motion", "mild")
    answers = {"q1": ("B", 0.01), "q2": ("B", 0.8), "q3": ("A", 0.9), "q4": (fog, 0.1), "q5": ("", None)}
    return Endpoint("tiny", answers)


def test_cold_start_sends_everything_to_review(tmp_path):
    asked = oracle()
    counts = annotate(tmp_path, config=CONFIG, iteration=0, questions=QUESTIONS, ask_oracle=asked, ask_self=own())
    table = pq.read_table(tmp_path / "annotations.parquet")
    assert table.schema.equals(ANNOTATION)
    assert table["question_id"].to_pylist() == ["q1", "q2", "q3", "q4", "q5"]
    assert table["route"].to_pylist() == ["cold_start"] * 4 + ["dropped"]
    assert table["tau_entropy"].null_count == 5  # no threshold has been used
    assert dict(zip(table["question_id"].to_pylist(), table["agreement"].to_pylist(), strict=True)) == {
        "q1": 0.0, "q2": 0.0, "q3": 0.0, "q4": 1.0, "q5": 0.0}  # fmt: skip
    assert set(table["oracle_simulated"].to_pylist()) == {True}
    assert counts["cold_start"] == 4 and counts["expert_share"] == 1.0
    ((prompts, sampling, label),) = asked.asked
    prompt = "Is the quality of this MRI image impaired?\nA. Yes\nB. No\nAnswer with the letter."
    assert prompts[0] == {"question_id": "q1", "uris": ["/q1.png"], "prompt": prompt}
    assert sampling.temperature == 0 and label == "oracle"


def test_self_evolution_takes_every_route_and_says_why(tmp_path):
    model = own()
    counts = annotate(tmp_path, config=CONFIG, iteration=2, questions=QUESTIONS, ask_oracle=oracle(), ask_self=model)
    rows = {row["question_id"]: row for row in pq.read_table(tmp_path / "annotations.parquet").to_pylist()}
    assert {key: row["route"] for key, row in rows.items()} == {
        "q1": "expert", "q2": "oracle", "q3": "expert", "q4": "self", "q5": "dropped"}  # fmt: skip
    assert all(row["reason"] for row in rows.values())
    assert (rows["q1"]["agreement"], rows["q4"]["agreement"]) == (0.0, 1.0)
    assert rows["q2"]["label"] == "A" and rows["q4"]["labelled_by"] == "self"
    ((_, sampling, _),) = model.asked
    assert (sampling.n, sampling.temperature, sampling.logprobs) == (1, 0, True)
    routes = json.loads((tmp_path / "routes.json").read_text())
    assert routes["routes"] == {"cold_start": 0, "oracle": 1, "expert": 2, "self": 1, "dropped": 1}
    assert routes["expert_share"] == counts["expert_share"] == 0.5
    assert routes["by_kind"]["description"] == {"self": 1}


def test_the_same_answers_in_another_order_give_the_same_bytes(tmp_path):
    for name, questions in (("a", QUESTIONS), ("b", QUESTIONS.take([4, 3, 2, 1, 0]))):
        annotate(tmp_path / name, config=CONFIG, iteration=1, questions=questions, ask_oracle=oracle(), ask_self=own())
    for file in ("annotations.parquet", "routes.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_oracle_of_another_name_is_not_called_simulated(tmp_path):
    config = settings.override(CONFIG, ["oracle.model=gpt-4o", "oracle.base_url=https://example.org/v1"])
    real = oracle()
    real.model = "gpt-4o"
    annotate(tmp_path, config=config, iteration=0, questions=QUESTIONS, ask_oracle=real, ask_self=own())
    assert set(pq.read_table(tmp_path / "annotations.parquet")["oracle_simulated"].to_pylist()) == {False}


def test_an_answer_that_the_oracle_wrote_with_its_question_is_its_opinion(tmp_path):
    rows = QUESTIONS.to_pylist()
    for row in rows:
        if row["question_id"] in ("q1", "q2"):
            row["answer"] = "B"
    asked = oracle()
    annotate(tmp_path / "some", config=CONFIG, iteration=0, questions=pa.Table.from_pylist(rows, schema=QUESTION),
             ask_oracle=asked, ask_self=own())  # fmt: skip
    assert [prompt["question_id"] for prompt in asked.asked[0][0]] == ["q3", "q4", "q5"]
    found = {row["question_id"]: row for row in pq.read_table(tmp_path / "some" / "annotations.parquet").to_pylist()}
    assert found["q1"]["oracle_text"] == found["q1"]["label"] == "B" and found["q1"]["route"] == "cold_start"
    assert found["q1"]["oracle_model"] == "simulated-oracle" and found["q5"]["route"] == "dropped"

    for row in rows:
        row["answer"] = row["answer"] or "A"
    silent = oracle()
    annotate(tmp_path / "all", config=CONFIG, iteration=0, questions=pa.Table.from_pylist(rows, schema=QUESTION),
             ask_oracle=silent, ask_self=own())  # fmt: skip
    assert silent.asked == []


def many(count: int) -> tuple[pa.Table, Endpoint, Endpoint]:
    """Yes/no questions, half of which the model answers otherwise than the oracle; entropies rise with the number."""
    questions = pa.Table.from_pylist([question(f"q{i:03d}") for i in range(count)], schema=QUESTION)
    theirs = Endpoint("simulated-oracle", {f"q{i:03d}": ("A", None) for i in range(count)})
    mine = Endpoint("tiny", {f"q{i:03d}": ("AB"[i % 2], i / count) for i in range(count)})
    return questions, theirs, mine


def phase(folder, count, *assignments):
    questions, theirs, mine = many(count)
    config = settings.override(settings.Config(), [f"annotate.{value}" for value in assignments])
    counts = annotate(folder, config=config, iteration=1, questions=questions, ask_oracle=theirs, ask_self=mine)
    rows = pq.read_table(folder / "annotations.parquet").to_pylist()
    return counts, rows, json.loads((folder / "routes.json").read_text()), mine


def test_experts_see_their_share_and_no_more_audits_among_them(tmp_path):
    counts, rows, routes, _ = phase(tmp_path, 400, "expert_share=0.18", "tau_entropy=0.9", "audit_share=0.05")
    audits = [row for row in rows if row["audit"]]
    assert audits and {row["route"] for row in audits} <= {"oracle", "self"}
    assert counts["expert"] + len(audits) == 72 and routes["expert_share"] == counts["expert_share"] == 0.18
    assert routes["audits"] == len(audits) and routes["tau_entropy"] < 0.9
    assert {row["tau_entropy"] for row in rows} == {routes["tau_entropy"]}
    experts = [row["entropy"] for row in rows if row["route"] == "expert"]
    assert max(experts) < routes["tau_entropy"] + routes["dead_band"]  # the most confident ones


def test_a_share_that_is_not_needed_leaves_the_settings_threshold(tmp_path):
    counts, _, routes, _ = phase(tmp_path, 100, "expert_share=0.18", "tau_entropy=0.2", "audit_share=0", "dead_band=0")
    assert routes["tau_entropy"] == 0.2 and counts["expert"] == 10


def test_a_share_of_nothing_sends_only_what_has_no_usable_label(tmp_path, capsys):
    questions, theirs, mine = many(50)
    theirs.answers["q007"] = ("I cannot judge this image.", None)
    config = settings.override(settings.Config(), ["annotate.expert_share=0", "annotate.audit_share=0"])
    counts = annotate(tmp_path, config=config, iteration=1, questions=questions, ask_oracle=theirs, ask_self=mine)
    assert (counts["expert"], counts["oracle"]) == (1, 49)
    assert "experts see 2.0 %, more than annotate.expert_share: 1 have no usable label" in capsys.readouterr().out


def test_some_are_annotated_twice_and_flips_are_counted(tmp_path):
    class Shaky(Endpoint):
        """Its entropies move by 0.02 when it is asked again, which another seed says."""

        def __call__(self, prompts, sampling, label):
            table = super().__call__(prompts, sampling, label)
            kept = set(prompts["question_id"].to_pylist())
            rows = [row | {"entropy": row["entropy"] + 0.02 * sampling.seed} for row in table.to_pylist()
                    if row["question_id"] in kept]  # fmt: skip
            return pa.Table.from_pylist(rows, schema=COMPLETION)

    questions, theirs, mine = many(1000)
    shaky = Shaky("tiny", mine.answers)
    found = {}
    for band in (0.0, 0.05):
        config = settings.override(settings.Config(), ["annotate.rescored=0.5", f"annotate.dead_band={band}",
                                                       "annotate.tau_entropy=0.4", "annotate.expert_share=1"])  # fmt: skip
        folder = tmp_path / str(band)
        annotate(folder, config=config, iteration=1, questions=questions, ask_oracle=theirs, ask_self=shaky)
        found[band] = json.loads((folder / "routes.json").read_text())["noise"]
        rows = pq.read_table(folder / "annotations.parquet").to_pylist()
        again = [row for row in rows if row["entropy_again"] is not None]
        assert 400 < len(again) == found[band]["samples"] < 600
        assert all(abs(row["entropy_again"] - row["entropy"] - 0.02) < 1e-9 for row in again)
    assert abs(found[0.0]["moved_95"] - 0.02) < 1e-9
    config = settings.override(settings.Config(), ["annotate.rescored=0.5", "annotate.tau_entropy=0.4",
                                                   "annotate.expert_share=1"])  # fmt: skip
    annotate(tmp_path / "own", config=config, iteration=1, questions=questions, ask_oracle=theirs, ask_self=shaky)
    rows = pq.read_table(tmp_path / "own" / "annotations.parquet").to_pylist()
    assert all(abs(row["dead_band"] - 0.02) < 1e-9 for row in rows)  # as wide as they moved
    assert found[0.0]["flips"] == found[0.0]["flips_without_band"] == found[0.05]["flips_without_band"] > 0


def test_a_judge_decides_how_far_descriptions_agree(tmp_path):
    """The same texts, and a judge who finds them as different as can be, or as alike."""
    chosen = settings.override(CONFIG, ["judge.base_url=http://127.0.0.1:1/v1", "judge.model=j",
                                        "annotate.agreement=judge"])  # fmt: skip
    oracles, owns = oracle(), own()
    owns.answers["q4"] = ("Much movement. Overall, the quality of this image is usable.", 0.1)

    def judge_saying(reply):
        def answer(prompts, sampling, label):
            assert {row["question_id"].partition("/")[0] for row in prompts.to_pylist()} == {"q4"}  # letters need none
            rows = [{"question_id": row["question_id"], "run": 0, "model": "j", "text": reply, "error": ""}
                    for row in prompts.to_pylist()]
            return pa.Table.from_pylist(rows, schema=COMPLETION)

        return answer

    for reply, delta, route in (("Score: 0", 0.0, "expert"), ("Score: 2", 1.0, "self"), ("none", 0.0, "expert")):
        annotate(tmp_path, config=chosen, iteration=1, questions=QUESTIONS, ask_oracle=oracles, ask_self=owns,
                 ask_judge=judge_saying(reply))
        (row,) = [row for row in pq.read_table(tmp_path / "annotations.parquet").to_pylist() if row["question_id"] == "q4"]
        assert (row["agreement"], row["route"]) == (delta, route)
