"""The data set of a run in the layouts that other trainers read, with its pictures, in one folder that can be moved.

    medq export runs/demo --out data/demo

    OUT/images/ID.png        the pictures, each once
    OUT/parts.jsonl          {id, messages: [{role, content: [{type: image} | {type: text, text}]}], images: [path]}:
                             the conversational vision data set of TRL 1.16 (dataset_formats.md, "Vision datasets")
    OUT/tagged.jsonl         {id, messages: [{role, content: "<image>..."}], images: [path]}: the sharegpt layout of
                             LLaMA-Factory 0.9.5 (data/README.md, "Multimodal Image Dataset") and the standard layout of
                             ms-swift 4.6 (Custom-dataset.md, "Multimodal")
    OUT/dataset_info.json    what LLaMA-Factory has to be told of tagged.jsonl
    OUT/card.json README.md  `evolve.card`, with how each of them is told to read the folder

Two files, because no content suits all three: LLaMA-Factory and ms-swift count the tags <image> in a text, where TRL
would train on the tag as text. Paths are relative to the folder.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa

from medq_ray.artifacts import Run, digest_file, write_json
from medq_ray.evolve.card import described
from medq_ray.evolve.dataset import read_dataset
from medq_ray.images import encode_png, pixel_digest, read_image
from medq_ray.tables import rows_of

TAG = "<image>"
TAGS = (TAG, "<video>", "<audio>")
"""What LLaMA-Factory and ms-swift take for a picture, film or sound wherever it stands."""
NAME = "medq"
"""Of the data set in dataset_info.json."""
INFO = {
    NAME: {
        "file_name": "tagged.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
}
READERS = f"""
## How to read it

Paths are relative to this folder.

TRL, in this folder, with the loss on the answers alone (over `messages` it would be on the questions too, and
`assistant_only_loss` is not for vision models):

```python
from datasets import Image, List, load_dataset

data = load_dataset("json", data_files="parts.jsonl", split="train").cast_column("images", List(Image()))
data = data.map(lambda row: {{"prompt": row["messages"][:1], "completion": row["messages"][1:]}},
                remove_columns=["id", "messages"])
```

LLaMA-Factory: `--dataset_dir` with this folder and `--dataset {NAME}`.

ms-swift: `ROOT_IMAGE_DIR` with this folder and `--dataset` with its `tagged.jsonl`.
"""


def trained_on(run_dir: Path, iteration: int | None = None) -> tuple[pa.Table, dict]:
    """(schema.CHAT, card) of a finished fine-tuning, the last one for None. Raises ValueError naming those that there
    are, and as `read_dataset`."""
    run = Run(run_dir)
    steps = sorted(path.parent.name for path in run_dir.glob("iter-*/evolve"))
    finished = [int(name.removeprefix("iter-")) for name in steps if run.finished(f"{name}/evolve")]
    if not finished:
        raise ValueError(f"{run_dir}: no iteration has been fine-tuned there yet: nothing to export")
    if iteration not in (None, *finished):
        raise ValueError(f"{run_dir}: iteration {iteration} has no fine-tuning; those that have: "
                         f"{', '.join(map(str, finished))}")  # fmt: skip
    return read_dataset(run_dir / f"iter-{finished[-1] if iteration is None else iteration:02d}" / "evolve" / "dataset")


def export(
    rows: pa.Table, card: dict, out: Path, *, link: bool = False, tell: Callable[[int], object] = lambda count: None
) -> dict:
    """Write a data set of `trained_on` to `out`; returns its card with the files' digests. tell: of pictures done.

    Pictures are decoded and written again as PNG, with nothing but their pixels; with `link` they are symbolic links to
    the run's own files. `out` appears when all of it is there. Raises ValueError as `check_out`, for a picture that is
    gone or has changed, and for a text with one of TAGS in it.
    """
    check_out(out)
    out = out.resolve()
    making = out.with_name(f"{out.name}.unfinished")
    if making.exists():
        shutil.rmtree(making)  # of a killed export
    (making / "images").mkdir(parents=True)
    paths: dict[str, str] = {}
    for row in rows_of(rows):
        for image, uri in zip(row["image_ids"], row["images"], strict=True):
            if image not in paths:
                paths[image] = picture(image, Path(uri), making, link)
                tell(1)
    write_lines(making / "parts.jsonl", (in_parts(row, paths) for row in rows_of(rows)))
    write_lines(making / "tagged.jsonl", (tagged(row, paths) for row in rows_of(rows)))
    write_json(making / "dataset_info.json", INFO)
    files = {path.name: digest_file(path) for path in sorted(making.iterdir()) if path.is_file()}
    card = card | {"pictures": "linked" if link else "copied", "files": files}
    (making / "README.md").write_text(described(card) + READERS)
    write_json(making / "card.json", card)
    os.replace(making, out)
    return card


def check_out(out: Path) -> None:
    """Raises ValueError when there is something at `out`, an empty folder excepted."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: not empty; choose another --out")


def picture(image: str, source: Path, folder: Path, link: bool) -> str:
    """Put an image into folder/images; its path from the folder. Raises ValueError naming a file that cannot be read or
    has other pixels than those that were labelled."""
    pixels = read_image(source)
    if pixel_digest(pixels) != image:
        raise ValueError(f"{source} is no longer the image {image} that was labelled")
    name = f"images/{image}{source.suffix if link else '.png'}"
    if link:
        (folder / name).symlink_to(source.resolve())
    else:
        (folder / name).write_bytes(encode_png(pixels))
    return name


def in_parts(row: dict, paths: dict[str, str]) -> dict:
    """A line of parts.jsonl, of a row of schema.CHAT."""
    turns = [
        {
            "role": turn["role"],
            "content": [{name: value for name, value in part.items() if value is not None} for part in turn["content"]],
        }
        for turn in row["messages"]
    ]
    return {"id": row["question_id"], "messages": turns, "images": [paths[image] for image in row["image_ids"]]}


def tagged(row: dict, paths: dict[str, str]) -> dict:
    """A line of tagged.jsonl, of a row of schema.CHAT."""
    turns = []
    for turn in row["messages"]:
        for part in turn["content"]:
            if found := [tag for tag in TAGS if tag in (part["text"] or "")]:
                raise ValueError(f"sample {row['question_id']}: its text has {found[0]!r} in it, which LLaMA-Factory "
                                 "and ms-swift would take for a file")  # fmt: skip
        content = "".join(TAG if part["type"] == "image" else part["text"] for part in turn["content"])
        turns.append({"role": turn["role"], "content": content})
    return {"id": row["question_id"], "messages": turns, "images": [paths[image] for image in row["image_ids"]]}


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
