"""`layers.deskew` in integers: the reference that the generated C code (`c_files/deskew.c`) equals bit for bit.

Lengths are in pixels times 2^16, counted from the image's first pixel.
"""

import math

import torch
from torch import Tensor

from s5.networks.layers import MAX_SCALE, MAX_SLANT, MIN_SCALE

ONE = 2**16


def constants(height: float) -> dict[str, int]:
    """The numbers of the C code for a height in pixels, by name."""
    slant, low, high = (round(value * ONE) for value in (MAX_SLANT, MIN_SCALE, MAX_SCALE))
    return {"height": round(height * 256), "max_slant": slant, "min_scale": low, "max_scale": high}


def deskew_bytes(images: Tensor, height: float) -> Tensor:
    """uint8 (N, 28, 28) of uint8 images (N, 28, 28), each upright, in the middle, of this height; black stays black."""
    limits = constants(height)
    ink, side = images.long(), images.shape[-1]
    places = torch.arange(side)
    by_row, by_column = ink.sum(2), ink.sum(1)
    mass = by_row.sum(1).clamp(min=1)
    x, y = ((sums * places).sum(1) for sums in (by_column, by_row))
    variance = mass * (by_row * places**2).sum(1) - y**2  # times mass²
    covariance = mass * (ink * places[:, None] * places).sum((1, 2)) - x * y
    slant = ((covariance << 16) // variance.clamp(min=1)).clamp(-limits["max_slant"], limits["max_slant"])
    roots = torch.tensor([math.isqrt(value) for value in (variance << 16).tolist()])
    deviation = (roots << 8) // mass
    scale = ((deviation << 8) // limits["height"]).clamp(limits["min_scale"], limits["max_scale"])
    steps = scale[:, None] * (2 * places - (side - 1)) // 2  # from the middle, of rows and of columns
    rows = ((y << 16) // mass)[:, None] + steps
    shifts = slant[:, None] * steps // ONE  # of each row
    columns = (((x << 16) // mass)[:, None] + steps)[:, None] + shifts[:, :, None]
    return _sample(ink, rows[:, :, None].expand_as(columns), columns)


def _sample(ink: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 values of `ink` at int64 places (N, 28, 28), between four pixels; black outside."""
    bordered = torch.nn.functional.pad(ink, (1, 1, 1, 1))
    (top, down), (left, right) = ((place // ONE, place % ONE // 256) for place in (rows, columns))
    number, last = torch.arange(len(ink))[:, None, None], ink.shape[-1] + 1

    def at(row: Tensor, column: Tensor) -> Tensor:
        return bordered[number, (row + 1).clamp(0, last), (column + 1).clamp(0, last)]

    above = at(top, left) * (256 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (256 - right) + at(top + 1, left + 1) * right
    return ((above * (256 - down) + below * down + ONE // 2) >> 16).to(torch.uint8)
