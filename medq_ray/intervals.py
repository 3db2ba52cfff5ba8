"""Confidence intervals that several phases need. Floor 0."""

import math

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a rate over n questions; (0, 1) for none.

    With several runs a question, `rate` is the mean of the questions' own means, whose variance is at most that of
    one run: the interval then is conservative.
    """
    if n == 0:
        return 0.0, 1.0
    centre = rate + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
