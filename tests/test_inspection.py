"""Reports on a network, compared with numbers worked out by hand; receptive fields also with gradients."""

import pytest
import torch
from torch import nn

from helpers import Net
from s5.analysis.drawing import plot_network
from s5.analysis.inspection import (
    check_requirements,
    class_activation_maps,
    count_macs,
    count_parameters,
    layer_table,
    receptive_field_table,
    summary,
)
from s5.analysis.style import COLOURS
from s5.networks.grammar import parse


class Branches(nn.Module):
    """A sum of two convolutions, then another one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = same(3), same(7), nn.Conv2d(1, 1, 3)

    def forward(self, images):
        return self.c(self.a(images) + self.b(images))


def same(kernel, **settings):
    return nn.Conv2d(1, 1, kernel, padding="same", **settings)


def rows(table):
    return [tuple(row) for row in table.itertuples(index=False)]


def test_layer_table_adds_up_with_shared_frozen_and_bare_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    assert layer_table(model)["Parameters"].tolist() == [3, 20, 1, 4, 16, 44]


def weight_normed():
    model = Net()
    for layer in (model.conv1[3], model.fc):
        nn.utils.parametrizations.weight_norm(layer)
    return model


def shared():
    """With a weight that two convolutions share, and one ReLU in two places."""
    model, relu = nn.Sequential(same(3), nn.ReLU(), same(3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)), nn.ReLU()
    model[2].weight, model[1], model[3] = model[0].weight, relu, relu
    return model


@pytest.mark.parametrize(
    "network", [Net, shared, weight_normed, parse("cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2").build]
)
def test_the_summary_has_the_totals_of_the_other_reports(network):
    model = network()
    found = summary(model)
    assert f"Total params: {count_parameters(model):,}\n" in str(found)
    assert found.total_mult_adds >= count_macs(model)
    assert layer_table(model)["Parameters"].iloc[:-1].sum() == count_parameters(model)
    texts = [text.get_text() for text in plot_network(model).axes[0].texts if text.get_color() == COLOURS[1]]
    assert sum(int(text.replace(",", "")) for text in texts if text) == count_parameters(model)


def test_macs_of_net_by_hand():
    block1 = 28 * 28 * (1 * 4 + 4 * 8) * 9
    block2 = 14 * 14 * (8 * 16 + 16 * 32) * 9
    block3 = 7 * 7 * 32 * 40 * 9
    assert count_macs(Net()) == block1 + block2 + block3 + 40 * 10 == 1_947_856
    depthwise = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    assert count_macs(depthwise) == 28 * 28 * (8 + 8 * 9)


def test_net_passes_the_checks_and_a_modified_one_fails_those_it_violates():
    assert set(check_requirements(Net())["Result"]) == {"pass"}
    model = Net()
    model.conv1[1] = nn.Dropout2d(0.1)  # 8 parameters fewer
    model.gap = nn.AdaptiveAvgPool2d((1, 2))
    model.fc = nn.Linear(80, 30)  # 2,430 parameters instead of 410
    other = Net()
    other.gap = nn.AvgPool2d(7)
    assert set(check_requirements(other)["Result"]) == {"pass"}
    table = check_requirements(model)
    assert table["Result"].tolist() == ["FAIL", "FAIL", "FAIL", "FAIL", "pass", "FAIL"]
    assert table["Found"].tolist() == ["20,226", "20,226", "4", "1", "1", "0"]


def test_class_activation_maps_add_up_to_the_logits():
    model, inputs = Net().eval(), torch.rand(3, 1, 28, 28)
    maps = class_activation_maps(model, inputs)
    assert maps.shape == (3, 10, 7, 7)
    torch.testing.assert_close(maps.sum((2, 3)) + model.fc.bias, model(inputs))
    for line in ("conv 4 / 8 flat", "conv 4 / 8 gdconv"):
        with pytest.raises(ValueError, match="require global average pooling and a linear layer"):
            class_activation_maps(parse(line).build(), inputs)


def test_receptive_field_of_net():
    assert rows(receptive_field_table(Net())) == [
        ("conv1.0 (Conv2d)", 3, 1, 1, "28×28×4", 1, 3),
        ("conv1.3 (Conv2d)", 3, 1, 1, "28×28×8", 1, 5),
        ("conv1.6 (MaxPool2d)", 2, 2, 0, "14×14×8", 2, 6),
        ("conv2.0 (Conv2d)", 3, 1, 1, "14×14×16", 2, 10),
        ("conv2.3 (Conv2d)", 3, 1, 1, "14×14×32", 2, 14),
        ("conv2.6 (MaxPool2d)", 2, 2, 0, "7×7×32", 4, 16),
        ("conv3.0 (Conv2d)", 3, 1, 1, "7×7×40", 4, 24),
        ("gap (AdaptiveAvgPool2d)", 7, 7, 0, "1×1×40", 28, 28),  # the whole image
    ]


@pytest.mark.parametrize(
    ("fields", "jumps", "model"),
    [
        # The second convolution's dilation adds 4 steps of 2 pixels: 3 + 8 = 11.
        ([3, 11], [2, 2], nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(1, 1, 3, dilation=2))),
        ([3, 7, 9], [1] * 3, Branches()),  # a sum depends on all that one of its branches depends on
        ([3, 4], [1, 2], nn.Sequential(nn.ZeroPad2d(-2), nn.Conv2d(1, 1, 3), nn.MaxPool2d(2))),
        (["5×3"], [1], nn.Sequential(same((5, 3)))),
        ([3, 28, 28], [1, 28, 28], nn.Sequential(same(3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 1, 1))),
        # 22 is what 24 pixels around the middle unit, of six, have in common with the 24×24 crop.
        (
            [3, 5, 6, 10, 14, 16, 22, 24, 24, 24, 24, 24],
            [1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8],
            parse("shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2").build(),
        ),
    ],
)
def test_receptive_field_and_jump(fields, jumps, model):
    table = receptive_field_table(model)
    assert table["Receptive field"].tolist() == fields
    assert table["Jump"].tolist() == jumps


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_receptive_field_requires_registered_layers():
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    receptive_field_table(nn.utils.weight_norm(model[0]))  # works
    model.hidden = [nn.Conv2d(1, 1, 3)]
    with pytest.raises(ValueError, match="the weights in hidden would not be trained"):
        receptive_field_table(model)


def test_receptive_field_agrees_with_gradients():
    model = nn.Sequential(nn.Conv2d(1, 1, (2, 3), (1, 2), dilation=(1, 2)), same(3, dilation=2), nn.AvgPool2d((2, 3)))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)  # positive, so that no two paths cancel
    image = torch.ones(1, 1, 28, 28, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    height, width = (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist()
    assert receptive_field_table(model)["Receptive field"].iloc[-1] == f"{height}×{width}"


@pytest.mark.parametrize("report", [summary, count_macs, layer_table, check_requirements, receptive_field_table])
def test_report_has_no_side_effects(report):
    model = Net().train()
    model.conv2.eval()  # partly frozen, as in fine-tuning
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    report(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
