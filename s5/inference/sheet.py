"""Find a sheet of paper that lies on something darker, in a photo, and look at it from straight above."""

import numpy as np
from PIL import Image
from scipy import ndimage

from s5.inference.ruled_paper import border

STEP = 5  # of brightness, from 0 to 255, between the thresholds that are tried
MIN_CONTRAST = 0.18  # of the table with the sheet at each side of it, relative to the sheet
DISTANCES = -0.015, 0.03, 0.05  # from a side, inwards and outwards, relative to the photo's longer side
MIN_TABLE = 0.25  # share of the photo's border that is darker than the sheet: about one side
MIN_SHEET = 0.08  # share of the photo
MAX_BRIGHT = 0.3  # share of what is around the sheet that is brighter than the threshold
MIN_INK, MAX_INK = 0.001, 0.4  # share of the sheet that is enclosed in it and as dark as the table
MAX_MISFIT = 0.1  # pixels that are only in one of sheet and quadrilateral, as a share of the sheet
RIM = 0.02  # share of the sheet that is cut off at each side


def find_sheet(grey: np.ndarray) -> np.ndarray | None:
    """The corners of the sheet in brightness, uint8 (H, W), as x and y, float (4, 2); None if there is none.

    Clockwise, from the one that is at the top left if the sheet is turned by less than 45 degrees. No threshold between
    sheet and table suits all photos: many are tried, and the sheet is the region at whose sides brightness falls most.
    """
    found, most = None, 0.0
    for lit in (grey, _evenly_lit(grey)):
        for threshold in range(int(lit.min()), int(lit.max()), STEP):
            corners = _quadrilateral(lit > threshold)
            if corners is not None and (contrast := _contrast(grey, corners)) > most:
                found, most = corners, contrast
    if found is None:
        return None
    first = np.argmax([found[number - 3][0] - found[number][0] for number in range(4)])
    return np.roll(found, -first, 0)


def _evenly_lit(grey: np.ndarray) -> np.ndarray:
    """The photo as if the light did not change from side to side: divided by a plane fitted to its border."""
    y, x = np.indices(grey.shape)
    planes = np.stack([np.ones(grey.shape), y, x], -1)
    edge = np.concatenate([planes[0], planes[-1], planes[:, 0], planes[:, -1]])
    light = planes @ np.linalg.lstsq(edge, border(grey).astype(float), rcond=None)[0]
    lit = grey / np.maximum(light, 1)
    return (255 * lit / max(lit.max(), 1e-9) + 0.5).astype(np.uint8)


def _quadrilateral(bright: np.ndarray) -> np.ndarray | None:
    """The corners of the largest region of a mask (H, W), clockwise, if it has four and ink inside; else None."""
    if border(bright).mean() > 1 - MIN_TABLE:
        return None
    labels, _ = ndimage.label(bright)
    sheet = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    others, count = ndimage.label(~sheet)
    is_hole = np.ones(count + 1, bool)  # and, as number 0, the sheet
    is_hole[np.setdiff1d(border(others), 0)] = False
    filled = is_hole[others]
    area = int(filled.sum())
    is_large = area > MIN_SHEET * filled.size and (bright & ~filled).sum() < MAX_BRIGHT * (filled.size - area)
    if not is_large or not MIN_INK * area < area - sheet.sum() < MAX_INK * area:
        return None
    rows = np.flatnonzero(filled.any(1))
    left, right = filled[rows].argmax(1), filled.shape[1] - 1 - filled[rows, ::-1].argmax(1)
    points = np.concatenate([np.stack([left, rows], 1), np.stack([right, rows], 1)]).astype(float)
    first = points[((points - points.mean(0)) ** 2).sum(1).argmax()]
    corners = [first, first, points[((points - first) ** 2).sum(1).argmax()], first]
    for number in (1, 3, 0, 2, 1, 3, 0, 2, 1, 3):  # the point that is farthest from the line through its neighbours
        (x, y), (dx, dy) = corners[number - 1], corners[number - 3] - corners[number - 1]
        corners[number] = points[np.argmin(dx * (points[:, 1] - y) - dy * (points[:, 0] - x))]
    y, x = np.indices(filled.shape)
    ends = zip(corners, corners[1:] + corners[:1], strict=True)
    inside = np.all([(x1 - x0) * (y - y0) >= (y1 - y0) * (x - x0) for (x0, y0), (x1, y1) in ends], 0)
    return np.array(corners) if (inside != filled).sum() < MAX_MISFIT * area else None


def _contrast(grey: np.ndarray, corners: np.ndarray) -> float:
    """By how much brightness falls at the sides of a quadrilateral, relative to it, in all; 0 if it hardly does at one.

    A fold or a rule is no side of a sheet, as the paper goes on behind it. Sides at the photo's edge add nothing.
    """
    limits, falls = np.array(grey.shape[::-1]) - 1, []
    for start, end in zip(corners, np.roll(corners, -1, 0), strict=True):
        places = start + np.linspace(0.1, 0.9, 33)[:, None] * (end - start)
        outwards = np.array([end[1] - start[1], start[0] - end[0]]) / max(1, np.hypot(*(end - start)))
        levels = []
        for distance in DISTANCES:
            beside = np.floor(places + distance * max(grey.shape) * outwards + 0.5).astype(int)
            columns, rows = beside[((beside >= 0) & (beside <= limits)).all(1)].T
            levels += [np.median(grey[rows, columns])] if len(rows) > 16 else []
        if len(levels) > 1:
            falls.append(1 - max(levels[1:]) / levels[0])
    return sum(falls) if min(falls, default=0) > MIN_CONTRAST else 0


def straighten(grey: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The quadrilateral with these corners as a rectangle, without its rim: brightness, uint8 (H, W).

    Lines parallel to its sides stay straight; that they move closer together at the far end is left as it is.
    """
    sides = np.hypot(*(np.roll(corners, -1, 0) - corners).T)
    size = [max(1, int((sides[number] + sides[number + 2]) / 2)) for number in (0, 1)]
    inner = corners + 2 * RIM * (corners.mean(0) - corners) + 0.5  # Pillow's places are those of the pixels' edges
    quad = inner[[0, 3, 2, 1]].ravel().tolist()
    return np.asarray(Image.fromarray(grey).transform(size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR))
