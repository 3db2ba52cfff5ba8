"""HARP: every picture of any tree, artifacts by their folder, patients by the slide's barcode."""

import numpy as np
import pytest
from PIL import Image

from medq_ray.pool.sources import harp

PIXELS = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def put(root, *places: str) -> None:
    for place in places:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(path)


def found(root) -> dict:
    return {row.path.removeprefix(f"{root.resolve()}/"): row for row in harp.find(root)}


def test_any_tree_is_walked_and_artifact_folders_are_labels(tmp_path):
    artifact = "12/artifacts/air_bubble/air_bubble.png"
    put(tmp_path, "train/a.png", "test/b.bmp", "c.ppm", artifact, "12/artifacts/air_bubble/mask/air_bubble.png")
    rows = found(tmp_path)
    assert set(rows) == {"train/a.png", "test/b.bmp", "c.ppm", artifact}
    assert rows[artifact].labels == {"artifact": "air_bubble"}
    assert all(row.labels == {} for name, row in rows.items() if name != artifact)
    for row in rows.values():
        assert (row.modality, row.patient, row.session, row.split) == ("histopathology", "", "", "")
        np.testing.assert_array_equal(harp.decode(row, 0), PIXELS)


def test_a_folder_is_an_artifact_only_by_a_known_name_and_only_below_artifacts(tmp_path):
    put(tmp_path, "1/artifacts/original/x.png", "restored/air_bubble/x.png", "artifacts/pen/x.png", "artifacts/cut.png")
    assert [row.labels for row in harp.find(tmp_path)] == [{}] * 4


def test_a_tcga_barcode_gives_the_patient(tmp_path):
    put(tmp_path, "TCGA-A1-A0SK-01Z-00-DX1_3_4.png", "TCGA-OL-A66I-01Z/artifacts/cut/cut.png", "TCGA-A1.png")
    assert {name: row.patient for name, row in found(tmp_path).items()} == {
        "TCGA-A1-A0SK-01Z-00-DX1_3_4.png": "TCGA-A1-A0SK",
        "TCGA-OL-A66I-01Z/artifacts/cut/cut.png": "TCGA-OL-A66I",
        "TCGA-A1.png": "",
    }


def test_a_root_without_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        list(harp.find(tmp_path))
