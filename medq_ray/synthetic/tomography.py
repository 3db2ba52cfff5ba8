"""Degradations of CT, made in the sinogram of a parallel beam and brought back by filtered back projection (FBP).

Only the *difference* between the corrupted and the clean sinogram is reconstructed and added to the image: FBP is
linear, so this is exact, and the image keeps its sharpness instead of that of our small projector. Images larger than
GRID are projected on a reduced grid, and the artefact is enlarged and added.

Units: display value 0 is air, WATER is water; line integrals are natural logarithms of attenuation for a field of
view of FIELD_CM. That the display value stands for attenuation is our choice (a viewer's window is not invertible).
"""

from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import fft, sparse

from medq_ray.synthetic.fields import axes, gaussian
from medq_ray.synthetic.registry import operator

GRID = 160
WATER = 0.5
MU_WATER, FIELD_CM = 0.19, 36.0
"""Attenuation of water per cm at about 70 keV (NIST); a body-sized field of view."""


class Projector:
    """Parallel-beam projection of (n, n) images on `views` angles of `bins` detector pixels, pixel-driven with linear
    interpolation, so that back projection is its transpose."""

    def __init__(self, n: int) -> None:
        self.n, self.views, self.bins = n, n, int(np.ceil(1.42 * n)) + 3
        angles = np.arange(self.views) * (np.pi / self.views)
        x, y = axes(n)
        self.angles = angles
        across = x.ravel()[:, None] * np.cos(angles) + y.ravel()[:, None] * np.sin(angles)
        place = across * (n / 2) + (self.bins - 1) / 2
        low = np.floor(place).astype(np.int32)
        upper = (place - low).astype(np.float32)
        columns = low + np.arange(self.views, dtype=np.int32) * self.bins
        indices = np.stack([columns, columns + 1], axis=2).ravel()
        weights = np.stack([1 - upper, upper], axis=2).ravel()
        starts = np.arange(n * n + 1, dtype=np.int32) * (2 * self.views)
        shape = (n * n, self.views * self.bins)
        self.back = sparse.csr_matrix((weights, indices, starts), shape=shape)
        self.forward = self.back.T  # a view: no second copy
        size = fft.next_fast_len(2 * self.bins, real=True)
        taps = np.fft.fftfreq(size, 1 / size)
        kernel = np.zeros(size)
        odd = taps.astype(int) % 2 == 1
        kernel[0], kernel[odd] = 0.25, -1 / (np.pi * taps[odd]) ** 2
        self.ramp = np.abs(fft.rfft(kernel)).astype(np.float32)  # Kak and Slaney 1988, eq. 61: no DC error
        self.padded = size

    def project(self, image: np.ndarray) -> np.ndarray:
        """(n, n) -> (views, bins), lengths in pixels."""
        return (self.forward @ image.astype(np.float32).ravel()).reshape(self.views, self.bins)

    def reconstruct(self, sinogram: np.ndarray) -> np.ndarray:
        """FBP: (views, bins) -> (n, n)."""
        spectrum = fft.rfft(sinogram.astype(np.float32), self.padded, axis=1) * self.ramp
        filtered = fft.irfft(spectrum, self.padded, axis=1)[:, : self.bins]
        smeared = self.back @ np.ascontiguousarray(filtered, np.float32).ravel()
        return smeared.reshape(self.n, self.n) * np.float32(np.pi / self.views)


@lru_cache(maxsize=2)
def projector(n: int) -> Projector:
    """The projector of (n, n) images, built once a process (0.3 s and 25 MB at n = 112)."""
    return Projector(n)


def _attenuation(grey: np.ndarray) -> np.ndarray:
    """Display value -> line-integral units a pixel; a saturated bone counts about twice water."""
    return grey * np.float32(MU_WATER / WATER * FIELD_CM / grey.shape[0])


def _small(image: np.ndarray) -> np.ndarray:
    """The grey image on the projector's square grid, padded with air."""
    grey = image.mean(axis=2)
    height, width = grey.shape
    side = max(height, width)
    grey = np.pad(grey, ((0, side - height), (0, side - width)))
    if side <= GRID:
        return grey
    return np.asarray(Image.fromarray(grey).resize((GRID, GRID), Image.Resampling.BOX))


def _plus(image: np.ndarray, artefact: np.ndarray) -> np.ndarray:
    """The image with an artefact of the projector's grid (display units) added."""
    height, width = image.shape[:2]
    side = max(height, width)
    if artefact.shape[0] != side:
        artefact = np.asarray(Image.fromarray(artefact).resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(image + artefact[:height, :width, None], 0, 1).astype(np.float32)


def _display(difference: np.ndarray, system: Projector) -> np.ndarray:
    """A difference of line integrals -> artefact in display units."""
    return system.reconstruct(difference) * np.float32(WATER / MU_WATER * system.n / FIELD_CM)


@operator("ct", "blur", mild={"sigma": (0.0080, 0.0100)}, severe={"sigma": (0.0155, 0.0200)})
def blur(image, rng, sigma):
    """Focal spot and detector blur: the same Gaussian along every projection is, by the central slice theorem, a
    Gaussian on the image."""
    return gaussian(image, sigma * min(image.shape[:2]))


@operator("ct", "noise", mild={"log_photons": (8.7, 9.1)}, severe={"log_photons": (6.8, 7.3)})
def low_dose(image, rng, log_photons):
    """Poisson photon counts of a tube current of exp(log_photons) photons a ray: grain, and streaks where rays
    starve."""
    grey = _small(image)
    system = projector(grey.shape[0])
    clean = system.project(_attenuation(grey))
    photons = np.exp(log_photons)
    counts = rng.poisson(photons * np.exp(-clean))
    noisy = -np.log(np.maximum(counts, 0.5) / photons)
    return _plus(image, _display(noisy - clean, system))


@operator(
    "ct",
    "metal",
    mild={"radius": (0.012, 0.016), "hardening": (0.50, 0.60)},
    severe={"radius": (0.026, 0.036), "hardening": (0.65, 0.85)},
)
def metal(image, rng, radius, hardening):
    """One to three metal discs inside the body. Their rays are read too low (beam hardening: the share `hardening` of
    the metal's line integral beyond saturation is lost) and starve of photons: dark bands and bright streaks."""
    grey = _small(image)
    n = grey.shape[0]
    system = projector(n)
    x, y = axes(n)
    body = np.argwhere((grey > 0.25 * grey.max()) & (np.hypot(x, y) < 0.7))
    if len(body) == 0:
        body = np.array([[n // 2, n // 2]])
    inserts = np.zeros_like(grey)
    for row, column in body[rng.integers(len(body), size=int(rng.integers(1, 4)))]:
        inside = step_disc(n, row, column, radius * n * rng.uniform(0.85, 1.15))
        inserts = np.maximum(inserts, inside)
    chords = system.project(inserts) * np.float32(FIELD_CM / n)
    true = 2.2 * chords
    read = true * (1 - hardening * true / (true + 2.0))
    starved = np.float32(0.30) * rng.standard_normal(true.shape, dtype=np.float32) * np.clip(true / 4, 0, 1.5)
    artefact = _display(read - true + starved, system)
    return np.maximum(_plus(image, artefact), _plus(np.zeros_like(image), inserts))


def step_disc(n: int, row: float, column: float, radius: float) -> np.ndarray:
    """Soft disc mask (n, n), all in pixels."""
    ticks = np.arange(n, dtype=np.float32)
    distance = np.hypot(ticks[:, None] - np.float32(row), ticks[None, :] - np.float32(column))
    return np.clip(radius + 0.5 - distance, 0, 1)


@operator("ct", "ring", mild={"gain": (0.14, 0.17)}, severe={"gain": (0.32, 0.42)})
def ring(image, rng, gain):
    """A few detector pixels have wrong gains, the same in every view: rings around the axis of rotation."""
    side = max(image.shape[:2])
    system = projector(min(side, GRID))
    error = np.zeros(system.bins, np.float32)
    reach = 0.40 * system.n
    bad = rng.uniform(0.06, 1, 7) ** 0.8 * reach * rng.choice([-1, 1], 7) + system.bins / 2
    error[bad.astype(int)] = gain * rng.uniform(0.7, 1.3, 7) * rng.choice([-1, 1], 7)
    return _plus(image, _display(np.broadcast_to(error, (system.views, system.bins)), system))


@operator("ct", "sparse_view", mild={"share": (0.26, 0.32)}, severe={"share": (0.10, 0.135)})
def sparse_view(image, rng, share):
    """Only every (1 / share)-th projection is taken: fine radiating streaks from every edge."""
    grey = _small(image)
    system = projector(grey.shape[0])
    clean = system.project(_attenuation(grey))
    count = max(4, round(share * system.views))
    taken = ((np.arange(count) + rng.random()) * (system.views / count)).astype(int)
    weight = np.full((system.views, 1), -1, np.float32)
    weight[taken] += np.float32(system.views / count)
    return _plus(image, _display(clean * weight, system))
