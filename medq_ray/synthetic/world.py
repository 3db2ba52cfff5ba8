"""Images of the synthetic world."""
import numpy as np

from medq_ray.schema import DEGRADATIONS, MODALITIES, SEVERITIES
from medq_ray.synthetic.degradations import degrade
from medq_ray.synthetic.fields import noise
from medq_ray.synthetic.phantoms import phantom


def nuisance(image: np.ndarray, modality: str, rng: np.random.Generator) -> np.ndarray:
    """Device-to-device variation well below any 'mild': gain, gamma, faint grain. Float image in and out."""
    gamma, gain, grain = rng.uniform(0.92, 1.08), rng.uniform(0.95, 1.03), rng.uniform(0.002, 0.008)
    height, width = image.shape[:2]
    channels = 1 if modality in ("mri", "ct") else 3
    noisy = rng.standard_normal((height, width, channels), dtype=np.float32) * np.float32(grain)
    return np.clip(image ** np.float32(gamma) * np.float32(gain) + noisy, 0, 1)


def make_image(modality: str, degradation: str, severity: str, seed: int, size: int = 112) -> tuple[np.ndarray, dict]:
    """(uint8 (size, size, 3), truth) of one synthetic image, a pure function of its arguments.

    Anatomy and device depend on `seed` alone, so the clean twin of a degraded image is the same call with
    ('none', 'none'). truth has 'anatomy' and 'parameters' (what the operator drew).
    """
    rng = np.random.default_rng(np.random.SeedSequence([MODALITIES.index(modality), int(seed)]))
    image, anatomy = phantom(modality, rng, size)
    image = nuisance(image, modality, rng)
    cell = (*DEGRADATIONS[modality], "none").index(degradation)
    entropy = [MODALITIES.index(modality), cell, SEVERITIES.index(severity), int(seed)]
    pixels, parameters = degrade(image, modality, degradation, severity, np.random.default_rng(entropy))
    return pixels, {"anatomy": anatomy, "parameters": parameters}
