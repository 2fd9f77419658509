"""Digits drawn with a pen, in several styles, on paper of several kinds: what photos of handwriting look like.

A digit is written as strokes, each with points x,y in a box 100 units high, y pointing down. A "curve" passes smoothly
through its points; a "line" connects them.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Three styles of each digit.
STYLES = {
    0: (
        "curve 30,0 8,20 2,50 10,82 30,100 50,82 58,50 52,20 30,0",
        "curve 42,4 14,12 0,50 10,90 36,100 60,70 60,30 42,2",
        "curve 35,0 16,25 12,60 22,95 38,95 48,60 46,20 35,0",
    ),
    1: (
        "line 30,0 30,100",
        "line 10,25 32,0 32,100",
        "line 40,0 20,100",
    ),
    2: (
        "curve 4,25 12,6 34,0 54,16 46,46 4,100; line 4,100 60,100",
        "curve 5,20 28,0 52,20 42,55 15,92 4,92 10,82; curve 10,82 26,88 42,100 62,92",
        "curve 8,12 34,0 50,20 40,50 6,98; curve 6,98 30,93 60,98",
    ),
    3: (
        "curve 6,12 28,0 50,14 44,38 22,47; curve 22,47 50,56 54,80 30,100 2,88",
        "line 6,2 52,2 26,40; curve 26,40 52,50 54,80 30,100 4,90",
        "curve 10,6 36,0 52,16 40,38 20,44; curve 20,44 46,50 50,76 24,100 4,94",
    ),
    4: (
        "line 40,0 2,68 60,68; line 42,40 42,100",
        "line 10,0 6,50 56,48; line 48,5 44,100",
        "line 44,100 44,0 0,64 60,64",
    ),
    5: (
        "line 54,0 12,0 10,42; curve 10,42 34,36 56,62 38,96 4,92",
        "line 16,2 10,45; curve 10,45 40,40 54,70 30,100 2,90; line 16,2 56,4",
        "line 58,2 20,4 14,40; curve 14,40 44,44 50,76 26,100 4,94",
    ),
    6: (
        "curve 46,0 18,30 4,68 20,98 46,90 52,66 32,50 8,66",
        "curve 50,6 24,14 6,50 10,88 34,100 54,78 36,56 7,70",
        "curve 30,0 10,40 8,80 26,100 48,86 44,62 22,60 8,76",
    ),
    7: (
        "line 2,2 56,2 22,100",
        "line 2,4 58,0 26,100; line 20,50 56,48",
        "curve 4,10 6,2 30,5 58,0; curve 58,0 36,40 26,100",
    ),
    8: (
        "curve 50,12 28,0 8,18 28,46 54,76 30,100 6,78 30,46; curve 30,46 50,26 50,12",
        "curve 30,0 10,20 30,45 50,20 30,0; curve 30,45 4,72 30,100 56,72 30,45",
        "curve 44,8 20,4 16,30 44,60 40,96 14,94 16,66 46,30 44,8",
    ),
    9: (
        "curve 52,20 30,0 6,20 14,46 40,44 52,20; line 53,10 48,100",
        "curve 50,26 34,2 8,16 14,46 38,44 50,22; curve 50,22 48,70 14,100",
        "curve 48,10 20,4 6,30 26,46 48,10; line 48,10 36,100",
    ),
}


def strokes(digit: int, style: int = 0, slant: float = 0.0, wobble: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    """The strokes of a digit as dense polylines, float (N, 2) in a box one unit high, centred on (0, 0).

    `slant` leans it to the right, as a share of its height; `wobble` moves each point at random, as a shaky hand does.
    """
    random = np.random.default_rng((seed, digit, style))
    lines = []
    styles = STYLES[digit]
    for stroke in styles[style % len(styles)].split("; "):
        kind, *points = stroke.split(" ")
        points = np.array([point.split(",") for point in points], dtype=float) / 100 - (0.3, 0.5)
        points = points + random.normal(0, wobble, points.shape)
        points[:, 0] -= slant * points[:, 1]
        lines.append(_smooth(points) if kind == "curve" else points)
    return lines


def _smooth(points: np.ndarray, steps: int = 12) -> np.ndarray:
    """A Catmull-Rom spline through the points."""
    closed = np.allclose(points[0], points[-1])
    before, after = (points[-2], points[1]) if closed else (2 * points[0] - points[1], 2 * points[-1] - points[-2])
    p = np.vstack([before, points, after])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    parts = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return np.vstack([*parts, points[-1:]])


def pen_mask(lines: list[np.ndarray], size: int, height: float, pen: float, centre=(0.5, 0.5)) -> Image.Image:
    """Opacity of the ink, mode "L": `height` of the digit and `centre` as shares of the image, `pen` in pixels."""
    scale = 2  # drawn larger, for soft edges
    mask = Image.new("L", (scale * size, scale * size), 0)
    draw = ImageDraw.Draw(mask)
    width = max(1, round(scale * pen))
    for line in lines:
        places = [tuple(scale * size * (height * point + centre)) for point in line]
        draw.line(places, fill=255, width=width, joint="curve")
        for x, y in (places[0], places[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def ruled(
    size: int = 400,
    pitch: float = 80,
    width: float = 2,
    colour=(150, 185, 230),
    paper=(250, 250, 246),
    *,
    squares: bool = False,
    margin: float | None = None,
    offset: float = 0.3,
    degrees: float = 0.0,
) -> Image.Image:
    """A sheet with rules every `pitch` pixels, `width` pixels wide; the first one at `offset` pitches.

    `squares` adds vertical rules, `margin` a red line at this share of the image's width; `degrees` turns the sheet.
    """
    angle = np.deg2rad(degrees)
    places = np.arange(size) + 0.5 - size / 2
    x, y = (np.cos(angle) * a + np.sin(angle) * b for a, b in ((places, places[:, None]), (places[:, None], -places)))
    image = np.full((size, size, 3), paper, dtype=np.float32)

    def line(distance: np.ndarray, colour) -> None:
        """Draw where the distance from the line's middle, in pixels, is small, with soft edges."""
        opacity = np.clip(width / 2 + 0.5 - distance, 0, min(width, 1))[..., None]
        image[...] = image * (1 - opacity) + np.array(colour) * opacity

    for across in (y, x) if squares else (y,):
        phase = across / pitch - offset
        line(pitch * np.abs(phase - np.round(phase)), colour)
    if margin is not None:
        line(np.abs(x - (margin - 0.5) * size), (225, 120, 120))
    return Image.fromarray(image.round().astype(np.uint8))


def write(paper: Image.Image, mask: Image.Image, ink=(20, 20, 25)) -> Image.Image:
    """The paper with ink of this colour."""
    image = paper.copy()
    image.paste(Image.new("RGB", paper.size, ink), (0, 0), mask)
    return image


def photographed(
    image: Image.Image, noise: float = 3.0, blur: float = 0.6, shade: float = 0.2, seed: int = 0
) -> Image.Image:
    """As a camera sees it: a little blurred, darker to one side by the share `shade`, with noise (of 255)."""
    values = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    rows, columns = values.shape[:2]
    light = 1 - shade * (np.linspace(0, 1, rows)[:, None] + np.linspace(0, 1, columns)) / 2
    values = values * light[..., None] + np.random.default_rng(seed).normal(0, noise, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


# --- Phone photos -----------------------------------------------------------------------------------------------------

TABLES = ((70, 50, 35), (120, 85, 55), (60, 62, 66), (150, 120, 90), (35, 60, 45), (165, 160, 155))  # woods, cloths


def samples() -> dict[str, Image.Image]:
    """The images of figures/digits, by file name: small enough to ship, of every kind that `predict` reads."""

    def digit(number: int, style: int = 0, pen: float = 12, paper=(250, 250, 246), ink=(20, 20, 25)) -> Image.Image:
        return write(Image.new("RGB", (240, 240), paper), pen_mask(strokes(number, style), 240, 0.6, pen), ink)

    squared = ruled(240, 30, 2, squares=True)
    return {
        "drawn-3.png": digit(3),
        "chalk-5.png": digit(5, 1, 9, (35, 60, 45), (240, 240, 225)),
        "squared-2.png": write(squared, pen_mask(strokes(2), 240, 0.6, 8), (35, 55, 155)),
        "cropped-8.png": digit(8, 0, 20).crop((72, 44, 168, 196)),
        "photo-7.jpg": on_table(digit(7, 0, 8), (400, 300), 0.7, 8, 20, TABLES[1]),
    }


def on_table(
    sheet: Image.Image, size=(1200, 900), share=0.7, turn=0.0, tilt=0.0, table=TABLES[0], light=0.3, seed=0
) -> Image.Image:
    """A phone photo of a sheet on a table with a grain, (width, height) `size`, the sheet's longer side `share` of it.

    The sheet is turned on the table by `turn` degrees and the camera tilted by `tilt` degrees in a random direction.
    Light falls off to one side and to the corners by up to the share `light`; paper and camera have noise.
    """
    random = np.random.default_rng(seed)
    width, height = size
    angle, direction, tilted = np.deg2rad(turn), random.uniform(0, 2 * np.pi), np.deg2rad(tilt)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array(sheet.size) / max(sheet.size)
    corners = corners @ np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    axis = np.array([np.cos(direction), np.sin(direction)])
    along = corners @ axis
    seen = corners + np.outer(along * (np.cos(tilted) - 1), axis)
    seen /= 1 + along[:, None] * np.sin(tilted) / 4  # the camera is two sheets away
    low, high = seen.min(0), seen.max(0)
    scale = share * min(width, height) / max(high - low)
    free = np.array(size) - scale * (high - low)
    seen = (seen - low) * scale + free * random.uniform(0.1, 0.9, 2)
    rows, values = [], []
    ends = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * sheet.size
    for (x, y), (u, v) in zip(seen, ends, strict=True):  # the homography from the photo to the sheet
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
        values += [u, v]
    homography = np.linalg.solve(np.array(rows), np.array(values))
    warp = {"method": Image.Transform.PERSPECTIVE, "data": homography, "resample": Image.Resampling.BICUBIC}
    shrunk = max(sheet.size) / (scale * 2)
    soft = sheet.convert("RGB").filter(ImageFilter.GaussianBlur(max(0.0, float(shrunk) / 2 - 0.3)))
    paper = np.asarray(soft.transform(size, **warp), dtype=np.float32)
    opacity = np.asarray(Image.new("L", sheet.size, 255).transform(size, **warp), dtype=np.float32)[..., None] / 255
    grain = random.normal(0, 1, (height // 40 + 2, 6)).astype(np.float32)
    grain = np.asarray(Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC))[..., None]
    shadow = np.asarray(Image.fromarray(np.uint8(opacity[..., 0] * 255)).filter(ImageFilter.GaussianBlur(width / 100)))
    shadow = np.roll(shadow, (width // 200, width // 200), (0, 1))[..., None] / 255
    wood = np.array(table, dtype=np.float32) * (1 + 0.1 * grain) * (1 - 0.35 * shadow)
    texture = random.normal(0, 1, (height // 3 + 1, width // 3 + 1)).astype(np.float32)
    paper = paper * (1 + 0.01 * np.asarray(Image.fromarray(texture).resize(size, Image.Resampling.BICUBIC))[..., None])
    image = paper * opacity + wood * (1 - opacity)
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    fall = random.uniform(0, 2 * np.pi)
    brightness = 1 - light * (0.5 + 0.35 * (np.cos(fall) * x + np.sin(fall) * y)) - 0.15 * light * (x * x + y * y)
    blurred = Image.fromarray(np.uint8(np.clip(image * brightness[..., None], 0, 255)))
    blurred = np.asarray(blurred.filter(ImageFilter.GaussianBlur(width / 1500)), dtype=np.float32)
    noise = random.normal(0, random.uniform(1, 4), (height, width, 1))
    return Image.fromarray(np.uint8(np.clip(blurred + noise, 0, 255)))
