"""What `render` writes `parse_letter` reads back, and nothing else."""

import numpy as np
import pytest

from medq_ray import questions
from medq_ray.model.prompts import INSTRUCTION, messages, parse_letter, render
from medq_ray.schema import DEGRADATIONS, MODALITIES


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_option_has_its_own_line_and_letter(modality):
    rng = np.random.default_rng(0)
    for text, options in (
        questions.yes_no(modality, None),
        questions.yes_no(modality, DEGRADATIONS[modality][-1]),
        questions.what(modality, questions.offered_with(modality, "blur", rng), rng),
        questions.how(modality, True, rng),
    ):
        lines = render(text, options).split("\n")
        assert lines[0] == text and lines[-1] == INSTRUCTION
        read = {parse_letter(line, len(options)): line.split(". ", 1)[1] for line in lines[1:-1]}
        assert list(read) == list(questions.LETTERS[: len(options)])
        assert list(read.values()) == options


def test_a_description_is_only_its_text():
    assert render(questions.description("ct"), []) == questions.description("ct")


def test_more_options_than_letters_are_refused():
    with pytest.raises(ValueError, match="7 options"):
        render("Which?", list("abcdefg"))


@pytest.mark.parametrize("reply", ["B", " B\n", "B.", "B. blur", "B) blur", "B: blur\nbecause"])
def test_a_letter_with_its_usual_company_is_read(reply):
    assert parse_letter(reply, 2) == "B"


@pytest.mark.parametrize("reply", ["", "b", "C", "BB", "B blur", "blur", "The answer is B.", "A or B", "(B)", ".B"])
def test_anything_else_is_unparsed(reply):
    assert parse_letter(reply, 2) is None


def test_the_image_comes_before_the_text():
    (turn,) = messages(["data:image/png;base64,AAAA"], "Is it?")
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == ["image_url", "text"]
    assert turn["content"][0]["image_url"]["url"] == "data:image/png;base64,AAAA"
    assert turn["content"][1]["text"] == "Is it?"
