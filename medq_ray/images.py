"""Reading, naming and sending single images: the few functions that every floor above needs.

Floor 0. An image here is a uint8 array of shape (height, width, 3), RGB.
"""

import base64
import hashlib
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Larger images are refused: 64 MP of RGB is 192 MB, and slides are to be read by region."""


MODALITY_WORDS = {
    "mri": "mri",
    "mr": "mri",
    "ct": "ct",
    "endoscopy": "endoscopy",
    "colonoscopy": "endoscopy",
    "fundus": "fundus",
    "histopathology": "histopathology",
    "histology": "histopathology",
}
"""Words of a folder's name (split at anything but letters and digits) -> modality."""


class Refused(ValueError):
    """One file or image that cannot be used. The message says what was expected and what was found, and is shown and
    stored: it never has a path, nor any value that a file's header could hold."""


def read_image(path: str | Path) -> np.ndarray:
    """Decode one image file to uint8 RGB.

    Raises ValueError naming the file when it is missing, truncated, no image, larger than MAX_PIXELS, or grey with
    more than 8 bits: its display window is not ours to guess.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{path}: {image.width}x{image.height} pixels, the limit is {MAX_PIXELS}")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{path}: grey with more than 8 bits; save it with 8, windowed for viewing")
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes, without metadata, equal for equal pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def data_url(pixels: np.ndarray) -> str:
    """The image as the OpenAI protocol sends it; re-encoded, so nothing but pixels leaves."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def from_data_url(url: str) -> np.ndarray:
    """Inverse of `data_url`. Raises ValueError on anything else."""
    head, _, body = url.partition(";base64,")
    if not head.startswith("data:image/") or not body:
        raise ValueError(f"not an image data URL: {url[:40]!r}")
    try:
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(f"image data URL cannot be decoded ({error})") from error


def pixel_digest(pixels: np.ndarray) -> str:
    """The image's id: 16 hex digits of sha256 over shape and pixels (64 bits: a collision among 10^6 images has
    probability 3e-8). A re-encoded copy has the same id; a re-compressed one has not."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()[:16]


def modality_of(path: Path, root: Path) -> str:
    """Modality by the names of the folders around a file, from the inside out, the root's own name last; '' if none."""
    root = Path(root).resolve()
    for folder in [*reversed(path.relative_to(root).parts[:-1]), root.name]:
        for word in re.split(r"[^a-z0-9]+", folder.lower()):
            if word in MODALITY_WORDS:
                return MODALITY_WORDS[word]
    return ""
