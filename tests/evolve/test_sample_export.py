"""The exported folder against the documented layouts, field by field, and by the readers that are installed.

Versions of the layouts: TRL 1.16, LLaMA-Factory 0.9.5, ms-swift 4.6 (`medq_ray.evolve.export`).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.json
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from medq_ray import cli
from medq_ray.artifacts import Run, digest_file, read_json
from medq_ray.evolve.dataset import read_dataset, write_dataset
from medq_ray.evolve.export import export, trained_on
from medq_ray.images import pixel_digest, read_image
from tests.evolve import fake


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The first of them with text in its header."""
    rows = fake.write_images(tmp_path_factory.mktemp("images"), 4)
    header = PngImagePlugin.PngInfo()
    header.add_text("PatientName", "Doe")
    with Image.open(rows[0]["uri"]) as image:
        image.load()
        image.save(rows[0]["uri"], pnginfo=header)
    return rows


@pytest.fixture(scope="module")
def run_dir(images, tmp_path_factory):
    """A run whose first two iterations have been fine-tuned; the second has all samples, the first one image's."""
    root = tmp_path_factory.mktemp("run")
    samples, pool = fake.samples(images), fake.pooled(images)
    for t, rows in enumerate((samples.slice(0, 4), samples)):
        Run(root).step(f"iter-{t:02d}/evolve", lambda folder, rows=rows: {
            "n": write_dataset(folder / "dataset", rows, pool)["samples"]}, settings={}, inputs={})  # fmt: skip
    (root / "iter-02" / "evolve").mkdir(parents=True)  # begun, not finished
    return root


@pytest.fixture(scope="module")
def exported(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "data" / "demo"
    done = CliRunner().invoke(cli.main, ["export", str(run_dir), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "17 samples about 4 images" in done.output and "17 of the labels are simulated" in done.output
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_is_whole_and_can_be_moved(exported, images, tmp_path):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md", "card.json", "dataset_info.json", "images", "parts.jsonl", "tagged.jsonl",
    ]  # fmt: skip
    moved = shutil.copytree(exported, tmp_path / "elsewhere")
    for name in ("parts", "tagged"):
        for line in lines(moved / f"{name}.jsonl"):
            for image in line["images"]:
                assert pixel_digest(read_image(moved / image)) == Path(image).stem
    assert sorted(path.stem for path in (moved / "images").iterdir()) == sorted(row["image_id"] for row in images)
    assert str(exported.parent) not in "".join(p.read_text() for p in exported.iterdir() if p.is_file())


def test_copied_pictures_have_no_metadata(exported, images):
    name = exported / "images" / f"{images[0]['image_id']}.png"
    with Image.open(images[0]["uri"]) as source, Image.open(name) as copy:
        assert source.info and not copy.info
    assert b"Doe" not in name.read_bytes()


def test_parts_are_the_vision_data_set_of_trl(exported, run_dir):
    rows = trained_on(run_dir)[0].to_pylist()
    found = lines(exported / "parts.jsonl")
    assert [line["id"] for line in found] == [row["question_id"] for row in rows]
    for line, row in zip(found, rows, strict=True):
        assert set(line) == {"id", "messages", "images"}
        user, assistant = line["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        *pictures, text = user["content"]
        assert pictures == [{"type": "image"}] * len(line["images"]) and set(text) == {"type", "text"}
        assert assistant["content"] == [{"type": "text", "text": row["messages"][1]["content"][0]["text"]}]
        assert line["images"] == [f"images/{image}.png" for image in row["image_ids"]]


def test_tagged_is_the_sharegpt_layout_of_llamafactory_and_the_standard_one_of_swift(exported):
    parts, info = lines(exported / "parts.jsonl"), read_json(exported / "dataset_info.json")["medq"]
    found = lines(exported / info["file_name"])
    assert info["formatting"] == "sharegpt" and info["columns"] == {"messages": "messages", "images": "images"}
    tags = info["tags"]
    for line, other in zip(found, parts, strict=True):
        assert set(line) == {"id", *info["columns"].values()} and line["images"] == other["images"]
        assert [turn[tags["role_tag"]] for turn in line["messages"]] == [tags["user_tag"], tags["assistant_tag"]]
        user, assistant = (turn[tags["content_tag"]] for turn in line["messages"])
        assert user == "<image>" * len(line["images"]) + other["messages"][0]["content"][-1]["text"]
        assert assistant == other["messages"][1]["content"][0]["text"] and "<image>" not in assistant
    assert sum(len(line["images"]) == 2 for line in found) == 1


def test_both_files_have_one_arrow_type_all_through(exported):
    """What `datasets` and so all three readers load JSON lines with."""
    for name in ("parts", "tagged"):
        table = pyarrow.json.read_json(exported / f"{name}.jsonl")
        assert table.num_rows == 17 and table.column_names == ["id", "messages", "images"]


def test_the_card_goes_with_it(exported, run_dir):
    found, own = read_json(exported / "card.json"), trained_on(run_dir)[1]
    assert {name: found[name] for name in own} == own and found["pictures"] == "copied"
    assert found["files"] == {
        name: digest_file(exported / name) for name in ("dataset_info.json", "parts.jsonl", "tagged.jsonl")
    }
    text = (exported / "README.md").read_text()
    assert text.startswith("# Data card") and "ROOT_IMAGE_DIR" in text and "--dataset medq" in text


def test_an_iteration_can_be_chosen_and_pictures_linked(run_dir, images, tmp_path):
    out = tmp_path / "linked"
    command = ["export", str(run_dir), "--out", str(out), "--iteration", "0", "--link", "--json"]
    done = CliRunner().invoke(cli.main, command)
    assert done.exit_code == 0, done.output
    card = json.loads(done.output)
    assert (card["samples"], card["images"], card["pictures"]) == (4, 1, "linked")
    (picture,) = (out / "images").iterdir()
    assert picture.is_symlink() and str(picture.resolve()) in {row["uri"] for row in images}


def test_what_cannot_be_exported_is_said_in_one_line(run_dir, images, tmp_path):
    rows, card = trained_on(run_dir, 0)
    with pytest.raises(ValueError, match="no iteration has been fine-tuned there yet"):
        trained_on(tmp_path)
    with pytest.raises(ValueError, match="iteration 2 has no fine-tuning; those that have: 0, 1"):
        trained_on(run_dir, 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="full: not empty; choose another --out"):
        export(rows, card, tmp_path / "full")
    bad = rows.to_pylist()[0]
    other = next(row["uri"] for row in images if row["image_id"] != bad["image_ids"][0])
    for uri, complaint in ((str(tmp_path / "gone.png"), "gone.png: cannot be decoded"),
                           (other, f"is no longer the image {bad['image_ids'][0]}")):  # fmt: skip
        changed = rows.from_pylist([{**bad, "images": [uri]}], schema=rows.schema)
        with pytest.raises(ValueError, match=complaint):
            export(changed, card, tmp_path / "out")
    bad["messages"][0]["content"][-1]["text"] = "What does <video> show?"
    with pytest.raises(ValueError, match=f"sample {bad['question_id']}: its text has '<video>' in it"):
        export(rows.from_pylist([bad], schema=rows.schema), card, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export(rows, card, tmp_path / "out")["samples"] == 4  # over what the broken ones left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]


def test_datasets_reads_shards_and_exports(exported, run_dir, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(exported)
    for name in ("parts", "tagged"):
        data = datasets.load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir=str(tmp_path))
        data = data.cast_column("images", datasets.List(datasets.Image()))
        assert len(data) == 17 and data[0]["images"][0].size == (112, 112)
    folder = run_dir / "iter-01" / "evolve" / "dataset"
    shards = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert shards["question_id"][:] == read_dataset(folder)[0]["question_id"].to_pylist()


def test_trl_collates_an_export_with_loss_on_the_answers(exported, run_dir, tmp_path, monkeypatch):
    datasets, _ = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from medq_ray.evolve.encoding import IGNORED, SampleEncoder
    from medq_ray.model.tiny import embedded_checkpoint

    monkeypatch.chdir(exported)
    scope = {"datasets": datasets}
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    exec(code, scope)  # what the card tells people to do
    encoder = SampleEncoder(embedded_checkpoint())
    collator = DataCollatorForVisionLanguageModeling(encoder.processor, completion_only_loss=True)
    for row, line in zip(scope["data"], lines(exported / "parts.jsonl"), strict=True):
        batch = collator([dict(row)])
        pixels = [np.array(read_image(exported / image)) for image in line["images"]]
        texts = [turn["content"][-1]["text"] for turn in line["messages"]]
        sample = encoder.encode(pixels, *texts)
        ours, theirs = sample["labels"], batch["labels"][0]
        length = len(ours)
        assert batch["input_ids"][0, :length].tolist() == sample["input_ids"].tolist()
        assert theirs[:length].tolist() == ours.tolist()
        assert (ours != IGNORED).any()
