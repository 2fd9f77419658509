"""A trial: a variant trained from one seed, as a line for the ledger."""

from __future__ import annotations

import re
import time
import zlib
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from helpers import build, evaluate, fit, mistakes, predict
from s5.analysis import inspection
from s5.experiments.claims import KNOWN, find_variant
from s5.experiments.distillation import distillation_loss, load_teacher
from s5.experiments.variants import Variant
from s5.experiments.vectorized import fit_vectorized
from s5.networks.user_code import Source
from s5.training.checkpoint import save_weights
from s5.training.cpu import threads_for_idle_cores
from s5.training.device import pick_device, pick_precision
from s5.training.mnist import MnistData, load_mnist, load_sample, validation_split
from s5.training.provenance import provenance
from s5.training.recipe import Recipe, short

MAX_NAME = 200  # characters of a variant in a file's name; file systems take 255 in all


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
) -> dict:
    """Train one variant from one seed and return its line for the ledger (see `ledger.KEYS`).

    `variant` is a name, a line or a `Source` (`claims.find_variant`). With the split "validation", trains on five
    sixths of the training images and evaluates on the others; with "test", trains on all and evaluates on the test
    images. `changes` replaces fields of the recipe. All arguments and the result can be pickled, so that a trial can
    run in any process on any host; `data` saves loading MNIST. `weights` is a folder for the trained weights, see
    `weights_path`; a file that is there already is replaced. Raises ValueError for an unknown network, split or
    precision or a bad recipe, DataError, DivergenceError, OSError if the weights cannot be written, and
    KeyboardInterrupt if Ctrl-C ended the training early.
    """
    if threads:
        torch.set_num_threads(threads)
    with threads_for_idle_cores():  # around everything, so that the line names the number
        known, recipe = find_variant(variant), planned_recipe(variant, changes)
        data = split_of(split, data or load_data(sample))
        origin = _origin(device, precision)
        loss = distillation_loss(load_teacher(recipe, data, device), recipe) if recipe.teacher else None
        model = build(known.build, seed)
        start = time.perf_counter()
        options = {"device": device, "precision": origin["precision"], "loss": loss, "progress": False}
        history = fit(model, data, recipe, seed=seed, **options)
        seconds = time.perf_counter() - start
    if len(history) < recipe.epochs:  # `fit` returns early on Ctrl-C
        raise KeyboardInterrupt
    _save_weights(model, known, seed, data, weights)
    return _line(known, recipe, seed, data, model, history, seconds, origin)


def run_trials(
    variant: str | Source,
    seeds: list[int],
    split: str,
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    data: MnistData | None = None,
    weights: str | Path | None = None,
) -> list[dict]:
    """`run_trial` for several seeds, trained at once (`vectorized.py`): on a GPU that takes little longer than one.

    Raises ValueError or RuntimeError if the network or the recipe cannot be vectorised or the memory is too small, and
    DivergenceError if one of the trainings diverges, and OSError if the weights cannot be written.
    """
    if threads:
        torch.set_num_threads(threads)
    known, recipe = find_variant(variant), planned_recipe(variant, changes)
    data = split_of(split, data or load_data(sample)).to(pick_device(device))
    origin = _origin(device, precision)
    start = time.perf_counter()
    models, histories = fit_vectorized(known.build, data, recipe, seeds, device, precision=origin["precision"])
    seconds = (time.perf_counter() - start) / len(seeds)
    for seed, model, history in zip(seeds, models, histories, strict=True):
        loss, correct = evaluate(model, data.eval_images, data.eval_labels)  # alone, as for the mistakes: rounding
        history[-1] |= {"eval_loss": loss, "eval_correct": correct}
        history[-1]["eval_accuracy"] = 100 * correct / len(data.eval_labels)
        _save_weights(model, known, seed, data, weights)
    return [
        _line(known, recipe, seed, data, model, history, seconds, origin)
        for seed, model, history in zip(seeds, models, histories, strict=True)
    ]


def weights_path(folder: str | Path, variant: str, seed: int) -> Path:
    """Where a trial's weights are saved: VARIANT-seedN.safetensors, with `_` for what a file name may not contain."""
    name = re.sub(r"[^a-zA-Z0-9.@_-]", "_", variant)
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}-{zlib.crc32(variant.encode()):08x}"
    return Path(folder) / f"{name}-seed{seed}.safetensors"


def _save_weights(model: nn.Module, variant: Variant, seed: int, data: MnistData, folder: str | Path | None) -> None:
    """Save a trial's weights in `folder`, if there is one."""
    if folder is not None:
        metadata = {"data": data.source, "variant": variant.name, "seed": seed, "split": data.split}
        save_weights(model, weights_path(folder, variant.name, seed), metadata)


def _origin(device: str, precision: str) -> dict:
    """Where a trial is trained and in which precision; taken before training, since the commit may change during it."""
    chosen = pick_device(device)
    return provenance(chosen, pick_precision(precision, chosen))


def _line(
    variant: Variant,
    recipe: Recipe,
    seed: int,
    data: MnistData,
    model: nn.Module,
    history: list[dict],
    seconds: float,
    origin: dict,
) -> dict:
    """A trial's line for the ledger, with all of `ledger.KEYS`."""
    return {
        "variant": variant.name,
        "network": variant.network_name,
        "source": variant.network.text if isinstance(variant.network, Source) else "",
        "recipe": recipe.as_dict(),
        "seed": seed,
        "split": data.split,
        "epochs": recipe.epochs,
        "parameters": inspection.count_parameters(model),
        "macs": inspection.count_macs(model),
        "accuracy": history[-1]["eval_accuracy"],
        "best_accuracy": max(epoch["eval_accuracy"] for epoch in history),
        "curve": [{key: round(value, 6) for key, value in epoch.items()} for epoch in history],
        "mistakes": mistakes(data.eval_labels, predict(model, data.eval_images)),
        "seconds": round(seconds, 1),
        **origin,
        "data": data.source,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def split_of(split: str, data: MnistData) -> MnistData:
    """The data of a split. Raises ValueError for any word but "validation" and "test"."""
    if split not in ("validation", "test"):  # a typing error must not select the test images
        raise ValueError(f"split must be validation or test, not {split!r}")
    return validation_split(data) if split == "validation" else data


def load_data(sample: bool) -> MnistData:
    """The data of a sweep: the sample or the full MNIST. Raises DataError if the full MNIST cannot be loaded."""
    return load_sample() if sample else load_mnist(allow_sample=False)


def planned_recipe(variant: str | Source, changes: dict | None = None) -> Recipe:
    """The variant's recipe with `changes`. Raises as `changed_recipe` does, and for an unknown variant ValueError."""
    return changed_recipe(find_variant(variant).recipe, changes)


def checked_changes(changes: dict | None) -> dict:
    """`changes`, {} for None. Raises ValueError unless it is a dict of fields of a recipe."""
    if not isinstance(changes, dict | None):
        raise ValueError(f'changes must be a dict, e.g. {{"epochs": 5}}, not {short(changes)}')
    names = Recipe().as_dict()
    if unknown := [str(name) for name in changes or {} if name not in names]:
        raise ValueError(f"a recipe has no {', '.join(sorted(unknown))}; it has {', '.join(names)}")
    return changes or {}


def changed_recipe(recipe: Recipe, changes: dict | None = None) -> Recipe:
    """The recipe with `changes`. Raises ValueError for an unknown field, a bad value or a bad teacher."""
    recipe = recipe.changed(**checked_changes(changes))
    if recipe.teacher and recipe.teacher not in KNOWN:
        raise ValueError(f"teacher must be a variant, {', '.join(KNOWN)}, not {recipe.teacher!r}")
    return recipe
