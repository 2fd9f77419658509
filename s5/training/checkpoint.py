"""A training run's state, saved and resumed as if it had never stopped; and weights as safetensors."""

from __future__ import annotations

import copy
import io
import json
import os
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from s5.training.files import atomic_path
from s5.training.mnist import MnistData
from s5.training.optimizers import MovingAverage, make_optimizer, make_scheduler
from s5.training.recipe import Recipe, check_seed, recipe_difference
from s5.training.stored_state import StateError, check_equal, check_record

FORMAT = "mnist-s5-checkpoint-3"
SHOWN = 12  # differences between two runs


class CheckpointError(RuntimeError):
    """A checkpoint or weights file that cannot be used; the message says why and what to do."""


@dataclass
class TrainingState:
    """Everything that changes during training, and what the run is (`run`): a checkpoint holds both."""

    run: dict  # recipe, seed, data, device and precision: a checkpoint of another run is refused
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    average: AveragedModel | None
    generator: torch.Generator  # of the order of the images and their augmentation
    steps_per_epoch: int  # of the scheduler
    history: list[dict] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        model: nn.Module,
        data: MnistData,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str = "float32",
    ) -> TrainingState:
        """The state before the first epoch. Raises ValueError for a bad seed."""
        check_seed(seed)
        optimizer = make_optimizer(model.parameters(), recipe)
        run = {"recipe": recipe.as_dict(), "seed": seed, "data": str(data)}
        return cls(
            run=run | {"device": device.type, "precision": precision},
            model=model,
            optimizer=optimizer,
            scheduler=make_scheduler(optimizer, recipe, len(data.train_images)),
            average=MovingAverage(model, recipe.ema_decay) if recipe.ema_decay else None,
            generator=torch.Generator(device).manual_seed(seed),
            steps_per_epoch=recipe.steps_per_epoch(len(data.train_images)),
        )

    def resume(self, path: str | Path | None) -> None:
        """Continue from the checkpoint at `path`.

        Raises ValueError without a path, and CheckpointError, before anything is changed, if the checkpoint does not
        exist, is damaged or belongs to another run.
        """
        if not isinstance(path, str | Path) or not str(path):
            raise ValueError("resume needs the path of a checkpoint")
        state = load_checkpoint(path, self.run, self.model)
        try:
            self._check(state)
        except StateError as error:
            raise _unusable(path, error) from error
        self.restore(state)

    def capture(self) -> dict:
        """A deep copy of the state after the last epoch, from which training can continue."""
        parts = {
            name: None if part is None else part.state_dict()
            for name, part in (
                ("model", self.model),
                ("average", self.average),
                ("optimizer", self.optimizer),
                ("scheduler", self.scheduler),
            )
        }
        generators = {
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "device_generator": self._device_generator("get_rng_state"),
        }
        threads = torch.get_num_threads()  # another number adds up in another order
        return copy.deepcopy({**self.run, **parts, **generators, "threads": threads, "history": self.history})

    def restore(self, state: dict) -> None:
        """Set everything back to a captured or loaded `state`, torch's number of threads included."""
        torch.set_num_threads(state["threads"])
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                # Weights are laid out for their device, and fused optimisers need the same strides of everything.
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        self._device_generator("set_rng_state", state["device_generator"])
        self.history = copy.deepcopy(state["history"])

    def _check(self, state: dict) -> None:
        """Raise StateError if `state` cannot be this run's after the last epoch of its history."""
        check_equal(state["model"], self.model.state_dict(), "model")
        check_equal(state["average"], None if self.average is None else self.average.state_dict(), "average")

        steps = len(state["history"]) * self.steps_per_epoch
        rated = self.scheduler.base_lrs, self.scheduler.lr_lambdas
        rates = [base * factor(steps) for base, factor in zip(*rated, strict=True)]
        progress = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
        check_equal(state["scheduler"], self.scheduler.state_dict() | progress, "scheduler")

        stepped = copy.deepcopy(self.optimizer)  # its own copies of the weights: after a step its state is complete
        for group, rate in zip(stepped.param_groups, rates, strict=True):
            group["lr"] = rate
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        stepped.step()
        expected, stored = stepped.state_dict(), state["optimizer"]
        if isinstance(stored.get("state"), dict) and stored["state"]:
            # Parameters that `forward` does not use have none.
            expected["state"] = {name: each for name, each in expected["state"].items() if name in stored["state"]}
        check_equal(stored, expected, "optimizer")

        for name, device in (("generator", self.generator.device), ("global_generator", "cpu")):
            _check_generator(state[name], device, name)
        if self._device_generator("get_rng_state") is not None:
            _check_generator(state["device_generator"], self.generator.device, "device_generator")

    def _device_generator(self, function: str, *state: Tensor | None) -> Tensor | None:
        """Get or set the state of the accelerator's global generator; None on the CPU."""
        device = self.generator.device
        if device.type == "cuda":
            return getattr(torch.cuda, function)(*state, device=device)
        return getattr(torch.mps, function)(*state) if device.type == "mps" else None


def _check_generator(state: Tensor | None, device: torch.device | str, name: str) -> None:
    try:
        torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise StateError(f"{name}: no state of a random number generator") from error


def _as_new(value: Any) -> Any:
    """A copy of a state in which all equal strings are one object, and no dict, list or tuple is used twice.

    Pickle writes an object once and then refers to it, so that a resumed run, with strings from its checkpoint, would
    otherwise write other bytes than one that was never interrupted.
    """
    if isinstance(value, dict):
        return {_as_new(name): _as_new(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_as_new, value))
    return sys.intern(value) if type(value) is str else value


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a captured `state` to `path`, atomically. Raises OSError as the file system does."""
    content = io.BytesIO()
    torch.save(_as_new({"format": FORMAT, **state}), content)
    with atomic_path(path) as temporary:  # not by torch.save, which reports a full disk as a RuntimeError
        temporary.write_bytes(content.getvalue())


def load_checkpoint(path: str | Path, run: dict | None = None, model: nn.Module | None = None) -> dict:
    """Read a checkpoint's state, without unpickling code.

    `run` is what the file must agree with (`TrainingState.run`) and `model` the network whose layers and shapes it
    must fit. Raises CheckpointError if the file is missing, damaged, of another kind, or from another run: then the
    differences are listed.
    """
    path = Path(path)
    if not os.path.isfile(path):  # False for a name that is too long, too
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(_checked_archive(path), map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage raises a dozen different types
        reason = str(error).partition("\n")[0] or type(error).__name__  # torch adds advice for programmers
        raise CheckpointError(
            f"{path} is damaged or no checkpoint ({reason}); delete it and start a new run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project's format ({FORMAT})")
    try:
        check_record(state)
    except StateError as error:
        raise _unusable(path, error) from error

    differences = [] if model is None else layer_difference(state["model"], model.state_dict())
    for name, current in (run or {}).items():
        if name == "recipe":
            differences += recipe_difference(state[name], current)
        elif state[name] != current:
            differences.append(f"{name}: {state[name]!r} there, {current!r} here")
    if differences:
        more = [f"and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
        listed = "; ".join([*differences[:SHOWN], *more])
        raise CheckpointError(
            f"{path} belongs to another run ({listed}): resume it as it was begun, or start a new run"
        )
    return state


def _checked_archive(path: Path) -> io.BytesIO:
    """A checkpoint's zip archive, written anew from contents whose checksums are right.

    torch.load checks none, so a flipped bit in a weight would go unnoticed. It also obeys the archive's directory, for
    which there are no checksums: one flipped bit there makes a weight a folder, and its values random.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(checked, "w") as copy:
        for name in archive.namelist():
            copy.writestr(zipfile.ZipInfo(name), archive.read(name))
    checked.seek(0)
    return checked


def _unusable(path: str | Path, error: StateError) -> CheckpointError:
    return CheckpointError(f"{path} is no complete checkpoint ({error}); delete it and start a new run")


def layer_difference(stored: dict[str, Tensor], current: dict[str, Tensor]) -> list[str]:
    """The layers in which two state dicts differ by name or shape, a readable line each."""

    def shape(state: dict[str, Tensor], name: str) -> str:
        return str(tuple(state[name].shape)) if name in state else "absent"

    names = [*current, *(name for name in stored if name not in current)]
    return [
        f"{name}: {shape(stored, name)} there, {shape(current, name)} here"
        for name in names
        if shape(stored, name) != shape(current, name)
    ]


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the model's weights and BatchNorm statistics as safetensors, atomically. Raises OSError.

    `metadata` goes into the file as JSON under the one key "training": safetensors writes several keys in random order,
    and equal runs must give equal files.
    """
    # Copies: safetensors refuses tensors that two layers share.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    header = {"training": json.dumps(metadata, sort_keys=True)} if metadata else None
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, header))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load safetensors weights into `model` and return it.

    Raises CheckpointError, in one line and with the model unchanged, if the file is missing or damaged, if its layers
    or shapes are not the model's, or if its values cannot be those of a trained network.
    """
    if not os.path.isfile(path):  # False for a name that is too long, too
        problem = "it is a folder; name the file in it" if os.path.isdir(path) else "there is no such file"
        raise CheckpointError(f"cannot read weights from {path}: {problem}")
    try:
        state = load_file(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot read weights from {path}: {error.strerror or 'the file cannot be read'}"
        ) from error
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that torch does not have
        raise CheckpointError(f"cannot read weights from {path}: damaged, or not in the safetensors format") from error
    _check_weights(state, model.state_dict(), path)
    model.load_state_dict(state)
    return model


def _check_weights(state: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError unless the layers, shapes and types are as expected and the values are possible."""
    if differences := layer_difference(state, expected):
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise CheckpointError(f"{path} contains another architecture ({'; '.join(differences[:SHOWN])}{more})")
    for name, tensor in state.items():
        floating = expected[name].is_floating_point()
        if tensor.is_floating_point() != floating:
            raise CheckpointError(f"{path} is not usable: {name} holds {tensor.dtype}, not {expected[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} is not usable: {name} has values that are not finite")
        if name.rpartition(".")[2] in ("running_var", "num_batches_tracked") and (tensor < 0).any():
            raise CheckpointError(f"{path} is not usable: {name} is negative")
