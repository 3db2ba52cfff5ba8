"""Every annotation becomes a sample or a drop with its reason, whatever the order of rows."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from medq_ray import questions, schema
from medq_ray.config import Evolve
from medq_ray.evolve.curate import curate, near_duplicate_texts
from tests.evolve import fake

SETTINGS = Evolve(tfidf_keep=1000)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return fake.write_images(tmp_path_factory.mktemp("images"), 6)


def run(tables, *, earlier=None, settings=SETTINGS, iteration=3):
    samples, drops = curate(
        tables["questions"], tables["annotations"], tables["verdicts"], tables["images"],
        earlier=earlier, settings=settings, iteration=iteration,
    )  # fmt: skip
    assert samples.schema == schema.SAMPLE and drops.schema == schema.DROP
    everyone = samples["question_id"].to_pylist() + drops["id"].to_pylist()
    assert sorted(everyone) == sorted(tables["annotations"]["question_id"].to_pylist())
    return {row["question_id"]: row for row in samples.to_pylist()}, {row["id"]: row for row in drops.to_pylist()}


def with_rows(tables, annotations, verdicts=()):
    return tables | {
        "annotations": pa.Table.from_pylist(list(annotations), schema=schema.ANNOTATION),
        "verdicts": pa.Table.from_pylist(list(verdicts), schema=schema.VERDICT),
    }


def test_an_unreviewed_label_becomes_a_sample_with_its_prompt_and_origin(images):
    samples, drops = run(fake.tables(images))
    assert not drops and len(samples) == 24
    sample = samples[f"{images[1]['image_id']}-how"]
    assert sample["prompt"].startswith("How severe is the degradation of this CT image?\nA. ")
    assert sample["answer"] in "ABC" and (sample["labelled_by"], sample["simulated"]) == ("oracle", True)
    assert (sample["iteration"], sample["uri"]) == (3, images[1]["uri"])


def test_each_way_to_be_no_label_has_its_reason(images):
    tables = fake.tables(images)
    asked = tables["questions"].to_pylist()
    letter, text = asked[0], asked[3]
    reviewed = fake.annotation(asked[1], "A", route="cold_start")
    rows = {
        "routing": fake.annotation(letter, "A", route="dropped", reason="both failed"),
        "needs a verdict": fake.annotation(asked[2], "A", route="expert"),
        "rejected": reviewed,
        "none of the": fake.annotation(asked[4], "F"),
        "no readable": fake.annotation(text, "A blurry thing."),
    }
    samples, drops = run(with_rows(tables, rows.values(), [fake.verdict(reviewed, "reject", "")]))
    assert not samples
    for reason, row in rows.items():
        drop = drops[row["question_id"]]
        assert reason in drop["reason"] and (drop["step"], drop["keeper"]) == ("label", "")


def test_the_verdict_decides_the_label_and_who_answers_for_it(images):
    tables = fake.tables(images)
    asked = tables["questions"].to_pylist()
    accepted = fake.annotation(asked[0], "A", route="cold_start")
    edited = fake.annotation(asked[1], "A", route="expert")
    by_self = {"route": "self", "labelled_by": "self"}
    confirmed, adopted = fake.annotation(asked[2], "A", **by_self), fake.annotation(asked[4], "A", **by_self)
    by_person = fake.verdict(confirmed, "accept", "A") | {"simulated": False}
    verdicts = [fake.verdict(accepted, "accept", "A"), fake.verdict(edited, "edit", "B"), by_person]
    samples, _ = run(with_rows(tables, [accepted, edited, confirmed, adopted], verdicts))
    expected = [
        (accepted, "A", "expert", True),
        (edited, "B", "expert", True),
        (confirmed, "A", "expert", False),
        (adopted, "A", "self", True),  # a simulated oracle confirmed it
    ]
    for row, answer, labelled_by, simulated in expected:
        sample = samples[row["question_id"]]
        assert (sample["answer"], sample["labelled_by"], sample["simulated"]) == (answer, labelled_by, simulated)


def held_out(images, number, **changes):
    """The images with one more, of dev, that has nothing to do with them but what `changes` say."""
    other = {"image_id": f"{number:016x}", "uri": "", "modality": "ct", "split": "dev", "patient": "q", "session": "r"}
    return fake.pooled([*images, {**other, **changes}])


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("patient of image", lambda row: {"patient": row["patient"]}),
        ("session of image", lambda row: {"session": row["session"]}),
        ("is a near-duplicate of one in dev", lambda row: {"phash": row["phash"] ^ 0b1011}),
    ],
)
def test_what_dev_or_test_knows_is_never_trained_on(images, why, changes):
    known = fake.pooled(images).to_pylist()
    tables = fake.tables(images) | {"images": held_out(images, 5, **changes(known[2]))}
    samples, drops = run(tables)
    assert {drop["step"] for drop in drops.values()} == {"leak"} and len(drops) == 4
    assert {drop["keeper"] for drop in drops.values()} == {f"{5:016x}"}
    assert all(why in drop["reason"] for drop in drops.values())
    assert images[2]["image_id"] not in {sample["image_id"] for sample in samples.values()}


def test_an_image_of_test_itself_is_never_trained_on(images):
    split = [{**row, "split": "test" if i == 2 else "pool"} for i, row in enumerate(images)]
    _, drops = run(fake.tables(images) | {"images": fake.pooled(split)})
    name = images[2]["image_id"]
    assert {(drop["step"], drop["reason"], drop["keeper"]) for drop in drops.values()} == {
        ("leak", f"image {name} is in test", name)
    }
    assert len(drops) == 4


def test_unlike_images_of_dev_and_unknown_patients_leak_nothing(images):
    unknown = [{**row, "patient": "", "session": ""} for row in images]
    far = {"phash": 0, "patient": "", "session": ""}
    assert not run(fake.tables(images) | {"images": held_out(unknown, 5, **far)})[1]
    twin = fake.pooled(images).to_pylist()[2]
    blurred = {"phash": twin["phash"], "sharpness": 0.5}  # the hash alone does not see the degradation
    assert not run(fake.tables(images) | {"images": held_out(images, 5, **blurred)})[1]


def test_both_images_of_a_comparison_are_looked_at(images):
    tables = fake.tables(images[:1])
    first, second = images[:2]
    other = {"second_id": second["image_id"], "second_uri": second["uri"]}
    question = tables["questions"].to_pylist()[0] | {"question_id": "c", "kind": "comparison"} | other
    one = {"questions": pa.Table.from_pylist([question], schema=schema.QUESTION)}
    one |= with_rows(tables, [fake.annotation(question, "A")]) | one
    known = fake.pooled([first, second])
    samples, _ = run(one | {"images": known})
    assert (samples["c"]["second_id"], samples["c"]["second_uri"]) == (second["image_id"], second["uri"])
    _, drops = run(one | {"images": fake.pooled([first, {**second, "split": "test"}])})
    assert drops["c"]["reason"] == f"image {second['image_id']} is in test"
    with pytest.raises(ValueError, match=f"image {second['image_id']} of question c has no perceptual hash"):
        run(one | {"images": known.slice(0, 1)})


def test_of_duplicate_images_the_owner_stays_and_is_named(images):
    twins = sorted(images[:3], key=lambda row: row["image_id"])
    alike = [{**row, "phash": 7} if row in twins else row for row in images]
    tables = fake.tables(images) | {"images": fake.pooled(alike)}
    samples, drops = run(tables)
    owner = twins[0]["image_id"]
    assert owner in {sample["image_id"] for sample in samples.values()}
    assert {drop["keeper"] for drop in drops.values()} == {owner} and len(drops) == 8
    # an image of which nothing is left to train on keeps nobody out
    without_owner = [row for row in tables["annotations"].to_pylist() if row["image_id"] != owner]
    _, drops = run(with_rows(tables, without_owner))
    assert {drop["keeper"] for drop in drops.values()} == {twins[1]["image_id"]}


@pytest.mark.parametrize("changes", [{"sharpness": 0.5}, {"noise": 2.0}, {"thumb": bytes([9] * 256)}, {"phash": 7 ^ 0b11111}])
def test_an_image_and_its_degraded_twin_both_stay(images, changes):
    """The hash hardly sees a degradation; sharpness, noise and thumbnail do. Five bits are another image."""
    twins = [{**images[0], "phash": 7}, {**images[1], "phash": 7, **changes}]
    tables = fake.tables(images[:2])
    assert not run(tables | {"images": fake.pooled(twins)})[1]
    same = fake.pooled([{**row, "phash": 7} for row in images[:2]])
    assert {drop["step"] for drop in run(tables | {"images": same})[1].values()} == {"duplicate"}


def test_what_is_named_as_the_keeper_stays():
    """Of images that are alike in many ways, under all rules at once: what a rule keeps, a later one may drop."""
    steps: Counter = Counter()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        images = [
            {"image_id": f"{i:016x}", "uri": "", "modality": str(rng.choice(["ct", "mri"])), "degradation": "blur",
             "severity": str(rng.choice(["mild", "severe"])), "phash": 255 << 8 * int(rng.integers(6)),
             "sharpness": float(rng.choice([1, 2]))} for i in range(12)
        ]  # fmt: skip
        tables = fake.tables(images)
        rows = [row for row in tables["annotations"].to_pylist() if rng.random() < 0.6]
        verdicts = [fake.verdict(row, "accept", row["label"]) for row in rows if rng.random() < 0.2]
        samples, drops = run(with_rows(tables, rows, verdicts), settings=Evolve(class_ratio=1.0))
        shown = {sample["image_id"] for sample in samples.values()}
        for drop in drops.values():
            moved = "which itself was dropped" in drop["reason"]
            steps[drop["step"], moved, drop["keeper"] == ""] += 1
            if drop["step"] == "diversity":
                assert drop["keeper"] in samples
            elif drop["step"] == "duplicate":
                assert drop["keeper"] in shown or (drop["keeper"] == "" and moved)
    assert {("duplicate", False, False), ("duplicate", True, False), ("diversity", False, False)} <= set(steps)


def test_of_duplicate_images_the_one_that_experts_worked_on_stays(images):
    twins = sorted(images[:3], key=lambda row: row["image_id"])
    alike = [{**row, "phash": 7} if row in twins else row for row in images]
    tables = fake.tables(images) | {"images": fake.pooled(alike)}
    seen = [row for row in tables["annotations"].to_pylist() if row["image_id"] == twins[1]["image_id"]]
    verdicts = [fake.verdict(seen[0], "accept", seen[0]["label"]), fake.verdict(seen[1], "reject", "")]
    _, drops = run(with_rows(tables, tables["annotations"].to_pylist(), verdicts))
    keepers = {drop["keeper"] for drop in drops.values() if drop["step"] == "duplicate"}
    assert keepers == {twins[1]["image_id"]} and len(drops) == 8 + 1


def test_an_image_of_an_earlier_iteration_stays_before_a_new_one(images):
    twins = sorted(images[:2], key=lambda row: row["image_id"])
    alike = [{**row, "phash": 7} if row in twins else row for row in images]
    tables = fake.tables(images) | {"images": fake.pooled(alike)}
    rows = tables["annotations"].to_pylist()
    first = [row for row in rows if row["image_id"] == twins[1]["image_id"]]
    samples, _ = run(with_rows(tables, first), iteration=0)
    earlier = pa.Table.from_pylist(list(samples.values()), schema=schema.SAMPLE)
    left = [row for row in rows if row["image_id"] != twins[1]["image_id"]]
    _, drops = run(with_rows(tables, left), earlier=earlier, iteration=1)
    assert {drop["keeper"] for drop in drops.values()} == {twins[1]["image_id"]} and len(drops) == 4


@pytest.mark.parametrize("seed", range(12))
def test_the_order_of_no_input_matters(images, seed):
    """Images that are alike, of one patient or in dev; labels of all routes; verdicts: each table in other orders."""
    rng = np.random.default_rng(seed)
    rows = [
        {**image, "phash": int(rng.integers(3)), "patient": f"p{rng.integers(9)}", "session": "",
         "split": str(rng.choice(["pool", "pool", "pool", "dev"])), "sharpness": float(rng.choice([1.0, 2.0]))}
        for image in images
    ]  # fmt: skip
    tables = fake.tables(images) | {"images": fake.pooled(rows)}
    changed = [
        {**row, "route": str(rng.choice(["oracle", "self", "expert", "dropped"]))}
        for row in tables["annotations"].to_pylist()
    ]
    verdicts = [
        fake.verdict(row, str(rng.choice(["accept", "reject"])), row["label"]) for row in changed if rng.random() < 0.5
    ]
    tables = with_rows(tables, changed, verdicts)
    settings = Evolve(tfidf_keep=2, tfidf_threshold=0.6, class_ratio=1.0, letter_ratio=1.0)
    first = [row["image_id"] in {images[0]["image_id"], images[3]["image_id"]} for row in changed]
    before, _ = run(with_rows(tables, [r for r, own in zip(changed, first, strict=True) if own], verdicts),
                    settings=settings, iteration=0)  # fmt: skip
    earlier = pa.Table.from_pylist(list(before.values()), schema=schema.SAMPLE)
    tables |= {"annotations": tables["annotations"].filter(pa.array([not own for own in first]))}
    expected = run(tables, earlier=earlier, settings=settings)
    for _ in range(3):
        shuffled = {name: table.take(rng.permutation(table.num_rows)) for name, table in tables.items()}
        found = run(shuffled, earlier=earlier.take(rng.permutation(earlier.num_rows)), settings=settings)
        assert [list(rows.items()) for rows in found] == [list(rows.items()) for rows in expected]


def test_order_of_rows_does_not_matter(images):
    alike = [{**row, "phash": 7} if i < 2 else row for i, row in enumerate(images)]
    tables = fake.tables(images) | {"images": fake.pooled(alike)}
    settings = Evolve(tfidf_keep=1, tfidf_threshold=0.5)
    expected = run(tables, settings=settings)
    assert {drop["step"] for drop in expected[1].values()} == {"duplicate", "diversity"}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shuffled = {name: table.take(rng.permutation(table.num_rows)) for name, table in tables.items()}
        found = run(shuffled, settings=settings)
        assert [list(rows.items()) for rows in found] == [list(rows.items()) for rows in expected]


def test_near_duplicate_descriptions_keep_the_reviewed_then_the_smallest_id():
    blur, ring = questions.describe("ct", "blur", "mild"), questions.describe("ct", "ring", "severe")
    texts = {"a": blur, "b": blur, "c": blur, "d": ring, "e": blur.replace("Mild", "mild")}
    assert near_duplicate_texts(texts, {"c"}, 0.95, 1) == {"a": "c", "b": "c", "e": "c"}
    assert near_duplicate_texts(texts, set(), 0.95, 1) == {"b": "a", "c": "a", "e": "a"}
    assert near_duplicate_texts(texts, {"c"}, 0.95, 2) == {"b": "c", "e": "c"}
    assert near_duplicate_texts(texts, set(), 1.0, 9) == {}
    assert near_duplicate_texts({}, set(), 0.95, 1) == {}


def test_an_image_whose_description_repeats_goes_with_all_its_questions(images):
    samples, drops = run(fake.tables(images), settings=Evolve(tfidf_keep=1, tfidf_threshold=0.0))
    kept = {sample["image_id"] for sample in samples.values()}
    dropped = {question_id.partition("-")[0] for question_id in drops}
    assert len(kept) == 1 and len(dropped) == 5 and not kept & dropped
    assert {drop["step"] for drop in drops.values()} == {"diversity"} and len(drops) == 20
    assert {drop["keeper"] for drop in drops.values()} == {f"{min(kept)}-description"}


def test_of_repeated_descriptions_the_reviewed_one_stays(images):
    tables = fake.tables(images)
    rows = [row for row in tables["annotations"].to_pylist() if row["question_id"].endswith("-description")]
    rows.sort(key=lambda row: row["question_id"])
    settings = Evolve(tfidf_keep=1, tfidf_threshold=0.0)
    for seen, keeper in (([], rows[0]), ([rows[3], rows[4]], rows[3])):
        verdicts = [fake.verdict(row, "accept", row["label"]) for row in seen]
        samples, drops = run(with_rows(tables, rows, verdicts), settings=settings)
        assert list(samples) == [keeper["question_id"]] and len(drops) == len(rows) - 1
        assert {drop["keeper"] for drop in drops.values()} == {keeper["question_id"]}


def test_descriptions_of_other_degradations_severities_and_modalities_are_no_near_duplicates():
    texts = {
        f"{modality}/{name}/{severity}": questions.describe(modality, name, severity)
        for modality, names in schema.DEGRADATIONS.items()
        for name in names
        for severity in schema.SEVERITIES[1:]
    }
    assert near_duplicate_texts(texts, set(), Evolve().tfidf_threshold, 1) == {}


def test_the_defaults_drop_no_sample_for_balance_and_a_ratio_drops_what_no_expert_saw(images):
    many = [{**images[1], "image_id": f"{i:016x}"} for i in range(9)]  # of one cell: they share their right answers
    tables = fake.tables(many)
    rows = [row for row in tables["annotations"].to_pylist() if row["question_id"].endswith("yes_no")]
    rows = [{**row, "label": "A" if i < 7 else "B"} for i, row in enumerate(rows)]
    seen = [fake.verdict(rows[6], "accept", "A")]
    assert not run(with_rows(tables, rows, seen))[1]
    samples, drops = run(with_rows(tables, rows, seen), settings=Evolve(class_ratio=1.5))
    assert [sample["answer"] for sample in samples.values()] == ["A", "A", "A", "B", "B"]
    assert rows[6]["question_id"] in samples  # the surplus is 4 of 7 Yes; what was reviewed comes first
    assert {drop["step"] for drop in drops.values()} == {"balance"} and len(drops) == 4
    assert all("'Yes' answers 7 of 9 yes_no questions about ct" in drop["reason"] for drop in drops.values())


def test_letters_are_balanced_by_the_setting(images):
    many = [{**images[1], "image_id": f"{i:016x}"} for i in range(8)]
    tables = fake.tables(many)
    rows = [{**row, "label": "A"} for row in tables["annotations"].to_pylist() if row["question_id"].endswith("-what")]
    for ratio, expected in ((None, [8]), (1.0, [2, 2, 2, 2]), (2.0, [4, 2, 1, 1])):
        samples, drops = run(with_rows(tables, rows), settings=Evolve(letter_ratio=ratio))
        letters = Counter(sample["answer"] for sample in samples.values())
        assert not drops and sorted(letters.values(), reverse=True) == expected


def test_annotations_without_question_or_hash_are_refused(images):
    tables = fake.tables(images)
    with pytest.raises(ValueError, match="not among the questions"):
        run(tables | {"questions": tables["questions"].slice(1)})
    with pytest.raises(ValueError, match="no perceptual hash"):
        run(tables | {"images": tables["images"].slice(1)})
