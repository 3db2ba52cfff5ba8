"""DICOM reader: what is taken for DICOM, what an archive gives, whose images they are, and what is refused."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, dicom, list_rows, rows_of

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"
needs_realdata = pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")


def dicom_bytes(frames: int = 1, pixels: bool = True, **tags) -> bytes:
    """A CT file of 8 x 8; frame i is 40 + 10 i HU everywhere."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["x"])
    dataset.Modality, dataset.StudyInstanceUID = "CT", "1.9"
    dataset.PatientID, dataset.PatientName = "jane-7", "Doe^Jane"
    if pixels:
        dataset.Rows = dataset.Columns = 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 1
        dataset.PhotometricInterpretation, dataset.NumberOfFrames = "MONOCHROME2", frames
        dataset.PixelData = (40 + 10 * np.arange(frames, dtype="<i2")).repeat(64).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_files_are_found_by_name_or_mark(tmp_path):
    data = dicom_bytes()
    named = ["a.dcm", "b.IMA", "c.dc3", "IM0001", "1.2.840.113.619", "study.zip"]
    for name in (*named, "marked.bin", "DICOMDIR", "d.png", "e.json", "f.raw", ".hidden.dcm"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "unmarked.bin").write_bytes(b"x" * 200)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere.bin")
    assert {Path(row.path).name for row in dicom.find(tmp_path)} == {*named, "marked.bin", "gone"}


def test_frames_patient_study_and_burned_in_text(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(10, IssuerOfPatientID="Ward", BurnedInAnnotation="YES"))
    rows = list(list_rows("dicom", tmp_path, Options(slices=2)))
    assert [row.key for row in rows] == ["3", "7"]
    assert {(row.modality, row.patient, row.session) for row in rows} == {("ct", "jane-7", "1.9")}
    assert rows[0].labels == {"burned_in": "yes"} and rows[0].split == ""
    levels = [dicom.decode(row, 512)[0, 0, 0] for row in rows]
    assert levels == [round((40 + 30 + 160) / 400 * 255), round((40 + 70 + 160) / 400 * 255)]


def test_an_issuer_does_not_tear_a_patient_apart_and_burned_in_text_stays_private(tmp_path):
    for issuer, burned in (("Ward", "YES"), ("", "NO"), ("", "")):
        data = dicom_bytes(IssuerOfPatientID=issuer, BurnedInAnnotation=burned)
        (tmp_path / f"x{issuer}{burned}.dcm").write_bytes(data)
    rows = list(list_rows("dicom", tmp_path, Options()))
    assert {row.patient for row in rows} == {"jane-7"} and len(rows) == 3
    assert {row.labels.get("burned_in"): row.private for row in rows} == {"yes": True, "no": False, None: False}


def test_one_archive_or_file_is_a_root(tmp_path):
    path = zip_of(tmp_path / "study.zip", {"a.dcm": dicom_bytes(), "b.dcm": dicom_bytes()})
    (tmp_path / "c.dcm").write_bytes(dicom_bytes())
    assert [row.path for row in list_rows("dicom", path, Options())] == [str(path)] * 2
    assert [row.path for row in list_rows("dicom", tmp_path / "c.dcm", Options())] == [str(tmp_path / "c.dcm")]


@pytest.mark.parametrize(
    "code, modality",
    [("MR", "mri"), ("ES", "endoscopy"), ("OP", "fundus"), ("SM", "histopathology"), ("GM", "histopathology")],
)
def test_modalities_of_the_standard(tmp_path, code, modality):
    (tmp_path / "a.dcm").write_bytes(dicom_bytes(Modality=code))
    assert [row.modality for row in list_rows("dicom", tmp_path, Options())] == [modality]


def test_other_modalities_need_a_word_of_the_user(tmp_path):
    row = Row(str(tmp_path / "a.dcm"))
    Path(row.path).write_bytes(dicom_bytes(Modality="OT"))
    with pytest.raises(Refused, match="expected Modality MR, CT.*--modality"):
        rows_of("dicom", row, Options())
    (found,) = rows_of("dicom", row, Options(modality="ct"))
    assert found.modality == "ct" and dicom.decode(found, 512).shape == (8, 8, 3)


def test_an_archive_gives_its_members_and_refuses_the_others_one_by_one(tmp_path):
    members = {
        "s/2.dcm": dicom_bytes(3),
        "s/1": dicom_bytes(PatientID="eve"),
        "s/report.dcm": dicom_bytes(pixels=False, Modality="SR"),
        "DICOMDIR": b"x",
        "notes.txt": b"x",
        "__MACOSX/1.dcm": b"x",
    }
    path = zip_of(tmp_path / "study.zip", members)
    rows = list(list_rows("dicom", tmp_path, Options(slices=0)))
    assert [(row.key, row.patient) for row in rows] == [
        ("0 s/1", "eve"),
        ("0 s/2.dcm", "jane-7"),
        ("1 s/2.dcm", "jane-7"),
        ("2 s/2.dcm", "jane-7"),
        ("0 s/report.dcm", ""),
    ]
    assert dicom.decode(rows[3], 512)[0, 0, 0] == round((60 + 160) / 400 * 255)
    assert [bool(row.problem) for row in rows] == [False] * 4 + [True] and "object without pixels" in rows[-1].problem
    for modality in ("", "ct"):
        with pytest.raises(Refused, match="object without pixels"):
            dicom.decode(replace(rows[-1], modality=modality), 512)
    assert all(row.path == str(path) for row in rows)


def test_hostile_archives(tmp_path, monkeypatch):
    def refusal(path: Path) -> str:
        with pytest.raises(Refused) as caught:
            dicom.decode(dicom.expand(Row(str(path)), Options())[0], 512)
        assert "jane" not in str(caught.value).lower() and str(tmp_path) not in str(caught.value)
        return str(caught.value)

    (tmp_path / "no.zip").write_bytes(b"Jane Doe")
    assert "expected a zip archive, found BadZipFile" in refusal(tmp_path / "no.zip")
    assert "found none" in refusal(zip_of(tmp_path / "empty.zip", {"jane.txt": b"x"}))
    locked = bytearray(zip_of(tmp_path / "locked.zip", {"jane.dcm": dicom_bytes()}).read_bytes())
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    locked[6] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "encrypted" in refusal(tmp_path / "locked.zip")
    torn = bytearray(zip_of(tmp_path / "torn.zip", {"jane.dcm": dicom_bytes(8)}).read_bytes())
    torn[60:120] = bytes(60)
    (tmp_path / "torn.zip").write_bytes(torn)
    assert "can be unpacked" in refusal(tmp_path / "torn.zip")
    monkeypatch.setattr(dicom, "MAX_MEMBER", 1000)
    assert "at most 1000 bytes, found 100000" in refusal(zip_of(tmp_path / "bomb.zip", {"jane.dcm": bytes(100_000)}))
    lying = bytearray((tmp_path / "bomb.zip").read_bytes())
    place = lying.rindex(b"PK\x01\x02") + 24
    lying[place : place + 4] = (900).to_bytes(4, "little")  # the directory says less than there is
    (tmp_path / "lying.zip").write_bytes(lying)
    assert "expected" in refusal(tmp_path / "lying.zip")
    monkeypatch.setattr(dicom, "MAX_MEMBERS", 2)
    crowd = zip_of(tmp_path / "crowd.zip", {f"{i}.dcm": b"x" for i in range(3)})
    assert "at most 2 members, found 3" in refusal(crowd)


def test_refusals_never_have_a_patients_name(tmp_path):
    path = tmp_path / "a.dcm"
    for data in (b"Doe^Jane", dicom_bytes(pixels=False), dicom_bytes(Modality="PT"), dicom_bytes()[:400]):
        path.write_bytes(data)
        with pytest.raises(Refused, match="expected .* found") as caught:
            dicom.expand(Row(str(path)), Options())
        assert "jane" not in str(caught.value).lower()
    assert not dicom.TERMS.share


@needs_realdata
def test_real_files():
    rows = list(list_rows("dicom", REALDATA, Options()))
    assert [row.modality for row in rows].count("mri") == 5 and [row.modality for row in rows].count("ct") == 13
    assert len({(row.path, row.key) for row in rows}) == 18
    studies = {row.session for row in rows if row.modality == "mri"}
    assert len(studies) == 1 == len({row.patient for row in rows if row.path.endswith(".zip")})
    for row in rows:
        pixels = dicom.decode(row, 512)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 30
