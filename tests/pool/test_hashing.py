"""pHash sees content and hardly quality; the two quality measures see quality."""

import io

import numpy as np
import pytest
from PIL import Image

from medq_ray.pool.hashing import phash, quality


def picture(seed: int, size: int = 112) -> np.ndarray:
    """Smooth random content, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.BICUBIC))


def noisy(pixels: np.ndarray, sigma: float) -> np.ndarray:
    grain = np.random.default_rng(1).normal(0, sigma, pixels.shape[:2])[..., None]
    return np.clip(pixels.astype(float) * 0.6 + 50 + grain, 0, 255).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return (phash(a) ^ phash(b)).bit_count()


def test_phash_is_imagehash_bit_for_bit():
    imagehash = pytest.importorskip("imagehash")
    for seed in range(5):
        pixels = picture(seed)
        assert f"{phash(pixels):016x}" == str(imagehash.phash(Image.fromarray(pixels)))


def test_phash_is_near_for_a_recompressed_copy_and_far_for_other_content():
    pixels = picture(0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    assert distance(pixels, np.asarray(Image.open(buffer))) <= 2
    assert min(distance(pixels, picture(seed)) for seed in range(1, 20)) > 8


def test_noise_is_estimated_in_grey_levels():
    for sigma in (3.0, 8.0):
        assert quality(noisy(picture(0), sigma))[1] == pytest.approx(sigma, rel=0.15)


def test_flat_background_does_not_hide_noise():
    pixels = noisy(picture(0), 5.0).copy()
    pixels[:, :80] = 0
    assert quality(pixels)[1] == pytest.approx(5.0, rel=0.25)


def test_blur_lowers_sharpness_by_far_more_than_the_hash_moves():
    from PIL import ImageFilter

    sharp = noisy(picture(3), 6.0)
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(1.5)))
    assert quality(blurred)[0] < 0.5 * quality(sharp)[0]
    assert distance(sharp, blurred) <= 6


def test_flat_and_tiny_images_have_measures():
    assert quality(np.full((20, 20, 3), 77, np.uint8)) == (0.0, 0.0)
    assert quality(np.zeros((2, 5, 3), np.uint8)) == (0.0, 0.0)
