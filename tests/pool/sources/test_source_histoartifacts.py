"""HistoArtifacts: class and split are in the name, alpha goes, what does not fit is one bad file."""

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, histoartifacts, rows_of

PIXELS = np.random.default_rng(5).integers(0, 256, (224, 224, 4), dtype=np.uint8)


def put(root, *names: str, pixels: np.ndarray = PIXELS) -> dict:
    for name in names:
        Image.fromarray(pixels).save(root / name)
    return {row.path.rpartition("/")[2]: row for row in histoartifacts.find(root)}


def test_names_give_class_and_split_and_alpha_is_dropped(tmp_path):
    expected = {
        "train_artifact_free_1.png": ("pool", "artifact_free"),
        "train_fold_20x_12.png": ("pool", "fold"),
        "val_bubble_3.png": ("dev", "bubble"),
        "validation_blood_4.png": ("dev", "blood"),
        "test_artifact_free_20x_5.png": ("test", "artifact_free"),
        "test_damage_6.png": ("test", "damage"),
        "training_blur_7.png": ("pool", "blur"),
    }
    rows = put(tmp_path, *expected)
    assert {name: (row.split, row.labels["artifact"]) for name, row in rows.items()} == expected
    for row in rows.values():
        assert (row.modality, row.patient, row.session) == ("histopathology", "", "")
        assert rows_of("histoartifacts", row, Options()) == [row]
        np.testing.assert_array_equal(histoartifacts.decode(row, 112), PIXELS[..., :3])


@pytest.mark.parametrize("name", ["val_pen_1.png", "fold_1.png", "val_fold.png", "val_fold_40x_1.png", "Smith.png"])
def test_another_name_is_refused_without_being_told(tmp_path, name):
    row = put(tmp_path, name)[name]
    assert (row.split, row.labels) == ("", {})
    with pytest.raises(Refused, match="expected a name like") as refused:
        rows_of("histoartifacts", row, Options())
    assert name[:-4] not in str(refused.value)


def test_another_size_is_refused(tmp_path):
    row = put(tmp_path, "train_fold_1.png", pixels=PIXELS[:200])["train_fold_1.png"]
    with pytest.raises(Refused, match="expected 224x224 pixels, found 224x200"):
        histoartifacts.decode(row, 512)
