"""Convert a photo or a drawing of one digit to an image like those of MNIST, which a network trained on MNIST can read.

The steps by which MNIST was made (LeCun, Cortes, Burges: the MNIST database): separate the ink from the paper, white on
black; scale it to fit 20×20 pixels, keeping its proportions, with soft edges; centre its mass in 28×28 pixels.
"""

from __future__ import annotations

import io
import threading
import warnings
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from s5.inference.digit_parts import SIDE, DigitError, check_single_digit, inside_of_frame, without_specks
from s5.inference.ruled_paper import border, without_rules

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # others are not opened: EPS, for example, runs a program
SERIES = ("GIF", "PNG", "TIFF", "WEBP")  # may have several images; in a JPEG a second one is a detail of the first
BOX = 20  # pixels: side of the box that the digit is scaled to, in the result of SIDE
WORKING_SIDE = 256  # pixels: images are reduced to this before the ink is searched for
MAX_BYTES, MAX_PIXELS = 50_000_000, 100_000_000  # larger files and images are refused
MIN_CONTRAST = 0.12  # between ink and paper, on a scale from 0 to 1
MAX_INK = 0.5  # share of the image that is ink; more is not writing
MAX_TEXTURE = 0.1  # share of the ink mask that a median filter changes; more is texture, not strokes
MIN_SHARE = 0.2  # height of a digit in a photo with dark corners, relative to the photo
MIN_SHEET = 0.4  # share of a photo that a sheet of paper must fill to be cut out
MAX_TABLE_BRIGHTNESS = 0.6  # relative to the sheet on the table; a shadow is brighter
MIN_STROKE = 1.6  # pixels of the box; thinner strokes are widened, as a pen is thinner than MNIST's pencils


_filters = threading.Lock()  # the filters of warnings are common to all threads


class NoInkError(DigitError):
    """The image is empty."""


def read_image(source: str | Path | bytes) -> Image.Image:
    """Open an image file, a path or its content as bytes, and apply its EXIF rotation.

    Raises DigitError if the content is not an image, is damaged, or is too large to open safely, and OSError if the
    file cannot be read.
    """
    if isinstance(source, str | Path):
        if not str(source):
            raise DigitError("the file name is empty")
        with open(source, "rb") as file:
            source = file.read(MAX_BYTES + 1)
    if len(source) > MAX_BYTES:
        raise DigitError(f"the file is larger than {MAX_BYTES // 10**6} MB")
    if not source:
        raise DigitError("the file is empty")
    try:
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "decompression bomb": MAX_PIXELS is checked below; "Corrupt EXIF data"
            image = Image.open(io.BytesIO(source), formats=FORMATS)
        if not image.width or not image.height:
            raise DigitError("the image has no pixels")
        if image.format in SERIES and getattr(image, "n_frames", 1) > 1:
            raise DigitError(f"the file has {image.n_frames} images: save one of them alone")
        if image.width * image.height > MAX_PIXELS:
            raise DigitError(f"the image has {image.width:,} × {image.height:,} pixels: too many to open safely")
        image.draft(image.mode, (4 * WORKING_SIDE, 4 * WORKING_SIDE))  # a JPEG need not be decoded at full size
        image.load()
    except UnidentifiedImageError:
        raise DigitError("not an image, or of an unknown format: PNG, JPEG, WebP, BMP, GIF and TIFF are read") from None
    except Image.DecompressionBombError:
        raise DigitError("the image has too many pixels to open safely") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DigitError):
            raise
        raise DigitError(f"the image is damaged or cut off ({error})") from None
    try:
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception as error:  # a damaged block raises many different types
        raise DigitError(f"the image's EXIF data are damaged ({error}): save it without them") from None


def prepare(image: Image.Image) -> Tensor:
    """Convert an image of one digit to MNIST's format: uint8 (28, 28), white on black.

    The image may have any size, be in colour or grey, dark on light or light on dark, and transparent. Raises
    DigitError if it shows no ink (NoInkError), ink nearly everywhere, or more than one digit.
    """
    ink = find_ink(cut_out_sheet(to_grey(image)))
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    size = [max(1, round(side * scale)) for side in reversed(ink.shape)]
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = np.asarray(Image.fromarray(ink).resize(size, resampling))
    small = np.clip(small / small.max(), 0, 1)
    canvas = np.zeros((3 * SIDE, 3 * SIDE))
    top, left = (round(1.5 * SIDE - 0.5 - centre) for centre in ndimage.center_of_mass(small))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return torch.from_numpy((canvas[SIDE : 2 * SIDE, SIDE : 2 * SIDE] * 255).round().astype(np.uint8))


def to_grey(image: Image.Image) -> np.ndarray:
    """Brightness, float32 (H, W) from 0 to 1, the longer side at most WORKING_SIDE pixels.

    A transparent background becomes white or black, whichever contrasts more with the visible pixels.
    """
    if not image.width or not image.height:
        raise DigitError("the image has no pixels")
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more per pixel
        image = _eight_bits(np.asarray(image))
    if image.mode in ("1", "L") and "transparency" not in image.info:
        image = image.convert("L")
        image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
        return np.asarray(image, dtype=np.float32) / 255
    image = image.convert("RGB" if image.mode == "RGB" and "transparency" not in image.info else "RGBA")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX, reducing_gap=None)
    if image.mode == "RGB" or image.getextrema()[3][0] == 255:  # opaque
        return np.asarray(_highest_contrast(image.convert("RGB")), dtype=np.float32) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), dtype=np.float32) / 255
    opacity = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
    visible = (grey * opacity).sum() / max(opacity.sum(), 1e-9)
    return grey * opacity + (1 - opacity) * (0.0 if visible > 0.5 else 1.0)


def _eight_bits(values: np.ndarray) -> Image.Image:
    """A grey image of numbers (H, W), by the range that numbers like these have, not by their own range.

    For on a blank sheet their own is only noise. White is the least of 1, 3, 7, 15, … that is not below them; 1 for
    fractions that exceed it slightly; and if there are negative ones, black is as far below 0 as white is above it. A
    few numbers that exceed white, such as a camera's hot pixels, become white.
    """
    if not np.isfinite(values).all():
        raise DigitError("the image has values that are not finite numbers")
    low, high = np.percentile(values, (0.1, 99.9))
    black = 0.0
    if low < -0.1 * high:
        white = max(-low, high)
        black = -white
    elif values.dtype.kind == "f" and high < 1.5:
        white = 1.0
    else:
        white = max(1, 2 ** int(high).bit_length() - 1)
    return Image.fromarray((np.clip((values - black) / (white - black), 0, 1) * 255).astype(np.uint8))


def _highest_contrast(image: Image.Image) -> Image.Image:
    """The colour band with the highest contrast if it is much higher than that of the brightness, else the brightness.

    Red ink on green paper, for example, can have the same brightness.
    """
    grey = image.convert("L")
    contrasts = [_contrast(counts) for counts in np.reshape(grey.histogram() + image.histogram(), (4, 256))]
    best = int(np.argmax(contrasts[1:]))
    return image.getchannel(best) if contrasts[1 + best] > 2 * contrasts[0] else grey


def _contrast(counts: np.ndarray) -> int:
    """The difference of the 1st and the 99th percentile of values from 0 to 255, for their histogram (256,)."""
    shares = np.cumsum(counts) / counts.sum()
    return int(np.searchsorted(shares, 0.99) - np.searchsorted(shares, 0.01))


def cut_out_sheet(grey: np.ndarray) -> np.ndarray:
    """Crop a photo, brightness (H, W), to the sheet of paper on a darker table; return it unchanged if there is none.

    The sheet is the largest region brighter than a threshold; it is nearly a rectangle, and the table fills at least
    one whole side of the photo. The next higher threshold must find the same sheet: its edge is sharp, while a shadow
    gets darker gradually.
    """
    if min(grey.shape) < 2 * SIDE:
        return grey  # too small for a photo of a sheet
    step = MIN_CONTRAST / 2
    levels = np.arange(grey.min() + step, grey.max(), step)
    levels = levels[levels < grey.max()]  # rounding may reach the end
    darkest_side = min(side.max() for side in (grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    for lower, level in pairwise(levels):
        if level < darkest_side:
            continue  # no side is all table
        bright = grey > level
        if bright.sum() <= MIN_SHEET * grey.size:
            break  # and at a higher threshold less is bright
        sheet = _largest_region(bright)
        rows, columns = (np.flatnonzero(sheet.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        if (
            sheet.sum() > max(0.8 * sheet[box].size, MIN_SHEET * grey.size)
            and np.median(grey[~bright]) < MAX_TABLE_BRIGHTNESS * np.median(grey[sheet])
            and _largest_region(grey > lower).sum() < 1.02 * sheet.sum()
        ):
            rim = 1 + max(grey.shape) // 50
            return grey[box][rim:-rim, rim:-rim]
    return grey


def _largest_region(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    return labels == np.bincount(labels[mask]).argmax()


def find_ink(grey: np.ndarray) -> np.ndarray:
    """The amount of ink per pixel, float32 from 0 to 1, for brightness (H, W).

    Strokes thinner than MNIST's are widened; the result then has a margin. Raises DigitError as `prepare` does.
    """
    darkness = 1 - grey if np.median(border(grey)) > 0.5 * (grey.min() + grey.max()) else grey
    contrast = without_rules(np.clip(darkness - _paper(darkness), 0, None))
    if contrast is None:
        raise DigitError("lines of ruled paper cannot be separated from the digit: use blank paper or a darker pen")
    if contrast.max() < MIN_CONTRAST:
        raise NoInkError("no ink found: the image is empty, of a single colour or too pale")
    threshold = _otsu(contrast)
    mask = contrast > threshold
    if mask[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        contrast = _without_dark_corners(contrast, mask)
        threshold = _otsu(contrast)
        mask = contrast > threshold
    texture = (mask != _majority(mask)).mean()
    if mask.mean() > MAX_INK or texture > MAX_TEXTURE:
        raise DigitError("ink nearly everywhere: the digit cannot be separated from its background")
    mask = without_specks(inside_of_frame(mask))
    check_single_digit(mask)
    full = np.percentile(contrast[mask], 75)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    height = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    box = tuple(slice(max(0, places[0] - 3), places[-1] + 4) for places in (rows, columns))  # the rest is paper
    mask, contrast = mask[box], contrast[box]
    ink = np.clip((contrast - threshold / 2) / max(full - threshold / 2, 1e-6), 0, 1)
    ink *= ndimage.binary_dilation(mask, iterations=2)
    distances = ndimage.distance_transform_edt(mask)[mask]  # to the edge: in a bar, a quarter of its width on average
    stroke = 4 * distances.mean() * BOX / height
    if stroke < MIN_STROKE:
        ink = _widened(ink, max(1, round((MIN_STROKE - stroke) / 2 * height / BOX)))
    return ink.astype(np.float32)


def _paper(darkness: np.ndarray) -> np.ndarray:
    """The darkness of the paper under the ink, (H, W); or one number if it is the same everywhere.

    A morphological opening, which removes all that is narrower than a third of the image, estimates it. Smoothing may
    only raise the estimate: otherwise the edge of a shadow would look like a stroke.
    """
    width = max(3, max(darkness.shape) // 3)
    if _is_uniform(darkness, width // 2):
        return darkness.min()
    paper = ndimage.grey_opening(_padded(darkness, width), (width, width))
    rows, columns = (_smoothing(side, width) for side in paper.shape)
    smooth = (rows @ paper.astype(float)).astype(np.float32) @ columns.T
    return np.maximum(paper[width:-width, width:-width], smooth.astype(np.float32))


def _padded(darkness: np.ndarray, width: int) -> np.ndarray:
    """The image with `width` more pixels on each side, continued as paper if the edge is paper and ink only.

    Else, in a photo with shadows, with its edge. A stroke along the edge would become a broad one, and seem paper.
    """
    relative = (border(darkness) - darkness.min()) / max(np.ptp(darkness), 1e-9)
    is_paper, is_ink = relative < 0.15, relative > 0.75
    if is_paper.mean() > 0.2 and is_ink.any() and (is_paper | is_ink).mean() > 0.9:
        return np.pad(darkness, width, constant_values=darkness.min())
    return np.pad(darkness, width, mode="edge")


def _is_uniform(darkness: np.ndarray, side: int) -> bool:
    """True if every block, edge and corner has the least darkness: then the opening is this value everywhere."""
    edges = (range(0, length, side) for length in darkness.shape)
    rows, columns = (np.asarray(edge) for edge in edges)
    least = darkness.min()
    blocks = np.minimum.reduceat(np.minimum.reduceat(darkness, rows, 0), columns, 1)
    frame = [np.minimum.reduceat(line, columns) for line in darkness[[0, -1]]]
    frame += [np.minimum.reduceat(line, rows) for line in darkness.T[[0, -1]]]
    corners = darkness[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool(max(blocks.max(), *(values.max() for values in frame), corners.max()) == least)


@lru_cache(maxsize=8)
def _smoothing(side: int, margin: int) -> np.ndarray:
    """A Gaussian filter as a matrix (side - 2 margin, side): by far faster for so wide a filter."""
    return ndimage.gaussian_filter1d(np.eye(side), margin / 4, axis=0)[margin:-margin]


def _majority(mask: np.ndarray) -> np.ndarray:
    """A 3×3 median filter of a mask."""
    padded = np.pad(mask, 1, mode="symmetric").astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] > 4


def _otsu(values: np.ndarray) -> float:
    """The threshold that maximises the variance between the two classes it separates (Otsu, 1979)."""
    low, high = values.min(), values.max()
    inner = values[values > low]  # most of clean paper is not, and counting it is quicker than sorting it into a bin
    counts, edges = np.histogram(inner, 256, (low, high))
    counts[0] += values.size - inner.size
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between[:-1])])


def _without_dark_corners(contrast: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The contrast without dark corners of a photo: parts of the `mask` of its ink that are in a corner.

    They stay if no other ink as large as a digit is inside.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    corners = np.setdiff1d(labels[[0, 0, -1, -1], [0, -1, 0, -1]], [0])
    at_edge = np.unique(border(labels))
    inside = mask & ~np.isin(labels, at_edge)
    if not inside.any():
        return contrast
    height = np.ptp(np.flatnonzero(inside.any(1))) + 1
    if height < MIN_SHARE * len(mask):
        return contrast
    corner = ndimage.binary_dilation(np.isin(labels, corners), iterations=3)
    return np.where(corner, 0, contrast)


def _widened(ink: np.ndarray, radius: int) -> np.ndarray:
    """A dilation by a disc; the result is larger by `radius` on every side.

    The disc is a stack of horizontal lines, and a maximum along a line is fast.
    """
    height = len(ink) + 2 * radius
    padded = np.pad(ink, ((2 * radius, 2 * radius), (radius, radius)))
    result = np.zeros_like(padded[:height])
    for y in range(-radius, radius + 1):
        half = int(np.sqrt(radius * radius + 0.5 - y * y))
        line = ndimage.maximum_filter1d(padded[radius + y : radius + y + height], 2 * half + 1, axis=1)
        np.maximum(result, line, out=result)
    return result
