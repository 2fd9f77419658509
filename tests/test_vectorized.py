"""Many seeds at once against the same seeds one by one."""

from dataclasses import replace

import pytest
import torch

import helpers
from experiments.variants import VARIANTS
from experiments.vectorized import Stack, fit_vectorized
from tests.utils import fit
from training.fused import can_fuse
from training.recipe import Recipe

SEEDS = [3, 7]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=2, batch_size=100, learning_rate=0.01, label_smoothing=0.1),
        replace(VARIANTS["sgd"].recipe, epochs=2, batch_size=100, learning_rate=0.02),
        replace(VARIANTS["original"].recipe, epochs=2, step_epochs=1, elastic=1.0, epochs_without_augmentation=1),
        replace(VARIANTS["no_augmentation"].recipe, epochs=2, optimizer="adamw", learning_rate=0.001),
    ],
    ids=["final", "sgd", "seed", "adamw"],
)
def test_each_seed_is_trained_as_it_would_be_alone(small, recipe):
    models, histories = fit_vectorized(helpers.Net, small, recipe, SEEDS, "cpu")
    for seed, model, history in zip(SEEDS, models, histories, strict=True):
        alone, expected = fit(small, recipe, seed, eval_every=recipe.epochs)
        for line, wanted in zip(history, expected, strict=True):
            assert line.keys() == wanted.keys()
            assert line["learning_rate"] == wanted["learning_rate"]
            assert line["train_loss"] == pytest.approx(wanted["train_loss"], rel=2e-3)
        assert history[0]["eval_loss"] is None
        assert history[-1]["eval_loss"] == pytest.approx(expected[-1]["eval_loss"], rel=2e-3)
        ours, theirs = helpers.predict(model, small.eval_images), helpers.predict(alone, small.eval_images)
        assert (ours - theirs).abs().max() < 0.01


def test_a_stack_gives_each_network_its_own_answer():
    models = [helpers.build(VARIANTS["dropout"].build, seed).eval() for seed in SEEDS]
    images = torch.randn(2, 5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits = Stack(models).eval()(images)
    assert torch.allclose(logits, torch.stack([m(i) for m, i in zip(models, images, strict=True)]), atol=1e-5)


def test_bad_seeds_and_divergence_are_named(small):
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="one seed or more, each once"):
            fit_vectorized(helpers.Net, small, Recipe(epochs=1), seeds, "cpu")
    with pytest.raises(helpers.DivergenceError, match=r"in epoch 1 for the seeds \[3, 7\]"):
        fit_vectorized(
            helpers.Net, small, Recipe(epochs=1, optimizer="sgd", learning_rate=1e30, warmup=0.0), SEEDS, "cpu"
        )


@pytest.mark.skipif(not can_fuse(), reason="torch wants Linux, a C++ compiler and Python's headers")
def test_compiling_changes_nothing_but_rounding(small):
    recipe = Recipe(epochs=1, batch_size=100)
    (_, plain), (_, compiled) = (
        fit_vectorized(helpers.Net, small, recipe, SEEDS, "cpu", each) for each in (False, True)
    )
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=0.02)
