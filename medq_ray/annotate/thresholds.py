"""tau_H for the expert hours there are: the highest that sends no more samples to experts than may go.

The error of the labels falls as tau_H rises: what leaves the route 'oracle' was either agreed on, which changes little,
or goes to an expert, who mends it. So whoever has a share of experts' time spends all of it (our choice; the paper
gives neither threshold).
"""

import numpy as np


def affordable(
    entropy: np.ndarray, disagrees: np.ndarray, forced: np.ndarray, audited: np.ndarray, most: int, band: float
) -> float:
    """The highest tau_H with which at most `most` samples reach an expert; inf where all may, -band (no entropy is
    below 0) where only such as must.

    entropy: float (n,); disagrees: bool, delta < tau_ann; forced: goes to an expert whatever its entropy; audited: an
    expert looks if it goes to none otherwise. A sample that disagrees goes to an expert below tau_H + band.
    """
    free = ~forced
    base = int(forced.sum() + (audited & free).sum())
    if base > most:
        return -band
    more = np.sort(entropy[free & disagrees & ~audited])  # in this order they come to the experts as tau_H rises
    if base + len(more) <= most:
        return np.inf
    first_out = float(more[most - base])
    tau = first_out - band
    while tau + band > first_out:  # by rounding
        tau = float(np.nextafter(tau, -np.inf))
    return tau
