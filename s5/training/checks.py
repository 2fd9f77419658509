"""Validate the arguments of `helpers.py`, with clear errors, and tell what a network is made of."""

import copy
import functools
import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from s5.training.augmentation import normalize
from s5.training.command_line import check_threads, plural
from s5.training.mnist import MnistData
from s5.training.recipe import Recipe, short

CLASSES = 10
LOSS = "the loss must be loss(inputs, logits, labels), or loss(logits, labels), and return a scalar with a gradient"
PROJECT = ("torch", "helpers", "s5")  # packages whose layers and losses are known to this project


class DivergenceError(RuntimeError):
    """The loss became infinite or NaN."""


def is_project_code(thing: object) -> bool:
    """True for a class or function of torch or this project, False for one of the user's."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in PROJECT


def has_only_project_layers(model: nn.Module) -> bool:
    """True if all layers are torch's or this project's, with the forward pass of their class."""
    return all(is_project_code(type(module)) and "forward" not in vars(module) for module in model.modules())


def has_hooks(*modules: nn.Module) -> bool:
    """True if one of the modules has hooks."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in modules for name in names)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_finite(loss: Tensor | float) -> None:
    """Raise DivergenceError if the loss is infinite or NaN."""
    if not math.isfinite(loss):
        raise DivergenceError("the loss is not finite")


def check_architecture(architecture: Callable[[], nn.Module]) -> None:
    """Raise ValueError unless this is a class or function, of which a network can be built."""
    if isinstance(architecture, nn.Module):
        name = type(architecture).__name__
        raise ValueError(f"architecture must be a class or function, not a network: write {name}, not {name}()")
    if not callable(architecture):
        raise ValueError(f"architecture must be a class or function that returns a network, not {short(architecture)}")


def check_is_module(model: nn.Module) -> None:
    """Raise ValueError unless this is a network."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a network such as Net(), not {short(model)}")


def check_arguments(
    model: nn.Module, data: MnistData, recipe: Recipe, loss: Callable | None, threads: int | None, eval_every: int
) -> None:
    """Raise ValueError unless these arguments of `helpers.fit` make sense and the model has something to train."""
    for name, value, kind in (("data", data, MnistData), ("recipe", recipe, Recipe)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be of the type {kind.__name__}, not {type(value).__name__}")
    check_threads(threads)
    if type(eval_every) is not int or eval_every < 1:
        raise ValueError(f"eval_every must be a whole number, 1 or more, not {short(eval_every)}")
    if recipe.teacher and loss is None:
        raise ValueError(f"to learn from {recipe.teacher!r}, pass loss=distillation_loss(teacher, recipe)")
    check_weights(model)


@torch.random.fork_rng(devices=[])  # `fit` seeds the others
def check_training(model: nn.Module, data: MnistData, batch_size: int, loss: Callable | None, precision: str) -> None:
    """Raise ValueError unless `check_network` is passed and the first and the last batch of an epoch can be trained on.

    That is tried on copies of the model, which is on the device of `data`.
    """
    state = random.getstate()
    model = getattr(model, "_orig_mod", model)  # before torch.compile, which takes long for each batch size
    check_network(model, loss)
    count, device = len(data.train_images), data.train_images.device.type
    sizes = {min(batch_size, count): "training mode"}
    sizes.setdefault((count - 1) % batch_size + 1, "training mode, in the last batch of an epoch (see batch_size)")
    for size, mode in sizes.items():
        with _explained("the model cannot be copied, as its moving average requires"):
            trial = copy.deepcopy(model).train()
        inputs, labels = normalize(data.train_images[:size]), data.train_labels[:size]
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = _logits(trial, inputs, mode).float()
            if not logits.requires_grad:
                raise ValueError("the model's logits have no gradient: forward must not use no_grad, detach or data")
            with _explained(LOSS):
                value = as_loss(loss or F.cross_entropy)(inputs, logits, labels)
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise ValueError(f"{LOSS}, not {short(value)}")
        with _explained(f"the model's gradient cannot be computed in {mode}"):
            value.backward()
    random.setstate(state)


def check_network(model: nn.Module, loss: Callable | None = None) -> None:
    """Raise ValueError unless this takes images (N, 1, 28, 28), returns logits (N, 10) and has something to train.

    It is tried in evaluation mode: twice with two images and once with one. Without a `loss` of the user's, outputs
    that look like probabilities are warned of.
    """
    check_weights(model)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)
    with torch.no_grad(), evaluation_mode(model):
        logits, again, _ = (_logits(model, images[:count], "evaluation mode") for count in (2, 2, 1))
    if not torch.allclose(logits, again, equal_nan=True):
        advice = "F.dropout, for example, requires training=self.training"
        raise ValueError(f"the model answers differently each time in evaluation mode: {advice}")
    if loss is None and again.min() >= 0 and torch.allclose(again.sum(1), again.new_ones(()), atol=1e-3):
        name = type(model).__name__
        warnings.warn(f"{name}: the outputs look like probabilities; return logits, without softmax", stacklevel=5)


def check_weights(model: nn.Module) -> None:
    """Raise ValueError unless this is a network with weights of known sizes to train, all of them known to torch."""
    check_is_module(model)
    if any(map(is_lazy, model.parameters())):
        raise ValueError("the model has lazy layers, whose sizes are unknown before the first image: state them")
    check_registered(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameters to train")


def check_registered(model: nn.Module) -> None:
    """Raise ValueError if an attribute such as a list holds weights that torch does not know, so would not train."""
    known = set(model.parameters())
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = (each.parameters() if isinstance(each, nn.Module) else [each] for each in tree_leaves(value))
            weights = [each for parts in held for each in parts if isinstance(each, nn.Parameter) and each not in known]
            if any(each.requires_grad for each in weights):
                place = f"{name}.{attribute}".lstrip(".")
                advice = "use nn.ModuleList or nn.ParameterList, or requires_grad_(False)"
                raise ValueError(f"the weights in {place} would not be trained: {advice}")


def _logits(model: nn.Module, images: Tensor, mode: str) -> Tensor:
    """The logits of these images. Raises ValueError if the model fails or returns anything else."""
    with _explained(f"the model cannot take images of shape {tuple(images.shape)} in {mode}"):
        logits = model(images)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (len(images), CLASSES):
        given = f"for {plural(len(images), 'image')} in {mode} it gave {found}"
        raise ValueError(f"the model must return logits of shape (N, {CLASSES}); {given}")
    return logits


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    """Turn any error of the user's code into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{problem}: {first_line(error)}") from error


def as_loss(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss as a function of inputs, logits and labels; `nn.CrossEntropyLoss()` and its like take the last two."""
    arguments = inspect.signature(getattr(loss, "forward", loss)).parameters.values()
    if sum(each.default is each.empty and each.kind < each.VAR_POSITIONAL for each in arguments) != 2:
        return loss
    # With the name of its module, by which it is recognised as torch's.
    return functools.wraps(loss, updated=())(lambda inputs, logits, labels: loss(logits, labels))


def first_line(error: Exception) -> str:
    """What an error says, without the advice for programmers that follows in torch's; if nothing, its type."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
