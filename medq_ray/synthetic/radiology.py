"""Grey phantoms: MRI (brain, knee) and CT (head, abdomen, chest). Shapes, contrasts and ranges are our choice.

Each function returns a float32 (size, size) field in [0, 1] as a viewer would show it.
"""

import numpy as np

from medq_ray.synthetic.fields import axes, ellipse, fractal, grain, noise, over, step, turned

# grey levels as shown: scalp fat, bone, CSF, grey matter, white matter, deep nuclei
BRAIN_CONTRASTS = {
    "T1": (0.85, 0.10, 0.13, 0.45, 0.68, 0.53),
    "T2": (0.55, 0.07, 0.95, 0.56, 0.36, 0.44),
    "FLAIR": (0.50, 0.08, 0.12, 0.60, 0.46, 0.55),
}


def _warped(rng: np.random.Generator, size: int, amount: float, angle: float):
    """Coordinates bent by smooth noise and turned by at most `angle` radians: the same organ in another person."""
    x, y = axes(size)
    x, y = turned(x - rng.uniform(-0.06, 0.06), y - rng.uniform(-0.06, 0.06), rng.uniform(-angle, angle))
    x, y = x.astype(np.float32), y.astype(np.float32)
    return x + amount * noise(rng, size, 3), y + amount * noise(rng, size, 3)


def _cortex(rng: np.random.Generator, size: int, radius: np.ndarray):
    """(sulci, grey matter) masks: the zero lines of a noise field are sulci, the band around them is cortex."""
    lines = np.abs(fractal(rng, size, int(rng.integers(11, 15)), 2, 0.3))
    depth = step(radius - rng.uniform(0.52, 0.62), 0.18)
    sulci = step(0.20 - lines, 0.2) * depth
    ribbon = np.maximum(step(0.62 - lines, 0.25) * depth, step(radius - 0.90, 0.05))
    return sulci, ribbon


def mri_brain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Axial slice: scalp, skull, cortex, white matter, ventricles, deep nuclei, sometimes lesions."""
    contrast = list(BRAIN_CONTRASTS)[rng.integers(len(BRAIN_CONTRASTS))]
    fat, bone, csf, grey, white, deep = (v * rng.uniform(0.93, 1.05) for v in BRAIN_CONTRASTS[contrast])
    x, y = _warped(rng, size, 0.018, 0.2)
    a, b = rng.uniform(0.70, 0.80), rng.uniform(0.85, 0.93)
    image = np.full((size, size), 0.02, np.float32)
    over(image, ellipse(x, y, 0, 0, a, b), fat)
    over(image, ellipse(x, y, 0, 0, a - 0.06, b - 0.06), bone)
    over(image, ellipse(x, y, 0, 0, a - 0.11, b - 0.11), csf)
    a, b = a - 0.125, b - 0.125
    inside = ellipse(x, y, 0, 0, a, b)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    sulci, ribbon = _cortex(rng, size, radius)
    brain = np.full_like(image, white)
    over(brain, ribbon, grey)
    mirrored, tilt, swell = np.abs(x), rng.uniform(0.15, 0.35), rng.uniform(0.8, 1.3)
    over(brain, ellipse(mirrored, y, 0.15, 0.10, 0.09, 0.14, -0.3), deep)
    over(brain, ellipse(mirrored, y, 0.22, -0.10, 0.05, 0.15, 0.2), deep)
    over(brain, ellipse(mirrored, y, 0.09, -0.20, 0.045 * swell, 0.13 * swell, tilt), csf)
    over(brain, ellipse(mirrored, y, 0.14, 0.24, 0.045 * swell, 0.12 * swell, -tilt), csf)
    over(brain, sulci, csf)
    over(brain, step(0.014 - np.abs(x), 0.02) * step(np.abs(y) - 0.36, 0.1), csf)
    if contrast != "T1":
        for _ in range(rng.integers(0, 4)):
            cx, cy, r = rng.uniform(-0.3, 0.3), rng.uniform(-0.4, 0.4), rng.uniform(0.025, 0.06)
            over(brain, ellipse(x, y, cx, cy, r, r * rng.uniform(0.7, 1.3)), 0.9)
    brain += 0.020 * noise(rng, size, size // 3) + 0.02 * noise(rng, size, 6)
    over(image, inside, brain)
    return np.abs(image + 0.010 * grain(rng, size))


def mri_knee(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sagittal slice: femur, tibia, patella with dark cortex, cartilage, menisci, muscle and subcutaneous fat."""
    marrow, cortex, muscle, fat = rng.uniform(0.6, 0.85), 0.06, rng.uniform(0.28, 0.42), rng.uniform(0.75, 0.95)
    cartilage, fluid = rng.uniform(0.5, 0.65), rng.uniform(0.15, 0.9)
    x, y = _warped(rng, size, 0.022, 0.15)
    x = x * rng.choice([-1.0, 1.0]).astype(np.float32)
    image = np.full((size, size), 0.02, np.float32)
    half = 0.68 + 0.08 * np.cos(2.5 * y) + 0.03 * noise(rng, size, 3)
    inside = step(half - np.abs(x + 0.05), 0.04)
    fibres = noise(rng, size, 6, size // 4)
    over(image, inside, fat)
    over(image, step(half - 0.14 - np.abs(x + 0.02), 0.04), muscle + 0.05 * fibres)
    over(image, ellipse(x, y, -0.30, 0.02, 0.20, 0.26, 0.2), fat * 0.9)
    gap, joint = rng.uniform(0.025, 0.05), rng.uniform(-0.06, 0.08)
    condyle, shaft = rng.uniform(0.30, 0.36), rng.uniform(0.17, 0.22)
    for edge, value in ((0.0, cortex), (0.035, None)):
        level = marrow + 0.05 * noise(rng, size, size // 3) if value is None else value
        femur = np.maximum(
            ellipse(x, y, 0.02, joint - condyle * 0.85 - gap, condyle - edge, condyle * 0.85 - edge),
            step(shaft - edge - np.abs(x - 0.06), 0.03) * step(joint - 0.3 - y, 0.05),
        )
        plateau = ellipse(x, y, 0.03, joint + 0.24 + gap, condyle - edge, 0.24 - edge)
        tibia = np.maximum(plateau, step(shaft - edge - np.abs(x - 0.06), 0.03) * step(y - joint - 0.25, 0.05))
        patella = ellipse(x, y, -0.47, joint - 0.32, 0.09 - edge, 0.17 - edge, 0.15)
        if value is not None:
            wide = ellipse(x, y, 0.02, joint - condyle * 0.85 - gap, condyle + 0.035, condyle * 0.85 + 0.035)
            over(image, wide * step(y - joint + 0.32, 0.1), cartilage)
        over(image, np.maximum(np.maximum(femur, tibia), patella), level)
    over(image, ellipse(x, y, -0.16, joint, 0.08, 0.028, 0.25), 0.05)
    over(image, ellipse(x, y, 0.20, joint, 0.09, 0.030, -0.25), 0.05)
    over(image, ellipse(x, y, 0.02, joint, 0.06, 0.018), fluid)
    over(image, step(0.018 - np.abs(x + 0.53 + 0.15 * (y - joint)), 0.02) * step(y - joint + 0.15, 0.05) * inside, 0.08)
    image += (0.03 * noise(rng, size, size // 3) + 0.03 * noise(rng, size, 4)) * inside
    return np.abs(image + 0.010 * grain(rng, size))


def _ct_texture(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Fine correlated noise of an ordinary dose, well below the 'mild' of low dose."""
    size = image.shape[0]
    return image + np.float32(rng.uniform(0.006, 0.012)) * noise(rng, size, size // 2)


def ct_head(rng: np.random.Generator, size: int) -> np.ndarray:
    """Axial head in a brain window: thick bright skull, faint grey and white matter, dark ventricles."""
    x, y = _warped(rng, size, 0.015, 0.2)
    a, b, thick = rng.uniform(0.68, 0.78), rng.uniform(0.82, 0.92), rng.uniform(0.06, 0.09)
    image = np.zeros((size, size), np.float32)
    over(image, ellipse(x, y, 0, 0, a, b), 0.42)
    over(image, ellipse(x, y, 0, 0, a - 0.045, b - 0.045), rng.uniform(0.92, 1.0))
    a, b = a - 0.045 - thick, b - 0.045 - thick
    inside = ellipse(x, y, 0, 0, a, b, edge=0.02)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    sulci, ribbon = _cortex(rng, size, radius)
    brain = np.full_like(image, rng.uniform(0.36, 0.42))
    over(brain, ribbon, rng.uniform(0.47, 0.52))
    mirrored, swell = np.abs(x), rng.uniform(0.8, 1.5)
    over(brain, ellipse(mirrored, y, 0.15, 0.08, 0.10, 0.14, -0.3), 0.5)
    over(brain, ellipse(mirrored, y, 0.09, -0.20, 0.05 * swell, 0.13 * swell, 0.25), 0.15)
    over(brain, ellipse(mirrored, y, 0.14, 0.24, 0.05 * swell, 0.12 * swell, -0.25), 0.15)
    over(brain, 0.6 * sulci, 0.2)
    over(brain, step(0.01 - np.abs(x), 0.02) * step(np.abs(y) - 0.35, 0.1), 0.6)
    if rng.random() < 0.3:
        r = rng.uniform(0.06, 0.13)
        over(brain, ellipse(x, y, rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), r, r * 1.3), rng.choice([0.25, 0.75]))
    over(image, inside, brain)
    return _ct_texture(rng, image)


def _trunk(rng: np.random.Generator, size: int, muscle: float):
    """(image, x, y, a, b): skin, subcutaneous fat and muscle wall of an axial trunk lying on the back."""
    x, y = _warped(rng, size, 0.02, 0.06)
    a, b, fat = rng.uniform(0.86, 0.94), rng.uniform(0.64, 0.76), rng.uniform(0.05, 0.12)
    image = np.zeros((size, size), np.float32)
    over(image, ellipse(x, y, 0, 0, a, b), 0.40)
    over(image, ellipse(x, y, 0, 0, a - 0.02, b - 0.02), 0.18)
    over(image, ellipse(x, y, 0, 0, a - fat, b - fat), muscle)
    table = step(0.012 - np.abs(axes(size)[1] - 0.90 - 0.08 * axes(size)[0] ** 2), 0.015)
    over(image, table, 0.22)
    return image, x, y, a - fat, b - fat


def _spine(image: np.ndarray, x, y, cy: float, bright: float) -> None:
    """Vertebral body, canal, processes."""
    over(image, ellipse(x, y, 0, cy, 0.13, 0.10), bright)
    over(image, ellipse(x, y, 0, cy, 0.10, 0.075), bright * 0.78)
    over(image, ellipse(np.abs(x), y, 0.13, cy + 0.14, 0.10, 0.03, 0.4), bright)
    over(image, ellipse(x, y, 0, cy + 0.22, 0.03, 0.09), bright)
    over(image, ellipse(x, y, 0, cy + 0.125, 0.05, 0.04), 0.42)


def ct_abdomen(rng: np.random.Generator, size: int) -> np.ndarray:
    """Axial abdomen in a soft-tissue window, with contrast: liver, spleen, kidneys, aorta, bowel, spine."""
    muscle, bright = rng.uniform(0.46, 0.54), rng.uniform(0.9, 1.0)
    image, x, y, a, b = _trunk(rng, size, muscle)
    wall = rng.uniform(0.05, 0.08)
    over(image, ellipse(x, y, 0, -0.02, a - wall, b - wall), 0.20)
    liver, vessel = rng.uniform(0.58, 0.68), rng.uniform(0.75, 0.95)
    cavity = ellipse(x, y, 0, -0.02, a - wall - 0.02, b - wall - 0.02)
    lobe = ellipse(x, y, -0.40, -0.08, rng.uniform(0.30, 0.38), rng.uniform(0.34, 0.42), 0.35) * cavity
    over(image, lobe, liver)
    veins = step(0.09 - np.abs(noise(rng, size, 5)), 0.06) * step(noise(rng, size, 4), 0.5)
    over(image, lobe * veins * 0.5, vessel)
    over(image, ellipse(x, y, 0.56, 0.05, 0.11, rng.uniform(0.16, 0.24), -0.25) * cavity, liver * 0.97)
    for _ in range(rng.integers(5, 10)):
        cx, cy, r = rng.uniform(-0.1, 0.55), rng.uniform(-0.42, 0.08), rng.uniform(0.05, 0.10)
        loop = ellipse(x, y, cx, cy, r, r * rng.uniform(0.7, 1.2), rng.uniform(0, 3)) * cavity * (1 - lobe)
        over(image, loop, 0.55)
        inner = ellipse(x, y, cx, cy, r * 0.65, r * 0.6) * cavity * (1 - lobe)
        over(image, inner, rng.choice([0.02, 0.45, 0.85], p=[0.3, 0.45, 0.25]))
    depth = rng.uniform(0.14, 0.2)
    for side in (-1, 1):
        cx, cy = side * rng.uniform(0.30, 0.36), depth + rng.uniform(-0.03, 0.05)
        over(image, ellipse(x, y, cx, cy, 0.10, 0.14, side * 0.4), rng.uniform(0.75, 0.9))
        over(image, ellipse(x, y, cx - side * 0.04, cy, 0.035, 0.055, side * 0.4), 0.45)
    over(image, ellipse(np.abs(x), y, 0.18, depth + 0.12, 0.07, 0.09), muscle)
    _spine(image, x, y, depth + 0.10, bright)
    over(image, ellipse(x, y, 0.06, depth - 0.06, 0.05, 0.05), vessel)
    over(image, ellipse(x, y, -0.08, depth - 0.05, 0.055, 0.04), vessel * 0.85)
    return _ct_texture(rng, image)


def ct_chest(rng: np.random.Generator, size: int) -> np.ndarray:
    """Axial chest: lungs with branching vessels, heart, great vessels, ribs, spine, sternum."""
    muscle, bright = rng.uniform(0.48, 0.55), rng.uniform(0.9, 1.0)
    image, x, y, a, b = _trunk(rng, size, muscle)
    angle = np.arctan2(y * 1.3, x)
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    ribs = step(np.sin(angle * rng.integers(8, 12) + rng.uniform(0, 6)) - 0.1, 0.6)
    over(image, ribs * step(0.04 - np.abs(radius - 0.90), 0.04), bright)
    tips = noise(rng, size, 22)
    lung_grey, lungs = rng.uniform(0.06, 0.13), np.zeros_like(image)
    for side in (-1, 1):
        width = rng.uniform(0.27, 0.31) - (0.04 if side > 0 else 0)
        lungs = np.maximum(lungs, ellipse(x, y, side * 0.42, -0.01, width, b * rng.uniform(0.72, 0.82), side * 0.12))
    fine = 0.03 * noise(rng, size, size // 3)
    over(image, lungs, lung_grey + fine)
    hilum = np.exp(-4 * np.abs(np.abs(x) - 0.2) - 3 * np.abs(y))
    vessels = step(tips - 2.0 + 1.4 * hilum, 0.6) * lungs
    over(image, vessels, 0.5)
    heart = ellipse(x, y, rng.uniform(0.06, 0.13), -0.14, rng.uniform(0.26, 0.32), rng.uniform(0.20, 0.26), 0.45)
    over(image, heart, rng.uniform(0.56, 0.62))
    over(image, ellipse(x, y, 0.03, -0.18, 0.11, 0.13, 0.4), rng.uniform(0.7, 0.9))
    over(image, ellipse(x, y, 0.20, -0.12, 0.10, 0.12, 0.4), rng.uniform(0.65, 0.85))
    cy = b * 0.58
    _spine(image, x, y, cy - 0.06, bright)
    over(image, ellipse(x, y, 0.13, cy - 0.17, 0.055, 0.055), rng.uniform(0.7, 0.9))
    over(image, ellipse(x, y, 0, -b * 0.90, 0.09, 0.03), bright)
    return _ct_texture(rng, image)
