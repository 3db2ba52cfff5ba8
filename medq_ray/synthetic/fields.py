"""Small building blocks of phantoms and degradations: coordinates, smooth noise, soft shapes, blur, drawing.

All fields are float32 of shape (size, size). Coordinates run over [-1, 1], x to the right, y downwards, so that
shapes and textures do not depend on the number of pixels.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

OVERSAMPLE = 3
"""Shapes are drawn this much larger and averaged down, which is their antialiasing."""


@lru_cache(maxsize=8)
def axes(height: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pixel-centre coordinates (x, y), each (height, width); a square when width is None. Read-only."""
    width = height if width is None else width
    x = (np.arange(width, dtype=np.float32) + 0.5) * (2 / width) - 1
    y = (np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1
    grids = tuple(np.meshgrid(x, y))
    for grid in grids:
        grid.flags.writeable = False
    return grids


@lru_cache(maxsize=64)
def _spline(size: int, cells: int) -> np.ndarray:
    """(size, cells + 3) weights of uniform cubic B-splines, rows of unit length (so noise keeps unit variance)."""
    position = (np.arange(size) + 0.5) * (cells / size)
    distance = np.abs(position[:, None] - (np.arange(cells + 3) - 1)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


def noise(rng: np.random.Generator, height: int, cells: int, cells_x: int | None = None, width: int | None = None):
    """Smooth Gaussian noise (height, width) of zero mean and unit variance with features of 1/cells of the side."""
    width = height if width is None else width
    cells_x = cells if cells_x is None else cells_x
    knots = rng.standard_normal((cells + 3, cells_x + 3), dtype=np.float32)
    return _spline(height, cells) @ knots @ _spline(width, cells_x).T


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int = 3, gain: float = 0.5) -> np.ndarray:
    """Sum of `octaves` noises, each twice as fine and `gain` times as strong; about unit variance."""
    total, power = np.zeros((size, size), np.float32), 0.0
    for octave in range(octaves):
        total += noise(rng, size, min(cells * 2**octave, size)) * gain**octave
        power += gain ** (2 * octave)
    return total / np.float32(power**0.5)


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Unit white noise (size, size), one independent value a pixel."""
    return rng.standard_normal((size, size), dtype=np.float32)


def step(field: np.ndarray, width: float) -> np.ndarray:
    """0 below zero, 1 above, a linear ramp of `width` around it."""
    return np.clip(field * np.float32(1 / width) + np.float32(0.5), 0, 1)


def ellipse(x, y, cx: float, cy: float, a: float, b: float, angle: float = 0.0, edge: float = 0.03) -> np.ndarray:
    """Soft mask in [0, 1] of an ellipse with half axes a and b, turned by `angle` (radians); `edge` is its ramp."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    u, v = (dx * cos + dy * sin) * np.float32(1 / a), (dy * cos - dx * sin) * np.float32(1 / b)
    return step(1 - np.sqrt(u * u + v * v), edge / min(a, b))


def over(canvas: np.ndarray, mask: np.ndarray, value) -> None:
    """Paint `value` (a number or a field) over `canvas` in place where `mask` says so."""
    canvas += mask * (value - canvas)


def colour_over(canvas: np.ndarray, mask: np.ndarray, colour) -> None:
    """The same for (size, size, 3) canvases and an RGB colour."""
    canvas += mask[..., None] * (np.asarray(colour, np.float32) - canvas)


def turned(x, y, angle: float):
    """Coordinates turned by `angle` radians."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of an (H, W) or (H, W, 3) image, sigma in pixels, edges mirrored."""
    sigmas = (sigma, sigma) + (0,) * (image.ndim - 2)
    return ndimage.gaussian_filter(image, sigmas, mode="reflect", truncate=3.0)


class Sketch:
    """Antialiased drawing of polygons and lines into one grey field, in [-1, 1] coordinates."""

    def __init__(self, size: int) -> None:
        self.size, self.scale = size, size * OVERSAMPLE / 2
        self.image = Image.new("L", (size * OVERSAMPLE, size * OVERSAMPLE))
        self.draw = ImageDraw.Draw(self.image)

    def polygons(self, outlines: np.ndarray, values: np.ndarray) -> None:
        """Fill (n, corners, 2) outlines with `values` (n,) in [0, 1]."""
        pixels = ((outlines + 1) * self.scale).reshape(len(outlines), -1).tolist()
        for outline, value in zip(pixels, (255 * values).astype(int).tolist(), strict=True):
            self.draw.polygon(outline, fill=value)

    def line(self, points: np.ndarray, width: float, value: float = 1.0) -> None:
        """A curve through (n, 2) points; width in the same units as the points."""
        pixels = max(1, round(width * self.scale))
        self.draw.line(((points + 1) * self.scale).ravel().tolist(), fill=int(255 * value), width=pixels)

    def field(self) -> np.ndarray:
        """What was drawn, (size, size) in [0, 1]."""
        return np.asarray(self.image.reduce(OVERSAMPLE), np.float32) * np.float32(1 / 255)
