"""Validate the arguments of `helpers.py`, with clear errors, and tell what a network is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from s5.training.command_line import check_threads
from s5.training.mnist import MnistData
from s5.training.recipe import Recipe, short

CLASSES = 10
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


def check_training(
    model: nn.Module, data: MnistData, recipe: Recipe, loss: Callable | None = None, threads: int | None = None
) -> None:
    """Raise ValueError unless these arguments of `helpers.fit` can be used for training."""
    for name, value, kind in (("data", data, MnistData), ("recipe", recipe, Recipe)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be of the type {kind.__name__}, not {type(value).__name__}")
    check_threads(threads)
    if recipe.teacher and loss is None:
        raise ValueError(f"to learn from {recipe.teacher!r}, pass loss=distillation_loss(teacher, recipe)")
    check_network(model)


def check_network(model: nn.Module) -> None:
    """Raise ValueError unless this takes images (N, 1, 28, 28), returns logits (N, 10) and has something to train."""
    check_is_module(model)
    if any(map(is_lazy, model.parameters())):
        raise ValueError("the model has lazy layers, whose sizes are unknown before the first image: state them")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameters to train")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(model):
            logits = model(torch.zeros(2, 1, 28, 28, device=next(model.parameters()).device))
    except Exception as error:
        raise ValueError(f"the model cannot take images of shape (N, 1, 28, 28): {error}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, CLASSES):
        raise ValueError(f"the model must return logits of shape (N, {CLASSES}); for 2 images it gave {found}")
