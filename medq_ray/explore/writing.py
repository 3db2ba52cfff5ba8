"""Capability-driven questions: the oracle looks at each selected image and writes questions aimed at the weakness that
selected it (paper Sec. 2.3; its prompts are not published, ours are `medq_ray.questions.commission`).

Replies are read strictly. What breaks a rule is asked for again, with the reason; what never keeps them is dropped with
it. Options are dealt out anew, so that right answers are spread over the letters whatever the oracle prefers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from medq_ray import questions as ask
from medq_ray.explore.questions import by_prototype, generator, hypothesis, row_of, scope_of, subjects
from medq_ray.model.ask import Answer
from medq_ray.model.chat import Sampling
from medq_ray.model.prompts import uris_of
from medq_ray.questions.commission import Commission, read_reply
from medq_ray.schema import DROP, PROMPT, QUESTION

FORM = json.dumps({
    "name": "question", "strict": True,
    "schema": {"type": "object", "additionalProperties": False, "required": ["question", "options", "answer"],
               "properties": {"question": {"type": "string"}, "options": {"type": "array", "items": {"type": "string"}},
                              "answer": {"type": "string"}}},
})  # fmt: skip
"""Of a reply, for endpoints that can hold a model to it."""
MAX_TOKENS = 512
"""Of one reply."""
GENERAL = {"yes_no": 0.25, "how": 0.5}
"""Share of the questions of a kind that are on quality in general, about images with a weakness."""


def commissions(
    selection: pa.Table, prototypes: pa.Table, *, kinds: Sequence[str], seed: int, partners: Mapping[str, dict]
) -> dict[str, tuple[dict, Commission]]:
    """question id -> (row of schema.SELECTION with image B, its commission).

    The aim is the degradation of the cell that paid for the image; where none did, it is drawn as for the seed rule. A
    quarter of the yes/no questions, whose answer nobody can choose, and half of the how questions are on quality in
    general; of the other yes/no questions half are wanted with each answer. Draws depend on the seed and the image
    only. partners: of `explore.pairs`.
    """
    mixtures, found = by_prototype(prototypes), {}
    for image in selection.to_pylist():
        rng = generator(image["image_id"], seed)
        mixture = mixtures.get(image["prototype_id"], {})
        paid = image["capability"].partition("/")[2] or None
        aim, severity = hypothesis(mixture, image["modality"], rng, paid)
        for kind, subject in subjects(image, kinds, partners):
            general = aim == "none" or rng.random() < GENERAL.get(kind, 0.0)
            wanted = "" if general or kind != "yes_no" else ("Yes", "No")[rng.integers(2)]
            target = ("none", "none") if general else (aim, severity)
            commission = Commission(kind, image["modality"], *target, wanted)
            found[f"{image['image_id']}-{kind}"] = subject | {"aim": aim, "severity": severity}, commission
    return found


def written(
    orders: Mapping[str, tuple[dict, Commission]], ask_oracle: Answer, *, attempts: int, temperature: float,
    seed: int,
) -> tuple[pa.Table, pa.Table]:
    """(schema.QUESTION with the oracle's answers, schema.DROP of what it never wrote by the rules), by question id.

    A letter or a description as the answer is the oracle's opinion, and no truth: annotation decides what becomes of
    it.
    """  # fmt: skip
    rows, lost, refused = [], {}, dict.fromkeys(sorted(orders), "")
    for attempt in range(attempts):
        prompts = [
            {"question_id": name, "uris": uris_of(orders[name][0]), "prompt": orders[name][1].prompt(reason)}
            for name, reason in refused.items()
        ]
        if not prompts:
            break
        sampling = Sampling(n=1, temperature=temperature, max_tokens=MAX_TOKENS, seed=seed + attempt, logprobs=False,
                            form=FORM)  # fmt: skip
        replies = ask_oracle(pa.Table.from_pylist(prompts, schema=PROMPT), sampling, f"writing {attempt + 1}")
        refused = {}
        for reply in replies.select(["question_id", "text", "error"]).to_pylist():
            name = reply["question_id"]
            if reply["error"]:  # the client has tried again already
                lost[name] = f"no reply: {reply['error']}"
                continue
            try:
                rows.append(question_of(name, *orders[name], reply["text"], seed))
            except ValueError as error:
                refused[name] = str(error)
    lost = dict(sorted((lost | refused).items()))
    dropped = [{"id": name, "step": "question", "reason": reason, "keeper": ""} for name, reason in lost.items()]
    rows.sort(key=lambda row: row["question_id"])
    return pa.Table.from_pylist(rows, schema=QUESTION), pa.Table.from_pylist(dropped, schema=DROP)


def question_of(name: str, image: dict, commission: Commission, reply: str, seed: int) -> dict:
    """The row of schema.QUESTION that a reply makes; its severity is the one that was answered, where one was. Raises
    ValueError saying why it makes none."""
    text, options, answer = read_reply(commission, reply)
    rng = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()])
    if commission.kind != "yes_no":  # there Yes is A, as everywhere
        options = [options[i] for i in rng.permutation(len(options))]
    else:
        options = ["Yes", "No"]
    letter = ask.LETTERS[options.index(answer)] if options else answer
    severity = ask.severity_in(commission.kind, answer) or image["severity"]
    capabilities = ask.capabilities(commission.kind, commission.modality, image["aim"], severity)
    return row_of(image, commission.kind, scope_of(commission.aim), text, options, letter, capabilities)
