"""Every variant builds, has gradients, keeps its budget and shows its whole source."""

import pytest
import torch

from helpers import build
from s5.analysis.inspection import count_parameters
from s5.experiments.variants import NAMED, VARIANTS, code, recipe_change
from s5.networks import grammar
from tests.utils import assert_same_weights

BUDGETS = {"budget_8k": 8_000, "budget_5k": 5_000, "budget_2k": 2_000, "budget_1k": 1_000}
OVER_BUDGET = {"pytorch_example": 2_000_000, "flattened": 40_000}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_builds_is_described_and_within_its_budget(variant):
    model = build(variant.build)
    logits = model(torch.randn(2, 1, 28, 28))
    assert logits.shape == (2, 10)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert count_parameters(model) < (BUDGETS | OVER_BUDGET).get(variant.name, 20_000)
    assert variant.change.endswith(".")
    assert variant.target.endswith(".")
    earlier = list(VARIANTS)[: list(VARIANTS).index(variant.name)]
    assert variant.parent in earlier or (variant.parent is None and not earlier)
    # What is shown is a line, or source that is complete: run on its own, it makes the same weights.
    shown, namespace = code(variant.name), {"nn": torch.nn, "Tensor": torch.Tensor}
    if variant.network in NAMED:
        exec(shown, namespace)
    shown_build = namespace.get(variant.network) or grammar.parse(shown).build
    assert_same_weights(build(shown_build), build(variant.build))


def test_recipe_change_as_text():
    assert recipe_change("dropout") == "Recipe against augmentation: the same recipe"
    assert recipe_change("rotation") == "Recipe against five_convolutions: rotation 0.0 → 10.0"
    assert recipe_change("fully_connected").startswith("Recipe(epochs=20, ")
