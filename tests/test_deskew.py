"""The layer that makes digits upright: moments of the result, bad images, precision."""

import pytest
import torch

from s5.deployment.deskew import deskew_bytes, square_root
from s5.networks.layers import MAX_SCALE, MIN_SCALE, Deskew, deskew
from s5.training.augmentation import MEAN, STD, normalize


def ink_of(images):
    """Normalised images (N, 1, 28, 28) as ink (N, 28, 28), 0 to 1, float64."""
    return (images.double() * STD + MEAN).squeeze(1)


def moments(images):
    """Mass, centre (x, y), variance of the rows and covariance of each image, in pixels."""
    ink, places = ink_of(images), torch.arange(28) - 13.5
    mass = ink.sum((1, 2))
    x, y = (ink.sum(1) * places).sum(1) / mass, (ink.sum(2) * places).sum(1) / mass
    from_row, from_column = places - y[:, None], places - x[:, None]
    variance = (ink.sum(2) * from_row**2).sum(1) / mass
    covariance = torch.einsum("nij,ni,nj->n", ink, from_row, from_column) / mass
    return mass, x, y, variance, covariance


@pytest.fixture(scope="module")
def digits(sample):
    return normalize(sample.train_images[:300])


@pytest.mark.parametrize("height", [4.5, 5.0])
def test_digits_become_upright_centred_and_equally_high(digits, height):
    _, _, _, before, slanted = moments(digits)
    assert slanted.abs().median() > 2
    _, x, y, variance, covariance = moments(deskew(digits, height))
    for value in (x, y, covariance):
        assert value.abs().quantile(0.9) < 0.25
        assert value.abs().max() < 1  # a few reach beyond the image and lose a corner
    scale = before.sqrt() / height
    free = (scale > MIN_SCALE) & (scale < MAX_SCALE)
    assert free.float().mean() > 0.98
    assert (variance.sqrt()[free] - height).abs().max() < 0.2


def test_images_without_a_digit_stay_finite():
    black, white = torch.full((1, 1, 28, 28), -MEAN / STD), torch.full((1, 1, 28, 28), (1 - MEAN) / STD)
    dot = black.clone()
    dot[..., 3, 20] = (1 - MEAN) / STD
    line = black.clone()
    line[..., 9, :] = (1 - MEAN) / STD
    assert torch.allclose(deskew(black, 5.0), black, atol=1e-6)
    for image in (white, dot, line):
        assert deskew(image, 5.0).isfinite().all()
    _, x, y, _, _ = moments(deskew(dot, 5.0))
    assert max(x.abs(), y.abs()) < 0.01


def test_precision_and_batch_make_no_difference(digits):
    alone = torch.cat([deskew(image[None], 5.0) for image in digits[:20]])
    assert torch.allclose(deskew(digits[:20], 5.0), alone, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deskew(digits, 5.0), Deskew(5.0)(digits))
        assert Deskew(5.0)(digits).dtype == torch.float32
    assert torch.allclose(deskew(digits.double(), 5.0).float(), deskew(digits, 5.0), atol=1e-4)


def test_integers_are_within_rounding_of_floats(sample):
    images = sample.eval_images[:300]
    floats = ink_of(deskew(normalize(images), 5.0)) * 255
    difference = (deskew_bytes(images, 5.0) - floats).abs()
    assert difference.mean() < 0.3
    assert difference.max() < 4  # places are rounded to 1/256 of a pixel


def test_integers_keep_black_and_faint_images():
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    images[1, 3, 5] = 1
    upright = deskew_bytes(images, 5.0)
    assert upright[0].sum() == 0
    assert upright.max() <= 1


def test_square_root_is_exact():
    roots = torch.cat([torch.arange(1000), torch.randint(0, 2**30, (1000,)), torch.tensor([2**30, 2**31 - 1])])
    assert torch.equal(square_root(roots * roots), roots)
    assert torch.equal(square_root(roots[1:] * roots[1:] - 1), roots[1:] - 1)
    assert torch.equal(square_root(roots * roots + 2 * roots), roots)
