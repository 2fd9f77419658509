"""Reports on a network, compared with numbers worked out by hand; receptive fields also with gradients."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import Net
from s5.analysis.inspection import (
    check_model,
    count_layers,
    count_macs,
    count_parameters,
    layer_table,
    receptive_field_table,
    summary,
)
from s5.experiments.claims import CLAIMS, find_variant
from s5.experiments.variants import VARIANTS
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
def test_layer_details_mention_unusual_settings(layer, details):
    assert layer_table(nn.Sequential(layer))["Details"][0] == details


def test_layer_table_adds_up_with_shared_frozen_and_bare_parameters():
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
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 10, 10), 100 * 8 * 9),  # depthwise
        (nn.Conv2d(8, 16, (3, 1), stride=2, groups=4), (1, 8, 9, 9), 4 * 5 * 16 * 2 * 3),
        (nn.Linear(40, 10), (1, 40), 400),
        (nn.Linear(40, 10, bias=False), (3, 40), 1200),
    ],
)
def test_macs_by_hand(layer, input_size, macs):
    assert count_macs(layer, input_size) == macs


def test_summary_of_net():
    statistics = summary(Net())
    assert statistics.total_params == statistics.trainable_params == 18_214
    text = str(statistics)
    assert "conv1" in text
    assert "18,214" in text
    assert "Total mult-adds (M): 1.95" in text


# --- Checks -----------------------------------------------------------------------------------------------------------


def test_net_passes_the_checks():
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


def test_modified_net_fails_the_checks_it_violates():
    model = Net()
    model.conv1[1] = nn.Dropout2d(0.1)  # 8 parameters fewer
    model.gap = nn.AdaptiveAvgPool2d((1, 2))
    model.fc = nn.Linear(80, 30)  # 2,430 parameters instead of 410
    table = check_model(model)
    assert "FAIL" in set(table["Result"])
    assert table["Result"].tolist() == ["FAIL", "FAIL", "FAIL", "FAIL", "pass", "FAIL"]
    assert table["Found"].tolist() == ["20,226", "20,226", "4", "1", "1", "0"]


def test_budget_is_a_strict_bound_and_the_exact_number_is_optional():
    assert list(check_model(Net(), parameters=None, counts={}, budget=18_214)["Result"]) == ["FAIL"]
    assert list(check_model(Net(), parameters=None, counts={}, budget=18_215)["Result"]) == ["pass"]
    with pytest.raises(KeyError):
        check_model(Net(), counts={"Conv2d": 5})


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


def test_receptive_field_of_resnet_stem():
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    assert rows(receptive_field_table(stem, (1, 3, 32, 32))) == [
        ("0 (Conv2d)", 7, 2, 3, "16×16×64", 2, 7),
        ("2 (MaxPool2d)", 3, 2, 1, "8×8×64", 4, 11),
    ]


def test_asymmetric_kernels():
    model = nn.Sequential(conv((3, 1), stride=(2, 1), padding=(1, 0)), conv((1, 5)), nn.MaxPool2d((3, 2)))
    assert rows(receptive_field_table(model, (1, 1, 28, 20))) == [
        ("0 (Conv2d)", "3×1", "2×1", "1×0", "14×20×1", "2×1", "3×1"),
        ("1 (Conv2d)", "1×5", 1, 0, "14×16×1", "2×1", "3×5"),
        ("2 (MaxPool2d)", "3×2", "3×2", 0, "4×8×1", "6×2", "7×6"),
    ]


@pytest.mark.parametrize(("ceil_mode", "size"), [(False, "3×3×1"), (True, "4×4×1")])
def test_ceil_mode_changes_only_the_size(ceil_mode, size):
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=ceil_mode), conv(1))
    table = receptive_field_table(model, (1, 1, 7, 7))
    assert table["Output size"].tolist() == [size, size]
    assert table["Receptive field"].tolist() == [2, 2]


@pytest.mark.parametrize(("padding", "pixels"), [("same", 2), ("valid", 0)])
def test_padding_by_name(padding, pixels):
    table = receptive_field_table(nn.Sequential(conv(3, dilation=2, padding=padding)))
    assert table[["Padding", "Receptive field"]].values.tolist() == [[pixels, 5]]


def test_adaptive_pooling_has_the_window_that_the_sizes_imply():
    assert rows(receptive_field_table(nn.Sequential(conv(2), nn.AdaptiveMaxPool2d(3)), (1, 1, 8, 13))) == [
        ("0 (Conv2d)", 2, 1, 0, "7×12×1", 1, 2),
        ("1 (AdaptiveMaxPool2d)", "3×4", "2×4", 0, "3×3×1", "2×4", "4×5"),
    ]


def test_adaptive_pooling_with_unequal_windows():
    # 28 into 5: windows of 6 and 7 values that start at 0, 5, 11, 16 and 22; the middle one holds 11 to 16
    assert rows(receptive_field_table(nn.Sequential(nn.AdaptiveAvgPool2d(5)))) == [
        ("0 (AdaptiveAvgPool2d)", 7, 5.5, 0, "5×5×1", 5.5, 6)
    ]


def test_shared_layer_has_one_row_per_call_in_the_order_of_execution():
    model = Forward(lambda m, x: m.a(m.pool(m.a(m.b(x)))), a=conv(3), b=conv(5), pool=nn.MaxPool2d(2))
    table = receptive_field_table(model)
    assert table["Layer"].tolist() == ["b (Conv2d)", "a (Conv2d)", "pool (MaxPool2d)", "a (Conv2d)"]
    assert table["Receptive field"].tolist() == [5, 7, 8, 12]
    assert table["Jump"].tolist() == [1, 1, 2, 2]


def squeeze_and_excite(m, x):
    return m.c(x * m.fc(x.mean((2, 3))).view(-1, 1, 1, 1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("fields", "jumps", "model"),
    [
        # The second convolution's dilation adds 4 steps of 2 pixels: 3 + 8 = 11.
        (
            [3, 11, 15, 17],
            [2, 2, 2, 4],
            nn.Sequential(conv(3, stride=2), conv(3, dilation=2), conv(3), nn.AvgPool2d(2)),
        ),
        ([3, 5], [1, 1], nn.Sequential(conv(3, channels=4, groups=4), conv(3, channels=4, groups=2))),
        ([3, 3, 5], [1, 1, 1], nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3))),
        ([5, 7], [1, 1], nn.Sequential(nn.MaxPool2d(3, 1, dilation=2), conv(3))),
        ([3, 6], [1, 2], Forward(lambda m, x: m.b(m.a(x)[0])[0], a=pool_with_indices(3, 1), b=pool_with_indices(4, 2))),
        # Branches: a sum or a concatenation depends on all that one of them depends on.
        ([3, 7, 9], [1] * 3, Forward(lambda m, x: m.c(m.a(x) + m.b(x)), a=same(3), b=same(7), c=conv(3))),
        # An even "same" kernel looks one pixel ahead, twice 0 to 2; the other branch sees -1 to 1: together 4 pixels.
        (
            [2, 3, 3, 4],
            [1] * 4,
            Forward(
                lambda m, x: m.d(torch.cat([m.b(m.a(x)), m.c(x)], 1)),
                a=same(2),
                b=same(2),
                c=same(3),
                d=nn.Conv2d(2, 1, 1),
            ),
        ),
        # Steps that are not layers, or not of the kinds with a row.
        ([3], [1], nn.Sequential(nn.ZeroPad2d(1), conv(3))),
        ([3], ["–"], nn.Sequential(nn.ZeroPad2d(-7), conv(3))),  # a crop by half could be a stride of 2
        ([3, 4], [1, 2], nn.Sequential(nn.ZeroPad2d(-2), nn.BatchNorm2d(1), conv(3), nn.Dropout(), nn.MaxPool2d(2))),
        ([5], [1], nn.Sequential(nn.ConvTranspose2d(1, 1, 3, padding=1), conv(3))),
        # Upsampling: here both kernels cover two of the values that are doubled.
        ([3, 4], [1, "–"], nn.Sequential(conv(3, padding=1), nn.Upsample(scale_factor=2), conv(3))),
        ([2, 4], [2, 1], nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2), conv(2))),
        ([5], [1], Forward(lambda m, x: m.a(F.relu(F.max_pool2d(x, 3, 1, 1))), a=conv(3))),
        ([3, 8], [1, "–"], Forward(lambda m, x: m.b(F.avg_pool2d(m.a(x), 2)), a=same(3), b=same(3))),
        ([5], [1], Forward(lambda m, x: m.a(torch.conv2d(x, m.a.weight, padding=1)), a=conv(3))),
        (["5×3"], ["–×1"], Forward(lambda m, x: m.a(x[:, :, ::2]), a=conv(3))),
        ([3, 5], [1, 1], Forward(lambda m, x: m.a(m.a(x) if x.shape[2] > 20 else x), a=conv(3))),
        (
            [3, "28×1", "28×16"],  # columns 0–2 by the one and 13–15 by the other
            [28, "28×1", "28×1"],
            Forward(
                lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(3, stride=28), b=nn.AdaptiveAvgPool2d((1, 28)), c=same(3)
            ),
        ),
        # What depends on the mean or on all values of a map depends on the whole image.
        ([28], [1], Forward(squeeze_and_excite, fc=nn.Linear(1, 1), c=conv(3))),
        ([28], [1], Forward(lambda m, x: m.a(m.fc(x.flatten(1)).view(x.shape)), a=conv(3), fc=nn.Linear(784, 784))),
        ([28], [1], nn.Sequential(nn.GroupNorm(1, 1), conv(3))),
        ([3, 28, 28], [1, 28, 28], nn.Sequential(same(3), nn.AdaptiveAvgPool2d(1), conv(1), nn.Flatten())),
        ([28], [1], nn.Sequential(conv(28), nn.Flatten(), nn.Linear(1, 10))),
        ([], [], nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
    ],
)
def test_receptive_field_and_jump(fields, jumps, model):
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 1)
    table = receptive_field_table(model, (1, channels, 28, 28))
    assert table["Receptive field"].tolist() == fields
    assert table["Jump"].tolist() == jumps


def test_input_size_without_a_batch_dimension():
    with pytest.raises(ValueError, match="input_size"):
        receptive_field_table(Net(), (1, 28, 28))


# --- Receptive fields of all networks, and by gradients ---------------------------------------------------------------


OTHERS = (
    "dense 3 3 / 3 3 / 3 / 3 gdconv crop 2",
    "conv 16 24 / 32 gdconv stem 16",
    "conv 4 8 / 16 32 / 40 gap radial 1",
    "shared-separable 14 ×1 / ×2 / ×2 / ×2 gdconv crop 2",
)
NETWORKS = {variant.network: variant for variant in (*VARIANTS.values(), *CLAIMS.values(), *map(find_variant, OTHERS))}


@pytest.mark.parametrize("network", NETWORKS)
def test_receptive_field_of_experiments(network):
    table = receptive_field_table(NETWORKS[network].build())
    fields, jumps = table["Receptive field"].tolist(), table["Jump"].tolist()
    assert fields == sorted(fields)  # they are chains of layers, or sums and concatenations of all that came before
    assert jumps == sorted(jumps)
    assert all(1 <= field <= 28 for field in fields)
    if "deskew" in network:
        assert set(fields) == {28}  # every pixel depends on the moments of the whole image
    elif NETWORKS[network].name in CLAIMS:
        assert fields[0] == 3
        assert fields[-1] == (24 if "crop 2" in network else 28)


def test_receptive_field_of_shared_convolutions_on_a_crop():
    table = receptive_field_table(parse("shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2").build())
    assert set(table["Layer"]) == {"stem.1 (Conv2d)", "conv (Conv2d)", "pool (MaxPool2d)", "end.0 (Conv2d)"}
    assert table["Jump"].tolist() == [1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8]
    # 22 is what 24 pixels around the middle unit, of six, have in common with the 24×24 crop.
    assert table["Receptive field"].tolist() == [3, 5, 6, 10, 14, 16, 22, 24, 24, 24, 24, 24]


def gradient_extent(model, size):
    """Height and width of the region of the image on which the unit in the middle of the output depends."""
    for parameter in model.parameters():
        parameter.data.fill_(1.0)  # positive, so that no two paths cancel
    image = torch.ones(1, 1, size, size, requires_grad=True)
    output = model(image)
    output[0, 0, output.shape[2] // 2, output.shape[3] // 2].backward()
    seen = image.grad[0, 0].nonzero()
    return tuple((seen.max(dim=0).values - seen.min(dim=0).values + 1).tolist())


@pytest.mark.parametrize("seed", range(20))
def test_receptive_field_agrees_with_gradients(seed):
    draw = random.Random(seed)

    def layer():
        kernel, stride = [(draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2)]
        stride = tuple(min(s, k, 2) for s, k in zip(stride, kernel, strict=True))
        if draw.random() < 0.3:
            return nn.AvgPool2d(kernel, stride)
        return conv(kernel, stride=stride, dilation=(draw.randint(1, 3), draw.randint(1, 3)))

    model = nn.Sequential(*[layer() for _ in range(3)])
    field = receptive_field_table(model, (1, 1, 48, 48))["Receptive field"].iloc[-1]
    assert (field if isinstance(field, str) else f"{field}×{field}") == "{}×{}".format(*gradient_extent(model, 48))


# --- Side effects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [summary, count_macs, layer_table, check_model, receptive_field_table])
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


def test_failing_report_restores_the_modes():
    model = nn.Sequential(conv(3, channels=2)).train()
    with pytest.raises(RuntimeError):
        count_macs(model)  # one channel instead of two
    assert model.training
    assert model[0].training


def test_reports_use_the_dtype_of_the_model():
    model = Net().double()
    assert count_macs(model) == 1_947_856
    assert summary(model).total_params == 18_214
    assert len(receptive_field_table(model)) == 8
