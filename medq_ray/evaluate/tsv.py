"""Tables of VLMEvalKit's form: TSV files whose images stand in the rows as base64, streamed row by row.

The rules are those of its image_base.py and smp/ at e8e78f05. A file is above 1 GB: one row's images are in memory at a
time, and go to disk as the bytes that they are.
"""

import ast
import base64
import binascii
import codecs
import csv
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medq_ray.console import progress
from medq_ray.images import Refused, pixel_digest, read_image
from medq_ray.pool.sources.gmai_mmbench import LONGEST, REFERENCE, records

IMAGES = ("image_a", "image_b", "image", "image_path")
"""Columns that have images. The first that a file has counts; image_a and image_b are one pair."""
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"]
    + ["N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)
"""Cells in which pandas.read_csv finds nothing by default (pandas 3.1). VLMEvalKit leaves it at that, so an option
'None' is not offered there."""
MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""First bytes of an image file -> suffix."""

Picture = tuple[str, str]
"""(absolute path, image id)."""


@dataclass
class Entry:
    """One row of a file, its images on disk already."""

    row: int
    """Counted from 1, the column names apart."""
    cells: dict[str, str]
    """Columns that we know, by our names, as they are in the file; none with images."""
    extra: dict[str, str]
    """Columns that we do not know."""
    pictures: list[Picture] = field(default_factory=list)
    reference: str = ""
    """Index of the row whose images these are."""
    problem: str = ""
    """'step: reason' of a row that cannot be used."""

    @property
    def index(self) -> str:
        return self.cells["index"].strip()

    def __str__(self) -> str:
        return f"row {self.row} (index {self.index!r})"


class Album:
    """A folder of images named after their content: the original bytes, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kept: dict[str, Picture] = {}

    def keep(self, data: bytes) -> Picture:
        """Raises Refused for bytes that `read_image` does not take; they leave no file."""
        digest = hashlib.sha256(data).hexdigest()[:16]
        if digest not in self.kept:
            suffix = next((suffix for head, suffix in MAGIC.items() if data.startswith(head)), ".bin")
            path = self.folder / (digest + suffix)
            file = path if path.exists() else path.with_name(path.name + ".tmp")
            if file != path:
                file.write_bytes(data)
            try:
                pixels = read_image(file)
            except ValueError as error:
                file.unlink()
                raise Refused(str(error).replace(str(file), "image")) from error
            os.replace(file, path)
            self.kept[digest] = str(path), pixel_digest(pixels)
        return self.kept[digest]


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(bytes read so far, fields) of each record, the column names first; a byte order mark is passed over.

    Raises ValueError naming the file and the last good row when it is no table.
    """
    before, row = csv.field_size_limit(LONGEST), 0
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            for row, (_, record) in enumerate(records(file)):
                yield file.tell(), record
    except (csv.Error, Refused) as error:
        raise ValueError(f"{path}: no tab-separated table after row {row} ({error}); fetch the file again") from error
    finally:
        csv.field_size_limit(before)


def header_of(path: Path) -> list[str]:
    """The column names; none of an empty file."""
    for _, record in rows_of(path):
        return record
    return []


def read_entries(path: Path, places: Mapping[str, int], album: Album) -> Iterator[Entry]:
    """Every row, its images kept in `album`; a row that cannot be used has its `problem`.

    places: our name of a column -> its place in the file, 'index' and one of IMAGES among them.
    """
    rows = rows_of(path)
    _, header = next(rows)
    others = {name: place for place, name in enumerate(header) if place not in places.values() and name not in IMAGES}
    light = {name: place for name, place in places.items() if name not in IMAGES}
    heavy = {name: place for name, place in places.items() if name in IMAGES}
    with progress(path.stat().st_size >> 20, path.name, "MB") as bar:
        for row, (done, record) in enumerate(rows, start=1):
            bar.update((done >> 20) - bar.n)
            whole = record + [""] * (len(header) - len(record))
            entry = Entry(row, *({name: whole[place] for name, place in some.items()} for some in (light, others)))
            try:
                if len(record) != len(header):
                    raise Refused(f"fields: expected {len(header)}, found {len(record)}: is the file cut short?")
                take_images(entry, {name: record[place] for name, place in heavy.items()}, path.parent, album)
            except Refused as error:
                entry.problem = str(error)
            yield entry


def take_images(entry: Entry, cells: Mapping[str, str], folder: Path, album: Album) -> None:
    """Give a row its pictures, or the index of the row that has them. Raises Refused.

    cells: of the image columns. The order of the columns is the official one, also for a row where the first of them
    is empty. image and image_path may be list literals; only image may be a reference.
    """
    if "image_a" in cells or "image_b" in cells:
        pair = (given(cells.get(name, "")) for name in ("image_a", "image_b"))
        entry.pictures = [album.keep(decoded(value)) for value in pair if value]
    elif "image" in cells:
        value = given(cells["image"])
        if 0 < len(value) <= REFERENCE:
            entry.reference = value.strip()
            return
        entry.pictures = [album.keep(decoded(item)) for item in items(value)]
    else:
        entry.pictures = [album.keep(read_bytes(item, folder)) for item in items(given(cells["image_path"]))]
    if not entry.pictures:
        raise Refused("no image: the official code leaves such a row out, too")


def given(cell: str) -> str:
    """The cell as it is, '' where the official loader finds nothing in it."""
    return "" if cell in MISSING or not cell.strip() else cell


def items(cell: str) -> list[str]:
    """The members of a list literal; any other text is the only member. Raises Refused for a broken literal."""
    if not (len(cell) > 1 and cell[0] == "[" and cell[-1] == "]"):
        return [cell] if cell else []
    try:
        return [str(item) for item in ast.literal_eval(cell)]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise Refused(f"image: a list literal that cannot be read ({type(error).__name__})") from error


def decoded(value: str) -> bytes:
    """Bytes of base64, in which other characters are passed over, as in the official code. Raises Refused."""
    try:
        return base64.b64decode(value)
    except (binascii.Error, ValueError) as error:
        raise Refused("image: no base64") from error


def read_bytes(path: str, folder: Path) -> bytes:
    """Bytes of a file whose path is taken as given, else from `folder`. Raises Refused."""
    try:
        for place in (Path(path), folder / path):
            if place.is_file():
                return place.read_bytes()
    except OSError as error:
        raise Refused(f"image: a file that cannot be read ({error.strerror})") from error
    raise Refused("image: no such file, neither as image_path says nor from the table's folder")


def share_images(entries: list[Entry], counts: Collection[int]) -> None:
    """Give rows that name another row its pictures; a row that has not one of `counts` pictures then has a problem.

    A reference leads to a row with images of its own, earlier or later, or to an earlier row that has them by
    reference. The official code's single pass resolves the same ones; there, any other fails the whole file.
    """
    having = {entry.index: entry.pictures for entry in entries if entry.pictures}
    for entry in entries:
        if entry.reference:
            entry.pictures = having.get(entry.reference, [])
            if entry.pictures:
                having.setdefault(entry.index, entry.pictures)
            else:
                entry.problem = f"reference: no row {entry.reference!r} with an image that can be used"
        if not entry.problem and len(entry.pictures) not in counts:
            entry.problem = f"images: expected {' or '.join(map(str, counts))}, found {len(entry.pictures)}"
