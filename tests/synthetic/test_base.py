"""Real images as the base of a world: found, read, split by patient, and what cannot be read is named."""

import io
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medq_ray.artifacts import digest_folder
from medq_ray.images import encode_png
from medq_ray.synthetic.base import BaseImage, crop, find_base, read, subject_of
from medq_ray.synthetic.plan import make_plan, split_sizes
from medq_ray.synthetic.world import make_image, read_world, write_world

REALDATA = Path(__file__).parents[2].parent / "shared" / "realdata"


def dicom_bytes(patient: str, values: np.ndarray, **tags) -> bytes:
    """A single-frame int16 CT file."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[patient])
    dataset.PatientID, dataset.Modality = patient, "CT"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.astype("<i2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def ramp(low: int, high: int) -> np.ndarray:
    return np.linspace(low, high, 64 * 48).reshape(64, 48).astype(np.int16)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("clinic")
    rng = np.random.default_rng(0)
    for folder, count in (("brain_mri", 4), ("Fundus photos", 2), ("histology", 1)):
        (root / folder).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (60, 70, 3), np.uint8)
            (root / folder / f"{i}.png").write_bytes(encode_png(pixels))
    ct = root / "ct"
    ct.mkdir()
    for i in range(3):
        (ct / f"slice{i}.dcm").write_bytes(dicom_bytes(f"anna-{i}", ramp(0, 2000 + i)))
    with zipfile.ZipFile(ct / "study.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"IM{i}", dicom_bytes("bert", ramp(100 * i, 1900)))
    (ct / "broken.dcm").write_bytes(b"no dicom")
    (ct / "broken.zip").write_bytes(b"no zip")
    (ct / "notes.txt").write_text("no image")
    (ct / "blank.png").write_bytes(encode_png(np.full((64, 64, 3), 90, np.uint8)))
    (ct / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    masks = [Image.new("L", (64, 64)) for _ in range(3)]
    masks[0].save(ct / "mask.tif", save_all=True, append_images=masks[1:])
    (root / "loose.png").write_bytes(encode_png(rng.integers(0, 256, (64, 64, 3), np.uint8)))
    return root


def test_everything_is_found_or_named_with_a_reason(base):
    found, skipped = find_base(base, "salt")
    by_modality = defaultdict(list)
    for image in found:
        by_modality[image.modality].append(image)
    counts = {modality: len(images) for modality, images in by_modality.items()}
    assert counts == {"mri": 4, "fundus": 2, "histopathology": 1, "ct": 6}
    assert len({image.patient for image in by_modality["ct"]}) == 4  # the archive is one patient
    reasons = {entry["file"]: entry["reason"] for entry in skipped}
    assert set(reasons) == {
        "loose.png",
        *(f"ct/{name}" for name in ("blank.png", "broken.dcm", "broken.zip", "mask.tif", "notes.txt", "torn.jpg")),
    }
    assert "3 pages" in reasons["ct/mask.tif"] and "blank" in reasons["ct/blank.png"]
    assert "anna" not in "".join(image.patient for image in found)


def test_pictures_of_one_folder_are_one_patient(tmp_path):
    """Neighbouring slices in two splits would be a leak."""
    cases = {
        "mri/p1/s1.png": "p1", "mri/p1/s2.png": "p1", "mri/p2/s1.png": "p2", "mri/a.png": "a",
        "mri/p1/t1/s1.png": "p1", "mri/p1/MR/s1.png": "p1", "p1/ct/s1.png": "p1", "p1/ct/s2.png": "p1",
    }  # fmt: skip
    for name, subject in cases.items():
        assert subject_of(tmp_path / name, tmp_path) == subject
    assert subject_of(tmp_path / "mri" / "a.png", tmp_path / "mri") == "a"


def test_dicom_is_windowed_in_hounsfield_units(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes("p", ramp(0, 2048)))  # -1024 to 1024 HU
    pixels, patient = read(tmp_path, "a.dcm", "ct")
    hounsfield = ramp(0, 2048) - 1024
    assert patient == "p" and (pixels[hounsfield < -160] == 0).all() and (pixels[hounsfield > 240] == 255).all()
    (tmp_path / "b.dcm").write_bytes(
        dicom_bytes("p", ramp(0, 2048), PhotometricInterpretation="MONOCHROME1", WindowCenter=0, WindowWidth=2048)
    )
    inverted, _ = read(tmp_path, "b.dcm", "ct")
    assert inverted[0, 0, 0] == 255 and inverted[-1, -1, 0] < 8


def test_crops_vary_mildly_and_keep_grey_grey(base):
    found, _ = find_base(base, "salt")
    image = next(i for i in found if i.modality == "ct")
    crops = [crop(base, image, np.random.default_rng(seed), 40) for seed in range(4)]
    assert crops[0].shape == (40, 40, 3) and crops[0].dtype == np.float32 and 0 <= crops[0].min() <= crops[0].max() <= 1
    assert np.array_equal(crops[0][..., 0], crops[0][..., 1])
    assert all(0.001 < np.abs(crops[0] - other).mean() < 0.2 for other in crops[1:])


def test_a_world_on_real_images(base, tmp_path):
    summary = write_world(tmp_path / "a", 140, 3, size=32, base=base)
    world = read_world(tmp_path / "a")
    splits, sources = defaultdict(set), defaultdict(set)
    for image, truth in zip(world.images.to_pylist(), world.truth.to_pylist(), strict=True):
        splits[image["patient"]].add(image["split"])
        sources[image["modality"], image["split"]].add(image["source"])
        assert (truth["base"] == "phantom") == (image["source"] == "synthetic")
    assert all(len(split) == 1 for split in splits.values())
    assert sources["mri", "dev"] == {"synthetic-on-real"} == sources["ct", "test"]
    assert sources["fundus", "dev"] == {"synthetic"} and sources["fundus", "test"] == {"synthetic-on-real"}
    assert summary["on_real_images"]["fundus"] == {"pool": "real", "dev": "phantom", "test": "real"}
    assert summary["on_real_images"]["histopathology"] == {"pool": "real", "dev": "phantom", "test": "phantom"}
    assert any("loose.png" in files for files in summary["skipped"].values())
    assert str(base) not in (tmp_path / "a" / "world.json").read_text()
    write_world(tmp_path / "b", 140, 3, size=32, base=base)
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")


def test_folders_without_images_are_one_line_errors(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError) as caught:
            write_world(tmp_path / "w", 60, 0, base=root)
        assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_the_real_collection_is_degraded_visibly():
    found, skipped = find_base(REALDATA, "salt")
    assert {image.modality for image in found} == {"mri", "ct", "endoscopy", "fundus", "histopathology"}
    assert any(entry["file"].endswith("_mask.tif") for entry in skipped)
    for image in found[::4]:
        clean, truth = make_image(image.modality, "none", "none", 1, base=(REALDATA, image))
        blurred, _ = make_image(image.modality, "blur", "severe", 1, base=(REALDATA, image))
        assert truth["anatomy"] == "real" and np.abs(clean.astype(float) - blurred).mean() > 2


def test_a_patient_with_two_modalities_stays_in_one_split():
    counts = {"ct": 9, "mri": 4, "fundus": 2}
    images = [BaseImage(m, f"{m}/{i}", f"p{i}") for m, count in counts.items() for i in range(count)]
    for seed in range(20):
        items = make_plan(seed, split_sizes(300, None, None), images)
        owner, real = {}, set()
        for item in items:
            assert owner.setdefault(item.patient, item.split) == item.split
            real |= {(item.modality, item.split)} if item.base else set()
        assert real >= {(m, split) for m in ("ct", "mri") for split in ("pool", "dev", "test")}
