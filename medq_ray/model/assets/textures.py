"""Pictures of nothing in particular, for a vision tower to learn from before it sees anything medical.

Real vision towers come from millions of photographs: they have seen glare, shadows, rings, stripes and double images,
though never in a scan and never as a finding. These textures stand for the photographs: patches, blobs and grain with
generic effects of random strength. The tower learns to measure the effects, so that fine-tuning can build on it.
README.md has what that was worth. All our choice.
"""

import numpy as np
from scipy import ndimage

EFFECTS = (
    "blur", "grain", "brightness", "contrast", "tint_red", "tint_green", "shade", "glare", "circles", "rays",
    "ripple", "echo", "shift", "band",
)  # fmt: skip


def _smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """float32 (size, size) smooth field, about zero mean and unit deviation, with `cells` bumps a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    field = ndimage.zoom(coarse, size / cells, order=1 if cells > 16 else 3)
    y, x = rng.integers(0, np.array(field.shape) - size + 1)
    return field[y : y + size, x : x + size]


def scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 (size, size, 3) in [0, 1]: coloured texture with up to eight discs, in grey half the time."""
    colour = rng.uniform(0.15, 0.8, 3)
    image = np.repeat(colour[None, None], size, 0).repeat(size, 1).astype(np.float32)
    for cells in (3, 8, 20, 45):
        image += (rng.uniform(0, 0.12) * _smooth(rng, size, cells))[..., None] * rng.uniform(0.5, 1, 3)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for _ in range(rng.integers(0, 9)):
        cy, cx = rng.uniform(0, 1, 2)
        a, b = rng.uniform(0.04, 0.4, 2)
        inside = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        image[inside] = image[inside] * rng.uniform(0, 0.5) + rng.uniform(0, 0.8, 3)
    if rng.random() < 0.5:
        image[:] = image.mean(2, keepdims=True)
    if rng.random() < 0.4:
        image[(x - 0.5) ** 2 + (y - 0.5) ** 2 > rng.uniform(0.15, 0.25)] = 0.02
    return np.clip(image, 0, 1)


def affect(image: np.ndarray, strengths: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Apply effects of the given strengths (0 to 1, brightness, contrast and tints -1 to 1) to a scene."""
    size = len(image)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    get = strengths.get
    if get("echo"):
        moved = np.roll(image, rng.integers(6, 40, 2) * rng.choice([-1, 1], 2), (0, 1))
        image = image + 0.6 * get("echo") * (moved - image.mean())
    if get("shift"):
        start, stop = np.sort(rng.integers(0, size, 2))
        image = image.copy()
        image[start:stop] = np.roll(image[start:stop], int(3 + 30 * get("shift")), 1)
    if get("band"):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8)
        far = np.abs((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5 - offset)
        image = image * (1 - 0.7 * get("band") * (far < 0.08))[..., None]
    cy, cx = rng.uniform(0.3, 0.7, 2)
    radius, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
    if get("rays"):
        wave = np.sin(angle * rng.integers(10, 40)) * np.exp(-2 * radius)
        image = image + (0.5 * get("rays") * wave)[..., None]
    if get("circles"):
        for _ in range(int(1 + 10 * get("circles"))):
            py, px, r = *rng.uniform(0, 1, 2), rng.uniform(0.03, 0.3)
            edge = np.abs(np.hypot(x - px, y - py) - r) < 0.012
            image = np.where(edge[..., None], image + rng.choice([-0.4, 0.4]), image)
    if get("ripple"):
        direction = rng.uniform(0, np.pi)
        wave = np.sin((x * np.cos(direction) + y * np.sin(direction)) * rng.uniform(60, 300))
        image = image + (0.2 * get("ripple") * wave)[..., None]
    if get("shade"):
        light = _smooth(rng, size, 2)
        image = image * np.exp(0.8 * get("shade") * light)[..., None]
    if get("glare"):
        for _ in range(int(1 + 20 * get("glare"))):
            py, px, a, b = *rng.uniform(0, 1, 2), *rng.uniform(0.01, 0.05, 2)
            image = np.where((((x - px) / a) ** 2 + ((y - py) / b) ** 2 < 1)[..., None], 0.98, image)
    tint = np.array([get("tint_red", 0), get("tint_green", 0), 0], np.float32)
    image = (image - 0.5) * (1 + 0.6 * get("contrast", 0)) + 0.5 + 0.3 * get("brightness", 0)
    image = image * (1 + 0.35 * tint)
    if get("blur"):
        image = ndimage.gaussian_filter(image, (3 * get("blur"), 3 * get("blur"), 0))
    if get("grain"):
        image = image + 0.2 * get("grain") * rng.standard_normal(image.shape[:2])[..., None]
    return np.clip(image, 0, 1)


def strengths_of(seed: int) -> np.ndarray:
    """float32 (len(EFFECTS),): each effect present with probability 0.2, else 0."""
    rng = np.random.default_rng([20, seed])
    signed = np.isin(EFFECTS, ("brightness", "contrast", "tint_red", "tint_green"))
    signs = np.where(signed, rng.choice([-1, 1], len(EFFECTS)), 1)
    present = rng.random(len(EFFECTS)) < 0.2
    return (present * signs * rng.uniform(0.2, 1, len(EFFECTS))).astype(np.float32)


def picture(seed: int, size: int) -> np.ndarray:
    """uint8 (size, size, 3): a scene with the effects of `strengths_of(seed)`."""
    rng = np.random.default_rng([21, seed])
    strengths = dict(zip(EFFECTS, strengths_of(seed).tolist(), strict=True))
    return (affect(scene(rng, size), strengths, rng) * 255).astype(np.uint8)
