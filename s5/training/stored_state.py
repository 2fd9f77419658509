"""What is inside a checkpoint, checked before any of it is used: somebody may have edited it."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from s5.training.recipe import short

# name: the types of its values
PARTS = {
    "recipe": (dict,),
    "seed": (int,),
    "data": (str,),
    "device": (str,),
    "precision": (str,),
    "threads": (int,),
    "model": (dict,),
    "average": (dict, type(None)),
    "optimizer": (dict,),
    "scheduler": (dict,),
    "generator": (Tensor,),
    "global_generator": (Tensor,),
    "device_generator": (Tensor, type(None)),
    "history": (list,),
}
EPOCH = {
    "epoch": (int,),
    "learning_rate": (float,),
    "train_loss": (float,),
    "train_accuracy": (float,),
    "eval_loss": (float, type(None)),
    "eval_accuracy": (float, type(None)),
    "eval_correct": (int, type(None)),
    "seconds": (float,),
}
EVALUATION = ("eval_loss", "eval_accuracy", "eval_correct")


class StateError(ValueError):
    """A stored state that is not as it should be. The message is one line that names the part."""


def check_record(state: dict) -> None:
    """Check all that can be known without the run: the parts and their types, and the history.

    Raises StateError.
    """
    _check_types(state, PARTS, "it")
    for name, value in state["recipe"].items():
        if not isinstance(name, str) or not isinstance(value, str | int | float):
            raise StateError(f"recipe, {name}: {_describe(value)}")
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise StateError(f"model, {name}: {_describe(value)}, not a tensor")
    if state["threads"] < 1:
        raise StateError(f"threads: {short(state['threads'])}")
    if not state["history"]:
        raise StateError("history: empty")
    for number, epoch in enumerate(state["history"], start=1):
        _check_epoch(epoch, number)
    epochs, complete = state["recipe"].get("epochs"), len(state["history"])
    if not isinstance(epochs, int) or complete > epochs:
        raise StateError(f"history: {complete} of {_describe(epochs)} epochs")
    if complete == epochs and state["history"][-1]["eval_loss"] is None:
        raise StateError("history: the last epoch is not evaluated")


def _check_epoch(epoch: Any, number: int) -> None:
    where = f"history, entry {number}"
    if not isinstance(epoch, dict):
        raise StateError(f"{where}: {_describe(epoch)}, not a dict")
    _check_types(epoch, EPOCH, where)
    if epoch["epoch"] != number:
        raise StateError(f"{where}: of epoch {epoch['epoch']}")
    if any(isinstance(value, float) and not math.isfinite(value) for value in epoch.values()):
        raise StateError(f"{where}: a value that is not finite")
    if any((epoch[name] or 0) < 0 for name in EPOCH):
        raise StateError(f"{where}: a value below 0")
    if len({epoch[name] is None for name in EVALUATION}) > 1:
        raise StateError(f"{where}: evaluated in part")


def _check_types(values: dict, types: dict[str, tuple[type, ...]], where: str) -> None:
    for name, allowed in types.items():
        if name not in values:
            raise StateError(f"{where}: {name} is missing")
        if not isinstance(values[name], allowed) or isinstance(values[name], bool):
            raise StateError(f"{where}: {name} is {_describe(values[name])}")


def check_equal(stored: Any, expected: Any, where: str) -> None:
    """Check that two parts are equal, the values in tensors aside: those need only have the same shape and dtype.

    Raises StateError, which names the first place, such as "optimizer, state, 3, momentum".
    """
    if isinstance(expected, Tensor):
        same = isinstance(stored, Tensor) and (stored.shape, stored.dtype) == (expected.shape, expected.dtype)
    elif isinstance(expected, dict):
        same = isinstance(stored, dict) and stored.keys() == expected.keys()
    elif isinstance(expected, list | tuple):
        same = type(stored) is type(expected) and len(stored) == len(expected)
    else:
        same = type(stored) is type(expected) and stored == expected
    if not same:
        raise StateError(f"{where}: {_describe(stored)}, not {_describe(expected)}")
    if isinstance(expected, dict | list | tuple):
        for name in expected if isinstance(expected, dict) else range(len(expected)):
            check_equal(stored[name], expected[name], f"{where}, {name}")


def _describe(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, dict):
        names = ", ".join(map(str, value))
        return f"a dict of {names if len(names) <= 60 else f'{len(value)} entries'}" if value else "an empty dict"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return short(value)
