"""A trial: a variant trained from one seed. The typed record that the ledger holds, and the training that makes it."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from helpers import build, fit, mistakes, predict
from s5.analysis import inspection
from s5.experiments.claims import find_variant
from s5.experiments.distillation import distillation_loss, load_teacher
from s5.networks.user_code import Source
from s5.training.checkpoint import save_weights
from s5.training.device import pick_device, pick_precision, pick_threads, use_threads
from s5.training.mnist import DATA_SETS, MnistData, load_data, validation_split
from s5.training.progress import Epoch
from s5.training.provenance import provenance
from s5.training.recipe import Recipe, short

IMAGES = 10_000  # in either evaluation split of MNIST, Fashion-MNIST and KMNIST
SPLITS, PRECISIONS = ("validation", "test"), ("float32", "bfloat16")
KINDS = {"str": str, "int": int, "float": (int, float), "list": list, "dict": dict, "Recipe": Recipe}
ROUNDING = 1e-6  # the curve's numbers have six decimals


@dataclass(frozen=True)
class Trial:
    """A variant trained from one seed, with its result in the last epoch.

    Raises ValueError for a wrong type, split or precision, unless the curve has an entry for every epoch of the recipe,
    and unless the accuracy is that of the curve and of the mistakes.
    """

    variant: str  # its name when it was trained; a network of the user's: as `network`
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
    data: str  # the `source` of the `MnistData`
    time: str  # when the trial ended, UTC

    def __post_init__(self):
        for each in fields(self):
            value, kind = getattr(self, each.name), each.type.partition("[")[0]
            if not isinstance(value, KINDS[kind]) or isinstance(value, bool):
                raise ValueError(f"{each.name} must be of the type {kind}, not {short(value)}")
        for name, allowed in (("split", SPLITS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {short(getattr(self, name))}")
        if not len(self.curve) == self.epochs == self.recipe.epochs:
            counts = f"{self.recipe.epochs} epochs by the recipe, {len(self.curve)} by the curve"
            raise ValueError(f"{counts}, and {self.epochs} stated")
        images = self.curve[-1]["eval_correct"] + len(self.mistakes)
        if self.data in DATA_SETS and images != IMAGES:
            raise ValueError(f"right answers and mistakes are {images:,} images, not {IMAGES:,}")
        best = max(epoch["eval_accuracy"] for epoch in self.curve)
        for accuracy, of_curve in ((self.accuracy, self.curve[-1]["eval_accuracy"]), (self.best_accuracy, best)):
            if not abs(accuracy - of_curve) <= ROUNDING:  # also if it is NaN
                raise ValueError(f"the accuracy is {accuracy}, and {of_curve} by the curve")
        if not abs(self.accuracy - 100 * (1 - len(self.mistakes) / images)) <= ROUNDING:
            raise ValueError(f"the accuracy is {self.accuracy}, but {len(self.mistakes)} of {images:,} are mistakes")

    @classmethod
    def from_dict(cls, values: dict) -> Trial:
        """The trial of a line of the ledger, as parsed from JSON. Raises ValueError, KeyError or TypeError."""
        recipe = Recipe(**values["recipe"])
        return cls(**{each.name: values[each.name] for each in fields(cls)} | {"recipe": recipe})

    def as_dict(self) -> dict:
        """All fields, JSON-ready: a line of the ledger."""
        return asdict(self)

    @property
    def key(self) -> tuple:
        """What the trial is of; two with the same key and precision are one trial, trained twice."""
        return trial_key(self.network, self.recipe, self.seed, self.split, self.data)


def trial_key(network: str, recipe: Recipe, seed: int, split: str, data: str) -> tuple:
    """The key of a trial. A variant's name is no part of it: the variant, or its name, may be changed later."""
    return network, recipe, seed, split, data


def run_trial(
    variant: str | Source,
    seed: int,
    split: str,
    changes: dict | None = None,
    data: str | Path = "mnist",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    loaded: MnistData | None = None,
    weights: str | Path | None = None,
) -> Trial:
    """Train one variant from one seed.

    `variant` is a name, a line or a `Source` (`claims.find_variant`). With the split "validation", trains on five
    sixths of the training images and evaluates on the others; with "test", trains on all and evaluates on the test
    images. `data` is a name or a folder, see `mnist.load_data`; `loaded`, the same in memory, saves loading it.
    `changes` replaces fields of the recipe. All arguments and the result can be pickled, so that a trial can run in any
    process on any host. `threads`: of the CPU; None: one per idle core (the trial's `device` names the number).
    `weights` is a folder for the trained weights, see `weights_path`; a file that is there already is replaced. Raises
    ValueError for an unknown network, split or precision or a bad recipe, DataError, DivergenceError, OSError if the
    weights cannot be written, and KeyboardInterrupt if Ctrl-C ended the training early.
    """
    if split not in SPLITS:  # a typing error must not select the test images
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    known = find_variant(variant)
    recipe = known.recipe.changed(**changes or {})
    with use_threads(threads or pick_threads()[0]):
        images = loaded or load_data(data, allow_sample=False)
        images = validation_split(images) if split == "validation" else images
        chosen = pick_device(device)
        origin = provenance(chosen, pick_precision(precision, chosen))  # now: the commit may change during training
        loss = distillation_loss(load_teacher(recipe, images, device), recipe) if recipe.teacher else None
        model = build(known.build, seed)
        start = time.perf_counter()
        options = {"device": device, "precision": origin["precision"], "loss": loss, "progress": False}
        history = fit(model, images, recipe, seed=seed, **options)
        seconds = time.perf_counter() - start
        if len(history) < recipe.epochs:  # `fit` returns early on Ctrl-C
            raise KeyboardInterrupt
        if weights is not None:
            metadata = {"data": images.source, "variant": known.name, "seed": seed, "split": split}
            save_weights(model, weights_path(weights, known.name, seed), metadata)
        wrong = mistakes(images.eval_labels, predict(model, images.eval_images))
    return Trial(
        variant=known.name,
        network=known.network_name,
        source=known.network.text if isinstance(known.network, Source) else "",
        recipe=recipe,
        seed=seed,
        split=split,
        epochs=recipe.epochs,
        parameters=inspection.count_parameters(model),
        macs=inspection.count_macs(model),
        accuracy=history[-1]["eval_accuracy"],
        best_accuracy=max(epoch["eval_accuracy"] for epoch in history),
        curve=[{key: round(value, 6) for key, value in epoch.items()} for epoch in history],
        mistakes=wrong,
        seconds=round(seconds, 1),
        data=images.source,
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **origin,
    )


def weights_path(folder: str | Path, variant: str, seed: int) -> Path:
    """Where a trial's weights are saved: VARIANT-seedN.safetensors, with `_` for what a file name may not contain."""
    return Path(folder) / f"{re.sub(r'[^a-zA-Z0-9.@_-]', '_', variant)}-seed{seed}.safetensors"
