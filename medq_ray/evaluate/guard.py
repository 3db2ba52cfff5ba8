"""Does the endpoint see the images? A blind one gives plausible scores: options and base rates alone are worth 40 %.

Two questions before every evaluation. Do image tokens reach the model: is a prompt longer with its image than without?
And does the picture matter: do answers change when a grey one takes its place, more than they do when the same is
asked twice?
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medq_ray.images import encode_png, read_image
from medq_ray.model.ask import Answer
from medq_ray.model.chat import EndpointError, Sampling
from medq_ray.schema import PROMPT

PROBES = 8
"""Questions that are asked with their image, with it again, with a grey one and without one. Our choice."""
GREY = 128
TWICE, FLOOR = 2.0, 1e-3
"""An endpoint sees when grey images change its answers by more than TWICE what asking again does, plus FLOOR (in nats
of trajectory entropy; another text counts 1). Our choice: repeated requests to one engine differ by batch, not by
luck, and a grey image changes the embedded model's answers by 0.5."""


def check_sight(prompts: pa.Table, answer: Answer, label: str) -> dict:
    """{probes, image_tokens (least, null where the endpoint counts no prompt tokens), grey, again: mean changes}.

    prompts: schema.PROMPT of the evaluation; a few of them, with different images, are asked greedily. Raises
    EndpointError when the endpoint is blind.
    """
    rows = probes(prompts)
    with tempfile.TemporaryDirectory() as folder:
        grey = [row | {"uris": [blank(uri, Path(folder)) for uri in row["uris"]]} for row in rows]
        none = [row | {"uris": []} for row in rows]
        asked = {"true": rows, "grey": grey, "none": none}
        table = pa.Table.from_pylist([named(kind, row) for kind, own in asked.items() for row in own], schema=PROMPT)
        greedy = Sampling(n=1, temperature=0.0, max_tokens=32)
        first = by_name(answer(table, greedy, f"{label}: sight"))
        again = Sampling(n=1, temperature=0.0, max_tokens=32, seed=1)
        twice = pa.Table.from_pylist([named("again", row) for row in rows], schema=PROMPT)
        first |= by_name(answer(twice, again, f"{label}: again"))
    seen = {kind: [first[named(kind, row)["question_id"]] for row in rows] for kind in (*asked, "again")}
    tokens = [
        (true["prompt_tokens"], without["prompt_tokens"])
        for true, without in zip(seen["true"], seen["none"], strict=True)
        if not true["error"] and not without["error"] and None not in (true["prompt_tokens"], without["prompt_tokens"])
    ]
    least = min((with_image - without for with_image, without in tokens), default=None)
    if least is not None and least <= 0:
        longest = max(with_image for with_image, _ in tokens)
        raise EndpointError(f"the endpoint does not see images: its prompts are as long without them ({longest} tokens)")
    changes = {kind: change(seen["true"], seen[kind]) for kind in ("grey", "again")}
    if None not in changes.values() and changes["grey"] <= TWICE * changes["again"] + FLOOR:
        raise EndpointError(
            f"the endpoint does not look at images: a grey image changes its answers by {changes['grey']:.3f}, asking "
            f"again by {changes['again']:.3f}; serve a vision-language checkpoint, and see that images are sent to it"
        )
    return {"probes": len(rows), "image_tokens": least, **changes}


def probes(prompts: pa.Table) -> list[dict]:
    """At most PROBES prompts with different images that can be read, from all over the table."""
    rows = {row["uris"][0]: row for row in reversed(prompts.to_pylist()) if row["uris"]}
    rows = sorted(rows.values(), key=lambda row: row["question_id"])
    places = np.linspace(0, len(rows) - 1, min(4 * PROBES, len(rows))).round().astype(int)
    readable = []
    for place in dict.fromkeys(places.tolist()):
        try:
            for uri in rows[place]["uris"]:
                read_image(uri)
        except ValueError:
            continue
        readable.append(rows[place])
    chosen = np.linspace(0, len(readable) - 1, min(PROBES, len(readable))).round().astype(int)
    return [readable[place] for place in dict.fromkeys(chosen.tolist())]


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


def change(left: list[dict], right: list[dict]) -> float | None:
    """Mean difference of two series of answers: 1 for another text, else that of the entropies; None without any."""
    values = [
        float(a["text"] != b["text"]) or abs((a["entropy"] or 0.0) - (b["entropy"] or 0.0))
        for a, b in zip(left, right, strict=True)
        if not a["error"] and not b["error"]
    ]
    return float(np.mean(values)) if values else None


def check_tokens(completions: pa.Table) -> None:
    """Raises EndpointError when the endpoint reports an answer to a prompt with an image that it saw none of."""
    blind = pc.and_(pc.equal(completions["error"], ""), pc.equal(pc.fill_null(completions["image_tokens"], 1), 0))
    if count := pc.sum(blind).as_py():
        raise EndpointError(f"{count} of {completions.num_rows} answers were given without any image token")
