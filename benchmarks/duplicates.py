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
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from medq_ray.pool.dedup import duplicate_groups, likeness_groups
from medq_ray.pool.hashing import phash, quality, thumb
from medq_ray.pool.sources._files import read_picture, shown
from medq_ray.schema import DEGRADATIONS, MODALITIES
from medq_ray.synthetic.world import make_image

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"
SEEDS = {112: 12, 256: 12, 512: 3}
"""Side in pixels -> seeds of each modality: a 512-pixel image takes a third of a second."""
RADIUS, TOLERANCE = 4, 0.1
"""The defaults of `evolve.phash_radius` and `evolve.quality_tolerance`."""

Row = dict
"""What `measure` finds."""


def measure(pixels: np.ndarray) -> Row:
    sharpness, noise = quality(pixels)
    return {"phash": phash(pixels), "thumb": thumb(pixels), "sharpness": sharpness, "noise": noise}


def table(rows: list[Row]) -> pa.Table:
    """Rows as duplicate_groups takes them; the ids are the rows' numbers, of eight digits."""
    types = {"phash": pa.uint64(), "thumb": pa.binary(256), "sharpness": pa.float32(), "noise": pa.float32()}
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    return pa.table({"image_id": [f"{i:08d}" for i in range(len(rows))], **columns})


def copies(pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(class, copy) of an image: re-encoded and resized."""
    image = Image.fromarray(pixels)
    for kind, options in (("PNG", {}), *(("JPEG", {"quality": value}) for value in (75, 85, 95))):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        label = f"{kind} {options.get('quality', '')}".strip()
        yield label, np.asarray(Image.open(buffer).convert("RGB"))
    for factor in (0.5, 0.75, 1.5, 2):
        for method in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            size = (round(image.width * factor), round(image.height * factor))
            yield f"{factor:.0%}", np.asarray(image.resize(size, method))


def synthetic(job: tuple[str, int, int]) -> tuple[Row, list[tuple[str, Row]], dict[tuple[str, str], Row]]:
    """(the clean image, its copies by class, its twins by degradation and severity) of (modality, seed, side)."""
    modality, seed, side = job
    clean = make_image(modality, "none", "none", seed, side)[0]
    twins = {
        (name, severity): measure(make_image(modality, name, severity, seed, side)[0])
        for name in DEGRADATIONS[modality]
        for severity in ("mild", "severe")
    }
    return measure(clean), [(label, measure(pixels)) for label, pixels in copies(clean)], twins


def pictures(root: Path) -> Iterator[np.ndarray]:
    """The real pictures, DICOM slices and CT-MAR images."""
    import pydicom

    for path in sorted(root.rglob("*")):
        if path.suffix in (".jpg", ".png"):
            yield read_picture(path)
        elif path.suffix == ".dcm":
            yield windowed(pydicom.dcmread(path))
        elif path.suffix == ".raw":
            yield shown(np.fromfile(path, "<f4").reshape(512, 512), -160, 240)


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


def report_likeness(side: int, made: dict[tuple[str, int, int], tuple]) -> None:
    """How complete and how pure groups of likenesses are, over radii: each seed is a patient with one scene."""
    rows, patients, severities = [], [], []
    for (modality, seed, _), (clean, _, twins) in made.items():
        for severity, row in [("clean", clean), *((key[1], row) for key, row in twins.items())]:
            rows.append(row)
            patients.append((modality, seed))
            severities.append(severity)
    ids = table(rows)["image_id"].to_pylist()
    home = {patient: name for name, patient, severity in zip(ids, patients, severities, strict=True) if severity == "clean"}
    print(f"\n{f'likenesses, {side} px':22s} {'mild joined':>12s} {'severe':>8s} {'impure images':>14s} {'largest':>8s}")
    for radius in (4, 6, 8, 10):
        group = likeness_groups(table(rows), radius)
        joined, members = defaultdict(list), defaultdict(list)
        for name, patient, severity in zip(ids, patients, severities, strict=True):
            joined[severity].append(group[name] == group[home[patient]])
            members[group[name]].append(patient)
        impure = sum(len(found) for found in members.values() if len(set(found)) > 1) / len(rows)
        largest = max(len(set(found)) for found in members.values())
        print(
            f"radius {radius:<15d} {np.mean(joined['mild']):12.1%} {np.mean(joined['severe']):8.1%} {impure:14.1%}"
            f" {largest:8d} of {len(made)} patients"
        )


def by_class(side: int, made: dict[tuple[str, int, int], tuple]) -> tuple[dict, dict]:
    """(pairs that must merge, pairs that must not) of synthetic images of one side, by class."""
    same, apart = defaultdict(list), defaultdict(list)
    for (modality, _, _), (clean, found, twins) in made.items():
        for label, row in found:
            same[f"{side} px, {label}"].append((clean, row))
        for (name, severity), row in twins.items():
            apart[f"{side} px, {severity} {modality}/{name}"].append((clean, row))
    for (one, left), (other, right) in combinations(made.items(), 2):
        if one[0] == other[0]:
            apart[f"{side} px, other patient, {one[0]}"].append((left[0], right[0]))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1000, help="first synthetic seed")
    parser.add_argument("--realdata", type=Path, default=REALDATA)
    options = parser.parse_args()
    for side, count in SEEDS.items():
        jobs = [(m, seed, side) for m in MODALITIES for seed in range(options.seed, options.seed + count)]
        with ProcessPoolExecutor() as pool:
            made = dict(zip(jobs, pool.map(synthetic, jobs), strict=True))
        same, apart = by_class(side, made)
        report("must merge", same)
        report("must stay apart", in_brief(apart))
        report_likeness(side, made)
    if not options.realdata.is_dir():
        print(f"\nno real files: {options.realdata} is not there")
        return
    same, apart, clean = defaultdict(list), defaultdict(list), []
    for pixels in pictures(options.realdata):
        clean.append(measure(pixels))
        for label, copy in copies(pixels):
            same[f"real, {label}"].append((clean[-1], measure(copy)))
    for label, here, there in next_slices(options.realdata):
        apart[label].append((measure(here), measure(there)))
    apart["any two real files"] = list(combinations(clean, 2))
    report("must merge", same)
    report("must stay apart", apart)
    metal = [measure(shown(np.fromfile(options.realdata / "ct" / f"xcist_ctmar_{n}_512x512.raw", "<f4").reshape(512, 512), -160, 240)) for n in ("01", "03", "05", "06", "08", "10")]
    for radius in (4, 6, 8, 10):
        print(f"CT-MAR 01 03 05 06 08 10, likenesses at radius {radius}:", *likeness_groups(table(metal), radius).values())


if __name__ == "__main__":
    main()
