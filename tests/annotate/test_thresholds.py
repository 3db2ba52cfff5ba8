"""tau_H spends the experts' share and no more; draws depend on the question alone."""

import numpy as np
import pytest

from medq_ray.annotate.thresholds import affordable
from medq_ray.draws import drawn


def experts(entropy, disagrees, forced, audited, tau, band):
    """How many reach an expert by the table of `routing`."""
    sent = forced | (disagrees & (entropy < tau + band))
    return int((sent | audited).sum())


def crowd(seed: int, ties: bool) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 80))
    entropy = rng.exponential(0.2, n)
    if ties:
        entropy = np.round(entropy, 1)
    disagrees, forced, audited = rng.random((3, n)) < rng.random(3)[:, None]
    entropy[forced & (rng.random(n) < 0.3)] = np.nan
    return entropy, disagrees, forced, audited


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("band", [0.0, 0.03])
def test_the_share_is_spent_and_never_passed(band, ties):
    for seed in range(300):
        entropy, disagrees, forced, audited = crowd(seed, ties)
        for most in {0, 1, 5, len(entropy) // 3, len(entropy)}:
            tau = affordable(entropy, disagrees, forced, audited, most, band)
            sent = experts(entropy, disagrees, forced, audited, tau, band)
            least = int((forced | audited).sum())
            assert sent <= max(most, least)
            if tau == np.inf:
                assert sent == int((forced | audited | disagrees).sum()) <= most
            elif least <= most and not ties:  # one more would be too many
                assert sent == most
            if least > most:
                assert sent == least  # nobody goes who need not


def test_draws_are_of_the_question_and_come_to_the_share():
    names = [f"q{i}" for i in range(20_000)]
    first = [drawn("audit", name, 0.02, 0) for name in names]
    assert first == [drawn("audit", name, 0.02, 0) for name in names]
    assert 0.015 < np.mean(first) < 0.025
    assert first != [drawn("again", name, 0.02, 0) for name in names]
    assert first != [drawn("audit", name, 0.02, 1) for name in names]
    assert not any(drawn("audit", name, 0.0, 0) for name in names[:100])
    assert all(drawn("audit", name, 1.0, 0) for name in names[:100])
