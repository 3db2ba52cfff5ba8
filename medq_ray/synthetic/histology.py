"""Degradations of H&E slides: focus and light of the scanner, stain, and faults of the mounted section.

Stain and folds act on optical density, od = -log(display value), where absorbing layers add (Beer-Lambert).
"""

import numpy as np

from medq_ray.synthetic.fields import axes, gaussian, noise, step, turned
from medq_ray.synthetic.optical import EOSIN, HEMATOXYLIN
from medq_ray.synthetic.optics import exposed
from medq_ray.synthetic.registry import operator

RESIDUAL = np.cross(HEMATOXYLIN, EOSIN)
STAINS = np.stack([v / np.linalg.norm(v) for v in (HEMATOXYLIN, EOSIN, RESIDUAL)]).astype(np.float32)
UNMIX = np.linalg.inv(STAINS).astype(np.float32)
"""Rows of STAINS are unit densities of hematoxylin, eosin and what is left; od @ UNMIX gives amounts."""
FLOOR = 1 / 255


def density(image: np.ndarray) -> np.ndarray:
    """Optical density of each channel."""
    return -np.log(np.clip(image, FLOOR, 1))


@operator("histopathology", "blur", mild={"sigma": (0.0085, 0.0110)}, severe={"sigma": (0.022, 0.030)})
def blur(image, rng, sigma):
    """The section lies outside the depth of field."""
    return gaussian(image, sigma * min(image.shape[:2]))


@operator("histopathology", "exposure", mild={"stops": (0.85, 1.15)}, severe={"stops": (2.0, 2.6)})
def exposure(image, rng, stops):
    """Lamp too weak, or too strong so that the background and pale tissue clip (drawn weaker: it clips sooner)."""
    return exposed(image, 0.6 * stops if rng.random() < 0.5 else -stops)


@operator("histopathology", "stain", mild={"shift": (0.45, 0.60)}, severe={"shift": (1.0, 1.3)})
def stain(image, rng, shift):
    """One stain too strong and the other too weak: amounts of hematoxylin and eosin are scaled in opposite senses
    (natural logarithm `shift`) and the hue of the weak one drifts."""
    amounts = density(image) @ UNMIX
    sign = 1 if rng.random() < 0.5 else -1
    scale = np.exp(np.float32([sign * shift, -sign * shift, 0]) * np.float32([0.75, 0.85, 0]))
    mixed = STAINS + np.float32(0.10 * shift) * np.roll(STAINS, sign, axis=1) * np.float32([[1], [1], [0]])
    # a cross-stain: where one dye dominates, part of it binds where the other belongs
    strong, weak = (0, 1) if sign > 0 else (1, 0)
    amounts[..., strong] += np.float32(0.25 * shift) * np.clip(amounts[..., weak], 0, None)
    return np.clip(np.exp(-(amounts * scale) @ mixed), 0, 1).astype(np.float32)


@operator("histopathology", "fold", mild={"width": (0.11, 0.16)}, severe={"width": (0.30, 0.42)})
def fold(image, rng, width):
    """The section is folded onto itself along a wavy band: inside, the neighbouring tissue lies over it mirrored and
    the densities of both layers add; the edges are darkest."""
    height, side = image.shape[:2]
    x, y = axes(height, side)
    layer = density(image)
    tissue = np.cumsum(layer[..., 1].ravel() * (np.hypot(x, y) < 0.6).ravel() + 1e-6)
    place = np.searchsorted(tissue, rng.random() * tissue[-1])  # a fold needs tissue: it passes through some
    along, across = turned(x - x.flat[place], y - y.flat[place], rng.uniform(0, np.pi))
    across = across + 0.10 * np.sin(along * rng.uniform(1.5, 3.0))
    across = (across + 0.03 * noise(rng, height, 6, 6, side)).astype(np.float32)
    half = width / 2 * (1 + 0.25 * np.sin(along * 2 + rng.uniform(0, 6)))
    band = step(half - np.abs(across), 0.04)[..., None]
    edge = np.exp(-(((np.abs(across) - half) / 0.022) ** 2))[..., None]
    shift = (rng.integers(height // 5, height // 2 + 1), rng.integers(side // 5, side // 2 + 1))
    above = np.roll(layer[::-1], shift, axis=(0, 1)) * np.float32(1.1) + np.float32(0.15) * np.clip(layer / 0.3, 0, 1)
    return np.clip(np.exp(-(layer + band * above + edge * np.clip(layer, 0.05, 0.35))), 0, 1).astype(np.float32)


@operator("histopathology", "air_bubble", mild={"radius": (0.20, 0.27)}, severe={"radius": (0.52, 0.68)})
def air_bubble(image, rng, radius):
    """Air under the cover slip: inside it the tissue is pale and out of focus, its rim refracts light into a dark
    line with a bright one beside it. `radius` is a share of the side."""
    height, side = image.shape[:2]
    x, y = axes(height, side)
    reach = 0.75 - 0.5 * radius
    cx, cy = rng.uniform(-reach, reach, 2)
    warp = 0.035 * noise(rng, height, 3, 3, side)
    distance = np.hypot(x - np.float32(cx), (y - np.float32(cy)) * np.float32(rng.uniform(0.85, 1.18))) + warp
    inside = step(radius - distance, 0.03)[..., None]
    pale = np.exp(-0.62 * density(gaussian(image, 0.014 * min(height, side)))) * np.float32([0.97, 0.98, 1.0])
    result = image + inside * (pale - image)
    dark = np.exp(-(((distance - radius) / 0.030) ** 2))[..., None]
    light = np.exp(-(((distance - radius + 0.065) / 0.022) ** 2))[..., None]
    result = result * (1 - 0.72 * dark)
    return np.clip(result + 0.45 * light * (1 - result), 0, 1).astype(np.float32)
