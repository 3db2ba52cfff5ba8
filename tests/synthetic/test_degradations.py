"""Every degradation is visible, graded, reproducible and indifferent to image size."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from medq_ray.schema import DEGRADATIONS, MODALITIES
from medq_ray.synthetic.degradations import OPERATORS, RANGES, degrade
from medq_ray.synthetic.phantoms import phantom
from medq_ray.synthetic.tomography import projector
from medq_ray.synthetic.world import make_image

CELLS = [(modality, name) for modality in MODALITIES for name in DEGRADATIONS[modality]]
VISIBLE = 3.0
"""Grey levels of 255: well above the grain that every image has."""


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference in grey levels."""
    return float(np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2)))


def digest_of_cells(seed: int) -> str:
    made = [make_image(modality, name, "mild", seed, 64)[0].tobytes() for modality, name in CELLS]
    return hashlib.sha256(b"".join(made)).hexdigest()


def test_registry_has_exactly_the_cells_of_the_schema():
    assert set(OPERATORS) == set(CELLS) == set(RANGES)
    assert len({name for _, name in CELLS}) >= 14
    assert all(len(names) >= 4 for names in DEGRADATIONS.values())


@pytest.mark.parametrize(("modality", "name"), CELLS)
def test_mild_is_visible_and_severe_is_worse(modality, name):
    mild, severe = [], []
    for seed in range(6):
        clean, truth = make_image(modality, "none", "none", seed)
        for severity, distances in (("mild", mild), ("severe", severe)):
            pixels, other = make_image(modality, name, severity, seed)
            distances.append(distance(clean, pixels))
            assert other["anatomy"] == truth["anatomy"]
            assert set(other["parameters"]) == set(RANGES[modality, name][severity])
    assert min(mild) > VISIBLE
    assert np.mean(severe) > 1.3 * np.mean(mild)


@pytest.mark.parametrize(("modality", "name"), CELLS)
def test_severities_do_not_overlap(modality, name):
    ranges = RANGES[modality, name]
    gaps = []
    for key, (low, high) in ranges["mild"].items():
        other_low, other_high = ranges["severe"][key]
        gaps.append(max(other_low - high, low - other_high) / (high - low))
    assert max(gaps) >= 1  # the gap is at least as wide as 'mild' itself


@pytest.mark.parametrize("shape", [(96, 150), (150, 97), (8, 8), (180, 170)])
def test_operators_take_any_shape_and_blank_images(shape):
    image = np.random.default_rng(0).random((*shape, 3)).astype(np.float32)
    for modality, name in CELLS:
        for pixels in (image, np.zeros_like(image), np.ones_like(image)):
            result, _ = degrade(pixels, modality, name, "severe", np.random.default_rng(1))
            assert result.shape == image.shape and result.dtype == np.uint8


def test_none_returns_the_image_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    result, parameters = degrade(pixels, "ct", "none", "none", np.random.default_rng(0))
    assert np.array_equal(result, pixels) and parameters == {}


@pytest.mark.parametrize(
    ("degradation", "severity"), [("smoke", "mild"), ("nonsense", "mild"), ("blur", "none"), ("none", "mild")]
)
def test_cells_that_do_not_exist_are_refused(degradation, severity):
    with pytest.raises(ValueError, match=degradation):
        degrade(np.zeros((32, 32, 3), np.uint8), "mri", degradation, severity, np.random.default_rng(0))


def test_images_are_the_same_in_another_process():
    code = "from tests.synthetic.test_degradations import digest_of_cells; print(digest_of_cells(3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_of_cells(3)


@pytest.mark.parametrize("modality", MODALITIES)
def test_phantoms_vary_and_fill_the_range(modality):
    images = [phantom(modality, np.random.default_rng(seed), 80) for seed in range(8)]
    for pixels, anatomy in images:
        assert pixels.shape == (80, 80, 3) and pixels.dtype == np.float32 and anatomy
        assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.08
        if modality in ("mri", "ct"):
            assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert all(distance(255 * images[0][0], 255 * other) > 10 for other, _ in images[1:])


def test_back_projection_recovers_a_disc():
    system = projector(96)
    x, y = np.meshgrid(np.arange(96) - 47.5, np.arange(96) - 47.5)
    disc = (np.hypot(x - 10, y + 5) < 25).astype(np.float32)
    again = system.reconstruct(system.project(disc))
    inside, outside = np.hypot(x - 10, y + 5) < 20, np.hypot(x - 10, y + 5) > 32
    assert abs(again[inside].mean() - 1) < 0.02
    assert abs(again[outside & (np.hypot(x, y) < 45)].mean()) < 0.02
