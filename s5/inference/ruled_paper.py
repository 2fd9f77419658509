"""Remove the printed lines of ruled paper, and repair the strokes that they cross.

A rule is a thin, nearly straight line through the whole image; a digit's stroke ends before the edge. All rules of one
direction are parallel. They are searched like staff lines in sheet music: the image is sheared by many slopes, and the
contrast is compared along its rows.
"""

import numpy as np
from scipy import ndimage

from s5.inference.digit_parts import bounding_box, size

MIN_SIDE = 56  # pixels; in smaller images rules cannot be told from strokes
BLOCK = 4  # columns that are averaged before the search
SLOPES = np.arange(-16, 17) / 100  # pixels per column: up to 9 degrees
MAX_WIDTH = 0.05  # of a rule, as a share of the image's shorter side
COVERED = 20  # percent of a rule that may be missing
MIN_LENGTH = 0.2  # share of the image's width; shorter pieces in the corners are not searched
MIN_RULE, MIN_SHARE = 8, 0.08  # contrast of a rule with the paper, from 0 to 255, and relative to the largest
INK = 0.4  # contrast of ink relative to the largest outside the rules
EDGE = 0.04  # share of the image's side: a line there may be a stroke of a digit that fills the image
MIN_DIGIT = 0.3  # size of a digit on a single rule, as a share of the image's longer side
BARE = 0.6  # share of a rule with paper on both sides
DARKER = 1.3  # contrast of ink relative to a rule: more can be told apart by brightness alone

Rules = tuple[float, list[slice]]  # parallel lines, nearly horizontal: their slope, and their rows after `shear` by it


def border(image: np.ndarray) -> np.ndarray:
    """The outermost pixels of an image (H, W), its corners twice."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def without_rules(contrast: np.ndarray) -> np.ndarray:
    """The contrast of ink with the paper, uint8 (H, W), without the rules; `contrast` itself if there are none."""
    level = max(MIN_RULE, MIN_SHARE * contrast.max())
    if min(contrast.shape) < MIN_SIDE or border(contrast).max() < level:
        return contrast  # no line reaches the edge of the image
    across, down = find_rules(contrast, level), find_rules(contrast.T, level)
    lines = max(len(across[1]), len(down[1]))
    if not lines:
        return contrast
    rest = _remove(_remove(contrast, across).T, down).T
    strong = rest > max(level, INK * rest.max())
    if not strong.any():  # blank ruled paper, or a single stroke from edge to edge
        return np.zeros_like(contrast) if lines > 2 else contrast
    if not _is_ruled(across, strong) and not _is_ruled(down, strong.T):
        return contrast
    ink = float(np.percentile(rest[strong], 60))
    return _remove(_remove(contrast, across, ink).T, down, ink).T


def shear(image: np.ndarray, slope: float) -> np.ndarray:
    """Shift the columns of an image (H, W) so that lines of this slope become rows; NaN outside the image."""
    shifts = _shifts(image.shape[1], slope)
    pad = int(np.abs(shifts).max())
    rows = np.arange(-pad, len(image) + pad)[:, None] + shifts
    values = np.take_along_axis(image, rows.clip(0, len(image) - 1), 0)
    return np.where((rows >= 0) & (rows < len(image)), values, np.nan)


def unshear(sheared: np.ndarray, slope: float, height: int) -> np.ndarray:
    """The inverse of `shear` for an image of this height."""
    rows = np.arange(height)[:, None] + (len(sheared) - height) // 2 - _shifts(sheared.shape[1], slope)
    return np.take_along_axis(sheared, rows, 0)


def _shifts(width: int, slope: float) -> np.ndarray:
    return np.round(slope * (np.arange(width) - (width - 1) / 2)).astype(int)


def find_rules(contrast: np.ndarray, level: float) -> Rules:
    """The nearly horizontal rules whose contrast is at least `level`."""
    height, width = contrast.shape
    thick = max(4, round(MAX_WIDTH * min(height, width)))
    wider = ndimage.maximum_filter1d(contrast, 3, axis=0)  # a line need not be straight to the pixel
    blocks = wider[:, : width // BLOCK * BLOCK].reshape(height, -1, BLOCK).mean(2)
    profiles = [_profile(shear(blocks, BLOCK * slope), COVERED, thick) for slope in SLOPES]
    slope = float(SLOPES[np.argmax([profile[profile > level].sum() for profile in profiles])])
    is_found = _profile(shear(wider, slope), COVERED, thick) > level
    is_line = _profile(shear(contrast, slope), 35, thick) > level / 3
    labels, _ = ndimage.label(ndimage.binary_propagation(is_found & is_line, mask=is_line))
    sheared = np.nan_to_num(shear(contrast, slope))
    bands = [band for (band,) in ndimage.find_objects(labels) if band.stop - band.start <= thick]
    return slope, [band for band in bands if _is_bare(sheared, band)]


def _is_bare(sheared: np.ndarray, band: slice) -> bool:
    """True if there is paper on both sides of most of a line; a part of a thick or curved stroke has ink there."""
    line = sheared[band].max(0)
    reach = 2 + (band.stop - band.start) // 2
    beside = np.maximum(sheared[max(0, band.start - reach)], sheared[min(len(sheared), band.stop + reach) - 1])
    return bool((beside < line / 2)[line > 0].mean() > BARE)


def _profile(rows: np.ndarray, percent: float, thick: int) -> np.ndarray:
    """The percentile of each row without its NaN, 0 for rows of few numbers; less what is wider than `thick` rows."""
    count = (~np.isnan(rows)).sum(1)
    places = (count * percent / 100).astype(int).clip(max=rows.shape[1] - 1)
    values = np.sort(rows, 1)[np.arange(len(rows)), places]  # NaN are last
    values[count < MIN_LENGTH * rows.shape[1]] = 0
    return values - ndimage.grey_opening(values, thick + 1)


def _is_ruled(rules: Rules, ink: np.ndarray) -> bool:
    """True if lines are rules, not strokes of a digit that fills the image, for all other ink as a mask (H, W).

    In an image cropped to the digit the foot of a 2 or the bar of a 7 reaches from edge to edge, too. Two parallel
    lines are rules unless both are at the edge; one line is a rule if the other ink is as large as a digit and does not
    reach the edge.
    """
    (slope, bands), (height, width) = rules, ink.shape
    pad = int(np.abs(_shifts(width, slope)).max())
    inner = [band for band in bands if EDGE * height < (band.start + band.stop - 1) / 2 - pad < (1 - EDGE) * height]
    rows, columns = bounding_box(ink)
    is_inside = rows.start > 1 and rows.stop < height - 1
    is_inside &= EDGE * width < columns.start and columns.stop <= (1 - EDGE) * width
    is_digit = is_inside and max(size(ink)) > MIN_DIGIT * max(height, width)
    return bool(inner) and (len(bands) > 1 or is_digit)


def _remove(contrast: np.ndarray, rules: Rules, ink: float = 0) -> np.ndarray:
    """Replace rules by what is on both sides of them, and keep what is clearly darker, if `ink` is."""
    slope, bands = rules
    sheared = np.nan_to_num(shear(contrast, slope)).astype(contrast.dtype)
    columns = np.arange(contrast.shape[1])
    for band in bands:
        inner = sheared[band].copy()
        above, below = sheared[max(0, band.start - 1)], sheared[min(len(sheared) - 1, band.stop)]
        share = (np.arange(1, len(inner) + 1) / (len(inner) + 1))[:, None]
        filled = np.zeros_like(inner)
        reach = round(1.5 * len(inner)) + 1
        for shift in range(-reach, reach + 1):  # of a stroke that crosses the rule at a slant
            start, end = (np.round(columns + shift * part).astype(int) for part in (-share, 1 - share))
            filled = np.maximum(filled, np.minimum(above.take(start, mode="clip"), below.take(end, mode="clip")))
        rule = np.median(inner.max(0)[inner.max(0) > 0])
        if DARKER * rule < ink:
            filled = np.maximum(filled, np.where(inner > rule + 0.4 * (ink - rule), inner, 0))
        sheared[band] = np.minimum(filled, inner)
    return unshear(sheared, slope, len(contrast))
