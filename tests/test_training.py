"""The model and the loops: what they compute, not how."""

import copy
import itertools
import math
import re
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from helpers import Net
from s5.training import checkpoint, progress
from s5.training.augmentation import MEAN, STD
from s5.training.checkpoint import load_checkpoint
from s5.training.recipe import NO_AUGMENTATION, Recipe
from tests.utils import SHORT, assert_same_weights, devices, fit, without_seconds

# --- Model ------------------------------------------------------------------------------------------------------------


def test_net_returns_logits_of_the_right_shape():
    logits = Net()(torch.randn(7, 1, 28, 28) * 100)
    assert logits.shape == (7, 10)
    assert logits.dtype == torch.float32
    assert (logits < 0).any()
    assert not torch.allclose(logits.exp().sum(1), torch.ones(7)), "log-probabilities, not logits"


def test_net_has_the_layers_of_the_architecture_table():
    layers = "conv1.0 conv1.1 conv1.3 conv1.4 conv1.6 conv2.0 conv2.1 conv2.3 conv2.4 conv2.6 conv3.0 conv3.1 gap fc"
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d]
    kinds = [*kinds, *kinds, nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Linear]
    for name, kind in zip(layers.split(), kinds, strict=True):
        assert isinstance(Net().get_submodule(name), kind), name
    others = {type(module) for name, module in Net().named_modules() if name not in layers.split()}
    assert others == {Net, nn.Sequential, nn.ReLU}


def test_evaluation_changes_neither_statistics_nor_modes(small):
    model = helpers.build()
    model.conv1[1].eval()
    before = copy.deepcopy(model.state_dict())
    helpers.evaluate(model, small.eval_images, small.eval_labels)
    alone, together = (helpers.predict(model, small.eval_images[:count])[0] for count in (1, 50))
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)  # a prediction does not depend on other images
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [model.training, model.conv1[1].training, model.conv2[1].training] == [True, False, True]


def test_overfits_64_images(small):
    images, labels = small.train_images[:64], small.train_labels[:64]
    few = replace(small, train_images=images, train_labels=labels, eval_images=images, eval_labels=labels)
    recipe = Recipe(epochs=25, batch_size=16, ema_decay=0.0, weight_decay=0.0, **NO_AUGMENTATION)
    _, history = fit(few, recipe)
    assert history[-1]["eval_correct"] == 64


# --- Loops ------------------------------------------------------------------------------------------------------------


class Frozen(nn.Module):
    """Known logits: the image's first pixel is the class that gets `confidence`, all others get 0."""

    def __init__(self, confidence: float = 2.0):
        super().__init__()
        self.confidence = nn.Parameter(torch.tensor(confidence))

    def forward(self, images):
        digits = ((images[:, 0, 0, 0] * STD + MEAN) * 255).round().long()
        return F.one_hot(digits, 10) * self.confidence


def test_loss_is_the_mean_per_image_even_with_a_partial_last_batch(monkeypatch):
    monkeypatch.setattr(helpers, "eval_batch_size", lambda device: 3)
    labels = torch.arange(7) % 10
    images = torch.zeros(7, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = labels
    images[5:, 0, 0] = 9  # the last two are wrong
    correct_loss = math.log(math.exp(2) + 9) - 2
    wrong_loss = math.log(math.exp(2) + 9)
    expected = (5 * correct_loss + 2 * wrong_loss) / 7

    loss, correct = helpers.evaluate(Frozen(), images, labels)
    assert correct == 5
    assert loss == pytest.approx(expected, rel=1e-6)

    model = Frozen()
    recipe = Recipe(batch_size=3, ema_decay=0.0, **NO_AUGMENTATION)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss, accuracy = helpers.train(model, images, labels, optimizer, recipe, torch.Generator(), progress=False)
    assert accuracy == pytest.approx(100 * 5 / 7)
    assert loss == pytest.approx(expected, rel=1e-6)


def test_schedules():
    recipe = Recipe(epochs=4, warmup=0.25, schedule="linear")
    factors = [recipe.learning_rate_factor(step, 10) for step in range(40)]
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert factors[10] == 1.0
    assert all(after < before for before, after in itertools.pairwise(factors[10:]))
    assert 0 < factors[-1] < 0.05
    for schedule, expected in (
        ("step", [1, 1, 0.1, 0.1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("constant", [1, 1, 1, 1]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ):
        recipe = Recipe(epochs=4, schedule=schedule, schedule_every="epoch", step_epochs=2)
        assert [recipe.learning_rate_factor(step, 1) for step in range(4)] == pytest.approx(expected)


def test_history_ends_with_the_weights_that_the_model_holds(small):
    model, history = fit(small)
    loss, correct = helpers.evaluate(model, small.eval_images, small.eval_labels)
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert all(epoch.keys() == progress.Epoch.__annotations__.keys() for epoch in history)
    assert history[-1]["eval_correct"] == correct
    assert history[-1]["eval_loss"] == pytest.approx(loss)
    assert history[-1]["eval_accuracy"] == pytest.approx(100 * correct / 200)
    wrong = helpers.mistakes(small.eval_labels, helpers.predict(model, small.eval_images))
    assert len(wrong) == 200 - correct


def test_rare_evaluation_changes_nothing_else(small, capsys):
    recipe = replace(SHORT, epochs=3)
    model, history = fit(small, recipe)
    rarely_evaluated = helpers.build()
    rare_history = helpers.fit(rarely_evaluated, small, recipe, device="cpu", eval_every=2)
    assert [line["eval_loss"] is None for line in rare_history] == [True, False, False]
    assert "sample test not evaluated" in capsys.readouterr().out.splitlines()[0]
    assert without_seconds(history)[1:] == without_seconds(rare_history)[1:]
    assert_same_weights(model, rarely_evaluated)


def test_last_epochs_without_augmentation(small):
    never = replace(SHORT, **NO_AUGMENTATION)
    in_no_epoch = replace(SHORT, epochs_without_augmentation=SHORT.epochs)
    assert_same_weights(fit(small, never)[0], fit(small, in_no_epoch)[0])
    some = replace(SHORT, epochs_without_augmentation=1)
    assert [some.in_epoch(number).augments for number in (1, 2)] == [True, False]


def test_averaged_weights_are_the_moving_average(small, monkeypatch):
    recipe = replace(SHORT, epochs=1, ema_decay=0.9, batch_size=300)
    model = helpers.build()
    weights = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            weights.append(model.fc.weight.detach().clone())

    monkeypatch.setattr(checkpoint, "make_optimizer", lambda parameters, recipe: Recorder(parameters, lr=0.05))
    helpers.fit(model, small, recipe, device="cpu", progress=False)
    early_decay = 2 / 11  # the decay grows up to 0.9
    torch.testing.assert_close(model.fc.weight, early_decay * weights[0] + (1 - early_decay) * weights[1])


@pytest.mark.parametrize("device", devices())
def test_the_same_seed_gives_identical_weights(small, device):
    one, one_history = fit(small, seed=5, device=device)
    torch.rand(17)
    other, other_history = fit(small, seed=5, device=device)
    assert_same_weights(one, other)
    assert without_seconds(one_history) == without_seconds(other_history)
    assert not torch.equal(one.fc.weight, fit(small, seed=6, device=device)[0].fc.weight)


def test_log_has_one_line_per_epoch_or_a_function_gets_the_history(small, capsys):
    helpers.fit(helpers.build(), small, SHORT, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    first = r"Epoch  1/2  lr 0\.02727  train loss .*  sample test loss .* accuracy \d+/200 \(\d+\.\d\d%\)  \d+\.\d s"
    assert re.fullmatch(first, lines[0])
    assert len(lines) == 2
    seen = []
    history = helpers.fit(helpers.build(), small, SHORT, device="cpu", progress=lambda so_far: seen.append([*so_far]))
    assert seen == [history[:1], history]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("is_terminal", "bars"), [(True, True), (False, False)])
def test_a_bar_is_shown_in_a_terminal_only(is_terminal, bars, small, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    helpers.fit(helpers.build(), small, SHORT, device="cpu")
    assert ("Train Loss=" in capsys.readouterr().err) == bars


class Stops(Net):
    """After the eighth training step, of six in an epoch, its loss is NaN or somebody presses Ctrl-C."""

    def __init__(self, by_ctrl_c=False):
        super().__init__()
        self.by_ctrl_c, self.steps = by_ctrl_c, 0

    def forward(self, images):
        self.steps += self.training
        if self.steps > 8 and self.by_ctrl_c:
            raise KeyboardInterrupt
        return super().forward(images) * (math.nan if self.steps > 8 else 1.0)


@pytest.mark.parametrize("by_ctrl_c", [False, True])
def test_a_run_that_stops_early_keeps_complete_epochs(small, tmp_path, capsys, by_ctrl_c):
    model, path = helpers.build(lambda: Stops(by_ctrl_c)), tmp_path / "checkpoint.pt"
    message = r"not finite in epoch 2; the model is as it was before this epoch\. .*smaller learning rate than 0\.05"
    with nullcontext() if by_ctrl_c else pytest.raises(helpers.DivergenceError, match=message):
        helpers.fit(model, small, SHORT, device="cpu", checkpoint=path, progress=False)
    assert ("Interrupted; kept: 1 of 2 epochs." in capsys.readouterr().out) == by_ctrl_c
    kept = load_checkpoint(path)
    assert len(kept["history"]) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept["average"][f"module.{name}"]), name  # what was evaluated


def test_a_non_finite_evaluation_is_divergence(small):
    """The training loss is measured before each step, so only the evaluation shows what the last step broke."""

    class BreaksAtTheEnd(Net):
        def forward(self, images):
            return super().forward(images) * (1.0 if self.training else math.inf)

    with pytest.raises(helpers.DivergenceError, match="epoch 1"):
        fit(small, architecture=BreaksAtTheEnd)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("epochs", [0, 2.5, True, 10**30]),
        ("learning_rate", [0, math.nan, math.inf, None]),
        ("translation", ["much", 1.5, -0.1]),
        ("optimizer", ["lion", 5]),
        ("teacher", [5]),
        ("nesterov", [1]),
    ],
)
def test_a_bad_recipe_names_the_field(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"\A{field} must be [^\n]*\Z"):
            Recipe(**{field: value})
    assert type(Recipe(epochs=np.int64(3)).epochs) is int  # a checkpoint with NumPy's could not be read again


def test_a_run_of_other_length_keeps_the_share_of_epochs_without_augmentation():
    recipe = Recipe(epochs=80, epochs_without_augmentation=16)
    assert recipe.changed(epochs=15) == replace(recipe, epochs=15, epochs_without_augmentation=3)
    assert recipe.changed(epochs=15, epochs_without_augmentation=0).epochs_without_augmentation == 0
    assert recipe.changed(rotation=0.0) == replace(recipe, rotation=0.0)
    for changes, message in (({"epochs": 0}, "epochs must be"), ({"epoch": 1}, "no 'epoch'; did you mean 'epochs'?")):
        with pytest.raises(ValueError, match=re.escape(message)):
            recipe.changed(**changes)


def test_bfloat16_is_used_in_training_passes_only(small):
    dtypes = []

    class Recorder(Net):
        def forward(self, images):
            outputs = self.conv1(images)
            dtypes.append((images.dtype, outputs.dtype) if self.training else outputs.dtype)
            return super().forward(images)

    model, _ = fit(small, precision="bfloat16", architecture=Recorder)
    assert set(dtypes) == {(torch.float32, torch.bfloat16), torch.float32}  # in training, in evaluation
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_build_predict_and_evaluate_name_what_they_cannot_take(small):
    model, images, labels = helpers.build(), small.eval_images, small.eval_labels
    for wrong, message in (
        ((Net, images, labels), "^model must be a network such as Net"),
        ((model, images / 255, labels), r"^images must be a tensor, uint8 \(N, 28, 28\) .*, not torch.float32"),
        ((model, images.numpy(), labels), r"^images must be .*, not ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            helpers.predict(*wrong[:2])
        with pytest.raises(ValueError, match=message):
            helpers.evaluate(*wrong)
    assert helpers.predict(nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), images).shape == (200, 10)
    with pytest.raises(ValueError, match="labels must be a tensor, int64"):
        helpers.evaluate(model, images, labels[1:])
    with pytest.raises(ValueError, match=r"^architecture must be a class .*, not a network: write Net, not Net\(\)"):
        helpers.build(Net())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": Net}, "model must be a network such as Net"),
        ({"data": (1, 2)}, "data must be of the type MnistData, not tuple"),
        ({"recipe": {"epochs": 1}}, "recipe must be of the type Recipe, not dict"),
        ({"recipe": Recipe(teacher="s5")}, "to learn from 's5', pass loss="),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(784, 11))}, r"the model must return logits .* gave \(2, 11\)"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(700, 10))}, "the model cannot take images of shape"),
        ({"model": Net().requires_grad_(False)}, "the model has no parameters to train"),
        ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}, "the model has lazy layers"),
        ({"eval_every": 0}, "eval_every must be a whole number, 1 or more, not 0"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1,024, not 0"),
        ({"seed": -1}, r"seed must be a whole number, 0 or more and below 2\^63, not -1"),
    ],
)
def test_fit_names_what_cannot_be_trained(arguments, message, small):
    given = {"model": helpers.build(), "data": small, "recipe": SHORT} | arguments
    with pytest.raises(ValueError, match=message):
        helpers.fit(**given, device="cpu", progress=False)
