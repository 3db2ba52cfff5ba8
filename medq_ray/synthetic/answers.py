"""What the simulated oracle says: answers about synthetic images from their truth, with errors at set rates.

It stands where GPT-4o stands in the paper. With the default rates a reviewer accepts, edits and rejects its answers
in the shares of the paper's Table 3 (63 / 29 / 8 %); where it writes the questions too, what would be rejected breaks
the rules, is asked for again, and reaches nobody. `synthetic/oracle.py` serves it.
"""

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np

from medq_ray import questions
from medq_ray.questions import read_description
from medq_ray.questions.commission import Commission, commission_in
from medq_ray.schema import DEGRADATIONS, GRADES, SEVERITIES
from medq_ray.synthetic.author import garbage, write
from medq_ray.synthetic.truth import Truth, gold

MODEL = "simulated-oracle"
"""Its model name. It answers to no other, so what carries another name was not made by it."""
UNUSABLE = "I cannot judge this image."
"""The answer that an expert has to reject."""
REFUSAL = "I cannot assess this image."
"""The answer about an image or question that it has no truth for."""
FAULTS = ("429", "500", "503", "garbage", "slow")
"""What a first request may meet: a status, a body that is no completion, or an answer that takes SLOW seconds."""
SLOW = 3.0
GRADED, EXPERT = "Text to be graded:", "Expert's text, which is right:"
"""What stands before the two texts in our rubrics (`medq_ray.judging.wording`)."""


def judged(prompt: str) -> tuple[str, str]:
    """The graded text and the expert's in a rubric, each in square brackets. Raises ValueError where there are no such.
    """
    parts = {name: re.search(rf"^{re.escape(name)}\n\[(.*?)\](?:\n\n|\Z)", prompt, re.DOTALL | re.MULTILINE)
             for name in (GRADED, EXPERT)}  # fmt: skip
    if None in parts.values():
        raise ValueError("a request without an image is for the judge, and this is no rubric of ours")
    return parts[GRADED][1], parts[EXPERT][1]


def parse_prompt(prompt: str) -> dict:
    """The question in a prompt of `model.prompts.render`: {kind, text, options}.

    Options are the lines 'A. ...', 'B. ...' in order; the text is what stands before them. The kind is read off the
    options, as the endpoint sees nothing else.
    """
    lines = prompt.strip().splitlines()
    options: list[str] = []
    text: list[str] = []
    for line in lines:
        option = re.fullmatch(r"([A-F])\. (.+)", line.strip())
        if option and len(options) < len(questions.LETTERS) and option[1] == questions.LETTERS[len(options)]:
            options.append(option[2])
        elif not options:
            text.append(line.strip())
    if not options:
        kind = "description"
    elif set(options) == {"Yes", "No"}:
        kind = "yes_no"
    elif set(options) == set(questions.COMPARED):
        kind = "comparison"
    elif set(options) <= set(SEVERITIES) or set(options) <= set(GRADES):
        kind = "how"
    else:
        kind = "what"
    return {"kind": kind, "text": "\n".join(text).strip(), "options": options}


@dataclass(frozen=True)
class SimulatedOracle:
    """Answers from `truth`. Whether and how it errs is drawn from (seed, image, prompt), so a repeated request gets
    the identical answer, in whatever order and from whichever replica. Raises ValueError if the rates exceed 1."""

    truth: Truth
    edit_rate: float
    reject_rate: float
    failure_rate: float
    seed: int

    def __post_init__(self) -> None:
        if self.edit_rate + self.reject_rate > 1:
            raise ValueError(
                f"oracle.edit_rate={self.edit_rate} and oracle.reject_rate={self.reject_rate} add up to more than 1"
            )

    def answer(self, image_id: str, prompt: str, second_id: str = "") -> str:
        """The text of the answer: right, plausible but wrong (edit_rate), UNUSABLE (reject_rate) or REFUSAL; to a
        commission (`medq_ray.questions.commission`), a question and its answer. second_id: image B of a comparison."""
        truth, second = self.truth.get(image_id), self.truth.get(second_id)
        rng = self._rng("answer", image_id + second_id, prompt)
        if truth is None or (second_id and second is None):
            return REFUSAL
        if (commission := commission_in(prompt)) is not None:
            return self._written(commission, truth, second, rng)
        question = parse_prompt(prompt)
        try:
            right = gold(question, truth, second)
        except ValueError:  # a question of another world: none of its options is right
            return REFUSAL
        luck = rng.random()
        if luck < self.reject_rate:
            return UNUSABLE
        if luck >= self.reject_rate + self.edit_rate:
            return right
        if question["kind"] == "description":
            return wrong_description(truth["modality"], truth["degradation"], truth["severity"], rng)
        letters = questions.LETTERS[: len(question["options"])].replace(right, "")
        return letters[rng.integers(len(letters))]

    def _written(self, commission: Commission, truth: dict, second: dict | None, rng: np.random.Generator) -> str:
        """A commissioned question as JSON: with the right answer, a plausible but wrong one (edit_rate), or such that
        no rule is kept (reject_rate)."""
        luck, piece = rng.random(), write(commission, truth, second, rng)
        if luck < self.reject_rate:
            return garbage(piece, truth["modality"], rng)
        if luck < self.reject_rate + self.edit_rate:
            if commission.kind == "description":
                piece["answer"] = wrong_description(truth["modality"], truth["degradation"], truth["severity"], rng)
            else:
                others = [option for option in piece["options"] if option != piece["answer"]]
                piece["answer"] = others[rng.integers(len(others))]
        return json.dumps(piece)

    def first_fault(self, image_id: str, prompt: str) -> str:
        """What the first request for this answer meets: '', or with probability failure_rate one of FAULTS."""
        rng = self._rng("failure", image_id, prompt)
        return "" if rng.random() >= self.failure_rate else FAULTS[rng.integers(len(FAULTS))]

    def score(self, prompt: str) -> str:
        """A judge's reply to a rubric of descriptions: 2 where graded and expert's text say the same, 1 where they name
        the same degradation, else 0; another score with probability edit_rate."""
        graded, expert = (read_description(text.strip()) for text in judged(prompt))
        known = None not in (graded, expert)
        points = 2 if known and graded == expert else int(known and graded["degradation"] == expert["degradation"])
        rng = self._rng("judge", "", prompt)
        if rng.random() < self.edit_rate:
            points = (points + 1 + int(rng.integers(2))) % 3
        return f"Score: {points}"

    def _rng(self, purpose: str, image_id: str, prompt: str) -> np.random.Generator:
        digest = hashlib.sha256(repr((self.seed, purpose, image_id, prompt)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def wrong_description(modality: str, degradation: str, severity: str, rng: np.random.Generator) -> str:
    """A description of the same modality, in the right form, with another degradation, severity or both: a false
    alarm on a clean image; otherwise a miss, a confusion or a misjudged severity, equally often."""
    names = DEGRADATIONS[modality]
    if severity == "none":
        degradation, severity = names[rng.integers(len(names))], SEVERITIES[rng.integers(1, 3)]
    else:
        others = [name for name in names if name != degradation]
        degradation, severity = (
            ("none", "none"),
            (others[rng.integers(len(others))], severity),
            (degradation, "mild" if severity == "severe" else "severe"),
        )[rng.integers(3)]
    return questions.describe(modality, degradation, severity)
