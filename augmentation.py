"""From uint8 images to what a network sees: normalised, and in training rotated, shifted, scaled, sheared and bent.

A whole batch at a time, on the device that the images are on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe import Recipe

KNOTS = 5  # along each side of the image, where elastic distortion draws its shifts
MEAN, STD = 0.1307, 0.3081  # of all pixels of the 60,000 training images, on the scale 0 to 1


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) → float32 (N, 1, 28, 28) with about zero mean and unit variance."""
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD


def random_affine(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Draw `count` random affine maps (`affine_maps`), float32 (count, 2, 3), on the generator's device."""
    return affine_maps(draw(count, recipe, generator), recipe)


def draw(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The chance in `count` images' augmentation: float32 (5 or more, count), each number uniform in 0 … 1."""
    numbers = 5 + (2 * KNOTS**2 if recipe.elastic else 0)
    return torch.rand(numbers, count, generator=generator, device=generator.device)


def affine_maps(draws: Tensor, recipe: Recipe) -> Tensor:
    """Affine maps, float32 (count, 2, 3), from the first five of `draws` (…, count) by the recipe's amounts.

    An image is enlarged, sheared, rotated and shifted, in this order, about its centre. `affine_grid` wants
    the way back, from a point of the new image to one of the old (coordinates from -1 to 1), so that is what
    is returned.
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
    """By how much each pixel's source moves, float32 (count, side, side, 2) in `affine_grid`'s coordinates.

    The rest of `draws` are shifts at KNOTS × KNOTS places, up to the recipe's amount; between them they change
    smoothly. After Simard, Steinkraus and Platt, "Best practices for convolutional neural networks", 2003.
    """
    knots = (draws[5:] * 2 - 1).T.reshape(-1, 2, KNOTS, KNOTS)
    shifts = F.interpolate(knots, size=(side, side), mode="bicubic", align_corners=True)
    return shifts.permute(0, 2, 3, 1) * (2 * recipe.elastic / side)


def warp(images: Tensor, affine: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Resample float images (N, 1, H, W) at the points that `affine` (N, 2, 3) names; what lies outside is black.

    `shifts` (N, H, W, 2) move each point.
    """
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    if shifts is not None:
        grid = grid + shifts
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def augment_by(draws: Tensor, images: Tensor, recipe: Recipe) -> Tensor:
    """uint8 (N, 28, 28) and what was drawn for them (`draw`) → float32 (N, 1, 28, 28)."""
    shifts = elastic_shifts(draws, recipe, images.shape[-1]) if recipe.elastic else None
    return (warp(images.unsqueeze(1).float() / 255, affine_maps(draws, recipe), shifts) - MEAN) / STD


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rotate, shift, scale, shear and bend every image by amounts of its own, then normalise.

    uint8 (N, 28, 28) on the generator's device → float32 (N, 1, 28, 28).
    """
    if not recipe.augments:
        return normalize(images)
    return augment_by(draw(len(images), recipe, generator), images, recipe)
