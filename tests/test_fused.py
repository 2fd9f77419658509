"""The fused training step against the layers that it stands for."""

import copy

import pytest
import torch
from torch import nn

import helpers
from experiments.candidates import KNOWN
from training import device, fused
from training.augmentation import normalize
from training.fused import Fused, can_fuse, compiles, fuse

needs_compiler = pytest.mark.skipif(not can_fuse(), reason="torch wants Linux, a C++ compiler and Python's headers")


def small(*end: nn.Module, channels: int = 6) -> nn.Sequential:
    torch.manual_seed(channels)
    model = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), *end)
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.5, 1.5, channels))
        model[1].bias.copy_(torch.linspace(-1, 1, channels))
    return model


def run(model: nn.Module, images: torch.Tensor):
    """Outputs and the gradients of images and parameters, for a loss that weighs every output differently."""
    images = images.clone().requires_grad_()
    outputs = model(images)
    (outputs.float() * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    return [outputs, images.grad, *(parameter.grad for parameter in model.parameters())]


def parts(model: nn.Module) -> list[Fused]:
    return [module for module in model.modules() if isinstance(module, Fused)]


@needs_compiler
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("end", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)], [nn.ReLU(), nn.MaxPool2d(2, 2)]])
@pytest.mark.parametrize("level", [0, 1000])  # a mean far from zero loses nothing
def test_outputs_gradients_and_statistics_are_the_layers(end, layout, level):
    plain = small(*end)
    ours = copy.deepcopy(plain)
    traced = fuse(ours)
    assert len(parts(traced)) == 1
    images = (level + torch.randn(5, 2, 8, 6)).to(memory_format=layout)
    for _ in range(2):
        for mine, wanted in zip(run(traced, images), run(plain, images), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=2e-3 if level else 1e-4, atol=2e-2 if level else 1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@needs_compiler
@pytest.mark.parametrize("end", [[nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)]])
def test_bfloat16_is_as_near_as_the_layers(end):
    exact, images = small(*end), torch.randn(32, 2, 8, 8).to(memory_format=torch.channels_last)
    wanted = run(copy.deepcopy(exact).double(), images.double())

    def error(fuses: bool) -> list[float]:
        model = copy.deepcopy(exact)
        model = fuse(model) if fuses else model
        with torch.autocast("cpu", torch.bfloat16):
            got = run(model, images)
        assert got[0].dtype == torch.bfloat16
        return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True)]

    for ours, usual in zip(error(True), error(False), strict=True):
        assert ours < max(2 * usual, 0.02)


@needs_compiler
def test_gradients_of_the_network_on_digits_are_those_of_float64(sample):
    """Digits have a background: blocks of equal pixels, whose gradient must not be counted four times."""
    model = helpers.build()
    exact, traced = copy.deepcopy(model).double(), fuse(model)
    images, labels = normalize(sample.train_images[:32]), sample.train_labels[:32]
    for each, inputs in ((exact, images.double()), (traced, images)):
        each.train()
        nn.functional.cross_entropy(each(inputs), labels).backward()
    for (name, ours), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad - wanted.grad).norm() / wanted.grad.norm() < 0.01, name


@needs_compiler
def test_batches_of_another_size_odd_sides_and_evaluation_run_layer_by_layer(monkeypatch):
    model = small(nn.ReLU(), nn.MaxPool2d(2))
    traced = fuse(model)
    run(traced, torch.randn(4, 2, 8, 8))
    monkeypatch.setattr(fused, "_compiled", lambda function: pytest.fail("compiled"))
    run(traced, torch.randn(3, 2, 8, 8))
    model.eval()
    run(traced, torch.randn(4, 2, 8, 8))
    model.train()
    run(fuse(model), torch.randn(4, 2, 7, 7))


@needs_compiler
def test_only_what_follows_each_other_is_fused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu = nn.BatchNorm2d(2), nn.ReLU()

        def forward(self, images):
            return self.relu(self.norm(images)) + self.norm(images)

    class Asks(nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    shared = Branches()
    assert len(parts(fuse(shared))) == 1
    assert not parts(fuse(small(nn.Sigmoid())))
    kept = fuse(small(nn.ReLU(), nn.MaxPool2d(3)))
    assert [part.pools for part in parts(kept)] == [False]
    assert any(isinstance(module, nn.MaxPool2d) for module in kept.modules())
    asks = Asks()
    assert fuse(asks) is asks


@needs_compiler
def test_every_batch_normalisation_of_the_networks_is_fused_and_shares_its_weights():
    for name in ("s5", "separable", "gdconv"):
        model = helpers.build(KNOWN[name].build)
        traced = fuse(model)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert [part.norm for part in parts(traced)] == norms
        assert {id(p) for p in traced.parameters()} == {id(p) for p in model.parameters()}


def test_without_a_compiler_it_says_what_lacks(monkeypatch):
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert not can_fuse()
    with pytest.raises(ValueError, match="a C\\+\\+ compiler"):
        fuse(helpers.build())


@needs_compiler
def test_long_runs_compile_where_that_works(monkeypatch):
    cpu = torch.device("cpu")
    assert compiles()
    assert not device.compiling_pays(cpu, 100)
    assert device.compiling_pays(cpu, 5000)
    assert not device.compiling_pays(torch.device("meta"), 5000)

    def fails(*_):
        raise RuntimeError("no OpenMP")

    monkeypatch.setattr(fused, "_compiled", lambda function: fails)
    assert not compiles.__wrapped__()
