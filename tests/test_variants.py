"""Every variant builds, trains a step, fits its budget and is told in full."""

import re

import pytest
import torch

from analysis.inspection import count_parameters
from experiments.variants import NET, VARIANTS, code, plain_cnn, recipe_change
from helpers import Net, build

BUDGETS = {"budget_8k": 8_000, "budget_5k": 5_000, "budget_2k": 2_000, "budget_1k": 1_000}
OVER_BUDGET = {"pytorch_example", "flattened"}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_is_whole(variant):
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
def test_a_variant_keeps_to_its_budget(variant):
    parameters = count_parameters(variant.build())
    assert (parameters >= 20_000) == (variant.name in OVER_BUDGET)
    assert parameters < BUDGETS.get(variant.name, 2_000_000)
    for stated in re.findall(r"([\d,]+) parameters", getattr(variant.build, "__doc__", None) or ""):
        assert int(stated.replace(",", "")) == parameters


def test_a_pyramid_of_its_channels_is_net():
    ours, theirs = build(lambda: plain_cnn(NET)), build(Net)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_code_that_is_shown_builds_the_network(variant):
    """What a reader of the notebook sees is all there is: run alone, it makes the same weights."""
    shown = code(variant.name)
    *definitions, last = re.split(r"\n(?=\w)", shown.strip())
    call = last if last.startswith("plain_cnn(") else f"{re.match(r'(?:def|class) (.+?)[(]', last)[1]}()"
    namespace = {"nn": torch.nn, "Tensor": torch.Tensor}
    exec("\n".join(definitions if call is last else [*definitions, last]), namespace)
    torch.manual_seed(0)
    ours, theirs = eval(call, namespace).state_dict(), build(variant.build).state_dict()
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_recipe_changes_in_words():
    assert recipe_change("dropout") == "Recipe against sgd: the same recipe"
    assert recipe_change("no_augmentation").startswith("Recipe against sgd: rotation 10.0 → 0.0, ")
    assert recipe_change("fully_connected").startswith("Recipe(epochs=20, ")
