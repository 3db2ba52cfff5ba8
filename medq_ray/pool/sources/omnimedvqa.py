"""OmniMedVQA (Hu et al. 2024): questions on images of 73 data sets, unzipped.

`QA_information/{Open-access,Restricted-access}/{dataset}.json` are lists of objects with `image_path` (relative to the
root) and `modality_type`; one row of one file calls it `modality`. Each image is taken once. Of its twelve modality
types four are ours as they stand; microscopy is where the data set is of stained tissue, the others (X-ray,
ultrasound, OCT, dermoscopy, infrared, colposcopy, digital photographs, blood and cell microscopy) are left out.
Restricted images are not in the release: those that are not there are left out too.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import check_table, read_picture

TERMS = Terms(
    "not stated",
    share=False,
    train=True,
    note="each of its data sets keeps its licence; also a benchmark: models trained on it cannot be tested on it",
)
ACCESS = ("Open-access", "Restricted-access")
TYPES = {
    "ctcomputedtomography": "ct",
    "mrmagneticresonanceimaging": "mri",
    "mrimagneticresonanceimaging": "mri",
    "fundusphotography": "fundus",
    "endoscopy": "endoscopy",
}
"""Letters of `modality_type` in lower case -> modality: the release writes 'MR (Mag-netic Resonance Imaging)'."""
MICROSCOPY = "microscopyimages"
TISSUE = {"BreakHis", "CRC100k", "MAlig Lymph"}
"""Folders below Images whose microscopy is of stained tissue sections."""
PATIENTS = {"BreakHis": re.compile(r"SOB_[BM]_[A-Z]+-(\d+-[0-9A-Z]+)-\d+-\d+\.png")}
"""Folder below Images -> file name with the patient: of SOB_B_A-14-22549AB-40-005.png it is 14-22549AB (inferred).
For the other data sets no rule is known."""


def find(root: Path) -> Iterator[Row]:
    """One Row for each distinct image of our modalities, and one, of the table, for each question without a safe path.

    Raises ValueError when `root` is the zip or has no QA_information, or a table in it is too large or no list of
    objects.
    """
    root = Path(root).resolve()
    if root.is_file():
        raise ValueError(f"{root}: expected the folder of OmniMedVQA, found a file: unzip it first")
    folders = [folder for part in ACCESS if (folder := root / "QA_information" / part).is_dir()]
    tables = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix == ".json"]
    if not tables:
        raise ValueError(f"{root}: expected QA_information/Open-access/*.json, found none")
    seen = set()
    for table in tables:
        for number, item in enumerate(read_items(table)):
            place = item.get("image_path")
            if not is_inside(place):
                yield Row(str(table), key=f"question {number}")
            elif place not in seen and (modality := modality_of_item(item)):
                seen.add(place)
                path = root / place
                if table.parent.name == "Open-access" or path.is_file():
                    yield Row(str(path), modality=modality, patient=patient_of(place))


def expand(row: Row, options: Options) -> list[Row]:
    if row.key:
        raise Refused("expected an image_path below the root in each question, found one without or elsewhere")
    return [row]


def decode(row: Row, side: int) -> np.ndarray:
    return read_picture(row.path, side)


def read_items(table: Path) -> list[dict]:
    """Raises ValueError as `find` does."""
    check_table(table)
    try:
        items = json.loads(table.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{table}: expected JSON, found what cannot be parsed ({type(error).__name__})") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{table}: expected a list of objects, found something else")
    return items


def is_inside(place: object) -> bool:
    """Whether an image_path is a relative one that never goes up."""
    if not isinstance(place, str) or not place:
        return False
    parts = PurePosixPath(place)
    return not parts.is_absolute() and ".." not in parts.parts and "\0" not in place


def modality_of_item(item: dict) -> str:
    """One of our modalities, or ''."""
    kind = re.sub(r"[^a-z]", "", str(item.get("modality_type", item.get("modality", ""))).lower())
    if kind == MICROSCOPY and folder_of(item["image_path"]) in TISSUE:
        return "histopathology"
    return TYPES.get(kind, "")


def patient_of(place: str) -> str:
    """Patient by the name of the file, '' without a rule or where the name does not fit."""
    rule = PATIENTS.get(folder_of(place))
    name = rule.fullmatch(PurePosixPath(place).name) if rule else None
    return name[1] if name else ""


def folder_of(place: str) -> str:
    """'BreakHis' of 'Images/BreakHis/benign/x.png'."""
    return PurePosixPath(place).parts[1] if len(PurePosixPath(place).parts) > 1 else ""
