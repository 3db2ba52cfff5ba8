"""The truth table of the routing, its boundaries, and that it is total and exclusive."""

import itertools
import math

import pytest

from medq_ray.annotate.routing import Opinion, Thresholds, route, route_cold_start

TAU_H, TAU_ANN = 0.35, 0.5
A, B = Opinion("A", "A"), Opinion("B. no", "B")
PROSE, FAILED = Opinion("I cannot judge this image.", None), Opinion("", None, "HTTP 500")


def routed(entropy, delta, oracle, own, band=0.0):
    return route(entropy, delta, oracle, own, Thresholds(TAU_H, TAU_ANN, band))


@pytest.mark.parametrize(
    ("entropy", "delta", "oracle", "own", "expected"),
    [
        (0.36, 1.0, A, A, ("oracle", "A", "oracle")),
        (TAU_H, 1.0, A, A, ("oracle", "A", "oracle")),  # the boundary is uncertain
        (0.9, 0.0, A, B, ("oracle", "A", "oracle")),
        (0.9, 0.0, A, PROSE, ("oracle", "A", "oracle")),
        (math.nextafter(TAU_H, 0), 0.0, A, B, ("expert", "A", "oracle")),
        (0.0, math.nextafter(TAU_ANN, 0), A, B, ("expert", "A", "oracle")),
        (0.0, TAU_ANN, A, B, ("self", "B", "self")),  # the boundary is consistent
        (0.0, 1.0, A, A, ("self", "A", "self")),
        (0.0, 1.0, A, PROSE, ("expert", "A", "oracle")),  # never adopt what cannot be read
        (0.9, 0.0, PROSE, B, ("expert", "B", "self")),
        (0.0, 1.0, FAILED, B, ("expert", "B", "self")),
        (None, 1.0, A, A, ("expert", "A", "oracle")),
        (math.nan, 1.0, A, A, ("expert", "A", "oracle")),
        (None, 0.0, A, FAILED, ("expert", "A", "oracle")),
        (None, 0.0, PROSE, FAILED, ("expert", PROSE.text, "oracle")),
        (0.1, 0.0, FAILED, PROSE, ("expert", PROSE.text, "self")),
        (None, 0.0, FAILED, FAILED, ("dropped", "", "")),
    ],
)
def test_truth_table(entropy, delta, oracle, own, expected):
    result = routed(entropy, delta, oracle, own)
    assert (result.route, result.label, result.labelled_by) == expected
    assert result.reason


@pytest.mark.parametrize(
    ("entropy", "delta", "own", "expected"),
    [
        (TAU_H + 0.06, 0.0, B, ("oracle", "A", "oracle")),
        (TAU_H + 0.05, 0.0, B, ("oracle", "A", "oracle")),  # the upper end is uncertain
        (math.nextafter(TAU_H + 0.05, 0), 0.0, B, ("expert", "A", "oracle")),  # it might be confident
        (TAU_H - 0.05, 0.0, B, ("expert", "A", "oracle")),
        (TAU_H - 0.05, TAU_ANN, B, ("oracle", "A", "oracle")),  # the lower end is undecidable: they agree
        (math.nextafter(TAU_H - 0.05, 0), TAU_ANN, B, ("self", "B", "self")),
        (TAU_H, 1.0, PROSE, ("expert", "A", "oracle")),
        (TAU_H - 0.06, 1.0, A, ("self", "A", "self")),
    ],
)
def test_within_the_dead_band_the_safer_route_is_taken(entropy, delta, own, expected):
    result = routed(entropy, delta, A, own, band=0.05)
    assert (result.route, result.label, result.labelled_by) == expected


def test_total_exclusive_and_as_in_the_paper():
    entropies = [0.0, math.nextafter(TAU_H, 0), TAU_H, math.nextafter(TAU_H, 1), 5.0, None, math.inf]
    deltas = [0.0, math.nextafter(TAU_ANN, 0), TAU_ANN, 1.0]
    for entropy, delta, oracle, own in itertools.product(entropies, deltas, [A, PROSE, FAILED], [B, PROSE, FAILED]):
        result = routed(entropy, delta, oracle, own)
        assert result.route in ("oracle", "expert", "self", "dropped")
        assert (result.route == "dropped") == (not oracle.text and not own.text)
        known = entropy is not None and math.isfinite(entropy)
        if oracle.readable and own.readable and known:
            uncertain, disagrees = entropy >= TAU_H, delta < TAU_ANN
            assert result.route == ("oracle" if uncertain else "expert" if disagrees else "self")
        if result.route == "oracle":
            assert (result.label, result.labelled_by) == (oracle.readable, "oracle")
        if result.route == "self":
            assert (result.label, result.labelled_by) == (own.readable, "self")
        if result.route == "expert":
            assert result.label and result.labelled_by in ("oracle", "self")


def test_cold_start_reviews_whatever_the_oracle_says():
    assert route_cold_start(B).route == route_cold_start(PROSE).route == "cold_start"
    assert (route_cold_start(B).label, route_cold_start(PROSE).label) == ("B", PROSE.text)
    dropped = route_cold_start(FAILED)
    assert (dropped.route, dropped.label) == ("dropped", "") and "HTTP 500" in dropped.reason
