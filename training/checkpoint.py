"""A training run's state, saved and resumed as if it had never stopped; and weights as safetensors."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from training.files import atomic_path
from training.mnist import MnistData
from training.optimizers import make_optimizer, make_scheduler, moving_average
from training.recipe import Recipe, recipe_difference

FORMAT = "mnist-s5-checkpoint-3"


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
        """The state before the first epoch."""
        optimizer = make_optimizer(model.parameters(), recipe)
        run = {"recipe": recipe.as_dict(), "seed": seed, "data": str(data)}
        return cls(
            run=run | {"device": device.type, "precision": precision},
            model=model,
            optimizer=optimizer,
            scheduler=make_scheduler(optimizer, recipe, len(data.train_images)),
            average=moving_average(model, recipe.ema_decay) if recipe.ema_decay else None,
            generator=torch.Generator(device).manual_seed(seed),
        )

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
        return copy.deepcopy({**self.run, **parts, **generators, "history": self.history})

    def restore(self, state: dict) -> None:
        """Set everything back to a captured or loaded `state`."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        self._device_generator("set_rng_state", state["device_generator"])
        self.history = copy.deepcopy(state["history"])

    def _device_generator(self, function: str, *state: Tensor | None) -> Tensor | None:
        """Get or set the state of the accelerator's global generator; None on the CPU."""
        device = self.generator.device
        if device.type == "cuda":
            return getattr(torch.cuda, function)(*state, device=device)
        return getattr(torch.mps, function)(*state) if device.type == "mps" else None


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a captured `state` to `path`, atomically. Raises OSError as the file system does."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    with atomic_path(path) as temporary:  # not by torch.save, which reports a full disk as a RuntimeError
        temporary.write_bytes(content.getvalue())


def load_checkpoint(path: str | Path, run: dict | None = None, model: nn.Module | None = None) -> dict:
    """Read a checkpoint's state, without unpickling code.

    `run` is what the file must agree with (`TrainingState.run`) and `model` the network whose layers and shapes it
    must fit. Raises CheckpointError if the file is missing, damaged, of another kind, or from another run: then every
    difference is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        # torch.load does not check the zip archive's checksums, so a flipped bit in a weight would go unnoticed.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage raises a dozen different types
        raise CheckpointError(f"{path} is damaged or no checkpoint ({error}); delete it and start a new run") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged (checksum of {damaged}); delete it and start a new run")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project's format ({FORMAT})")

    differences = [] if model is None else layer_difference(state["model"], model.state_dict())
    for name, current in (run or {}).items():
        if name == "recipe":
            differences += recipe_difference(state[name], current)
        elif state[name] != current:
            differences.append(f"{name}: {state[name]!r} there, {current!r} here")
    if differences:
        raise CheckpointError(f"{path} belongs to another run:\n  " + "\n  ".join(differences))
    return state


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
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {"training": json.dumps(metadata, sort_keys=True)} if metadata else None
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(state, header))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load safetensors weights into `model` and return it.

    Raises CheckpointError if the file is missing or damaged, or if its layers or shapes are not the model's.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if differences := layer_difference(state, model.state_dict()):
        raise CheckpointError(f"{path} contains another architecture:\n  " + "\n  ".join(differences))
    model.load_state_dict(state)
    return model
