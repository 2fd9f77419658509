"""Reports on a network, compared with numbers worked out by hand; receptive fields also with gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import Net
from s5.analysis.inspection import (
    check_requirements,
    count_layers,
    count_macs,
    count_parameters,
    count_stored,
    layer_table,
    receptive_field_table,
    summary,
)
from s5.networks.grammar import parse

# The layer table of the original document.
ORIGINAL_TABLE = [
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
    """Named layers, and a function of the module and the images as the forward pass."""

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


def same(kernel):
    return conv(kernel, padding="same")


def pool_with_indices(kernel, stride):
    return nn.MaxPool2d(kernel, stride, return_indices=True)


# --- Layers, parameters, multiply-adds --------------------------------------------------------------------------------


def test_layer_table_is_the_original_one():
    assert rows(layer_table(Net())) == ORIGINAL_TABLE


def test_layer_details_mention_unusual_settings():
    for layer, details in [
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), "8→8 channels, kernel 3×3, stride 2, groups 8, bias"),
        (nn.Conv2d(1, 4, 5), "1→4 channels, kernel 5×5, padding 0, bias"),
        (nn.Conv2d(1, 4, (3, 1), padding=(1, 0), bias=False), "1→4 channels, kernel 3×1, no bias"),
        (nn.AvgPool2d((2, 1)), "kernel 2×1, stride 2×1"),
        (nn.BatchNorm2d(4, affine=False), "4 features, not affine"),
        (nn.Dropout(0.05), "p 0.05"),
    ]:
        assert layer_table(nn.Sequential(layer))["Details"][0] == details


def test_layer_table_adds_up_with_shared_frozen_and_bare_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU())
    model[2].weight = model[0].weight
    model[3].bias.requires_grad_(False)
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    assert count_parameters(model) == 3 + 20 + 1 + 4 + 16
    table = layer_table(model)
    assert table["Parameters"].tolist() == [3, 20, 1, 4, 16, 44]


@pytest.mark.parametrize(
    ("line", "trainable", "stored"),
    [
        ("conv 4 8 / 16 32 / 40 gap", 18_214, 18_214),
        ("plain 4 8 / 16 32 / 40 gap", 18_114, 18_114),
        ("separable 16 32 / 48 48 56 / 64 64 gap", 19_074, 19_074),
        ("separable 8 16 / 28 32 32 / 40 40 gap", 7_966, 7_966),
        ("separable 6 12 / 20 24 24 / 30 30 gap", 4_920, 4_920),
        ("shared 8 ×1 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2", 970, 970),  # each use has a BatchNorm of its own
        ("cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2", 496, 568),  # those of a resolution share their scale
        ("cellular 13 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2", 1_882, 1_986),
    ],
)
def test_trainable_and_stored_numbers(line, trainable, stored):
    model = parse(line).build()
    assert (count_parameters(model), count_stored(model)) == (trainable, stored)


def test_a_batchnorm_is_stored_as_a_scale_and_a_shift_unless_it_cannot_be_folded():
    assert count_stored(Net()) == 18_214
    fixed = nn.BatchNorm2d(4, affine=False)  # nothing of it is trained
    unfolded = nn.BatchNorm2d(4, track_running_stats=False)  # it depends on the batch
    assert count_stored(nn.Sequential(nn.Conv2d(1, 4, 3), fixed, unfolded)) == 40 + 8 + 8


def test_macs_of_net_by_hand():
    block1 = 28 * 28 * (1 * 4 + 4 * 8) * 9
    block2 = 14 * 14 * (8 * 16 + 16 * 32) * 9
    block3 = 7 * 7 * 32 * 40 * 9
    assert count_macs(Net()) == block1 + block2 + block3 + 40 * 10 == 1_947_856


def test_macs_by_hand():
    for layer, input_size, macs in [
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 100 * 8 * 9),  # depthwise
        (nn.Conv2d(8, 16, (3, 1), stride=2, groups=4), (1, 8, 9, 9), 4 * 5 * 16 * 2 * 3),
        (nn.Linear(40, 10, bias=False), (3, 40), 1200),
    ]:
        assert count_macs(layer, input_size) == macs


def test_summary_of_net():
    text = str(summary(Net()))
    for part in ("conv1", "18,214", "Total mult-adds (M): 1.95"):
        assert part in text


# --- Checks -----------------------------------------------------------------------------------------------------------


def test_net_passes_the_checks():
    assert rows(check_requirements(Net())) == [
        ("Parameters", "18,214", "18,214", "pass"),
        ("Parameter budget", "< 20,000", "18,214", "pass"),
        ("BatchNorm2d layers", "5", "5", "pass"),
        ("Dropout layers", "0", "0", "pass"),
        ("Linear layers", "1", "1", "pass"),
        ("GAP layers", "1", "1", "pass"),
    ]


def test_modified_net_fails_the_checks_it_violates():
    model = Net()
    model.conv1[1] = nn.Dropout2d(0.1)  # 8 parameters fewer
    model.gap = nn.AdaptiveAvgPool2d((1, 2))
    model.fc = nn.Linear(80, 30)  # 2,430 parameters instead of 410
    table = check_requirements(model)
    assert table["Result"].tolist() == ["FAIL", "FAIL", "FAIL", "FAIL", "pass", "FAIL"]
    assert table["Found"].tolist() == ["20,226", "20,226", "4", "1", "1", "0"]


def test_budget_is_a_strict_bound_and_the_exact_number_is_optional():
    for budget, result in ((18_214, "FAIL"), (18_215, "pass")):
        assert list(check_requirements(Net(), parameters=None, counts={}, budget=budget)["Result"]) == [result]


def test_layer_counts_include_all_dropout_types_but_only_global_pooling():
    model = nn.Sequential(
        nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveAvgPool2d(2)
    )
    assert count_layers(model) == {"BatchNorm2d": 0, "Dropout": 3, "Linear": 0, "GAP": 1}


# --- Receptive fields worked out by hand ------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="input_size"):
        receptive_field_table(Net(), (1, 28, 28))


def test_adaptive_pooling_has_the_window_that_the_sizes_imply():
    model = nn.Sequential(nn.AdaptiveMaxPool2d((4, 7)), nn.AdaptiveAvgPool2d(3))
    assert rows(receptive_field_table(model)) == [
        ("0 (AdaptiveMaxPool2d)", "7×4", "7×4", 0, "4×7×1", "7×4", "7×4"),
        ("1 (AdaptiveAvgPool2d)", "–", "–", 0, "3×3×1", "–", "14×12"),  # of unequal windows
    ]


def squeeze_and_excite(m, x):
    return m.c(x * m.fc(x.mean((2, 3))).view(-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("fields", "jumps", "model"),
    [
        # The second convolution's dilation adds 4 steps of 2 pixels: 3 + 8 = 11.
        ([3, 11, 15], [2, 2, 2], nn.Sequential(conv(3, stride=2), conv(3, dilation=2), conv(3))),
        ([5], [1], nn.Sequential(conv(3, dilation=2, padding="same"))),
        ([3, 3, 5], [1, 1, 1], nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3))),
        ([3, 6], [1, 2], Forward(lambda m, x: m.b(m.a(x)[0])[0], a=pool_with_indices(3, 1), b=pool_with_indices(4, 2))),
        # Branches: a sum depends on all that one of them depends on.
        ([3, 7, 9], [1] * 3, Forward(lambda m, x: m.c(m.a(x) + m.b(x)), a=same(3), b=same(7), c=conv(3))),
        # Steps that are not layers, or not of the kinds with a row.
        ([3], ["–"], nn.Sequential(nn.ZeroPad2d(-7), conv(3))),  # a crop by half could be a stride of 2
        ([3, 4], [1, 2], nn.Sequential(nn.ZeroPad2d(-2), nn.BatchNorm2d(1), conv(3), nn.Dropout(), nn.MaxPool2d(2))),
        # Upsampling: here both kernels cover two of the values that are doubled.
        ([3, 4], [1, "–"], nn.Sequential(conv(3, padding=1), nn.Upsample(scale_factor=2), conv(3))),
        ([3, 8], [1, "–"], Forward(lambda m, x: m.b(F.avg_pool2d(m.a(x), 2)), a=same(3), b=same(3))),
        (["5×3"], ["–×1"], Forward(lambda m, x: m.a(x[:, :, ::2]), a=conv(3))),
        # What depends on the mean or on all values of a map depends on the whole image.
        ([28], [1], Forward(squeeze_and_excite, fc=nn.Linear(1, 1), c=conv(3))),
        ([3, 28, 28], [1, 28, 28], nn.Sequential(same(3), nn.AdaptiveAvgPool2d(1), conv(1), nn.Flatten())),
        ([], [], nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
    ],
)
def test_receptive_field_and_jump(fields, jumps, model):
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 1)
    table = receptive_field_table(model, (1, channels, 28, 28))
    assert table["Receptive field"].tolist() == fields
    assert table["Jump"].tolist() == jumps


def test_receptive_field_of_shared_convolutions_on_a_crop():
    table = receptive_field_table(parse("shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2").build())
    assert set(table["Layer"]) == {"stem.1 (Conv2d)", "conv (Conv2d)", "pool (MaxPool2d)", "end.0 (Conv2d)"}
    assert table["Jump"].tolist() == [1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8]
    # 22 is what 24 pixels around the middle unit, of six, have in common with the 24×24 crop.
    assert table["Receptive field"].tolist() == [3, 5, 6, 10, 14, 16, 22, 24, 24, 24, 24, 24]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), ((3, 1), 1, 3), ((2, 3), (1, 2), (1, 2))])
def test_receptive_field_agrees_with_gradients(kernel, stride, dilation):
    model = nn.Sequential(conv(kernel, stride=stride, dilation=dilation), conv(3, dilation=2), nn.AvgPool2d((2, 3)))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)  # positive, so that no two paths cancel
    image = torch.ones(1, 1, 48, 48, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    height, width = (seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist()
    field = receptive_field_table(model, (1, 1, 48, 48))["Receptive field"].iloc[-1]
    assert field == (height if height == width else f"{height}×{width}")


# --- Side effects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [summary, count_macs, layer_table, check_requirements, receptive_field_table])
def test_report_has_no_side_effects(report):
    model = Net().train()
    model.conv2.eval()  # partly frozen, as in fine-tuning
    model.fc.bias.grad = torch.ones(10)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()

    report(model)

    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.fc.bias.grad.eq(1).all()
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
