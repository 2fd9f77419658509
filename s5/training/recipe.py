"""How a network is trained, as plain numbers and words; nothing of hardware."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

SMOKE = os.environ.get("MNIST_SMOKE") == "1"  # notebooks and tests: a short run on the small sample

CHOICES = {
    "optimizer": ("sgd", "adam", "adamw", "adadelta", "muon"),
    "schedule": ("constant", "step", "linear", "cosine"),
    "schedule_every": ("batch", "epoch"),
}

TYPES = {"int": int, "float": int | float, "bool": bool, "str": str}
COUNT = (lambda value: value >= 1, "a whole number, 1 or more")
POSITIVE = (lambda value: value > 0, "greater than 0")
SHARE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
RULES = {  # of each field: a test of a value that has its type, and what it must be in words
    **{name: (allowed.__contains__, f"one of {', '.join(allowed)}") for name, allowed in CHOICES.items()},
    **dict.fromkeys(("epochs", "batch_size", "step_epochs", "teachers"), COUNT),
    **dict.fromkeys(("learning_rate", "sgd_learning_rate", "step_factor", "temperature"), POSITIVE),
    **dict.fromkeys(("momentum", "warmup", "label_smoothing", "ema_decay", "translation", "scale"), SHARE),
    "epochs_without_augmentation": (lambda value: value >= 0, "a whole number, 0 or more"),
    "nesterov": (lambda value: True, "true or false"),
    "weight_decay": (lambda value: value >= 0, "0 or more"),
    "teacher": (lambda value: True, "a text"),
    "teacher_weight": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "rotation": (lambda value: 0 <= value <= 180, "from 0 to 180 degrees"),
    "shear": (lambda value: 0 <= value < 90, "at least 0 and less than 90 degrees"),
    "elastic": (lambda value: 0 <= value <= 28, "from 0 to 28 pixels"),
}
LARGEST = {"epochs": 1_000_000, "batch_size": 1_000_000, "step_epochs": 1_000_000, "teachers": 100}

NO_AUGMENTATION = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0}


def _setting(default: Any, help: str) -> Any:
    """A field of the recipe with its description, which the command lines show."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are the final recipe of `Net`.

    Raises ValueError on construction when a value makes no sense, naming the value and its range.
    """

    epochs: int = _setting(20, "passes over the training images")
    batch_size: int = _setting(128, "images per step")

    optimizer: str = _setting("muon", "muon: Muon for convolutions, SGD for everything else")
    learning_rate: float = _setting(0.05, "peak rate; for muon, as a fraction of each convolution's norm")
    sgd_learning_rate: float = _setting(0.1, "muon: peak rate of SGD for what is not a convolution")
    momentum: float = _setting(0.85, "of sgd and muon")
    nesterov: bool = _setting(True, "sgd: Nesterov momentum")
    weight_decay: float = _setting(2e-4, "L2 penalty; muon: not on convolutions")

    schedule: str = _setting("linear", "of the rate after warm-up; linear and cosine end at 0")
    schedule_every: str = _setting("batch", "when the rate changes")
    warmup: float = _setting(0.1, "fraction of the run in which the rate rises from 0; only with schedule_every batch")
    step_epochs: int = _setting(6, "schedule step: epochs between two steps")
    step_factor: float = _setting(0.1, "schedule step: factor of the rate at each step")

    label_smoothing: float = _setting(0.0, "probability spread over all classes")
    ema_decay: float = _setting(0.998, "of the weights' moving average, updated every batch; 0: no average")

    teacher: str = _setting("", "distillation: the variant to learn from")
    teachers: int = _setting(1, "distillation: number of teachers, whose logits are averaged")
    teacher_weight: float = _setting(0.5, "distillation: share of the loss; the labels have the rest")
    temperature: float = _setting(2.0, "distillation: both sides' logits are divided by it")

    rotation: float = _setting(10.0, "at most ± degrees")
    translation: float = _setting(0.08, "at most ± this fraction of the side, in x and in y")
    scale: float = _setting(0.1, "factor of the size, in 1 ± this")
    shear: float = _setting(6.0, "at most ± degrees, along x")
    elastic: float = _setting(0.0, "elastic distortion, at most ± pixels")
    epochs_without_augmentation: int = _setting(0, "at the end of the run; in proportion if --epochs alone is given")

    def __post_init__(self):
        for each in fields(self):  # a frozen field cannot be set directly
            vars(self)[each.name] = _checked(each.name, each.type, getattr(self, each.name))
        if self.optimizer == "muon" and self.learning_rate > 1:
            raise _error("learning_rate", "greater than 0 and, for muon, at most 1", self.learning_rate)
        if self.epochs_without_augmentation > self.epochs:
            most = f"at most {self.epochs:,} (epochs)"
            raise _error("epochs_without_augmentation", most, self.epochs_without_augmentation)

    @property
    def augments(self) -> bool:
        """True when training images are changed at all."""
        return any(getattr(self, name) for name in NO_AUGMENTATION)

    def in_epoch(self, number: int) -> Recipe:
        """The recipe in epoch `number`, from 1: in the last `epochs_without_augmentation` images are not augmented."""
        if number <= self.epochs - self.epochs_without_augmentation:
            return self
        return replace(self, **NO_AUGMENTATION)

    def changed(self, **changes: Any) -> Recipe:
        """A copy with other values; with other `epochs` alone, the same share of them is without augmentation.

        Raises ValueError for a bad value, and TypeError for an unknown field.
        """
        epochs = changes.get("epochs")
        if isinstance(epochs, Integral) and "epochs_without_augmentation" not in changes:
            changes["epochs_without_augmentation"] = self.epochs_without_augmentation * int(epochs) // self.epochs
        return replace(self, **changes)

    def for_smoke(self) -> Recipe:
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


def recipe_difference(stored: dict, current: dict) -> list[str]:
    """The fields in which two recipes (as dicts) differ, a readable line each; empty when they are the same."""
    names = [field.name for field in fields(Recipe)]
    names += sorted((stored.keys() | current.keys()) - set(names))
    return [
        f"{name}: {stored.get(name, 'absent')!r} there, {current.get(name, 'absent')!r} here"
        for name in names
        if stored.get(name) != current.get(name)
    ]


def check_seed(seed: int) -> None:
    """Raise ValueError if torch cannot take this seed, or would take another number for it, as 1 for 1.5."""
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise _error("seed", "a whole number, 0 or more and below 2^63", seed)


def _checked(name: str, kind: str, value: Any) -> Any:
    """The value of a field as Python's own number: a checkpoint with NumPy's could not be read again."""
    is_bool = isinstance(value, bool)
    if isinstance(value, Real) and not is_bool:
        value = int(value) if isinstance(value, Integral) else float(value)
        if value > LARGEST.get(name, sys.float_info.max):
            raise _error(name, f"at most {LARGEST[name]:,}" if name in LARGEST else "a finite number", value)
    is_good, what = RULES[name]
    if not isinstance(value, TYPES[kind]) or is_bool != (kind == "bool") or not is_good(value):
        raise _error(name, what, value)
    return value


def _error(name: str, what: str, value: Any) -> ValueError:
    return ValueError(f"{name} must be {what}, not {short(value)}")


def short(value: Any) -> str:
    """A value for an error message, in one line: it may be a number of a thousand digits, or a tensor."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python prints no number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:59]}…"
