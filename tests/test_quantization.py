"""Quantisation: the integer network is close to the float network, and impossible networks are refused in one line."""

import pytest
import torch
from torch import nn

from s5.deployment.integer import Requantization, max_pool
from s5.deployment.layer_graph import GraphError
from s5.deployment.quantization import choose_range, fixed_point, quantize
from s5.inference.trained import load_trained, trained_networks
from s5.networks.grammar import parse
from s5.training.augmentation import normalize


@pytest.fixture(scope="module")
def few(sample):
    return sample.train_images[:100]


@pytest.mark.parametrize("name", trained_networks())
def test_logits_of_trained_networks_are_close(name, sample):
    model = load_trained(name)
    network, images = quantize(model, sample.train_images[:100]), sample.eval_images[:200]
    with torch.inference_mode():
        expected = model(normalize(images))
    logits = network(images) * network.logit_scale
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.98


def test_model_is_not_changed_and_the_result_is_repeatable(few):
    model = parse("shared 4 ×1 / ×2 gap").build().eval()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    first, second = (quantize(model, few)(few) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], values) for name, values in model.state_dict().items())


def test_logits_do_not_depend_on_the_batch(few):
    network = quantize(parse("conv 4 / 5 gdconv").build().eval(), few)
    assert torch.equal(network(few), network(few, batch_size=7))


@pytest.mark.parametrize("line", ["conv 4 / 5 gap", "shared-separable 4 ×1 / ×2 gdconv"])
def test_blank_calibration_images_give_a_network_that_runs(line):
    blank = torch.zeros(3, 28, 28, dtype=torch.uint8)
    assert quantize(parse(line).build().eval(), blank)(blank).shape == (3, 10)


@pytest.mark.parametrize("line", ["conv 4 / 5 gap", "shared 4 ×1 / ×2 gdconv"])
def test_weights_of_zero_give_the_biases(line, few):
    model = parse(line).build().eval()
    for each in model.parameters():
        nn.init.zeros_(each)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.uniform_(last.bias)
    network = quantize(model, few)
    torch.testing.assert_close(network(few) * network.logit_scale, last.bias.expand(100, 10), atol=0.6, rtol=0)


def test_values_that_are_not_finite_are_refused(few):
    broken, negative = (parse("conv 4 / 5 gap").build().eval() for _ in range(2))
    nn.init.constant_(broken[4].weight, float("inf"))
    negative[1].running_var.fill_(-1)
    for model, layer in ((broken, 4), (negative, 0)):
        with pytest.raises(GraphError, match=f"weights of {layer} are not finite"):
            quantize(model, few)


def test_channel_of_zeros_does_not_coarsen_the_others(few):
    model = parse("plain 4 / 5 gap").build().eval()
    with torch.no_grad():
        model[0].weight[1] = 0
    network = quantize(model, few)
    with torch.inference_mode():
        expected = model(normalize(few))
    assert (network(few) * network.logit_scale - expected).abs().max() < 0.02 * expected.abs().max()


class Residual(nn.Module):
    """A convolution, then two more whose result is added to `source`, then ReLU."""

    def __init__(self, source=lambda images, features: features):
        super().__init__()
        self.source, self.first = source, nn.Conv2d(1, 6, 3, padding=1)
        self.a, self.b = (nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.end = head(6)

    def forward(self, images):
        features = self.first(images).relu()
        return self.end((self.source(images, features) + self.b(self.a(features).relu())).relu())


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Residual(lambda images, features: images), "add cannot be exported to C"),
        (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 4, 3), head(4)), "0 cannot be exported to C"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), head(4)), "1 cannot be exported"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4), head(8)), "1 cannot be exported"),
        (lambda: nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1 cannot be exported"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), head(4), nn.ReLU()), "cannot be exported"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "linear layer of ten outputs"),
        (lambda: parse("conv 3 / 4 flat crop 1").build(), "cannot be exported"),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), head(4)), "Sigmoid"),
    ],
)
def test_network_that_cannot_be_exported_is_refused_in_one_line(build, reason, few):
    with pytest.raises(GraphError, match=reason) as error:
        quantize(build().eval(), few)
    assert "\n" not in str(error.value)


def test_a_plain_residual_network_is_understood(few):
    torch.manual_seed(0)
    model = Residual().eval()
    network = quantize(model, few)
    with torch.inference_mode():
        expected = model(normalize(few))
    assert network.layers[2].residual == 1
    assert (network(few) * network.logit_scale - expected).abs().max() < 0.02 * expected.abs().max()


def test_range_holds_all_values_and_zero_exactly():
    for values in (torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 5.0]), torch.tensor([-4.0, -2.0])):
        scale, zero = choose_range(values)
        integers = (values / scale).round() + zero
        assert integers.min() >= 0
        assert integers.max() <= 255
        torch.testing.assert_close((integers - zero) * scale, values, atol=scale / 2 * 1.001, rtol=0)
    assert choose_range(torch.zeros(5)) == (1.0, 0)


def test_fixed_point_is_precise_and_rounds_halves_up():
    torch.manual_seed(0)
    factor, bias = torch.randn(50) * 0.01, torch.randn(50) * 100
    sums = torch.randint(-30_000, 30_000, (20, 50))
    expected = sums * factor.double() + bias
    assert (fixed_point(factor, bias)(sums) - expected).abs().max() < 0.55
    half = Requantization(torch.tensor([1], dtype=torch.int16), None, shift=1)
    assert half(torch.tensor([[-3], [-1], [1], [3]])).flatten().tolist() == [-1, 0, 1, 2]


def test_max_pool_of_integers_leaves_out_what_is_over():
    maps = torch.randint(0, 256, (2, 3, 7, 5), dtype=torch.uint8)
    for size in (1, 2, 3):
        assert torch.equal(max_pool(maps, size), torch.max_pool2d(maps.float(), size).byte())
