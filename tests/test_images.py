"""An image file is decoded to what it shows, or refused with its name and a reason."""

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import data_url, encode_png, from_data_url, modality_of, pixel_digest, read_image

PIXELS = np.arange(3 * 40 * 50, dtype=np.uint8).reshape(40, 50, 3)


def test_what_is_sent_is_what_was_read(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(PIXELS))
    pixels = read_image(tmp_path / "a.png")
    assert np.array_equal(pixels, PIXELS) and np.array_equal(from_data_url(data_url(pixels)), PIXELS)
    assert pixel_digest(pixels) == pixel_digest(PIXELS) != pixel_digest(PIXELS.reshape(50, 40, 3))


def test_more_than_8_bits_are_refused_rather_than_clipped(tmp_path):
    """Pillow would clip a 12-bit scan at 255: nearly all of it white."""
    for name, dtype in (("a.png", np.uint16), ("b.tif", np.float32), ("c.tif", np.int32)):
        Image.fromarray(np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(dtype)).save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}: grey with more than 8 bits"):
            read_image(tmp_path / name)


def test_bombs_and_broken_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode_png(PIXELS))
    (tmp_path / "torn.png").write_bytes(encode_png(PIXELS)[:60])
    for name in ("torn.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many by an error of its own
    with pytest.raises(ValueError, match="a.png: cannot be decoded"):
        read_image(tmp_path / "a.png")


def test_folder_words_are_whole_words(tmp_path):
    cases = {"brain_mri": "mri", "CT head": "ct", "factory": "", "mri/histology": "histopathology"}
    for name, modality in cases.items():
        assert modality_of(tmp_path / name / "x.png", tmp_path) == modality
