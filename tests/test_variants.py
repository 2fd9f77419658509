"""Every variant builds, trains a step, fits its budget and is told in full."""

import re

import pytest
import torch

from helpers import Net, build, count_parameters
from variants import VARIANTS, like_net

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


def test_like_net_is_net():
    ours, theirs = build(like_net), build(Net)
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))
