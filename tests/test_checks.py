"""What is tried before training: networks and losses that work, warn, or are refused with the reason."""

import copy
import functools
import random
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import helpers
from s5.training import checks
from tests.utils import SHORT, assert_same_weights

ONCE = replace(SHORT, epochs=1)


def layers(*middle):
    first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*first, *middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def with_forward(forward, **parts):
    """A network of `layers()` and other parts, with this forward pass."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers()
            for name, part in parts.items():
                setattr(self, name, part() if callable(part) else part)

    Network.forward = forward
    return Network()


def normed(norm):
    model = layers()
    model[0] = norm(model[0])
    return model


def tied():
    model = layers(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    model[4].weight = model[3].weight
    return model


def ghost(model, images):
    parts = images.split(50) if model.training else [images]
    assert all(len(part) == 50 for part in parts) or not model.training, "a part of another size"
    return torch.cat([model.layers(part) for part in parts])


WORK = {
    "log_softmax": lambda: nn.Sequential(layers(), nn.LogSoftmax(1)),
    "ReLU before BatchNorm": lambda: layers(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "GroupNorm, LayerNorm": lambda: layers(nn.GroupNorm(2, 4), nn.LayerNorm(28)),
    "BatchNorm without momentum or statistics": lambda: layers(
        nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "in-place ReLU": lambda: layers(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)),
    "residual": lambda: with_forward(lambda self, x: self.layers(x + self.conv(x)), conv=lambda: nn.Conv2d(1, 1, 1)),
    "tied weights": tied,
    "checkpointed": lambda: with_forward(lambda self, x: checkpoint(self.layers, x, use_reentrant=False)),
    "ghost BatchNorm": lambda: with_forward(ghost),
    "weight_norm": lambda: normed(nn.utils.parametrizations.weight_norm),
    "old weight_norm": lambda: normed(nn.utils.weight_norm),
    "old spectral_norm": lambda: normed(nn.utils.spectral_norm),
    "frozen layers in a list": lambda: with_forward(
        lambda self, x: self.layers(self.fixed[0](x)), fixed=[nn.Conv2d(1, 1, 1).requires_grad_(False)]
    ),
}


@pytest.mark.filterwarnings("error", "ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("network", WORK)
def test_networks_that_work_are_trained_in_silence(network, small, capsys):
    model = helpers.build(WORK[network])
    (epoch,) = helpers.fit(model, small, ONCE, device="cpu", progress=False)
    assert epoch["train_loss"] > 0
    assert helpers.predict(model, small.eval_images[:1]).shape == (1, 10)
    assert capsys.readouterr() == ("", "")


def head(self, images):
    """An auxiliary head for batches of 100, in training only."""
    return self.layers(images) + (self.extra(images.view(100, 784)) if self.training else 0)


REFUSED = {
    "a list": (
        lambda: with_forward(lambda self, x: self.layers(self.blocks[0][0](x)), blocks=[[nn.Conv2d(1, 1, 1)]]),
        "the weights in blocks would not be trained: use nn.ModuleList",
    ),
    "a dict of parameters": (
        lambda: with_forward(lambda self, x: self.layers(x * self.own["a"]), own={"a": nn.Parameter(torch.ones(1))}),
        "the weights in own would not be trained: use nn.ModuleList or nn.ParameterList",
    ),
    "dropout": (lambda: with_forward(lambda self, x: self.layers(F.dropout(x))), "differently each time in evaluation"),
    "head": (
        lambda: with_forward(head, extra=lambda: nn.Linear(784, 10)),
        r"images of shape \(50, .* in training mode, in the last batch of an epoch .*: shape '\[100, 784\]' is invalid",
    ),
    "last batch": (
        lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10)),
        r"images of shape \(1, .* in the last batch of an epoch \(see batch_size\): Expected more than 1 value",
    ),
    "two outputs": (
        lambda: with_forward(lambda self, x: (self.layers(x),) if self.training else self.layers(x)),
        "for 100 images in training mode it gave tuple",
    ),
    "squeeze": (lambda: with_forward(lambda self, x: self.layers(x).squeeze()), r"for 1 image .* it gave \(10,\)"),
    "detached": (lambda: with_forward(lambda self, x: self.layers(x).detach()), "the model's logits have no gradient"),
    "in place": (
        lambda: with_forward(lambda self, x: self.layers(x).sigmoid().mul_(2)),
        "the model's gradient cannot be computed in training mode: .*modified by an inplace operation",
    ),
    "generator": (
        lambda: with_forward(lambda self, x: self.layers(x), numbers=(number for number in [])),
        "the model cannot be copied, as its moving average requires: ",
    ),
    "cuda": (lambda: with_forward(lambda self, x: self.layers(x.to("cuda:9"))), "in evaluation mode: "),
    "double": (lambda: layers().double(), "in evaluation mode: .*float.* and .*double"),
}


@pytest.mark.parametrize("network", REFUSED)
def test_networks_that_cannot_be_trained_are_refused_in_one_line(network, small):
    architecture, message = REFUSED[network]
    images = {"head": 550, "last batch": 501}.get(network, 600)
    with pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z"):
        helpers.fit(helpers.build(architecture), small.subset(images, 200), ONCE, device="cpu", progress=False)


def test_probabilities_are_warned_of(small):
    model = helpers.build(lambda: nn.Sequential(layers(), nn.Softmax(1)))
    with pytest.warns(UserWarning, match="Sequential: the outputs look like probabilities; return logits"):
        helpers.fit(model, small, ONCE, device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = lambda inputs, logits, labels: F.nll_loss(logits.log(), labels)  # noqa: E731
        helpers.fit(model, small, ONCE, device="cpu", progress=False, loss=own)


LOSSES = {
    "torch's": nn.CrossEntropyLoss(),
    "a function of torch": F.cross_entropy,
    "a partial": functools.partial(F.cross_entropy, label_smoothing=0.0),
    "of two": lambda logits, labels: F.cross_entropy(logits, labels),
    "of three": lambda inputs, logits, labels: F.cross_entropy(logits, labels),
}


def test_a_loss_takes_inputs_logits_and_labels_or_the_last_two(small):
    expected = helpers.build()
    helpers.fit(expected, small, ONCE, device="cpu", progress=False)
    for loss in LOSSES.values():
        model = helpers.build()
        helpers.fit(model, small, ONCE, device="cpu", progress=False, loss=loss)
        assert_same_weights(model, expected)


def test_a_loss_of_two_belongs_to_the_module_that_it_is_of():
    """By its module a loss is known to be one that a CUDA graph may capture."""
    assert checks.is_project_code(checks.as_loss(nn.CrossEntropyLoss()))
    assert not checks.is_project_code(checks.as_loss(lambda logits, labels: F.cross_entropy(logits, labels)))


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda inputs, logits, labels: F.cross_entropy(logits, labels, reduction="none"), r", not tensor\(\["),
        (lambda inputs, logits, labels: F.cross_entropy(logits, labels).item(), r", not \d"),
        (lambda inputs, logits, labels: F.cross_entropy(logits, labels).detach(), r", not tensor\(\d"),
        (nn.CrossEntropyLoss, ": Boolean value of Tensor"),
        ("cross_entropy", ": 'cross_entropy' is not a callable object"),
        (nn.L1Loss(), ": The size of tensor a"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_cannot_be_used_is_refused_in_one_line(loss, reason, small):
    with pytest.raises(ValueError, match=rf"\Athe loss must be loss\(inputs, logits, labels\), .*{reason}[^\n]*\Z"):
        helpers.fit(helpers.build(), small, ONCE, device="cpu", progress=False, loss=loss)


def test_the_trial_leaves_no_trace(small):
    seen = []
    model = layers(nn.Dropout(), nn.Conv2d(4, 4, 3))
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].register_forward_hook(lambda *_: seen.append(1))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    checks.check_training(model, small, 100, None, "float32")
    assert [module.training for module in model] == [True, False, *[True] * 6]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].weight.grad.eq(1).all()
    assert [each.grad is None for each in model.parameters()] == [False, *[True] * 7]
    assert seen, "it was tried"


def test_training_after_the_trial_is_as_without_it(small, monkeypatch):
    def trained():
        def forward(self, images):
            return self.layers(images) * (random.choice([1, 2]) if self.training else 1)

        norm = nn.utils.parametrizations.spectral_norm
        random.seed(0)
        model = helpers.build(
            lambda: with_forward(forward, layers=lambda: layers(nn.Dropout(), norm(nn.Conv2d(4, 4, 3))))
        )
        helpers.fit(model, small, SHORT, device="cpu", progress=False)
        return model

    tried = trained()
    monkeypatch.setattr(helpers, "check_training", lambda *_: None)
    assert_same_weights(tried, trained())
