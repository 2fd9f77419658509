"""The steps of a network give its logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from s5.deployment.layer_graph import GraphError, run, steps_of
from s5.networks.grammar import parse
from tests.utils import with_random_statistics

LINES = (
    "separable 3 5 / 6 7 / 8 gdconv crop 2",
    "plain 3 / 5 / 7 flat dropout 0.1",
    "shared-separable 4 ×1 / ×2 gap deskew 5 crop 2",
    "cellular 4 ×2 / ×2 gdconv crop 2",
    "cellular-separable 4 ×1 / ×2 gdconv",
    "linear 12 9",
)


@pytest.mark.parametrize("build", [helpers.Net, *(parse(line).build for line in LINES)], ids=["Net", *LINES])
def test_steps_give_the_logits_of_the_network(build):
    model = with_random_statistics(helpers.build(build)).eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(run(steps_of(model), images)[-1], model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(1, 4, 3, dilation=2), nn.Conv2d(1, 4, 3, 1, (1, 0)), nn.MaxPool2d(3), nn.Softplus(), nn.BatchNorm2d(1)],
)
def test_other_layers_are_refused_by_name(layer):
    with pytest.raises(GraphError, match=rf"0 \({type(layer).__name__}.* cannot be exported"):
        steps_of(nn.Sequential(layer, nn.Flatten()))


class Functional(nn.Module):
    """As students write networks: with functions and methods of tensors, ending in log-probabilities."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, images):
        features = F.dropout(F.max_pool2d(F.relu(self.first(images)), 2), 0.1, self.training)
        features = F.adaptive_avg_pool2d(torch.relu(features + self.second(features).relu()), 1)
        return F.log_softmax(self.linear(features.view(features.size(0), -1)), dim=1)


class Branch(Functional):
    def forward(self, images):
        return super().forward(-images if images.sum() > 0 else images)


class TwoPixels(Functional):
    def forward(self, images):
        return super().forward(F.avg_pool2d(images, 2))


def test_functions_and_methods_of_tensors_are_steps():
    model, images = Functional().eval(), torch.rand(3, 1, 28, 28)
    steps = steps_of(model)
    assert [step.kind for step in steps] == ["conv", "pool", "conv", "add", "mean", "linear"]
    assert torch.allclose(run(steps, images)[-1].log_softmax(1), model(images), atol=1e-5)


@pytest.mark.parametrize("network", [Branch, TwoPixels])
def test_other_computations_are_refused_in_one_sentence(network):
    with pytest.raises(GraphError, match="its forward pass is more than convolutions"):
        steps_of(network())
