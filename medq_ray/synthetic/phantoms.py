"""One clean image of a modality, with anatomy drawn from a generator."""

import numpy as np

from medq_ray.synthetic import optical, radiology

GREY = {
    "mri": {"brain": radiology.mri_brain, "knee": radiology.mri_knee},
    "ct": {"head": radiology.ct_head, "abdomen": radiology.ct_abdomen, "chest": radiology.ct_chest},
}
COLOUR = {
    "endoscopy": optical.endoscopy,
    "fundus": optical.fundus,
    "histopathology": optical.histopathology,
}


def phantom(modality: str, rng: np.random.Generator, size: int) -> tuple[np.ndarray, str]:
    """(float32 (size, size, 3) in [0, 1], anatomy). Grey modalities have three equal channels.

    Raises ValueError for an unknown modality.
    """
    if modality in GREY:
        anatomy = list(GREY[modality])[rng.integers(len(GREY[modality]))]
        grey = np.clip(GREY[modality][anatomy](rng, size), 0, 1).astype(np.float32, copy=False)
        return np.repeat(grey[..., None], 3, axis=2), anatomy
    if modality not in COLOUR:
        raise ValueError(f"unknown modality {modality!r}: one of {', '.join([*GREY, *COLOUR])}")
    image, anatomy = COLOUR[modality](rng, size)
    return np.clip(image, 0, 1).astype(np.float32, copy=False), anatomy
