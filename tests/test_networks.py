"""One line of text describes a network: the grammar, its errors, and the same weights as the recorded networks had."""

import random
from dataclasses import replace

import pytest
import torch

from helpers import Net, build
from s5.analysis.inspection import count_macs, count_parameters
from s5.experiments.ledger import read_ledger
from s5.experiments.variants import NAMED
from s5.networks.grammar import BLOCKS, CONVOLUTIONS, HEADS, OPTIONS, Network, NetworkError, parse
from s5.training.checkpoint import load_weights, save_weights
from tests.utils import assert_same_weights

# The initial weights of each network for seed 3, as a sum with weights from -1 to 1 over each tensor. They were summed
# when each network was still a function: what is recorded of it stays true of its line.
WEIGHTS = {
    "linear 24": -0.2925,
    "conv 8 16 / 32 / 40 gap dropout 0.05": 1.5319,
    "plain 4 8 / 16 32 / 40 gap": 2.6896,
    "conv 4 8 / 16 32 / 40 flat": 1.8756,
    "conv 4 8 / 16 32 / 40 gap dropout 0.05": 1.5376,
    "separable 16 32 / 64 72 / 96 gap": 2.4778,
    "conv 4 8 / 12 18 / 24 gap": 1.6197,
    "conv 4 8 / 10 14 / 18 gap": 1.9332,
    "conv 4 5 / 6 8 / 11 gap": -0.8061,
    "conv 3 3 / 4 6 / 7 gap": -0.2627,
    "conv 4 8 / 16 32 / 38 gdconv": 0.8748,
    "conv 4 8 / 12 18 / 20 gdconv": 5.7775,
    "conv 4 6 / 10 12 / 16 gdconv": 1.4874,
    "conv 3 4 / 6 7 / 9 gdconv": 0.9922,
    "conv 4 8 / 16 32 / 40 gap crop 2": 1.5376,
    "conv 4 8 / 16 32 / 40 gdconv crop 2": 3.588,
    "conv 4 8 / 16 32 / 40 gap radial 1": 1.5376,
    "conv 4 6 / 8 12 12 / 14 16 gap": 2.5744,
    "conv 4 6 / 10 12 12 / 14 16 gdconv": -1.7405,
    "conv 4 6 / 8 8 8 / 10 12 gdconv": 3.2176,
    "conv 3 4 / 5 6 6 / 7 gdconv": -1.9312,
    "conv 2 3 / 4 4 4 / 5 gdconv": -0.8638,
    "conv 3 4 / 5 6 6 / 6 8 gap": 2.9965,
    "conv 4 6 / 8 10 / 12 / 14 gdconv crop 2": -2.1875,
    "conv 3 4 / 6 / 8 / 10 gdconv crop 2": 1.998,
    "conv 3 4 / 4 / 5 / 6 gdconv crop 2": 3.2769,
    "separable 16 32 / 48 48 56 / 64 64 gap": 6.4673,
    "separable 8 16 / 28 32 32 / 40 40 gap": 0.9857,
    "separable 6 12 / 20 24 24 / 30 30 gap": -3.6283,
    "separable 5 8 / 11 12 12 / 16 16 gap": -1.4632,
    "separable 8 16 / 26 26 26 28 / 36 36 gap": 1.7338,
    "separable 4 8 / 12 12 / 12 14 / 14 gdconv crop 2": 1.3583,
    "separable 3 6 / 8 8 / 9 / 10 gdconv crop 2": -2.9269,
    "separable 8 16 / 48 64 / 72 gdconv": -1.6258,
    "separable 6 8 / 12 14 / 16 20 gap": 0.3415,
    "separable 4 6 / 8 10 / 16 gap": 2.3531,
    "shared 18 ×1 / ×2 / ×2 gdconv": 1.0573,
    "shared 12 ×1 / ×2 / ×2 gap": 2.4601,
    "shared 10 ×1 / ×2 / ×2 gdconv": 1.2445,
    "shared 8 ×1 / ×2 / ×2 gap": 1.8552,
    "shared 8 ×1 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 0.7582,
    "cellular 6 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 1.8081,
    "dense 4 / 3 / 3 / 3 gdconv crop 2": -1.333,
    "dense 3 3 / 3 3 / 3 / 3 gdconv crop 2": 1.749,
    "dense 4 4 / 4 4 / 5 5 / 5 gdconv crop 2": -2.661,
    "shared 8 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 0.7582,
    "shared 8 ×1 / ×2 / ×3 / ×3 gdconv crop 2": 0.7582,
    "shared-separable 14 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 1.0377,
    "shared 12 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 2.4421,
    "shared-separable 22 ×1 / ×2 / ×2 / ×2 gdconv crop 2": -1.1171,
    "shared 12 ×1 / ×2 / ×3 / ×3 gdconv crop 2": 2.4421,
    "shared 20 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 0.3121,
    "shared 27 ×1 / ×2 / ×2 / ×2 gdconv crop 2": 4.1787,
    "conv 16 24 / 32 gdconv stem 16": 1.3839,
    "conv 16 24 / 32 gap stem 16": 2.1729,
    "conv 20 28 / 32 gdconv stem 16": 1.6001,
    "separable 32 64 / 72 88 gap stem 16": 0.5817,
    "conv 16 32 / 64 64 / 128 gdconv": -0.9027,
    "cellular 13 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2": 2.2319,
    "cellular 13 ×2 / ×2 / ×3 / ×3 gdconv deskew 5 crop 2": 2.2319,
    "cellular 22 ×2 / ×2 / ×2 / ×2 gdconv deskew 5 crop 2": 0.5647,
}

LAYERS = " (1 to 4096), / or head (gap, flat, gdconv)"

BAD_LINES = {
    "": "at the end: missing block (conv, separable, plain, shared, shared-separable, cellular, dense, linear)",
    "net": 'word 1: "net" is no block (conv, separable, plain, shared, shared-separable, cellular, dense, linear)',
    "conv": "at the end: missing channel count (1 to 4096)",
    "conv gap": 'word 2: "gap" is no channel count (1 to 4096)',
    "conv 4 / / 8 gap": 'word 4: "/" is no channel count (1 to 4096)',
    "conv 4 8 / 16 q gap": f'word 6: "q" is no channel count{LAYERS}',
    "conv 4 8": f"at the end: missing channel count{LAYERS}",
    "conv 4 0 gap": f'word 3: "0" is no channel count{LAYERS}',
    "conv 4 4097 gap": f'word 3: "4097" is no channel count{LAYERS}',
    "conv 4 -8 gap": f'word 3: "-8" is no channel count{LAYERS}',
    "conv 4 8.5 gap": f'word 3: "8.5" is no channel count{LAYERS}',
    "conv 4 ×2 gap": f'word 3: "×2" is no channel count{LAYERS}',
    "conv 1 / 2 / 3 / 4 / 5 / 6 gap": "word 11: the image can be pooled 4 times at most",
    "conv 1 / 2 / 3 / 4 / 5 gap stem 3": "word 9: the image can be pooled 3 times at most",
    "conv 1 / 2 gap crop 13 stem 3": "word 3: the image can be pooled 0 times at most",
    "conv 4 gap crop 14": 'word 5: "14" is no border in pixels (1 to 13)',
    "conv 4 gap crop 2 radial 1 crop 2": "word 8: crop is repeated",
    "conv 4 gap crop": "at the end: missing border in pixels (1 to 13)",
    "conv 4 gap shift 2": 'word 4: "shift" is no option of conv (deskew, crop, radial, stem, dropout)',
    "conv 4 gap gap": 'word 4: "gap" is no option of conv (deskew, crop, radial, stem, dropout)',
    "conv 4 / 8 gap dropout 1": 'word 7: "1" is no probability (above 0, at most 0.99)',
    "conv 4 / 8 gap dropout nan": 'word 7: "nan" is no probability (above 0, at most 0.99)',
    "conv 4 gap dropout 0.1": "word 4: dropout follows the pooling (/), and there is none",
    "plain 4 gap stem 8": 'word 4: "stem" is no option of plain (deskew, crop, radial, dropout)',
    "shared ×1 gap": 'word 2: "×1" is no channel count (1 to 4096)',
    "shared 4 4 gap": 'word 3: "4" is no number of uses (×1 to ×64)',
    "shared 4 ×1 ×2 gap": 'word 4: "×2" is no / or head (gap, flat, gdconv)',
    "shared 4 ×60 / ×5 gap": "word 5: more than 64 layers",
    "shared 4 ×1 / ×2 gap dropout 0.1": 'word 7: "dropout" is no option of shared (deskew, crop)',
    "dense 4 / 3 gap crop 2": 'word 5: "gap" is no channel count (1 to 4096), / or head (gdconv)',
    "dense 4 / 3 gdconv": "at the end: dense requires crop 2",
    "dense 4 / 3 gdconv crop 3": "word 6: dense requires crop 2",
    "linear": "at the end: missing number of units (1 to 4096)",
    "linear 24 gap": 'word 3: "gap" is no number of units (1 to 4096)',
    "linear 24 crop 2": 'word 3: "crop" is no number of units (1 to 4096)',
    "linear 24 / 8": 'word 3: "/" is no number of units (1 to 4096)',
    f"conv {'4 ' * 65}gap": "word 66: more than 64 layers",
}


def random_line(draw: random.Random) -> str:
    """Any network of the grammar with at most six channels, as `str` writes it."""
    block = draw.choice(list(BLOCKS))
    if block == "linear":
        return " ".join(["linear", *(str(draw.randint(1, 6)) for _ in range(draw.randint(1, 3)))])
    depth = draw.randint(1, 4)
    if block.startswith("shared") or block == "cellular":
        stages = [f"×{draw.randint(1, 3)}" for _ in range(depth)]
        block = f"{block} {draw.randint(1, 6)}"
    else:
        stages = [" ".join(str(draw.randint(1, 6)) for _ in range(draw.randint(1, 3))) for _ in range(depth)]
    line = f"{block} {' / '.join(stages)} "
    values = {"deskew": draw.choice([3, 4.5, 5]), "crop": draw.randint(1, 5)}
    if block == "dense":
        return f"{line}gdconv{draw.choice(['', ' deskew 5'])} crop 2"
    if block in CONVOLUTIONS:
        values["radial"] = draw.choice([0.25, 1, 2.5, 10])
    if block in ("conv", "separable"):
        values["stem"] = draw.randint(1, 6)
    if block in CONVOLUTIONS and depth > 1:
        values["dropout"] = round(draw.uniform(0.01, 0.9), draw.randint(2, 17))
    options = "".join(f" {name} {values[name]}" for name in OPTIONS if name in values and draw.random() < 0.4)
    return f"{line}{draw.choice(list(HEADS))}{options}"


RANDOM_LINES = [random_line(random.Random(seed)) for seed in range(400)]


@pytest.mark.parametrize("line", WEIGHTS)
def test_a_line_builds_the_recorded_network(line):
    tensors = [parameter.detach().double().flatten() for parameter in build(parse(line).build, seed=3).parameters()]
    total = sum(float((each * torch.linspace(-1, 1, len(each), dtype=torch.float64)).sum()) for each in tensors)
    assert total == pytest.approx(WEIGHTS[line], abs=1e-3)


def test_every_recorded_trial_has_the_size_of_its_line():
    sizes = {(trial["network"], trial["parameters"], trial["macs"]) for trial in read_ledger()}
    lines = {line: (parameters, macs) for line, parameters, macs in sizes if line not in NAMED}
    assert len(lines) == len([size for size in sizes if size[0] not in NAMED]), "one size each"
    assert lines == {line: (parse(line).parameters, parse(line).macs) for line in lines}
    assert lines.keys() <= WEIGHTS.keys()


def test_nets_channels_give_nets_weights():
    network = parse("conv 4 8 / 16 32 / 40 gap")
    assert network == Network("conv", ((4, 8), (16, 32), (40,)), "gap")
    assert_same_weights(build(network.build), build(Net))


@pytest.mark.parametrize("line", [*WEIGHTS, *RANDOM_LINES])
def test_writing_is_the_inverse_of_reading(line):
    network = parse(line)
    assert str(network) == line
    assert parse(str(network)) == network
    assert network.build()(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_counting_keeps_the_random_state_and_equals_the_real_network():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    counts = [(parse(line).parameters, parse(line).macs) for line in RANDOM_LINES[:40]]
    assert torch.equal(torch.get_rng_state(), state)
    models = [parse(line).build() for line in RANDOM_LINES[:40]]
    assert counts == [(count_parameters(model), count_macs(model)) for model in models]


def test_the_largest_network_is_counted_without_memory():
    assert parse(f"conv {'4096 ' * 64}gdconv").parameters > 9_000_000_000


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("shared 12 x1 / X2 / ×2 gap", "shared 12 ×1 / ×2 / ×2 gap"),
        ("  Conv  4 8/16\t32 /40\n GAP ", "conv 4 8 / 16 32 / 40 gap"),
        (
            "conv 4 / 8 gap dropout .50 stem 4 crop 02 radial 1.0",
            "conv 4 / 8 gap crop 2 radial 1 stem 4 dropout 0.5",
        ),
        ("LINEAR 24", "linear 24"),
    ],
)
def test_other_spellings(typed, written):
    assert str(parse(typed)) == written
    assert parse(typed) == parse(written)


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_refused(line):
    with pytest.raises(NetworkError) as error:
        parse(line)
    assert str(error.value) == f'in "{line}", {BAD_LINES[line]}'


@pytest.mark.parametrize("value", [None, 4, b"conv 4 gap", ["conv", 4, "gap"]])
def test_only_text_is_read(value):
    with pytest.raises(NetworkError, match=f"a network is one line of text, not of type {type(value).__name__}"):
        parse(value)


def test_a_network_made_by_hand_is_checked_like_a_line():
    network = Network("conv", [[4, 8], [16]], "gap", radial=1)
    assert network.stages == ((4, 8), (16,))
    assert str(replace(network, crop=2)) == "conv 4 8 / 16 gap crop 2 radial 1"
    assert len({network, parse(str(network))}) == 1
    with pytest.raises(NetworkError, match='word 8: "20" is no border'):
        replace(network, crop=20)
    with pytest.raises(NetworkError, match='"×4" is no channel count'):
        Network("conv", ((4,),), "gap", channels=4)


def test_random_words_raise_nothing_else():
    draw = random.Random(0)
    numbers = ["0", "1", "2", "4096", "4097", "-1", "1e3", "1e-3", "0.5", "nan", "inf", "1_0", "x2", "×0", "9" * 5000]
    words = [*BLOCKS, *HEADS, *OPTIONS, *numbers, *"////", *"٤².-×xİ\x00\u2028"]
    accepted = 0
    for _ in range(20_000):
        line = draw.choice(["", f"{draw.choice(list(BLOCKS))} ", f"{draw.choice(RANDOM_LINES)} "])
        line += draw.choice([" ", "", "\n"]).join(draw.choices(words, k=draw.randint(0, 8)))
        try:
            network = parse(line)
        except NetworkError as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            assert len(message) < 600
            continue
        accepted += 1
        assert parse(str(network)) == network
        if accepted % 50 == 0:
            assert network.parameters > 0
    assert accepted > 500


def test_cellular_begins_with_the_image_and_shares_scales_at_each_resolution():
    network = parse("cellular 3 ×2 / ×1 gdconv crop 2")
    model = network.build()
    images = torch.rand(2, 1, 28, 28)
    state = model.stem(images)
    assert torch.equal(state[:, :1], images[:, :, 2:-2, 2:-2])
    assert not state[:, 1:].any()
    (first, _), (second, _) = model.steps[0]
    assert first.weight is second.weight
    assert first.bias is second.bias
    assert first.running_mean is not second.running_mean
    assert network.parameters == 3 * 3 * 9 + 2 * 6 + 3 * 12 * 12 + 40


def test_weights_that_layers_share_are_saved_and_loaded(tmp_path):
    line = "cellular 3 ×2 / ×2 gap deskew 5"
    model = build(parse(line).build, seed=1)
    save_weights(model, tmp_path / "weights.safetensors")
    assert_same_weights(load_weights(build(parse(line).build, seed=2), tmp_path / "weights.safetensors"), model)
