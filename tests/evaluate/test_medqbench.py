"""A release is read by the official rules, its images keep their bytes, and what is dropped is told."""

import csv
import hashlib
import json
import random
import re
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.evaluate.medqbench import FILES, convert_answer, kind_of, modality_of, read_release
from medq_ray.evaluate.published import COUNTS, KIND_COUNTS
from medq_ray.evaluate.tsv import MISSING
from medq_ray.images import pixel_digest
from medq_ray.schema import BENCH_QUESTION
from tests.evaluate.release import GOLDEN, asked, encoded, perception_test, picture, write_release, write_tsv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_release(tmp_path / "release")
    return tmp_path / "release"


def rows_by_id(table) -> dict[str, dict]:
    return {row["question_id"]: row for row in table.to_pylist()}


def id_of(data: bytes) -> str:
    with Image.open(BytesIO(data)) as image:
        return pixel_digest(np.asarray(image.convert("RGB")))


def alone(tmp_path: Path, rows: list[dict[str, str]], **options):
    """A release of one perception file."""
    (tmp_path / "alone").mkdir(exist_ok=True)
    write_tsv(tmp_path / "alone" / "medqbench_QA_test.tsv", rows)
    return read_release(tmp_path / "alone", "test", tmp_path / "images", **options)


@pytest.mark.parametrize(
    ("value", "letter"),
    [
        ("a", "A"), (" B ", "B"), ("0", "A"), ("3", "D"), ("1", "B"), (" 2\n", "C"),
        ("1.0", "1.0"), ("4", "4"), ("E", "E"), ("Yes", "Yes"), ("-1", "-1"), ("", ""),
    ],
)  # fmt: skip
def test_answers_are_converted_as_officially(value, letter):
    assert convert_answer(value) == letter


def test_any_answer_is_converted_and_only_to_a_letter_or_to_itself():
    rng = random.Random(0)
    alphabet = "ABCDEabcde0123456789 .-+_\t\n\0٣½ßÿ漢\ud800"
    for _ in range(20_000):
        value = "".join(rng.choices(alphabet, k=rng.randrange(6)))
        converted = convert_answer(value)
        assert converted == convert_answer(value) and convert_answer(converted) == converted
        assert converted in ("A", "B", "C", "D", value.strip())
    assert convert_answer("9" * 5000) == "9" * 5000  # more digits than int takes


def test_what_counts_as_missing_is_what_pandas_reads_so():
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert MISSING == parsers.STR_NA_VALUES


def test_questions_are_what_the_files_say(folder, tmp_path):
    release = read_release(folder, "test", tmp_path / "images")
    assert (release.name, release.split) == ("MedQ-Bench", "test")
    assert list(release.tables) == ["perception", "description", "comparison"]
    assert all(table.schema == BENCH_QUESTION for table in release.tables.values())
    rows = rows_by_id(release.tables["perception"])
    said = {name: (row["kind"], row["modality"], row["options"], row["answer"]) for name, row in rows.items()}
    assert said == {
        "perception-5": ("yes_no", "mri", ["Yes", "No", "", ""], "B"),
        "perception-6": ("what", "mri", ["Motion", "Undersampling", "Metal", "Noise"], "A"),
        "perception-7": ("how", "mri", ["Good", "Usable", "Reject", ""], "C"),
        "perception-8": ("what", "ct", ["a, b", "c\td", "'e'", "f"], "D"),
        "perception-9": ("what", "fundus", ["Blur", "", "Bubbles", ""], "C"),
        "perception-10": ("what", "ultrasound", ["Blur", "Noise", "Ring", ""], "D"),
        "perception-11": ("what", "", ["Blur", "Noise", "", ""], "1.0"),
        "perception-14": ("yes_no", "", ["Yes", "No", "", ""], ""),
        "perception-11+2": ("how", "", ["Very", "Not", "", ""], "B"),
    }
    assert rows["perception-8"]["text"] == 'A "hard"\tcase,\nüber 2 Zeilen: 漢字?'
    assert rows["perception-6"]["capabilities"] == ["kind:what", "modality:mri"]
    assert json.loads(rows["perception-6"]["extra"]) == {"difficulty": "7", "Körperteil": "Knie"}
    assert {row["task"] for row in rows.values()} == {"perception"}
    described = release.tables["description"].to_pylist()[0]
    assert [described[name] for name in ("kind", "text", "options", "answer")] == ["description", "", [], GOLDEN]
    compared = release.tables["comparison"]
    assert compared["answer"].to_pylist() == [GOLDEN, "The first is better."]
    assert [json.loads(extra) for extra in compared["extra"].to_pylist()] == [{"fine": "1"}, {"fine": "0"}]


def test_cells_are_read_as_pandas_reads_them(folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    for split in ("test", "dev"):
        release = read_release(folder, split, tmp_path / "images")
        for task, table in release.tables.items():
            frame = pandas.read_csv(folder / FILES["MedQ-Bench"][split][task], sep="\t", dtype=str).fillna("")
            dropped = [row["reason"] for row in release.dropped.to_pylist() if row["id"].startswith(task)]
            frame = frame.drop(index=[int(re.match(r"row (\d+)", reason)[1]) - 1 for reason in dropped])
            assert table["text"].to_pylist() == (list(frame["question"]) if "question" in frame else [""] * len(frame))
            if task == "perception":
                letters = [frame[letter] if letter in frame else [""] * len(frame) for letter in "ABCD"]
                assert table["options"].to_pylist() == [list(row) for row in zip(*letters, strict=True)]
            else:
                assert table["answer"].to_pylist() == list(frame["description"])


def test_images_keep_their_bytes_and_references_lead_to_them(folder, tmp_path):
    release = read_release(folder, "test", tmp_path / "images")
    rows = rows_by_id(release.tables["perception"])
    png, jpeg, other = picture(0), picture(1, "JPEG"), picture(2)
    for name, data, suffix in (
        ("5", png, ".png"), ("6", png, ".png"), ("14", png, ".png"), ("8", jpeg, ".jpg"), ("7", other, ".png"),
        ("9", other, ".png"), ("11", jpeg, ".jpg"), ("11+2", jpeg, ".jpg"),
    ):  # fmt: skip
        row = rows[f"perception-{name}"]
        path = Path(row["uri"])
        assert path == tmp_path / "images" / (hashlib.sha256(data).hexdigest()[:16] + suffix)
        assert path.read_bytes() == data and row["image_id"] == id_of(data)
    assert Path(rows["perception-11"]["second_uri"]).read_bytes() == png
    assert rows["perception-5"]["second_uri"] == ""
    first, second = release.tables["comparison"].to_pylist()
    assert (first["uri"], first["second_uri"]) == (second["second_uri"], second["uri"])
    assert Path(first["uri"]).read_bytes() == picture(4)
    assert Path(first["second_uri"]).read_bytes() == picture(5, "JPEG")
    named = {path.name for path in (tmp_path / "images").iterdir()}
    assert named == {Path(uri).name for table in release.tables.values() for row in table.to_pylist()
                     for uri in (row["uri"], row["second_uri"]) if uri}  # fmt: skip


def test_reading_again_gives_the_same_and_writes_nothing(folder, tmp_path):
    first = read_release(folder, "test", tmp_path / "images")
    stamps = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "images").iterdir()}
    again = read_release(folder, "test", tmp_path / "images")
    assert stamps == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "images").iterdir()}
    assert (first.tables, first.dropped, first.notes) == (again.tables, again.dropped, again.notes)


def test_what_is_dropped_and_what_is_odd_is_told(folder, tmp_path):
    release = read_release(folder, "test", tmp_path / "images")
    assert [(row["id"], row["step"]) for row in release.dropped.to_pylist()] == [
        ("perception-12", "no image"),
        ("perception-13", "image"),
        ("perception-15", "reference"),
        ("perception-16", "reference"),
        ("description-2", "description"),
        ("comparison-2", "images"),
    ]
    assert not any(str(tmp_path) in row["reason"] for row in release.dropped.to_pylist())
    for said in (
        "medqbench_QA_test.tsv: dropped, reference: 2 rows, the first is row 11 (index '15'): no row '13'",
        "dropped, image: 1 row, the first is row 9 (index '13'): cannot be decoded",
        "an option 'None' is left out, for the official loader finds nothing there: 1 row, the first is row 6",
        "an answer that is not the letter of an option, so that no offered letter is right: 2 rows, the first is row 6",
        "no answer, so that no letter is right: 1 row, the first is row 10 (index '14')",
        "an index that an earlier row has; its question has a suffix: 1 row, the first is row 13 (index '11')",
        "9 questions (2 yes_no, 5 what, 2 how), where the test split is known to have 1,305 (558 yes_no, 258 what",
        "medqbench_description_test.tsv: 2 questions, where the test split is known to have 221",
        "paired_description_test.tsv: dropped, images: 1 row, the first is row 3 (index '2'): expected 2, found 1",
    ):
        assert sum(said in note for note in release.notes) == 1, said
    assert not any("\n" in note for note in release.notes)


def test_the_dev_split_with_image_paths_marks_and_half_empty_questions(folder, tmp_path):
    release = read_release(folder, "dev", tmp_path / "images")
    perception, described, compared = (release.tables[task].to_pylist() for task in release.tables)
    assert [row["answer"] for row in perception] == ["B", "A"] and perception[0]["uri"] == perception[1]["uri"]
    assert [(row["modality"], row["capabilities"]) for row in perception] == [("", ["kind:yes_no"])] * 2
    assert [row["text"] for row in described] == ["Describe this.", ""]
    assert [Path(row["uri"]).read_bytes() for row in described] == [picture(6), picture(7)]
    assert [Path(compared[0][name]).read_bytes() for name in ("uri", "second_uri")] == [picture(6), picture(8)]
    assert [(row["id"], row["step"]) for row in release.dropped.to_pylist()] == [("description-2", "image")]
    assert "2 questions, where the dev split is known to have 1,295" in release.notes[0]


def test_a_pre_release_is_read_and_a_missing_file_is_told(folder, tmp_path):
    (folder / "medqbench_QA_test.tsv").rename(folder / "medqbench_QA.tsv")
    release = read_release(folder, "all", tmp_path / "images")
    assert list(release.tables) == ["perception"]
    assert any("medqbench_description.tsv: not in" in note and "no description task" in note for note in release.notes)
    assert not any("known to have" in note for note in release.notes)


def test_medq_deg_has_options_to_e_and_its_own_severities(tmp_path):
    row = asked("0", "Which organ?", "Liver|Lung|Heart|Skin", "e", encoded(picture(0)), modality="X-ray", source="S")
    more = {"E": "Eye", "degradation_type": "Gaussian Noise", "degradation_severity": "L2"}
    write_tsv(tmp_path / "MedQ-Robust-simulate-test.tsv", [row | more, row | more | {"index": "1", "answer": "0"}])
    release = read_release(tmp_path, "simulate-test", tmp_path / "images")
    first, second = release.tables["perception"].to_pylist()
    assert release.name == "MedQ-Deg" and not any("known to have" in note for note in release.notes)
    assert (first["options"], first["answer"]) == (["Liver", "Lung", "Heart", "Skin", "Eye"], "E")
    assert second["answer"] == "0"  # its official loader knows letters only
    assert first["capabilities"] == ["degradation:gaussian noise", "kind:what", "modality:x-ray", "severity:l2"]
    assert json.loads(first["extra"]) == {"source": "S"}


def test_a_column_map_names_columns_that_are_called_something_else(folder, tmp_path):
    release = read_release(folder, "test", tmp_path / "images", {"severity": "level"})
    first, second = release.tables["description"].to_pylist()
    assert "severity:mild" in first["capabilities"] and "severity:none" in second["capabilities"]
    assert json.loads(first["extra"]) == {}
    row = asked("0", "Is it?", "Yes|No", "A", encoded(picture(0)))
    row = {"gold": row.pop("answer"), "answer": "B", **row}
    [mapped] = alone(tmp_path, [row], columns={"answer": "gold"}).tables.values()
    assert mapped["answer"].to_pylist() == ["A"]
    assert json.loads(mapped["extra"][0].as_py()) == {"answer": "B"}  # what a mapped name leaves over is kept
    with pytest.raises(ValueError, match="'grade' is none of our columns"):
        read_release(folder, "test", tmp_path / "images", {"grade": "level"})
    with pytest.raises(ValueError, match="no file has a column 'lvl'"):
        read_release(folder, "test", tmp_path / "images", {"severity": "lvl"})


def test_what_is_no_release_is_refused_in_one_line_that_helps(folder, tmp_path):
    path = tmp_path / "alone" / "medqbench_QA_test.tsv"
    path.parent.mkdir()
    header = b"index\tquestion\tA\tB\tanswer\timage\n"
    for data, said in (
        (b"", "no column index; it has none"),
        (header.replace(b"answer", b"gold"), "no column answer; it has 'index', .*'gold'.*--map OURS=THEIRS"),
        (header.replace(b"image", b"picture"), "no column image or image_path; .*'picture'.*--map"),
        (header, "none of its 0 rows can be used"),
        (header + b"0\tIs it?\tYes\tNo\tA\tnan\n", "none of its 1 rows .*dropped, no image: 1 row"),
        (header + b"0\tIs it?\tYes\n", "none of its 1 rows .*expected 6, found 3: is the file cut short"),
        (header.decode().encode("utf-16"), "no column|no tab-separated table"),
        (header + b"0\tIs\rit?\tYes\tNo\tA\tnan\n", "no tab-separated table after row 0"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it has 'version https"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=said) as refused:
            read_release(path.parent, "test", tmp_path / "images")
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="unknown split 'train'; there are test, dev"):
        read_release(folder, "train", tmp_path / "images")
    with pytest.raises(ValueError, match="none of MedQ-Robust-good-dev.tsv; it has files of the split test, dev"):
        read_release(folder, "good-dev", tmp_path / "images")
    with pytest.raises(ValueError, match="name the folder that has the TSV files"):
        read_release(tmp_path / "nowhere", "test", tmp_path / "images")


def test_the_limit_of_csv_is_put_back_and_long_cells_are_read(tmp_path):
    before = csv.field_size_limit()
    data = picture(0, side=300)
    assert len(encoded(data)) > before
    release = alone(tmp_path, [asked("0", "Is it?", "Yes|No", "A", encoded(data))])
    assert release.tables["perception"]["image_id"].to_pylist() == [id_of(data)]
    assert csv.field_size_limit() == before


def official_pass(images: dict[str, str]) -> dict[str, str] | None:
    """What a single pass over index -> image makes of references; None where one leads to no image."""
    images = dict(images)
    for index, value in images.items():
        if len(value) <= 64:
            if len(images.get(value, "")) <= 64:
                return None
            images[index] = images[value]
    return images


def test_references_resolve_as_in_a_single_pass(tmp_path):
    rng = random.Random(0)
    data = [picture(seed) for seed in range(3)]
    outcomes = []
    for _ in range(60):
        order = rng.sample(range(6), 6)
        images = {str(i): encoded(rng.choice(data)) if rng.random() < 0.5 else str(rng.randrange(7)) for i in order}
        images["own"] = encoded(data[0])  # one row is always of use
        release = alone(tmp_path, [asked(name, "Is it?", "Yes|No", "A", image) for name, image in images.items()])
        table = release.tables["perception"]
        names = [name.removeprefix("perception-") for name in table["question_id"].to_pylist()]
        got = dict(zip(names, table["image_id"].to_pylist(), strict=True))
        expected = official_pass(images)
        outcomes.append(expected is not None)
        assert (len(got) == len(images)) == (expected is not None)
        if expected:
            ids = {encoded(one): id_of(one) for one in data}
            assert got == {name: ids[image] for name, image in expected.items()}
    assert 10 < sum(outcomes) < 50


def test_known_counts_give_no_note_and_one_question_less_or_of_another_type_does(tmp_path):
    options = {"yes_no": ("Is it?", "Yes|No"), "what": ("What?", "Blur|Noise"), "how": ("How bad?", "Mild|Severe")}
    kinds = [kind for kind, count in KIND_COUNTS.items() for _ in range(count)]
    rows = [asked(str(i), *options[kind], "A", "0") for i, kind in enumerate(kinds)]
    rows[0]["image"] = encoded(picture(0))
    assert len(rows) == COUNTS["test"]["perception"]
    complete, short = alone(tmp_path, rows), alone(tmp_path, rows[:-1])
    other = alone(tmp_path, [*rows[:-1], rows[-1] | {"question": "Which?"}])
    assert not any("known to have" in note for note in complete.notes)
    assert sum("1,304 questions (558 yes_no, 258 what, 488 how)" in note for note in short.notes) == 1
    assert sum("1,305 questions (558 yes_no, 259 what, 488 how)" in note for note in other.notes) == 1


@pytest.mark.parametrize(
    ("said", "text", "options", "kind"),
    [
        ("", "Is it blurred?", ["Yes", "No", "", ""], "yes_no"),
        ("", "How is it?", ["yes", "", "", ""], "yes_no"),
        ("", " How is it?", ["Good", "Reject"], "how"),
        ("", "However, what is it?", ["Good", "Reject"], "what"),
        ("", "Is it blurred?", ["Yes", "No", "Unclear"], "what"),
        ("Yes-or-No", "How?", ["Good", "Bad"], "yes_no"),
        ("odd", "How?", ["Good", "Bad"], "how"),
        ("", "?", ["", ""], "what"),
    ],
)
def test_kinds_follow_the_type_then_options_then_the_stem(said, text, options, kind):
    assert kind_of(said, text, options) == kind


@pytest.mark.parametrize(
    ("cell", "modality"),
    [
        ("MRI", "mri"), ("ct", "ct"), ("Computed tomography", "ct"), ("Magnetic Resonance Imaging", "mri"),
        ("Endoscopy", "endoscopy"), ("Histopathology ", "histopathology"), ("retinal fundus", "fundus"),
        ("PET-CT", "pet-ct"), ("OCT", "oct"), ("", ""),
    ],
)  # fmt: skip
def test_modalities_are_ours_where_a_word_says_so(cell, modality):
    assert modality_of(cell) == modality


@pytest.mark.parametrize(
    "image",
    ["[" * 300 + "]", "[" + "-" * 99_999 + "1]", "['A', " + "'" * 80 + "]", "A" * 81, "漢" * 80, "[]", repr(["A" * 80])],
    ids=["deep", "signs", "quotes", "padding", "wide", "reference", "bytes"],
)
def test_an_image_cell_of_any_kind_costs_its_own_row_only(tmp_path, image):
    rows = [asked("0", "Is it?", "Yes|No", "A", image), asked("1", "Is it?", "Yes|No", "A", encoded(picture(0)))]
    release = alone(tmp_path, rows)
    assert release.tables["perception"]["question_id"].to_pylist() == ["perception-1"]
    assert release.dropped["id"].to_pylist() == ["perception-0"]


def test_memory_does_not_grow_with_the_images(tmp_path):
    peaks = []
    for count in (4, 40):
        rows = [asked(str(i), "Is it?", "Yes|No", "A", encoded(picture(i, side=256))) for i in range(count)]
        write_tsv(tmp_path / "medqbench_QA_test.tsv", rows)
        del rows
        tracemalloc.start()
        release = read_release(tmp_path, "test", tmp_path / f"images{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert release.tables["perception"].num_rows == count
    assert peaks[1] < peaks[0] + 1_000_000  # 11 MB of images against 1 MB


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    found = []
    for mark in (False, True):
        write_tsv(tmp_path / "medqbench_QA_test.tsv", perception_test(), mark)
        found.append(read_release(tmp_path, "test", tmp_path / "images"))
    data = (tmp_path / "medqbench_QA_test.tsv").read_bytes()
    (tmp_path / "medqbench_QA_test.tsv").write_bytes(data.replace(b"\r\n", b"\n"))
    found.append(read_release(tmp_path, "test", tmp_path / "images"))
    assert all(release.tables == found[0].tables and release.notes == found[0].notes for release in found)
