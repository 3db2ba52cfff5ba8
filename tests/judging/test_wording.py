"""Our wording keeps the protocol's form; the official one is loaded from a user's copy, checked, never executed."""

import ast
import hashlib
import re

import pytest

from medq_ray.judging import wording
from medq_ray.judging.wording import AXES, OWN, fill, load_official

CAPTION = '''
import a_library_that_is_not_installed
raise SystemExit("this file must not be executed")

PROMPT_TEMPLATES = {
    'completeness': (
        '#User: how much of [GOLDEN DESC] '
        'is in [MLLM DESC]? Score:'
    ),
    'preciseness': ('precise [MLLM DESC] ' '[GOLDEN DESC] Score:'),
    'consistency': 'consistent\\n[MLLM DESC] [GOLDEN DESC] Score:',
    'quality_accuracy': 'level [MLLM DESC] [GOLDEN DESC] Score:',
}


class Scorer:
    def build_prompt(self, metric):
        prompt = PROMPT_TEMPLATES[metric]
        return prompt


class Dataset:
    def load_data(self, dataset):
        data = load(dataset)
        if 'question' not in data:
            data['question'] = [
                """Describe "one" image. """
                """Briefly.""" for _ in range(len(data))
            ]
        return data
'''
PAIRED = """
from .medqbench_caption import PROMPT_TEMPLATES

PAIRED_PROMPT_TEMPLATES = {
    'completeness': PROMPT_TEMPLATES['completeness'],  # used again
    'preciseness': PROMPT_TEMPLATES['preciseness'],
    'consistency': ('paired consistent ' '[MLLM DESC] [GOLDEN DESC] Score:'),
    'quality_accuracy': 'which [MLLM DESC] [GOLDEN DESC] Score:',
}


class Dataset:
    def load_data(self, dataset):
        data['image'] = [a + b for a, b in data]
        data['question'] = [
            "Compare two "
            "images."
            for _ in range(len(data))
        ]
        return data
"""
MCQ = """
class Dataset:
    def other(self):
        prompt = "another prompt of this file"

    def build_prompt(self, line):
        option_text = '\\n'.join([f'{k}. {v}' for k, v in options.items()])
        prompt = (
            f"Look:\\n\\n"
            f"{question}\\n\\n"
            f"Options:\\n"
            f"{option_text}\\n\\n"
            f"Letter."
        )
        return prompt
"""
DEG = """
class Dataset:
    def build_prompt(self, line):
        prompt = (
            f'{question}\\n\\n'
            f'{option_text} which?'
        )
        return prompt
"""
FILES = {wording.CAPTION: CAPTION, wording.PAIRED: PAIRED, wording.MCQ: MCQ, wording.DEG: DEG}
COMPLETENESS = "#User: how much of [GOLDEN DESC] is in [MLLM DESC]? Score:"
TEXTS = {
    "mcq": "Look:\n\n{question}\n\nOptions:\n{option_text}\n\nLetter.",
    "MedQ-Deg mcq": "{question}\n\n{option_text} which?",
    "description": 'Describe "one" image. Briefly.',
    "comparison": "Compare two images.",
    "description completeness": COMPLETENESS,
    "description preciseness": "precise [MLLM DESC] [GOLDEN DESC] Score:",
    "description consistency": "consistent\n[MLLM DESC] [GOLDEN DESC] Score:",
    "description quality_accuracy": "level [MLLM DESC] [GOLDEN DESC] Score:",
    "comparison completeness": COMPLETENESS,
    "comparison preciseness": "precise [MLLM DESC] [GOLDEN DESC] Score:",
    "comparison consistency": "paired consistent [MLLM DESC] [GOLDEN DESC] Score:",
    "comparison quality_accuracy": "which [MLLM DESC] [GOLDEN DESC] Score:",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """A folder with an evaluator of the official shape and other texts, whose digests stand in for the official."""
    monkeypatch.setattr(wording, "DIGESTS", {name: ("another", digest(text)) for name, text in TEXTS.items()})
    folder = tmp_path / "repository" / "vlmeval" / "dataset"
    folder.mkdir(parents=True)
    for name, source in FILES.items():
        (folder / name).write_text(source)
    (folder / "medqbench_unrelated.py").write_text("x = 1")
    return folder


def refusal(path) -> str:
    with pytest.raises(ValueError) as caught:
        load_official(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_template_is_resolved(evaluator):
    loaded = load_official(evaluator)
    assert loaded.label == "official"
    assert loaded.mcq == {"MedQ-Bench": TEXTS["mcq"], "MedQ-Deg": TEXTS["MedQ-Deg mcq"]}
    assert (loaded.description, loaded.comparison) == (TEXTS["description"], TEXTS["comparison"])
    assert loaded.single == {axis: TEXTS[f"description {axis}"] for axis in AXES}
    assert loaded.paired == {axis: TEXTS[f"comparison {axis}"] for axis in AXES}
    assert list(loaded.single) == list(loaded.paired) == list(AXES)


def test_any_folder_above_and_any_of_the_files_will_do(evaluator):
    loaded = load_official(evaluator)
    for path in (evaluator.parent, evaluator.parents[1], *(evaluator / name for name in FILES)):
        assert load_official(path) == loaded


def test_of_several_copies_the_highest_is_read(evaluator):
    for deeper in (evaluator / "build", evaluator.parents[1] / "a" / "b" / "c" / "d"):
        deeper.mkdir(parents=True)
        (deeper / wording.MCQ).write_text("x = 1")
    assert load_official(evaluator.parents[1]) == load_official(evaluator / wording.MCQ)


@pytest.mark.parametrize(
    ("name", "old", "new", "template"),
    [
        (wording.MCQ, "Letter.", "Letter!", "mcq"),
        (wording.MCQ, "Letter.", "Letter. ", "mcq"),
        (wording.MCQ, "{question}", "{question!r}", "mcq"),
        (wording.MCQ, "{option_text}", "{option_text.strip()}", "mcq"),
        (wording.CAPTION, "Briefly.", "At length.", "description"),
        (wording.CAPTION, "how much", "How much", "description completeness"),
        (wording.CAPTION, "precise [", "Precise [", "description preciseness"),
        (wording.CAPTION, "consistent\\n", "consistent ", "description consistency"),
        (wording.CAPTION, "level", "levels", "description quality_accuracy"),
        (wording.CAPTION, "'level [MLLM DESC] [GOLDEN DESC] Score:'", "LEVEL", "description quality_accuracy"),
        (wording.CAPTION, "'consistency'", "'logic'", "description consistency"),
        (wording.CAPTION, "PROMPT_TEMPLATES = {", "TEMPLATES = {", "description completeness"),
        (wording.CAPTION, "PROMPT_TEMPLATES = {", "PROMPT_TEMPLATES = [0] or {", "description completeness"),
        (wording.CAPTION, "def load_data", "def load", "description"),
        (wording.PAIRED, "Compare", "Contrast", "comparison"),
        (wording.DEG, "which", "what", "MedQ-Deg mcq"),
        (wording.PAIRED, "paired consistent", "paired", "comparison consistency"),
        (wording.PAIRED, "which", "what", "comparison quality_accuracy"),
        (wording.PAIRED, "TEMPLATES['preciseness']", "TEMPLATES['completeness']", "comparison preciseness"),
        (wording.PAIRED, "PROMPT_TEMPLATES['preciseness']", "OTHERS['preciseness']", "comparison preciseness"),
    ],
)
def test_anything_but_the_official_text_is_refused(evaluator, name, old, new, template):
    path = evaluator / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    ast.parse(path.read_text())
    message = refusal(evaluator)
    assert str(path) in message and repr(template) in message


@pytest.mark.parametrize("name", [name for name in FILES if name != wording.DEG])
def test_a_missing_file_is_named(evaluator, name):
    (evaluator / name).unlink()
    message = refusal(evaluator.parents[1])
    assert str(evaluator / name) in message and wording.HOLDS[name] in message


def test_an_evaluator_without_medq_deg_is_one_of_medq_bench(evaluator):
    (evaluator / wording.DEG).unlink()
    assert load_official(evaluator).mcq == {"MedQ-Bench": TEXTS["mcq"]}


@pytest.mark.parametrize("content", [b"def (:\n    no python\n", b"x = '\xff'", b"x = '\0'"])
def test_a_file_that_is_no_python_is_named(evaluator, content):
    (evaluator / wording.MCQ).write_bytes(content)
    assert str(evaluator / wording.MCQ) in refusal(evaluator)


def test_a_folder_without_an_evaluator_is_refused(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)
    assert str(tmp_path / "absent") in refusal(tmp_path / "absent")


def test_the_real_digests_refuse_another_text(evaluator, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(wording.DIGESTS, "mcq", (digest(TEXTS["mcq"]),))
    monkeypatch.setitem(wording.DIGESTS, "MedQ-Deg mcq", (digest(TEXTS["MedQ-Deg mcq"]),))
    message = refusal(evaluator)
    assert "7c24fd3bf644e126" in message and digest(COMPLETENESS) in message


def test_every_template_has_its_digest():
    axes = {f"{task} {axis}" for task in ("description", "comparison") for axis in AXES}
    assert set(wording.DIGESTS) == {"mcq", "MedQ-Deg mcq", "description", "comparison"} | axes
    assert len(wording.DIGESTS["mcq"]) == 2  # with and without the fork's space


def test_our_rubrics_have_the_form_that_judge_and_parser_want():
    assert OWN.label == "own wording"
    assert list(OWN.single) == list(OWN.paired) == list(AXES)
    for rubric in (*OWN.single.values(), *OWN.paired.values()):
        assert rubric.count("[MLLM DESC]") == rubric.count("MLLM DESC") == 1
        assert rubric.count("[GOLDEN DESC]") == rubric.count("GOLDEN DESC") == 1
        assert rubric.endswith("Score:") and "{" not in rubric


def test_our_rubrics_anchor_two_one_and_nought_except_for_which_image_is_better():
    def anchors(rubric: str) -> str:
        return "".join(re.findall(r"^([012]) = ", rubric, re.MULTILINE))

    assert [anchors(OWN.single[axis]) for axis in AXES] == ["210"] * 4
    assert [anchors(OWN.paired[axis]) for axis in AXES] == ["210"] * 3 + ["20"]


def test_ours_is_not_official():
    ours = {*OWN.mcq.values(), OWN.description, OWN.comparison, *OWN.single.values(), *OWN.paired.values()}
    assert not {digest(text) for text in ours} & {value for values in wording.DIGESTS.values() for value in values}


def test_a_multiple_choice_question_is_filled_as_it_is():
    question = "Is {option_text} a {brace}, {question}?"
    prompt = fill(OWN.mcq["MedQ-Bench"], {"{question}": question, "{option_text}": "A. {}\nB. \\1"})
    assert fill("a.b", {".": "b", "b": "."}) == "ab."
    lines = prompt.split("\n")
    assert lines[1:7] == ["", question, "", "Options:", "A. {}", "B. \\1"] and lines[7] == "" and len(lines) == 9
