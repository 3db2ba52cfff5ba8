"""A run stops before it uses images against their source's terms, until each source is acknowledged."""

import pyarrow as pa
import pytest

from medq_ray.pool.terms import check_terms, described

IMAGES = pa.table(
    {
        "image_id": ["1", "2", "3", "4"],
        "source": ["free", "academic", "academic", "benchmark"],
        "licence": ["CC0", "agreement", "agreement", "unclear"],
        "share": [True, False, False, False],
        "train": [True, True, True, False],
        "labels": ["{}"] * 4,
    }
)


def test_training_needs_the_source_to_allow_it_whoever_labels():
    with pytest.raises(ValueError, match=r"benchmark \(licence: unclear\) may not be trained on.*acknowledged=\[benchmark\]"):
        check_terms(IMAGES, ["http://127.0.0.1:1/v1"], [])
    check_terms(IMAGES, ["http://127.0.0.1:1/v1"], ["benchmark"])


def test_sending_pixels_away_names_every_source_that_is_left():
    with pytest.raises(ValueError) as refused:
        check_terms(IMAGES, ["https://api.example.com/v1"], ["benchmark"])
    assert "academic (licence: agreement) may not be sent to https://api.example.com/v1" in str(refused.value)
    assert "free" not in str(refused.value) and "acknowledged=[academic, benchmark]" in str(refused.value)
    check_terms(IMAGES, ["https://api.example.com/v1"], ["benchmark", "academic"])


def test_an_image_with_a_name_in_it_is_acknowledged_on_its_own():
    scan = {"image_id": "5", "source": "dicom", "licence": "own", "share": False, "train": True, "labels": '{"burned_in": "yes"}'}
    images = pa.concat_tables([IMAGES.slice(0, 1), pa.Table.from_pylist([scan, scan | {"labels": '{"burned_in": "no"}'}])])
    abroad = ["https://api.example.com/v1"]
    with pytest.raises(ValueError, match=r"dicom:burned-in \(licence: own\) may not be sent.*acknowledged=\[dicom, dicom:burned-in\]"):
        check_terms(images, abroad, ["dicom"])
    check_terms(images, abroad, ["dicom", "dicom:burned-in"])
    check_terms(images, [], [])


def test_the_sources_are_counted():
    assert [(row["source"], row["images"]) for row in described(IMAGES)] == [("academic", 2), ("benchmark", 1), ("free", 1)]
