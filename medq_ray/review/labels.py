"""What a label says, whatever its words: whether it can be read, whether two agree, and where it stands on a scale."""

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import LETTERS, read_description
from medq_ray.schema import GRADES, SEVERITIES


def is_readable(question: dict, label: str) -> bool:
    """Whether training can use it: a letter that was offered, or a description in the form of `questions.describe`."""
    if question["kind"] == "description":
        return read_description(label) is not None
    return parse_letter(label, len(question["options"])) is not None


def meaning(question: dict, label: str) -> str:
    """Two labels agree if and only if theirs are equal: the option in words, a description's fields in their order, ''
    for a rejected one ('reject' is also an option: the worst grade). `label` must be readable or ''."""
    if not label:
        return ""
    if question["kind"] == "description":
        return "|".join(read_description(label).values())
    return question["options"][LETTERS.index(parse_letter(label, len(question["options"])))]


def grade(kind: str, meant: str) -> int | None:
    """How bad a `meaning` calls an image: 0 (no degradation, good), 1 or 2 (severe, reject), None where it says no such
    thing. A description's is its overall judgement."""
    if kind not in ("how", "description"):
        return None
    level = meant.rpartition("|")[2]
    return next((scale.index(level) for scale in (SEVERITIES, GRADES) if level in scale), None)
