"""What two images are compared by: a perceptual hash for content, a thumbnail for what stands where, two measures
for quality.

The hash alone hardly sees blur or noise, which are what this project is about: a clean scan and its degraded twin
differ by 0 to 6 bits of 64, the next slice of a volume by 2 to 4. The thumbnail sees the next slice, sharpness and
noise see the twin (`pool.dedup`).
"""

import numpy as np

THUMB_SIDE = 16
SHARPNESS_SIDE, NOISE_SIDE = 192, 128
"""Longer sides at which quality is measured; smaller images are measured as they are. At 256, a JPEG of quality 75 or
85 moves the sharpness of most 256-pixel images by more than 10 % and their noise by half; at 192 and 128 nearly all
stay within the limits. At 160 sharpness misses some severely blurred twins of 512 pixels (`benchmarks.duplicates`)."""


def phash(pixels: np.ndarray) -> int:
    """DCT perceptual hash of 64 bits (imagehash.phash; Zauner 2010, the paper's [27]).

    pixels: uint8 (H, W, 3), or (H, W) of grey. Returns an int below 2**64, most significant bit first in row order.
    Bit for bit that of imagehash, whose time is Pillow's: a DCT of our own saves 15 of 1,170 us at 512 pixels.
    """
    import imagehash
    from PIL import Image

    bits = imagehash.phash(Image.fromarray(pixels)).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def thumb(pixels: np.ndarray) -> bytes:
    """Grey thumbnail of 16 x 16 pixels, 256 bytes in row order (column `thumb`).

    Pillow's Hamming filter: with plain area averages, copies of other sizes differ by up to 9 grey levels, since
    pixels fall into one cell or the next as a whole; with it by less than one. pixels: uint8 (H, W, 3).
    """
    from PIL import Image

    side = (THUMB_SIDE, THUMB_SIDE)
    return Image.fromarray(pixels).convert("L").resize(side, Image.Resampling.HAMMING).tobytes()


def quality(pixels: np.ndarray) -> tuple[float, float]:
    """(sharpness, noise) in grey levels of the luminance, at SHARPNESS_SIDE and NOISE_SIDE. Our choice of measures.

    Sharpness is the standard deviation of the 4-neighbour Laplacian. Noise is Immerkaer's high-pass (1, -2, 1) x
    (1, -2, 1), whose response to white noise of deviation s has deviation 6 s, estimated robustly by the median
    absolute deviation over responses that are not zero: flat background, half of many scans, says nothing.
    pixels: uint8 (H, W, 3). Images with a side below 3 pixels, also once reduced, give 0.
    """
    return sharpness(luminance(reduced(pixels, SHARPNESS_SIDE))), noise(luminance(reduced(pixels, NOISE_SIDE)))


def reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image with a longer side of at most `side` pixels, in the same proportions. uint8 (H, W, 3) in and out."""
    from PIL import Image

    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return pixels
    size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.HAMMING))


def luminance(pixels: np.ndarray) -> np.ndarray:
    """int32 (H, W) in 1/1000 grey level, so that flat regions answer a filter with exactly zero."""
    return pixels.astype(np.int32) @ np.array([299, 587, 114], np.int32)


def sharpness(light: np.ndarray) -> float:
    """Of a `luminance`."""
    if min(light.shape) < 3:
        return 0.0
    laplacian = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:] - 4 * light[1:-1, 1:-1]
    return float(laplacian.std()) / 1000


def noise(light: np.ndarray) -> float:
    """Of a `luminance`."""
    if min(light.shape) < 3:
        return 0.0
    rows = light[:-2] - 2 * light[1:-1] + light[2:]
    response = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    response = response[response > 0]
    return float(np.median(response)) / 0.6745 / 6 / 1000 if response.size else 0.0
