"""Fused training layers against the layers that they replace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from s5.training import kernels
from s5.training.augmentation import normalize
from s5.training.device import prepare_device, to_device, use_threads
from s5.training.kernels import CompileError, NormRelu, can_compile, load_kernels
from tests.utils import SHORT, fit

needs_compiler = pytest.mark.skipif(not can_compile(), reason="requires a C++ compiler with OpenMP")
CPU, SHAPE = torch.device("cpu"), (5, 2, 8, 6)  # the shape of the images in most tests


def small_model(pools: bool = False, channels: int = 6) -> nn.Sequential:
    """A convolution, a batch normalisation with different weights, ReLU and perhaps max-pooling."""
    torch.manual_seed(channels)
    layers = [nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    model = nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pools else []))
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-0.5, 1.5, channels))
        model[1].bias.copy_(torch.linspace(-1, 1, channels))
    return model


def run(model: nn.Module, images: torch.Tensor, fused: bool) -> list[torch.Tensor]:
    """Outputs and the gradients of images and parameters, for a loss that weights every output differently."""
    images = images.clone().requires_grad_()
    with prepare_device(model, CPU, torch.get_num_threads(), compile=fused):
        outputs = model(images)
        (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    return [outputs, images.grad, *(parameter.grad for parameter in model.parameters())]


def assert_fused_is_equal(model: nn.Module, images: torch.Tensor, rtol: float = 1e-4, atol: float = 1e-4) -> None:
    """Two steps of a model and of its copy with fused layers: outputs, gradients and statistics."""
    reference = copy.deepcopy(model)
    for _ in range(2):
        for actual, expected in zip(run(model, images, True), run(reference, images, False), strict=True):
            torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8, 33])
def test_any_number_of_channels_side_layout_and_mean(pools, channels):
    model = small_model(pools, channels)
    for sides in ((2, 2), (6, 10), (14, 14)):
        assert_fused_is_equal(model, torch.randn(3, 2, *sides))
        model.zero_grad()
    images = torch.randn(SHAPE).to(memory_format=torch.channels_last)
    assert_fused_is_equal(model, images)
    assert_fused_is_equal(small_model(pools, channels), 1000 + images, rtol=2e-3, atol=2e-2)
    norm = nn.BatchNorm2d(2, eps=1, momentum=0.25)
    assert_fused_is_equal(nn.Sequential(norm, nn.ReLU(), *([nn.MaxPool2d(2)] if pools else [])), images)


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
def test_bfloat16_is_as_precise_as_with_the_layers(pools):
    model, images = small_model(pools), torch.randn(32, 2, 8, 8).to(memory_format=torch.channels_last)
    expected = run(copy.deepcopy(model).double(), images.double(), False)

    def relative_errors(fused: bool) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            actual = run(copy.deepcopy(model), images, fused)
        assert actual[0].dtype == torch.bfloat16
        return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]

    for fused_error, layer_error in zip(relative_errors(True), relative_errors(False), strict=True):
        assert fused_error < max(2 * layer_error, 0.02)


@needs_compiler
def test_gradients_on_digits_equal_those_in_float64(sample):
    """Digits have a background: blocks of equal pixels, whose gradient must not be counted four times."""
    net = helpers.build()
    model = nn.Sequential(net.conv1, net.gap, nn.Flatten(), nn.Linear(8, 10))
    reference = copy.deepcopy(model).double()
    images, labels = normalize(sample.train_images[:32]), sample.train_labels[:32]
    for network, inputs in ((reference, images.double()), (model, images)):
        with prepare_device(network, CPU, 1, compile=network is model):
            F.cross_entropy(network(inputs), labels).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (actual.grad - expected.grad).norm() / expected.grad.norm() < 0.01, name


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads_and_nan_is_not_hidden():
    images, norm = torch.randn(7, 6, 8, 8), nn.BatchNorm2d(6)
    results = []
    for threads in (1, 3):
        inputs = images.clone().requires_grad_()
        with use_threads(threads):
            outputs = NormRelu.apply(inputs, norm.weight, norm.bias, norm, True)
            outputs.square().sum().backward()
        results.append((outputs, inputs.grad, norm.weight.grad.clone()))
        norm.zero_grad()
    assert all(map(torch.equal, *results))
    images[0, 1, 2, 2] = float("nan")
    outputs = NormRelu.apply(images, norm.weight, norm.bias, norm, False)
    assert outputs[:, 1].isnan().all()
    assert not outputs[:, 0].isnan().any()


def changed(change) -> nn.Sequential:
    model = small_model(pools=True)
    change(model)
    return model


@needs_compiler
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (changed(lambda model: None), (4, 2, 7, 7)),
        (changed(lambda model: model.eval()), SHAPE),
        (changed(lambda model: model.double()), SHAPE),
        (changed(lambda model: model[1].register_forward_hook(lambda *_: None)), SHAPE),
        (nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.ReLU()), SHAPE),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU()), SHAPE),
    ],
)
def test_what_the_kernel_does_not_expect_runs_layer_by_layer(model, shape, monkeypatch):
    monkeypatch.setattr(kernels, "_call", lambda *_: pytest.fail("ran a kernel"))
    images = torch.randn(shape, dtype=next(model.parameters(), torch.zeros(1)).dtype)
    expected = copy.deepcopy(model)(images)
    with prepare_device(model, CPU, 1, compile=True):
        assert torch.equal(model(images), expected)


@needs_compiler
def test_net_is_fused_and_has_its_usual_layers_afterwards(small):
    model, fused = helpers.build(), []
    helpers.fit(model, small, SHORT, device="cpu", progress=lambda _: fused.append("forward" in vars(model.conv1)))
    assert fused == [True, True]
    assert not any("forward" in vars(module) for module in model.modules())
    (_, eager), (_, fused) = (fit(small, compile=compile) for compile in (False, None))
    for name in ("train_loss", "eval_loss"):
        assert [epoch[name] for epoch in fused] == pytest.approx([epoch[name] for epoch in eager], rel=0.02)


class OfAUser(nn.Module):
    """Its Sequential is followed by `view`, which works for the usual memory layout only, as in many tutorials."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.block = nn.Sequential(*small_model(), *layers)

    def forward(self, images):
        return self.block(images).view(len(images), -1)


@needs_compiler
def test_a_network_of_a_user_is_fused_but_for_a_sequential_with_layers_of_the_user():
    for model, is_fused in ((OfAUser(), True), (OfAUser(OfAUser()), False)):
        with prepare_device(model, CPU, 1):
            assert ("forward" in vars(model.block)) == is_fused
    assert_fused_is_equal(to_device(OfAUser(), CPU), torch.randn(SHAPE))


# --- Compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def uncompiled(monkeypatch, tmp_path):
    """As on a machine where nothing is compiled yet."""
    monkeypatch.setattr(kernels, "KERNELS", tmp_path / "kernels")
    for function in (load_kernels, can_compile):
        function.cache_clear()
    yield tmp_path
    for function in (load_kernels, can_compile):
        function.cache_clear()


def test_without_a_compiler_plain_layers_are_used_and_the_error_says_why(uncompiled, monkeypatch, small):
    for compiler, message in (("no-such-compiler", "by no-such-compiler"), ("false", r"cannot compile kernels\.cpp")):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(CompileError, match=message):
            fit(small, SHORT, compile=True)
    assert not can_compile()
    assert fit(small, SHORT)[1]
