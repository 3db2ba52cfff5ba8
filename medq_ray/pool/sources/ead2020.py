"""EndoCV2020 EAD, and the EAD2019 frames before it: endoscopy frames with boxes around artifacts.

Frames are .jpg; the boxes of `frames/x.jpg` lie at `gt_bbox/x.txt` (EAD2020) or beside the frame as `x.txt` (EAD2019).
Masks (.tif) are no images and are passed over, as are frames of EDD2020, the disease challenge of the same year.
A frame without a box file is unlabelled, not clean.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import read_picture, walk_ending

TERMS = Terms(
    "CC BY-NC 4.0",
    share=False,
    train=True,
    note="non-commercial only; as a third party states it, with a link to BY-SA: confirm with the challenge",
)
CLASSES = ("specularity", "saturation", "artifact", "blur", "contrast", "bubbles", "instrument", "blood")
"""By class id. EAD2019 has the first seven; its class_list.txt, in the frame's folder or the one above, says so."""
EAD2019_CLASSES = 7
VIDEO = re.compile(r"(\d+_[A-Z]+_[A-Z]\d+)_\d+")
"""EAD2019 names such as 1772_A_M62_00012: what stands before the frame's number looks like a video's id (inferred)."""
BOX_FORM = "boxes: expected lines `id cx cy w h` with shares of the frame, or `class xmin ymin xmax ymax`"


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when there is no such folder or no .jpg below it."""
    for path in walk_ending(root, (".jpg",)):
        if not path.name.startswith("EDD2020_"):
            video = VIDEO.fullmatch(path.stem)
            group = video[1] if video else ""
            beside = tuple(map(str, (*box_files(path), *class_files(path))))
            yield Row(str(path), modality="endoscopy", patient=group, session=group, beside=beside)


def expand(row: Row, options: Options) -> list[Row]:
    """The frame with one label for each class that has boxes: how many. Raises Refused for a malformed box file."""
    frame = Path(row.path)
    for boxes in box_files(frame):
        if boxes.is_file():
            classes = class_list(frame)
            counts = Counter(box_class(line, classes) for line in read_lines(boxes))
            return [replace(row, labels={name: str(counts[name]) for name in sorted(counts)})]
    return [row]


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path, side)


def box_files(frame: Path) -> tuple[Path, Path]:
    """Where the boxes of a frame may be, EAD2020's place first."""
    return frame.parent.parent / "gt_bbox" / f"{frame.stem}.txt", frame.with_suffix(".txt")


def class_files(frame: Path) -> tuple[Path, Path]:
    """Where the class list of a frame's release may be."""
    return frame.parent / "class_list.txt", frame.parent.parent / "class_list.txt"


def class_list(frame: Path) -> tuple[str, ...]:
    """The classes of the release that a frame belongs to. Raises Refused for a list of others."""
    for path in class_files(frame):
        if path.is_file():
            listed = tuple(read_lines(path))
            if listed not in (CLASSES, CLASSES[:EAD2019_CLASSES]):
                raise Refused(f"class_list.txt: expected the classes of EAD2020 or EAD2019, found {len(listed)} others")
            return listed
    return CLASSES


def box_class(line: str, classes: tuple[str, ...]) -> str:
    """Class of one box, in YOLO's or VOC's text form. Raises Refused for any other line."""
    first, *rest = line.split()
    if len(rest) != 4:
        raise Refused(f"{BOX_FORM}, found one of {1 + len(rest)} fields")
    try:
        numbers = [float(word) for word in rest]
    except ValueError as error:
        raise Refused(f"{BOX_FORM}, found a coordinate that is no number") from error
    if first in classes:
        left, top, right, bottom = numbers
        if 0 <= left < right and 0 <= top < bottom:
            return first
    elif first.isdecimal() and int(first) < len(classes):
        if all(0 <= number <= 1 for number in numbers):
            return classes[int(first)]
    else:
        raise Refused(f"{BOX_FORM}, found a class that is none of {len(classes)}")
    raise Refused(f"{BOX_FORM}, found a box outside its frame or turned over")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, stripped, empty ones left out. Raises Refused for what is not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("boxes: expected text in UTF-8, found other bytes") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
