"""How a network is trained, as plain numbers and words; nothing of hardware."""

import difflib
import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

SMOKE = os.environ.get("MNIST_SMOKE") == "1"  # notebooks and tests: a short run on the small sample

OPTIMIZERS = ("sgd", "adam", "adamw", "adadelta", "muon")
SCHEDULES = ("constant", "step", "linear", "cosine")

NO_AUGMENTATION = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0}


def _setting(default: Any, allowed: tuple, help: str) -> Any:
    """A field of the recipe: its smallest and largest number or its words, and what the command lines say of it."""
    return field(default=default, metadata={"allowed": allowed, "help": help})


@dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are the final recipe of `Net`.

    Raises ValueError on construction when a value makes no sense, naming the value and what is allowed.
    """

    epochs: int = _setting(20, (1, 1_000_000), "passes over the training images")
    batch_size: int = _setting(128, (1, 1_000_000), "images per step")

    optimizer: str = _setting("muon", OPTIMIZERS, "muon: Muon for convolutions, SGD for everything else")
    learning_rate: float = _setting(0.05, (1e-9, 1000), "peak rate; for muon, as a fraction of each convolution's norm")
    sgd_learning_rate: float = _setting(0.1, (1e-9, 1000), "muon: peak rate of SGD for what is not a convolution")
    momentum: float = _setting(0.85, (0, 1), "of sgd and muon")
    nesterov: bool = _setting(True, (), "sgd: Nesterov momentum")
    weight_decay: float = _setting(2e-4, (0, 1000), "L2 penalty; muon: not on convolutions")

    schedule: str = _setting("linear", SCHEDULES, "of the rate after warm-up; linear and cosine end at 0")
    schedule_every: str = _setting("batch", ("batch", "epoch"), "when the rate changes")
    warmup: float = _setting(0.1, (0, 1), "schedule_every batch: fraction of the run in which the rate rises from 0")
    step_epochs: int = _setting(6, (1, 1_000_000), "schedule step: epochs between two steps")
    step_factor: float = _setting(0.1, (0, 1), "schedule step: factor of the rate at each step")

    label_smoothing: float = _setting(0.0, (0, 1), "probability spread over all classes")
    ema_decay: float = _setting(0.998, (0, 1), "of the weights' moving average, updated every batch; 0: no average")

    teacher: str = _setting("", (), "distillation: the variant to learn from")
    teachers: int = _setting(1, (1, 100), "distillation: number of teachers, whose logits are averaged")
    teacher_weight: float = _setting(0.5, (0, 1), "distillation: share of the loss; the labels have the rest")
    temperature: float = _setting(2.0, (0.01, 1000), "distillation: both sides' logits are divided by it")

    rotation: float = _setting(10.0, (0, 180), "at most ± degrees")
    translation: float = _setting(0.08, (0, 1), "at most ± this fraction of the side, in x and in y")
    scale: float = _setting(0.1, (0, 0.9), "factor of the size, in 1 ± this")
    shear: float = _setting(6.0, (0, 80), "at most ± degrees, along x")
    elastic: float = _setting(0.0, (0, 28), "elastic distortion, at most ± pixels")
    epochs_without_augmentation: int = _setting(0, (0, 1_000_000), "at the end; in proportion to --epochs alone")

    def __post_init__(self):
        for each in fields(self):
            name, allowed, value = each.name, each.metadata["allowed"], getattr(self, each.name)
            if each.type in (int, float):
                least, most = allowed
                is_number = isinstance(value, Integral if each.type is int else Real) and not isinstance(value, bool)
                if not is_number or not least <= value <= most:
                    kind = "whole number" if each.type is int else "number"
                    raise ValueError(f"{name} must be a {kind} from {least:,} to {most:,}, not {short(value)}")
                vars(self)[name] = each.type(value)  # not NumPy's, which a checkpoint could not hold
            elif not isinstance(value, each.type) or (allowed and value not in allowed):
                what = f"one of {', '.join(allowed)}" if allowed else f"of the type {each.type.__name__}"
                raise ValueError(f"{name} must be {what}, not {short(value)}")

    @property
    def augments(self) -> bool:
        """True when training images are changed at all."""
        return any(getattr(self, name) for name in NO_AUGMENTATION)

    def in_epoch(self, number: int) -> "Recipe":
        """The recipe in epoch `number`, from 1: in the last `epochs_without_augmentation` images are not augmented."""
        if number <= self.epochs - self.epochs_without_augmentation:
            return self
        return replace(self, **NO_AUGMENTATION)

    def changed(self, **changes: Any) -> "Recipe":
        """A copy with other values; with other `epochs` alone, the same share of them is without augmentation.

        Raises ValueError for a bad value and for an unknown field.
        """
        for name in changes.keys() - self.as_dict().keys():
            nearest = "".join(difflib.get_close_matches(name, self.as_dict(), n=1))
            raise ValueError(f"a recipe has no {name!r}" + (f"; did you mean {nearest!r}?" if nearest else ""))
        epochs = changes.get("epochs")
        if isinstance(epochs, Integral) and "epochs_without_augmentation" not in changes:
            changes["epochs_without_augmentation"] = self.epochs_without_augmentation * int(epochs) // self.epochs
        return replace(self, **changes)

    def for_smoke(self) -> "Recipe":
        """The same recipe with two epochs of small batches, for a quick run on the sample."""
        return self.changed(epochs=2, batch_size=32)

    def as_dict(self) -> dict:
        """All fields, JSON-ready."""
        return asdict(self)

    def steps_per_epoch(self, images: int) -> int:
        """How often the learning rate changes in an epoch of so many images."""
        return math.ceil(images / self.batch_size) if self.schedule_every == "batch" else 1

    def learning_rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the peak rate after `step` steps of the schedule.

        `steps_per_epoch` is what the method of this name returns.
        """
        steps = self.epochs * steps_per_epoch
        warmup = round(self.warmup * steps) if self.schedule_every == "batch" else 0
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "step":
            return self.step_factor ** (step // (self.step_epochs * steps_per_epoch))
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


def check_seed(seed: int) -> None:
    """Raise ValueError if torch cannot take this seed, or would take another number for it, as 1 for 1.5."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number, 0 or more and below 2^63, not {short(seed)}")


def short(value: Any) -> str:
    """A value for an error message, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:59]}…"
