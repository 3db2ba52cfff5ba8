"""Does the endpoint see the images? A blind one gives plausible scores: options and base rates alone are worth 40 %.

A few questions before every evaluation, asked with their image, with it again, with a grey one in its place and
without any. Do answers change with the grey image more than they do when the same is asked twice? And how much longer
is a prompt with its image? The first decides, because some endpoints do not count image tokens at all; the second
explains.
"""

import hashlib
import json
import re
import secrets
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.artifacts import read_table, write_table
from medq_ray.console import say
from medq_ray.evaluate.scoring import matched
from medq_ray.images import encode_png, read_image
from medq_ray.model.ask import Answer, file_digest
from medq_ray.model.chat import EndpointError, Sampling
from medq_ray.questions import LETTERS
from medq_ray.schema import COMPLETION, PROMPT
from medq_ray.tables import rows_of

PROBES = (8, 64)
"""Questions that are asked four ways: a few, and more of them where the same question has not the same answer twice, or
where only letters tell. Our choice."""
GREY = 128
FLOOR = 1e-3
"""Change that means nothing, in nats of trajectory entropy (another answer counts 1): an engine's batches differ by
less; a grey image changes the embedded model's answers by 0.5."""
SURE = 3.0
"""Standard errors by which a grey image must change the answers of a restless endpoint more than asking again does."""
OTHERS = 3
"""Answers that a grey image must change where there are no logprobs: one may flicker. Our choice."""
ALIKE = 0.05
"""Mean change up to which the same model may answer on another day: another GPU, engine or batch. Our choice."""
ANOTHER = 4.0
"""Standard errors beyond which a restless endpoint is another model: every repeated command looks."""


@dataclass(frozen=True)
class Looks:
    """The completions of some prompts with their image ('true'), with it 'again', with a 'grey' one and with 'none'."""

    rows: list[dict]
    seen: dict[str, list[dict]]

    def changes(self, kind: str) -> np.ndarray:
        """float (n, 2): by how much the answer to `kind` and the second one differ from the true one, a row for each
        prompt that was answered all three times."""
        trios = zip(self.rows, self.seen["true"], self.seen[kind], self.seen["again"], strict=True)
        pairs = [
            (change(row["prompt"], true, other), change(row["prompt"], true, again))
            for row, true, other, again in trios
            if not (true["error"] or other["error"] or again["error"])
        ]
        return np.array(pairs).reshape(-1, 2)

    def has_entropies(self) -> bool:
        return any(row["entropy"] is not None for row in self.seen["true"])

    def image_tokens(self) -> int | None:
        """By how many tokens an image makes a prompt longer, at least; None where nobody counts."""
        tokens = [
            (true["prompt_tokens"], none["prompt_tokens"])
            for true, none in zip(self.seen["true"], self.seen["none"], strict=True)
            if not (true["error"] or none["error"]) and None not in (true["prompt_tokens"], none["prompt_tokens"])
        ]
        return min((true - none for true, none in tokens), default=None)


def check_sight(
    prompts: pa.Table,
    answer: Answer,
    sampling: Sampling,
    label: str,
    *,
    trusted: bool = False,
    remembered: Path | None = None,
) -> dict:
    """{verdict: sees | cannot tell | no images, probes, image_tokens (least, null where nobody counts), grey, again
    (mean changes)}.

    prompts, sampling: of the evaluation; a few of the prompts are asked greedily. `remembered`: a file of the answers
    of earlier looks; with it no answer is taken from the cache, and it must be the same model that answers. Raises
    EndpointError when the endpoint is blind or refuses all images, and, unless it is `trusted`, when it cannot be told
    whether it looks at them and when it does not answer as it did in an earlier look.
    """
    seed = 0 if remembered is None else secrets.randbelow(1 << 30)
    greedy = replace(sampling, n=1, temperature=0.0, seed=seed, logprobs=True)
    for count in PROBES:
        looked = look(probes(prompts, count), answer, greedy, label)
        if not looked.rows:
            return {"verdict": "no images", "probes": 0, "image_tokens": None, "grey": 0.0, "again": 0.0}
        pairs = looked.changes("grey")
        if not len(pairs):
            every = (row["error"] for kind in ("true", "grey", "again") for row in looked.seen[kind])
            raise EndpointError(f"the endpoint answers no question with an image: {next(filter(None, every))}")
        if pairs[:, 1].mean() <= FLOOR and looked.has_entropies():
            break
    found, tokens = verdict(pairs, looked.has_entropies()), looked.image_tokens()
    if found != "sees":
        complain(complaint(found, pairs, tokens), trusted=trusted and found != "blind")
    if remembered is not None:
        check_same(looked, sampling.max_tokens, remembered, label, trusted=trusted)
    grey, again = pairs.mean(axis=0).tolist()
    return {"verdict": found, "probes": len(looked.rows), "image_tokens": tokens, "grey": grey, "again": again}


def verdict(pairs: np.ndarray, entropies: bool) -> str:
    """sees | blind | cannot tell, from changes (n, 2) by a grey image and by asking again."""
    more = pairs[:, 0] - pairs[:, 1]
    if pairs[:, 1].mean() > FLOOR:
        return "sees" if more.mean() > SURE * standard_error(more) else "cannot tell"
    if entropies:
        return "sees" if more.mean() > FLOOR else "blind"
    return "sees" if more.sum() >= OTHERS else "cannot tell"


def standard_error(values: np.ndarray) -> float:
    """Of their mean; infinite for one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf


def complain(line: str, *, trusted: bool) -> None:
    """Raise EndpointError, or warn."""
    if not trusted:
        raise EndpointError(line)
    say(f"warning: {line}")


def complaint(found: str, pairs: np.ndarray, tokens: int | None) -> str:
    """One line about an endpoint that was not found to see."""
    grey, again = pairs.mean(axis=0)
    evidence = f"in {len(pairs)} questions a grey image changes its answers by {grey:.3f}, asking again by {again:.3f}"
    if tokens is not None:
        longer = f"{tokens} tokens longer with an image" if tokens > 0 else "as long without images"
        evidence += f", and prompts are {longer}"
    if found == "blind":
        return f"the endpoint does not look at images: {evidence}; serve a vision-language model that gets them"
    advice = "if you know that it does: --trust-sight, or evaluate.trust_sight=true"
    return f"cannot tell whether the endpoint looks at images: {evidence}; {advice}"


def check_same(looked: Looks, max_tokens: int, path: Path, label: str, *, trusted: bool) -> None:
    """Compare with the answers to the same questions in a file of earlier looks, and add those to new ones.

    Raises EndpointError, unless `trusted`, when they differ by more than the same model's would.
    """
    before = by_name(read_table(path)) if path.exists() else {}
    now = [
        true | {"question_id": content_of(row, max_tokens)}
        for row, true in zip(looked.rows, looked.seen["true"], strict=True)
    ]
    there = [place for place, row in enumerate(now) if row["question_id"] in before]
    seen = {kind: [rows[place] for place in there] for kind, rows in looked.seen.items()}
    seen["before"] = [before[now[place]["question_id"]] for place in there]
    pairs = Looks([looked.rows[place] for place in there], seen).changes("before")
    if len(pairs) and differs(pairs):
        changed, again = pairs.mean(axis=0)
        complain(
            f"{label}: another model answers under this name than the one whose answers are kept in {path.parent} "
            f"(in {len(pairs)} questions they differ by {changed:.3f}, asking again by {again:.3f}): give another "
            f"--out, or --trust-sight if you know that it is the same",
            trusted=trusted,
        )
    fresh = {row["question_id"]: row for row in now if row["question_id"] not in before and not row["error"]}
    if fresh:
        rows = sorted([*before.values(), *fresh.values()], key=lambda row: row["question_id"])
        write_table(path, rows, COMPLETION)


def differs(pairs: np.ndarray) -> bool:
    """Whether answers changed, (n, 2) since an earlier look and by asking again, more than the same model's would."""
    more = pairs[:, 0] - pairs[:, 1]
    restless = pairs[:, 1].mean() > FLOOR
    return bool(more.mean() > max(ALIKE, ANOTHER * standard_error(more) if restless else 0.0))


def content_of(row: dict, max_tokens: int) -> str:
    """What makes two probes the same, whatever they are called: pictures, prompt and length of the answer."""
    content = [[file_digest(uri) for uri in row["uris"]], row["prompt"], max_tokens]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def look(rows: list[dict], answer: Answer, greedy: Sampling, label: str) -> Looks:
    """Ask some prompts four ways."""
    with tempfile.TemporaryDirectory() as folder:
        grey = [row | {"uris": [blank(uri, Path(folder)) for uri in row["uris"]]} for row in rows]
        asked = {"true": rows, "grey": grey, "none": [row | {"uris": []} for row in rows], "again": rows}
        first = [named(kind, row) for kind, own in asked.items() if kind != "again" for row in own]
        said = by_name(answer(pa.Table.from_pylist(first, schema=PROMPT), greedy, f"{label}: sight"))
        second = pa.Table.from_pylist([named("again", row) for row in rows], schema=PROMPT)
        said |= by_name(answer(second, replace(greedy, seed=greedy.seed + 1), f"{label}: sight, again"))
    return Looks(rows, {kind: [said[named(kind, row)["question_id"]] for row in own] for kind, own in asked.items()})


def probes(prompts: pa.Table, count: int) -> list[dict]:
    """At most `count` prompts with images that can be read, evenly from all over the table; one of each image as long
    as there are enough."""
    named = sorted((row["question_id"], row["uris"][0]) for row in rows_of(prompts) if row["uris"])
    first = {uri: name for name, uri in reversed(named)}
    names = [name for name, _ in named] if len(first) < min(count, len(named)) else sorted(first.values())
    chosen = pc.is_in(prompts["question_id"], pa.array(spread(names, 2 * count), pa.string()))
    rows = prompts.filter(chosen).sort_by("question_id").to_pylist()
    return spread([row for row in rows if can_be_read(row["uris"])], count)


def spread(items: list, count: int) -> list:
    """`count` of the items, evenly spaced; all where there are fewer."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in dict.fromkeys(places.tolist())]


def can_be_read(uris: list[str]) -> bool:
    try:
        return all(read_image(uri).size for uri in uris)
    except ValueError:
        return False


def blank(uri: str, folder: Path) -> str:
    """A grey picture of the size of another one."""
    height, width = read_image(uri).shape[:2]
    path = folder / f"{height}x{width}.png"
    if not path.exists():
        path.write_bytes(encode_png(np.full((height, width, 3), GREY, np.uint8)))
    return str(path)


def named(kind: str, row: dict) -> dict:
    return row | {"question_id": f"{kind}/{row['question_id']}"}


def by_name(completions: pa.Table) -> dict[str, dict]:
    return {row["question_id"]: row for row in completions.to_pylist()}


def change(prompt: str, left: dict, right: dict) -> float:
    """The difference of two answers: 1 for another letter (another text where the prompt shows no options), else that
    of the entropies. Prose about the same letter is the same answer: some endpoints word it anew each time."""
    if re.search(r"^A\. ", prompt, re.MULTILINE):
        other = matched(left["text"], LETTERS) != matched(right["text"], LETTERS)
    else:
        other = left["text"] != right["text"]
    if other or left["entropy"] is None or right["entropy"] is None:
        return float(other)
    return abs(left["entropy"] - right["entropy"])


def check_tokens(completions: pa.Table) -> None:
    """Raises EndpointError when the endpoint reports an answer to a prompt with an image that it saw none of."""
    blind = pc.and_(pc.equal(completions["error"], ""), pc.equal(pc.fill_null(completions["image_tokens"], 1), 0))
    if count := pc.sum(blind).as_py():
        raise EndpointError(f"{count} of {completions.num_rows} answers were given without any image token")
