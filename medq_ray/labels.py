"""When a label can be used, and when two labels say the same: one rule for whoever annotates, reviews, curates and
reports.

Floor 3.
"""

from medq_ray.model.prompts import parse_letter
from medq_ray.questions.findings import read_findings, verdict_of

REVIEWED_ROUTES = ("cold_start", "expert")
"""Routes whose annotation needs a verdict before anybody trains on it (paper Sec. 2.3)."""


def readable(kind: str, text: str, options: int) -> str | None:
    """An annotation in the form that is trained on: the bare letter, or the description without outer blanks, which has
    to end in a verdict on the image. None when it cannot be read, which is its own outcome."""
    if kind == "description":
        return text.strip() if verdict_of(text)[1] else None
    return parse_letter(text, options)


def says_same(kind: str, first: str, second: str, options: int) -> bool | None:
    """Whether two annotations are one label: the same letter, or the same findings in other words too. False if either
    cannot be used; None where nobody can tell: of two different descriptions one leaves its findings in doubt."""
    usable = [readable(kind, text, options) for text in (first, second)]
    if None in usable:
        return False
    if kind != "description":
        return usable[0] == usable[1]
    if " ".join(usable[0].split()) == " ".join(usable[1].split()):
        return True
    found, other = read_findings(first), read_findings(second)
    return None if found is None or other is None else found.same(other)
