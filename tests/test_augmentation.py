"""Augmentation against a slow float64 reference, and its random numbers."""

import math

import numpy as np
import torch

from s5.training.augmentation import KNOTS, MEAN, STD, augment, elastic_shifts, normalize
from s5.training.recipe import NO_AUGMENTATION, Recipe

ELASTIC = Recipe(**NO_AUGMENTATION | {"elastic": 2.0})


def reference_warp(image: np.ndarray, angle: float, shear: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """Scale, shear, rotate and shift an image about its centre, one pixel at a time: bilinear, black outside.

    Takes and returns float64 (side, side); angles in radians, `shift` (x, y) as fractions of the side.
    """
    side = image.shape[0]
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = rotation @ np.array([[1, shear], [0, 1]]) * scale
    centre = (side - 1) / 2
    result = np.zeros((side, side))
    for y in range(side):
        for x in range(side):
            target = np.array([x - centre, y - centre]) - shift * side
            source_x, source_y = np.linalg.solve(forward, target) + centre
            left, top = math.floor(source_x), math.floor(source_y)
            for row in (top, top + 1):
                for column in (left, left + 1):
                    if 0 <= row < side and 0 <= column < side:
                        weight = (1 - abs(source_x - column)) * (1 - abs(source_y - row))
                        result[y, x] += weight * image[row, column]
    return result


def test_augmentation_matches_a_float64_reference(sample):
    recipe = Recipe(rotation=25.0, translation=0.15, scale=0.2, shear=15.0)
    images = sample.train_images[:6]
    augmented = augment(images, recipe, torch.Generator().manual_seed(5)) * STD + MEAN

    draws = torch.rand(5, 6, generator=torch.Generator().manual_seed(5)).double().numpy() * 2 - 1
    for index in range(6):
        expected = reference_warp(
            images[index].double().numpy() / 255,
            angle=math.radians(25) * draws[0, index],
            shear=math.tan(math.radians(15) * draws[1, index]),
            scale=1 + 0.2 * draws[2, index],
            shift=0.15 * draws[3:, index],
        )
        np.testing.assert_allclose(augmented[index, 0].numpy(), expected, atol=2e-4)


def test_elastic_shifts_interpolate_the_shifts_of_the_knots():
    draws = torch.rand(5 + 2 * KNOTS**2, 50)
    shifts = elastic_shifts(draws, ELASTIC) * 28 / 2  # pixels
    assert shifts.shape == (50, 28, 28, 2)
    first_knot = (draws[[5, 5 + KNOTS**2]] * 2 - 1).T * 2.0  # x and y
    torch.testing.assert_close(shifts[:, 0, 0], first_knot)
    assert 1.9 < shifts.abs().max() < 3.0
    assert shifts.diff(dim=1).abs().max() < 1.0  # smooth: neighbours move together


def test_without_augmentation_images_are_only_normalised(sample):
    images = sample.train_images[:10]
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(images, Recipe(**NO_AUGMENTATION), generator), normalize(images))
    assert abs(normalize(sample.train_images).mean()) < 0.05
    assert abs(normalize(sample.train_images).std() - 1) < 0.05
