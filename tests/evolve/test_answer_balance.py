"""What balancing answers drops or rearranges, on cases worked out by hand and as properties."""

from collections import Counter

import numpy as np
import pytest

from medq_ray.evolve.balance import DEALT, dealt, overfull
from medq_ray.model.prompts import render
from medq_ray.questions import LETTERS

WHAT = ["blur", "noise", "ring", "none of these"]


def sample(number: int, words: str, kind: str = "what", options=WHAT, modality: str = "ct") -> dict:
    return {"question_id": f"q{number:03d}", "kind": kind, "modality": modality, "options": list(options),
            "answer": LETTERS[list(options).index(words)], "prompt": render("What is it?", options)}  # fmt: skip


def described(number: int) -> dict:
    return {"question_id": f"d{number}", "kind": "description", "modality": "ct", "options": [], "answer": "Fine.",
            "prompt": "Describe it."}  # fmt: skip


def said(samples: list[dict]) -> dict[str, str]:
    return {
        row["question_id"]: row["options"][LETTERS.index(row["answer"])] if row["options"] else row["answer"]
        for row in samples
    }


def random_samples(seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = [described(0)]
    for number in range(80):
        kind = str(rng.choice(["what", "how", "comparison", "yes_no"]))
        options = ["Yes", "No"] if kind == "yes_no" else WHAT[: 3 + (kind == "what")]
        rows.append(sample(number, str(rng.choice(options, p=[0.7, *[0.3 / (len(options) - 1)] * (len(options) - 1)])),
                           kind, options, str(rng.choice(["ct", "mri"]))))  # fmt: skip
    return rows


def test_the_surplus_of_an_answer_goes_last_ids_first():
    # 8 blur, 2 noise, 4 ring: noise and ring are there 3 times on average, so that 2 x 3 = 6 blur may stay
    answers = ["blur"] * 8 + ["noise"] * 2 + ["ring"] * 4
    samples = [sample(i, words) for i, words in enumerate(answers)]
    found = overfull(samples, set(), 2.0)
    assert sorted(found) == ["q006", "q007"]
    assert found["q006"] == ("'blur' answers 8 of 14 what questions about ct, other answers 3 on average", "")
    assert sorted(overfull(samples, {"q006", "q007"}, 2.0)) == ["q004", "q005"]
    assert not overfull(samples, set(), 3.0) and not overfull(samples, set(), None)


def test_reviewed_samples_are_never_dropped_for_balance():
    samples = [sample(i, "blur") for i in range(8)] + [sample(8, "noise")]
    assert not overfull(samples, {f"q{i:03d}" for i in range(8)}, 1.0)
    assert sorted(overfull(samples, {f"q{i:03d}" for i in range(6)}, 1.0)) == ["q006", "q007"]


def test_answers_are_compared_in_words_within_kind_and_modality():
    turned = [sample(i, "blur", options=np.roll(WHAT, i).tolist()) for i in range(4)]
    assert len({row["answer"] for row in turned}) == 4
    assert len(overfull([*turned, sample(4, "ring")], set(), 1.0)) == 3
    elsewhere = [sample(i, "blur", modality="mri") for i in range(5, 9)]
    assert len(overfull([*turned, sample(4, "ring"), *elsewhere], set(), 1.0)) == 3  # mri has one answer only
    assert not overfull([described(i) for i in range(9)], set(), 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_no_answer_is_left_more_often_than_the_ratio_allows(seed):
    samples, rng = random_samples(seed), np.random.default_rng(seed)
    reviewed = {row["question_id"] for row in samples if rng.random() < 0.2}
    found = overfull(samples, reviewed, 1.5)
    assert not found.keys() & reviewed
    assert found == overfull([samples[i] for i in rng.permutation(len(samples))], reviewed, 1.5)
    words = said(samples)
    for row in samples:
        group = [r for r in samples if (r["kind"], r["modality"]) == (row["kind"], row["modality"]) and r["options"]]
        counts = Counter(words[r["question_id"]] for r in group)
        for word, count in counts.items():
            others = (len(group) - count) / max(1, len(counts) - 1)
            own = {r["question_id"] for r in group if words[r["question_id"]] == word}
            left, limit = own - found.keys(), max(1, int(1.5 * others))
            assert len(counts) == 1 or len(left) <= limit or left <= reviewed
            assert len(left) >= min(len(own), limit)


def test_the_surplus_of_a_letter_changes_places_with_the_rarest():
    # 8 times A, 2 B, none C or D; even would be 2.5 each, 1.5 x that rounded up is 4
    samples = [sample(i, "blur") for i in range(8)] + [sample(i, "noise") for i in (8, 9)]
    found = {row["question_id"]: row for row in dealt(samples, 1.5)}
    assert [found[f"q{i:03d}"]["answer"] for i in range(10)] == list("AAAADCDCBB")
    assert found["q007"]["options"] == ["ring", "noise", "blur", "none of these"]
    assert found["q007"]["prompt"] == render("What is it?", ["ring", "noise", "blur", "none of these"])
    assert found["q003"] == samples[3]


@pytest.mark.parametrize("ratio", [1.0, 1.3])
@pytest.mark.parametrize("seed", range(8))
def test_dealing_keeps_what_is_said_and_drops_nothing(seed, ratio):
    samples, rng = random_samples(seed), np.random.default_rng(seed)
    found = dealt(samples, ratio)
    assert found == dealt([samples[i] for i in rng.permutation(len(samples))], ratio)
    assert said(found) == said(samples)
    before = {row["question_id"]: row for row in samples}
    for row in found:
        was = before[row["question_id"]]
        assert sorted(row["options"]) == sorted(was["options"]) and row["prompt"].startswith(was["prompt"][:8])
        if row["options"]:
            assert row["prompt"] == render("What is it?", row["options"])
        if row["kind"] not in DEALT:
            assert row == was
    for size in (3, 4):
        group = [row for row in found if row["kind"] in DEALT and len(row["options"]) == size]
        assert max(Counter(row["answer"] for row in group).values()) <= np.ceil(ratio * len(group) / size)
        changed = sum(row != before[row["question_id"]] for row in group)
        counts = Counter(before[row["question_id"]]["answer"] for row in group)
        assert changed == sum(max(0, n - int(np.ceil(ratio * len(group) / size))) for n in counts.values())
    assert dealt(found, ratio) == found


def test_even_letters_and_no_ratio_change_nothing():
    samples = [sample(i, WHAT[i % 4]) for i in range(8)]
    assert dealt(samples, 1.0) == samples
    skewed = [sample(i, "blur") for i in range(8)]
    assert dealt(skewed, None) == skewed
    assert dealt([], 1.5) == []
