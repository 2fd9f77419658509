"""The model report against numbers worked out by hand, and receptive fields against gradients as well."""

import random
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from analysis.inspection import (
    check_model,
    count_layers,
    count_macs,
    count_parameters,
    layer_table,
    receptive_field_table,
    summary,
)
from helpers import Net

# The seed document's table, row by row.
SEED_TABLE = [
    ("conv1.0 (Conv2d)", 36, "1→4 channels, kernel 3×3, no bias"),
    ("conv1.1 (BatchNorm2d)", 8, "4 features, affine"),
    ("conv1.3 (Conv2d)", 288, "4→8 channels, kernel 3×3, no bias"),
    ("conv1.4 (BatchNorm2d)", 16, "8 features, affine"),
    ("conv1.6 (MaxPool2d)", 0, "kernel 2, stride 2"),
    ("conv2.0 (Conv2d)", 1152, "8→16 channels, kernel 3×3, no bias"),
    ("conv2.1 (BatchNorm2d)", 32, "16 features, affine"),
    ("conv2.3 (Conv2d)", 4608, "16→32 channels, kernel 3×3, no bias"),
    ("conv2.4 (BatchNorm2d)", 64, "32 features, affine"),
    ("conv2.6 (MaxPool2d)", 0, "kernel 2, stride 2"),
    ("conv3.0 (Conv2d)", 11520, "32→40 channels, kernel 3×3, no bias"),
    ("conv3.1 (BatchNorm2d)", 80, "40 features, affine"),
    ("gap (AdaptiveAvgPool2d)", 0, "output size 1"),
    ("fc (Linear)", 410, "40→10, bias"),
    ("Total", 18214, ""),
]


class Forward(nn.Module):
    """Layers by name, and any function of them and the images as the forward pass."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, images):
        return self.steps(self, images)


def conv(kernel, channels=1, **settings):
    return nn.Conv2d(channels, channels, kernel, **settings)


def rows(table):
    return [tuple(row) for row in table.itertuples(index=False)]


def fields(*layers, size=28):
    return receptive_field_table(nn.Sequential(*layers), (1, 1, size, size))["Receptive field"].tolist()


# --- layers, parameters, multiply-adds ---


def test_layer_table_is_the_seeds():
    assert rows(layer_table(Net())) == SEED_TABLE


@pytest.mark.parametrize(
    ("layer", "details"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), "8→8 channels, kernel 3×3, stride 2, groups 8, bias"),
        (nn.Conv2d(1, 4, 5), "1→4 channels, kernel 5×5, padding 0, bias"),
        (nn.Conv2d(1, 4, (3, 1), padding=(1, 0), bias=False), "1→4 channels, kernel 3×1, no bias"),
        (nn.Conv2d(1, 4, 3, padding=2, dilation=2), "1→4 channels, kernel 3×3, dilation 2, bias"),
        (nn.MaxPool2d(3, 2, 1, ceil_mode=True), "kernel 3, stride 2, padding 1, ceil_mode True"),
        (nn.AvgPool2d((2, 1)), "kernel 2×1, stride 2×1"),
        (nn.AdaptiveMaxPool2d((3, 1)), "output size 3×1"),
        (nn.BatchNorm2d(4, affine=False), "4 features, not affine"),
        (nn.Linear(4, 2, bias=False), "4→2, no bias"),
        (nn.Dropout(0.05), "p 0.05"),
    ],
)
def test_details_name_what_is_unusual(layer, details):
    assert layer_table(nn.Sequential(layer))["Details"][0] == details


def test_rows_add_up_with_shared_frozen_and_bare_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    assert count_parameters(model) == 3 + 20 + 1 + 4 + 16
    table = layer_table(model)
    assert table["Parameters"].tolist() == [3, 20, 1, 4, 16, 44]


def test_parameters_of_net():
    assert count_parameters(Net()) == 18_214


def test_macs_of_net_by_hand():
    block1 = 28 * 28 * (1 * 4 + 4 * 8) * 9
    block2 = 14 * 14 * (8 * 16 + 16 * 32) * 9
    block3 = 7 * 7 * 32 * 40 * 9
    assert count_macs(Net()) == block1 + block2 + block3 + 40 * 10 == 1_947_856


@pytest.mark.parametrize(
    ("layer", "input_size", "macs"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), (1, 8, 10, 10), 100 * 16 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 100 * 8 * 9),  # depthwise: one channel each
        (nn.Conv2d(8, 16, (3, 1), stride=2, groups=4), (1, 8, 9, 9), 4 * 5 * 16 * 2 * 3),
        (nn.Linear(40, 10), (1, 40), 400),
        (nn.Linear(40, 10, bias=False), (3, 40), 1200),
    ],
)
def test_macs_by_hand(layer, input_size, macs):
    assert count_macs(layer, input_size) == macs


def test_summary_agrees_and_reads_alike_on_every_python():
    statistics = summary(Net())
    assert statistics.total_params == statistics.trainable_params == 18_214
    text = str(statistics)
    assert "conv1" in text
    assert "18,214" in text
    assert "Total mult-adds (M): 1.95" in text


# --- checks ---


def test_net_passes_its_checks():
    table = check_model(Net())
    assert set(table["Result"]) == {"pass"}
    assert rows(table) == [
        ("Parameters", "18,214", "18,214", "pass"),
        ("Parameter budget", "< 20,000", "18,214", "pass"),
        ("BatchNorm2d layers", "5", "5", "pass"),
        ("Dropout layers", "0", "0", "pass"),
        ("Linear layers", "1", "1", "pass"),
        ("GAP layers", "1", "1", "pass"),
    ]


def test_a_broken_net_fails_where_it_is_broken():
    model = Net()
    model.conv1[1] = nn.Dropout2d(0.1)  # 8 parameters fewer
    model.gap = nn.AdaptiveAvgPool2d((1, 2))
    model.fc = nn.Linear(80, 30)  # 2,430 parameters for 410
    table = check_model(model)
    assert "FAIL" in set(table["Result"])
    assert table["Result"].tolist() == ["FAIL", "FAIL", "FAIL", "FAIL", "pass", "FAIL"]
    assert table["Found"].tolist() == ["20,226", "20,226", "4", "1", "1", "0"]


def test_budget_is_a_strict_bound_and_the_exact_number_optional():
    assert list(check_model(Net(), parameters=None, counts={}, budget=18_214)["Result"]) == ["FAIL"]
    assert list(check_model(Net(), parameters=None, counts={}, budget=18_215)["Result"]) == ["pass"]
    with pytest.raises(KeyError):
        check_model(Net(), counts={"Conv2d": 5})


def test_every_sort_of_dropout_and_only_global_pooling_count():
    model = nn.Sequential(
        nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(2)
    )
    assert count_layers(model) == {"BatchNorm2d": 0, "Dropout": 3, "Linear": 0, "GAP": 1}


# --- receptive fields by hand ---


def test_receptive_field_of_net():
    assert rows(receptive_field_table(Net())) == [
        ("conv1.0 (Conv2d)", 3, 1, 1, "28×28×4", 1, 3),
        ("conv1.3 (Conv2d)", 3, 1, 1, "28×28×8", 1, 5),
        ("conv1.6 (MaxPool2d)", 2, 2, 0, "14×14×8", 2, 6),
        ("conv2.0 (Conv2d)", 3, 1, 1, "14×14×16", 2, 10),
        ("conv2.3 (Conv2d)", 3, 1, 1, "14×14×32", 2, 14),
        ("conv2.6 (MaxPool2d)", 2, 2, 0, "7×7×32", 4, 16),
        ("conv3.0 (Conv2d)", 3, 1, 1, "7×7×40", 4, 24),
        ("gap (AdaptiveAvgPool2d)", 7, 7, 0, "1×1×40", 28, 48),
    ]


def test_resnets_stem():
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    assert rows(receptive_field_table(stem, (1, 3, 224, 224))) == [
        ("0 (Conv2d)", 7, 2, 3, "112×112×64", 2, 7),
        ("2 (MaxPool2d)", 3, 2, 1, "56×56×64", 4, 11),
    ]


def test_stride_and_dilation():
    # 3; then 5 wide by dilation on jump 2: 3 + 4·2; then 2 more on jump 2; then 2 on jump 2
    assert fields(conv(3, stride=2), conv(3, dilation=2), conv(3), nn.AvgPool2d(2)) == [3, 11, 15, 17]


def test_rectangular_layers_tell_height_from_width():
    model = nn.Sequential(conv((3, 1), stride=(2, 1), padding=(1, 0)), conv((1, 5)), nn.MaxPool2d((3, 2)))
    assert rows(receptive_field_table(model, (1, 1, 28, 20))) == [
        ("0 (Conv2d)", "3×1", "2×1", "1×0", "14×20×1", "2×1", "3×1"),
        ("1 (Conv2d)", "1×5", 1, 0, "14×16×1", "2×1", "3×5"),
        ("2 (MaxPool2d)", "3×2", "3×2", 0, "4×8×1", "6×2", "7×6"),
    ]


@pytest.mark.parametrize(("ceil_mode", "size"), [(False, "3×3×1"), (True, "4×4×1")])
def test_ceil_mode_changes_the_size_only(ceil_mode, size):
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=ceil_mode), conv(1))
    table = receptive_field_table(model, (1, 1, 7, 7))
    assert table["Output size"].tolist() == [size, size]
    assert table["Receptive field"].tolist() == [2, 2]


@pytest.mark.parametrize(("padding", "shown"), [("same", 2), ("valid", 0)])
def test_padding_by_name(padding, shown):
    table = receptive_field_table(nn.Sequential(conv(3, dilation=2, padding=padding)))
    assert table[["Padding", "Receptive field"]].values.tolist() == [[shown, 5]]


def test_adaptive_pooling_takes_its_window_from_the_sizes():
    assert rows(receptive_field_table(nn.Sequential(conv(2), nn.AdaptiveMaxPool2d(3)), (1, 1, 8, 13))) == [
        ("0 (Conv2d)", 2, 1, 0, "7×12×1", 1, 2),
        ("1 (AdaptiveMaxPool2d)", "3×4", "2×4", 0, "3×3×1", "2×4", "4×5"),
    ]


def test_a_layer_used_twice_is_two_rows_in_the_order_of_execution():
    model = Forward(lambda m, x: m.a(m.pool(m.a(m.b(x)))), a=conv(3), b=conv(5), pool=nn.MaxPool2d(2))
    table = receptive_field_table(model)
    assert table["Layer"].tolist() == ["b (Conv2d)", "a (Conv2d)", "pool (MaxPool2d)", "a (Conv2d)"]
    assert table["Receptive field"].tolist() == [5, 7, 8, 12]


# --- receptive fields where the forward pass is no chain ---


def test_a_residual_branch_counts_by_its_longer_way():
    model = Forward(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, padding=1), b=conv(7, padding=3), c=conv(3))
    assert receptive_field_table(model)["Receptive field"].tolist() == [3, 7, 9]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_branches_that_look_different_ways_join_to_their_span():
    # "same" with kernel 2 looks one pixel ahead, twice makes 0 … 2; the other branch sees -1 … 1: together 4 pixels
    model = Forward(
        lambda m, x: m.d(torch.cat([m.b(m.a(x)), m.c(x)], 1)),
        a=conv(2, padding="same"),
        b=conv(2, padding="same"),
        c=conv(3, padding=1),
        d=nn.Conv2d(2, 1, 1),
    )
    assert receptive_field_table(model)["Receptive field"].tolist() == [2, 3, 3, 4]
    assert gradient_extent(model, size=11) == (4, 4)


@pytest.mark.parametrize(
    ("place", "model"),
    [
        ("0 (ConvTranspose2d)", nn.Sequential(nn.ConvTranspose2d(1, 1, 3, padding=1))),  # keeps the size
        ("1 (Upsample)", nn.Sequential(conv(3), nn.Upsample(scale_factor=2))),
        ("0 (ZeroPad2d)", nn.Sequential(nn.ZeroPad2d(1), conv(3))),
        ("0 (AdaptiveAvgPool2d)", nn.Sequential(nn.AdaptiveAvgPool2d(5))),  # 28 into 5: windows of 6 and 7
        ("0 (AdaptiveAvgPool2d)", nn.Sequential(nn.AdaptiveAvgPool2d(56))),
        ("max_pool2d", Forward(lambda m, x: F.max_pool2d(x, 3, 1, 1))),
        ("conv2d", Forward(lambda m, x: torch.conv2d(x, m.a.weight, padding=1), a=conv(3))),
        ("getitem", Forward(lambda m, x: m.a(x[:, :, ::2]), a=conv(3))),
        ("add", Forward(lambda m, x: m.a(x) + m.b(x), a=conv(3, stride=28), b=nn.AdaptiveAvgPool2d((1, 28)))),
        ("mul", Forward(lambda m, x: x * m.fc(x.mean((2, 3))).view(1, 1, 1, 1), fc=nn.Linear(1, 1))),
        ("view", Forward(lambda m, x: m.fc(x.flatten(1)).view(1, 1, 28, 28), fc=nn.Linear(784, 784))),
        ("symbolically traced", Forward(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv(3))),
    ],
)
def test_an_error_names_the_place_rather_than_a_wrong_number(place, model):
    with pytest.raises(ValueError, match="^" + re.escape(place)):
        receptive_field_table(model)


def test_an_input_size_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="input_size"):
        receptive_field_table(Net(), (1, 28, 28))


# --- receptive fields by gradients ---


def gradient_extent(model, size):
    """Height and width of the input region on which the pixel in the middle of the output depends."""
    for parameter in model.parameters():
        parameter.data.fill_(1.0)  # all positive, so that no two paths cancel
    image = torch.ones(1, 1, size, size, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    return tuple((seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist())


@pytest.mark.parametrize("seed", range(20))
def test_receptive_field_is_where_gradients_reach(seed):
    draw = random.Random(seed)

    def layer():
        kernel, stride = [(draw.randint(1, 4), draw.randint(1, 4)) for _ in range(2)]
        stride = tuple(min(s, k, 2) for s, k in zip(stride, kernel, strict=True))
        if draw.random() < 0.3:
            return nn.AvgPool2d(kernel, stride)
        return conv(kernel, stride=stride, dilation=(draw.randint(1, 3), draw.randint(1, 3)))

    model = nn.Sequential(*[layer() for _ in range(4)])
    table = receptive_field_table(model, (1, 1, 200, 200))
    field = table["Receptive field"].iloc[-1]
    assert (field if isinstance(field, str) else f"{field}×{field}") == "{}×{}".format(*gradient_extent(model, 200))


# --- no traces ---


@pytest.mark.parametrize("report", [summary, count_macs, layer_table, check_model, receptive_field_table])
def test_a_report_leaves_no_trace(report):
    model = Net().train()
    model.conv2.eval()  # frozen in part, as in fine-tuning
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()

    report(model)

    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_report_restores_the_modes():
    model = nn.Sequential(conv(3, channels=2)).train()
    with pytest.raises(RuntimeError):
        count_macs(model)  # one channel where two are needed
    assert model.training
    assert model[0].training


def test_reports_follow_the_models_dtype():
    model = Net().double()
    assert count_macs(model) == 1_947_856
    assert summary(model).total_params == 18_214
    assert len(receptive_field_table(model)) == 8
