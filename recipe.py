"""How a network is trained, as plain numbers and words. Importing this is instant: no torch here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

CHOICES = {
    "optimizer": ("sgd", "adam", "adamw", "adadelta", "muon"),
    "schedule": ("constant", "step", "linear", "cosine"),
    "schedule_every": ("batch", "epoch"),
    "precision": ("float32", "bfloat16"),
}

NO_AUGMENTATION = {"rotation": 0.0, "translation": 0.0, "scale": 0.0, "shear": 0.0, "elastic": 0.0}

# Values that stand for what was done before these fields existed; `ledger.read_ledger` fills them in.
BEFORE = {
    "rest_learning_rate": 0.1,
    "precision": "float32",
    "teacher": "",
    "teachers": 1,
    "teacher_weight": 0.5,
    "temperature": 2.0,
    "elastic": 0.0,
    "plain_epochs": 0,
}


@dataclass(frozen=True)
class Recipe:
    """One way to train; the defaults are the final recipe of `Net`.

    Raises ValueError on construction when a value makes no sense, naming the value and its range.
    """

    epochs: int = 20
    batch_size: int = 128

    optimizer: str = "muon"  # sgd (with momentum), adam, adamw, adadelta or muon
    learning_rate: float = 0.05  # the peak rate; muon: of the convolutions, in fractions of their norm
    rest_learning_rate: float = 0.1  # muon only: the peak rate of SGD on everything else
    momentum: float = 0.85  # sgd and muon only
    nesterov: bool = True  # sgd only
    weight_decay: float = 2e-4
    precision: str = "float32"  # of the forward and backward pass; weights are float32 always

    schedule: str = "linear"  # after the warm-up: constant, step, or linear / cosine down to zero
    schedule_every: str = "batch"  # the rate changes once a batch or once an epoch
    warmup: float = 0.1  # part of the run in which the rate rises linearly from zero, if it changes once a batch
    step_epochs: int = 6  # schedule "step": every so many epochs …
    step_factor: float = 0.1  # … the rate is multiplied by this

    label_smoothing: float = 0.0
    ema_decay: float = 0.998  # moving average of the weights, once a batch; 0 switches it off

    teacher: str = ""  # distillation: the variant that so many larger networks are, trained on the same images, …
    teachers: int = 1
    teacher_weight: float = 0.5  # … and the share of the loss that their answers have beside the labels
    temperature: float = 2.0  # by which both sides' logits are divided

    rotation: float = 10.0  # each image is rotated by up to ± so many degrees,
    translation: float = 0.08  # shifted by up to ± this fraction of its side, along x and along y,
    scale: float = 0.1  # enlarged by a factor in 1 ± this,
    shear: float = 6.0  # sheared along x by up to ± so many degrees,
    elastic: float = 0.0  # and bent: places a few pixels apart are shifted by up to ± so many pixels
    plain_epochs: int = 0  # at the end, so many epochs on the images as they are

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not isinstance(self.nesterov, bool):
            raise ValueError(f"nesterov must be true or false, not {self.nesterov!r}")
        for name in ("epochs", "batch_size", "step_epochs", "teachers"):
            _check(self, name, lambda value: isinstance(value, int) and value >= 1, "a whole number, 1 or more")
        for name in ("learning_rate", "rest_learning_rate", "step_factor", "temperature"):
            _check(self, name, lambda value: value > 0, "greater than 0")
        if self.optimizer == "muon":
            _check(self, "learning_rate", lambda value: 0 < value <= 1, "greater than 0 and, for muon, at most 1")
        for name in ("weight_decay", "elastic"):
            _check(self, name, lambda value: value >= 0, "0 or more")
        _check(self, "plain_epochs", lambda value: isinstance(value, int) and value >= 0, "a whole number, 0 or more")
        for name in ("momentum", "warmup", "label_smoothing", "ema_decay", "translation", "scale"):
            _check(self, name, lambda value: 0 <= value < 1, "at least 0 and less than 1")
        _check(self, "teacher_weight", lambda value: 0 <= value <= 1, "from 0 to 1")
        _check(self, "rotation", lambda value: 0 <= value <= 180, "from 0 to 180 degrees")
        _check(self, "shear", lambda value: 0 <= value < 90, "at least 0 and less than 90 degrees")

    @property
    def augments(self) -> bool:
        """True when training images are changed at all."""
        return any(getattr(self, name) for name in NO_AUGMENTATION)

    def in_epoch(self, number: int) -> Recipe:
        """The recipe of one epoch, from 1: the last `plain_epochs` do not augment."""
        if number <= self.epochs - self.plain_epochs:
            return self
        return replace(self, **NO_AUGMENTATION)

    def for_smoke(self) -> Recipe:
        """The same recipe cut down to two epochs on the small sample: does everything work?"""
        return replace(self, epochs=2, batch_size=32)

    def as_dict(self) -> dict:
        """All fields, JSON-ready."""
        return asdict(self)

    def learning_rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """What the peak rate is multiplied by after `step` steps of the schedule.

        `steps_per_epoch` is the number of batches when the rate changes once a batch, 1 when once an epoch.
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


def recipe_difference(ours: dict, theirs: dict) -> list[str]:
    """The fields in which two recipes (as dicts) differ, a readable line each; empty when they are the same."""
    names = [field.name for field in fields(Recipe)]
    names += sorted((ours.keys() | theirs.keys()) - set(names))
    return [
        f"{name}: {theirs.get(name, 'absent')!r} there, {ours.get(name, 'absent')!r} here"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]


def _check(recipe: Recipe, name: str, is_good, what: str) -> None:
    value = getattr(recipe, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not is_good(value):
        raise ValueError(f"{name} must be {what}, not {value!r}")
