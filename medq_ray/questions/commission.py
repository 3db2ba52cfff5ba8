"""What the oracle is commissioned to write: a question about an image, aimed at a capability, and its answer.

Floor 1: prompt and reader are neighbours, and the simulated oracle reads the same prompts. The rules that a reply must
keep are strict, since a question that cannot be read, gives its answer away or misses its aim trains the wrong thing.
Wording is ours.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from medq_ray.questions import (
    COMPARED, DEGRADATION_NAMES, LETTERS, MODALITY_NAMES, NOTHING, describe, read_description, wordings, yes_no,
)  # fmt: skip
from medq_ray.schema import DEGRADATIONS, GRADES, SEVERITIES

LONGEST = 400
"""Characters of a question or option."""
TASK = "Task: "


@dataclass(frozen=True)
class Commission:
    """One question to be written."""

    kind: str
    """yes_no | what | how | description | comparison, which is of two images"""
    modality: str
    aim: str
    """The degradation that the question is aimed at, 'none' for quality in general."""
    severity: str
    """How bad the failures were whose look-alike the image is; 'none' with the aim 'none'."""
    wanted: str
    """yes_no about a certain degradation: the answer that is wanted if the image allows it, 'Yes' or 'No'; else ''."""

    def prompt(self, refused: str = "") -> str:
        """What is sent with the image; refused: what was wrong with the last reply, '' the first time."""
        name, known = MODALITY_NAMES[self.modality], [DEGRADATION_NAMES[d] for d in DEGRADATIONS[self.modality]]
        lines = [
            "You write questions that train a model to judge the quality of medical images. "
            + (f"These are two {name} images." if self.kind == "comparison" else f"This is one {name} image."),
            "The model has no known weakness here." if self.aim == "none" else
            f"The model fails on {self.severity} {DEGRADATION_NAMES[self.aim]} in {name} images; whether this image "
            "has any is for you to see.",
            f"Possible degradations: {', '.join(known)}. Severities: {', '.join(SEVERITIES)}. "
            f"Grades: {', '.join(GRADES)}.",
            self._instruction(),
            f"The question is, word for word, {self.words()}",
            "The answer must be right for this image. Do not name patients, institutions or diagnoses.",
            'Reply with one JSON object and nothing else: {"question": ..., "options": [...], "answer": ...}. '
            "The answer repeats the right option word for word; a description has no options.",
            TASK + json.dumps(asdict(self)),
        ]  # fmt: skip
        if refused:
            lines.append(f"Your last reply was refused: {refused}.")
        return "\n".join(lines)

    @property
    def general(self) -> bool:
        return self.aim == "none"

    def texts(self) -> tuple[str, ...]:
        """The wordings that the question may have. They are closed: of any other, nobody who checks could tell what is
        right."""
        return wordings(self.kind, self.modality, self.general)

    def words(self) -> str:
        """What is said of the wording."""
        if self.kind == "yes_no" and not self.general:
            form = yes_no(self.modality, DEGRADATIONS[self.modality][0])[0]
            named = DEGRADATION_NAMES[DEGRADATIONS[self.modality][0]]
            return f"{form!r}, with one of the degradations in the place of {named!r}."
        return f"{self.texts()[0]!r}."

    def _instruction(self) -> str:
        about = "the image's quality in general" if self.aim == "none" else DEGRADATION_NAMES[self.aim]
        if self.kind == "yes_no":
            if self.general:
                return 'Write a question about the image\'s quality in general with the options "Yes" and "No".'
            return (
                'Write a question with the options "Yes" and "No" on whether the image shows a certain degradation. '
                f"If you can, let it be {about} or, if the right answer would not be {self.wanted!r}, another one."
            )
        if self.kind == "what":
            among = "" if self.general else f"; {about} should be among them"
            return (
                "Write a question on the image's main degradation: four options, three degradations and "
                f"{NOTHING!r}{among}."
            )
        if self.kind == "how":
            levels, subject = (GRADES, "overall quality") if self.general else (SEVERITIES, "degradation")
            return f"Write a question on how bad the image's {subject} is, with the options {', '.join(levels)}."
        if self.kind == "comparison":
            return (
                "Write a question on which of the two images is of better quality, in view of "
                f"{about if self.general else f'{about} and other degradations'}, with the options "
                f"{', '.join(COMPARED)}."
            )
        assert self.kind == "description", self.kind
        return (
            "Ask for a description of the image's quality, and give it in exactly this form: "
            f"{describe(self.modality, DEGRADATIONS[self.modality][0], 'mild')!r}; without a degradation the middle "
            "sentence is 'No visible degradation.'"
        )


def commission_in(prompt: str) -> Commission | None:
    """The commission that a prompt states, None where it is no such prompt."""
    lines = [line.removeprefix(TASK) for line in prompt.splitlines() if line.startswith(TASK)]
    return Commission(**json.loads(lines[0])) if lines else None


def read_reply(commission: Commission, reply: str) -> tuple[str, list[str], str]:
    """(question, options, answer in words) that the oracle wrote. Raises ValueError saying which rule it breaks."""
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.strip())  # a fence around JSON is a habit, and harmless
    try:
        data = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not one JSON object") from error
    if not isinstance(data, dict) or set(data) - {"question", "options", "answer"}:
        raise ValueError("it is not a JSON object of question, options and answer")
    question, options, answer = data.get("question"), data.get("options") or [], data.get("answer")
    if not isinstance(options, list) or not all(isinstance(part, str) for part in (question, answer, *options)):
        raise ValueError("question and answer must be strings, and options a list of strings")
    question, answer, options = question.strip(), answer.strip(), [option.strip() for option in options]
    if not all(0 < len(part) <= LONGEST for part in (question, answer, *options)):
        raise ValueError(f"a question, option or answer is empty or longer than {LONGEST} characters")
    if not all(part.isprintable() for part in (question, answer, *options)):
        raise ValueError("a question, option or answer has characters that cannot be printed")
    _check_options(commission, question, options, answer)
    return question, options, answer


def _once_each(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Raises ValueError when it names something twice: which one is meant is unknown."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _check_options(commission: Commission, question: str, options: Sequence[str], answer: str) -> None:
    kind, modality = commission.kind, commission.modality
    known = [DEGRADATION_NAMES[name] for name in DEGRADATIONS[modality]]
    if question not in commission.texts():
        raise ValueError(f"the question is not, word for word, {commission.words()}")
    if kind == "description":
        if options:
            raise ValueError("a description has no options")
        found = read_description(answer)
        if found is None:
            raise ValueError("the description does not have the form that was asked for")
        if found["modality"] != modality or found["degradation"] not in ("none", *DEGRADATIONS[modality]):
            raise ValueError(f"the description is not one of {MODALITY_NAMES[modality]}")
        if GRADES.index(found["grade"]) != SEVERITIES.index(found["severity"]):
            raise ValueError("its grade contradicts its severity")
        return
    if len({option.lower() for option in options}) != len(options):
        raise ValueError("two options are the same")
    if answer not in options:
        raise ValueError("the answer is none of the options")
    if kind == "yes_no":
        if sorted(options) != ["No", "Yes"]:
            raise ValueError('the options must be "Yes" and "No"')
    elif kind == "what":
        if not 3 <= len(options) <= len(LETTERS) or NOTHING not in options or not set(options) <= {*known, NOTHING}:
            raise ValueError(f"the options must be degradations from the list and {NOTHING!r}")
        if not commission.general and DEGRADATION_NAMES[commission.aim] not in options:
            raise ValueError(f"{DEGRADATION_NAMES[commission.aim]} is not among the options")
    elif kind == "comparison":
        if sorted(options) != sorted(COMPARED):
            raise ValueError(f"the options must be {', '.join(COMPARED)}")
    elif sorted(options) != sorted(GRADES if commission.general else SEVERITIES):
        raise ValueError("the options are not the levels that were asked for")
