"""Every variant builds, has gradients, keeps its budget and shows its whole source."""

import re

import pytest
import torch

from analysis.inspection import count_parameters
from experiments.architectures import NET, plain_cnn
from experiments.variants import VARIANTS, code, recipe_change
from helpers import Net, build
from tests.utils import assert_same_weights

BUDGETS = {"budget_8k": 8_000, "budget_5k": 5_000, "budget_2k": 2_000, "budget_1k": 1_000}
OVER_BUDGET = {"pytorch_example", "flattened"}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_builds_and_is_described(variant):
    model = build(variant.build)
    logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert variant.change.endswith(".")
    assert variant.target.endswith(".")
    earlier = list(VARIANTS)[: list(VARIANTS).index(variant.name)]
    assert variant.parent in earlier or (variant.parent is None and not earlier)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_is_within_its_budget(variant):
    parameters = count_parameters(variant.build())
    assert (parameters >= 20_000) == (variant.name in OVER_BUDGET)
    assert parameters < BUDGETS.get(variant.name, 2_000_000)
    for stated in re.findall(r"([\d,]+) parameters", getattr(variant.build, "__doc__", None) or ""):
        assert int(stated.replace(",", "")) == parameters


def test_plain_cnn_with_nets_channels_is_net():
    plain, net = build(lambda: plain_cnn(NET)), build(Net)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(plain.eval()(images), net.eval()(images))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_shown_source_builds_the_same_network(variant):
    """The source in the notebook is complete: run on its own, it makes the same weights."""
    shown = code(variant.name)
    *definitions, last = re.split(r"\n(?=\w)", shown.strip())
    call = last if last.startswith("plain_cnn(") else f"{re.match(r'(?:def|class) (.+?)[(]', last)[1]}()"
    namespace = {"nn": torch.nn, "Tensor": torch.Tensor}
    exec("\n".join(definitions if call is last else [*definitions, last]), namespace)
    torch.manual_seed(0)
    assert_same_weights(eval(call, namespace), build(variant.build))


def test_recipe_change_as_text():
    assert recipe_change("dropout") == "Recipe against sgd: the same recipe"
    assert recipe_change("no_augmentation").startswith("Recipe against sgd: rotation 10.0 → 0.0, ")
    assert recipe_change("fully_connected").startswith("Recipe(epochs=20, ")
