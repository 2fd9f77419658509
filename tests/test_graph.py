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


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(1, 4, 3, padding_mode="circular"), nn.Flatten(), nn.LazyLinear(10)], "cannot be written"),
        ([nn.Conv2d(1, 4, 3, dilation=2), nn.Flatten(), nn.LazyLinear(10)], "cannot be written"),
        ([nn.MaxPool2d(3, ceil_mode=True), nn.Flatten(), nn.LazyLinear(10)], "cannot be written"),
        ([nn.MaxPool2d(2, dilation=2), nn.Flatten(), nn.LazyLinear(10)], "cannot be written"),
        ([nn.MaxPool2d((2, 4)), nn.Flatten(), nn.LazyLinear(10)], "cannot be written"),
        ([nn.Flatten(), nn.Linear(784, 10), nn.Softplus()], "Softplus"),
        ([nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10)], "BatchNorm2d"),
    ],
    ids=[
        "circular padding",
        "dilation",
        "cut-off pool",
        "dilated pool",
        "oblong pool",
        "Softplus",
        "BatchNorm without convolution",
    ],
)
def test_other_layers_are_refused_by_name(layers, message):
    model = nn.Sequential(*layers)
    model(torch.zeros(1, 1, 28, 28).expand(2, 1, 28, 28))
    with pytest.raises(GraphError, match=message):
        steps_of(model)


def test_an_addition_with_a_factor_is_refused():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.end = nn.Conv2d(1, 1, 3, padding=1), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

        def forward(self, images):
            return self.end(torch.add(self.conv(images), images, alpha=0.5))

    with pytest.raises(GraphError, match="cannot be written as a step"):
        steps_of(Half())


def test_a_relu_is_not_moved_into_an_output_that_another_step_reads():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dropout, self.relu = nn.Conv2d(1, 2, 3), nn.Dropout(), nn.ReLU()
            self.end = nn.Sequential(nn.Flatten(), nn.Linear(1352, 10))

        def forward(self, images):
            maps = self.conv(images)
            return self.end(self.relu(self.dropout(maps)) + maps)

    model, images = Branches().eval(), torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(run(steps_of(model), images), model(images))
