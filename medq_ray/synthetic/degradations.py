"""All degradation operators under one door: `degrade` and the registry of `schema.DEGRADATIONS`' cells."""

import numpy as np

from medq_ray.schema import SEVERITIES
from medq_ray.synthetic import histology, magnetic, optics, tomography  # noqa: F401  importing registers the operators
from medq_ray.synthetic.registry import OPERATORS, RANGES

SMALLEST = 8

__all__ = ["OPERATORS", "RANGES", "degrade", "to_uint8"]


def to_uint8(image: np.ndarray) -> np.ndarray:
    """float [0, 1] -> uint8, rounded."""
    return (np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def degrade(
    image: np.ndarray, modality: str, degradation: str, severity: str, rng: np.random.Generator
) -> tuple[np.ndarray, dict]:
    """(uint8 (H, W, 3), parameters) of a float32 or uint8 RGB image; 'none' returns it unchanged.

    Raises ValueError for a cell that is not in the registry or a severity that does not fit.
    """
    if min(image.shape[:2]) < SMALLEST:
        raise ValueError(f"images of less than {SMALLEST} pixels a side cannot be degraded, got {image.shape}")
    if image.dtype == np.uint8:
        image = image.astype(np.float32) * np.float32(1 / 255)
    if severity not in SEVERITIES or (severity == "none") != (degradation == "none"):
        raise ValueError(f"severity {severity!r} does not go with degradation {degradation!r}")
    if degradation == "none":
        return to_uint8(image), {}
    if (modality, degradation) not in OPERATORS:
        raise ValueError(f"no degradation {degradation!r} for modality {modality!r}")
    result, parameters = OPERATORS[modality, degradation](image, severity, rng)
    return to_uint8(result), parameters
