"""The steps of a network give its logits."""

import pytest
import torch
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
