"""Which of two annotations becomes the label, and whether an expert looks first (paper Sec. 2.3).

    entropy H     oracle answer  self answer   route
    uncertain     usable         any           oracle   (a) adopt the oracle's
    confident     usable         usable        expert   (b) if delta < tau_ann: confident yet disagrees
    confident     usable         usable        self     (c) if delta >= tau_ann: confident and consistent
    undecidable   usable         usable        expert   if delta < tau_ann
    undecidable   usable         usable        oracle   if delta >= tau_ann: what they agree on, in the oracle's words
    no uncertain  usable         unreadable    expert   nothing of the model's to adopt
    unknown       usable         any           expert   no confidence, so no cheap route is safe
    any           unusable       any text      expert   nothing confirms the model
    any           unreadable     none          expert
    any           none           none          dropped  neither endpoint gave any text

Undecidable is an entropy within the dead band of tau_H: log-probabilities move with the batch that a request happens to
be in, and on another day it would lie on the other side. Uncertain is H >= tau_H + band, confident H < tau_H - band.
Usable means readable (medq_ray.labels). The first three rows are the paper's; the others are our choice,
and each takes the safer side. Every combination is on exactly one row.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Opinion:
    """One endpoint's annotation of one question."""

    text: str
    """As given; '' when the endpoint failed."""
    readable: str | None
    """In the form that is trained on; None when it cannot be read."""
    error: str = ""
    """Why there is no text."""


@dataclass(frozen=True)
class Routed:
    route: str
    """oracle | expert | self | dropped (cold_start at t = 0)"""
    reason: str
    label: str
    labelled_by: str
    """oracle | self, '' when dropped"""


@dataclass(frozen=True)
class Thresholds:
    """What divides the routes."""

    entropy: float
    """tau_H, nats a token."""
    agreement: float
    """tau_ann."""
    band: float = 0.0
    """Half the width of the dead band around tau_H, nats a token."""


def best(oracle: Opinion, own: Opinion) -> tuple[str, str]:
    """(label, labelled_by) put before the expert: the first of the oracle's and the model's that can be read, else the
    first that says anything. The paper does not say which one experts see; our choice."""
    for by, opinion in (("oracle", oracle), ("self", own)):
        if opinion.readable is not None:
            return opinion.readable, by
    return (oracle.text, "oracle") if oracle.text else (own.text, "self")


def route_cold_start(oracle: Opinion) -> Routed:
    """t = 0: experts review every annotation of the oracle; where it gave none there is nothing to review."""
    if not oracle.text:
        return Routed("dropped", f"no answer from the oracle: {oracle.error or 'empty'}", "", "")
    label = oracle.readable if oracle.readable is not None else oracle.text
    return Routed("cold_start", "every annotation is reviewed at t = 0", label, "oracle")


def route(entropy: float | None, delta: float, oracle: Opinion, own: Opinion, tau: Thresholds) -> Routed:
    """t > 0: the table above. `entropy` is in nats a token, None or not finite when unknown; `delta` is R(self, oracle)
    in [0, 1]."""
    if not oracle.text and not own.text:
        why = f"oracle: {oracle.error or 'empty'}; self: {own.error or 'empty'}"
        return Routed("dropped", f"no answer from either endpoint ({why})", "", "")
    if oracle.readable is None:
        what = "cannot be read" if oracle.text else f"is missing ({oracle.error or 'empty'})"
        return Routed("expert", f"the oracle's answer {what}", *best(oracle, own))
    if entropy is None or not math.isfinite(entropy):
        what = "no logprobs" if own.text else f"no answer from the model ({own.error or 'empty'})"
        return Routed("expert", f"confidence unknown: {what}", *best(oracle, own))
    if entropy >= tau.entropy + tau.band:
        why = f"uncertain: H {entropy:.4f} >= {tau.entropy + tau.band:.4g}"
        return Routed("oracle", why, oracle.readable, "oracle")
    confident = entropy < tau.entropy - tau.band
    sure = f"confident: H {entropy:.4f} < {tau.entropy - tau.band:.4g}"
    if not confident:
        sure = f"undecidable: H {entropy:.4f} within {tau.band:.4g} of {tau.entropy:.4g}"
    if own.readable is None:
        return Routed("expert", f"{sure}, but the model's answer cannot be read", *best(oracle, own))
    if delta < tau.agreement:
        return Routed("expert", f"{sure}, yet disagrees: delta {delta:.4f} < {tau.agreement:g}", *best(oracle, own))
    why = f"{sure} and consistent: delta {delta:.4f} >= {tau.agreement:g}"
    return Routed("self", why, own.readable, "self") if confident else Routed("oracle", why, oracle.readable, "oracle")
