"""Names, ids, dates and free text are planted wherever a DICOM file has room, and looked for in all that is written."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medq_ray import cli
from medq_ray.pool.splits import verify
from medq_ray.pool.store import open_pool

PLANTED = {
    "PatientName": "Plantedname^Erika",
    "PatientID": "PLANTEDID4711",
    "PatientBirthDate": "19470815",
    "StudyDate": "20190203",
    "StudyTime": "112233.445566",
    "AccessionNumber": "PLANTEDACC",
    "InstitutionName": "Plantedhospital",
    "ReferringPhysicianName": "Planteddoctor^Otto",
    "ImageComments": "planted comment about the patient",
    "StudyDescription": "planted study",
    "SeriesDescription": "planted series",
    "IssuerOfPatientID": "PLANTEDISSUER",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4711",
}
NEEDLES = ("planted", "8.498.4711", "19470815", "20190203", "112233.4")  # long enough not to occur in a digest


def planted(seed: int, **changes) -> bytes:
    """A readable CT slice of one patient, every time with other pixels."""
    dataset = dcmread(get_testdata_file("CT_small.dcm", download=False))
    for name, value in (PLANTED | changes).items():
        setattr(dataset, name, value)
    dataset.add_new(0x00091001, "LO", "planted private")
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.4711"
    pixels = dataset.pixel_array + np.random.default_rng(seed).integers(0, 300, dataset.pixel_array.shape, np.int16)
    dataset.PixelData = pixels.astype(np.int16).tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def spoiled() -> list[bytes]:
    """Files that are refused, where a careless message would quote what stands in them."""
    good = planted(5)
    text = good.replace(b"112233.445566", b"PLANTED!!!!!!")
    return [
        good[: len(good) // 2],
        planted(6, Modality="PLANTED"),
        text.replace(b"\x28\x00\x02\x00US\x02\x00", b"\x28\x00\x02\x00LO\x02\x00"),
        good.replace(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10XX"),
        planted(7, RescaleSlope="1").replace(b"DS\x02\x001 ", b"DS\x02\x00PL"),
    ]


def texts(path: Path) -> str:
    """Everything that a file says, lower case: tables as rows, other files as bytes."""
    raw = path.read_bytes()
    said = raw.decode("latin-1")
    if path.suffix == ".parquet":
        said += json.dumps(pq.read_table(path).to_pylist(), default=lambda value: value.hex()) + str(pq.read_metadata(path).metadata)
    return said.lower()


@pytest.mark.engine
def test_no_header_value_reaches_a_file_or_the_screen(tmp_path, ray_local):
    root, pool = tmp_path / "ct", tmp_path / "p"
    root.mkdir()
    for seed in range(2):
        (root / f"{seed}.dcm").write_bytes(planted(seed))
    with zipfile.ZipFile(root / "study.zip", "w") as archive:
        archive.writestr("a/1.dcm", planted(2, PatientID="PLANTEDOTHER"))
    for i, data in enumerate(spoiled()):
        (root / f"bad{i}.dcm").write_bytes(data)
    said = CliRunner().invoke(cli.main, ["ingest", "dicom", str(root), "--pool", str(pool)])
    assert said.exit_code == 0, said.output
    listing = CliRunner().invoke(cli.main, ["pool", "quarantine", str(pool)])
    proof = CliRunner().invoke(cli.main, ["pool", "verify", str(pool)])
    assert proof.exit_code == 0, proof.output
    images = open_pool(pool).images()
    assert images.num_rows >= 3 and len(set(images["patient"].to_pylist())) == 2
    assert verify(open_pool(pool))["splits"]["pool"]["sessions"] == 1  # one study, whoever its patients are said to be
    open_pool(pool).fetch(images["image_id"].to_pylist(), pool / "png")
    files = [path for path in pool.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        found = [needle for needle in NEEDLES if needle in texts(path)]
        assert not found, f"{path.relative_to(pool)} says {found}"
    for output in (said.output, listing.output, proof.output):
        assert not [needle for needle in NEEDLES if needle in output.lower()]


@pytest.mark.engine
def test_paths_are_in_the_private_folder_alone(tmp_path, ray_local):
    root, pool = tmp_path / "Plantedname_Erika" / "ct", tmp_path / "p"
    root.mkdir(parents=True)
    (root / "good.dcm").write_bytes(planted(0))
    (root / "bad.dcm").write_bytes(planted(1)[:2000])
    assert CliRunner().invoke(cli.main, ["ingest", "dicom", str(root), "--pool", str(pool)]).exit_code == 0
    assert CliRunner().invoke(cli.main, ["pool", "verify", str(pool)]).exit_code == 0
    naming = {path.relative_to(pool).parts[0] for path in pool.rglob("*") if path.is_file() and "plantedname" in texts(path)}
    assert naming == {"private"}
