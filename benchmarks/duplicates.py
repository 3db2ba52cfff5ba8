"""Error rates of `medq_ray.pool.dedup`: which copies merge, which twins, next slices and other patients do.

    python -m benchmarks.duplicates [--seed 1000] [--realdata ../shared/realdata]

The limits in `pool.dedup` and `pool.hashing` were chosen on the synthetic images of seeds 0 to 11; seeds from 1000 on
are those whose figures are reported. Real files are used where the folder is there; nothing was chosen on them.
"""

import argparse
import gzip
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from medq_ray.pool.dedup import duplicate_groups, likeness_groups
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.sources._files import read_picture, shown
from medq_ray.schema import DEGRADATIONS, MODALITIES, THUMB
from medq_ray.synthetic.world import make_image

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"
SEEDS = {112: 20, 256: 20, 512: 5}
"""Side in pixels -> seeds of each modality: a 512-pixel image takes a third of a second."""
RADIUS, TOLERANCE = 4, 0.1
"""The defaults of `evolve.phash_radius` and `evolve.quality_tolerance`."""

CT_MAR = ("01", "03", "05", "06", "08", "10")
"""CT-MAR images at hand; 06, 08 and 10 are one slice of one patient."""

Row = dict
"""What `measure` finds."""


def measure(pixels: np.ndarray) -> Row:
    sharpness, noise = quality(pixels)
    return {"phash": phash(pixels), "thumb": thumb(pixels), "sharpness": sharpness, "noise": noise}


def table(rows: list[Row]) -> pa.Table:
    """Rows as duplicate_groups takes them; the ids are the rows' numbers, of eight digits."""
    types = {"phash": pa.uint64(), "thumb": THUMB, "sharpness": pa.float32(), "noise": pa.float32()}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    return pa.table({"image_id": [f"{i:08d}" for i in range(len(rows))], **columns})


def encoded(pixels: np.ndarray, kind: str, **options: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


def copies(pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(class, copy) of an image: re-encoded and resized."""
    image = Image.fromarray(pixels)
    yield "PNG", encoded(pixels, "PNG")
    for value in (75, 85, 95):
        yield f"JPEG {value}", encoded(pixels, "JPEG", quality=value)
    for factor in (0.5, 0.75, 1.5, 2):
        for method in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            size = (round(image.width * factor), round(image.height * factor))
            yield f"{factor:.0%}", np.asarray(image.resize(size, method))


@dataclass(frozen=True)
class Scene:
    """One synthetic anatomy: what was measured of its clean image, of copies and of degraded twins."""

    clean: Row
    same: list[tuple[str, Row, Row]]
    """Class, image, copy of it."""
    twins: dict[tuple[str, str], Row]
    """By degradation and severity."""


def scene(job: tuple[str, int, int]) -> Scene:
    """Of (modality, seed, side)."""
    modality, seed, side = job
    pixels = make_image(modality, "none", "none", seed, side)[0]
    clean, twins = measure(pixels), {}
    same = [(label, clean, measure(copy)) for label, copy in copies(pixels)]
    for name in DEGRADATIONS[modality]:
        for severity in ("mild", "severe"):
            pixels = make_image(modality, name, severity, seed, side)[0]
            twins[name, severity] = measure(pixels)
            copy = measure(encoded(pixels, "JPEG", quality=85))
            same.append(("JPEG 85 of a degraded one", twins[name, severity], copy))
    return Scene(clean, same, twins)


def pictures(root: Path) -> Iterator[np.ndarray]:
    """The real pictures, DICOM slices and CT-MAR images."""
    import pydicom

    for path in sorted(root.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            yield read_picture(path)
        elif path.suffix == ".dcm":
            yield windowed(pydicom.dcmread(path))
        elif path.suffix == ".raw":
            yield ct_mar(path)


def ct_mar(path: Path) -> np.ndarray:
    return shown(np.fromfile(path, "<f4").reshape(512, 512), -160, 240)


def windowed(dataset) -> np.ndarray:
    """A DICOM slice as shown: CT in the soft tissue window, MRI up to its 99th percentile."""
    values = dataset.pixel_array.astype(np.float32)
    if dataset.Modality == "CT":
        return shown(values * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept), -160, 240)
    return shown(values, 0, np.percentile(values, 99))


def next_slices(root: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(class, slice, next slice): CT slices 7.5 to 17.5 mm apart, EPI slices 2.2 mm apart."""
    import pydicom

    with zipfile.ZipFile(root / "ct" / "dicomnumpy_dupe-positions.zip") as archive:
        files = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    files.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    for here, there in pairwise(files):
        if 0 < there.ImagePositionPatient[2] - here.ImagePositionPatient[2] < 20:
            yield "next CT slice", windowed(here), windowed(there)
    raw = gzip.decompress((root / "brain_mri" / "nibabel_example4d.nii.gz").read_bytes())
    shape, offset = np.frombuffer(raw, "<i2", 4, 42), int(np.frombuffer(raw, "<f4", 1, 108)[0])
    volume = np.frombuffer(raw, "<i2", offset=offset).reshape(shape, order="F")[..., 0].astype(np.float32)
    top = np.percentile(volume, 99)
    for here, there in pairwise(np.moveaxis(volume, 2, 0)):
        yield "next EPI slice", shown(here, 0, top), shown(there, 0, top)


def merged(left: Row, right: Row, **limits) -> bool:
    return len(set(duplicate_groups(table([left, right]), **limits).values())) == 1


def report(title: str, pairs: dict[str, list[tuple[Row, Row]]]) -> None:
    """How many pairs of each class the hash alone merges, and how many are duplicates."""
    print(f"\n{title:44s} {'n':>6s} {'hash alone':>11s} {'merged':>8s}")
    for label, rows in pairs.items():
        alone = np.mean([(left["phash"] ^ right["phash"]).bit_count() <= RADIUS for left, right in rows])
        rate = np.mean([merged(left, right, radius=RADIUS, tolerance=TOLERANCE) for left, right in rows])
        print(f"{label:44s} {len(rows):6d} {alone:11.1%} {rate:8.1%}")


def report_likeness(side: int, scenes: dict[tuple[str, int, int], Scene]) -> None:
    """How complete and how pure groups of likenesses are, over radii: each seed is a patient with one scene."""
    rows, owners = [], []
    for patient, made in scenes.items():
        for severity, row in [("clean", made.clean), *((key[1], row) for key, row in made.twins.items())]:
            rows.append(row)
            owners.append((patient, severity))
    heads = f"{'mild joined':>12s} {'severe':>8s} {'impure images':>14s} {'largest':>8s}"
    print(f"\n{f'likenesses, {side} px':22s} {heads}")
    for radius in (4, 6, 8, 10):
        group = list(likeness_groups(table(rows), radius).values())
        home = {patient: name for name, (patient, severity) in zip(group, owners, strict=True) if severity == "clean"}
        joined, members = defaultdict(list), defaultdict(list)
        for name, (patient, severity) in zip(group, owners, strict=True):
            joined[severity].append(name == home[patient])
            members[name].append(patient)
        impure = sum(len(found) for found in members.values() if len(set(found)) > 1) / len(rows)
        largest = max(len(set(found)) for found in members.values())
        rates = f"{np.mean(joined['mild']):12.1%} {np.mean(joined['severe']):8.1%} {impure:14.1%}"
        print(f"radius {radius:<15d} {rates} {largest:8d} of {len(scenes)} patients")


def by_class(side: int, scenes: dict[tuple[str, int, int], Scene]) -> tuple[dict, dict]:
    """(pairs that must merge, pairs that must not) of synthetic images of one side, by class."""
    same, apart = defaultdict(list), defaultdict(list)
    for (modality, _, _), made in scenes.items():
        for label, image, copy in made.same:
            same[f"{side} px, {label}"].append((image, copy))
        for (name, severity), row in made.twins.items():
            apart[f"{side} px, {severity} {modality}/{name}"].append((made.clean, row))
    for (one, left), (other, right) in combinations(scenes.items(), 2):
        if one[0] == other[0]:
            apart[f"{side} px, other patient of {one[0]}"].append((left.clean, right.clean))
    return same, apart


def in_brief(apart: dict[str, list]) -> dict[str, list]:
    """Twins by severity, and those classes in full that have an error."""
    brief = defaultdict(list)
    for label, rows in apart.items():
        side, _, rest = label.partition(", ")
        brief[f"{side}, {rest.split()[0]}, all"] += rows
        if any(merged(*pair, radius=RADIUS, tolerance=TOLERANCE) for pair in rows):
            brief[label] = rows
    return dict(sorted(brief.items()))


def report_real(root: Path) -> None:
    same, apart, rows = defaultdict(list), defaultdict(list), []
    for pixels in pictures(root):
        rows.append(measure(pixels))
        for label, copy in copies(pixels):
            same[f"real, {label}"].append((rows[-1], measure(copy)))
    for label, here, there in next_slices(root):
        apart[label].append((measure(here), measure(there)))
    apart["any two real files"] = list(combinations(rows, 2))
    report("must merge", same)
    report("must stay apart", apart)
    slices = table([measure(ct_mar(root / "ct" / f"xcist_ctmar_{n}_512x512.raw")) for n in CT_MAR])
    for radius in (4, 6, 8, 10):
        print(f"CT-MAR {' '.join(CT_MAR)}, likenesses at radius {radius}:", *likeness_groups(slices, radius).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1000, help="first synthetic seed")
    parser.add_argument("--realdata", type=Path, default=REALDATA)
    options = parser.parse_args()
    for side, count in SEEDS.items():
        jobs = [(m, seed, side) for m in MODALITIES for seed in range(options.seed, options.seed + count)]
        with ProcessPoolExecutor() as pool:
            scenes = dict(zip(jobs, pool.map(scene, jobs), strict=True))
        same, apart = by_class(side, scenes)
        report("must merge", same)
        report("must stay apart", in_brief(apart))
        report_likeness(side, scenes)
    if options.realdata.is_dir():
        report_real(options.realdata)
    else:
        print(f"\nno real files: {options.realdata} is not there")


if __name__ == "__main__":
    main()
