"""Real clean images as the world's anatomy: found by folder name, read, cropped and turned a little.

That the images are clean is the user's promise; nothing here can check it. A patient leaves a file only as a hash;
it is a pseudonym, since the salt is the world's seed. The names of files that could not be used are in world.json, for
the user to find them: a folder or archive that is named after a patient is to be renamed first.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from medq_ray.dicom import read_frame, read_header
from medq_ray.images import MODALITY_WORDS, modality_of, read_image
from medq_ray.synthetic.phantoms import GREY

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PER_MODALITY = 2000
"""More files than this add little; they are not opened. Our choice."""
BLANK = 0.02
"""Standard deviation of grey values below which there is nothing to degrade. Our choice."""


@dataclass(frozen=True)
class BaseImage:
    """One real image: where it lies below the base folder ('file' or 'archive:member') and whose it is."""

    modality: str
    file: str
    patient: str


def subject_of(path: Path, root: Path) -> str:
    """Whose picture it is: its folder below the first that names a modality, else the folders above that one, else
    its stem. Where this is wrong it joins patients rather than tearing one apart."""
    *folders, name = path.relative_to(root).parts
    first = next((i for i, folder in enumerate(folders) if modality_of(root / folder / name, root / folder)), -1)
    above, below = folders[: max(first, 0)], folders[first + 1 :]
    return below[0] if below else "/".join(above) or Path(name).stem


def salted(salt: str, identity: str) -> str:
    """'p' and 16 hex digits: a patient's key."""
    return "p" + hashlib.sha256(f"{salt}\0{identity}".encode()).hexdigest()[:16]


def _read_dicom(data: bytes, modality: str) -> tuple[np.ndarray, str]:
    """(uint8 (H, W, 3), patient id or '') of a single-frame grey DICOM file. Raises ValueError on any other."""
    source = io.BytesIO(data)
    header = read_header(source)
    if header.frames != 1 or header.channels != 1:
        raise ValueError(f"expected one frame and channel, found {header.frames} and {header.channels}")
    return read_frame(source, 0, modality), header.patient or header.study


def _read_picture(path: Path, modality: str) -> np.ndarray:
    with Image.open(path) as image:
        pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise ValueError(f"{pages} pages: a stack or a mask")
    pixels = read_image(path)
    if modality in GREY:
        grey = (pixels.astype(np.float32).mean(axis=2) + 0.5).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    return pixels


def read(root: Path, file: str, modality: str) -> tuple[np.ndarray, str]:
    """(uint8 (H, W, 3), patient id or '') of a base image. Raises ValueError saying why it cannot be used."""
    archive, _, member = file.partition(":")
    path = root / archive
    try:
        if member:
            with zipfile.ZipFile(path) as opened:
                pixels, patient = _read_dicom(opened.read(member), modality)
        elif path.suffix.lower() in PICTURES:
            pixels, patient = _read_picture(path, modality), ""
        else:
            pixels, patient = _read_dicom(path.read_bytes(), modality)
    except (OSError, zipfile.BadZipFile, KeyError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if min(pixels.shape[:2]) < 32 or pixels.mean(axis=2).std() < 255 * BLANK:
        raise ValueError("too small or nearly blank")
    return pixels, patient


def _members(path: Path) -> list[str]:
    """DICOM members of an archive, by name."""
    try:
        with zipfile.ZipFile(path) as opened:
            names = [info.filename for info in opened.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot be read ({error})") from error
    return sorted(name for name in names if Path(name).suffix.lower() in ("", ".dcm", ".ima"))


def find_base(root: Path, salt: str) -> tuple[list[BaseImage], list[dict[str, str]]]:
    """(images that can be used, [{'file', 'reason'}] of all others) below `root`, sorted by file.

    Each candidate is decoded once here, so that a bad file is reported now and not in the middle of a world. The
    patient is the file's PatientID; pictures have none, so `subject_of` their path. Raises ValueError when the folder
    is missing or holds nothing that can be used.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    root = root.resolve()
    found, skipped, counts = [], [], dict.fromkeys(MODALITY_WORDS.values(), 0)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name, modality, suffix = path.relative_to(root).as_posix(), modality_of(path, root), path.suffix.lower()
        try:
            if not modality:
                raise ValueError("no folder of its path names a modality")
            if suffix not in (*PICTURES, ".dcm", ".zip"):
                raise ValueError(f"not read: files of type {suffix or '(none)'}")
            files = [f"{name}:{member}" for member in _members(path)] if suffix == ".zip" else [name]
        except ValueError as error:
            skipped.append({"file": name, "reason": str(error)})
            continue
        for file in files:
            try:
                if counts[modality] >= MAX_PER_MODALITY:
                    raise ValueError(f"not needed: {MAX_PER_MODALITY} images of its modality are enough")
                _, patient = read(root, file, modality)
            except ValueError as error:
                skipped.append({"file": file, "reason": str(error)})
                continue
            counts[modality] += 1
            found.append(BaseImage(modality, file, salted(salt, patient or subject_of(path, root))))
    if not found:
        raise ValueError(f"{root}: no usable image; put them into folders named {', '.join(sorted(counts))}")
    return found, skipped


@lru_cache(maxsize=64)
def _work_copy(root: Path, file: str, modality: str, size: int) -> Image.Image:
    """The centre square at twice `size`, with a mirrored border of an eighth of it for turning."""
    pixels, _ = read(root, file, modality)
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    work = np.asarray(square.resize((2 * size, 2 * size), Image.Resampling.LANCZOS))
    border = size // 4
    return Image.fromarray(np.pad(work, ((border, border), (border, border), (0, 0)), mode="reflect"))


def crop(root: Path, image: BaseImage, rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 (size, size, 3) in [0, 1]: the image mildly zoomed (0.85 to 1 of the field), shifted, turned, flipped.

    Histology has no upright, so it is turned by any quarter; fundus flips are the other eye, endoscopy any way up.
    """
    work = _work_copy(root, image.file, image.modality, size)
    side, middle = 2 * size, work.width / 2
    zoom, angle = rng.uniform(0.85, 1.0), np.radians(rng.uniform(-6, 6))
    shift = rng.uniform(-1, 1, 2) * (1 - zoom) * size
    quarters = int(rng.integers(4)) if image.modality in ("histopathology", "endoscopy") else 0
    flip = bool(rng.random() < 0.5) and image.modality != "ct"  # a flipped trunk has its liver on the wrong side
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    dx = middle + shift[0] - (cos - sin) * size
    dy = middle + shift[1] - (sin + cos) * size
    affine = (cos, -sin, dx, sin, cos, dy)
    turned = work.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    small = np.rot90(np.asarray(turned.reduce(2)), quarters)
    small = small[:, ::-1] if flip else small
    return np.ascontiguousarray(small, np.float32) * np.float32(1 / 255)
