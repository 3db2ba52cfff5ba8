"""What several readers share: walking folders, tables, choosing slices, turning values into display pixels."""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medq_ray.images import MAX_PIXELS, Refused

MAX_TABLE = 256 << 20
"""Bytes of a table that the driver reads whole; its Python objects take several times as many. Our choice."""
EXIF_ERRORS = (
    *(SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError),
    struct.error,
)
"""What PIL raises on damaged EXIF data (12,000 mutated blocks gave some of these and no other); around that only."""


def walk(root: Path) -> Iterator[Path]:
    """Every file below `root`, sorted, hidden ones and folders left out; `root` itself if it is a file.

    Links to files are taken, links to folders are not followed: they may lead in circles, or out of the root. Raises
    ValueError if there is no `root`, and OSError for a folder that cannot be read: its files would seem to be gone.
    """
    root = Path(root)
    if root.is_file():
        yield root.resolve()
        return
    if not root.is_dir():
        raise ValueError(f"{root}: no such file or folder")
    for folder, folders, files in os.walk(root.resolve(), onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder) / name


def fail(error: OSError) -> None:
    """Raises what os.walk would pass over."""
    raise error


def base(root: Path) -> Path:
    """The folder that the paths of `walk` lie in: `root`, or the one around it if it is a file. Absolute."""
    root = Path(root).resolve()
    return root.parent if root.is_file() else root


def check_table(path: Path) -> None:
    """Raises ValueError for a table above MAX_TABLE."""
    if (size := path.stat().st_size) > MAX_TABLE:
        raise ValueError(f"{path}: expected a table of at most {MAX_TABLE} bytes, found {size}")


def chosen(count: int, slices: int) -> list[int]:
    """Which of `count` slices or frames to take: `slices` of them evenly over the middle 80 %, all of them for 0.

    The ends of a volume are air and neck (our choice). At least one is taken.
    """
    if slices == 0:
        return list(range(count))
    first, last = count * 0.1, count * 0.9
    places = first + (np.arange(slices) + 0.5) * (last - first) / slices
    return sorted(set(np.clip(places.astype(int), 0, count - 1).tolist()))


def shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """2-D values -> uint8 (H, W, 3): `low` and below is black, `high` and above white. NaN is black."""
    unit = (values.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    grey = (np.clip(np.nan_to_num(unit), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def read_picture(path: str | Path | IO[bytes], side: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) of a PNG, JPEG, TIFF, WebP ... with 8 bits a channel; alpha is dropped, not blended,
    and a camera held on its side (the EXIF orientation) is set upright.

    side: how long the longer side has to be at least; a JPEG that is twice as long or more is decoded at a half, a
    quarter or an eighth (PIL's draft), which costs a fraction of the time. 0 decodes all of it. Raises Refused for
    what is no picture, too large, an animation or a stack, or has more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Refused(f"expected at most {MAX_PIXELS} pixels, found {image.width}x{image.height}")
            if getattr(image, "n_frames", 1) > 1:
                raise Refused(f"expected one picture, found {image.n_frames} pages or frames")
            if image.mode.startswith(("I", "F")):
                raise Refused(f"expected 8 bits a channel, found mode {image.mode}: save it windowed for viewing")
            if side and image.format == "JPEG":
                image.draft(None, (side, side))
            image.load()  # before it is turned: errors of pixels are not those of EXIF
            turn_upright(image)
            if image.mode in ("RGBA", "RGBa"):
                return np.asarray(image)[..., :3]
            if image.mode in ("LA", "La"):
                return np.repeat(np.asarray(image)[..., :1], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise Refused(f"expected at most {MAX_PIXELS} pixels, found many times more") from error
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise Refused(f"expected a picture that can be decoded, found {type(error).__name__}") from error


def turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation in place, which copies nothing where there is none; a damaged one is passed over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(*EXIF_ERRORS):
            ImageOps.exif_transpose(image, in_place=True)


def walk_ending(root: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    """Files below `root` whose lower-case names end with one of `endings`, sorted. Raises ValueError if none does."""
    none = True
    for path in walk(root):
        if path.name.lower().endswith(endings):
            none = False
            yield path
    if none:
        raise ValueError(f"{root}: expected files that end with {', '.join(endings)}, found none")
