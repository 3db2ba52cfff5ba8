"""EyeQ (Fu et al. 2019): quality of 28,792 EyePACS fundus photographs, graded good, usable or reject.

Labels are Label_EyeQ_train.csv and Label_EyeQ_test.csv, with a first column without a name, then image, quality,
DR_grade (a disease grade, left out). The pictures come from Kaggle, `10009_left.jpeg`, or from EyeQ's preprocessing,
`10009_left.png`; they may lie anywhere below the root, and the original goes before the preprocessed one. The number
is the patient; both eyes are taken at one visit (inferred).
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.pool.sources import Row, Terms
from medq_ray.pool.sources._files import check_table, read_picture, walk

TERMS = Terms(
    "Kaggle competition rules",
    share=False,
    train=True,
    note="EyePACS images may not be passed on; the repository of the labels has no licence",
)
TABLE = re.compile(r"Label_EyeQ_(train|test)\.csv")
SPLITS = {"train": "pool", "test": "test"}
NAME = re.compile(r"(\d+)_(?:left|right)\.(?:jpeg|jpg|png)")
QUALITY = {"0": "good", "1": "usable", "2": "reject"}


def find(root: Path) -> Iterator[Row]:
    """One Row for each label; where its picture is missing, a path that does not exist.

    Raises ValueError when there is no label table, or one that is too large, without its columns or with
    values of another kind.
    """
    tables, pictures = [], {}
    for path in walk(root):
        if TABLE.fullmatch(path.name):
            tables.append(path)
        elif NAME.fullmatch(path.name) and (path.suffix != ".png" or path.stem not in pictures):
            pictures[path.stem] = path
    if not tables:
        raise ValueError(f"{root}: expected Label_EyeQ_train.csv or Label_EyeQ_test.csv, found neither")
    for table in tables:
        split = SPLITS[TABLE.fullmatch(table.name)[1]]
        for name, quality in read_labels(table):
            path = pictures.get(Path(name).stem, table.parent / name)
            patient = NAME.fullmatch(name)[1]
            labels = {"quality": quality}
            yield Row(str(path), modality="fundus", patient=patient, session=patient, split=split, labels=labels)


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path, side)


def read_labels(table: Path) -> list[tuple[str, str]]:
    """(image, quality by name) of every row. Raises ValueError as `find` does."""
    check_table(table)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: expected a CSV table in UTF-8, found {type(error).__name__}") from error
    if not {"image", "quality"} <= set(columns):
        raise ValueError(f"{table}: expected the columns image and quality, found {', '.join(columns) or 'none'}")
    for number, row in enumerate(rows, 1):
        if not NAME.fullmatch(row["image"] or "") or row["quality"] not in QUALITY:
            raise ValueError(f"{table}: expected images like 10009_left.jpeg of quality 0, 1 or 2, found row {number}")
    return [(row["image"], QUALITY[row["quality"]]) for row in rows]
