"""Our batch normalisation against torch's."""

import copy

import pytest
import torch
from torch import nn

from batchnorm import BatchNorm2d


@pytest.fixture(autouse=True)
def _two_threads():
    """One thread leaves the work to torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def twins(channels: int, dtype=torch.float32):
    """The same layer twice, ours and torch's, with statistics and weights that are not the initial ones."""
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    chance = torch.Generator().manual_seed(channels)
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=chance) + 0.5)
            theirs.state_dict()[name].copy_(tensor)
    images = (3 + 2 * torch.randn(7, channels, 6, 6, generator=chance)).to(dtype)
    return ours, theirs, images.to(memory_format=torch.channels_last)


def run(layer: nn.Module, images: torch.Tensor):
    images = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(images)
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return output, images.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 16, 40, 200])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_statistics_are_torchs(channels, training):
    ours, theirs, images = twins(channels)
    for layer in (ours, theirs):
        layer.train(training)
    for mine, wanted in zip(run(ours, images), run(theirs, images), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], msg=name)


def test_in_float64_to_the_last_digits():
    ours, theirs, images = twins(8)
    exact = run(copy.deepcopy(theirs).double(), images.double())
    for mine, wanted in zip(run(ours, images), exact, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_near_as_torchs():
    ours, theirs, images = twins(8, torch.bfloat16)
    exact = run(copy.deepcopy(theirs).double(), images.double())
    for mine, torchs, wanted in zip(run(ours, images), run(theirs, images), exact, strict=True):
        assert mine.dtype == torchs.dtype
        error, usual = ((each.double() - wanted).norm() / wanted.norm() for each in (mine, torchs))
        assert error < max(2 * usual, 0.01)


def test_one_thread_leaves_it_to_torch():
    ours, theirs, images = twins(8)
    torch.set_num_threads(1)
    assert all(torch.equal(mine, wanted) for mine, wanted in zip(run(ours, images), run(theirs, images), strict=True))
    torch.set_num_threads(2)
    assert not torch.equal(run(ours, images)[1], run(theirs, images)[1])


def test_channels_last_stays():
    ours, _, images = twins(8)
    assert ours(images).is_contiguous(memory_format=torch.channels_last)


def test_a_mean_far_from_zero_loses_nothing():
    ours, theirs, images = twins(4)
    for mine, wanted in zip(run(ours, images + 1000), run(theirs, images + 1000), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-3)
