"""From uint8 images to network inputs: normalisation, and augmentation of a whole batch at a time on its device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.training.recipe import Recipe

KNOTS = 5  # elastic distortion draws its shifts on a grid of KNOTS × KNOTS points
MEAN, STD = 0.1307, 0.3081  # of all pixels of the 60,000 training images, on the scale 0 to 1


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) → float32 (N, 1, 28, 28) with about zero mean and unit variance."""
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD


def affine_maps(draws: Tensor, recipe: Recipe) -> Tensor:
    """Affine maps, float32 (count, 2, 3), from the first five rows of `draws` (…, count) and the recipe's ranges.

    An image is scaled, sheared, rotated and shifted, in this order, about its centre. The result is the inverse of
    that map, from output to input coordinates in [-1, 1], as `affine_grid` requires.
    """
    draws = draws[:5] * 2 - 1
    angle = draws[0] * math.radians(recipe.rotation)
    shear = torch.tan(draws[1] * math.radians(recipe.shear))
    scale = 1 + draws[2] * recipe.scale
    shift = draws[3:].T.unsqueeze(2) * (2 * recipe.translation)  # the image is 2 wide in these coordinates
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = torch.stack([cos + shear * sin, sin - shear * cos, -sin, cos]) / scale
    inverse = inverse.T.reshape(-1, 2, 2)
    return torch.cat([inverse, -inverse @ shift], dim=2)


def elastic_shifts(draws: Tensor, recipe: Recipe, side: int = 28) -> Tensor:
    """The shift of each pixel's source, float32 (count, side, side, 2) in `affine_grid`'s coordinates.

    The rows of `draws` after the fifth are shifts at KNOTS × KNOTS points, interpolated in between.
    After Simard, Steinkraus and Platt, "Best practices for convolutional neural networks", 2003.
    """
    knots = (draws[5:] * 2 - 1).T.reshape(-1, 2, KNOTS, KNOTS)
    shifts = F.interpolate(knots, size=(side, side), mode="bicubic", align_corners=True)
    return shifts.permute(0, 2, 3, 1) * (2 * recipe.elastic / side)


def warp(images: Tensor, affine: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Resample float images (N, 1, H, W) by inverse maps `affine` (N, 2, 3), plus `shifts` (N, H, W, 2) if given.

    Pixels from outside the image are black.
    """
    # The sum of a part per column and a part per row is faster than the matrix products of F.affine_grid.
    x, y = ((torch.arange(n, device=images.device) * 2 + 1) / n - 1 for n in (images.shape[3], images.shape[2]))
    grid = (x[:, None] * affine[:, None, None, :, 0] + affine[:, None, None, :, 2]) + (
        y[:, None, None] * affine[:, None, None, :, 1]
    )
    if shifts is not None:
        grid = grid + shifts
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Augment every image by random amounts of its own, within the recipe's ranges, and normalise.

    uint8 (N, 28, 28) on the generator's device → float32 (N, 1, 28, 28).
    """
    if not recipe.augments:
        return normalize(images)
    numbers = 5 + (2 * KNOTS**2 if recipe.elastic else 0)  # for each image
    draws = torch.rand(numbers, len(images), generator=generator, device=generator.device)
    shifts = elastic_shifts(draws, recipe, images.shape[-1]) if recipe.elastic else None
    return (warp(images.unsqueeze(1).float() / 255, affine_maps(draws, recipe), shifts) - MEAN) / STD
