"""What a reviewed label says, whatever its words: whether two reads agree, and where it stands on a scale."""

from medq_ray.model.prompts import parse_letter
from medq_ray.questions import LETTERS
from medq_ray.questions.findings import read_findings, verdict_of
from medq_ray.schema import GRADES, SEVERITIES


def meaning(question: dict, label: str) -> str:
    """Two labels agree if and only if theirs are equal: the option in words, 'modality|degradations|severity|grade' of
    a description, with its own words in the place of the degradations where these are in doubt, '' for a rejected one
    ('reject' is also an option: the worst grade). `label` must be readable (`medq_ray.labels`) or ''."""
    if not label:
        return ""
    if question["kind"] != "description":
        return question["options"][LETTERS.index(parse_letter(label, len(question["options"])))]
    found = read_findings(label)
    if found is None:
        fields = ("", " ".join(label.replace("|", " ").split()), "", verdict_of(label)[1])
    else:
        names, degrees = zip(*sorted(found.degrees), strict=True) if found.degrees else (("none",), ("none",))
        fields = (found.modality or question["modality"], ",".join(names), ",".join(degrees), found.grade)
    return "|".join(fields)


def grade(kind: str, meant: str) -> int | None:
    """How bad a `meaning` calls an image: 0 (no degradation, good), 1 or 2 (severe, reject), None where it says no such
    thing. A description's is its overall judgement."""
    if kind not in ("how", "description"):
        return None
    level = meant.rpartition("|")[2]
    return next((scale.index(level) for scale in (SEVERITIES, GRADES) if level in scale), None)
