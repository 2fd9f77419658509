"""From uint8 images to what a network sees: normalised, and in training rotated, shifted, scaled and sheared.

A whole batch at a time, on the device that the images are on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe import Recipe

MEAN, STD = 0.1307, 0.3081  # of all pixels of the 60,000 training images, on the scale 0 to 1


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 28, 28) → float32 (N, 1, 28, 28) with about zero mean and unit variance."""
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD


def random_affine(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Draw `count` random affine maps (`affine_maps`), float32 (count, 2, 3), on the generator's device."""
    return affine_maps(draw(count, generator), recipe)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """The chance in `count` affine maps: float32 (5, count), each number uniform in 0 … 1."""
    return torch.rand(5, count, generator=generator, device=generator.device)


def affine_maps(draws: Tensor, recipe: Recipe) -> Tensor:
    """Affine maps, float32 (count, 2, 3), from `draws` (5, count) by the recipe's amounts.

    An image is enlarged, sheared, rotated and shifted, in this order, about its centre. `affine_grid` wants
    the way back, from a point of the new image to one of the old (coordinates from -1 to 1), so that is what
    is returned.
    """
    draws = draws * 2 - 1
    angle = draws[0] * math.radians(recipe.rotation)
    shear = torch.tan(draws[1] * math.radians(recipe.shear))
    scale = 1 + draws[2] * recipe.scale
    shift = draws[3:].T.unsqueeze(2) * (2 * recipe.translation)  # the image is 2 wide in these coordinates
    cos, sin = torch.cos(angle), torch.sin(angle)
    inverse = torch.stack([cos + shear * sin, sin - shear * cos, -sin, cos]) / scale
    inverse = inverse.T.reshape(-1, 2, 2)
    return torch.cat([inverse, -inverse @ shift], dim=2)


def warp(images: Tensor, affine: Tensor) -> Tensor:
    """Resample float images (N, 1, H, W) at the points that `affine` (N, 2, 3) names; what lies outside is black."""
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def warp_and_normalize(images: Tensor, affine: Tensor) -> Tensor:
    """uint8 (N, 28, 28) and affine maps (N, 2, 3) → float32 (N, 1, 28, 28)."""
    return (warp(images.unsqueeze(1).float() / 255, affine) - MEAN) / STD


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rotate, shift, scale and shear every image by amounts of its own, then normalise.

    uint8 (N, 28, 28) on the generator's device → float32 (N, 1, 28, 28).
    """
    if not recipe.augments:
        return normalize(images)
    return warp_and_normalize(images, random_affine(len(images), recipe, generator))
