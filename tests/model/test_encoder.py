"""The embedded encoder: unit vectors that depend on the image alone and tell modality and degradation apart."""

import shutil

import numpy as np
import pytest

from medq_ray import questions
from medq_ray.model.encoder import load_encoder
from medq_ray.model.tiny import embedded_checkpoint
from medq_ray.schema import DEGRADATIONS, EVERYDAY, MODALITIES
from medq_ray.synthetic.world import make_image

FIRST_SEED = 995_000_000
CELLS = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m] if d not in EVERYDAY]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("embedded")


def drawn(cells, severity: str, offset: int) -> list[np.ndarray]:
    return [make_image(*cell, severity, FIRST_SEED + offset + i)[0] for i, cell in enumerate(cells)]


def test_rows_are_unit_vectors_for_any_size(encoder):
    rng = np.random.default_rng(0)
    sizes = [(112, 112), (56, 300), (640, 480), (1, 1)]
    rows = encoder.images([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])
    texts = encoder.texts(["An MRI image.", "", "words " * 500])
    for vectors in (rows, texts):
        assert vectors.dtype == np.float32 and vectors.shape[1] == encoder.dim
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_nothing_in_nothing_out(encoder):
    assert encoder.images([]).shape == (0, encoder.dim)
    assert encoder.texts([]).shape == (0, encoder.dim)


def test_same_image_same_vector_in_any_batch(encoder):
    images = drawn(CELLS, "mild", 0)
    together = encoder.images(images)
    assert np.array_equal(together, load_encoder("embedded").images(images))
    np.testing.assert_allclose(encoder.images(images[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.images([image]) for image in images]), together, atol=1e-5)


def test_a_prototype_finds_its_rare_cell_among_common_images(encoder):
    """Pool: 200 common images and 4 of each specific cell; by chance 4 hits hold 0.06 of the cell."""
    common = []
    for i in range(200):
        modality = MODALITIES[i % 5]
        usual = [d for d in DEGRADATIONS[modality] if d in EVERYDAY]
        cell = ("none", "none") if i % 4 else (usual[i // 20 % 2], ("mild", "severe")[i // 40 % 2])
        common.append(make_image(modality, *cell, FIRST_SEED + 10_000 + i)[0])
    rare = [drawn(CELLS, severity, 20_000 + 100 * n) for n, severity in enumerate(["mild", "severe"] * 2)]
    labels = [cell for _ in rare for cell in CELLS] + [None] * len(common)
    pool = encoder.images([image for part in rare for image in part] + common)
    examples = np.stack([encoder.images(drawn(CELLS, "severe", 30_000 + 100 * n)) for n in range(5)])
    prototypes = examples.mean(0)
    shares = []
    for cell, prototype in zip(CELLS, prototypes, strict=True):
        best = np.argsort(-(pool @ prototype))[:4]
        shares.append(np.mean([labels[i] == cell for i in best]))
    assert np.mean(shares) > 0.4


def test_captions_name_modality_and_degradation(encoder):
    cells = [(m, d) for m in MODALITIES for d in DEGRADATIONS[m]]
    texts = encoder.texts([questions.describe(*cell, "severe") for cell in cells])
    best = (encoder.images(drawn(cells, "severe", 40_000)) @ texts.T).argmax(1)
    assert np.mean([cells[i][0] == cell[0] for i, cell in zip(best, cells, strict=True)]) > 0.9
    assert np.mean([cells[i] == cell for i, cell in zip(best, cells, strict=True)]) > 0.5


@pytest.mark.parametrize("name", ["biomedclip", "local-dir:/nonexistent", "ViT-B-32"])
def test_an_unknown_encoder_is_named(name):
    with pytest.raises(ValueError, match="encoder.name='" + name):
        load_encoder(name)


def test_a_damaged_weight_file_is_one_clear_line(tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(embedded_checkpoint().parent / "encoder", folder)
    assert load_encoder(f"local-dir:{folder}").dim == 128
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_encoder(f"local-dir:{folder}")
    assert "\n" not in str(caught.value)
