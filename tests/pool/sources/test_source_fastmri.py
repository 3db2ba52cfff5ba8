"""fastMRI reader: reconstruction or k-space, upright, in its own brightness; patients by attribute; refusals."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, Row, fastmri, list_rows

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"
PATIENT = "ab" * 32
HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>48</x><y>36</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>24</x><y>20</y><z>1</z></matrixSize></reconSpace></encoding></ismrmrdHeader>"""


def save(path: Path, attributes: dict | None = None, **datasets) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"acquisition": "CORPDFS_FBK", "patient_id": PATIENT, "max": 3e-4, "norm": "0.05"}
    with h5py.File(path, "w") as file:
        file.attrs.update(known if attributes is None else attributes)
        for name, values in datasets.items():
            file[name] = values
    return str(path)


def scene(slices: int, height: int, width: int) -> np.ndarray:
    """float32 near 1e-4: brighter towards the last row and the last column, brighter with each slice."""
    ramp = np.add.outer(2 * np.arange(height), np.arange(width)).astype(np.float32)
    return 1e-6 * np.stack([ramp + 10 * (i + 1) for i in range(slices)])


def to_kspace(images: np.ndarray) -> np.ndarray:
    """Centred orthonormal Fourier transform over the last two axes."""
    axes = (-2, -1)
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes), axes=axes, norm="ortho"), axes)
    return spectrum.astype(np.complex64)


def expected(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (0.5, 99.5))
    return (np.clip((image[::-1] - low) / (high - low), 0, 1) * 255 + 0.5).astype(int)


def test_reconstructions_patients_and_splits(tmp_path):
    images = scene(10, 24, 20)
    for folder in ("multicoil_train", "multicoil_val", "singlecoil_test_v2", "other"):
        path = tmp_path / folder / "file1000001.h5"
        save(path, reconstruction_rss=images, kspace=to_kspace(images), ismrmrd_header=HEADER)
    rows = list(list_rows("fastmri", tmp_path, Options(slices=2)))
    assert [row.key for row in rows[:2]] == ["reconstruction_rss 3", "reconstruction_rss 7"]
    assert [row.split for row in rows[::2]] == ["pool", "dev", "", "test"]
    assert {(row.patient, row.session, row.modality) for row in rows} == {(PATIENT, PATIENT, "mri")}
    assert all(row.labels == {} for row in rows)
    pixels = fastmri.decode(rows[0], 512)
    assert pixels.shape == (24, 20, 3) and np.array_equal(pixels[..., 0], expected(images[3]))
    assert pixels[0].mean() > 200 > 60 > pixels[-1].mean()  # the file's last row is on top


@pytest.mark.parametrize("coils", [0, 4])
def test_kspace_gives_the_reconstruction(tmp_path, coils):
    """Coils see the scene with weights whose squares sum to 1, so their root of the sum of squares is the scene."""
    images = scene(3, 48, 36)
    weights = np.sqrt(np.arange(1, coils + 1) / sum(range(coils + 1))).astype(np.float32)
    kspace = to_kspace(images[:, None] * weights[:, None, None]) if coils else to_kspace(images)
    save(tmp_path / "a_test" / "x.h5", kspace=kspace, mask=np.ones(36, np.float32), ismrmrd_header=HEADER.encode())
    rows = list(list_rows("fastmri", tmp_path, Options(slices=0)))
    assert [row.key for row in rows] == ["kspace 0", "kspace 1", "kspace 2"] and rows[0].split == "test"
    pixels = fastmri.decode(rows[1], 512)[..., 0].astype(int)
    middle = images[1, 12:36, 8:28]
    assert pixels.shape == (24, 20) and np.abs(pixels - expected(middle)).max() <= 1


@pytest.mark.parametrize("header", [None, "no xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", "<a/>"])
def test_without_a_readable_header_the_middle_square_is_taken(tmp_path, header):
    extra = {} if header is None else {"ismrmrd_header": header}
    path = save(tmp_path / "x.h5", kspace=to_kspace(scene(1, 48, 36)), **extra)
    assert fastmri.decode(fastmri.expand(Row(path), Options())[0], 512).shape == (36, 36, 3)


def test_emulated_single_coil_files_have_a_reconstruction_of_their_own(tmp_path):
    path = save(tmp_path / "x.h5", reconstruction_esc=scene(2, 8, 8), kspace=to_kspace(scene(2, 8, 8)))
    assert fastmri.expand(Row(path), Options(slices=1))[0].key == "reconstruction_esc 1"


def test_one_file_is_a_root(tmp_path):
    path = save(tmp_path / "multicoil_val" / "x.h5", reconstruction_rss=scene(2, 8, 8))
    assert [(row.path, row.split) for row in fastmri.find(path)] == [(path, "dev")]


def test_refusals(tmp_path):
    def refusal(**datasets) -> str:
        path = save(tmp_path / "Doe_Jane.h5", **datasets)
        with pytest.raises(Refused, match="expected .* found") as caught:
            fastmri.decode(fastmri.expand(Row(path), Options())[0], 512)
        assert "Jane" not in str(caught.value) and PATIENT not in str(caught.value)
        return str(caught.value)

    images = scene(2, 8, 8)
    assert "one of reconstruction_rss, reconstruction_esc, kspace, found none" in refusal(mask=np.ones(3))
    assert "found f4 (8, 8)" in refusal(reconstruction_rss=images[0])
    assert "found i8 (2, 8, 8)" in refusal(reconstruction_rss=np.ones((2, 8, 8), np.int64))
    assert "found f4 (2, 8, 8)" in refusal(kspace=images)
    named = np.zeros((2, 8, 8), [("Jane Doe", "f4")])
    assert "found a compound type (2, 8, 8)" in refusal(reconstruction_rss=named)
    assert "patient_id" in refusal(reconstruction_rss=images, attributes={"acquisition": "AXT2", "name": "Jane"})
    assert "finite" in refusal(reconstruction_rss=np.full((1, 4, 4), np.nan, np.float32))
    (tmp_path / "Doe_Jane.h5").write_bytes(b"Jane" * 100)
    with pytest.raises(Refused, match="HDF5 file, found OSError"):
        fastmri.expand(Row(str(tmp_path / "Doe_Jane.h5")), Options())


def test_a_file_shows_its_own_numbers_only(tmp_path):
    """Links and external storage could show the bytes of any other file as an image."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones((1, 8, 8), "<f4").tobytes())
    other = save(tmp_path / "other.h5", reconstruction_rss=scene(1, 8, 8))
    path = tmp_path / "x.h5"
    for trick in ("external link", "soft link", "virtual", "external storage"):
        with h5py.File(path, "w") as file:
            file.attrs["patient_id"] = PATIENT
            if trick == "external link":
                file["reconstruction_rss"] = h5py.ExternalLink(other, "/reconstruction_rss")
            elif trick == "soft link":
                file["reconstruction_rss"] = h5py.SoftLink("/elsewhere")
            elif trick == "virtual":
                layout = h5py.VirtualLayout((1, 8, 8), "<f4")
                layout[:] = h5py.VirtualSource(other, "reconstruction_rss", (1, 8, 8))
                file.create_virtual_dataset("reconstruction_rss", layout)
            else:
                file.create_dataset("reconstruction_rss", (1, 8, 8), "<f4", external=[(str(secret), 0, 256)])
        with pytest.raises(Refused, match="expected .* found"):
            fastmri.expand(Row(str(path)), Options())


@pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
def test_real_kspace_of_eight_coils(tmp_path):
    kspace = np.load(REALDATA / "brain_mri" / "sigpy_brain_8ch_ksp.npy")
    path = save(tmp_path / "x.h5", kspace=kspace[None])
    pixels = fastmri.decode(fastmri.expand(Row(path), Options())[0], 512)[..., 0]
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2))), (1, 2))
    direct = np.sqrt((np.abs(coils) ** 2).sum(axis=0))[25:205]
    assert pixels.shape == (180, 180) and np.abs(pixels - expected(direct)).max() <= 1
    assert pixels[60:120, 60:120].mean() > 3 * pixels[:10, :10].mean()  # a head in air
