"""The final model and the loops that train it: what the notebooks and `main.py` import.

An image travels like this: uint8 tensors in memory, moved to the device once → a shuffled batch of indices →
augmented and normalised on the device, a whole batch at a time → `Net` → logits → cross-entropy.
Data loading, checkpoints, model checks and figures have files of their own and are passed on from here,
so that a notebook needs one import.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from augmentation import MEAN, STD, augment, normalize, random_affine, warp
from checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint, save_weights
from comparison_plots import plot_frontier, plot_hardest, plot_seeds
from devices import compile_for, compiling_pays, keep_freed_memory, lay_out, pick_device
from mnist import DataError, MnistData, load_mnist, load_sample, validation_split
from model_report import (
    check_model,
    count_layers,
    count_macs,
    count_parameters,
    layer_table,
    receptive_field_table,
    summary,
)
from muon import Muon
from plots import (
    plot_augmentation,
    plot_class_accuracy,
    plot_confusion,
    plot_curves,
    plot_digits,
    plot_feature_maps,
    plot_filters,
    plot_many_curves,
    plot_mistakes,
    save_figure,
)
from recipe import Recipe

__all__ = [
    "MEAN",
    "SMOKE",
    "STD",
    "CheckpointError",
    "DataError",
    "DivergenceError",
    "MnistData",
    "Net",
    "Recipe",
    "augment",
    "build",
    "check_model",
    "count_layers",
    "count_macs",
    "count_parameters",
    "fit",
    "layer_table",
    "load_checkpoint",
    "load_mnist",
    "load_sample",
    "load_weights",
    "mistakes",
    "normalize",
    "pick_device",
    "plot_augmentation",
    "plot_class_accuracy",
    "plot_confusion",
    "plot_curves",
    "plot_digits",
    "plot_feature_maps",
    "plot_filters",
    "plot_frontier",
    "plot_hardest",
    "plot_many_curves",
    "plot_mistakes",
    "plot_seeds",
    "predict",
    "random_affine",
    "receptive_field_table",
    "save_figure",
    "save_weights",
    "summary",
    "test",
    "train",
    "validation_split",
    "warp",
]

SMOKE = os.environ.get("MNIST_SMOKE") == "1"  # notebooks and tests: a short run on the small sample


class DivergenceError(RuntimeError):
    """The loss became infinite or not a number. The model holds the last good epoch's weights again."""


# --- Model -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """The final network: 18,214 parameters, five convolutions, each with BatchNorm, then average pooling.

    Takes normalised images, float (N, 1, 28, 28); returns logits, float (N, 10).
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(  # 28×28
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        )
        self.conv2 = nn.Sequential(  # 14×14
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        )
        self.conv3 = nn.Sequential(  # 7×7
            nn.Conv2d(32, 40, 3, padding=1, bias=False),
            nn.BatchNorm2d(40),
            nn.ReLU(),
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(40, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv3(self.conv2(self.conv1(images)))
        return self.fc(self.gap(features).flatten(1))


def build(architecture=Net, seed: int = 0) -> nn.Module:
    """A new network whose initial weights depend on `seed` alone."""
    torch.manual_seed(seed)
    return architecture()


# --- Loops -----------------------------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    generator: torch.Generator,
    scheduler: LambdaLR | None = None,
    average: AveragedModel | None = None,
    progress: bool = True,
    forward: Callable[[Tensor], Tensor] | None = None,
    teacher: nn.Module | None = None,
) -> tuple[float, float]:
    """Train one epoch; return the mean loss per image and the accuracy in percent, both over the epoch.

    `scheduler` and `average` are stepped once a batch; `forward` is the model compiled, where it is; `teacher`
    is what the recipe's distillation learns from. Raises DivergenceError when the loss stops being finite.
    """
    model.train()
    forward = model if forward is None else forward
    loss_sum = torch.zeros((), device=images.device)
    correct = torch.zeros((), device=images.device, dtype=torch.long)
    seen = 0
    order = torch.randperm(len(images), generator=generator, device=images.device)
    hidden = not progress or "TQDM_DISABLE" in os.environ  # tqdm's own switch, which an argument would override
    bar = tqdm(order.split(recipe.batch_size), leave=False, disable=hidden)
    for number, batch in enumerate(bar):
        targets = labels[batch]
        inputs = augment(images[batch], recipe, generator)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = forward(inputs).float()
            answers = None if teacher is None else teacher(inputs).float()
        loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        if answers is not None:
            loss = torch.lerp(loss, distillation_loss(logits, answers, recipe.temperature), recipe.teacher_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if average is not None:
            average.update_parameters(model)

        seen += len(batch)
        loss_sum += loss.detach() * len(batch)
        correct += (logits.argmax(1) == targets).sum()
        if number % 50 == 0:  # reading a number off a GPU makes it wait, so not at every batch
            _check_finite(loss_sum)
            bar.set_description(f"Train Loss={loss_sum / seen:.4f} Accuracy={100 * correct / seen:.2f}")
    _check_finite(loss_sum)
    return loss_sum.item() / seen, 100 * correct.item() / seen


def distillation_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """How far a network's softened answer lies from its teacher's, both logits (N, 10): their mean divergence.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
    """
    ours, theirs = (F.log_softmax(each / temperature, dim=1) for each in (logits, answers))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


@torch.inference_mode()
def test(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 1000) -> tuple[float, int]:
    """Mean cross-entropy per image and number of correct answers, for uint8 images (N, 28, 28)."""
    model.eval()
    lay_out(model)
    loss_sum = torch.zeros((), device=images.device)
    correct = torch.zeros((), device=images.device, dtype=torch.long)
    for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(normalize(batch))
        loss_sum += F.cross_entropy(logits, targets, reduction="sum")
        correct += (logits.argmax(1) == targets).sum()
    return loss_sum.item() / len(images), int(correct.item())


def fit(
    model: nn.Module,
    data: MnistData,
    recipe: Recipe,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    test_every: int = 1,
    compiled: bool | None = None,
    teacher: nn.Module | None = None,
) -> list[dict]:
    """Train `model` by `recipe`; return its history, one dict an epoch.

    Keys: epoch (from 1), learning_rate (when the epoch's last batch was done), train_loss, train_accuracy, test_loss,
    test_accuracy (losses per image, accuracies in percent), test_correct (images), seconds. "test" is whatever
    `data` holds out, scored after every `test_every` epochs and after the last; in between its values are None.
    Afterwards the model holds the weights that the last line of the history was measured on, which are the
    averaged ones where the recipe averages.

    `compiled` trains by `torch.compile`, equal but for rounding: the first batch is slow, the others fast. None
    compiles where that is sure to pay: on a CPU, for a long run.
    With `checkpoint` (a path) the whole state is saved after every epoch; with `resume` a run that was
    cut off goes on from there, bit for bit as if it had not been (CPU, same machine, same number of
    threads). Ctrl-C ends the run early: what was reached is returned and the model is set back to the end
    of the last complete epoch.

    Raises DivergenceError (model set back likewise), CheckpointError, and ValueError for an unknown device, one that
    cannot compile, `test_every` below 1, or a recipe that names a teacher where none is given
    (`distillation.teacher_for`).
    """
    if test_every < 1:
        raise ValueError(f"test_every must be 1 or more epochs, not {test_every}")
    if recipe.teacher and teacher is None:
        raise ValueError(f"this recipe learns from {recipe.teacher!r}: give fit distillation.teacher_for(recipe, data)")
    device = pick_device(device)
    data = data.to(device)
    model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    lay_out(model)
    torch.manual_seed(seed)  # dropout draws from the global generators
    run = _Run(model, recipe, seed, data, device)
    run.test_every, run.teacher = test_every, teacher
    if compiled is None:
        compiled = compiling_pays(device, recipe.epochs * math.ceil(len(data.train_images) / recipe.batch_size))
    if compiled:
        run.forward = compile_for(device, model)
    if resume:
        expected = {key: run.last_good[key] for key in ("recipe", "seed", "data", "device")}
        run.restore(load_checkpoint(checkpoint, expected, model))
    try:
        while len(run.history) < recipe.epochs:
            # cuDNN's fastest convolutions add up in any order: one seed would not give the same weights twice.
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                run.epoch(progress)
            if checkpoint is not None:
                save_checkpoint(checkpoint, run.last_good)
            if progress:
                print(epoch_line(run.history[-1], recipe.epochs, data))
    except KeyboardInterrupt:
        print(f"Interrupted in epoch {len(run.history) + 1}: the {len(run.history)} complete epochs are kept.")
        run.restore(run.last_good)
    except DivergenceError as error:
        run.restore(run.last_good)
        raise DivergenceError(
            f"the loss stopped being finite in epoch {len(run.history) + 1}; the state after epoch "
            f"{len(run.history)} is kept. Try a smaller learning rate than {recipe.learning_rate}."
        ) from error
    if run.average is not None:
        model.load_state_dict(run.average.module.state_dict())
    return run.history


class _Run:
    """A training run's moving parts, and the one dict that holds their state after the last good epoch."""

    def __init__(self, model: nn.Module, recipe: Recipe, seed: int, data: MnistData, device: torch.device):
        self.model, self.recipe, self.seed, self.data, self.device = model, recipe, seed, data, device
        self.test_every, self.forward, self.teacher = 1, model, None
        self.optimizer = make_optimizer(model.parameters(), recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, len(data.train_images))
        self.average = moving_average(model, recipe.ema_decay) if recipe.ema_decay else None
        self.generator = torch.Generator(device).manual_seed(seed)
        self.history: list[dict] = []
        self.last_good = self.state()

    def epoch(self, progress: bool) -> None:
        """Train and test once, append a line to the history and remember the state."""
        start = time.perf_counter()
        number = len(self.history) + 1
        per_batch = self.recipe.schedule_every == "batch"
        train_loss, train_accuracy = train(
            self.model,
            self.data.train_images,
            self.data.train_labels,
            self.optimizer,
            self.recipe.in_epoch(number),
            self.generator,
            self.scheduler if per_batch else None,
            self.average,
            progress,
            self.forward,
            self.teacher,
        )
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if not per_batch:
            self.scheduler.step()
        test_loss = test_correct = test_accuracy = None
        if number % self.test_every == 0 or number == self.recipe.epochs:
            tested = self.model if self.average is None else self.average
            test_loss, test_correct = test(tested, self.data.test_images, self.data.test_labels)
            test_accuracy = 100 * test_correct / len(self.data.test_labels)
            _check_finite(test_loss)
        self.history.append(
            {
                "epoch": number,
                "learning_rate": learning_rate,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "test_correct": test_correct,
                "seconds": time.perf_counter() - start,
            }
        )
        self.last_good = self.state()

    def state(self) -> dict:
        """A deep copy of all that is needed to go on from here."""
        state = {
            "recipe": self.recipe.as_dict(),
            "seed": self.seed,
            "data": str(self.data),
            "device": self.device.type,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "device_generator": self.device_generator("get_rng_state"),
            "history": self.history,
        }
        return copy.deepcopy(state)

    def restore(self, state: dict) -> None:
        """Set everything back to `state`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        self.device_generator("set_rng_state", state["device_generator"])
        self.history = copy.deepcopy(state["history"])
        self.last_good = state

    def device_generator(self, function: str, *state: Tensor) -> Tensor | None:
        """Get or set the state of the accelerator's global generator; None on the CPU."""
        if self.device.type == "cuda":
            return getattr(torch.cuda, function)(*state, device=self.device)
        return getattr(torch.mps, function)(*state) if self.device.type == "mps" else None


def make_optimizer(parameters: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all of a model's parameters."""
    settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":
        return Muon(parameters, rest_lr=recipe.rest_learning_rate, momentum=recipe.momentum, **settings)
    if recipe.optimizer == "sgd":
        momentum = {"momentum": recipe.momentum, "nesterov": recipe.nesterov and recipe.momentum > 0}
        return torch.optim.SGD(parameters, **settings, **momentum)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adadelta": torch.optim.Adadelta}
    return kinds[recipe.optimizer](parameters, **settings)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, images: int) -> LambdaLR:
    """The recipe's schedule, to be stepped once a batch or once an epoch of so many training images."""
    steps_per_epoch = math.ceil(images / recipe.batch_size) if recipe.schedule_every == "batch" else 1
    return LambdaLR(optimizer, lambda step: recipe.learning_rate_factor(step, steps_per_epoch))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and BatchNorm statistics, updated once a batch.

    Its decay grows up to `decay`: otherwise the first epochs would be tested on weights that are still half random.
    """

    def update(averaged: list[Tensor], current: list[Tensor], count_on_device: Tensor) -> None:
        count = int(average.n_averaged)  # lies on the CPU; to read the other one would make a GPU wait
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(averaged, current, count_on_device)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


def epoch_line(epoch: dict, epochs: int, data: MnistData) -> str:
    """One line of the training log."""
    held_out = data.split if data.source == "mnist" else f"{data.source} {data.split}"
    trained = f"train loss {epoch['train_loss']:.4f} accuracy {epoch['train_accuracy']:.2f}%"
    tested = f"{held_out} not scored"
    if epoch["test_loss"] is not None:
        score = f"{epoch['test_correct']}/{len(data.test_labels)} ({epoch['test_accuracy']:.2f}%)"
        tested = f"{held_out} loss {epoch['test_loss']:.4f} accuracy {score}"
    rate = f"lr {epoch['learning_rate']:.5f}"
    return f"Epoch {epoch['epoch']:>2}/{epochs}  {rate}  {trained}  {tested}  {epoch['seconds']:.1f} s"


def _check_finite(loss: Tensor | float) -> None:
    if not math.isfinite(loss):
        raise DivergenceError("the loss is not finite")


# --- Looking at the result -------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Class probabilities, float32 (N, 10) on the CPU, for uint8 images (N, 28, 28), white on black as MNIST's.

    `predict.read("photo.jpg")[None]` is one such image. ValueError for anything else.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        given = f"{images.dtype} {tuple(images.shape)}" if hasattr(images, "shape") else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor (N, 28, 28), not {given}; predict.read makes one of a file")
    model.eval()
    lay_out(model)  # so that loaded weights give the answers of the trained model to the last bit
    device = next(model.parameters()).device
    batches = [model(normalize(batch.to(device))).softmax(1).cpu() for batch in images.split(batch_size)]
    return torch.cat(batches)


def mistakes(labels: Tensor, probabilities: Tensor) -> dict[str, int]:
    """The wrong answers as {image number: predicted digit}: with the labels, the whole prediction vector.

    The numbers are strings, as JSON wants its keys.
    """
    predictions = probabilities.argmax(1)
    wrong = (predictions != labels.cpu()).nonzero().flatten().tolist()
    return {str(index): int(predictions[index]) for index in wrong}
