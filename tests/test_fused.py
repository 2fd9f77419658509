"""Fused training layers against the layers that they replace."""

import copy
import os
import stat

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from s5.experiments.claims import KNOWN
from s5.training import device, kernels
from s5.training.augmentation import normalize
from s5.training.cpu import use_threads
from s5.training.fused import FusedNorm, fuse, fusible
from s5.training.kernels import CompileError, NormRelu, can_compile, load_kernels

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


def run(model: nn.Module, images: torch.Tensor, forward=None) -> list[torch.Tensor]:
    """Outputs and the gradients of images and parameters, for a loss that weights every output differently."""
    images = images.clone().requires_grad_()
    outputs = (forward or model)(images)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    return [outputs, images.grad, *(parameter.grad for parameter in model.parameters())]


def run_fused(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return run(model, images, fuse(model))


def fused_norms(model: nn.Module) -> list[FusedNorm]:
    return [layer for _, layers in fusible(model) for layer in layers if isinstance(layer, FusedNorm)]


@needs_compiler
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "last", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)], [nn.ReLU(), nn.MaxPool2d((2, 2), (2, 2), (0, 0), (1, 1))]]
)
@pytest.mark.parametrize("mean", [0, 1000])  # a mean far from zero must not cost precision
def test_outputs_gradients_and_statistics_equal_those_of_the_layers(last, layout, mean):
    reference = small_model(*last)
    model = copy.deepcopy(reference)
    assert len(fused_norms(model)) == 1
    images = (mean + torch.randn(SHAPE)).to(memory_format=layout)
    for _ in range(2):
        for actual, expected in zip(run_fused(model, images), run(reference, images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-3 if mean else 1e-4, atol=2e-2 if mean else 1e-4)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@needs_compiler
@pytest.mark.parametrize("last", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)]])
def test_bfloat16_is_as_precise_as_with_the_layers(last):
    model, images = small_model(*last), torch.randn(32, 2, 8, 8).to(memory_format=torch.channels_last)
    expected = run(copy.deepcopy(model).double(), images.double())

    def relative_errors(run) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            actual = run(copy.deepcopy(model), images)
        assert actual[0].dtype == torch.bfloat16
        return [((a.double() - e).norm() / e.norm()).item() for a, e in zip(actual, expected, strict=True)]

    fused_errors, layer_errors = relative_errors(run_fused), relative_errors(run)
    for fused_error, layer_error in zip(fused_errors, layer_errors, strict=True):
        assert fused_error < max(2 * layer_error, 0.02)


@needs_compiler
def test_gradients_on_digits_equal_those_in_float64(sample):
    """Digits have a background: blocks of equal pixels, whose gradient must not be counted four times."""
    net = helpers.build()
    model = nn.Sequential(net.conv1, net.gap, nn.Flatten(), nn.Linear(8, 10))
    reference = copy.deepcopy(model).double()
    assert [layer.pools for layer in fused_norms(model)] == [False, True]
    images, labels = normalize(sample.train_images[:32]), sample.train_labels[:32]
    for network, inputs in ((reference, images.double()), (fuse(model), images)):
        nn.functional.cross_entropy(network(inputs), labels).backward()
    for (name, actual), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (actual.grad - expected.grad).norm() / expected.grad.norm() < 0.01, name


@needs_compiler
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 12, 20, 33])
@pytest.mark.parametrize("pools", [False, True])
def test_any_number_of_channels_and_any_side(channels, pools):
    reference = small_model(nn.ReLU(), *([nn.MaxPool2d(2)] if pools else []), channels=channels)
    model = copy.deepcopy(reference)
    for sides in ((2, 2), (6, 10), (14, 14)):
        images = torch.randn(3, 2, *sides)
        for actual, expected in zip(run_fused(model, images), run(reference, images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        model.zero_grad()
        reference.zero_grad()


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
def test_a_negative_or_zero_weight_of_the_normalisation(pools):
    reference = small_model(nn.ReLU(), *([nn.MaxPool2d(2)] if pools else []))
    with torch.no_grad():
        reference[1].weight.copy_(torch.tensor([-1.0, 0.0, 1.0, -0.5, 0.0, 2.0]))
    images = torch.randn(SHAPE)
    for actual, expected in zip(run_fused(copy.deepcopy(reference), images), run(reference, images), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_results_do_not_depend_on_the_number_of_threads():
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


@needs_compiler
@pytest.mark.parametrize("pools", [False, True])
def test_nan_is_not_hidden(pools):
    images, norm = torch.randn(2, 3, 4, 4), nn.BatchNorm2d(3)
    images[0, 1, 2, 2] = float("nan")
    outputs = NormRelu.apply(images, norm.weight, norm.bias, norm, pools)
    assert outputs[:, 1].isnan().all()
    assert not outputs[:, 0].isnan().any()


def unusual(change) -> nn.Sequential:
    model = small_model(nn.ReLU(), nn.MaxPool2d(2))
    change(model)
    return model


@needs_compiler
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (unusual(lambda model: None), (4, 2, 7, 7)),
        (unusual(lambda model: model.eval()), SHAPE),
        (unusual(lambda model: model.double()), SHAPE),
        (unusual(lambda model: setattr(model[1], "momentum", None)), SHAPE),
        (unusual(lambda model: setattr(model[1], "bias", None)), SHAPE),
        (nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.ReLU()), SHAPE),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU()), SHAPE),
    ],
)
def test_what_the_kernel_does_not_expect_runs_layer_by_layer(model, shape, monkeypatch):
    monkeypatch.setattr(kernels, "_call", lambda *_: pytest.fail("ran a kernel"))
    images = torch.randn(shape, dtype=next(model.parameters(), torch.zeros(1)).dtype)
    assert torch.equal(fuse(copy.deepcopy(model))(images), copy.deepcopy(model)(images))


@needs_compiler
@pytest.mark.parametrize(
    ("layers", "shape"),
    [([nn.BatchNorm2d(8), nn.ReLU()], (2, 4, 6, 6)), ([nn.BatchNorm2d(4), nn.ReLU()], (2, 8, 6, 6))],
)
def test_a_wrong_number_of_channels_is_torchs_error_and_no_broken_memory(layers, shape):
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        fuse(nn.Sequential(*layers))(torch.randn(shape))


@needs_compiler
@pytest.mark.parametrize("momentum", [0, 1, 0.25])
def test_whole_numbers_as_settings(momentum):
    reference = nn.Sequential(nn.BatchNorm2d(2, eps=1, momentum=momentum), nn.ReLU())
    model, images = copy.deepcopy(reference), torch.randn(SHAPE)
    for actual, expected in zip(run_fused(model, images), run(reference, images), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[0].running_var, reference[0].running_var)


@needs_compiler
def test_a_second_derivative_is_refused():
    images = torch.randn(SHAPE, requires_grad=True)
    (gradient,) = torch.autograd.grad(fuse(small_model(nn.ReLU()))(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@needs_compiler
def test_forward_passes_are_run_as_written():
    """Also where they decide something in every call, keep something, or use the layers of a Sequential one by one."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.norm, self.calls, self.features = small_model(nn.ReLU()), nn.BatchNorm2d(6), 0, []

        def forward(self, images):
            self.calls += 1
            self.features = [images := layer(images) for layer in self.block] if self.calls == 1 else [images]
            features = images if self.calls == 1 else self.block(images)
            return F.relu(self.norm(features)) if self.calls < 3 else F.dropout(features, 1.0, self.training)

    model = Branches().eval()  # as after an evaluation
    forward, names = fuse(model), list(model.state_dict())
    assert len(fused_norms(model)) == 1
    model.train()
    images = torch.randn(SHAPE)
    assert forward(images).any()
    assert len(model.features) == 3
    assert forward(images).any()
    assert not forward(images).any(), "dropout of everything"
    assert model.calls == 3
    assert list(model.state_dict()) == names
    assert "forward" not in vars(model.block)
    assert not fuse(copy.deepcopy(model))(images).any()


@needs_compiler
def test_the_model_is_itself_again_after_an_error():
    model = small_model(nn.ReLU())
    with pytest.raises(RuntimeError):
        fuse(model)(torch.randn(1, 3, 8, 8))
    assert "forward" not in vars(model)


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
    assert not fused_norms(small_model(nn.Sigmoid()))
    ((_, layers),) = fusible(small_model(nn.ReLU(), nn.MaxPool2d(3)))
    assert [type(layer) for layer in layers] == [nn.Conv2d, FusedNorm, nn.MaxPool2d]
    assert [layer.pools for layer in fused_norms(small_model(nn.ReLU(), nn.MaxPool2d([2, 2])))] == [True]


@needs_compiler
@pytest.mark.parametrize("name", ["s5", "separable", "to_99_0"])
def test_every_normalisation_of_a_network_is_fused(name):
    model = helpers.build(KNOWN[name].build)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [layer.norm for layer in fused_norms(model)] == norms


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
    monkeypatch.delenv("CXX", raising=False)
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


@pytest.mark.skipif(os.name != "posix", reason="requires a shell script as the compiler")
def test_a_compiler_that_hangs_is_stopped(uncompiled, monkeypatch):
    compiler = uncompiled / "slow"
    compiler.write_text("#!/bin/sh\necho 'error: no licence' >&2\nexec sleep 60\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(kernels, "TIME_LIMIT", 1)
    with pytest.raises(CompileError, match=r"cannot compile kernels\.cpp: error: no licence"):
        load_kernels()
    assert not can_compile()


@pytest.mark.parametrize("command", ["'", "''", "nothing-of-this-name"])
def test_a_cxx_that_is_no_command_is_named(command, uncompiled, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(CompileError, match="CXX"):
        load_kernels()
    assert not can_compile()


@needs_compiler
def test_an_empty_cxx_names_no_compiler(uncompiled, monkeypatch):
    monkeypatch.setenv("CXX", " ")
    assert can_compile()


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
def test_without_any_folder_to_write_nothing_is_compiled_and_training_goes_on(uncompiled, small, monkeypatch):
    (uncompiled / "file").touch()
    monkeypatch.setattr(kernels, "KERNELS", uncompiled / "file" / "kernels")
    monkeypatch.setattr(kernels.tempfile, "tempdir", str(uncompiled / "file"))
    with pytest.raises(CompileError, match=r"the compiled kernels\.cpp cannot be stored or loaded"):
        load_kernels()
    assert helpers.fit(helpers.build(), small, helpers.Recipe(epochs=1), progress=False)


@needs_compiler
def test_the_cpu_and_cuda_compile_without_being_asked():
    model = helpers.build()
    for name, expected in (("cpu", True), ("cuda", True), ("mps", False)):
        assert (device.compile_model(model, torch.device(name), None) is not model) == expected
        assert device.compile_model(model, torch.device(name), False) is model
