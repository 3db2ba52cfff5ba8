"""DICOM files of any origin, single-frame or multi-frame, loose or in .zip archives; fastMRI's knee DICOMs too.

A key is '3' for a frame of a file and '3 folder/member.dcm' for a frame of an archive's member.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medq_ray.depth import Depth
from medq_ray.dicom import Header, read_depth, read_frame, read_header
from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import chosen, walk

TERMS = Terms("not stated", share=False, train=True, note="the files' owner decides; ask before anything leaves")
SUFFIXES = (".dcm", ".dicom", ".ima", ".dc3")
OTHERS = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".svs", ".ndpi", ".mp4", ".avi"),
    *(".json", ".tsv", ".csv", ".txt", ".md", ".pdf", ".xml", ".html", ".py", ".yaml", ".yml", ".parquet"),
    *(".nii", ".gz", ".hdr", ".mgz", ".h5", ".hdf5", ".npy", ".npz", ".raw", ".vf", ".mat", ".tar", ".xz", ".7z"),
)
"""Known as something else: not opened to look."""
CODES = {"MR": "mri", "CT": "ct", "ES": "endoscopy", "OP": "fundus", "SM": "histopathology", "GM": "histopathology"}
"""The standard's modality codes -> ours."""
MAX_MEMBERS = 10_000
MAX_MEMBER = 512 << 20
"""Members of an archive, and bytes of one; more are refused. Our choice: a study has some thousand files."""


def find(root: Path) -> Iterator[Row]:
    """Files named like DICOM, or without a suffix, or with its mark; archives. A DICOMDIR lists others: passed over."""
    for path in walk(root):
        if path.suffix.lower() == ".zip" or _named(path.name) or _marked(path):
            yield Row(str(path))


def _named(name: str) -> bool:
    """Whether a file may be DICOM by its name: UIDs and series numbers end in what looks like a suffix of digits."""
    path = Path(name)
    suffix = path.suffix.lower()
    return path.name not in ("", "DICOMDIR") and (suffix in ("", *SUFFIXES) or suffix[1:].isdigit())


def _marked(path: Path) -> bool:
    """Whether a file of an unknown kind has 'DICM' where the standard puts it."""
    if path.name == "DICOMDIR" or path.suffix.lower() in OTHERS or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:  # not ours to read, or gone: no DICOM file for us
        return False


def expand(row: Row, options: Options) -> list[Row]:
    """The chosen frames. In an archive, a member that is refused becomes a row with that problem, so that a report
    among the images does not cost the images."""
    if not row.path.lower().endswith(".zip"):
        return _rows(row, row.path, "", options)
    rows, archive = [], _archive(row.path)
    for member in _members(archive):
        try:
            rows += _rows(row, _content(archive, member), f" {member}", options)
        except Refused as error:
            rows.append(replace(row, key=f"0 {member}", problem=f"decode: {error}"))
    return rows


def decode(row: Row, side: int) -> np.ndarray:
    """Pixels as `medq_ray.dicom.read_frame` shows them. Raises Refused."""
    return read_frame(*_place(row))


def depth(row: Row) -> Depth | None:
    """All bits of the same. Raises Refused."""
    return read_depth(*_place(row))


def _place(row: Row) -> tuple[str | BinaryIO, int, str]:
    """(source, frame, modality) of a row. Raises Refused."""
    frame, _, member = row.key.partition(" ")
    source: str | BinaryIO = _content(_archive(row.path), member) if member else row.path
    _, modality = _checked(source, row.modality)
    return source, int(frame), modality


def _rows(row: Row, source: str | BinaryIO, ending: str, options: Options) -> list[Row]:
    """The rows of one DICOM object. Raises Refused."""
    header, modality = _checked(source, options.modality)
    labels = {"burned_in": header.burned_in} if header.burned_in else {}
    facts = replace(row, modality=modality, patient=header.patient, session=header.study, labels=labels)
    if header.burned_in == "yes":  # a name may be in the picture: it leaves only if that is acknowledged (pool.terms)
        facts = replace(facts, private=True)
    return [replace(facts, key=f"{frame}{ending}") for frame in chosen(header.frames, options.slices)]


def _checked(source: str | BinaryIO, wanted: str) -> tuple[Header, str]:
    """(header, `wanted` modality or else the file's). Raises Refused for no image, or one of another modality."""
    header = read_header(source)
    if header.frames == 0:
        raise Refused("expected an image, found an object without pixels: a report, a plan or contours")
    if header.about:
        raise Refused("expected an image, found a slide's label or overview: it may show a name")
    if not wanted and header.modality not in CODES:
        raise Refused(f"expected Modality {', '.join(CODES)}, found another or none: say --modality")
    return header, wanted or CODES[header.modality]


def _archive(path: str) -> zipfile.ZipFile:
    """An archive, left open for its next member: its directory can be long. Raises Refused."""
    try:
        return _opened(path, os.stat(path).st_mtime_ns)
    except (OSError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise Refused(f"expected a zip archive, found {type(error).__name__}") from error


@lru_cache(maxsize=1)
def _opened(path: str, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _members(archive: zipfile.ZipFile) -> list[str]:
    """Members that may be DICOM, by name. Raises Refused for none, or too many."""
    if len(archive.infolist()) > MAX_MEMBERS:
        raise Refused(f"expected at most {MAX_MEMBERS} members, found {len(archive.infolist())}")
    names = [info.filename for info in archive.infolist()]
    names = sorted({name for name in names if _named(name.rpartition("/")[2]) and not _hidden(name)})
    if not names:
        raise Refused("expected DICOM files in the archive, found none by name")
    return names


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _content(archive: zipfile.ZipFile, member: str) -> io.BytesIO:
    """A member's bytes. Raises Refused when it is encrypted, damaged, or larger than it may be or says it is."""
    info = archive.getinfo(member)
    if info.flag_bits & 1:
        raise Refused("expected an archive without a password, found an encrypted member")
    if info.file_size > MAX_MEMBER:
        raise Refused(f"expected members of at most {MAX_MEMBER} bytes, found {info.file_size}")
    try:
        with archive.open(info) as file:
            data = file.read(MAX_MEMBER + 1)
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f"expected a member that can be unpacked, found {type(error).__name__}") from error
    if len(data) > MAX_MEMBER:
        raise Refused(f"expected members of at most {MAX_MEMBER} bytes, found more")
    return io.BytesIO(data)
