"""What may leave this machine: pixels without metadata, and no picture that a name may be written in.

Floor 1. Terms of sources are another matter (`pool.terms`). A picture is looked at before it goes to an endpoint that
is not this machine; one with what looks like a line of text is held for the user.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from medq_ray.images import encode_png, pixel_digest, read_image

STROKE = 9
"""Pixels across which a stroke of a letter is thinner: what an opening of this size takes away."""
CONTRAST = 60
"""Grey levels that a letter stands out by: overlays are drawn in white or black."""
LETTERS = 4
"""Letters in a row that count as text."""
LARGE = 1_200
"""Shorter side above which a picture is also looked at half as large: strokes of tall letters are thinner than STROKE
then."""
SMALL = 600
"""Shorter side up to which a picture is also looked at twice as large: letters of 8 pixels touch one another."""
CROWD = 20_000
"""Spots of a texture, among which nobody looks for letters."""
CLEARED, HELD = "cleared.txt", "held"


def is_external(url: str) -> bool:
    """Whether an endpoint is another machine: anything but loopback."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def has_text(pixels: np.ndarray) -> bool:
    """Whether uint8 (H, W, 3) has what looks like a line of LETTERS letters: spots that stand out from what is around
    them, of one height and brightness, on one line, a letter's breadth apart.

    A heuristic of ours. Of names, ids and dates drawn at 9 to 24 pixels into a corner it found all in 57 copies of 19
    real images, and 70 (MRI) to 100 % in 80 synthetic images of each modality at 112 pixels; without text it held 3 of
    the real images, nuclei in two, and at most 4 % of the synthetic ones; at 224 pixels it holds those with severe
    noise, whose grains line up. Handwriting, single letters, text that does not run from left to right and text of
    little contrast in grey (blue on black, dark grey) pass.
    """
    from PIL import Image

    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    halved = Image.fromarray(grey)
    while min(halved.size) > LARGE:
        halved = halved.resize((halved.width // 2, halved.height // 2), Image.Resampling.BOX)
        if longest_line(np.asarray(halved)) >= LETTERS:
            return True
    if longest_line(grey) >= LETTERS:
        return True
    if min(grey.shape) > SMALL:
        return False
    double = Image.fromarray(grey).resize((2 * grey.shape[1], 2 * grey.shape[0]), Image.Resampling.BICUBIC)
    return longest_line(np.asarray(double)) >= LETTERS


def longest_line(grey: np.ndarray) -> int:
    """Letters of the longest line in uint8 (H, W), bright on dark or dark on bright."""
    from scipy import ndimage

    longest = 0
    for picture in (grey, 255 - grey):
        stands_out = picture.astype(np.int16) - ndimage.grey_opening(picture, (STROKE, STROKE)) > CONTRAST
        labels, count = ndimage.label(stands_out, np.ones((3, 3)))
        if 0 < count <= CROWD:
            longest = max(longest, line_of(spots(picture, labels)))
    return longest


def spots(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float (n, 5) of the spots that could be letters, from left to right: left, right, foot, height, brightness."""
    from scipy import ndimage

    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (5 <= height <= 60 and width <= 2 * height):
            continue
        own = labels[rows, columns] == number
        if 0.15 <= own.mean() <= 0.95:
            brightness = np.quantile(picture[rows, columns][own], 0.9)
            found.append((columns.start, columns.stop, rows.stop, height, brightness))
    return np.array(sorted(found), float).reshape(-1, 5)


def line_of(letters: np.ndarray) -> int:
    """Most letters in a row, each a little right of the one before, on its line, about as high and as bright."""
    best = np.ones(len(letters), int)
    for i, (left, _, foot, height, brightness) in enumerate(letters):
        before = letters[:i]
        tall = np.maximum(before[:, 3], height)
        gap = left - before[:, 1]
        fits = (gap >= -1) & (gap <= 1.28 * tall) & (np.abs(before[:, 2] - foot) <= np.maximum(1.5, 0.18 * tall))
        fits &= (np.minimum(before[:, 3], height) >= 0.55 * tall) & (np.abs(before[:, 4] - brightness) <= 40)
        if fits.any():
            best[i] = 1 + best[:i][fits].max()
    return int(best.max(initial=0))


@dataclass
class Gate:
    """Holds back pictures with text of one run. `root`/cleared.txt names those that a person has looked at and lets go,
    one id a line; what is held lies in `root`/held/ID.png."""

    root: Path

    def __post_init__(self) -> None:
        self.seen: dict[str, str] = {}
        """uri -> the image's id if it has text, else ''."""

    def held(self, uris: Iterable[str]) -> dict[str, str]:
        """uri -> why it may not leave; those that may, and those that cannot be read at all, are not in it."""
        path = self.root / CLEARED
        cleared = set(path.read_text().split()) if path.exists() else set()
        found = {}
        for uri in sorted(set(uris)):
            if uri not in self.seen:
                self.seen[uri] = self._look(uri)
            name = self.seen[uri]
            if name and name not in cleared:
                hint = f"look at {self.root / HELD / name}.png, and if it may leave put {name} into {path}"
                found[uri] = f"held back: text seems to be written in it; {hint}"
        return found

    def _look(self, uri: str) -> str:
        """The image's id if it has text, else ''."""
        try:
            pixels = read_image(uri)
        except ValueError:  # whoever sends it says why
            return ""
        if not has_text(pixels):
            return ""
        name = pixel_digest(pixels)
        (self.root / HELD).mkdir(parents=True, exist_ok=True)
        (self.root / HELD / f"{name}.png").write_bytes(encode_png(pixels))
        return name
