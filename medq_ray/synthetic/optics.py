"""Degradations of endoscopy and fundus photography: focus, exposure, light, and what stands in its way.

Colours are display values; exposure and light act on linear light (display value ** GAMMA).
"""

import numpy as np

from medq_ray.synthetic.fields import axes, ellipse, gaussian, noise, step
from medq_ray.synthetic.registry import operator

GAMMA = 2.2


def _side(image: np.ndarray) -> int:
    return min(image.shape[:2])


def _noise(rng: np.random.Generator, image: np.ndarray, cells: int) -> np.ndarray:
    """Smooth unit noise of the image's shape, (H, W)."""
    return noise(rng, image.shape[0], cells, cells, image.shape[1])


def exposed(image: np.ndarray, stops: float) -> np.ndarray:
    """`stops` more light (negative: less), then clipping as a sensor does."""
    return np.clip(image * np.float32(2 ** (stops / GAMMA)), 0, 1)


def _exposure(image, rng, stops):
    """Over- or underexposure by `stops`, with equal chance; overexposure is drawn a little weaker, since clipping
    hurts sooner."""
    return exposed(image, stops * 0.85 if rng.random() < 0.5 else -stops)


def _illuminated(image: np.ndarray) -> np.ndarray:
    """Soft mask (H, W) of what is not the black surround of a circular field."""
    return np.clip(gaussian(image.max(axis=2), 1.0) / 0.12, 0, 1)


@operator("endoscopy", "blur", mild={"sigma": (0.0115, 0.0150)}, severe={"sigma": (0.028, 0.038)})
@operator("fundus", "blur", mild={"sigma": (0.0105, 0.0135)}, severe={"sigma": (0.025, 0.034)})
def blur(image, rng, sigma):
    """Defocus, as a Gaussian of `sigma` of the side."""
    return gaussian(image, sigma * _side(image))


@operator("endoscopy", "exposure", mild={"stops": (1.2, 1.6)}, severe={"stops": (2.6, 3.3)})
def endoscopy_exposure(image, rng, stops):
    """The automatic gain fails: too close to the wall, or too far from it."""
    return _exposure(image, rng, stops)


@operator("fundus", "exposure", mild={"stops": (1.1, 1.45)}, severe={"stops": (2.4, 3.1)})
def fundus_exposure(image, rng, stops):
    """The flash was too strong or too weak."""
    return _exposure(image, rng, stops)


@operator(
    "endoscopy",
    "specular",
    mild={"count": (6.0, 11.99), "size": (0.020, 0.030)},
    severe={"count": (20.0, 34.99), "size": (0.036, 0.055)},
)
def specular(image, rng, count, size):
    """Mirror reflections of the lamp on wet mucosa: saturated, sharp-edged, slightly bluish white spots with a thin
    glow, in clusters where the surface is bright."""
    x, y = axes(*image.shape[:2])
    bx, by = x + 0.02 * _noise(rng, image, 12), y + 0.02 * _noise(rng, image, 12)
    bright = image.mean(axis=2)
    bright = np.where(np.hypot(x, y) < 0.9, bright, 0).ravel() ** 2 + 1e-9
    places = np.searchsorted(np.cumsum(bright), rng.random(int(count)) * bright.sum())
    spots = np.zeros(image.shape[:2], np.float32)
    for place in np.minimum(places, bright.size - 1):
        cx, cy = x.flat[place], y.flat[place]
        a = size * rng.uniform(0.6, 1.6)
        spots = np.maximum(spots, ellipse(bx, by, cx, cy, a * rng.uniform(0.9, 2.2), a, rng.uniform(0, 3), 0.02))
    glow = gaussian(spots, 0.012 * _side(image))[..., None]
    white = np.array([0.97, 0.99, 1.0], np.float32)
    return image + np.maximum(spots[..., None], 0.45 * glow) * (white - image)


@operator(
    "endoscopy",
    "bubbles",
    mild={"count": (5.0, 8.99), "radius": (0.055, 0.085)},
    severe={"count": (18.0, 28.99), "radius": (0.085, 0.125)},
)
def bubbles(image, rng, count, radius):
    """Foam: thin bright rims, an inside that is slightly darker and shows the lamp as a small spot."""
    x, y = axes(*image.shape[:2])
    result = image.copy()
    cluster = rng.uniform(-0.35, 0.35, 2)
    for _ in range(int(count)):
        cx, cy = np.clip(cluster + rng.normal(0, 0.36, 2), -0.78, 0.78)
        r = radius * rng.uniform(0.6, 1.5)
        distance = np.hypot(x - np.float32(cx), y - np.float32(cy))
        inside = step(r - distance, 0.02)[..., None]
        rim = np.exp(-(((distance - 0.93 * r) / (0.09 * r + 0.012)) ** 2))[..., None]
        lit = 0.65 + 0.35 * np.clip(-((x - cx) + (y - cy)) / (1.4 * r), -1, 1)[..., None]
        result = result * (1 - 0.22 * inside) + np.float32(0.62) * rim * lit * (np.float32([1, 0.98, 0.92]) - result)
        spot = ellipse(x, y, cx - 0.38 * r, cy - 0.38 * r, 0.2 * r + 0.008, 0.14 * r + 0.008, 0.8, 0.02)
        result += spot[..., None] * (1 - result)
    return np.clip(result, 0, 1).astype(np.float32)


@operator("endoscopy", "smoke", mild={"density": (0.32, 0.42)}, severe={"density": (0.64, 0.78)})
def smoke(image, rng, density):
    """Surgical smoke: a grey veil with drifting swirls, I = J t + A (1 - t) (Koschmieder's law)."""
    swirl = 0.6 * _noise(rng, image, 3) + 0.4 * _noise(rng, image, 7)
    veil = np.clip(density * (1 + 0.30 * swirl), 0, 0.97)[..., None] * _illuminated(image)[..., None]
    air = np.float32([0.74, 0.75, 0.78]) * np.float32(rng.uniform(0.9, 1.08))
    return np.clip(image * (1 - veil) + air * veil, 0, 1).astype(np.float32)


@operator("fundus", "uneven_illumination", mild={"span": (0.95, 1.25)}, severe={"span": (2.1, 2.8)})
def uneven_illumination(image, rng, span):
    """The beam enters the pupil off centre: light falls off towards one side, with a crescent shadow, by `span`
    (natural logarithm of linear light)."""
    x, y = axes(*image.shape[:2])
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    fall = step(along + 0.1 + 0.15 * _noise(rng, image, 2), 1.3)
    return np.clip(image * np.exp((0.18 - fall) * span / GAMMA * 1.6)[..., None], 0, 1).astype(np.float32)


@operator("fundus", "haze", mild={"veil": (0.30, 0.38)}, severe={"veil": (0.58, 0.72)})
def haze(image, rng, veil):
    """Cataract: light scattered in the lens lays a milky veil over the retina and softens it."""
    scattered = gaussian(image, (0.02 + 0.05 * veil) * _side(image))
    inside = _illuminated(image)[..., None]
    milk = gaussian(image, 0.15 * _side(image)) * 0.55 + np.float32([0.30, 0.27, 0.20])
    soft = image * (1 - 0.6 * veil) + scattered * (0.6 * veil)
    t = veil * (1 + 0.12 * _noise(rng, image, 3))[..., None]
    return np.clip(soft + inside * t * (milk - soft), 0, 1).astype(np.float32)


@operator("fundus", "color_distortion", mild={"shift": (0.22, 0.30)}, severe={"shift": (0.52, 0.68)})
def color_distortion(image, rng, shift):
    """A wrong white balance: gains that pull the image towards green, blue, magenta or yellow."""
    casts = np.array([[-0.75, 0.65, 0.1], [-0.7, 0.1, 1.1], [0.1, -0.8, 1.6], [-0.35, 0.8, -0.9]])
    cast = casts[rng.integers(len(casts))] * shift + rng.normal(0, 0.03, 3)
    return np.clip(image * np.exp(cast).astype(np.float32), 0, 1)
