"""MR-ART (OpenNeuro ds004173): brain scans with and without head motion, scored 1 good, 2 medium, 3 bad.

Layout: `sub-*/anat/sub-*_acq-{standard,headmotion1,headmotion2}_T1w.nii.gz`; scores in `derivatives/scores.tsv` and
again in each `sub-*_scans.tsv`. An acquisition without motion is not always a good image: 29 of 148 score 2 or 3. All
scans of a subject are one appointment. MRIQC's table is not read.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medq_ray.depth import Depth
from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, Terms, nifti
from medq_ray.pool.sources._files import check_table, walk

TERMS = Terms("CC0-1.0", share=True, train=True, note="dataset_description.json of the release")
SCAN = re.compile(r"(sub-[A-Za-z0-9]+)_acq-(standard|headmotion1|headmotion2)_T1w")
SCORES = ("1", "2", "3")
GZIP = b"\x1f\x8b"


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when there is no scan or no score, and when two tables contradict each other."""
    root = Path(root).resolve()
    scans = [path for path in walk(root) if path.name.endswith(".nii.gz") and SCAN.fullmatch(path.name[:-7])]
    if not scans:
        raise ValueError(f"{root}: expected sub-*/anat/sub-*_acq-*_T1w.nii.gz, found none")
    scores = read_scores(root)
    for path in scans:
        name = path.name.removesuffix(".nii.gz")
        subject, acquisition = SCAN.fullmatch(name).groups()
        labels = {"acquisition": acquisition} | ({"score": scores[name]} if name in scores else {})
        yield Row(str(path), modality="mri", patient=subject, session=subject, labels=labels)


def read_scores(root: Path) -> dict[str, str]:
    """Name of a scan without its suffix -> score, from all tables below `root`. Raises ValueError naming the table
    that cannot be read or contradicts an earlier one, and when there is none."""
    scores: dict[str, str] = {}
    tables = [(root / "derivatives" / "scores.tsv", "bids_name")]
    tables += [(path, "filename") for path in sorted(root.glob("sub-*/sub-*_scans.tsv"))]
    for path, column in tables:
        if not path.is_file():
            continue
        check_table(path)
        try:
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
        except csv.Error as error:
            raise ValueError(f"{path}: expected a tab-separated table, found a field that is none") from error
        for number, row in enumerate(rows, 2):
            name, score, place = row.get(column) or "", row.get("score") or "", f"{path}, line {number}"
            name = name.rpartition("/")[2].removesuffix(".nii.gz")
            if not SCAN.fullmatch(name) or score not in SCORES:
                raise ValueError(f"{place}: expected columns {column} and score (1, 2 or 3), found others")
            if scores.setdefault(name, score) != score:
                raise ValueError(f"{place}: expected the score of the table before, found {score}")
    if not scores:
        raise ValueError(f"{root}: expected derivatives/scores.tsv, found no scores")
    return scores


def expand(row: Row, options: Options) -> list[Row]:
    """Slices, as `nifti` cuts them. Raises Refused for what a git checkout has in the place of a scan."""
    path = Path(row.path)
    if not path.exists():
        raise Refused("expected a scan, found a link to nothing (git-annex): get the file through OpenNeuro")
    with open(path, "rb") as file:
        if file.read(2) != GZIP:
            raise Refused("expected a gzip file, found a pointer (git-annex) or other: get the file through OpenNeuro")
    return nifti.expand(row, options)


def decode(row: Row, side: int) -> np.ndarray:
    return nifti.decode(row, side)


def depth(row: Row) -> Depth | None:
    return nifti.depth(row)
