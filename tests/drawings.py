"""Digits drawn with a pen, in several styles, on paper of several kinds: what photos of handwriting look like.

A digit is a list of strokes, each a list of points (x, y) in a box one unit high, y pointing down. A stroke of the kind
"curve" passes smoothly through its points; "line" connects them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

C, L = "curve", "line"
RING = [(0.3, 0), (0.08, 0.2), (0.02, 0.5), (0.1, 0.82), (0.3, 1), (0.5, 0.82), (0.58, 0.5), (0.52, 0.2), (0.3, 0)]
STYLES: dict[int, list[list[tuple[str, list[tuple[float, float]]]]]] = {
    0: [
        [(C, RING)],
        [(C, [(0.42, 0.04), (0.14, 0.12), (0, 0.5), (0.1, 0.9), (0.36, 1), (0.6, 0.7), (0.6, 0.3), (0.42, 0.02)])],
        [(C, [(0.35, 0), (0.16, 0.25), (0.12, 0.6), (0.22, 0.95), (0.38, 0.95), (0.48, 0.6), (0.46, 0.2), (0.35, 0)])],
    ],
    1: [
        [(L, [(0.3, 0), (0.3, 1)])],
        [(L, [(0.1, 0.25), (0.32, 0), (0.32, 1)])],
        [(L, [(0.4, 0), (0.2, 1)])],
    ],
    2: [
        [
            (C, [(0.04, 0.25), (0.12, 0.06), (0.34, 0), (0.54, 0.16), (0.46, 0.46), (0.04, 1)]),
            (L, [(0.04, 1), (0.6, 1)]),
        ],
        [
            (C, [(0.05, 0.2), (0.28, 0), (0.52, 0.2), (0.42, 0.55), (0.15, 0.92), (0.04, 0.92), (0.1, 0.82)]),
            (C, [(0.1, 0.82), (0.26, 0.88), (0.42, 1), (0.62, 0.92)]),
        ],
        [
            (C, [(0.08, 0.12), (0.34, 0), (0.5, 0.2), (0.4, 0.5), (0.06, 0.98)]),
            (C, [(0.06, 0.98), (0.3, 0.93), (0.6, 0.98)]),
        ],
    ],
    3: [
        [
            (C, [(0.06, 0.12), (0.28, 0), (0.5, 0.14), (0.44, 0.38), (0.22, 0.47)]),
            (C, [(0.22, 0.47), (0.5, 0.56), (0.54, 0.8), (0.3, 1), (0.02, 0.88)]),
        ],
        [
            (L, [(0.06, 0.02), (0.52, 0.02), (0.26, 0.4)]),
            (C, [(0.26, 0.4), (0.52, 0.5), (0.54, 0.8), (0.3, 1), (0.04, 0.9)]),
        ],
        [
            (C, [(0.1, 0.06), (0.36, 0), (0.52, 0.16), (0.4, 0.38), (0.2, 0.44)]),
            (C, [(0.2, 0.44), (0.46, 0.5), (0.5, 0.76), (0.24, 1), (0.04, 0.94)]),
        ],
    ],
    4: [
        [(L, [(0.4, 0), (0.02, 0.68), (0.6, 0.68)]), (L, [(0.42, 0.4), (0.42, 1)])],
        [(L, [(0.1, 0), (0.06, 0.5), (0.56, 0.48)]), (L, [(0.48, 0.05), (0.44, 1)])],
        [(L, [(0.44, 1), (0.44, 0), (0, 0.64), (0.6, 0.64)])],
    ],
    5: [
        [
            (L, [(0.54, 0), (0.12, 0), (0.1, 0.42)]),
            (C, [(0.1, 0.42), (0.34, 0.36), (0.56, 0.62), (0.38, 0.96), (0.04, 0.92)]),
        ],
        [
            (L, [(0.16, 0.02), (0.1, 0.45)]),
            (C, [(0.1, 0.45), (0.4, 0.4), (0.54, 0.7), (0.3, 1), (0.02, 0.9)]),
            (L, [(0.16, 0.02), (0.56, 0.04)]),
        ],
        [
            (L, [(0.58, 0.02), (0.2, 0.04), (0.14, 0.4)]),
            (C, [(0.14, 0.4), (0.44, 0.44), (0.5, 0.76), (0.26, 1), (0.04, 0.94)]),
        ],
    ],
    6: [
        [
            (
                C,
                [
                    (0.46, 0),
                    (0.18, 0.3),
                    (0.04, 0.68),
                    (0.2, 0.98),
                    (0.46, 0.9),
                    (0.52, 0.66),
                    (0.32, 0.5),
                    (0.08, 0.66),
                ],
            )
        ],
        [
            (
                C,
                [
                    (0.5, 0.06),
                    (0.24, 0.14),
                    (0.06, 0.5),
                    (0.1, 0.88),
                    (0.34, 1),
                    (0.54, 0.78),
                    (0.36, 0.56),
                    (0.07, 0.7),
                ],
            )
        ],
        [(C, [(0.3, 0), (0.1, 0.4), (0.08, 0.8), (0.26, 1), (0.48, 0.86), (0.44, 0.62), (0.22, 0.6), (0.08, 0.76)])],
    ],
    7: [
        [(L, [(0.02, 0.02), (0.56, 0.02), (0.22, 1)])],
        [(L, [(0.02, 0.04), (0.58, 0), (0.26, 1)]), (L, [(0.2, 0.5), (0.56, 0.48)])],
        [(C, [(0.04, 0.1), (0.06, 0.02), (0.3, 0.05), (0.58, 0)]), (C, [(0.58, 0), (0.36, 0.4), (0.26, 1)])],
    ],
    8: [
        [
            (
                C,
                [(0.5, 0.12), (0.28, 0), (0.08, 0.18), (0.28, 0.46), (0.54, 0.76), (0.3, 1), (0.06, 0.78), (0.3, 0.46)],
            ),
            (C, [(0.3, 0.46), (0.5, 0.26), (0.5, 0.12)]),
        ],
        [
            (C, [(0.3, 0), (0.1, 0.2), (0.3, 0.45), (0.5, 0.2), (0.3, 0)]),
            (C, [(0.3, 0.45), (0.04, 0.72), (0.3, 1), (0.56, 0.72), (0.3, 0.45)]),
        ],
        [
            (
                C,
                [
                    (0.44, 0.08),
                    (0.2, 0.04),
                    (0.16, 0.3),
                    (0.44, 0.6),
                    (0.4, 0.96),
                    (0.14, 0.94),
                    (0.16, 0.66),
                    (0.46, 0.3),
                    (0.44, 0.08),
                ],
            )
        ],
    ],
    9: [
        [
            (C, [(0.52, 0.2), (0.3, 0), (0.06, 0.2), (0.14, 0.46), (0.4, 0.44), (0.52, 0.2)]),
            (L, [(0.53, 0.1), (0.48, 1)]),
        ],
        [
            (C, [(0.5, 0.26), (0.34, 0.02), (0.08, 0.16), (0.14, 0.46), (0.38, 0.44), (0.5, 0.22)]),
            (C, [(0.5, 0.22), (0.48, 0.7), (0.14, 1)]),
        ],
        [(C, [(0.48, 0.1), (0.2, 0.04), (0.06, 0.3), (0.26, 0.46), (0.48, 0.1)]), (L, [(0.48, 0.1), (0.36, 1)])],
    ],
}


def strokes(digit: int, style: int = 0, slant: float = 0.0, wobble: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    """The strokes of a digit as dense polylines, float (N, 2) in a box one unit high, centred on (0, 0).

    `slant` leans it to the right, as a share of its height; `wobble` moves each point at random, as a shaky hand does.
    """
    random = np.random.default_rng((seed, digit, style))
    lines = []
    for kind, points in STYLES[digit][style % len(STYLES[digit])]:
        points = np.array(points) - (0.3, 0.5)
        points = points + random.normal(0, wobble, points.shape)
        points[:, 0] -= slant * points[:, 1]
        lines.append(_smooth(points) if kind == C else points)
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
