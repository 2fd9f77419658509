"""The steps of a network give its logits, for every network of the suite."""

import pytest
import torch
from torch import nn

import helpers
from s5.deployment.layer_graph import GraphError, run, steps_of
from s5.experiments.claims import KNOWN
from s5.networks.grammar import parse
from tests.utils import with_random_statistics

LINES = {str(variant.network): variant for variant in KNOWN.values()}


@pytest.mark.parametrize("variant", LINES.values(), ids=LINES)
def test_steps_give_the_logits_of_the_network(variant):
    model = with_random_statistics(helpers.build(variant.build)).eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(run(steps_of(model), images), model(images), rtol=1e-4, atol=1e-5)


def test_a_shared_convolution_keeps_one_set_of_weights():
    steps = steps_of(parse("shared 8 ×1 / ×2 / ×2 gdconv crop 2").build())
    weights = [step.weight for step in steps if step.kind == "conv" and step.weight.shape == (8, 8, 3, 3)]
    assert len(weights) == 5
    assert len({id(weight) for weight in weights}) == 1


def test_shapes_and_flags():
    first, *_, last = steps_of(parse("conv 4 / 8 gap").build())
    assert (first.kind, first.shape, first.relu, first.inputs) == ("conv", (4, 28, 28), True, (-1,))
    assert (last.kind, last.shape) == ("linear", (10,))


class Branches(nn.Module):
    """Its convolution's output is read twice, as `combine` says."""

    def __init__(self, combine):
        super().__init__()
        self.combine, self.conv, self.dropout = combine, nn.Conv2d(1, 2, 3), nn.Dropout()
        self.end = nn.Sequential(nn.Flatten(), nn.Linear(1352, 10))

    def forward(self, images):
        maps = self.conv(images)
        return self.end(self.combine(self.dropout(maps), maps))


def test_a_relu_is_not_moved_into_an_output_that_another_step_reads():
    model, images = Branches(lambda first, second: first.relu() + second).eval(), torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(run(steps_of(model), images), model(images))


def ends(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (ends(nn.Conv2d(1, 4, 3, padding_mode="circular")), "Conv2d"),
        (ends(nn.Conv2d(1, 4, 3, dilation=2)), "Conv2d"),
        (ends(nn.MaxPool2d(3, ceil_mode=True)), "MaxPool2d"),
        (ends(nn.MaxPool2d(2, dilation=2)), "MaxPool2d"),
        (ends(nn.MaxPool2d((2, 4))), "MaxPool2d"),
        (ends(nn.Softplus()), "Softplus"),
        (ends(nn.BatchNorm2d(1)), "BatchNorm2d"),  # without a convolution before it
        (Branches(lambda first, second: torch.add(first, second, alpha=0.5)), "add"),
    ],
)
def test_other_layers_are_refused_by_name(model, layer):
    model.eval()(torch.zeros(2, 1, 28, 28))
    with pytest.raises(GraphError, match=rf"{layer}.* cannot be written as a step"):
        steps_of(model)
