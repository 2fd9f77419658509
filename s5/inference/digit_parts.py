"""Which parts of the ink in an image are its digit: not a frame around it, nor specks; and whether it is one digit.

A mask is bool (H, W), True for ink, with at least one pixel of it. Its parts are pixels that touch, at the corners too.
"""

import numpy as np
from scipy import ndimage

SIDE = 28  # pixels, of MNIST's images
MAX_ASPECT = 1.8  # width of a digit divided by its height
MIN_BOX = 0.93  # share of its bounding box that a box fills, lines and inside; a round 0 fills less
MAX_LINES = 0.3  # share of a box that its thin lines cover; more is a digit of straight strokes
MIN_INSIDE, MIN_INSIDE_BOX = 0.3, 0.1  # height of a digit in a frame, relative to the frame; and in a box of thin lines
MAX_SOLIDITY, MIN_ROUND = 11.25, 0.6  # of a digit; what is about as long as wide and more solid is a filled shape
MIN_HEIGHT = 8  # pixels: the longer side of the ink; less is often misread
MIN_PART = 0.03  # size of a separate part, relative to the largest; smaller ones are dirt
SEVERAL = "several digits found: crop the image to one of them"


class DigitError(ValueError):
    """No single digit was found in an image; the message says why."""


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and the columns of the ink."""
    return ndimage.find_objects(mask.astype(np.int8))[0]


def size(mask: np.ndarray) -> tuple[int, int]:
    """The height and the width of the ink."""
    rows, columns = bounding_box(mask)
    return rows.stop - rows.start, columns.stop - columns.start


def stroke_width(mask: np.ndarray) -> float:
    """The mean width in pixels of the strokes of a mask: twice the area by the length of the edge (by Crofton)."""
    padded = np.pad(mask, 1).astype(np.int8)
    sides = sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
    return 2 * int(mask.sum()) / (np.pi / 4 * sides)


def inside_of_frame(mask: np.ndarray) -> np.ndarray:
    """The ink inside a frame, such as the box of a form or a circle; all ink if there is no frame.

    A frame is a box or about as wide as high, and encloses ink of a digit's size that it does not touch. Raises
    DigitError if there is ink of this size outside too, and for a box of thin lines without such ink.
    """
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    heights, widths = np.array([[side.stop - side.start for side in part] for part in ndimage.find_objects(labels)]).T
    sizes = np.bincount(labels.ravel())[1:]  # pixels of each part
    frame = int(np.argmax(heights * widths))
    height, width = heights[frame], widths[frame]
    filled = ndimage.binary_fill_holes(labels == frame + 1)  # the frame and all that it encloses
    is_box = filled.sum() > MIN_BOX * height * width and min(height, width) > 0.5 * max(height, width)
    is_thin_box = is_box and sizes[frame] < MAX_LINES * height * width
    is_other = np.arange(count) != frame
    is_inside = is_other & np.isin(np.arange(count) + 1, labels[filled])
    least = MIN_INSIDE_BOX if is_thin_box else MIN_INSIDE
    is_digit = is_inside & (heights >= least * height) & (sizes >= MIN_PART * sizes[frame])
    if is_digit.any() and (is_box or 0.8 * height < width < 1.25 * height):
        if (heights[is_other & ~is_inside] > 0.6 * heights[is_digit].max()).any():
            raise DigitError(SEVERAL)
        return inside_of_frame(mask & filled & (labels != frame + 1))
    if is_thin_box:
        raise DigitError("a frame without a separate digit inside: crop the image to the digit")
    return mask


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The ink without parts that are much smaller than the largest: dirt."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels[mask])  # none of the background
    return (sizes >= MIN_PART * sizes.max())[labels]


def check_single_digit(mask: np.ndarray) -> None:
    """Raise DigitError if the ink is too small, wide or full for a digit, or several parts nearly as large as all."""
    height, width = size(mask)
    if max(height, width) < MIN_HEIGHT:
        raise DigitError("the digit is too small: crop the image closer to it")
    if width > MAX_ASPECT * height:
        raise DigitError("the ink is wider than a digit: crop the image to a single digit")
    if _is_solid(mask):
        raise DigitError("the ink is a filled shape: crop the image to the digit inside it")
    side_by_side = [part for part in _parts(mask) if part[0] > 0.6 * height]
    stacked = []
    if height > 1.8 * width:
        stacked = [part for part in _parts(mask.T) if part[0] > 0.4 * width and part[1] > 0.3 * height]
    if len(side_by_side) > 1 or len(stacked) > 1:
        raise DigitError(SEVERAL)


def _is_solid(mask: np.ndarray) -> bool:
    """True for ink without gaps, such as a sheet of paper, whatever its tilt.

    Its area, relative to the product of its standard deviations along its two axes, is 12 for any rectangle and 4 π for
    any ellipse, and less for what has gaps.
    """
    rows, columns = np.nonzero(mask)
    covariance = np.cov(columns, rows, bias=True) + np.eye(2) / 12  # the second is that within a pixel
    short, long = np.sqrt(np.linalg.eigvalsh(covariance))
    return bool(short > MIN_ROUND * long and len(rows) > MAX_SOLIDITY * short * long)


def _parts(mask: np.ndarray) -> list[tuple[int, int]]:
    """Height and width of each part of the mask that empty columns separate from the others."""
    runs, _ = ndimage.label(mask.any(0))
    return [size(mask[:, columns]) for (columns,) in ndimage.find_objects(runs)]
