"""Colour phantoms: endoscopy, fundus photography, H&E histopathology. Shapes, colours and ranges are our choice.

Each function returns float32 (size, size, 3) RGB in [0, 1].
"""

import numpy as np

from medq_ray.synthetic.fields import Sketch, axes, colour_over, ellipse, fractal, grain, noise, step, turned

HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
"""Optical density of the stains per channel (Ruifrok and Johnston 2001)."""


def endoscopy(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """A view along the colon: dark lumen off centre, haustral folds around it, vessels, lamp falloff, dark corners."""
    x, y = axes(size)
    cx, cy = rng.uniform(-0.45, 0.45, 2).astype(np.float32)
    dx, dy = x - cx + 0.05 * noise(rng, size, 3), y - cy + 0.05 * noise(rng, size, 3)
    dx, dy = turned(dx, dy, rng.uniform(0, np.pi))
    radius = np.sqrt(dx * dx + (dy * rng.uniform(0.8, 1.3)) ** 2) + 1e-3
    depth = np.log(radius) * rng.uniform(3.2, 4.6) + 0.5 * noise(rng, size, 3) + rng.uniform(0, 6.28)
    wave = np.sin(depth)
    ridge = np.clip(wave, 0, 1) ** 2
    crease = np.clip(-np.sin(depth + 0.6), 0, 1) ** 6
    light = np.clip(radius / rng.uniform(0.35, 0.55), 0, 1) ** rng.uniform(0.9, 1.3) * (1.08 - 0.30 * radius)
    light = light * (0.80 + 0.30 * ridge - 0.38 * crease) + 0.03 * noise(rng, size, 5)
    base = np.array([rng.uniform(0.80, 0.95), rng.uniform(0.42, 0.58), rng.uniform(0.32, 0.46)], np.float32)
    texture = 1 + 0.06 * noise(rng, size, size // 2) + 0.05 * noise(rng, size, size // 5)
    image = np.clip(light * texture, 0.02, 1.2)[..., None] * base
    image[..., 0] += 0.03 * noise(rng, size, 4)
    lines = np.abs(fractal(rng, size, int(rng.integers(6, 10)), 2, 0.5))
    vessels = step(0.055 - lines, 0.06) * step(noise(rng, size, 3) + rng.uniform(-0.2, 0.4), 0.8)
    strength = np.float32(rng.uniform(0.35, 0.6))
    image *= 1 - strength * vessels[..., None] * np.array([0.35, 1.0, 0.9], np.float32)
    anatomy = "colon"
    if rng.random() < 0.35:
        anatomy = "colon with polyp"
        angle, far, r = rng.uniform(0, 6.28), rng.uniform(0.35, 0.6), rng.uniform(0.10, 0.2)
        px, py = np.clip(cx + far * np.cos(angle), -0.6, 0.6), np.clip(cy + far * np.sin(angle), -0.6, 0.6)
        dome = np.clip(1 - ((x - px) ** 2 + (y - py) ** 2) / r**2, 0, 1)
        shade = (0.55 + 0.5 * np.sqrt(dome))[..., None] * base * np.array([1.0, 0.8, 0.8], np.float32)
        image += step(dome - 0.06, 0.12)[..., None] * (shade * texture[..., None] - image)
    frame = step(rng.uniform(1.12, 1.22) - np.sqrt(x * x + y * y), 0.04) * step(0.985 - np.abs(x), 0.03)
    image *= frame[..., None]
    image += 0.008 * grain(rng, size)[..., None]
    return image, anatomy


def _arcade(rng: np.random.Generator, start: np.ndarray, up: float, aside: float, length: float) -> np.ndarray:
    """(n, 2) points of a main vessel that leaves the disc up or down and bends around the macula (`aside` > 0) or
    away from it."""
    t = np.linspace(0, 1, 14)[:, None]
    bend = rng.uniform(0.45, 0.62) if aside > 0 else rng.uniform(0.3, 0.5)
    path = np.hstack([np.sign(aside) * (abs(aside) * t**1.5), up * bend * np.sin(t * np.pi * 0.55)]) * length
    wiggle = np.cumsum(rng.normal(0, 0.012, (14, 2)), axis=0) * (t > 0)
    return start + path + wiggle


def _vessels(rng: np.random.Generator, size: int, disc: np.ndarray, side: float) -> np.ndarray:
    """Density (size, size) of the vessel tree: four veins, four arteries beside them, with branches."""
    sketch = Sketch(size)
    for thickness, value in ((rng.uniform(0.040, 0.05), 1.0), (rng.uniform(0.026, 0.034), 0.7)):
        for up in (-1.0, 1.0):
            for aside in (-side * rng.uniform(0.95, 1.2), side * rng.uniform(0.4, 0.6)):
                path = _arcade(rng, disc, up, aside, rng.uniform(0.95, 1.2))
                for i, share in ((0, 1.0), (4, 0.85), (8, 0.65)):
                    sketch.line(path[i : i + 6], thickness * share, value)
                for i in rng.choice(np.arange(2, 12), int(rng.integers(4, 7)), replace=False):
                    heading = path[i + 1] - path[i]
                    heading = heading / np.linalg.norm(heading)
                    turn = rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
                    cos, sin = np.cos(turn), np.sin(turn)
                    heading = np.array([cos * heading[0] - sin * heading[1], sin * heading[0] + cos * heading[1]])
                    steps = heading * rng.uniform(0.04, 0.075) + rng.normal(0, 0.012, (7, 2))
                    sketch.line(np.vstack([path[i], path[i] + np.cumsum(steps, axis=0)]), thickness * 0.5, 0.75 * value)
    return sketch.field()


def fundus(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """A colour photograph of the retina: disc with cup, vessel tree, macula, choroidal texture, black surround."""
    x, y = axes(size)
    side = float(rng.choice([-1.0, 1.0]))
    disc = np.array([side * rng.uniform(0.36, 0.52), rng.uniform(-0.12, 0.12)])
    base = np.array([rng.uniform(0.70, 0.86), rng.uniform(0.32, 0.44), rng.uniform(0.12, 0.22)], np.float32)
    radius = np.sqrt(x * x + y * y)
    shade = 1.02 - rng.uniform(0.10, 0.2) * radius**2 + 0.03 * noise(rng, size, 3)
    shade += 0.045 * fractal(rng, size, 10, 3, 0.7) * rng.uniform(0.7, 1.2) + 0.02 * noise(rng, size, size // 2)
    image = shade[..., None] * base
    mx, my = disc[0] - side * rng.uniform(0.62, 0.72), disc[1] + rng.uniform(0.02, 0.1)
    macula = np.exp(-((x - mx) ** 2 + (y - my) ** 2) / rng.uniform(0.012, 0.03)).astype(np.float32)
    image *= 1 - macula[..., None] * np.array([0.35, 0.45, 0.4], np.float32) * np.float32(rng.uniform(0.8, 1.1))
    anatomy = "right eye" if side > 0 else "left eye"
    if rng.random() < 0.2:
        anatomy += " with drusen"
        for _ in range(rng.integers(5, 14)):
            px, py, r = mx + rng.normal(0, 0.14), my + rng.normal(0, 0.14), rng.uniform(0.015, 0.035)
            colour_over(image, 0.6 * ellipse(x, y, px, py, r, r), base * [1.15, 1.6, 1.9])
    a, b = rng.uniform(0.12, 0.15), rng.uniform(0.14, 0.17)
    colour_over(image, ellipse(x, y, *disc, a, b, edge=0.035), [0.95, rng.uniform(0.66, 0.76), rng.uniform(0.38, 0.5)])
    cup = rng.uniform(0.35, 0.6)
    colour_over(image, 0.8 * ellipse(x, y, *disc, a * cup, b * cup, edge=0.04), [1.0, 0.92, 0.72])
    tree = _vessels(rng, size, disc, side) * np.float32(rng.uniform(0.75, 0.95))
    image *= 1 - tree[..., None] * np.array([0.38, 0.72, 0.55], np.float32)
    image *= step(rng.uniform(0.93, 0.98) - radius, 0.02)[..., None]
    image += 0.005 * grain(rng, size)[..., None]
    return image, anatomy


def _draw_nuclei(rng: np.random.Generator, nuclei: Sketch, at: np.ndarray, r: float, stretch: float, angle) -> None:
    """Slightly irregular ellipses of differing size and darkness around the (n, 2) points `at`, turned by `angle`
    (n,)."""
    t = np.arange(8) * (2 * np.pi / 8)
    wobble = r * rng.uniform(0.8, 1.15, (len(at), 1)) * (1 + 0.10 * rng.standard_normal((len(at), 8)))
    px, py = wobble * np.cos(t) * stretch, wobble * np.sin(t) / stretch
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    outlines = np.stack([at[:, :1] + px * cos - py * sin, at[:, 1:] + px * sin + py * cos], axis=2)
    nuclei.polygons(outlines, rng.uniform(0.55, 1.0, len(at)))


def _scatter(rng: np.random.Generator, spacing: float) -> np.ndarray:
    """(n, 2) points on a jittered grid over the square, so that they rarely touch."""
    ticks = np.arange(-1.05, 1.05, spacing)
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    return points + rng.uniform(-0.42, 0.42, points.shape) * spacing


def _glands(rng: np.random.Generator, size: int, nuclei: Sketch, r: float):
    """(epithelium, lumen, (n, 3) centres with radii) of round glands whose nuclei line them (drawn into `nuclei`)."""
    x, y = axes(size)
    bx, by = x + 0.05 * noise(rng, size, 4), y + 0.05 * noise(rng, size, 4)
    epithelium, lumen = np.zeros((2, size, size), np.float32)
    centres, spacing = [], rng.uniform(0.62, 0.85)
    for cx, cy in _scatter(rng, spacing):
        a, b, angle = spacing * rng.uniform(0.33, 0.42), spacing * rng.uniform(0.33, 0.42), rng.uniform(0, 3)
        epithelium = np.maximum(epithelium, ellipse(bx, by, cx, cy, a, b, angle, 0.04))
        lumen = np.maximum(lumen, ellipse(bx, by, cx, cy, a * 0.42, b * 0.42, angle, 0.04))
        t = np.linspace(0, 2 * np.pi, int(2 * np.pi * a * 0.8 / (2.2 * r)), endpoint=False) + rng.uniform(0, 1)
        u, v = a * 0.8 * np.cos(t), b * 0.8 * np.sin(t)
        ring = np.stack(turned(u, v, -angle), axis=1) + [cx, cy]
        _draw_nuclei(rng, nuclei, ring, r, 1.3, t + angle)
        centres.append((cx, cy, max(a, b)))
    return epithelium, lumen, np.array(centres)


def histopathology(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """An H&E tile: glands, cellular tissue or fibrous stroma, built as optical densities of the two stains."""
    anatomy = ("glandular tissue", "cellular tissue", "fibrous stroma")[rng.integers(3)]
    nuclei, lumen, r = Sketch(size), np.zeros((size, size), np.float32), rng.uniform(0.030, 0.042)
    upright = rng.random() < 0.5
    fibres = noise(rng, size, 5, size // 4) if upright else noise(rng, size, size // 4, 5)
    direction = np.pi / 2 if upright else 0.0
    eosin = 0.42 + 0.09 * fibres + 0.07 * fractal(rng, size, 8, 3, 0.7)
    spacing, stretch, glands = r * rng.uniform(5.5, 8.0), 1.7, np.zeros((0, 3))
    if anatomy == "glandular tissue":
        epithelium, lumen, glands = _glands(rng, size, nuclei, r)
        eosin += epithelium * (0.16 - 0.08 * fibres)
    elif anatomy == "cellular tissue":
        spacing, stretch = r * rng.uniform(2.9, 3.8), 1.1
        eosin -= 0.06
    else:
        cracks = np.abs(noise(rng, size, 4, 12))
        lumen = step(0.10 - cracks, 0.1) * step(noise(rng, size, 3), 0.6)
    at = _scatter(rng, spacing)
    if len(glands):
        between = np.hypot(at[:, None, 0] - glands[:, 0], at[:, None, 1] - glands[:, 1]) > glands[:, 2]
        at = at[between.all(axis=1)]
    _draw_nuclei(rng, nuclei, at, r, stretch, direction + rng.normal(0, 0.4, len(at)))
    blue = nuclei.field() * (1 - 0.9 * lumen)
    blue *= 1 + 0.25 * noise(rng, size, size // 3)
    tissue = 1 - lumen
    if rng.random() < 0.35:
        tissue = tissue * step(fractal(rng, size, 2, 3) + rng.uniform(0.7, 1.4), 0.12)
    strength_h, strength_e = rng.uniform(1.15, 1.6), rng.uniform(0.75, 1.15)
    density_h = strength_h * (0.75 * blue + 0.05) * tissue
    density_e = strength_e * np.clip(eosin + 0.03 * grain(rng, size), 0.03, None) * (1 - 0.4 * blue) * tissue
    vector_h = HEMATOXYLIN + rng.normal(0, 0.02, 3).astype(np.float32)
    vector_e = EOSIN + rng.normal(0, 0.02, 3).astype(np.float32)
    white = np.float32(rng.uniform(0.93, 0.97))
    image = white * np.exp(-(density_h[..., None] * vector_h + density_e[..., None] * vector_e))
    return image, anatomy
