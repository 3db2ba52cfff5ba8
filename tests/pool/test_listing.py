"""The manifest: whose, where, which split; nobody's name; nothing opened twice."""

import os
import zipfile
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool import listing
from medq_ray.pool.decode import Limits, Sandbox
from medq_ray.pool.listing import list_source, passed_over
from medq_ray.pool.sources import Options
from medq_ray.pool.store import create_pool
from medq_ray.synthetic.world import write_world


@pytest.fixture
def pool(tmp_path):
    return create_pool(tmp_path / "p", "embedded", 256, salt="s")


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "root" / "ct"
    folder.mkdir(parents=True)
    for i in range(3):
        draw(folder / f"{i}.png", i)
    return folder


def draw(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def listed(pool, root, split="pool", source="images", **options) -> list[dict]:
    return list_source(pool, source, root, split, Options(**options), Limits()).to_pylist()


def test_every_image_is_a_row_with_its_terms(pool, root):
    rows = listed(pool, root)
    assert [Path(row["uri"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert {(row["modality"], row["split"], row["source"], row["problem"]) for row in rows} == {("ct", "pool", "images", "")}
    assert all(row["licence"] and row["share"] is False for row in rows)
    assert len({row["item"] for row in rows}) == 3


def test_a_file_that_is_as_it_was_is_not_opened_again(pool, root, monkeypatch):
    opened = []
    monkeypatch.setattr(Sandbox, "expand", lambda self, source, row, options: opened.append(Path(row.path).name) or [row])
    first = listed(pool, root, modality="ct")
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    opened.clear()
    draw(root / "3.png", 3)
    draw(root / "1.png", 9)
    os.utime(root / "1.png", ns=(1, 1))
    (root / "0.png").unlink()
    second = listed(pool, root, modality="ct")
    assert sorted(opened) == ["1.png", "3.png"]
    assert [Path(row["uri"]).name for row in second] == ["1.png", "2.png", "3.png"]
    items = [row["item"] for row in first]
    assert second[1]["item"] == items[2] and second[0]["item"] not in items


def test_a_killed_listing_goes_on_where_it_was(pool, root, monkeypatch):
    whole = listed(create_pool(pool.root.parent / "other", "embedded", 256, salt="s"), root, modality="ct")
    monkeypatch.setattr(listing, "BATCH", 1)
    opened = []

    def expand(self, source, row, options):
        opened.append(Path(row.path).name)
        if row.path.endswith("2.png") and opened.count("2.png") == 1:
            raise KeyboardInterrupt
        return [listing.replace(row, modality="ct")]

    monkeypatch.setattr(Sandbox, "expand", expand)
    with pytest.raises(KeyboardInterrupt):
        listed(pool, root, modality="ct")
    assert listed(pool, root, modality="ct") == whole
    assert opened == ["0.png", "1.png", "2.png", "2.png"] and not list((pool.private / "listing").rglob("*.parquet"))


def test_a_split_is_todays_word(pool, root):
    before = listed(pool, root)
    after = listed(pool, root, split="dev")
    assert {row["split"] for row in after} == {"dev"}
    assert [row["item"] for row in before] == [row["item"] for row in after]


def test_a_source_without_splits_of_its_own_wants_one(pool, root):
    with pytest.raises(ValueError, match="'images' does not say which image belongs to which split; give --split"):
        listed(pool, root, split="source")


def test_an_image_without_a_modality_is_set_aside_with_what_to_do(pool, tmp_path):
    draw(tmp_path / "x.png", 0)
    rows = listed(pool, tmp_path)
    assert "--modality" in rows[0]["problem"]
    assert listed(pool, tmp_path, modality="mri")[0]["problem"] == ""


def test_files_and_batches_make_no_difference(pool, root, monkeypatch):
    whole = listed(pool, root)
    monkeypatch.setattr(listing, "BATCH", 1)
    assert listed(pool, root) == whole


def test_a_folder_without_images_is_told(pool, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected files that end with .png.*found none"):
        listed(pool, tmp_path / "empty")


def test_patients_and_sessions_are_salted(tmp_path):
    """The same person is the same key in one pool, another in a pool with another salt, and never readable."""
    keys = {}
    for salt in ("one", "two"):
        pool = create_pool(tmp_path / salt, "embedded", 256, salt=salt)
        lister = listing.Lister(pool, "images", "pool", Options(), Limits())
        row = listing.Row("/x.png", modality="ct", patient="Mueller^Hans", session="1.2.3")
        again = listing.Row("/y.png", modality="ct", patient="Mueller^Hans", session="1.2.4")
        records = [lister.record(one, "f", "") for one in (row, again)]
        keys[salt] = records[0]["patient"]
        assert records[0]["patient"] == records[1]["patient"] and records[0]["session"] != records[1]["session"]
        assert "Mueller" not in str(records) and "1.2.3" not in str(records)
    assert keys["one"] != keys["two"]


def test_free_text_is_no_label(pool):
    lister = listing.Lister(pool, "images", "pool", Options(), Limits())
    row = listing.Row("/x.png", modality="ct", labels={"comment": "Mr Mueller moved a lot during the examination"})
    record = lister.record(row, "f", listing.unfit(row))
    assert record["labels"] == "{}" and "expected words of at most 32 letters" in record["problem"]
    assert "Mueller" not in str(record)


def test_what_is_passed_over_is_counted(pool, root):
    (root / "notes.txt").touch()
    (root / "README").touch()
    (root / "scan.Mueller_Hans").touch()
    (root / "elsewhere").symlink_to(pool.root)
    table = list_source(pool, "images", root, "pool", Options(), Limits())
    assert passed_over(pool, root, table) == {".txt": 1, "others": 2, "links to folders": 1}
    inside = replace(pool, root=root.resolve())  # as if the pool lay there
    assert passed_over(inside, root, table) == {"links to folders": 1}


def test_another_modality_is_another_image(pool, root):
    """It may be windowed in another way."""
    first, second = (listed(pool, root, modality=modality) for modality in ("mri", "ct"))
    assert not {row["item"] for row in first} & {row["item"] for row in second}


def test_the_release_s_own_split_is_kept_beside_the_user_s(pool, tmp_path):
    write_world(tmp_path / "w", 40, 1, size=56)
    assert {row["split"] for row in listed(pool, tmp_path / "w", source="world")} == {"pool"}
    again = listed(pool, tmp_path / "w", source="world", split="source")
    assert {row["split"] for row in again} == {"pool", "dev", "test"}


def test_a_problem_is_forgotten_when_tried_again(pool, root, monkeypatch):
    def crash(self, source, row, options):
        raise Refused("timeout: not decoded within 1 s")

    with monkeypatch.context() as patched:
        patched.setattr(Sandbox, "expand", crash)
        assert {row["problem"] for row in listed(pool, root)} == {"timeout: not decoded within 1 s"}
    assert {row["problem"] for row in listed(pool, root)} == {"timeout: not decoded within 1 s"}
    table = list_source(pool, "images", root, "pool", Options(), Limits(), retry=True)
    assert set(table["problem"].to_pylist()) == {""}


def test_a_file_name_that_is_not_utf8_is_set_aside(pool, root):
    os.rename(root / "1.png", os.fsencode(root) + b"/M\xfcller.png")
    rows = listed(pool, root)
    assert [bool(row["problem"]) for row in rows] == [False, False, True] and "in UTF-8" in rows[-1]["problem"]


def test_the_pool_itself_is_no_source(root):
    pool = create_pool(root / "p", "embedded", 256, salt="s")
    draw(pool.private / "thumbnail.png", 5)
    assert [Path(row["uri"]).name for row in listed(pool, root)] == ["0.png", "1.png", "2.png"]


def test_a_zip_with_one_bad_member_is_tried_again_as_a_whole(pool, tmp_path):
    """Nothing of it is lost: not the good members, not the reason."""
    written = write_zip(tmp_path / "study.zip")
    first = list_source(pool, "dicom", tmp_path, "pool", Options(), Limits())
    again = list_source(pool, "dicom", tmp_path, "pool", Options(), Limits(), retry=True)
    assert first.num_rows == written and again.equals(first)
    assert sum(problem != "" for problem in again["problem"].to_pylist()) == 1


def write_zip(path: Path) -> int:
    """Two slices and a member that is no DICOM file; how many members."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    with zipfile.ZipFile(path, "w") as archive:
        for i in range(2):
            data = Dataset()
            data.Modality, data.PatientID, data.SOPInstanceUID, data.SOPClassUID = "CT", "p", generate_uid(), "1.2.840.10008.5.1.4.1.1.2"
            data.Rows = data.Columns = 8
            data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelData = 8, 8, 7, bytes([i]) * 64
            data.file_meta = FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            buffer = io.BytesIO()
            data.save_as(buffer, enforce_file_format=True)
            archive.writestr(f"{i}.dcm", buffer.getvalue())
        archive.writestr("2.dcm", b"no picture")
    return 3
