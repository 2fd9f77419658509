"""Trains one architecture from several seeds at once, with the networks' tensors stacked and vectorised by `vmap`.

A network this small leaves most of a GPU idle, so many at once take little longer than one. Each network gets the
batches and the augmentation that `helpers.fit` would draw for its seed; the results are equal up to rounding, but for
dropout, whose masks depend on the seeds that are trained together.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from helpers import DivergenceError, build
from s5.training.augmentation import augment_by, draw, normalize
from s5.training.cuda_graphs import Recordable, can_record, record
from s5.training.device import autocast, eval_batch_size, pick_device, pick_precision
from s5.training.mnist import MnistData
from s5.training.optimizers import MovingAverage, make_optimizer, make_scheduler
from s5.training.recipe import Recipe


class Stack(nn.Module):
    """S networks of one architecture as one module; the first dimension of its tensors is the network.

    Takes images, float (S, N, 1, 28, 28); returns logits, float (S, N, 10).
    """

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        # Not by torch's stack_module_state: code of one's own is run for every network, and its class is then another.
        states = [dict(model.named_parameters()) | dict(model.named_buffers()) for model in models]
        for name, first in states[0].items():
            tensor = torch.stack([state[name].detach() for state in states])
            if isinstance(first, nn.Parameter):
                self.register_parameter(_flat(name), nn.Parameter(tensor, first.requires_grad))
            else:
                self.register_buffer(_flat(name), tensor)
        self.names = list(states[0])
        names = {parameter: name for name, parameter in models[0].named_parameters()}
        every = models[0].named_parameters(remove_duplicate=False)
        # Layers may share a tensor: its other names.
        self.aliases = {alias: names[parameter] for alias, parameter in every if alias != names[parameter]}
        skeleton = copy.deepcopy(models[0]).to("meta")
        for layer in skeleton.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # on CUDA vmap takes no bfloat16 beside its float32
                layer.register_forward_pre_hook(lambda layer, inputs: tuple(each.float() for each in inputs))
        self.skeleton = (skeleton,)  # a tuple keeps it from being registered as a submodule

    def state(self) -> dict[str, Tensor]:
        """The stacked tensors, by their names in a single network."""
        return {name: getattr(self, _flat(name)) for name in self.names}

    def forward(self, images: Tensor) -> Tensor:
        """Apply each network to its own images."""
        (skeleton,) = self.skeleton
        skeleton.train(self.training)

        def one(state: dict[str, Tensor], images: Tensor) -> Tensor:
            state = state | {alias: state[name] for alias, name in self.aliases.items()}
            return functional_call(skeleton, state, (images,))

        return vmap(one, randomness="different")(self.state(), images)

    def write_to(self, models: list[nn.Module]) -> None:
        """Copy each network's tensors into its own module; what two of its layers share is there once."""
        with torch.no_grad():
            for number, model in enumerate(models):
                own = dict(model.named_parameters()) | dict(model.named_buffers())
                for name, tensor in self.state().items():
                    own[name].copy_(tensor[number])


def _flat(name: str) -> str:
    return name.replace(".", "-")  # names of registered tensors must not contain dots


def fit_vectorized(
    architecture: Callable[[], nn.Module],
    data: MnistData,
    recipe: Recipe,
    seeds: list[int],
    device: str = "auto",
    precision: str = "auto",
) -> tuple[list[nn.Module], list[list[dict]]]:
    """Train `architecture` from all `seeds` at once; return the models and their histories (see `helpers.fit`).

    An epoch's seconds are those of all networks divided by their number. Raises ValueError for missing or repeated
    seeds, a recipe with a teacher, or an unknown device or precision, and DivergenceError, naming the seeds, when a
    loss is not finite.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more different numbers, not {seeds}")
    if recipe.teacher:
        raise ValueError("fit_vectorized does not support distillation; use fit for each seed")
    device = pick_device(device)
    precision = pick_precision(precision, device)
    data = data.to(device)
    models = [build(architecture, seed).to(device) for seed in seeds]
    stack = Stack(models)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    optimizer = make_optimizer(stack.parameters(), recipe, stacked=True)
    per_batch = recipe.schedule_every == "batch"
    scheduler = make_scheduler(optimizer, recipe, len(data.train_images))
    average = MovingAverage(stack, recipe.ema_decay) if recipe.ema_decay else None
    evaluated = stack if average is None else average.module

    forward = Recordable(stack) if device.type == "cuda" and can_record(models[0]) else stack
    histories: list[list[dict]] = [[] for _ in seeds]
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        stack.train()
        loss_sum = torch.zeros(len(seeds), device=device)
        correct = torch.zeros(len(seeds), device=device, dtype=torch.long)
        count = len(data.train_images)
        orders = torch.stack([torch.randperm(count, generator=each, device=device) for each in generators])
        step = partial(_step, stack, data, recipe.in_epoch(epoch), optimizer, generators, precision, loss_sum, correct)
        step = record(forward, _losses, optimizer, generators)(step)
        for batch in orders.split(recipe.batch_size, dim=1):
            step(batch)
            if per_batch:
                scheduler.step()
            if average is not None:
                average.update_parameters(stack)
        if not loss_sum.isfinite().all():
            diverged = [seed for seed, loss in zip(seeds, loss_sum.tolist(), strict=True) if not math.isfinite(loss)]
            raise DivergenceError(f"the loss stopped being finite in epoch {epoch} for the seeds {diverged}")
        learning_rate = optimizer.param_groups[0]["lr"]
        if not per_batch:
            scheduler.step()
        eval_losses, eval_corrects = _evaluate(evaluated, data)
        seconds = (time.perf_counter() - start) / len(seeds)
        for history, loss, hits, eval_loss, eval_hits in zip(
            histories, loss_sum.tolist(), correct.tolist(), eval_losses, eval_corrects, strict=True
        ):
            eval_accuracy = 100 * eval_hits / len(data.eval_labels)
            line = {"epoch": epoch, "learning_rate": learning_rate}
            line |= {"train_loss": loss / count, "train_accuracy": 100 * hits / count}
            line |= {"eval_loss": eval_loss, "eval_accuracy": eval_accuracy, "eval_correct": eval_hits}
            history.append(line | {"seconds": seconds})
    evaluated.write_to(models)
    return models, histories


def _step(
    stack: Stack,
    data: MnistData,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    generators: list[torch.Generator],
    precision: str,
    loss_sum: Tensor,
    correct: Tensor,
    batch: Tensor,
) -> None:
    """Train each network on its row of `batch`, int64 (S, N); add to its entries of `loss_sum` and `correct`, (S,)."""
    targets = data.train_labels[batch]
    inputs = _augment_each(data.train_images[batch], recipe, generators)
    with autocast(batch.device, precision):
        logits = stack(inputs).float()
    losses = _losses(logits, targets, recipe.label_smoothing)
    optimizer.zero_grad()
    losses.sum().backward()  # a network's gradients depend on its own loss only
    optimizer.step()
    loss_sum += losses.detach() * batch.shape[1]
    correct += (logits.argmax(2) == targets).sum(1)


def _augment_each(images: Tensor, recipe: Recipe, generators: list[torch.Generator]) -> Tensor:
    """uint8 (S, N, 28, 28) → float32 (S, N, 1, 28, 28), as `augment` does it with each network's generator."""
    if not recipe.augments:
        return normalize(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    draws = torch.cat([draw(images.shape[1], recipe, generator) for generator in generators], dim=1)
    return augment_by(draws, images.flatten(0, 1), recipe).unflatten(0, images.shape[:2])


def _losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each network, float (S,), from logits (S, N, 10) and targets (S, N)."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing)
    return losses.unflatten(0, targets.shape).mean(1)


@torch.inference_mode()
def _evaluate(stack: Stack, data: MnistData) -> tuple[list[float], list[int]]:
    """Each network's mean cross-entropy per image and number of correct predictions, on the held-out images."""
    stack.eval()
    networks = len(stack.state()[stack.names[0]])
    loss_sum = torch.zeros(networks, device=data.eval_images.device)
    correct = torch.zeros(networks, device=data.eval_images.device, dtype=torch.long)
    batch_size = eval_batch_size(data.eval_images.device)
    for images, labels in zip(data.eval_images.split(batch_size), data.eval_labels.split(batch_size), strict=True):
        logits = stack(normalize(images).expand(networks, -1, -1, -1, -1))
        targets = labels.expand(networks, -1)
        loss_sum += _losses(logits, targets) * len(labels)
        correct += (logits.argmax(2) == targets).sum(1)
    return (loss_sum / len(data.eval_labels)).tolist(), correct.tolist()
