"""From a photo or a drawing of one digit to an image like MNIST's, which is what a network trained on MNIST can read.

As MNIST was made (LeCun, Cortes, Burges: the MNIST database): the ink alone, white on black, scaled to fit 20×20 pixels
with its sides in proportion and soft edges, and placed in 28×28 with its centre of mass in the middle.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

SIDE, BOX = 28, 20  # pixels of the result, and of the box that the ink has to fit
LARGEST = 256  # pixels of the longer side while looking for the ink
MAX_BYTES, MAX_PIXELS = 50_000_000, 100_000_000  # what is opened at all
FAINT = 0.12  # contrast between ink and paper, of 1, below which there is nothing to see
WIDEST = 1.8  # width of a digit in heights, at most
FULL = 0.5  # share of the image that is ink, above which it is no writing
RAGGED = 0.1  # share of the image that changes when every pixel follows its neighbours: that is texture, not strokes
SPECK = 0.03  # share of the largest stroke's pixels, below which something is dirt
SHEET = 0.4  # share of a photo that a sheet of paper fills, at least, to be cut out of it
DARK = 0.6  # brightness of a table in that of the sheet on it, at most; a shadow is brighter
THIN = 1.6  # pixels of the box, below which a stroke is thickened: a pen is thinner than MNIST's pencils


class DigitError(ValueError):
    """An image in which no single digit can be found; the message says why."""


def read_image(source: str | Path | bytes) -> Image.Image:
    """Open an image file, by its path or its bytes, the right way up.

    Raises DigitError for what is no image, is cut off, or is too large to be opened safely, and OSError as the file
    system does.
    """
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            source = file.read(MAX_BYTES + 1)
    if len(source) > MAX_BYTES:
        raise DigitError(f"the file is larger than {MAX_BYTES // 10**6} MB")
    if not source:
        raise DigitError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a limit of our own follows
            image = Image.open(io.BytesIO(source))
        if image.width * image.height > MAX_PIXELS:
            raise DigitError(f"the image has {image.width:,} × {image.height:,} pixels: too many to open safely")
        image.draft("L", (4 * LARGEST, 4 * LARGEST))  # a JPEG photo need not be decoded at full size
        image.load()
    except UnidentifiedImageError:
        raise DigitError("this is no image, or of a kind that is not known") from None
    except Image.DecompressionBombError:
        raise DigitError("the image has too many pixels to open safely") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DigitError):
            raise
        raise DigitError(f"the image is damaged or cut off ({error})") from None
    return ImageOps.exif_transpose(image)


def prepare(image: Image.Image) -> Tensor:
    """A digit as MNIST would show it: uint8 (28, 28), white on black.

    Colour or grey, dark on light or light on dark, on a transparent background, of any size. Raises DigitError where
    there is no ink, nothing but ink, or more than one digit.
    """
    ink = find_ink(cut_out_sheet(to_grey(image)))
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    size = [max(1, round(side * scale)) for side in reversed(ink.shape)]
    small = np.asarray(
        Image.fromarray(ink).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    )
    small = np.clip(small / small.max(), 0, 1)
    canvas = np.zeros((3 * SIDE, 3 * SIDE))
    centre = ndimage.center_of_mass(small)
    top, left = (round(1.5 * SIDE - 0.5 - middle) for middle in centre)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return torch.from_numpy((canvas[SIDE : 2 * SIDE, SIDE : 2 * SIDE] * 255).round().astype(np.uint8))


def to_grey(image: Image.Image) -> np.ndarray:
    """Brightness from 0 to 1, float32, the longer side at most LARGEST; what is transparent contrasts with the rest."""
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more
        values = np.asarray(image, dtype=np.float32)
        low, high = values.min(), values.max()
        image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
    image = image.convert("L" if image.mode in ("1", "L") and "transparency" not in image.info else "RGBA")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    if image.mode == "L":
        return np.asarray(image, dtype=np.float32) / 255
    bands = np.asarray(image, dtype=np.float32) / 255
    grey, opacity = np.asarray(image.convert("RGB").convert("L"), dtype=np.float32) / 255, bands[..., 3]
    if opacity.min() > 0.99:
        return _clearest(grey, *np.moveaxis(bands[..., :3], -1, 0))
    visible = (grey * opacity).sum() / max(opacity.sum(), 1e-9)
    return grey * opacity + (1 - opacity) * (0.0 if visible > 0.5 else 1.0)


def _clearest(grey: np.ndarray, *bands: np.ndarray) -> np.ndarray:
    """The grey image, or the colour band that shows far more: red on green may be the same grey."""
    contrasts = [np.ptp(np.percentile(band, (1, 99))) for band in (grey, *bands)]
    best = int(np.argmax(contrasts[1:]))
    return bands[best] if contrasts[1 + best] > 2 * contrasts[0] else grey


def cut_out_sheet(grey: np.ndarray) -> np.ndarray:
    """The sheet of paper on a darker table, of brightness (H, W); all of it where there is no such thing.

    The sheet is the largest region brighter than some level, and nearly a rectangle; the table lines a whole side. A
    slightly higher level finds the same sheet, for its edge is sharp: a shadow gets gradually darker.
    """
    if min(grey.shape) < 2 * SIDE:
        return grey  # no photo: hardly more than the digit itself
    step = FAINT / 2
    before = None
    for level in np.arange(grey.min() + step, grey.max(), step):
        bright = grey > level
        labels, _ = ndimage.label(bright)
        sheet = labels == np.bincount(labels[bright]).argmax()
        rows, columns = (np.flatnonzero(sheet.any(axis)) for axis in (1, 0))
        place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        if (
            before is not None
            and before.sum() < 1.02 * sheet.sum()
            and sheet.sum() > max(0.8 * sheet[place].size, SHEET * grey.size)
            and not all(side.any() for side in (bright[0], bright[-1], bright[:, 0], bright[:, -1]))
            and np.median(grey[~bright]) < DARK * np.median(grey[sheet])
        ):
            rim = 1 + max(grey.shape) // 50
            return grey[place][rim:-rim, rim:-rim]
        before = sheet
    return grey


def find_ink(grey: np.ndarray) -> np.ndarray:
    """How much ink lies on each pixel, float32 from 0 to 1, of brightness (H, W).

    Strokes thinner than MNIST's are widened, and a margin may be added for that. Raises DigitError as `prepare` does.
    """
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    darkness = 1 - grey if np.median(border) > 0.5 * (grey.min() + grey.max()) else grey
    # Paper is not equally bright everywhere: what is left when everything narrower than a third of the image is
    # taken away is its brightness. It is smoothed upwards only, or the edge of a shadow would look like a stroke.
    width = max(3, max(grey.shape) // 3)
    paper = ndimage.grey_opening(np.pad(darkness, width, mode="edge"), (width, width))
    paper = np.maximum(paper, ndimage.gaussian_filter(paper, width / 4))
    contrast = np.clip(darkness - paper[width:-width, width:-width], 0, None)
    if contrast.max() < FAINT:
        raise DigitError("there is no ink to be seen: the image is empty, or one colour all over")
    threshold = _otsu(contrast)
    mask = contrast > threshold
    ragged = (mask != ndimage.median_filter(mask, 3)).mean()
    if mask.mean() > FULL or ragged > RAGGED:
        raise DigitError("there is ink nearly everywhere: no digit can be told from its background")
    mask = _without_specks(mask)
    _refuse_several(mask)
    full = np.percentile(contrast[mask], 75)
    ink = np.clip((contrast - threshold / 2) / max(full - threshold / 2, 1e-6), 0, 1)
    ink *= ndimage.binary_dilation(mask, iterations=2)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    stroke = 4 * ndimage.distance_transform_edt(mask)[mask].mean() * BOX / height  # a bar's mean distance is a quarter
    if stroke < THIN:
        grow = max(1, round((THIN - stroke) / 2 * height / BOX))
        ink = ndimage.grey_dilation(np.pad(ink, grow), footprint=_disc(grow))
    return ink.astype(np.float32)


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two classes best (Otsu, 1979)."""
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between[:-1])])


def _without_specks(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum_labels(mask, labels, np.arange(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(sizes >= SPECK * sizes.max()))


def _refuse_several(mask: np.ndarray) -> None:
    """DigitError for what is wider than a digit, and for several things that are each about as large as the whole."""
    height, width = (int(np.ptp(np.flatnonzero(mask.any(axis)))) + 1 for axis in (1, 0))
    if width > WIDEST * height:
        raise DigitError("what is written is wider than a digit: give each digit an image of its own")
    beside = [size for size in _parts(mask) if size[0] > 0.6 * height]
    stacked = [size for size in _parts(mask.T) if size[0] > 0.4 * width and size[1] > 0.3 * height]
    if len(beside) > 1 or (len(stacked) > 1 and height > 1.8 * width):
        raise DigitError("there seem to be several digits: give each an image of its own")


def _parts(mask: np.ndarray) -> list[tuple[int, int]]:
    """Height and width of the things that stand side by side with nothing between them."""
    runs, count = ndimage.label(mask.any(0))
    parts = (mask[:, runs == run] for run in range(1, count + 1))
    return [(int(np.ptp(np.flatnonzero(part.any(1)))) + 1, part.shape[1]) for part in parts]


def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 0.5
