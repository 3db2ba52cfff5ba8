"""Balance of the answers that are trained on: of what is said, and of the letter that says it (our choice of rules; the
paper names none).

Both rules look at the new samples of one iteration. Parts that are balanced add up to a whole that is, and what was
trained on before is not taken back.
"""

from collections import Counter, defaultdict
from math import ceil

from medq_ray.model.prompts import render
from medq_ray.questions import LETTERS

DEALT = ("what", "how", "comparison")
"""Kinds of question whose options were dealt out in a random order when they were asked."""


def overfull(samples: list[dict], reviewed: set[str], ratio: float | None) -> dict[str, tuple[str, str]]:
    """Question id -> (reason, ''), for samples that give an answer which is given too often; none without a ratio.

    Answers are compared in words, among the questions of one kind about one modality: that is what the question's text
    tells, so a model could learn to answer it unseen. An answer may be there `ratio` times as often as the others are
    on average, rounded down, but once at least. Of the surplus the last ids go, which are as good as random, and never
    a reviewed sample: an answer that experts give too often stays too frequent. Where only one answer is ever given
    there is nothing to balance it with. Descriptions have no classes; their repeats are a matter of diversity.
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples if ratio is not None else ():
        if sample["options"]:
            words = sample["options"][LETTERS.index(sample["answer"])]
            groups[sample["kind"], sample["modality"]][words].append(sample["question_id"])
    found = {}
    for (kind, modality), answers in groups.items():
        total = sum(map(len, answers.values()))
        for words, ids in answers.items():
            if len(answers) == 1:
                continue
            others = (total - len(ids)) / (len(answers) - 1)
            ranked = sorted(ids, key=lambda name: (name not in reviewed, name))
            reason = (f"{words!r} answers {len(ids)} of {total} {kind} questions about {modality}, other answers "
                      f"{others:.3g} on average")  # fmt: skip
            surplus = ranked[max(1, int(ratio * others)) :]
            found |= {name: (reason, "") for name in surplus if name not in reviewed}
    return found


def dealt(samples: list[dict], ratio: float | None) -> list[dict]:
    """The samples, by question id, with options swapped in as few as it takes for no letter to be right too often.

    Among questions with as many options a letter may be right `ratio` times its even share, rounded up. In the surplus,
    the last ids, the right option changes places with the one under the letter that is right least often; prompt and
    answer follow, and what is said stays the same.

    Why the order is changed and no sample dropped: in DEALT kinds it was drawn at random, so it is no part of what was
    asked; a judgement that an expert made in words holds under any letter, and would be thrown away for nothing. The
    order of Yes and No is the same in all such questions, there and in benchmarks: there a letter is an answer, and its
    balance that of `overfull`.
    """
    samples = sorted(samples, key=lambda sample: sample["question_id"])
    groups: dict[int, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples if ratio is not None else ()):
        if sample["kind"] in DEALT:
            groups[len(sample["options"])].append(i)
    for options, members in groups.items():
        counts = Counter({letter: 0 for letter in LETTERS[:options]})
        counts.update(samples[i]["answer"] for i in members)
        limit = ceil(ratio * len(members) / options)
        for i in reversed(members):
            if counts[samples[i]["answer"]] > limit:
                letter = min(counts, key=lambda name: (counts[name], name))
                counts[samples[i]["answer"]] -= 1
                counts[letter] += 1
                samples[i] = swapped(samples[i], letter)
    return samples


def swapped(sample: dict, letter: str) -> dict:
    """The sample with its right option under `letter`, and the one that was there in its place."""
    options, old, new = list(sample["options"]), LETTERS.index(sample["answer"]), LETTERS.index(letter)
    text = sample["prompt"].removesuffix(render("", options))
    options[old], options[new] = options[new], options[old]
    return sample | {"options": options, "answer": letter, "prompt": render(text, options)}
