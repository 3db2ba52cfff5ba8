"""Pictures in any folder are read as they are; of a slide only the thumbnail, never the paper label."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq_ray.images import Refused
from medq_ray.pool.sources import Options, images, rows_of
from medq_ray.pool.sources._files import read_picture

REALDATA = Path(__file__).parents[3].parent / "shared" / "realdata"
real = pytest.mark.skipif(not REALDATA.is_dir(), reason="shared/realdata is not beside this checkout")
MRI = Options(modality="mri")


def pixels_of(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def page(width: int, height: int, colour: int, description: str, subfile: int = 0, compression: int = 1) -> dict:
    """One grey TIFF page; above 1,000 pixels wide it is tiled, and its tile is not to be read."""
    tags = {254: subfile, 256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    tags |= {322: 256, 323: 256, 324: 8, 325: 1} if width > 1000 else {273: 0, 278: height, 279: width * height}
    return {"tags": tags, "text": description.encode() + b"\0", "data": bytes([colour]) * min(width * height, 10**6)}


def write_slide(path: Path, pages: list[dict]) -> Path:
    """A TIFF file written by hand: an Aperio slide's pages, of sizes that no test could hold in memory."""
    out = bytearray(b"II*\0" + struct.pack("<I", 0))
    link = 4
    for item in pages:
        data, text = len(out), len(out) + len(item["data"])
        out += item["data"] + item["text"]
        out += b"\0" * (len(out) % 2)
        struct.pack_into("<I", out, link, len(out))
        tags = {code: (4, 1, value) for code, value in item["tags"].items()}
        if 273 in tags:
            tags[273] = (4, 1, data)
        if len(item["text"]) > 4:
            tags[270] = (2, len(item["text"]), text)
        out += struct.pack("<H", len(tags))
        for code in sorted(tags):
            out += struct.pack("<HHII", code, *tags[code])
        link = len(out)
        out += struct.pack("<I", 0)
    path.write_bytes(out)
    return path


FULL = page(100_000, 90_000, 255, "Aperio Image Library v11\r\n100000x90000 (256x256) J2K/KDU", compression=33005)
LABEL = page(40, 44, 30, "Aperio Image Library v11\nlabel 40x44", subfile=1)
MACRO = page(90, 30, 60, "Aperio Image Library v11\nmacro 90x30", subfile=9)
THUMBNAIL = page(50, 45, 200, "Aperio Image Library v11\n100000x90000 -> 50x45 - ")


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "tiff", "webp", "PNG"])
def test_pictures_are_read_without_loss_and_get_the_modality_of_their_folder(tmp_path, ending):
    folder = tmp_path / "Brain_MRI" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(pixels_of(1)).save(folder / f"x.{ending}", lossless=True)
    (folder / "notes.txt").write_text("no picture")
    [row] = [row for found in images.find(tmp_path) for row in rows_of("images", found, Options())]
    assert (row.modality, row.patient, row.session, row.split, row.labels, row.key) == ("mri", "", "", "", {}, "")
    np.testing.assert_array_equal(images.decode(row, 512), pixels_of(1))


def test_a_picture_without_a_modality_is_refused_and_the_users_choice_goes_before_the_folders(tmp_path):
    (tmp_path / "ct").mkdir()
    Image.fromarray(pixels_of(1)).save(tmp_path / "ct" / "x.png")
    Image.fromarray(pixels_of(2)).save(tmp_path / "y.png")
    outside, inside = images.find(tmp_path)
    assert [rows_of("images", row, MRI)[0].modality for row in (inside, outside)] == ["mri", "mri"]
    assert rows_of("images", inside, Options())[0].modality == "ct"
    with pytest.raises(Refused, match="say --modality"):
        rows_of("images", outside, Options())


def test_deep_animated_and_stacked_pictures_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.fromarray(pixels_of(seed)) for seed in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    found = {Path(row.path).name: row for row in images.find(tmp_path)}
    for name, reason in {"deep.png": "8 bits", "moving.webp": "one picture", "stack.tif": "3 pages",
                         "torn.png": "can be decoded"}.items():  # fmt: skip
        with pytest.raises(Refused, match=reason) as refused:
            images.decode(found[name], 512)
        assert name not in str(refused.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_camera_held_on_its_side_gives_upright_pictures(tmp_path, ending):
    upright = np.zeros((1200, 1600, 3), np.uint8)
    upright[:300], upright[:, :400, 1] = 250, 250
    held = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, stored in held.items():
        exif = Image.Exif()
        exif[274] = orientation
        picture = Image.fromarray(np.ascontiguousarray(stored))
        picture.save(tmp_path / f"x.{ending}", exif=exif, **({"lossless": True} if ending == "webp" else {}))
        pixels = read_picture(tmp_path / f"x.{ending}", 512)
        factor = 1200 // len(pixels)
        assert factor == (2 if ending == "jpg" else 1)  # a JPEG is still decoded at a part of its size
        assert pixels.shape == (1200 // factor, 1600 // factor, 3)
        assert np.abs(pixels.astype(int) - upright[::factor, ::factor]).mean() < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x" * 40])
def test_damaged_orientation_does_not_cost_the_picture(tmp_path, exif):
    for ending in ("jpg", "png"):
        Image.fromarray(pixels_of(1)).save(tmp_path / f"x.{ending}", exif=exif)
        assert read_picture(tmp_path / f"x.{ending}").shape == (24, 32, 3)


def test_one_picture_is_a_root(tmp_path):
    (tmp_path / "ct").mkdir()
    Image.fromarray(pixels_of(1)).save(tmp_path / "ct" / "x.png")
    assert [(row.path, row.modality) for row in images.find(tmp_path / "ct" / "x.png")] == [
        (str(tmp_path / "ct" / "x.png"), "ct")
    ]


def test_a_folder_that_cannot_be_read_is_told_and_does_not_look_empty(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels_of(1)).save(tmp_path / name / "x.png")
    real_scandir = os.scandir

    def scandir(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return real_scandir(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        list(images.find(tmp_path))


def test_links_to_files_are_taken_and_links_to_folders_are_not_followed(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "out").mkdir()
    Image.fromarray(pixels_of(1)).save(tmp_path / "out" / "x.png")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "out")
    (tmp_path / "root" / "y.png").symlink_to(tmp_path / "out" / "x.png")
    assert [Path(row.path).name for row in images.find(tmp_path / "root")] == ["y.png"]


def test_a_root_without_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        list(images.find(tmp_path))
    with pytest.raises(ValueError, match="no such file or folder"):
        list(images.find(tmp_path / "absent"))


@pytest.mark.parametrize("order", [[FULL, THUMBNAIL, LABEL, MACRO], [FULL, LABEL, MACRO, THUMBNAIL]])
def test_of_a_slide_the_thumbnail_is_taken_wherever_it_stands_and_the_full_resolution_never(tmp_path, order):
    path = write_slide(tmp_path / "case.svs", order)
    [row] = rows_of("images", next(images.find(tmp_path)), Options(modality="histopathology"))
    assert (row.path, row.modality) == (str(path), "histopathology")
    np.testing.assert_array_equal(images.decode(row, 512), np.full((45, 50, 3), 200, np.uint8))


@pytest.mark.parametrize(
    "page_one",
    [
        LABEL,
        MACRO,
        page(40, 44, 30, ""),
        page(40, 44, 30, "LABEL of case 7"),
        page(90, 30, 30, "Macro 90x30"),
        page(40, 44, 30, "a scan of the glass", subfile=1),
        page(2000, 1800, 30, "100000x90000 (256x256) -> a lower level"),
    ],
    ids=["label", "macro", "no description", "label in capitals", "macro alone", "label by its type", "tiled"],
)
def test_a_page_that_could_be_the_label_is_never_the_thumbnail(tmp_path, page_one):
    write_slide(tmp_path / "case.svs", [FULL, page_one])
    row = next(images.find(tmp_path))
    for refuse in (lambda: rows_of("images", row, MRI), lambda: images.decode(rows_of("images", row, MRI)[0], 512)):
        with pytest.raises(Refused, match="thumbnail"):
            refuse()


def test_a_slide_whose_pages_changed_since_it_was_listed_does_not_show_its_label(tmp_path):
    path = write_slide(tmp_path / "case.svs", [FULL, THUMBNAIL])
    [row] = rows_of("images", next(images.find(tmp_path)), MRI)
    write_slide(path, [FULL, LABEL])
    with pytest.raises(Refused, match="thumbnail"):
        images.decode(row, 512)


def test_a_gigantic_thumbnail_is_refused_before_it_is_decoded(tmp_path):
    huge = page(900, 900, 1, "100000x90000 -> 900x90000")
    huge["tags"][257] = 900_000
    write_slide(tmp_path / "case.svs", [FULL, huge])
    [row] = rows_of("images", next(images.find(tmp_path)), MRI)
    with pytest.raises(Refused, match="900x900000"):
        images.decode(row, 512)


@real
def test_a_real_slide_gives_its_thumbnail():
    rows = {Path(row.path).suffix: row for row in images.find(REALDATA / "histopathology")}
    [row] = rows_of("images", rows[".svs"], Options())
    pixels = images.decode(row, 512)
    assert (row.modality, pixels.shape) == ("histopathology", (768, 574, 3))
    assert 150 < pixels.mean() < 250 and pixels.std() > 20  # stained tissue on white


@real
def test_real_pictures_of_four_modalities_come_with_their_modality():
    found = {Path(row.path).name: row for row in images.find(REALDATA)}
    expected = {
        "skimage_retina.jpg": ("fundus", (1411, 1411, 3)),
        "skimage_microaneurysms.png": ("fundus", (102, 102, 3)),
        "antspy_r16slice.jpg": ("mri", (256, 256, 3)),
        "histolab_no-tissue-red-pen.png": ("histopathology", (512, 512, 3)),
        "ead2019_00003.jpg": ("endoscopy", (512, 512, 3)),
    }
    for name, (modality, shape) in expected.items():
        [row] = rows_of("images", found[name], Options())
        pixels = images.decode(row, 0)
        assert (row.modality, pixels.shape) == (modality, shape)
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(row.path).convert("RGB")))
    retina = images.decode(found["skimage_retina.jpg"], 512)
    assert 512 <= max(retina.shape) < 1411  # decoded at half its size
