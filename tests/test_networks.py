"""One line of text describes a network: the grammar, its errors, and the same weights as the recorded networks had."""

import pytest
import torch
from torch import nn

from helpers import Net, build
from s5.analysis.inspection import count_macs, count_parameters, count_stored
from s5.networks.grammar import Network, NetworkError, parse
from s5.training.checkpoint import load_weights, save_weights
from tests.utils import assert_same_weights

# The initial weights of each network for seed 3, as a sum with weights from -1 to 1 over each tensor. They were summed
# when each network was still a function: what is recorded of it stays true of its line.
WEIGHTS = {
    "linear 24": -0.2925,
    "conv 8 16 / 32 / 40 gap dropout 0.05": 1.5319,
    "conv5 8 / 25 / 20 gap": 0.9044,
    "conv 4 8 / 20 48 / 76 gap squeeze 8": 4.6022,
    "plain 4 8 / 16 32 / 40 gap": 2.6896,
    "conv 4 8 / 16 32 / 40 flat": 1.8756,
    "separable 16 32 / 64 72 / 96 gap": 2.4778,
    "conv 4 8 / 16 32 / 38 gdconv": 0.8748,
    "conv 4 8 / 16 32 / 40 gdconv crop 2": 3.588,
    "separable 16 32 / 48 48 56 / 64 64 gap": 6.4673,
    "separable 8 16 / 28 32 32 / 40 40 gap": 0.9857,
    "separable 6 12 / 20 24 24 / 30 30 gap": -3.6283,
    "shared 12 ×1 / ×2 / ×2 gap": 2.4601,
    "shared 8 ×1 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 0.7582,
    "cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 1.8081,
    "shared-separable 14 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 1.0377,
    "cellular-separable 10 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 2.6112,
    "cellular 13 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2": 2.2319,
}

BLOCKS = "conv, conv5, separable, plain, shared, shared-separable, cellular, cellular-separable, linear"
BAD_LINES = {
    "": f'"" is no block ({BLOCKS})',
    "net": f'"net" is no block ({BLOCKS})',
    "conv / 8 gap": "a channel count (1 to 4096) is missing",
    "conv 4 8 / 16 q gap": '"q" is no channel count (1 to 4096)',
    "conv 4 4097 gap": '"4097" is no channel count (1 to 4096)',
    "conv 4 8": "a head is missing (gap, flat, gdconv)",
    "conv 1 / 2 / 3 / 4 / 5 / 6 gap": "the image is too small to be pooled 5 times",
    "conv 4 gap crop 14": '"14" is no border in pixels (1 to 13)',
    "conv 4 gap shift 2": '"shift" is no option of conv (deskew, crop, squeeze, dropout)',
    "conv 4 gap dropout 0.1": "dropout stands at each pooling (/), and there is none",
    "shared 4 4 gap": '"4" is no number of uses (×1 to ×64)',
    "shared 4 ×1 ×2 gap": "a number of uses is followed by / or a head",
    "shared 4 ×60 / ×5 gap": "more than 64 layers",
    "linear 24 crop 2": '"crop" is no number of units (1 to 4096)',
}


def test_a_line_builds_the_recorded_network():
    for line, recorded in WEIGHTS.items():
        tensors = [each.detach().double().flatten() for each in build(parse(line).build, seed=3).parameters()]
        total = sum(float((each * torch.linspace(-1, 1, len(each), dtype=torch.float64)).sum()) for each in tensors)
        assert total == pytest.approx(recorded, abs=1e-3), line


def test_nets_channels_give_nets_weights():
    network = parse("conv 4 8 / 16 32 / 40 gap")
    assert network == Network("conv", ((4, 8), (16, 32), (40,)), "gap")
    assert_same_weights(build(network.build), build(Net))


def test_writing_is_the_inverse_of_reading():
    for line in WEIGHTS:
        network = parse(line)
        assert str(network) == line
        assert network.build()(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_counting_takes_no_random_numbers_and_no_memory_and_equals_the_real_network():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    counts = [(parse(line).parameters, parse(line).macs) for line in WEIGHTS]
    assert parse(f"conv {'4096 ' * 64}gdconv").parameters > 9_000_000_000
    assert torch.equal(torch.get_rng_state(), state)
    models = [parse(line).build() for line in WEIGHTS]
    assert counts == [(count_parameters(model), count_macs(model)) for model in models]


def test_other_spellings():
    for typed, written in {
        "shared 12 x1 / X2 / ×2 gap": "shared 12 ×1 / ×2 / ×2 gap",
        "  Conv  4 8/16\t32 /40\n GAP ": "conv 4 8 / 16 32 / 40 gap",
        "conv 4 / 8 gap dropout .50 crop 02": "conv 4 / 8 gap crop 2 dropout 0.5",
        "LINEAR 24": "linear 24",
    }.items():
        assert str(parse(typed)) == written
        assert parse(typed) == parse(written)


def test_a_bad_line_is_refused():
    for line, problem in BAD_LINES.items():
        with pytest.raises(NetworkError) as error:
            parse(line)
        assert str(error.value) == f'in "{line}": {problem}'


def test_cellular_begins_with_the_image_and_shares_scales_at_each_resolution():
    model, images = parse("cellular 3 ×2 / ×1 gdconv crop 2").build(), torch.rand(2, 1, 28, 28)
    assert torch.equal(model.stem(images)[:, 0], images[:, 0, 2:-2, 2:-2])
    (first, _), (second, _) = model.steps[0]
    assert first.weight is second.weight
    assert first.running_mean is not second.running_mean


def test_cellular_separable_has_one_norm_at_each_resolution():
    model = parse("cellular-separable 3 ×2 / ×3 gdconv crop 2").build()
    assert [[isinstance(layer, nn.ReLU) for layer in steps] for steps in model.steps] == [
        [False, True],
        [False, True, True],
    ]
    assert count_stored(model) == count_parameters(model)


def test_weights_that_layers_share_are_saved_and_loaded(tmp_path):
    line = "cellular 3 ×2 / ×2 gap deskew 5"
    model = build(parse(line).build, seed=1)
    save_weights(model, tmp_path / "weights.safetensors")
    assert_same_weights(load_weights(build(parse(line).build, seed=2), tmp_path / "weights.safetensors"), model)
