"""A training run's state, saved and resumed as if it had never stopped; and weights as safetensors."""

import copy
import hashlib
import io
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from s5.training.checks import first_line
from s5.training.files import write_file
from s5.training.mnist import TENSORS, MnistData
from s5.training.optimizers import MovingAverage, make_optimizer, make_scheduler
from s5.training.progress import Epoch
from s5.training.recipe import Recipe, check_seed

FORMAT, PARTS = "mnist-s5-checkpoint-6", {"recipe", "run", "model", "optimizer", "scheduler", "generator", "history"}
COMPILED = "_orig_mod."  # what torch.compile puts before the names of a model's tensors
SHOWN = 12  # differences between two runs or networks


class CheckpointError(RuntimeError):
    """A checkpoint or weights file that cannot be used; the message says why and what to do."""


class TrainingState:
    """Everything that changes during training, and what the run is (`run`): a checkpoint holds both."""

    def __init__(
        self,
        model: nn.Module,
        data: MnistData,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str = "float32",
        threads: int | None = None,
    ):
        check_seed(seed)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.recipe = recipe
        self.run = {"seed": seed, "device": str(device), "precision": precision, "threads": threads}
        self.run |= {"data": str(data), "source": data.source, "sha256": data_digest(data)}
        self.model = model
        self.optimizer = make_optimizer(model.parameters(), recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, len(data.train_images))
        self.average = MovingAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        self.generator = torch.Generator(device).manual_seed(seed)  # of the images' order and their augmentation
        self.history: list[Epoch] = []

    @property
    def threads(self) -> int:
        """The run's number of threads: another number adds up in another order."""
        return self.run["threads"] or torch.get_num_threads()

    def resume(self, path: str | Path | None) -> None:
        """Continue from the checkpoint at `path`; a run that was told no number of threads takes the stored one.

        Raises ValueError without a path, and CheckpointError if the checkpoint does not exist, is damaged or belongs to
        another run: then the differences are listed.
        """
        if not path:
            raise ValueError("resume needs the path of a checkpoint")
        state = load_checkpoint(path)
        run = self.run | {"threads": self.run["threads"] or state["run"]["threads"]}
        stored = _shapes(state["model"]) | state["recipe"] | state["run"]
        if differences := _differences(stored, _shapes(self.model.state_dict()) | self.recipe.as_dict() | run):
            advice = "resume it as it was begun, or start a new run"
            raise CheckpointError(f"{path} belongs to another run ({differences}): {advice}")
        self.restore(state)
        self.run = run

    def capture(self) -> dict:
        """A deep copy of the state after the last epoch, from which training can continue."""
        device = self.generator.device
        state = {
            "recipe": self.recipe.as_dict(),
            "run": self.run | {"threads": self.threads},
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
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
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.generator.device)
        self.history = copy.deepcopy(state["history"])


def data_digest(data: MnistData) -> str:
    """What tells the images and labels from others, also from as many others."""
    digest = hashlib.sha256()
    for name in TENSORS:
        digest.update(getattr(data, name).cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _differences(stored: dict, here: dict) -> str:
    """In what two dicts differ, in one line; empty if they are equal."""
    different = [name for name in here | stored if stored.get(name) != here.get(name)]
    listed = [f"{name}: {stored.get(name, 'absent')!s} there, {here.get(name, 'absent')!s} here" for name in different]
    more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return "; ".join(listed[:SHOWN] + more)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a captured `state` to `path`, atomically. Raises OSError as the file system does."""
    content = io.BytesIO()
    torch.save({"format": FORMAT, **state}, content)
    write_file(path, content.getvalue())  # not by torch.save, which reports a full disk as a RuntimeError


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint's state, without unpickling code.

    Raises CheckpointError, in one line, if the file is missing, damaged or of another kind.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage raises a dozen different types
        advice = "delete it and start a new run"
        raise CheckpointError(f"{path} is damaged or no checkpoint ({first_line(error)}); {advice}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= PARTS:
        raise CheckpointError(f"{path} is no checkpoint of this project's format ({FORMAT})")
    return state


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the model's weights and BatchNorm statistics as safetensors, atomically. Raises OSError.

    `metadata` goes into the file as JSON under the one key "training": safetensors writes several keys in random order,
    and equal runs must give equal files.
    """
    state = {  # copies, since safetensors refuses tensors that two layers share
        name.replace(COMPILED, ""): tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    header = {"training": json.dumps(metadata, sort_keys=True)} if metadata else None
    write_file(path, save(state, header))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load safetensors weights into `model` and return it.

    Raises CheckpointError, in one line and with the model unchanged, if the file is missing or damaged, or if its
    layers or shapes are not the model's.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights from {path}, which must be a safetensors file: {error}") from error
    names = {name.replace(COMPILED, ""): name for name in model.state_dict()}
    state = {names.get(name, name): tensor for name, tensor in state.items()}
    if differences := _differences(_shapes(state), _shapes(model.state_dict())):
        raise CheckpointError(f"{path} contains another architecture ({differences})")
    model.load_state_dict(state)
    return model
