"""Find the printed lines of ruled paper, remove them, and repair the strokes that they cross.

A rule is a thin line, nearly straight, that runs through the whole image; a digit's stroke ends before the edge. The
search is that for staff lines in sheet music, by a Radon transform: for many slopes, the contrast along every line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

MIN_SIDE = 56  # pixels; in smaller images rules cannot be told from strokes
BLOCK = 4  # columns that are averaged before the search
MAX_SLOPE, SLOPE_STEP = 0.16, 0.01  # pixels per column: 9 degrees
BEND = 3  # pixels
MAX_WIDTH = 0.05  # of a rule, as a share of the image's shorter side
COVERED = 20  # percent of a rule that may be missing
FULL, PART = 0.6, 0.2  # share of the image's width that a rule crosses, and that a piece in a corner crosses
MIN_RULE = 0.03  # contrast of a rule with the paper, from 0 to 1, …
MIN_SHARE = 0.08  # … and relative to the largest contrast
INK = 0.4  # contrast of ink relative to the largest outside the rules
EDGE = 0.04  # share of the image's side
MIN_DIGIT = 0.3  # size of a digit on a single rule, as a share of the image's longer side
DARKER = 1.3  # contrast of ink relative to a rule: more can be told apart by brightness alone


@dataclass
class Rule:
    """A nearly horizontal line: row `curve(column)`, from `above` to `below` rows around it, of this contrast."""

    curve: np.ndarray  # (W,), rows
    above: float
    below: float
    width: int  # rows, at half of its contrast
    contrast: np.ndarray  # (W,)


def border(image: np.ndarray) -> np.ndarray:
    """The outermost pixels of an image (H, W), its corners twice."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def without_rules(contrast: np.ndarray) -> np.ndarray | None:
    """The contrast of ink with the paper, (H, W) from 0 to 1, without the rules of the paper.

    Returns `contrast` itself if there are no rules, and None if they cannot be separated from the ink.
    """
    height, width = contrast.shape
    if min(height, width) < MIN_SIDE:
        return contrast
    level = max(MIN_RULE, MIN_SHARE * contrast.max())
    if border(contrast).max() < level:
        return contrast  # no line reaches the edge of the image
    across, down = find_rules(contrast, level), find_rules(contrast.T, level)
    if not across and not down:
        return contrast
    rest = np.where(_mask(across, contrast.shape) | _mask(down, contrast.T.shape).T, 0, contrast)
    strong = rest > max(level, INK * rest.max())
    if not strong.any():  # blank ruled paper, or a single stroke from edge to edge
        return np.zeros_like(contrast) if max(len(across), len(down)) > 2 else contrast
    ink = float(np.percentile(rest[strong], 60))
    if not _is_ruled(across, strong, ink) and not _is_ruled(down, strong.T, ink):
        return contrast
    for rule in across:
        contrast = _remove(contrast, rule, ink)
    for rule in down:
        contrast = _remove(contrast.T, rule, ink).T
    return _without_edge(contrast, ink)


def _without_edge(contrast: np.ndarray, ink: float) -> np.ndarray | None:
    """The contrast without what touches the edge, such as parts of rules; None if that is most of the ink."""
    labels, count = ndimage.label(contrast > INK * ink, np.ones((3, 3)))
    if not count:
        return contrast
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    at_edge = np.zeros(len(sizes), bool)
    for side in (labels[:2], labels[-2:], labels[:, :2], labels[:, -2:]):
        at_edge[np.unique(side)] = True
    at_edge[0] = False
    if at_edge[sizes.argmax()]:
        return None
    return np.where(ndimage.binary_dilation(at_edge[labels], iterations=2), 0, contrast)


def _is_ruled(rules: list[Rule], ink: np.ndarray, ink_contrast: float) -> bool:
    """True if lines are rules, not strokes of a digit that fills the image, for all other ink as a mask (H, W).

    In an image cropped to the digit the foot of a 2 or the bar of a 7 reaches from edge to edge, too. Two parallel
    lines are rules unless both are at the edge; one line is a rule if it is thinner or paler than the other ink, which
    is as large as a digit, does not reach the edge, and ends well before the line does.
    """
    height, width = ink.shape
    inner = [rule for rule in rules if EDGE * height < rule.curve[width // 2] < (1 - EDGE) * height]
    if len(rules) >= 2 and inner:
        return True
    if not inner or not ink.any():
        return False
    (top, bottom), (left, right) = (np.flatnonzero(ink.any(axis))[[0, -1]] for axis in (1, 0))
    is_inside = top > 1 and bottom < height - 2 and left > EDGE * width and right < (1 - EDGE) * width
    stroke = 4 * ndimage.distance_transform_edt(ink)[ink].mean() - 2  # of the pen
    rule = inner[0]
    is_pen = rule.width > 0.6 * stroke and rule.contrast.mean() > ink_contrast / DARKER
    return bool(is_inside and not is_pen and max(bottom - top, right - left) > MIN_DIGIT * max(height, width))


def find_rules(contrast: np.ndarray, level: float) -> list[Rule]:
    """The nearly horizontal rules whose contrast is at least `level`."""
    height, width = contrast.shape
    blocks = width // BLOCK
    averaged = contrast[:, : blocks * BLOCK].reshape(height, blocks, BLOCK).mean(2)
    middles = BLOCK * (np.arange(blocks) + 0.5) - 0.5
    thick = max(4, round(MAX_WIDTH * min(height, width)))
    slopes = np.arange(-MAX_SLOPE, MAX_SLOPE + SLOPE_STEP / 2, SLOPE_STEP)
    pad = int(MAX_SLOPE * width / 2) + 2
    wider = ndimage.maximum_filter1d(averaged, 2 * BEND + 1, axis=0)  # a line that bends by BEND pixels is found, too
    padded = np.pad(wider, ((pad, pad), (0, 0)), constant_values=np.nan)
    rows = np.arange(-pad + 2, height + pad - 2)
    scores, lengths = [], []
    for slope in slopes:
        shifts = np.round(slope * (middles - (width - 1) / 2)).astype(int)
        places = (rows[:, None] + shifts + pad).clip(0, len(padded) - 1)
        score, length = _low_percentile(padded[places, np.arange(blocks)])
        scores.append(score)
        lengths.append(length)
    scores, lengths = np.stack(scores), np.stack(lengths)  # (slopes, rows)
    scores = ndimage.uniform_filter1d(scores, 2 * BEND + 1, axis=1)  # the largest one in the middle of the line
    scores -= ndimage.grey_opening(scores, (1, 2 * thick + 1))
    found: list[Rule] = []
    for shortest, longest in ((FULL, 1), (PART, FULL)):
        candidates = np.where((lengths >= shortest) & (lengths <= longest), scores, 0)
        if shortest == PART:  # short pieces in the corners must be parallel to a whole rule
            if not found:
                break
            known = np.median([rule.curve[-1] - rule.curve[0] for rule in found]) / (width - 1)
            candidates[np.abs(slopes - known) > 2.5 * SLOPE_STEP] = 0
        for _ in range(128):
            best, index = np.unravel_index(np.argmax(candidates), candidates.shape)
            if candidates[best, index] < level:
                break
            candidates[:, max(0, index - 3) : index + 4] = 0
            rule = _trace(contrast, averaged, middles, rows[index], slopes[best], thick, level)
            if rule is not None and not any(_same(rule, other, height) for other in found):
                found.append(rule)
    return found


def _same(rule: Rule, other: Rule, height: int) -> bool:
    inside = (rule.curve > -2) & (rule.curve < height + 1)
    return not inside.any() or np.abs(rule.curve - other.curve)[inside].mean() < 3


def _low_percentile(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The percentile COVERED of each row without its NaN, and the share of the row that is not NaN."""
    count = lines.shape[1] - np.isnan(lines).sum(1)
    ordered = np.sort(lines, 1)  # NaN last
    values = ordered[np.arange(len(lines)), (count * COVERED // 100).clip(max=lines.shape[1] - 1)]
    return np.nan_to_num(values), count / lines.shape[1]


def _trace(contrast, averaged, middles, row, slope, thick, level) -> Rule | None:
    """Follow a line from its approximate row and slope; None if it is not a thin line."""
    height, width = contrast.shape
    columns = np.arange(width)
    line = np.poly1d([slope, row - slope * (width - 1) / 2])
    for degree, reach in ((2, BEND + 2), (2, 3), (2, 3)):
        window = np.arange(-reach, reach + 1)
        places = np.round(line(middles)).astype(int)[:, None] + window
        inside = (places >= 0) & (places < height)
        values = np.where(inside, averaged[places.clip(0, height - 1), np.arange(len(middles))[:, None]], 0)
        base = values - values.min(1, keepdims=True)
        total = base.sum(1)
        centre = np.divide((base * places).sum(1), total, out=line(middles).copy(), where=total > 1e-6)
        whole = inside[:, 1:-1].all(1)
        typical = np.median(total[whole]) if whole.any() else 0
        good = (np.abs(total - typical) < 0.5 * typical) & whole & (np.abs(centre - line(middles)) < reach - 0.5)
        if good.sum() < 6:
            break
        spread = np.ptp(middles[good]) > 0.6 * width
        line = np.poly1d(np.polyfit(middles[good], centre[good], degree if spread else 1))
    curve = line(columns)
    offsets = np.arange(-thick - 2, thick + 3)
    strip = _along(contrast, curve + offsets[:, None])
    seen = ~np.isnan(strip)
    if seen[len(offsets) // 2].mean() < PART / 2:
        return None
    profile = _row_percentile(strip, 35)
    middle = len(offsets) // 2
    peak = middle - 1 + int(np.argmax(profile[middle - 1 : middle + 2]))
    base = max(min(profile[: peak + 1]), min(profile[peak:]))
    amplitude = profile[peak] - base
    centre = np.nan_to_num(strip[peak - 1 : peak + 2]).max(0, keepdims=True)[:, seen[peak]]
    if amplitude < level or _row_percentile(centre, COVERED / 2) - base < level / 2:
        return None  # it is not visible all along
    wide = profile > base + 0.1 * amplitude
    above, below = peak, peak
    while above > 0 and wide[above - 1]:
        above -= 1
    while below < len(offsets) - 1 and wide[below + 1]:
        below += 1
    if below - above + 1 > thick:
        return None
    peaks = np.nan_to_num(_along(contrast, np.round(curve) + offsets[above : below + 1, None])).max(0)
    valid = seen[peak]
    typical = np.median(peaks[valid])
    usual = valid & (np.abs(peaks - typical) < 0.4 * typical)
    strength = np.poly1d(np.polyfit(columns[usual], peaks[usual], 1)) if usual.sum() > 8 else np.poly1d([typical])
    strength = strength(columns).clip(0.5 * typical, 1.5 * typical)
    half = int((profile[above : below + 1] > base + amplitude / 2).sum())
    return Rule(curve, offsets[above] - 0.6, offsets[below] + 0.6, half, strength)


def _row_percentile(strip: np.ndarray, percent: float) -> np.ndarray:
    """The percentile of each row without its NaN; 0 if there are no values, as beyond the image's edge."""
    count = (~np.isnan(strip)).sum(1)
    ordered = np.sort(strip, 1)
    values = ordered[np.arange(len(strip)), (count * percent / 100).astype(int).clip(max=strip.shape[1] - 1)]
    return np.where(count > 0, values, 0)


def _along(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The values at fractional `rows` (N, W) of each column, interpolated linearly; NaN outside the image."""
    low = np.floor(rows).astype(int)
    share = (rows - low).astype(values.dtype)
    columns = np.arange(values.shape[1])
    first, second = (values[place.clip(0, len(values) - 1), columns] for place in (low, low + 1))
    inside = (rows > -1) & (rows < len(values))
    return np.where(inside, first * (1 - share) + second * share, np.nan)


def _mask(rules: list[Rule], shape: tuple[int, int], rim: int = 2) -> np.ndarray:
    """True on the rules and `rim` pixels around them."""
    mask = np.zeros(shape, bool)
    rows = np.arange(shape[0])[:, None]
    for rule in rules:
        mask |= (rows >= rule.curve + rule.above - rim) & (rows <= rule.curve + rule.below + rim)
    return mask


def _remove(contrast: np.ndarray, rule: Rule, ink: float) -> np.ndarray:
    """Replace the rule by what is on both sides of it, and keep what is clearly darker than the rule."""
    height, width = contrast.shape
    columns = np.arange(width)
    first = np.ceil(rule.curve + rule.above).astype(int)
    thickness = rule.below - rule.above + 1
    rows = first + np.arange(int(np.ceil(thickness)) + 1)[:, None]
    inside = (rows <= rule.curve + rule.below) & (rows >= 0) & (rows < height)
    above = np.nan_to_num(_along(contrast, (rule.curve + rule.above - 0.5)[None])[0])
    below = np.nan_to_num(_along(contrast, (rule.curve + rule.below + 0.5)[None])[0])
    share = ((rows - rule.curve - rule.above + 0.5) / thickness).clip(0, 1)
    filled = np.zeros(rows.shape, contrast.dtype)
    reach = round(1.5 * thickness) + 1
    for shift in range(-reach, reach + 1):
        start = np.round(columns - shift * share).astype(int).clip(0, width - 1)
        end = np.round(columns + shift * (1 - share)).astype(int).clip(0, width - 1)
        np.maximum(filled, np.minimum(above[start], below[end]), out=filled)
    inner = contrast[rows.clip(0, height - 1), columns]
    if (rule.contrast * DARKER < ink).mean() > 0.5:
        limit = rule.contrast + 0.4 * (ink - rule.contrast)
        filled = np.maximum(filled, np.where(inner > limit, inner, 0))
    result = contrast.copy()
    grid = np.broadcast_to(columns, rows.shape)
    result[rows[inside], grid[inside]] = np.minimum(filled, inner)[inside]
    return result
