"""Train variants from several seeds and record the trials in a ledger; recorded trials are skipped."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from s5.analysis.inspection import count_macs
from s5.experiments.claims import find_variant
from s5.experiments.ledger import of_precision, read_ledger, select
from s5.experiments.local_runner import run_locally, trial_name
from s5.experiments.ray_runner import run_on_ray
from s5.experiments.trial import SPLITS, Trial, changed_recipe, load_data, run_trial, trial_key, weights_path
from s5.experiments.variants import VARIANTS, Variant
from s5.networks.user_code import Source
from s5.training.command_line import check_threads, plural
from s5.training.device import cores, pick_device, pick_precision
from s5.training.files import LEDGER, USER_LEDGER, check_folder
from s5.training.recipe import check_seed

SEEDS = [100, 101, 102]  # to choose by, unless others are given


def sweep(
    variants: list[str | Source | Callable[[], nn.Module]] | None = None,
    seeds: list[int] = SEEDS,
    split: str = "validation",
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    ledger: str | Path | None = None,
    weights: str | Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run all trials that are not recorded, `workers` at a time, and print a summary; return the number of failures.

    `variants` are names, lines, "FILE.py:NAME" or classes (`claims.find_variant`); None or ["all"]: those of
    `variants.py`. New trials are recorded in runs/ledger.jsonl; what that file or results/ledger.jsonl has is skipped.
    With `ledger`, another file, only what that file has is skipped. `changes` replaces fields of the recipes.

    By default there is one worker per CPU core, or one on a GPU, and each takes one thread, which is faster than one
    trial after another with all threads. `precision`: see `s5.training.device.pick_precision`; with "auto", trials that
    are recorded in any precision are skipped. With `ray`, a cluster's address, "auto" or "local", the trials run on a
    Ray cluster: see `ray_runner.run_on_ray`, which also explains `gpus_per_trial` and `retries`. `weights` is a folder
    in which every trial's weights are saved (`trial.weights_path`), on this machine only. `dry_run` only lists the
    trials.

    Raises ValueError for a bad network, recipe or option, DataError if MNIST cannot be loaded, OSError if a file cannot
    be written, ClusterError if there is no usable cluster, and KeyboardInterrupt on Ctrl-C; no process is left running.
    """
    if not isinstance(variants, list | tuple | None):
        raise ValueError(f"variants must be a list, e.g. ['s5'], not {variants!r}")
    found = dict.fromkeys(map(find_variant, list(VARIANTS) if variants in (None, ["all"]) else variants))
    fixed = {"split": split, "changes": changes, "sample": sample, "device": device, "precision": precision}
    fixed |= {"threads": threads, "weights": weights}
    requested = [{"variant": variant.reference, "seed": seed, **fixed} for seed in distinct(seeds) for variant in found]
    recorded = read_ledger(ledger) if ledger else [*read_ledger(LEDGER), *read_ledger(USER_LEDGER)]
    where = {"workers": workers, "ray": ray, "gpus_per_trial": gpus_per_trial, "retries": retries}
    failed, trials = run_missing(requested, ledger or USER_LEDGER, recorded, dry_run=dry_run, **where)
    if trials and not dry_run:
        print(summary([variant.name for variant in found], len(distinct(seeds)), trials))
    return failed


def run_missing(
    requested: list[dict],
    ledger: str | Path,
    recorded: list[Trial],
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    dry_run: bool = False,
) -> tuple[int, list[Trial]]:
    """Run the trials that are not `recorded`; return the number of failures and all requested trials that there are.

    `requested` are arguments of `trial.run_trial`, equal in all but variant, seed and changes. See also `sweep`.
    Raises ValueError, before anything is run, for an option or a seed that makes no sense.
    """
    if not requested:
        raise ValueError("there is nothing to run: no variant, or no seed")
    shared = requested[0]
    device, precision, folder = shared["device"], shared["precision"], shared.get("weights")
    check_options(workers, ray, gpus_per_trial, retries, folder, shared["threads"])
    pick_precision(precision, pick_device(device))
    if shared["split"] not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {shared['split']!r}")
    keys = [_key(trial) for trial in requested]
    done = {trial.key for trial in of_precision(recorded, precision)}
    todo = {key: trial for key, trial in zip(keys, requested, strict=True) if key not in done}
    split = f"{'sample' if shared['sample'] else 'mnist'} {shared['split']}"
    skipped = f"{len(requested) - len(todo)} already recorded, {len(todo)} to run"
    print(f"{plural(len(requested), 'trial')}, {split}: {skipped}")
    if folder is not None:
        files = [weights_path(folder, key[0], key[3]) for key in keys if key in done]  # of a variant and a seed
        if missing := sum(not file.is_file() for file in files):
            without = f"{plural(missing, 'recorded trial')} without weights in {folder}"
            print(f"{without}: not trained again, unless with another --ledger")
    if dry_run:
        print("\n".join(f"  {trial_name(trial)}" for trial in todo.values()))
    at_once = workers if ray is not None else min(workers or default_workers(device), max(1, len(todo)))
    if todo:
        work = [(find_variant(trial["variant"]), key[2].epochs) for key, trial in todo.items()]  # of a recipe
        print(estimate(work, comparable(recorded, shared["sample"], device, precision), at_once))
    failed = 0
    if todo and not dry_run:
        if folder is not None:
            check_folder(folder)
        data = load_data(shared["sample"])  # downloads it once, or fails with one error, before several trials need it
        if ray is None:
            failed = run_locally(list(todo.values()), ledger, run_trial, at_once)
        else:
            given = {"gpus": gpus_per_trial, "retries": retries}
            given = {name: value for name, value in given.items() if value is not None}
            failed = run_on_ray(list(todo.values()), data, ledger, run_trial, ray, workers, **given)
        recorded = [*recorded, *read_ledger(ledger)]
    found = {trial.key: trial for trial in of_precision(recorded, precision)}
    return failed, [found[key] for key in keys if key in found]


def _key(trial: dict) -> tuple:
    """The `trial_key` of arguments of `run_trial`. Raises ValueError for those that make no sense."""
    check_seed(trial["seed"])
    variant = find_variant(trial["variant"])
    recipe = changed_recipe(variant.recipe, trial["changes"])
    data = "sample" if trial["sample"] else "mnist"
    return trial_key(variant.name, variant.network_name, recipe, trial["seed"], trial["split"], data)


def check_options(
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    weights: str | Path | None = None,
    threads: int | None = None,
) -> None:
    """Raise ValueError for options of `sweep` that make no sense or that would be ignored."""
    check_threads(threads)
    if ray is None and (gpus_per_trial, retries) != (None, None):
        raise ValueError("gpus_per_trial and retries: only with ray")
    if ray is not None and weights is not None:
        raise ValueError("weights are saved on this machine only, not with ray")
    if ray == "":
        raise ValueError("ray must be auto, local or a cluster's address, and it is empty")
    for name, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}")
    if gpus_per_trial is not None and not 0 <= gpus_per_trial < math.inf:
        raise ValueError(f"gpus_per_trial must be 0 or more, not {gpus_per_trial!r}")


def comparable(trials: list[Trial], sample: bool, device: str, precision: str) -> list[Trial]:
    """The trials that tell how long others take: on the same data, in the precision, on a device of this kind."""
    kind = pick_device(device).type
    found = select(of_precision(trials, precision), data="sample" if sample else "mnist")
    return [trial for trial in found if trial.device.startswith(kind)]


def estimate(work: list[tuple[Variant, int]], trials: list[Trial], workers: int | None) -> str:
    """The expected duration of the training of (variant, epochs) pairs, as text.

    The seconds of an epoch are read off a line through those of recorded `trials` against their multiply-adds.
    `workers` is the number of trials at a time, None if it depends on a cluster.
    """
    if len({trial.macs for trial in trials}) < 2:
        return "no estimate of the time: nothing comparable is recorded"
    known = [(trial.macs, trial.seconds / trial.epochs) for trial in trials]
    slope, intercept = statistics.linear_regression(*zip(*known, strict=True))
    with torch.random.fork_rng(devices=[]):
        seconds = sum(epochs * max(1.0, intercept + slope * count_macs(each.build())) for each, epochs in work)
    minutes = seconds / 60 / (workers or 1)
    duration = "less than a minute" if minutes < 1 else f"about {plural(round(minutes), 'minute')}"
    return f"{duration} with {workers} at a time" if workers else f"{duration} of work, shared by the cluster's workers"


def summary(variants: list[str], seeds: int, trials: list[Trial]) -> str:
    """A table of `trials` as text, one row per variant, of which `seeds` were asked for."""
    rows = []
    for variant in variants:
        accuracies = [trial.accuracy for trial in select(trials, variant=variant)]
        mean, lowest = (f"{f(accuracies):.3f}" if accuracies else "–" for f in (statistics.mean, min))
        row = {"variant": variant, "done": f"{len(accuracies)} of {seeds}", "mean": mean, "minimum": lowest}
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


def default_workers(device: str) -> int:
    """How many trials to run at a time on the device: one per CPU core, or one on a GPU."""
    return cores() if pick_device(device).type == "cpu" else 1


def distinct(seeds: list[int]) -> list[int]:
    """Each seed once. Raises ValueError for what is no list of seeds."""
    if not isinstance(seeds, list | tuple | set | range):
        raise ValueError(f"seeds must be a list of whole numbers, e.g. [100, 101], not {seeds!r}")
    return list(dict.fromkeys(seeds))
