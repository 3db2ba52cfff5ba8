"""A world is balanced where it should be, long-tailed where it should be, true to itself and reproducible."""

import json
from collections import Counter
from pathlib import Path

import pytest

from medq_ray import questions
from medq_ray.artifacts import digest_folder
from medq_ray.images import pixel_digest, read_image
from medq_ray.schema import DEGRADATIONS, EVERYDAY, IMAGE, MODALITIES, QUESTION, TRUTH
from medq_ray.synthetic import world as world_module
from medq_ray.synthetic.asking import ask_all
from medq_ray.synthetic.plan import CELLS, RESERVED_SEEDS, ZIPF_ORDER, make_plan, split_sizes
from medq_ray.synthetic.world import UNFINISHED, World, make_image, read_world, write_world

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    write_world(out, 240, 5, size=SIZE)
    return out


@pytest.fixture(scope="module")
def world(folder) -> World:
    return read_world(folder)


def test_tables_have_the_schemas_and_say_where_the_pixels_are(world):
    assert world.images.schema.names == IMAGE.names
    assert world.truth.schema.names == TRUTH.names
    assert world.questions.schema.names == QUESTION.names
    ids = world.images["image_id"].to_pylist()
    assert len(set(ids)) == 240 and world.truth["image_id"].to_pylist() == ids
    for row in world.images.to_pylist()[::20]:
        assert Path(row["uri"]).is_absolute()
        assert pixel_digest(read_image(row["uri"])) == row["image_id"]


def test_truth_remakes_the_image(world):
    item = make_plan(5, world.settings["images"])[200]
    pixels, _ = make_image(item.modality, item.degradation, item.severity, item.seed, SIZE)
    assert pixel_digest(pixels) == world.images["image_id"][200].as_py()


def test_processes_and_reruns_make_the_same_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, "INLINE", 10**9)  # the fixture's world was made by several processes
    write_world(tmp_path, 300, 6, size=SIZE)  # leftovers of a larger world that was killed must not show
    (tmp_path / "world.json").rename(tmp_path / world_module.UNFINISHED)
    write_world(tmp_path, 240, 5, size=SIZE)
    assert digest_folder(tmp_path) == digest_folder(folder)


def test_a_killed_call_leaves_no_world_and_is_made_good_by_the_same_call(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, "INLINE", 10**9)

    def kill(count: int) -> None:
        raise KeyboardInterrupt

    write_world(tmp_path, 240, 5, size=SIZE)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, 240, 5, size=SIZE, progress=kill)
    assert not (tmp_path / "world.json").exists()
    with pytest.raises(ValueError, match="no finished world"):
        read_world(tmp_path)
    seen = []
    write_world(tmp_path, 240, 5, size=SIZE, progress=seen.append)
    assert sum(seen) == 240 and digest_folder(tmp_path) == digest_folder(folder)


def test_splits_share_neither_patients_nor_seeds():
    items = make_plan(1, split_sizes(6000, None, None))
    owner = {}
    for item in items:
        assert owner.setdefault(item.patient, (item.split, item.modality)) == (item.split, item.modality)
    assert len({item.seed for item in items}) == len(items)
    assert min(item.seed for item in items) >= 2**63
    per_patient = Counter(item.patient for item in items if item.split == "pool")
    assert set(per_patient.values()) == {1, 2, 3, 4}


def test_pool_is_long_tailed():
    pool = [item for item in make_plan(2, {"pool": 8000, "dev": 30, "test": 30}) if item.split == "pool"]
    share = Counter(
        "clean" if i.degradation == "none" else "everyday" if i.degradation in EVERYDAY else "specific" for i in pool
    )
    assert share == {"clean": 5600, "everyday": 2000, "specific": 400}
    assert all(1550 < count < 1650 for count in Counter(i.modality for i in pool).values())
    tail = Counter((i.modality, i.degradation) for i in pool if (i.modality, i.degradation) in ZIPF_ORDER)
    assert tail[ZIPF_ORDER[0]] > 2 * tail[ZIPF_ORDER[4]] > 2 * tail[ZIPF_ORDER[-1]] > 0
    severities = Counter(i.severity for i in pool)
    assert severities["none"] == 5600 and abs(severities["mild"] - severities["severe"]) < 200


@pytest.mark.parametrize("count", [5, 60, 150, 301])
def test_dev_and_test_are_balanced(count):
    items = make_plan(3, {"pool": 50, "dev": count, "test": count})
    for split in ("dev", "test"):
        chosen = [item for item in items if item.split == split]
        cells = Counter((i.modality, i.degradation) for i in chosen)
        counts = [cells[cell] for cell in CELLS]
        assert len(chosen) == count and max(counts) - min(counts) <= 1
        for cell in cells:
            graded = Counter(i.severity for i in chosen if (i.modality, i.degradation) == cell and cell[1] != "none")
            assert abs(graded["mild"] - graded["severe"]) <= 1


def test_split_sizes():
    assert split_sizes(600, None, None) == {"pool": 400, "dev": 100, "test": 100}
    assert split_sizes(300, None, None) == {"pool": 180, "dev": 60, "test": 60}
    assert split_sizes(8450, 150, 300) == {"pool": 8000, "dev": 150, "test": 300}
    with pytest.raises(ValueError, match="cannot hold"):
        split_sizes(100, 50, 50)


def test_answers_follow_from_the_truth(world):
    truth = {row["image_id"]: row for row in world.truth.to_pylist()}
    asked = world.questions.to_pylist()
    assert {truth[q["image_id"]]["split"] for q in asked} == {"dev", "test"}
    assert len(asked) == 4 * 120 == 4 * len({q["image_id"] for q in asked})
    for question in asked:
        row = truth[question["image_id"]]
        cell = row["degradation"], row["severity"]
        if question["kind"] == "description":
            fields = questions.read_description(question["answer"])
            assert (fields["degradation"], fields["severity"]) == cell and fields["modality"] == row["modality"]
            continue
        options, text = question["options"], question["text"]
        assert question["answer"] == questions.gold_letter(question["kind"], text, options, *cell)
        chosen = options[questions.LETTERS.index(question["answer"])]
        if question["kind"] == "what":
            assert chosen == questions.DEGRADATION_NAMES.get(cell[0], questions.NOTHING)
        assert f"degradation:{cell[0]}" in question["capabilities"]


def test_questions_are_mixed_evenly():
    items = make_plan(8, {"dev": 280, "test": 280})
    columns = ("modality", "degradation", "severity")
    truth = {item.uri: {"image_id": item.uri, **{k: getattr(item, k) for k in columns}} for item in items}
    asked = ask_all(truth.values(), truth, 8)
    for kind, letters in (("what", 4), ("how", 3)):
        answers = Counter(q["answer"] for q in asked if q["kind"] == kind)
        assert len(answers) == letters and min(answers.values()) > 0.7 * 560 / letters
    for kind in ("yes_no", "how"):
        assert 0.4 < sum(q["scope"] == "general" for q in asked if q["kind"] == kind) / 560 < 0.6
    degraded = [q for q in asked if q["kind"] == "yes_no" and truth[q["image_id"]]["severity"] != "none"]
    specific = [q["answer"] for q in degraded if q["scope"] == "specific"]
    assert 0.4 < specific.count("A") / len(specific) < 0.6
    assert all(q["answer"] == "A" for q in degraded if q["scope"] == "general")


def test_reserved_seeds_are_refused_by_worlds_only(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        write_world(tmp_path / "file", 60, 1)
    with pytest.raises(ValueError, match="embedded models"):
        write_world(tmp_path, 60, RESERVED_SEEDS)
    assert make_image("mri", "none", "none", RESERVED_SEEDS, 16)[0].shape == (16, 16, 3)
    with pytest.raises(ValueError, match="no cell mri/smoke"):
        make_image("mri", "smoke", "mild", 0)


def test_what_is_no_world_is_named_in_one_line(folder, tmp_path):
    write_world(tmp_path, 30, 1, size=8)
    settings = json.loads((tmp_path / "world.json").read_text())
    (tmp_path / "world.json").write_text("{")
    with pytest.raises(ValueError, match="no finished world"):
        read_world(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({**settings, "format": 0}))
    with pytest.raises(ValueError, match="another format"):
        read_world(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({**settings, "digest": "0"}))
    with pytest.raises(ValueError, match="do not belong together"):
        read_world(tmp_path)
    (tmp_path / "truth.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="truth.parquet"):
        read_world(tmp_path)
    with pytest.raises(ValueError, match="no finished world") as caught:
        read_world(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_specific_cells_are_all_in_the_tail():
    specific = {(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d not in EVERYDAY}
    assert set(ZIPF_ORDER) == specific


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    precious = tmp_path / "images" / "pool" / "000001.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"mine")
    with pytest.raises(ValueError, match="not empty and no world of ours"):
        write_world(tmp_path, 60, 1)
    assert precious.read_bytes() == b"mine"


def test_a_world_in_the_making_can_be_made_again(tmp_path):
    write_world(tmp_path / "whole", 60, 1)
    write_world(tmp_path / "killed", 60, 2)
    (tmp_path / "killed" / "world.json").rename(tmp_path / "killed" / UNFINISHED)
    assert write_world(tmp_path / "killed", 60, 1)["digest"] == read_world(tmp_path / "whole").digest
    assert not (tmp_path / "killed" / UNFINISHED).exists()


def test_another_finished_world_is_not_replaced(tmp_path):
    before = write_world(tmp_path, 60, 1)
    for images, seed in ((60, 2), (90, 1)):
        with pytest.raises(ValueError, match="another finished world"):
            write_world(tmp_path, images, seed)
    assert read_world(tmp_path).digest == before["digest"] == write_world(tmp_path, 60, 1)["digest"]
