"""How a question is put to a model and how its letter is read back: prompt and parser are neighbours.

Floor 2. The wording of questions is in `medq_ray.questions`; here is only their form.
"""

import re
from collections.abc import Sequence

from medq_ray.questions import LETTERS

INSTRUCTION = "Answer with the letter."


def render(text: str, options: Sequence[str]) -> str:
    """The question, its lettered options one a line and the instruction; a description (no options) is only its text.

    Raises ValueError when there are more options than letters.
    """
    if not options:
        return text
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options, at most {len(LETTERS)} can be lettered: {text!r}")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([text, *lines, INSTRUCTION])


def prompt_of(question: dict) -> dict:
    """The row of schema.PROMPT that asks a question of schema.QUESTION."""
    prompt = render(question["text"], question["options"])
    return {"question_id": question["question_id"], "uris": uris_of(question), "prompt": prompt}


def uris_of(row: dict) -> list[str]:
    """The images of a question or sample in their order: one, or the two of a comparison."""
    return [uri for uri in (row["uri"], row.get("second_uri")) if uri]


def parse_letter(reply: str, options: int) -> str | None:
    """The letter of a reply to a question with `options` options, None when the reply is in another form.

    Strict: one capital letter that was offered, alone or followed by '.', ')' or ':' and anything. A letter found
    somewhere inside prose would be a guess, and an unparsed reply is its own outcome.
    """
    match = re.fullmatch(r"([A-Z])(?:[.):].*)?", reply.strip(), re.DOTALL)
    return match[1] if match and match[1] in LETTERS[:options] else None


def messages(urls: Sequence[str], prompt: str) -> list[dict]:
    """OpenAI chat messages of one turn: the images (data URLs or http addresses) in their order, then the text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]
