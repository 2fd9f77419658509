"""A trial: a variant trained from one seed. The typed record that the ledger holds, and the training that makes it."""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from helpers import build, fit, mistakes, predict
from s5.analysis import inspection
from s5.experiments.claims import KNOWN, find_variant
from s5.experiments.distillation import distillation_loss, load_teacher
from s5.networks.user_code import Source
from s5.training.checkpoint import save_weights
from s5.training.device import pick_device, pick_precision, pick_threads, use_threads
from s5.training.mnist import MnistData, load_mnist, load_sample, validation_split
from s5.training.progress import Epoch
from s5.training.provenance import provenance
from s5.training.recipe import Recipe, short

IMAGES = 10_000  # in either evaluation split of the full MNIST
SPLITS, PRECISIONS, DATA = ("validation", "test"), ("float32", "bfloat16"), ("mnist", "sample")
KINDS = {"str": str, "int": int, "float": (int, float), "list": list, "dict": dict, "Recipe": Recipe}
ROUNDING = 1e-6  # the curve's numbers have six decimals
MAX_NAME = 200  # characters of a variant in a file's name; file systems take 255 in all


@dataclass(frozen=True)
class Trial:
    """A variant trained from one seed, with its result in the last epoch. Raises ValueError for what cannot be.

    Checked are types, ranges, and what must agree: the accuracy is that of the right answers in the last epoch and of
    the mistakes, and the curve has an entry for every epoch of the recipe.
    """

    variant: str  # a name of variants.py or claims.py; a network of the user's: as `network`
    network: str  # a line of grammar.py, "Net", "pytorch_example", or the name of `source`
    source: str  # the Python code of a network of the user's, else empty
    recipe: Recipe
    seed: int
    split: str  # evaluated on "validation" or "test"
    epochs: int
    parameters: int  # trainable
    macs: int  # multiply-adds of one image
    accuracy: float  # percent, last epoch
    best_accuracy: float  # percent, best epoch; only to show the bias of choosing by it
    curve: list[Epoch]  # the history that `fit` returns
    mistakes: dict[str, int]  # {image number: predicted digit}, last epoch
    seconds: float  # of training and the evaluations after each epoch
    device: str
    precision: str  # of the forward and backward pass: "float32" or "bfloat16"
    versions: dict[str, str]
    commit: str
    data: str  # "mnist" or "sample"
    time: str  # when the trial ended, UTC

    def __post_init__(self):
        for each in fields(self):
            value, kind = getattr(self, each.name), each.type.partition("[")[0]
            if not isinstance(value, KINDS[kind]) or isinstance(value, bool):
                raise ValueError(f"{each.name} must be of the type {kind}, not {short(value)}")
        for name, allowed in (("split", SPLITS), ("precision", PRECISIONS), ("data", DATA)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {short(getattr(self, name))}")
        for name, least in (("seed", 0), ("parameters", 1), ("macs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")
        if not len(self.curve) == self.epochs == self.recipe.epochs:
            stated = f"epochs is {self.epochs}, the recipe's {self.recipe.epochs}"
            raise ValueError(f"{stated}, and the curve has {len(self.curve)}")
        for epoch in self.curve:
            if not isinstance(epoch, dict) or epoch.keys() != Epoch.__annotations__.keys():
                raise ValueError(f"an epoch of the curve has the keys {', '.join(Epoch.__annotations__)}")
        self._check_result()

    def _check_result(self) -> None:
        """Raise ValueError unless accuracy, mistakes and curve say the same."""
        last = self.curve[-1]
        images = last["eval_correct"] + len(self.mistakes)
        if self.data == "mnist" and images != IMAGES:
            counts = f"{last['eval_correct']} right answers and {len(self.mistakes)} mistakes"
            raise ValueError(f"{counts} are not {IMAGES:,} images")
        of_curve = [epoch["eval_accuracy"] for epoch in self.curve]
        expected = {"accuracy": 100 * last["eval_correct"] / images, "best_accuracy": max(of_curve)}
        for name, value in expected.items():
            if abs(getattr(self, name) - value) > ROUNDING:
                raise ValueError(f"{name} is {getattr(self, name)}, but {value:.6g} by the curve")
        if abs(of_curve[-1] - self.accuracy) > ROUNDING:
            raise ValueError(f"accuracy is {self.accuracy}, but the curve ends with {of_curve[-1]}")
        for index, digit in self.mistakes.items():
            if not (index.isdecimal() and int(index) < images and digit in range(10)):
                raise ValueError(f"mistakes: image {short(index)} of {images:,} taken for {short(digit)}")

    @classmethod
    def from_dict(cls, values: dict) -> Trial:
        """The trial of a line of the ledger, as parsed from JSON. Raises ValueError."""
        names = [each.name for each in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"missing: {', '.join(missing)}")
        try:
            return cls(**{name: values[name] for name in names} | {"recipe": Recipe(**values["recipe"])})
        except (TypeError, KeyError) as error:  # a recipe that is no dict, an epoch without a number
            raise ValueError(str(error)) from error

    def as_dict(self) -> dict:
        """All fields, JSON-ready: a line of the ledger."""
        return asdict(self)

    @property
    def key(self) -> tuple:
        """What the trial is of; two with the same key and precision are one trial, trained twice."""
        return trial_key(self.variant, self.network, self.recipe, self.seed, self.split, self.data)


def trial_key(variant: str, network: str, recipe: Recipe, seed: int, split: str, data: str) -> tuple:
    """The key of a trial. The network is part of it, because a variant's may be changed later."""
    return variant, network, recipe, seed, split, data


def run_trial(
    variant: str | Source,
    seed: int,
    split: str,
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    data: MnistData | None = None,
    weights: str | Path | None = None,
) -> Trial:
    """Train one variant from one seed.

    `variant` is a name, a line or a `Source` (`claims.find_variant`). With the split "validation", trains on five
    sixths of the training images and evaluates on the others; with "test", trains on all and evaluates on the test
    images. `changes` replaces fields of the recipe. All arguments and the result can be pickled, so that a trial can
    run in any process on any host; `data` saves loading MNIST. `threads`: of the CPU; None: one per idle core (the
    trial's `device` names the number). `weights` is a folder for the trained weights, see
    `weights_path`; a file that is there already is replaced. Raises ValueError for an unknown network, split or
    precision or a bad recipe, DataError, DivergenceError, OSError if the weights cannot be written, and
    KeyboardInterrupt if Ctrl-C ended the training early.
    """
    with use_threads(threads or pick_threads()[0]):
        known, recipe = find_variant(variant), planned_recipe(variant, changes)
        data = split_of(split, data or load_data(sample))
        chosen = pick_device(device)
        origin = provenance(chosen, pick_precision(precision, chosen))  # now: the commit may change during training
        loss = distillation_loss(load_teacher(recipe, data, device), recipe) if recipe.teacher else None
        model = build(known.build, seed)
        start = time.perf_counter()
        options = {"device": device, "precision": origin["precision"], "loss": loss, "progress": False}
        history = fit(model, data, recipe, seed=seed, **options)
        seconds = time.perf_counter() - start
        if len(history) < recipe.epochs:  # `fit` returns early on Ctrl-C
            raise KeyboardInterrupt
        if weights is not None:
            metadata = {"data": data.source, "variant": known.name, "seed": seed, "split": data.split}
            save_weights(model, weights_path(weights, known.name, seed), metadata)
        wrong = mistakes(data.eval_labels, predict(model, data.eval_images))
    return Trial(
        variant=known.name,
        network=known.network_name,
        source=known.network.text if isinstance(known.network, Source) else "",
        recipe=recipe,
        seed=seed,
        split=data.split,
        epochs=recipe.epochs,
        parameters=inspection.count_parameters(model),
        macs=inspection.count_macs(model),
        accuracy=history[-1]["eval_accuracy"],
        best_accuracy=max(epoch["eval_accuracy"] for epoch in history),
        curve=[{key: round(value, 6) for key, value in epoch.items()} for epoch in history],
        mistakes=wrong,
        seconds=round(seconds, 1),
        data=data.source,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **origin,
    )


def weights_path(folder: str | Path, variant: str, seed: int) -> Path:
    """Where a trial's weights are saved: VARIANT-seedN.safetensors, with `_` for what a file name may not contain."""
    name = re.sub(r"[^a-zA-Z0-9.@_-]", "_", variant)
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}-{zlib.crc32(variant.encode()):08x}"
    return Path(folder) / f"{name}-seed{seed}.safetensors"


def split_of(split: str, data: MnistData) -> MnistData:
    """The data of a split. Raises ValueError for any word but "validation" and "test"."""
    if split not in SPLITS:  # a typing error must not select the test images
        raise ValueError(f"split must be validation or test, not {split!r}")
    return validation_split(data) if split == "validation" else data


def load_data(sample: bool) -> MnistData:
    """The data of a sweep: the sample or the full MNIST. Raises DataError if the full MNIST cannot be loaded."""
    return load_sample() if sample else load_mnist(allow_sample=False)


def planned_recipe(variant: str | Source, changes: dict | None = None) -> Recipe:
    """The variant's recipe with `changes`. Raises as `changed_recipe` does, and for an unknown variant ValueError."""
    return changed_recipe(find_variant(variant).recipe, changes)


def changed_recipe(recipe: Recipe, changes: dict | None = None) -> Recipe:
    """The recipe with `changes`. Raises ValueError for an unknown field, a bad value or a bad teacher."""
    if not isinstance(changes, dict | None):
        raise ValueError(f'changes must be a dict, e.g. {{"epochs": 5}}, not {short(changes)}')
    names = recipe.as_dict()
    if unknown := [str(name) for name in changes or {} if name not in names]:
        raise ValueError(f"a recipe has no {', '.join(sorted(unknown))}; it has {', '.join(names)}")
    recipe = recipe.changed(**changes or {})
    if recipe.teacher and recipe.teacher not in KNOWN:
        raise ValueError(f"teacher must be a variant, {', '.join(KNOWN)}, not {recipe.teacher!r}")
    return recipe
