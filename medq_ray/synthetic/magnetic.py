"""Degradations of MRI, made in k-space: the image is the magnitude of the inverse Fourier transform of its lines.

One line is one phase-encoding step; the phase direction is drawn, as operators swap it in practice.
"""

import numpy as np
from scipy import fft

from medq_ray.synthetic.fields import axes, noise
from medq_ray.synthetic.registry import operator


def _grey(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=2)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(grey, 0, 1).astype(np.float32, copy=False)[..., None], 3, axis=2)


def _lines(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """(k-space with the centre line in the middle of axis 0, whether the axes were swapped)."""
    grey = _grey(image)
    swapped = bool(rng.random() < 0.5)
    return fft.fftshift(fft.fft2(grey.T if swapped else grey)), swapped


def _magnitude(kspace: np.ndarray, swapped: bool) -> np.ndarray:
    grey = np.abs(fft.ifft2(fft.ifftshift(kspace)))
    return _rgb(grey.T if swapped else grey)


@operator("mri", "blur", mild={"kept": (0.32, 0.39)}, severe={"kept": (0.16, 0.21)})
def blur(image, rng, kept):
    """Only the inner `kept` share of k-space is sampled, with a short apodisation: lost detail and some Gibbs rings."""
    kspace = fft.fftshift(fft.fft2(_grey(image)))
    x, y = axes(*kspace.shape)
    window = np.clip((kept * 1.15 - np.maximum(np.abs(x), np.abs(y))) / (0.3 * kept), 0, 1)
    return _magnitude(kspace * window, False)


@operator("mri", "noise", mild={"sigma": (0.050, 0.070)}, severe={"sigma": (0.125, 0.170)})
def rician(image, rng, sigma):
    """Complex Gaussian receiver noise: its magnitude is Rician (Gudbjartsson and Patz 1995). White noise in k-space
    is white noise in the image, so it is added there."""
    noisy = rng.standard_normal((2, *image.shape[:2]), dtype=np.float32) * np.float32(sigma)
    return _rgb(np.hypot(_grey(image) + noisy[0], noisy[1]))


@operator(
    "mri",
    "motion",
    mild={"shift": (0.013, 0.019), "moves": (3.0, 6.99)},
    severe={"shift": (0.035, 0.055), "moves": (5.0, 9.99)},
)
def motion(image, rng, shift, moves):
    """The patient moves `moves` times during the scan: groups of lines see the object shifted by about `shift` of the
    field of view (and half of that along the read direction), which is a phase ramp on those lines: ghosts along the
    phase direction. The group around the centre of k-space stays, so the image does."""
    kspace, swapped = _lines(image, rng)
    height, width = kspace.shape
    v, u = np.arange(height) - height // 2, np.arange(width) - width // 2
    cuts = np.sort(rng.uniform(0, height, int(moves)))
    group = np.searchsorted(cuts, np.arange(height))
    size = shift * rng.uniform(0.7, 1.3, (2, len(cuts) + 1)) * rng.choice([-1.0, 1.0], (2, len(cuts) + 1))
    size[:, group[height // 2]] = 0
    size[1] *= 0.5
    ramp = v[:, None] * size[0, group][:, None] + u[None, :] * size[1, group][:, None]
    return _magnitude(kspace * np.exp(-2j * np.pi * ramp).astype(np.complex64), swapped)


@operator(
    "mri",
    "undersampling",
    mild={"weight": (0.40, 0.50), "centre": (0.10, 0.16)},
    severe={"weight": (0.85, 1.0), "centre": (0.02, 0.05)},
)
def undersampling(image, rng, weight, centre):
    """Lines outside the inner `centre` share are skipped in a regular pattern (every second or third is kept) and
    zero-filled: wrapped copies of the object. `weight` is how much of a skipped line is missing, as when a parallel
    reconstruction recovers the rest."""
    kspace, swapped = _lines(image, rng)
    height = kspace.shape[0]
    every, line = int(rng.integers(2, 4)), np.arange(height)
    skipped = (line % every != (height // 2) % every) & (np.abs(line - height // 2) > centre * height / 2)
    boost = np.where(skipped, 1 - weight, 1 + (every - 1) * weight * (np.abs(line - height // 2) > centre * height / 2))
    return _magnitude(kspace * boost[:, None].astype(np.float32), swapped)


@operator("mri", "bias_field", mild={"span": (1.2, 1.5)}, severe={"span": (2.5, 3.2)})
def bias_field(image, rng, span):
    """The coil's sensitivity: a smooth multiplicative field whose logarithm spans `span` over the image."""
    x, y = axes(*image.shape[:2])
    angle = rng.uniform(0, 2 * np.pi)
    field = np.cos(angle) * x + np.sin(angle) * y + 0.35 * noise(rng, image.shape[0], 2, 2, image.shape[1])
    field = (field - field.min()) / (field.max() - field.min()) - 0.5
    return np.clip(image * np.exp(span * field)[..., None], 0, 1).astype(np.float32)
