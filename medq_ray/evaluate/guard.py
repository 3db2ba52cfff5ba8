"""Does the endpoint see the images? A blind one gives plausible scores: options and base rates alone are worth 40 %.

Two questions before every evaluation. Do image tokens reach the model: is a prompt longer with its image than without?
And does the picture matter: do answers change when a grey one takes its place, more than they do when the same is
asked twice?
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.images import encode_png, read_image
from medq_ray.model.ask import Answer
from medq_ray.model.chat import EndpointError, Sampling
from medq_ray.schema import PROMPT

PROBES = (8, 64)
"""Questions that are asked with their image, with it again, with a grey one and without one: a few, and more of them
when the same question has not the same answer twice. Our choice."""
GREY = 128
FLOOR = 1e-3
"""Change that means nothing, in nats of trajectory entropy (another text counts 1): an engine's batches differ by less;
a grey image changes the embedded model's answers by 0.5."""
SURE = 2.0
"""Standard errors by which a grey image must change the answers of a restless endpoint more than asking again does."""


def check_sight(prompts: pa.Table, answer: Answer, sampling: Sampling, label: str) -> dict:
    """{probes, image_tokens (least, null where the endpoint counts no prompt tokens), grey, again: mean changes}.

    prompts, sampling: of the evaluation; a few of the prompts are asked greedily. Raises EndpointError when the
    endpoint is blind, and when it refuses all of them: it would refuse the others, too.
    """
    for count in PROBES:
        rows = probes(prompts, count)
        seen = look(rows, answer, replace(sampling, n=1, temperature=0.0, seed=0, logprobs=True), label)
        least = least_tokens(seen)
        pairs = [
            (change(true, grey), change(true, again))
            for true, grey, again in zip(seen["true"], seen["grey"], seen["again"], strict=True)
            if not (true["error"] or grey["error"] or again["error"])
        ]
        grey, again = np.mean(pairs, axis=0).tolist() if pairs else (0.0, 0.0)
        if again <= FLOOR:
            break
    if rows and not pairs:
        reason = next(row["error"] for kind in ("true", "grey", "again") for row in seen[kind] if row["error"])
        raise EndpointError(f"the endpoint answers no question with an image: {reason}")
    if pairs and not looks(np.array(pairs)):
        raise EndpointError(
            f"the endpoint does not look at images: a grey image changes its answers by {grey:.3f}, asking again by "
            f"{again:.3f}; serve a vision-language checkpoint, and see that images are sent to it"
        )
    return {"probes": len(rows), "image_tokens": least, "grey": grey, "again": again}


def looks(pairs: np.ndarray) -> bool:
    """Whether an endpoint with these changes, (n, 2) for grey and again, looks at images."""
    more = pairs[:, 0] - pairs[:, 1]
    if pairs[:, 1].mean() <= FLOOR:
        return bool(more.mean() > FLOOR)
    error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else np.inf
    return bool(more.mean() > SURE * error)


def look(rows: list[dict], answer: Answer, greedy: Sampling, label: str) -> dict[str, list[dict]]:
    """The completions of some prompts with their image ('true'), with it 'again', with a 'grey' one and with 'none'."""
    with tempfile.TemporaryDirectory() as folder:
        grey = [row | {"uris": [blank(uri, Path(folder)) for uri in row["uris"]]} for row in rows]
        asked = {"true": rows, "grey": grey, "none": [row | {"uris": []} for row in rows], "again": rows}
        first = [named(kind, row) for kind, own in asked.items() if kind != "again" for row in own]
        said = by_name(answer(pa.Table.from_pylist(first, schema=PROMPT), greedy, f"{label}: sight"))
        second = pa.Table.from_pylist([named("again", row) for row in rows], schema=PROMPT)
        said |= by_name(answer(second, replace(greedy, seed=1), f"{label}: sight, again"))
    return {kind: [said[named(kind, row)["question_id"]] for row in own] for kind, own in asked.items()}


def least_tokens(seen: dict[str, list[dict]]) -> int | None:
    """By how many tokens an image makes a prompt longer, at least; None where nobody counts. Raises EndpointError."""
    tokens = [
        (true["prompt_tokens"], none["prompt_tokens"])
        for true, none in zip(seen["true"], seen["none"], strict=True)
        if not (true["error"] or none["error"]) and None not in (true["prompt_tokens"], none["prompt_tokens"])
    ]
    least = min((true - none for true, none in tokens), default=None)
    if least is not None and least <= 0:
        longest = max(true for true, _ in tokens)
        raise EndpointError(f"the endpoint does not see images: prompts are as long without them ({longest} tokens)")
    return least


def probes(prompts: pa.Table, count: int) -> list[dict]:
    """At most `count` prompts with images that can be read, evenly from all over the table; one of each image as long
    as there are enough."""
    rows = sorted((row for row in prompts.to_pylist() if row["uris"]), key=lambda row: row["question_id"])
    first = {row["uris"][0]: row for row in reversed(rows)}
    rows = rows if len(first) < min(count, len(rows)) else sorted(first.values(), key=lambda row: row["question_id"])
    readable = [row for row in spread(rows, 2 * count) if can_be_read(row["uris"])]
    return spread(readable, count)


def spread(rows: list[dict], count: int) -> list[dict]:
    """`count` of the rows, evenly spaced; all where there are fewer."""
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[place] for place in dict.fromkeys(places.tolist())]


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


def change(left: dict, right: dict) -> float:
    """The difference of two answers: 1 for another text, else that of the entropies."""
    return float(left["text"] != right["text"]) or abs((left["entropy"] or 0.0) - (right["entropy"] or 0.0))


def check_tokens(completions: pa.Table) -> None:
    """Raises EndpointError when the endpoint reports an answer to a prompt with an image that it saw none of."""
    blind = pc.and_(pc.equal(completions["error"], ""), pc.equal(pc.fill_null(completions["image_tokens"], 1), 0))
    if count := pc.sum(blind).as_py():
        raise EndpointError(f"{count} of {completions.num_rows} answers were given without any image token")
