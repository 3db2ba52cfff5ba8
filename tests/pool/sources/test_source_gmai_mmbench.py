"""GMAI-MMBench: streamed records are found again by their byte, each image once, only modalities that are ours."""

import base64
import csv
import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, gmai_mmbench, rows_of

COLUMNS = ["index", "question", "A", "image", "answer"]


def pixels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def encoded(seed: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(seed)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path, records: list[list[str]], columns: list[str] = COLUMNS, **dialect) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", **dialect).writerows([columns, *records])


def rows(path, options: Options = Options()) -> list:  # noqa: B008
    [found] = gmai_mmbench.find(path)
    return rows_of("gmai-mmbench", found, options)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_records_are_found_again_behind_quotes_tabs_line_breaks_and_wide_letters(tmp_path, ending):
    questions = [
        "What does this CT image show?",
        'An MRI, "weighted",\twith a tab\nand a\r\nline break — ß漢字',
        "Polyp in this colonoscopy?",
        "A retinal fundus photograph.",
        "H&E stained whole-slide image",
    ]
    records = [[str(i), text, "a\nb", encoded(i), "A"] for i, text in enumerate(questions)]
    write(tmp_path / "GMAI-MMBench_VAL.tsv", records, lineterminator=ending)
    found = rows(tmp_path)
    assert [row.modality for row in found] == ["ct", "mri", "endoscopy", "fundus", "histopathology"]
    for seed in (3, 1, 4, 0, 2):  # in any order
        np.testing.assert_array_equal(gmai_mmbench.decode(found[seed], 512), pixels_of(seed))
    assert all((row.patient, row.session, row.split, row.labels) == ("", "", "", {}) for row in found)


def test_an_image_is_taken_once_and_references_to_other_records_are_passed_over(tmp_path):
    records = [
        ["0", "What is this?", "", encoded(0), "A"],
        ["1", "What organ is in this CT?", "", encoded(0), "A"],
        ["2", "What lesion is in this CT?", "", encoded(0), "A"],
        ["3", "What phase is this CT?", "", "0", "A"],
        ["4", "And in this CT?", "", encoded(1), "A"],
    ]
    write(tmp_path / "GMAI_mm_bench_TEST_part_1.tsv", records)
    found = rows(tmp_path)
    assert len(found) == len({row.key for row in found}) == 2
    for row, seed in zip(found, (0, 1), strict=True):
        np.testing.assert_array_equal(gmai_mmbench.decode(row, 512), pixels_of(seed))


@pytest.mark.parametrize(
    "question, modality",
    [
        ("Which organ does this MR image show?", "mri"),
        ("magnetic resonance imaging of the knee", "mri"),
        ("Computed tomography of the chest", "ct"),
        ("the endoscopic view", "endoscopy"),
        ("this histopathological slide", "histopathology"),
        ("this colour fundus picture", "fundus"),
        ("an OCT scan", ""),
        ("a PET-CT image", ""),
        ("endoscopic ultrasound", ""),
        ("endoscopy of the gastric fundus", "endoscopy"),
        ("fluorescein angiography, fundus image", ""),
        ("registered CT and MRI", ""),
        ("a chest X-ray", ""),
        ("a microscopy image of blood cells", ""),
        ("Mr. Smith's direct view, structure", ""),
        ("", ""),
    ],
)
def test_a_question_gives_a_modality_only_if_it_names_just_one_of_ours(question, modality):
    assert gmai_mmbench.modality_of_question(question) == modality


def test_with_a_modality_of_the_user_every_image_is_taken(tmp_path):
    write(tmp_path / "GMAI-MMBench_VAL.tsv", [["0", "What?", "", encoded(0), "A"], ["1", "an OCT", "", encoded(1), ""]])
    assert rows(tmp_path) == []
    assert [row.modality for row in rows(tmp_path, Options(modality="fundus"))] == ["fundus", "fundus"]


def test_a_file_cut_short_or_of_another_kind_is_refused_and_not_quoted(tmp_path):
    path = tmp_path / "GMAI-MMBench_VAL.tsv"
    write(path, [["0", "Frau Mueller's CT", "", encoded(0), "A"]])
    whole = path.read_bytes()
    for data, reason in {
        whole[: whole.index(b"CT") + 2]: "found 2 in one: cut short",
        b"index\tanswer\n0\tMueller\n": "columns image and question",
        b"": "columns image and question",
        whole.decode().encode("utf-16"): "tab-separated table",
    }.items():
        path.write_bytes(data)
        with pytest.raises(Refused, match=reason) as refused:
            rows(tmp_path)
        assert "Mueller" not in str(refused.value)


def test_a_record_that_changed_since_it_was_listed_is_refused(tmp_path):
    path = tmp_path / "GMAI-MMBench_VAL.tsv"
    write(path, [["0", "CT", "", encoded(0), "A"]])
    [row] = rows(tmp_path)
    write(path, [["0", "CT", "", "#" * 100, "A"]])
    with pytest.raises(Refused, match="base64"):
        gmai_mmbench.decode(row, 512)
    write(path, [])
    with pytest.raises(Refused, match="found none"):
        gmai_mmbench.decode(row, 512)


def test_endless_lines_and_fields_are_refused_and_the_limit_of_csv_is_put_back(tmp_path, monkeypatch):
    before = csv.field_size_limit()
    path = tmp_path / "GMAI-MMBench_VAL.tsv"
    write(path, [["0", "CT", "", "A" * (before + 1), "A"]])
    assert len(rows(tmp_path)) == 1  # longer than csv takes by itself
    monkeypatch.setattr(gmai_mmbench, "LONGEST", 1000)
    for record, reason in {"x" * 2000: "lines of less than 1000", "\n".join(["y" * 400] * 5): "broken quotes"}.items():
        write(path, [["0", "CT", record, encoded(0), "A"]])
        with pytest.raises(Refused, match=reason):
            rows(tmp_path)
    assert csv.field_size_limit() == before


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (20, 200):
        records = ([str(i), "CT", "", "A" * 100_000 + str(i), "A"] for i in range(count))
        write(tmp_path / "GMAI-MMBench_VAL.tsv", records)
        tracemalloc.start()
        assert len(rows(tmp_path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000 < 18_000_000  # 20 MB of images against 2 MB
