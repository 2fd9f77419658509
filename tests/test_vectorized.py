"""`fit_vectorized` against `fit` for each seed."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers
from s5.experiments.claims import KNOWN
from s5.experiments.variants import VARIANTS
from s5.experiments.vectorized import Stack, fit_vectorized
from s5.training.recipe import Recipe
from tests.utils import assert_same_weights, fit

SEEDS = [3, 7]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=2, batch_size=100, learning_rate=0.01, label_smoothing=0.1),
        replace(VARIANTS["sgd"].recipe, epochs=2, batch_size=100, learning_rate=0.02),
        replace(VARIANTS["original"].recipe, epochs=2, step_epochs=1, elastic=1.0, epochs_without_augmentation=1),
        replace(VARIANTS["no_augmentation"].recipe, epochs=2, optimizer="adamw", learning_rate=0.001),
    ],
    ids=["final", "sgd", "original", "adamw"],
)
def test_each_seed_gets_the_result_of_fit(small, recipe):
    models, histories = fit_vectorized(helpers.Net, small, recipe, SEEDS, "cpu", precision="float32")
    for seed, model, history in zip(SEEDS, models, histories, strict=True):
        reference, expected_history = fit(small, recipe, seed, precision="float32")
        for line, expected in zip(history, expected_history, strict=True):
            assert line.keys() == expected.keys()
            assert line["learning_rate"] == expected["learning_rate"]
            assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=2e-3)
            assert line["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-3)
        actual, expected = (helpers.predict(each, small.eval_images) for each in (model, reference))
        assert (actual - expected).abs().max() < 0.01


@pytest.mark.parametrize("name", ["dropout", "below_500"])  # the second has tensors that several layers share
def test_a_stack_returns_the_logits_of_each_network(name):
    models = [helpers.build(KNOWN[name].build, seed).eval() for seed in SEEDS]
    images = torch.randn(2, 5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits = Stack(models).eval()(images)
    expected = torch.stack([model(batch) for model, batch in zip(models, images, strict=True)])
    assert torch.allclose(logits, expected, atol=1e-5)
    copies = [helpers.build(KNOWN[name].build).eval() for _ in SEEDS]
    Stack(models).write_to(copies)
    for copy, model in zip(copies, models, strict=True):
        assert_same_weights(copy, model)


@pytest.mark.parametrize(
    ("seeds", "changes", "error", "message"),
    [
        ([], {}, ValueError, "seeds must be one or more different numbers"),
        ([1, 1], {}, ValueError, "seeds must be one or more different numbers"),
        (SEEDS, {"teacher": "budget_1k"}, ValueError, "fit_vectorized does not support distillation"),
        (
            SEEDS,
            {"optimizer": "sgd", "learning_rate": 1e30, "warmup": 0.0},
            helpers.DivergenceError,
            r"in epoch 1 for the seeds \[3, 7\]",
        ),
    ],
)
def test_errors(small, seeds, changes, error, message):
    with pytest.raises(error, match=message):
        fit_vectorized(helpers.Net, small, Recipe(epochs=1, **changes), seeds, "cpu")


class Own(nn.Module):
    """A network with a frozen convolution and a parameter of three dimensions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1).requires_grad_(False)
        self.position = nn.Parameter(torch.randn(4, 28, 28) / 50)
        self.end = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(196, 10))

    def forward(self, images):
        return self.end(self.conv(images) + self.position)


def test_frozen_parameters_stay_and_only_convolutions_are_trained_by_muon(small):
    recipe = Recipe(epochs=1, batch_size=100)
    models, _ = fit_vectorized(Own, small, recipe, SEEDS, "cpu", precision="float32")
    for seed, model in zip(SEEDS, models, strict=True):
        alone = helpers.build(Own, seed)
        assert torch.equal(model.conv.weight, alone.conv.weight)
        helpers.fit(alone, small, recipe, seed=seed, device="cpu", precision="float32", progress=False)
        torch.testing.assert_close(model.position, alone.position, rtol=0, atol=1e-4)
