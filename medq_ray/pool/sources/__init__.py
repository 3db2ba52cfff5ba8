"""Readers: one module for each source of images, found by name.

A reader is a module with

    TERMS                       what the source allows
    find(root)                  one Row for each file that may hold images, from names and tables alone
    expand(row, options)        the Rows of its images, from the file's header alone; a reader whose files hold one
                                image each, all of which `find` knows about, has none
    decode(row, side)           the pixels of one image, uint8 (H, W, 3), by that source's right way
    depth(row)                  the same image in all its bits (medq_ray.depth.Depth), None where it has no more than 8;
                                a reader whose files never have more has none

The root is a folder or, for readers of loose files, one file.

`find` runs in the driver and may raise ValueError when the whole root is not what it should be, saying what was
expected and what was found, and OSError for a folder that it may not read. `expand`, `decode` and `depth` open files
that may be hostile: they run in a limited child process (`pool.decode`), and raise images.Refused about one file. Its
message reaches people and tables: no path, no name, id or date of a patient may be in it. Of any other exception only
the type is told.

To add a reader of your own, register its module under the entry point group 'medq_ray.sources'.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

GROUP = "medq_ray.sources"


@dataclass(frozen=True)
class Terms:
    """What a source allows, as its owner says; facts about licences, not advice."""

    licence: str
    """Short name, or 'not stated'."""
    share: bool
    """Whether its pixels may be sent to a service of somebody else."""
    train: bool
    """Whether models may be trained on it."""
    note: str = ""
    """Who says so, or what is unclear."""


@dataclass(frozen=True)
class Options:
    """What a user chooses about the images of a source."""

    modality: str = ""
    """One of schema.MODALITIES for all of it, where the files do not say, or say otherwise; '' believes them."""
    slices: int = 16
    """Images taken of a volume or multi-frame file, evenly over its middle 80 %; 0 takes every one."""
    plane: str = "axial"
    """How volumes without a plane of their own are cut: axial, coronal or sagittal."""


@dataclass(frozen=True)
class Row:
    """One image, or one file before `expand`. Light: what names, tables and headers say, never a pixel."""

    path: str
    """Absolute path of the file."""
    key: str = ""
    """Which image inside the file: a slice, frame, archive member, byte offset; only its reader understands it."""
    modality: str = ""
    patient: str = ""
    """Whose image it is, as the source says it; '' if it does not. Salted and hashed before anything is written."""
    session: str = ""
    """Scanning appointment or study; '' if the source does not say. Salted and hashed like the patient, but without it:
    two appointments of a source never have the same name."""
    split: str = ""
    """'pool', 'dev' or 'test' where the release itself is split, else ''."""
    private: bool = False
    """The image is the user's own, whatever the source's terms say: it is not to be sent to anybody."""
    problem: str = ""
    """Why this image cannot be taken, where its file has others that can: 'decode: expected this, found that'."""
    labels: dict[str, str] = field(default_factory=dict)
    """The source's own quality labels, name -> value of a closed vocabulary; never free text."""
    beside: tuple[str, ...] = ()
    """Other files that say something about this image: when one of them changes, the image is read again. Absolute
    paths; a file that is not there may come."""


def names() -> list[str]:
    """Names of all readers, built in and registered, sorted."""
    own = {module.name.replace("_", "-") for module in iter_modules(__path__) if not module.name.startswith("_")}
    return sorted(own | {entry.name for entry in entry_points(group=GROUP)})


def reader(name: str) -> ModuleType:
    """The reader called `name`. A built-in one goes before a registered one. Raises ValueError for an unknown name."""
    if any(module.name == name.replace("-", "_") for module in iter_modules(__path__)) and not name.startswith("_"):
        return import_module(f"{__name__}.{name.replace('-', '_')}")
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry.load()
    raise ValueError(f"unknown source {name!r}; there are: {', '.join(names())}")


def rows_of(name: str, row: Row, options: Options) -> list[Row]:
    """The images of one found file, with the user's modality where one was chosen."""
    module = reader(name)
    rows = module.expand(row, options) if hasattr(module, "expand") else [row]
    return [replace(row, modality=options.modality) for row in rows] if options.modality else rows


def list_rows(name: str, root: Path, options: Options) -> Iterator[Row]:
    """Every image below `root` without decoding any: `find`, then `expand`, in this process.

    For trusted files. Raises ValueError at the first file that is not what it should be; `ingest` goes on instead.
    """
    for row in reader(name).find(root):
        yield from rows_of(name, row, options)
