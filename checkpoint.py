"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file, written atomically."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from files import atomic_path
from recipe import recipe_difference

FORMAT = "mnist-s5-checkpoint-1"


class CheckpointError(RuntimeError):
    """A checkpoint or weights file that cannot be used; the message says why and what to do."""


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) to `path`, atomically. OSError as usual."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    with atomic_path(path) as temporary:  # by our own hand: torch.save calls a full disk a RuntimeError
        temporary.write_bytes(content.getvalue())


def load_checkpoint(path: str | Path, expected: dict | None = None, model: nn.Module | None = None) -> dict:
    """Read a checkpoint, never unpickling code.

    `expected` names what must be equal in the file (`recipe`, `seed`, `data`, `device`, as `fit` stores them) and
    `model` the network whose layers and shapes it must fit. Raises CheckpointError when the file is
    missing, damaged, of another kind, or belongs to another run: then every difference is named.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        # torch.load does not compare the checksums of the zip archive that it reads: a flipped bit
        # in a weight would go unnoticed.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage shows itself in a dozen exception types
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); delete it and start anew") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged (checksum of {damaged}); delete it and start anew")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project's format ({FORMAT})")

    differences = [] if model is None else layer_difference(model.state_dict(), state["model"])
    for name, ours in (expected or {}).items():
        theirs = state[name]
        if name == "recipe":
            differences += recipe_difference(ours, theirs)
        elif ours != theirs:
            differences.append(f"{name}: {theirs!r} there, {ours!r} here")
    if differences:
        raise CheckpointError(f"{path} belongs to another run:\n  " + "\n  ".join(differences))
    return state


def layer_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """The layers in which two state dicts differ by name or shape, a readable line each."""

    def shape(state: dict[str, Tensor], name: str) -> str:
        return str(tuple(state[name].shape)) if name in state else "absent"

    names = [*ours, *(name for name in theirs if name not in ours)]
    return [
        f"{name}: {shape(theirs, name)} there, {shape(ours, name)} here"
        for name in names
        if shape(ours, name) != shape(theirs, name)
    ]


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the model's weights and BatchNorm statistics as safetensors, atomically. OSError as usual."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, metadata))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load safetensors weights into `model` and return it.

    Raises CheckpointError when the file is missing or damaged, or made for other layers or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if differences := layer_difference(model.state_dict(), state):
        raise CheckpointError(f"{path} holds another architecture:\n  " + "\n  ".join(differences))
    model.load_state_dict(state)
    return model
