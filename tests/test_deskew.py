"""The layer that makes digits upright, and the same in integers."""

import torch

from s5.deployment.deskew import deskew_bytes
from s5.networks.layers import MAX_SCALE, MIN_SCALE, Deskew, deskew
from s5.training.augmentation import MEAN, STD, normalize


def ink_of(images):
    """Normalised images (N, 1, 28, 28) as ink (N, 28, 28), 0 to 1, float64."""
    return (images.double() * STD + MEAN).squeeze(1)


def moments(images):
    """Centre (x, y), variance of the rows and covariance of each image, in pixels."""
    ink, places = ink_of(images), torch.arange(28) - 13.5
    mass = ink.sum((1, 2))
    x, y = (ink.sum(1) * places).sum(1) / mass, (ink.sum(2) * places).sum(1) / mass
    from_row, from_column = places - y[:, None], places - x[:, None]
    variance = (ink.sum(2) * from_row**2).sum(1) / mass
    covariance = torch.einsum("nij,ni,nj->n", ink, from_row, from_column) / mass
    return x, y, variance, covariance


def test_digits_become_upright_centred_and_equally_high(sample):
    digits = normalize(sample.train_images[:300])
    _, _, before, slanted = moments(digits)
    assert slanted.abs().median() > 2
    x, y, variance, covariance = moments(deskew(digits, 5.0))
    for value in (x, y, covariance):
        assert value.abs().quantile(0.9) < 0.25
        assert value.abs().max() < 1  # a few reach beyond the image and lose a corner
    scale = before.sqrt() / 5.0
    free = (scale > MIN_SCALE) & (scale < MAX_SCALE)
    assert free.float().mean() > 0.98
    assert (variance.sqrt()[free] - 5.0).abs().max() < 0.2


def test_images_without_a_digit_stay_finite():
    images = torch.zeros(4, 28, 28, dtype=torch.uint8)  # black, white, a dot, a line
    images[1], images[2, 3, 20], images[3, 9] = 255, 255, 255
    upright = deskew(normalize(images), 5.0)
    assert upright.isfinite().all()
    assert torch.allclose(upright[0], normalize(images[:1])[0], atol=1e-6)
    assert deskew_bytes(images[:1], 5.0).sum() == 0


def test_autocast_makes_no_difference(sample):
    digits = normalize(sample.train_images[:20])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Deskew(5.0)(digits), deskew(digits, 5.0))


def test_integers_are_within_rounding_of_floats(sample):
    images = sample.eval_images[:300]
    floats = ink_of(deskew(normalize(images), 5.0)) * 255
    difference = (deskew_bytes(images, 5.0) - floats).abs()
    assert difference.mean() < 0.3
    assert difference.max() < 4  # places are rounded to 1/256 of a pixel
