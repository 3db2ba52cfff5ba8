"""Grey images in all their bits, before any window: what an expert sets window and level on.

Floor 0. A picture's depth lies beside it: 'x.png' is what models see, 'x.depth.png' has 16-bit grey and, in one text
chunk, what its numbers mean. Nothing else of the original is in it: no name, no date, no id.
"""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CHUNK = "depth"
LEVELS = 2**16 - 1


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a depth stand for: value = slope * number + intercept."""

    slope: float
    intercept: float
    unit: str
    """'HU', or '' where the values have no unit."""
    center: float
    """Of the window, in values, in which models see the image."""
    width: float
    inverted: bool
    """The lowest value is white."""
    bits: int
    """Of the original's pixels."""
    spacing: tuple[float, float] | None = None
    """Millimetres from row to row and from column to column, None where the source does not say."""


@dataclass(frozen=True)
class Depth:
    numbers: np.ndarray
    """uint16 (H, W)."""
    meaning: Meaning


def packed(
    values: np.ndarray, window: tuple[float, float], *, bits: int, slope: float = 1.0, intercept: float = 0.0,
    unit: str = "", inverted: bool = False, spacing: tuple[float, float] | None = None,
) -> Depth:  # fmt: skip
    """Stored values (H, W), real numbers, as 16 bits: whole numbers exactly, where they span no more; others in 65,535
    equal steps. What is not finite is the lowest. window: its lowest and highest, in slope * value + intercept."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    whole = values.dtype.kind in "iu" and high - low <= LEVELS
    step = 1.0 if whole else max(high - low, 1e-12) / LEVELS
    steps = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=low, neginf=low) - low) / step
    numbers = np.clip(np.rint(steps), 0, LEVELS).astype(np.uint16)
    meaning = Meaning(slope * step, slope * low + intercept, unit, sum(window) / 2, max(window[1] - window[0], 1e-6),
                      inverted, bits, spacing)  # fmt: skip
    return Depth(numbers, meaning)


def shrunk(depth: Depth, size: tuple[int, int]) -> Depth:
    """Reduced to (width, height), as pictures are."""
    height, width = depth.numbers.shape
    if (width, height) == size:
        return depth
    small = Image.fromarray(depth.numbers.astype(np.float32)).resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    facts = asdict(depth.meaning)
    if depth.meaning.spacing:
        facts["spacing"] = (facts["spacing"][0] * height / size[1], facts["spacing"][1] * width / size[0])
    return Depth(np.clip(np.rint(np.asarray(small)), 0, LEVELS).astype(np.uint16), Meaning(**facts))


def beside(picture: str | Path) -> Path:
    """Where the depth of a picture lies, if it has one."""
    return Path(picture).with_suffix(".depth.png")


def write_depth(path: Path, depth: Depth) -> None:
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text(CHUNK, json.dumps(asdict(depth.meaning)))
    Image.fromarray(depth.numbers).save(buffer, format="PNG", compress_level=1, pnginfo=text)
    path.write_bytes(buffer.getvalue())


def read_depth(path: Path) -> Depth:
    """Raises ValueError naming the file for anything that `write_depth` did not write."""
    with _opened(path) as image:
        meaning = _meaning(path, image)
        try:
            return Depth(np.asarray(image).astype(np.uint16), meaning)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path}: cannot be decoded ({error})") from error


def read_meaning(path: Path) -> Meaning:
    """Without decoding the pixels. Raises as `read_depth`."""
    with _opened(path) as image:
        return _meaning(path, image)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path, formats=["PNG"])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error


def _meaning(path: Path, image: Image.Image) -> Meaning:
    try:
        facts = json.loads(image.info[CHUNK])
        return Meaning(**facts | {"spacing": tuple(facts["spacing"]) if facts["spacing"] else None})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a depth, found another PNG file") from error
