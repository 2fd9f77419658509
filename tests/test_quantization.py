"""Quantisation: the integer network is close to the float network, and impossible networks are refused in one line."""

import pytest
import torch
from torch import nn

from s5.deployment.layer_graph import GraphError
from s5.deployment.quantization import choose_range, quantize
from s5.inference.trained import load_trained, trained_networks
from s5.networks.grammar import parse
from s5.training.augmentation import normalize


@pytest.mark.parametrize("name", trained_networks())
def test_logits_of_trained_networks_are_close(name, sample):
    model = load_trained(name)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    network, images = quantize(model, sample.train_images[:100]), sample.eval_images[:200]
    with torch.inference_mode():
        expected = model(normalize(images))
    logits = network(images) * network.logit_scale
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.98
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())


class Residual(nn.Sequential):
    def forward(self, images):
        return super().forward(images) + images


CONVS = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


REFUSED = {
    "pooling first": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 4, 5, padding=0), head(4)),
    "two groups": lambda: nn.Sequential(nn.Conv2d(1, 4, 20), nn.Conv2d(4, 4, 3, groups=2), head(4)),
    "a padding with nothing inside": lambda: nn.Sequential(nn.Conv2d(1, 4, 20), nn.Conv2d(4, 4, 1, padding=1), head(4)),
    "not square": lambda: nn.Sequential(nn.Conv2d(1, 4, (20, 22)), head(4)),
    "no linear layer": lambda: nn.Sequential(nn.Conv2d(1, 10, 20), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "ReLU at the end": lambda: nn.Sequential(nn.Conv2d(1, 4, 20), head(4), nn.ReLU()),
    "large mean": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), head(4)),
    "no convolution": parse("linear 12").build,
    "no head": parse("conv 3 / 4 flat crop 1").build,
    "three convolutions per addition": lambda: nn.Sequential(nn.Conv2d(1, 4, 20), Residual(*CONVS), head(4)),
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_network_that_cannot_be_exported_is_refused_in_one_line(build, sample):
    with pytest.raises(GraphError, match="this network cannot be exported to C") as error:
        quantize(build().eval(), sample.train_images[:10])
    assert "\n" not in str(error.value)


def test_network_that_has_died_gives_its_biases(sample):
    model = nn.Sequential(nn.Conv2d(1, 4, 20), nn.ReLU(), nn.Conv2d(4, 4, 9, groups=4, bias=False), nn.Flatten())
    nn.init.constant_(model[0].bias, -100)
    model.append(nn.Linear(4, 10))
    network = quantize(model.eval(), sample.train_images[:10])
    expected = model[-1].bias.expand(2, 10)
    torch.testing.assert_close(network(sample.eval_images[:2]) * network.logit_scale, expected, rtol=0.01, atol=0.01)


def test_range_holds_all_values_and_zero_exactly():
    for values in (torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 5.0]), torch.tensor([-4.0, -2.0])):
        scale, zero = choose_range(values)
        integers = (values / scale).round() + zero
        assert 0 <= integers.min() <= integers.max() <= 255
        torch.testing.assert_close((integers - zero) * scale, values, atol=scale / 2 * 1.001, rtol=0)
