"""The final model, `Net`, and what is done with it: build, train, evaluate, fit, predict.

An image travels like this: uint8 tensors in memory, moved to the device once → a shuffled batch of indices →
augmented and normalised on the device, a whole batch at a time → `Net` → logits → loss.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from s5.training.augmentation import augment, normalize
from s5.training.checkpoint import TrainingState, save_checkpoint
from s5.training.checks import (
    DivergenceError,
    as_loss,
    check_architecture,
    check_arguments,
    check_finite,
    check_is_module,
    check_training,
    evaluation_mode,
)
from s5.training.cuda_graphs import GraphedStep, can_capture
from s5.training.device import eval_batch_size, pick_device, pick_precision, prepare_device, to_device
from s5.training.mnist import MnistData, check_images, check_labelled
from s5.training.progress import Epoch, report, watch
from s5.training.recipe import Recipe, check_seed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (inputs, logits, labels) → mean loss; inputs for distillation


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


def build(architecture: Callable[[], nn.Module] = Net, seed: int = 0) -> nn.Module:
    """A new network whose initial weights depend on `seed` alone. Raises ValueError for a bad argument."""
    check_architecture(architecture)
    check_seed(seed)
    torch.manual_seed(seed)
    return architecture()


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    scheduler: LambdaLR | None = None,
    average: AveragedModel | None = None,
    loss: Loss | None = None,
    precision: str = "float32",
    graph: bool = False,
    progress: bool = True,
) -> tuple[float, float]:
    """Train one epoch; return the mean loss per image and the accuracy in percent, both measured during training.

    `images` are uint8 (N, 28, 28), `labels` int64 (N,). `scheduler` and `average` are updated after every batch;
    `loss` replaces the recipe's cross-entropy; `graph`: run the step as a CUDA graph, see `s5.training.cuda_graphs`.
    Raises DivergenceError when the loss is not finite.
    """
    model.train()
    loss = cross_entropy(recipe) if loss is None else loss
    loss_sum, correct = torch.zeros(2, device=images.device)

    def step(batch: Tensor) -> None:
        inputs, targets = augment(images[batch], recipe, generator), labels[batch]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(inputs).float()
            batch_loss = loss(inputs, logits, targets)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        loss_sum.add_(batch_loss.detach() * len(batch))
        correct.add_((logits.argmax(1) == targets).sum())

    step = GraphedStep(step, optimizer, generator) if graph else step
    order = torch.randperm(len(images), generator=generator, device=images.device)
    for batch in watch(order.split(recipe.batch_size), loss_sum, correct, shown=progress):
        step(batch)
        if scheduler is not None:
            scheduler.step()
        if average is not None:
            average.update_parameters(model)
    return loss_sum.item() / len(images), 100 * correct.item() / len(images)


def cross_entropy(recipe: Recipe) -> Loss:
    """The loss of a recipe: cross-entropy with its label smoothing."""
    return lambda inputs, logits, labels: F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, int]:
    """Mean cross-entropy per image and number of correct predictions, for data as in `MnistData`, else ValueError."""
    check_is_module(model)
    check_labelled(images, labels)
    loss_sum, correct = torch.zeros(2, device=images.device)
    batch_size = eval_batch_size(images.device)
    with evaluation_mode(to_device(model, images.device)):
        for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(normalize(batch))
            loss_sum += F.cross_entropy(logits, targets, reduction="sum")
            correct += (logits.argmax(1) == targets).sum()
    return loss_sum.item() / len(images), int(correct.item())


def fit(
    model: nn.Module,
    data: MnistData,
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    eval_every: int = 1,
    compile: bool | None = None,
    precision: str = "auto",
    loss: Loss | None = None,
    progress: bool | Callable[[list[Epoch]], None] = True,
) -> list[Epoch]:
    """Train `model` by `recipe` and return its history, an `Epoch` for each.

    `data.eval_images`, test or validation, are evaluated every `eval_every` epochs and after the last. Afterwards the
    model holds the weights that were evaluated last: the moving average if the recipe has one.

    `threads`: of the CPU; None: as torch is set. `compile` and `precision`: see `s5.training.device`. `loss`: instead
    of the recipe's cross-entropy, e.g. `nn.CrossEntropyLoss()`, or `s5.experiments.distillation.distillation_loss`.
    `checkpoint`: a path; the whole state is saved there after every epoch, and `resume` continues from it, with as many
    threads and bit for bit the same results on the same machine. Ctrl-C ends the run at the last complete epoch.
    `progress`: True prints each epoch; a function gets the history.

    Raises DivergenceError (the model is set back likewise), CheckpointError, CompileError, and ValueError for any
    argument that makes no sense, and for a network or loss that fails when it is tried before training.
    """
    check_arguments(model, data, recipe, loss, threads, eval_every)
    device = pick_device(device)
    precision = pick_precision(precision, device)
    data, model = data.to(device), to_device(model, device)
    check_training(model, data, recipe.batch_size, loss, precision)
    loss = cross_entropy(recipe) if loss is None else as_loss(loss)
    state = TrainingState(model, data, recipe, seed, device, precision, threads)
    torch.manual_seed(seed)  # for dropout, which uses the global generators
    if resume:
        state.resume(checkpoint)
    graph = device.type == "cuda" and can_capture(model, loss, state.optimizer, compile)
    evaluated = state.average or model
    last_complete = state.capture()
    with prepare_device(model, device, state.threads, compile):
        try:
            for number in range(len(state.history) + 1, recipe.epochs + 1):
                start = time.perf_counter()
                train_loss, train_accuracy = train(
                    model,
                    data.train_images,
                    data.train_labels,
                    state.optimizer,
                    recipe.in_epoch(number),
                    state.generator,
                    scheduler=state.scheduler if recipe.schedule_every == "batch" else None,
                    average=state.average,
                    loss=loss,
                    precision=precision,
                    graph=graph,
                    progress=progress is True,
                )
                learning_rate = state.optimizer.param_groups[0]["lr"]
                if recipe.schedule_every == "epoch":
                    state.scheduler.step()
                eval_loss = eval_accuracy = eval_correct = None
                if number % eval_every == 0 or number == recipe.epochs:
                    eval_loss, eval_correct = evaluate(evaluated, data.eval_images, data.eval_labels)
                    eval_accuracy = 100 * eval_correct / len(data.eval_labels)
                    check_finite(eval_loss)
                epoch = Epoch(
                    epoch=number,
                    learning_rate=learning_rate,
                    train_loss=train_loss,
                    train_accuracy=train_accuracy,
                    eval_loss=eval_loss,
                    eval_accuracy=eval_accuracy,
                    eval_correct=eval_correct,
                    seconds=time.perf_counter() - start,
                )
                state.history.append(epoch)
                last_complete = state.capture()
                report(progress, state.history, recipe.epochs, data)
                if checkpoint is not None:
                    save_checkpoint(checkpoint, last_complete)
        except KeyboardInterrupt:
            state.restore(last_complete)
            if checkpoint is not None and state.history:  # Ctrl-C may come before the last save
                save_checkpoint(checkpoint, last_complete)
            print(f"Interrupted; kept: {len(state.history)} of {recipe.epochs} epochs.")
        except DivergenceError as error:
            state.restore(last_complete)
            problem = f"{error} in epoch {len(state.history) + 1}; the model is as it was before this epoch"
            raise DivergenceError(f"{problem}. Try a smaller learning rate than {recipe.learning_rate}.") from error
        finally:
            if state.average is not None:
                model.load_state_dict(state.average.module.state_dict())
    return state.history


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities, float32 (N, 10) on the CPU, for uint8 images (N, 28, 28), white on black as in MNIST.

    `s5.inference.predict.read("photo.jpg")[None]` is one such image. Raises ValueError for anything else.
    """
    check_is_module(model)
    check_images(images)
    device = next(model.parameters(), images).device
    with evaluation_mode(to_device(model, device)):
        batches = images.split(eval_batch_size(device))
        return torch.cat([model(normalize(batch.to(device))).softmax(1).cpu() for batch in batches])


def mistakes(labels: Tensor, probabilities: Tensor) -> dict[str, int]:
    """The wrong predictions as {image number: predicted digit}, for labels (N,) and probabilities (N, 10).

    With the labels this is the whole prediction vector. The numbers are strings, as JSON requires of keys.
    """
    predictions = probabilities.argmax(1)
    wrong = (predictions != labels.cpu()).nonzero().flatten().tolist()
    return {str(index): int(predictions[index]) for index in wrong}
