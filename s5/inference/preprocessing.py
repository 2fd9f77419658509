"""Convert a photo or a drawing of one digit to an image like those of MNIST, which a network trained on MNIST can read.

The steps by which MNIST was made (LeCun, Cortes, Burges: the MNIST database): separate the ink from the paper, white on
black; scale it to fit 20×20 pixels, keeping its proportions, with soft edges; centre its mass in 28×28 pixels.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage
from torch import Tensor

from s5.inference.digit_parts import (
    SIDE,
    DigitError,
    bounding_box,
    check_single_digit,
    inside_of_frame,
    size,
    stroke_width,
    without_specks,
)
from s5.inference.ruled_paper import border, without_rules
from s5.inference.sheet import find_sheet, straighten

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # others are not opened: EPS, for example, runs a program
BOX = 20  # pixels: side of the box that the digit is scaled to, in the result of SIDE
WORKING_SIDE = 256  # pixels: images are reduced to this before the ink is searched for
MIN_WORKING_SIDE = 112  # pixels: smaller images are enlarged to at least this
MAX_TURN = 0.6  # tangent of the angle by which a sheet may be turned on the table
MIN_CONTRAST = 31  # between ink and paper, on a scale from 0 to 255
MAX_INK = 0.7  # share of the image that is ink; more is not writing
MAX_TEXTURE = 0.1  # share of the ink mask that a median filter changes; more is texture, not strokes
MIN_SHARE = 0.2  # height of a digit in a photo with dark corners, relative to the photo
MIN_STROKE = 1.6  # pixels of the box; thinner strokes are widened, as a pen is thinner than MNIST's pencils


def read_image(source: str | Path | bytes) -> Image.Image:
    """Open an image file, a path or its content as bytes, and apply its EXIF rotation.

    Raises DigitError if the content is not an image, is damaged, or is too large to open safely, and OSError if the
    file cannot be read.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content:
        raise DigitError("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Corrupt EXIF data"
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            count = getattr(image, "n_frames", 1) if image.format != "JPEG" else 1  # there it is a detail of the first
            image.draft(image.mode, (4 * WORKING_SIDE, 4 * WORKING_SIDE))  # a JPEG need not be decoded at full size
            image = ImageOps.exif_transpose(image)
        except UnidentifiedImageError:
            message = "not an image, or of an unknown format: PNG, JPEG, WebP, BMP, GIF and TIFF are read"
            raise DigitError(message) from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise DigitError("the image has too many pixels to open safely") from None
        except Exception as error:  # damaged data raise many different types
            raise DigitError(f"the image is damaged or cut off ({error})") from None
    if count > 1:
        raise DigitError(f"the file has {count} images: save one of them alone")
    return image


def prepare(image: Image.Image) -> Tensor:
    """Convert an image of one digit to MNIST's format: uint8 (28, 28), white on black.

    The image may have any size, be in colour or grey, dark on light or light on dark, and transparent. Raises
    DigitError if it shows no ink, ink nearly everywhere, or more than one digit.
    """
    ink = find_ink(cut_out_sheet(image))
    ink = ink[bounding_box(ink > 0)]
    scale = BOX / max(ink.shape)
    new_size = [max(1, int(side * scale + 0.5)) for side in reversed(ink.shape)]
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(new_size, resampling), dtype=float)
    canvas = np.zeros((3 * SIDE, 3 * SIDE))
    top, left = (int(1.5 * SIDE - round(centre, 6)) for centre in ndimage.center_of_mass(small))
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small / small.max()
    return torch.from_numpy((canvas[SIDE : 2 * SIDE, SIDE : 2 * SIDE] * 255 + 0.5).astype(np.uint8))


def to_grey(image: Image.Image, side: int = WORKING_SIDE) -> np.ndarray:
    """Brightness, uint8 (H, W), the longer side at most `side` pixels.

    A transparent background becomes white or black, whichever contrasts more with the visible pixels.
    """
    if not image.width or not image.height:
        raise DigitError("the image has no pixels")
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more per pixel
        image = _eight_bits(np.asarray(image))
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode != "L" or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    elif (factor := -(-MIN_WORKING_SIDE // max(image.size))) > 1:
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.BILINEAR)
    if image.mode == "RGBA":
        grey, opacity = image.convert("RGB").convert("L"), image.getchannel("A")
        visible = np.average(grey, weights=np.asarray(opacity) + 1e-9)
        return np.asarray(Image.composite(grey, Image.new("L", image.size, 0 if visible > 127 else 255), opacity))
    return np.asarray(image if image.mode == "L" else _highest_contrast(image))


def _eight_bits(values: np.ndarray) -> Image.Image:
    """A grey image of numbers (H, W) from 0 to white, the least of 1, 3, 7, 15, … that is not below them."""
    if not np.isfinite(values).all() or values.min() < 0:
        raise DigitError("the image has negative or infinite numbers as pixels: save it with 8 or 16 bits per pixel")
    white = 2 ** max(1, int(values.max()).bit_length()) - 1
    return Image.fromarray((values / white * 255).astype(np.uint8))


def _highest_contrast(image: Image.Image) -> Image.Image:
    """The colour band with the highest contrast if it is much higher than that of the brightness, else the brightness.

    Red ink on green paper, for example, can have the same brightness.
    """
    images = [image.convert("L"), *image.split()]
    contrasts = [np.ptp(np.percentile(each, (1, 99))) for each in images]
    best = int(np.argmax(contrasts))
    return images[best] if contrasts[best] > 2 * contrasts[0] else images[0]


def cut_out_sheet(image: Image.Image) -> np.ndarray:
    """Brightness, uint8 (H, W), of a photo's sheet of paper on a darker table, seen from above; else of all of it.

    Raises DigitError if the sheet is turned so far that no side of it is the upper one.
    """
    grey = to_grey(image)
    corners = find_sheet(grey) if min(image.size) >= WORKING_SIDE else None  # no photo is smaller
    if corners is None:
        return grey
    along, down = corners[1] - corners[0]
    if abs(down) > MAX_TURN * along:
        raise DigitError("the sheet of paper is turned too far: turn the photo so that the digit is upright")
    longest = np.hypot(*(corners - np.roll(corners, 1, 0)).T).max()
    larger = to_grey(image, round(WORKING_SIDE * max(grey.shape) / longest))
    scale = (np.array(larger.shape) / grey.shape)[::-1]
    return straighten(larger, (corners + 0.5) * scale - 0.5)


def find_ink(grey: np.ndarray) -> np.ndarray:
    """The amount of ink per pixel, from 0 to 1, for brightness, uint8 (H, W).

    Strokes thinner than MNIST's are widened; the result then has a margin. Raises DigitError as `prepare` does.
    """
    is_dark_ink = 2 * np.median(border(grey)) > int(grey.min()) + int(grey.max())
    darkness = 255 - grey if is_dark_ink else grey
    # The paper: an opening removes all that is narrower than a third of the image. Around a small image there is only
    # paper, so that a stroke at its edge is as wide as it looks; the edges of a photo may be in the shade.
    third, is_small = max(3, max(darkness.shape) // 3), max(darkness.shape) < 2 * MIN_WORKING_SIDE
    contrast = darkness - ndimage.grey_opening(darkness, (third, third), mode="constant" if is_small else "reflect")
    blank = without_rules(contrast)
    if blank.max() < MIN_CONTRAST:
        raise DigitError("no ink found: the image is empty, of a single colour or too pale")
    mask = blank > otsu(blank)
    texture = (mask != (ndimage.uniform_filter(mask.astype(float), 3) > 0.5)).mean()
    if mask.mean() > MAX_INK or texture > MAX_TEXTURE:
        raise DigitError("ink nearly everywhere: the digit cannot be separated from its background")
    contrast = _without_edge(blank, mask, is_ruled=blank is not contrast)
    threshold = otsu(contrast)
    mask = without_specks(inside_of_frame(contrast > threshold))
    check_single_digit(mask)
    full = np.percentile(contrast[mask], 75, method="lower")
    near = ndimage.binary_dilation(mask, _disc(2))
    ink = np.where(near, np.clip((contrast - threshold / 2) / (full - threshold / 2), 0, 1), 0)
    height = max(size(mask))
    stroke = stroke_width(mask) * BOX / height
    if stroke >= MIN_STROKE:
        return ink
    radius = max(1, int((MIN_STROKE - stroke) / 2 * height / BOX + 0.5))
    return ndimage.grey_dilation(np.pad(ink[bounding_box(near)], radius), footprint=_disc(radius), mode="constant")


def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 0.5


def _without_edge(contrast: np.ndarray, mask: np.ndarray, is_ruled: bool) -> np.ndarray:
    """The contrast without the ink of `mask` that touches the edge: dark corners of a photo, or remains of rules.

    It stays if there is no other ink as large as a digit; if most ink is at the edge of ruled paper, DigitError is
    raised.
    """
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    at_edge = mask & np.isin(labels, border(labels))
    inside = mask & ~at_edge
    if is_ruled and at_edge.sum() > inside.sum():
        raise DigitError("lines of ruled paper cannot be separated from the digit: use blank paper or a darker pen")
    rows = np.flatnonzero(inside.any(1))
    if 2 * inside.sum() < at_edge.sum() or not at_edge.any() or np.ptp(rows) < MIN_SHARE * len(mask):
        return contrast
    return np.where(ndimage.binary_dilation(at_edge, iterations=3), 0, contrast)


def otsu(values: np.ndarray) -> int:
    """The threshold that maximises the variance between the two classes it separates (Otsu, 1979), for uint8."""
    counts = np.bincount(values.ravel(), minlength=256)
    below, sums = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = values.size - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.argmax(np.nan_to_num(between)))
