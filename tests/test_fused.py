"""Fused training layers against the layers that they replace."""

import copy

import pytest
import torch
from torch import nn

import helpers
from experiments.candidates import KNOWN
from training import device, fused
from training.augmentation import normalize
from training.fused import Fused, can_fuse, compiles, fuse

needs_compiler = pytest.mark.skipif(not can_fuse(), reason="requires Linux, a C++ compiler and Python's headers")
SHAPE = (5, 2, 8, 6)  # of the images in most tests: compiled code is reused only for the same shape


def small_model(*last: nn.Module, channels: int = 6) -> nn.Sequential:
    """A convolution and a batch normalisation, then the layers `last`."""
    torch.manual_seed(channels)
    model = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), *last)
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.5, 1.5, channels))
        model[1].bias.copy_(torch.linspace(-1, 1, channels))
    return model


def run(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and the gradients of images and parameters, for a loss that weights every output differently."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    return [outputs, images.grad, *(parameter.grad for parameter in model.parameters())]


def fused_modules(model: nn.Module) -> list[Fused]:
    return [module for module in model.modules() if isinstance(module, Fused)]


@needs_compiler
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "last", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)], [nn.ReLU(), nn.MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1))]]
)
@pytest.mark.parametrize("mean", [0, 1000])  # a mean far from zero must not cost precision
def test_outputs_gradients_and_statistics_equal_those_of_the_layers(last, layout, mean):
    reference = small_model(*last)
    model = copy.deepcopy(reference)
    traced = fuse(model)
    assert len(fused_modules(traced)) == 1
    images = (mean + torch.randn(SHAPE)).to(memory_format=layout)
    for _ in range(2):
        for actual, expected in zip(run(traced, images), run(reference, images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-3 if mean else 1e-4, atol=2e-2 if mean else 1e-4)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@needs_compiler
@pytest.mark.parametrize("last", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)]])
def test_bfloat16_is_as_precise_as_with_the_layers(last):
    model, images = small_model(*last), torch.randn(32, 2, 8, 8).to(memory_format=torch.channels_last)
    expected = run(copy.deepcopy(model).double(), images.double())

    def relative_errors(network: nn.Module) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            actual = run(network, images)
        assert actual[0].dtype == torch.bfloat16
        return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]

    fused_errors, layer_errors = relative_errors(fuse(copy.deepcopy(model))), relative_errors(copy.deepcopy(model))
    for fused_error, layer_error in zip(fused_errors, layer_errors, strict=True):
        assert fused_error < max(2 * layer_error, 0.02)


@needs_compiler
def test_gradients_on_digits_equal_those_in_float64(sample):
    """Digits have a background: blocks of equal pixels, whose gradient must not be counted four times."""
    net = helpers.build()
    model = nn.Sequential(net.conv1, net.gap, nn.Flatten(), nn.Linear(8, 10))
    reference, traced = copy.deepcopy(model).double(), fuse(model)
    assert [module.pools for module in fused_modules(traced)] == [False, True]
    images, labels = normalize(sample.train_images[:32]), sample.train_labels[:32]
    for network, inputs in ((reference, images.double()), (traced, images)):
        network.train()
        nn.functional.cross_entropy(network(inputs), labels).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (actual.grad - expected.grad).norm() / expected.grad.norm() < 0.01, name


@needs_compiler
def test_other_batch_sizes_odd_sides_and_evaluation_run_layer_by_layer(monkeypatch):
    model = small_model(nn.ReLU(), nn.MaxPool2d(2))
    traced = fuse(model)
    run(traced, torch.randn(SHAPE))
    monkeypatch.setattr(fused, "_compiled", lambda function: pytest.fail("ran compiled code"))
    run(traced, torch.randn(3, 2, 8, 6))
    model.eval()
    run(traced, torch.randn(SHAPE))
    model.train()
    run(fuse(model), torch.randn(4, 2, 7, 7))


@needs_compiler
def test_a_normalisation_with_two_users_is_not_fused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu = nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, images):
            return self.relu(self.norm(images)) + self.norm(images)

    class OneOutputUsedTwice(Branches):
        def forward(self, images):
            normalized = self.norm(images)
            return self.relu(normalized) + normalized

    assert len(fused_modules(fuse(Branches()))) == 1  # of its two calls, the one that ReLU follows
    assert not fused_modules(fuse(OneOutputUsedTwice()))


@needs_compiler
def test_only_relu_and_2x2_pooling_are_fused():
    assert not fused_modules(fuse(small_model(nn.Sigmoid())))
    traced = fuse(small_model(nn.ReLU(), nn.MaxPool2d(3)))
    assert [module.pools for module in fused_modules(traced)] == [False]
    assert any(isinstance(module, nn.MaxPool2d) for module in traced.modules())


@needs_compiler
def test_a_network_that_cannot_be_traced_is_returned_unchanged():
    class DependsOnValues(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    model = DependsOnValues()
    assert fuse(model) is model


@needs_compiler
@pytest.mark.parametrize("name", ["s5", "separable", "gdconv"])
def test_every_normalisation_of_a_network_is_fused_and_shares_its_weights(name):
    model = helpers.build(KNOWN[name].build)
    traced = fuse(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.norm for module in fused_modules(traced)] == norms
    assert set(map(id, traced.parameters())) == set(map(id, model.parameters()))


def test_without_a_compiler_the_error_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert not can_fuse()
    with pytest.raises(ValueError, match=r"requires Linux, a C\+\+ compiler"):
        fuse(helpers.build())


@needs_compiler
def test_long_runs_on_a_cpu_are_compiled_if_that_works(monkeypatch):
    cpu = torch.device("cpu")
    assert compiles()
    assert not device.should_compile(cpu, 100)
    assert device.should_compile(cpu, 5000)
    assert not device.should_compile(torch.device("meta"), 5000)

    def fails(*_):
        raise RuntimeError("no OpenMP")

    monkeypatch.setattr(fused, "_compiled", lambda function: fails)
    assert not compiles.__wrapped__()
