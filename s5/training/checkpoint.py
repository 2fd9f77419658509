"""A training run's state, saved and resumed as if it had never stopped; and weights as safetensors."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from s5.training.files import atomic_path
from s5.training.mnist import MnistData
from s5.training.optimizers import MovingAverage, make_optimizer, make_scheduler
from s5.training.progress import Epoch
from s5.training.recipe import Recipe, check_seed, recipe_difference

FORMAT = "mnist-s5-checkpoint-4"
SHOWN = 12  # differences between two runs


class CheckpointError(RuntimeError):
    """A checkpoint or weights file that cannot be used; the message says why and what to do."""


@dataclass
class TrainingState:
    """Everything that changes during training, and what the run is (`run`): a checkpoint holds both."""

    run: dict  # a checkpoint of another run is refused
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    average: AveragedModel | None
    generator: torch.Generator  # of the order of the images and their augmentation
    history: list[Epoch] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        model: nn.Module,
        data: MnistData,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str = "float32",
        threads: int | None = None,
    ) -> TrainingState:
        """The state before the first epoch; `threads` None: as torch is set. Raises ValueError for a bad seed."""
        check_seed(seed)
        optimizer = make_optimizer(model.parameters(), recipe)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        run = {"recipe": recipe.as_dict(), "seed": seed, "device": str(device), "precision": precision}
        run |= {"threads": threads, "data": str(data), "is_sample": data.source == "sample", "sha256": _digest(data)}
        return cls(
            run=run,
            model=model,
            optimizer=optimizer,
            scheduler=make_scheduler(optimizer, recipe, len(data.train_images)),
            average=MovingAverage(model, recipe.ema_decay) if recipe.ema_decay else None,
            generator=torch.Generator(device).manual_seed(seed),
        )

    @property
    def threads(self) -> int:
        """The run's number of threads: another number adds up in another order."""
        return self.run["threads"] or torch.get_num_threads()

    def resume(self, path: str | Path | None) -> None:
        """Continue from the checkpoint at `path`; a run that was told no number of threads takes the stored one.

        Raises ValueError without a path, and CheckpointError, with nothing changed, if the checkpoint does not exist,
        is damaged or belongs to another run: then the differences are listed.
        """
        if not isinstance(path, str | Path) or not str(path):
            raise ValueError("resume needs the path of a checkpoint")
        state = load_checkpoint(path)
        run = self.run | {"threads": self.run["threads"] or state["run"]["threads"]}
        differences = layer_difference(state["model"], self.model.state_dict())
        differences += recipe_difference(state["run"]["recipe"], run["recipe"])
        differences += [
            f"{name}: {state['run'][name]!r} there, {run[name]!r} here"
            for name in run
            if name != "recipe" and state["run"][name] != run[name]
        ]
        if differences:
            listed = _shortened(differences)
            raise CheckpointError(
                f"{path} belongs to another run ({listed}): resume it as it was begun, or start a new run"
            )
        before = self.capture()
        try:
            self.restore(state)
        except Exception as error:
            self.restore(before)
            raise _damaged(path, error) from error
        self.run = run

    def capture(self) -> dict:
        """A deep copy of the state after the last epoch, from which training can continue."""
        state = {
            "run": self.run | {"threads": self.threads},
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "device_generator": self._device_generator("get_rng_state"),
            "history": self.history,
        }
        return copy.deepcopy(state)

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


def _digest(data: MnistData) -> str:
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.eval_images, data.eval_labels):
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a captured `state` to `path`, atomically. Raises OSError as the file system does."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    with atomic_path(path) as temporary:  # not by torch.save, which reports a full disk as a RuntimeError
        temporary.write_bytes(content.getvalue())


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint's state, without unpickling code.

    Raises CheckpointError, in one line, if the file is missing, damaged or of another kind.
    """
    if not os.path.isfile(path):  # False for a name that is too long, too
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load compares no checksums
                raise ValueError(f"{damaged} has another checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # damage raises a dozen different types
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this project's format ({FORMAT})")
    return state


def _damaged(path: str | Path, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0] or type(error).__name__  # torch adds advice for programmers
    return CheckpointError(f"{path} is damaged or no checkpoint ({reason}); delete it and start a new run")


def layer_difference(stored: dict[str, Tensor], current: dict[str, Tensor]) -> list[str]:
    """The layers in which two state dicts differ by name or shape, a readable line each."""

    def shape(state: dict[str, Tensor], name: str) -> str:
        return str(tuple(state[name].shape)) if name in state else "absent"

    return [
        f"{name}: {shape(stored, name)} there, {shape(current, name)} here"
        for name in current | stored
        if shape(stored, name) != shape(current, name)
    ]


def _shortened(differences: list[str]) -> str:
    more = [f"and {len(differences) - SHOWN} more"] if len(differences) > SHOWN else []
    return "; ".join([*differences[:SHOWN], *more])


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
        reason = error.strerror or "the file cannot be read"
        raise CheckpointError(f"cannot read weights from {path}: {reason}") from error
    except (SafetensorError, KeyError) as error:  # KeyError: a type of numbers that torch does not have
        raise CheckpointError(f"cannot read weights from {path}: damaged, or not in the safetensors format") from error
    if differences := layer_difference(state, model.state_dict()):
        raise CheckpointError(f"{path} contains another architecture ({_shortened(differences)})")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} is not usable: {name} has values that are not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{path} is not usable: {name} is negative")
    model.load_state_dict(state)
    return model
