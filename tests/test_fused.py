"""Fused training layers against the layers that they replace."""

import copy
import os
import stat

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from experiments.candidates import KNOWN
from training import device, kernels
from training.augmentation import normalize
from training.fused import FusedNorm, fuse
from training.kernels import CompileError, NormRelu, can_compile, load_kernels

needs_compiler = pytest.mark.skipif(not can_compile(), reason="requires a C++ compiler with OpenMP")
SHAPE = (5, 2, 8, 6)  # of the images in most tests


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


def fused_modules(model: nn.Module) -> list[FusedNorm]:
    return [module for module in model.modules() if isinstance(module, FusedNorm)]


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
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 20, 33])
@pytest.mark.parametrize("pools", [False, True])
def test_any_number_of_channels_and_any_side(channels, pools):
    reference = small_model(nn.ReLU(), *([nn.MaxPool2d(2)] if pools else []), channels=channels)
    traced = fuse(copy.deepcopy(reference))
    for sides in ((2, 2), (6, 10), (14, 14)):
        images = torch.randn(3, 2, *sides)
        for actual, expected in zip(run(traced, images), run(reference, images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        traced.zero_grad()
        reference.zero_grad()


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
def test_a_negative_or_zero_weight_of_the_normalisation(pools):
    reference = small_model(nn.ReLU(), *([nn.MaxPool2d(2)] if pools else []))
    with torch.no_grad():
        reference[1].weight.copy_(torch.tensor([-1.0, 0.0, 1.0, -0.5, 0.0, 2.0]))
    traced = fuse(copy.deepcopy(reference))
    images = torch.randn(SHAPE)
    for actual, expected in zip(run(traced, images), run(reference, images), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
    images, norm = torch.randn(7, 6, 8, 8), nn.BatchNorm2d(6)
    results, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        inputs = images.clone().requires_grad_()
        outputs = NormRelu.apply(inputs, norm.weight, norm.bias, norm, True)
        outputs.square().sum().backward()
        results.append((outputs, inputs.grad, norm.weight.grad.clone()))
        norm.zero_grad()
    torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
def test_nan_is_not_hidden(pools):
    images, norm = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3)
    images[0, 1, 2, 2] = float("nan")
    outputs = NormRelu.apply(images, norm.weight, norm.bias, norm, pools)
    assert outputs[:, 1].isnan().all()
    assert not outputs[:, 0].isnan().any()


@needs_compiler
def test_odd_sides_one_value_and_evaluation_run_layer_by_layer(monkeypatch):
    model = small_model(nn.ReLU(), nn.MaxPool2d(2))
    traced = fuse(model)
    monkeypatch.setattr(kernels, "_call", lambda *_: pytest.fail("ran a kernel"))
    run(traced, torch.randn(4, 2, 7, 7))
    traced.double()(torch.randn(SHAPE).double())
    model.float().eval()
    run(traced, torch.randn(SHAPE))


@needs_compiler
def test_forward_passes_are_run_as_written():
    """Also where they decide something anew in every call: nothing is recorded once and replayed."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.norm, self.calls = small_model(nn.ReLU()), nn.BatchNorm2d(6), 0

        def forward(self, images):
            self.calls += 1
            features = self.block(images)
            return F.relu(self.norm(features)) if self.calls % 2 else F.dropout(features, 1.0, self.training)

    model = Branches().eval()  # as after an evaluation
    traced = fuse(model)
    assert len(fused_modules(traced)) == 1
    model.train()
    images = torch.randn(SHAPE)
    assert traced(images).any()
    assert not traced(images).any(), "dropout of everything"


@needs_compiler
def test_layers_that_someone_listens_to_are_not_fused():
    for layer in range(3):
        model, heard = small_model(nn.ReLU(), nn.MaxPool2d(2)), []
        model[layer + 1].register_forward_hook(lambda *_, heard=heard: heard.append(1))
        fuse(model)(torch.randn(SHAPE))
        assert heard == [1]


@needs_compiler
def test_a_network_without_such_layers_stays_the_same_object():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert fuse(model) is model


@needs_compiler
def test_only_relu_and_2x2_pooling_are_fused():
    assert not fused_modules(fuse(small_model(nn.Sigmoid())))
    traced = fuse(small_model(nn.ReLU(), nn.MaxPool2d(3)))
    assert [module.pools for module in fused_modules(traced)] == [False]
    assert any(isinstance(module, nn.MaxPool2d) for module in traced.modules())


@needs_compiler
@pytest.mark.parametrize("name", ["s5", "separable", "to_99_0"])
def test_every_normalisation_of_a_network_is_fused_and_shares_its_weights(name):
    model = helpers.build(KNOWN[name].build)
    traced = fuse(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.norm for module in fused_modules(traced)] == norms
    assert set(map(id, traced.parameters())) == set(map(id, model.parameters()))


@pytest.fixture
def uncompiled(monkeypatch, tmp_path):
    """As on a machine where nothing is compiled yet."""
    monkeypatch.setattr(kernels, "KERNELS", tmp_path / "kernels")
    for function in (load_kernels, can_compile):
        function.cache_clear()
    yield tmp_path
    for function in (load_kernels, can_compile):
        function.cache_clear()


def test_without_a_compiler_the_error_names_what_is_missing(uncompiled, monkeypatch):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert not can_compile()
    model = helpers.build()
    assert device.compile_model(model, torch.device("cpu"), None) is model
    with pytest.raises(CompileError, match=r"requires a C\+\+ compiler, g\+\+ or clang\+\+, which is not installed"):
        fuse(helpers.build())


@pytest.mark.skipif(os.name != "posix", reason="requires a shell script as the compiler")
def test_a_compiler_that_fails_is_quoted_and_plain_layers_are_used(uncompiled, monkeypatch, small):
    compiler = uncompiled / "broken"
    compiler.write_text("#!/bin/sh\necho 'no OpenMP here' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompileError, match=r"cannot compile kernels\.cpp: no OpenMP here"):
        load_kernels()
    assert not can_compile()
    assert helpers.fit(helpers.build(), small, helpers.Recipe(epochs=1), progress=False)
    assert not list((uncompiled / "kernels").iterdir())


@needs_compiler
def test_kernels_are_kept_on_disk_or_compiled_elsewhere_if_that_fails(uncompiled, monkeypatch):
    load_kernels()
    (kept,) = (uncompiled / "kernels").iterdir()
    written = kept.stat().st_mtime_ns
    load_kernels.cache_clear()
    load_kernels()
    assert kept.stat().st_mtime_ns == written
    kept.unlink()  # not overwritten: this process runs it
    kept.write_text("damaged")
    load_kernels.cache_clear()
    assert load_kernels().norm_forward
    (uncompiled / "file").touch()
    monkeypatch.setattr(kernels, "KERNELS", uncompiled / "file" / "kernels")
    load_kernels.cache_clear()
    assert load_kernels().norm_forward


@needs_compiler
def test_only_the_cpu_compiles_without_being_asked():
    model = helpers.build()
    assert fused_modules(device.compile_model(model, torch.device("cpu"), None))
    assert device.compile_model(model, torch.device("cuda"), None) is model
    assert device.compile_model(model, torch.device("cpu"), False) is model
