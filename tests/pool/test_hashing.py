"""pHash sees content and hardly quality; thumbnails and quality measures see what it does not."""

import io

import numpy as np
import pytest
from PIL import Image

from medq_ray.pool.hashing import luminance, noise, phash, quality, reduced, sharpness, thumb


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


@pytest.mark.parametrize("size", [(3, 3), (31, 97), (112, 112), (400, 130)])
def test_phash_is_imagehash_for_any_size_and_flat_images(size):
    imagehash = pytest.importorskip("imagehash")
    rng = np.random.default_rng(0)
    for seed in range(50):
        pixels = rng.integers(0, 1 + seed * 5, (*size, 3)).astype(np.uint8)
        assert f"{phash(pixels):016x}" == str(imagehash.phash(Image.fromarray(pixels)))
        assert phash(pixels[..., 0]) == int(str(imagehash.phash(Image.fromarray(pixels[..., 0]))), 16)


def test_a_thumbnail_is_256_grey_levels_in_row_order():
    pixels = np.zeros((160, 80, 3), np.uint8)
    pixels[:80] = 200
    rows = np.frombuffer(thumb(pixels), np.uint8).reshape(16, 16)
    assert (rows[:7] == 200).all() and (rows[9:] == 0).all()
    assert (np.frombuffer(thumb(np.full((3, 5, 3), 9, np.uint8)), np.uint8) == 9).all()


@pytest.mark.parametrize("factor", [0.75, 1.5, 2])
def test_resizing_moves_a_thumbnail_by_less_than_the_limit(factor):
    image = Image.fromarray(picture(4, 256))
    other = image.resize((round(256 * factor),) * 2, Image.Resampling.LANCZOS)
    a, b = (np.frombuffer(thumb(np.asarray(i)), np.uint8).astype(float) for i in (image, other))
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.5


def test_quality_of_small_images_is_that_of_their_own_pixels():
    pixels = noisy(picture(0, 112), 5.0)
    assert np.array_equal(reduced(pixels, 112), pixels)
    assert quality(pixels) == (sharpness(luminance(pixels)), noise(luminance(pixels)))


def test_quality_of_large_images_is_that_of_a_common_size():
    pixels = np.asarray(Image.fromarray(noisy(picture(0, 256), 8.0)).resize((768, 768), Image.Resampling.BICUBIC))
    half = np.asarray(Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC))
    assert sharpness(luminance(half)) > 1.5 * sharpness(luminance(pixels))
    assert quality(half)[0] == pytest.approx(quality(pixels)[0], rel=0.05)


def test_reduced_keeps_the_proportions_and_at_least_one_pixel():
    assert reduced(np.zeros((300, 600, 3), np.uint8), 128).shape == (64, 128, 3)
    assert reduced(np.zeros((1, 600, 3), np.uint8), 128).shape == (1, 128, 3)
    assert quality(np.zeros((1, 600, 3), np.uint8)) == (0.0, 0.0)
