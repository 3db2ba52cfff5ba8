"""The accepted samples as a data set: chat messages with images in Parquet shards, and a card that says what it is.

    DATASET/train-00000-of-00002.parquet ...    schema.CHAT, by question id
    DATASET/card.json  README.md                `evolve.card`

Images are there by uri, not as pixels: the four questions of an image share one file, the next iteration's data set
shares it again, and pixels in rows would multiply a run's size by four for each iteration. Who wants to carry the data
set away exports it (`evolve.export`).
"""

import shutil
from math import ceil
from pathlib import Path

import pyarrow as pa

from medq_ray.artifacts import digest_of, read_json, read_table, write_json, write_table
from medq_ray.evolve.card import card, described
from medq_ray.model.prompts import messages, uris_of
from medq_ray.schema import CHAT

SHARD = 1024
"""Samples of a shard: 1 MB, and the paper's 10,000 samples are ten files, more than its node has GPUs."""


def turns(prompt: str, answer: str, images: int = 1) -> list[dict]:
    """The user's turn, as the serving side sends it (`prompts.messages`) but with images left out as {"type": "image"},
    and the assistant's; the form that chat templates of transformers read."""
    (user,) = messages([""] * images, prompt)
    content = [{"type": "image"} if part["type"] == "image_url" else part for part in user["content"]]
    return [{"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]}]  # fmt: skip


def chats(samples: pa.Table, images: pa.Table) -> pa.Table:
    """schema.CHAT of schema.SAMPLE, by question id. images: schema.POOL_IMAGE of at least every image shown.

    Raises ValueError for a sample with an image whose source is not known.
    """
    origin = {row["image_id"]: row for row in images.select(["image_id", "source", "licence"]).to_pylist()}
    rows = []
    for sample in samples.sort_by("question_id").to_pylist():
        shown = [image for image in (sample["image_id"], sample["second_id"]) if image]
        for image in shown:
            if image not in origin:
                raise ValueError(f"image {image} of sample {sample['question_id']} is not in the pool: no source known")
        rows.append(
            {name: sample[name] for name in CHAT.names if name in sample}
            | {
                "messages": turns(sample["prompt"], sample["answer"], len(shown)),
                "images": uris_of(sample),
                "image_ids": shown,
                "sources": [origin[image]["source"] for image in shown],
                "licences": [origin[image]["licence"] for image in shown],
            }
        )
    return pa.Table.from_pylist(rows, schema=CHAT)


def content_digest(rows: pa.Table) -> str:
    """16 hex digits over the samples and the pixels they show, equal wherever the images lie."""
    return digest_of(rows.drop_columns(["images"]).to_pylist())


def write_dataset(folder: Path, samples: pa.Table, images: pa.Table) -> dict:
    """Write the samples (schema.SAMPLE) as a data set over what is in `folder`; returns the card. images, ValueError:
    as `chats`. Equal samples give equal bytes."""
    rows = chats(samples, images)
    if folder.exists():
        shutil.rmtree(folder)
    count = max(1, ceil(rows.num_rows / SHARD))
    for number in range(count):
        part = rows.slice(number * SHARD, SHARD)
        write_table(folder / f"train-{number:05d}-of-{count:05d}.parquet", part, CHAT)
    found = card(rows, images, content_digest(rows))
    (folder / "README.md").write_text(described(found))
    write_json(folder / "card.json", found)
    return found


def read_dataset(folder: Path) -> tuple[pa.Table, dict]:
    """(schema.CHAT, card). Raises ValueError when a shard is missing, damaged or another than the card's."""
    if not (folder / "card.json").exists():
        raise ValueError(f"{folder}: no data set (card.json is missing)")
    try:
        found = read_json(folder / "card.json")
        digest = found["digests"]["samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'card.json'} is damaged ({error!r}); restore it from a copy") from error
    shards = sorted(folder.glob("train-*.parquet"))
    rows = pa.concat_tables([CHAT.empty_table(), *(read_shard(path) for path in shards)])
    if content_digest(rows) != digest:
        raise ValueError(f"{folder}: its {len(shards)} shards are not the {found['samples']} samples of its card.json; "
                         "restore it from a copy")  # fmt: skip
    return rows, found


def read_shard(path: Path) -> pa.Table:
    """schema.CHAT. Raises ValueError naming a damaged file."""
    try:
        rows = read_table(path).cast(CHAT)
        rows.validate(full=True)  # a flipped bit may be no UTF-8 any more
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy") from error
    return rows
