"""GMAI-MMBench (2024): medical questions with images, as TSV files of VLMEvalKit's form.

Each file has a line of column names, among them `image` (base64 of a PNG) and `question`. The files are above 1 GB, so
they are streamed, one record in memory at a time, and an image is found again by the byte at which its record begins.
An image stands in the file once for every question about it and is taken once.

No column says the modality, but the authors write that every question does. It is read from the question by a closed
list of phrases; images of which none or more than one of our five modalities is said are left out, unless the user
chose a modality. 'Microscopy' alone is not enough: blood smears and cultures are no histopathology.
"""

import base64
import binascii
import csv
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import read_picture, walk_ending

TERMS = Terms(
    "not stated",
    share=False,
    train=False,
    note="an evaluation benchmark: training on it spoils every later test; its 284 sources keep their own licences",
)
LONGEST = 32 << 20
"""Longest line and longest field believed, in bytes: 24 MB of PNG. csv holds four times as much."""
REFERENCE = 64
"""An `image` of at most so many characters is the index of another record, which has it (VLMEvalKit's own rule)."""
PHRASES = {
    "mri": r"MRI?|(?i:magnetic resonance)",
    "ct": r"CT|(?i:computed tomography)",
    "endoscopy": r"(?i:(?:endo|colono|gastro)scop\w*)",
    "fundus": r"(?i:(?:retinal|colou?r) fundus|fundus (?:photo\w*|images?|pictures?|camera))",
    "histopathology": r"(?i:histopatholog\w*|histolog\w*|whole[- ]slide)|H&E",
}
PATTERNS = {modality: re.compile(rf"\b(?:{phrases})\b") for modality, phrases in PHRASES.items()}
OTHERS = re.compile(
    r"\b(?:PET|SPECT|OCTA?|(?i:optical coherence|positron|x-?rays?|radiograph\w*|ultraso\w*|fluorescein"
    r"|endomicroscop\w*|digital subtraction))\b"
)
"""Modalities that are not ours and are said together with the words of one that is: PET-CT, endoscopic ultrasound."""


def find(root: Path) -> Iterator[Row]:
    """One Row for each .tsv file. Raises ValueError when there is no such folder or no such file below it."""
    for path in walk_ending(root, (".tsv",)):
        yield Row(str(path))


def expand(row: Row, options: Options) -> list[Row]:
    """A Row for each image of one TSV file, its key the byte at which the record begins."""
    rows, seen = [], set()
    with open_table(row.path) as (file, columns):
        image, question = columns.index("image"), columns.index("question")
        for offset, record in records(file):
            if len(record) != len(columns):
                raise Refused(f"expected {len(columns)} fields in each record, found {len(record)} in one: cut short?")
            modality = options.modality or modality_of_question(record[question])
            digest = hashlib.blake2b(record[image].encode(), digest_size=16).digest()
            if modality and len(record[image]) > REFERENCE and digest not in seen:
                seen.add(digest)
                rows.append(replace(row, key=str(offset), modality=modality))
    return rows


def decode(row: Row, side: int) -> np.ndarray:
    with open_table(row.path) as (file, columns):
        file.seek(int(row.key))
        _, record = next(records(file), (0, []))
    if len(record) != len(columns):
        raise Refused("expected a record where the file had one, found none: has it changed?")
    try:
        data = base64.b64decode(record[columns.index("image")], validate=True)
    except binascii.Error as error:
        raise Refused("expected base64 in the column image, found other characters") from error
    return read_picture(io.BytesIO(data), side)


@contextmanager
def open_table(path: str) -> Iterator[tuple[IO[bytes], list[str]]]:
    """A TSV file behind its column names, and these in lower case. csv takes long fields meanwhile."""
    before = csv.field_size_limit(LONGEST)
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            _, columns = next(records(file), (0, []))
            columns = [name.lower() for name in columns]
            if not {"image", "question"} <= set(columns):
                raise Refused("expected a tab-separated table with the columns image and question, found others")
            yield file, columns
    except csv.Error as error:
        raise Refused("expected a tab-separated table, found one with broken quotes or lines") from error
    finally:
        csv.field_size_limit(before)


def records(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """(byte at which it begins, fields) of every record from here on; quoted fields may have line breaks."""
    reader = csv.reader(lines(file), delimiter="\t")  # takes a line only when it needs one, so tell() is exact
    offset = file.tell()
    for record in reader:
        if record:
            yield offset, record
        offset = file.tell()


def lines(file: IO[bytes]) -> Iterator[str]:
    while line := file.readline(LONGEST):
        if len(line) == LONGEST:
            raise Refused(f"expected lines of less than {LONGEST} bytes, found a longer one")
        yield line.decode(errors="replace")


def modality_of_question(text: str) -> str:
    """The one of our modalities that a question names; '' if none, several or one that is not ours."""
    found = [modality for modality, pattern in PATTERNS.items() if pattern.search(text)]
    return found[0] if len(found) == 1 and not OTHERS.search(text) else ""
