"""The agreement R(., .) of two annotations (paper Sec. 2.3; the function itself is not in the paper: our choice)."""

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import read_description

WEIGHTS = {"degradation": 0.55, "severity": 0.2, "grade": 0.2, "modality": 0.05}
"""Shares of a description's fields in R; they add up to 1. With tau_ann = 0.5 another degradation alone is a
disagreement (0.45), and so is a missed one (0.05); mild against severe, which moves the grade too, is not (0.6)."""


def readable(kind: str, text: str, options: int) -> str | None:
    """An annotation in the form that is trained on: the bare letter, or the description without outer blanks.
    None when it cannot be read, which is its own outcome."""
    if kind == "description":
        return text.strip() if read_description(text) else None
    return parse_letter(text, options)


def agreement(kind: str, first: str, second: str, options: int) -> float:
    """R in [0, 1], symmetric: letters are equal (1) or not (0); descriptions get the WEIGHTS of the fields they share.
    0 if either cannot be read: what cannot be read confirms nothing, not even itself."""
    if kind != "description":
        letter = parse_letter(first, options)
        return float(letter is not None and letter == parse_letter(second, options))
    fields, others = read_description(first), read_description(second)
    if fields is None or others is None:
        return 0.0
    return round(sum(weight for name, weight in WEIGHTS.items() if fields[name] == others[name]), 9)
