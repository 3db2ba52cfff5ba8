"""Where degradation operators are registered, each with the ranges from which its strength is drawn.

An operator is written as `f(image, rng, **drawn) -> image`; `operator` turns it into the public form
`f(image, severity, rng) -> (image, parameters)`. Images are float32 (H, W, 3) in [0, 1]; lengths are shares of the
shorter side, so that any image size gives the same look. All ranges are our choice: 'mild' is what a trained eye
sees at 112x112, 'severe' is clearly worse, and at least one drawn parameter has a gap between the two.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np

Image = np.ndarray
Operator = Callable[[Image, str, np.random.Generator], tuple[Image, dict]]

OPERATORS: dict[tuple[str, str], Operator] = {}
RANGES: dict[tuple[str, str], dict[str, dict[str, tuple[float, float]]]] = {}
"""(modality, degradation) -> severity -> parameter -> (low, high), drawn uniformly."""


def operator(modality: str, name: str, mild: dict, severe: dict):
    """Register the decorated function for one cell; `mild` and `severe` map each parameter to its (low, high)."""

    def register(function):
        ranges = {"mild": mild, "severe": severe}

        @wraps(function)
        def apply(image: Image, severity: str, rng: np.random.Generator) -> tuple[Image, dict]:
            drawn = {key: float(rng.uniform(low, high)) for key, (low, high) in ranges[severity].items()}
            result = function(image, rng, **drawn)
            return result, {key: round(value, 5) for key, value in drawn.items()}

        OPERATORS[modality, name], RANGES[modality, name] = apply, ranges
        return function

    return register
