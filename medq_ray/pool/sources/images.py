"""Pictures of your own in any folder tree: PNG, JPEG, TIFF, WebP and BMP, and the thumbnails of Aperio slides (.svs).

The modality comes from the names of the folders around a picture (`images.MODALITY_WORDS`) or from the user. Whose it
is, no name says for sure: patient and session stay ''.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL.TiffImagePlugin import COMPRESSION_INFO, TiffImageFile

from medq_ray.images import MAX_PIXELS, Refused, modality_of
from medq_ray.pool.sources import Options, Row, Terms
from medq_ray.pool.sources._files import base, read_picture, walk_ending

TERMS = Terms("not stated", share=False, train=True, note="your own pictures: their terms are for you to know")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".svs")
SLIDE = ".svs"
PAGES = 32
"""Pages of a slide that are looked at; Aperio writes four to ten, the thumbnail second."""
NEW_SUBFILE_TYPE, DESCRIPTION, TILE_WIDTH = 254, 270, 322

# Aperio's own numbers for JPEG 2000. Pillow does not know them and would give up at the full-resolution page of such a
# slide, which is only stepped over here; its thumbnail is a plain JPEG.
COMPRESSION_INFO.update({33003: "aperio_ycc", 33005: "aperio_rgb"})


def find(root: Path) -> Iterator[Row]:
    """Raises ValueError when there is no such folder or no picture below it."""
    for path in walk_ending(root, ENDINGS):
        yield Row(str(path), modality=modality_of(path, base(root)))


def expand(row: Row, options: Options) -> list[Row]:
    if not (row.modality or options.modality):
        raise Refused("no folder of its path names a modality: say --modality")
    if not row.path.lower().endswith(SLIDE):
        return [row]
    with TiffImageFile(row.path) as slide:
        seek_thumbnail(slide)
    return [replace(row, key="thumbnail")]


def decode(row: Row, side: int) -> np.ndarray:
    if not row.key:
        return read_picture(row.path, side)
    with TiffImageFile(row.path) as slide:  # not Image.open, which takes 46,000 x 33,000 pixels for an attack
        seek_thumbnail(slide)
        if slide.width * slide.height > MAX_PIXELS:
            raise Refused(f"expected a thumbnail of at most {MAX_PIXELS} pixels, found {slide.width}x{slide.height}")
        return np.asarray(slide.convert("RGB"))


def seek_thumbnail(slide: TiffImageFile) -> None:
    """Turn an Aperio slide to its thumbnail. Only headers are read.

    Page 0, the full resolution, is never decoded. The other untiled pages are the thumbnail and photographs of the
    glass with its paper label, which may bear a name: a page counts as the thumbnail only if it has a description
    that says neither 'label' nor 'macro' and its subfile type is 0 (the real ones have 1 and 9). Raises Refused if no
    page is one.
    """
    for page in range(1, PAGES):
        try:
            slide.seek(page)
        except EOFError:
            break
        tags = slide.tag_v2
        description = str(tags.get(DESCRIPTION, "")).strip().lower()
        hidden = not description or "label" in description or "macro" in description
        if not hidden and TILE_WIDTH not in tags and tags.get(NEW_SUBFILE_TYPE, 0) == 0:
            return
    raise Refused("expected a slide with a thumbnail page beside label and macro, found none")
