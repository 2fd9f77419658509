"""Train variants from several seeds and record the trials in a ledger; recorded trials are skipped."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from s5.analysis.inspection import count_macs
from s5.experiments.claims import KNOWN, find_variant
from s5.experiments.ledger import of_precision, read_ledger, select
from s5.experiments.local_runner import run_locally, trial_name
from s5.experiments.ray_runner import run_on_ray
from s5.experiments.trial import SPLITS, Trial, run_trial, trial_key
from s5.experiments.variants import VARIANTS, Variant
from s5.networks.user_code import Source
from s5.training.command_line import check_threads, plural
from s5.training.device import cores, pick_device, pick_precision
from s5.training.files import LEDGER, USER_LEDGER, check_folder
from s5.training.mnist import NAMES, data_title, load_data
from s5.training.recipe import check_seed

SEEDS = [100, 101, 102]  # to choose by, unless others are given


def sweep(
    variants: list[str | Source | Callable[[], nn.Module]] | None = None,
    seeds: list[int] = SEEDS,
    split: str = "validation",
    changes: dict | None = None,
    data: str | Path = "mnist",
    device: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float = 0,
    retries: int = 2,
    ledger: str | Path | None = None,
    weights: str | Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run all trials that are not recorded, `workers` at a time, and print a summary; return the number of failures.

    `variants` are names, lines, "FILE.py:NAME" or classes (`claims.find_variant`); None: those of `variants.py`. New
    trials are recorded in runs/ledger.jsonl; what that file or results/ledger.jsonl has is skipped. With `ledger`,
    another file, only what that file has is skipped. `changes` replaces fields of the recipes. `data`: see
    `mnist.load_data`.

    By default there is one worker per CPU core, or one on a GPU, and each takes one thread, which is faster than one
    trial after another with all threads. `precision`: see `s5.training.device.pick_precision`; with "auto", trials that
    are recorded in any precision are skipped. With `ray`, a cluster's address, "auto" or "local", the trials run on a
    Ray cluster: see `ray_runner.run_on_ray`, which also explains `gpus_per_trial` and `retries`. `weights` is a folder
    in which the weights of every trial that is run are saved (`trial.weights_path`), on this machine only. `dry_run`
    only lists the trials.

    Raises ValueError for a bad network, recipe or option, DataError if MNIST cannot be loaded, OSError if a file cannot
    be written, ClusterError if there is no usable cluster, and KeyboardInterrupt on Ctrl-C; no process is left running.
    """
    found = list(dict.fromkeys(map(find_variant, list(VARIANTS) if variants is None else variants)))
    fixed = {"split": split, "changes": changes, "data": data, "device": device, "precision": precision}
    fixed |= {"threads": threads, "weights": weights}
    requested = [
        {"variant": variant.reference, "seed": seed, **fixed} for seed in dict.fromkeys(seeds) for variant in found
    ]
    recorded = read_ledger(ledger) if ledger else [*read_ledger(LEDGER), *read_ledger(USER_LEDGER)]
    where = {"workers": workers, "ray": ray, "gpus_per_trial": gpus_per_trial, "retries": retries}
    failed, trials = run_missing(requested, ledger or USER_LEDGER, recorded, dry_run=dry_run, **where)
    if trials and not dry_run:
        table = pd.DataFrame({"variant": each.variant, "accuracy": each.accuracy} for each in trials)
        table = table.groupby("variant", sort=False)["accuracy"].agg(trials="count", mean="mean", minimum="min")
        print(table.reset_index().to_string(index=False, float_format="{:.3f}".format))
    return failed


def run_missing(
    requested: list[dict],
    ledger: str | Path,
    recorded: list[Trial],
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float = 0,
    retries: int = 2,
    dry_run: bool = False,
) -> tuple[int, list[Trial]]:
    """Run the trials that are not `recorded`; return the number of failures and all requested trials that there are.

    `requested` are arguments of `trial.run_trial`, equal in all but variant, seed and changes. See also `sweep`.
    Raises ValueError, before anything is run, for an option or a seed that makes no sense.
    """
    if not requested:
        raise ValueError("there is nothing to run: no variant, or no seed")
    shared = requested[0]
    data, split, device, precision = (shared[name] for name in ("data", "split", "device", "precision"))
    folder = shared.get("weights")
    check_threads(shared["threads"])
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, not {workers}")
    if ray is not None and folder is not None:
        raise ValueError("weights are saved on this machine only, not with ray")
    if split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    pick_precision(precision, pick_device(device))
    images = None if data in NAMES else load_data(data)  # a folder is named by its content
    source = images.source if images else data
    keys = [_key(trial, source) for trial in requested]
    done = {trial.key for trial in of_precision(recorded, precision)}
    todo: dict[tuple, dict] = {}
    for key, trial in zip(keys, requested, strict=True):
        if key not in done:
            todo.setdefault(key, trial)  # two variants may be the same with these changes
    skipped = f"{len(requested) - len(todo)} already recorded, {len(todo)} to run"
    print(f"{plural(len(requested), 'trial')}, {data_title(source)} {split}: {skipped}")
    if dry_run:
        print("\n".join(f"  {trial_name(trial)}" for trial in todo.values()))
    at_once = workers if ray is not None else min(workers or default_workers(device), max(1, len(todo)))
    if todo:
        work = [(find_variant(trial["variant"]), key[1].epochs) for key, trial in todo.items()]  # of a recipe
        print(estimate(work, recorded, source, device, precision, at_once))
    failed = 0
    if todo and not dry_run:
        if folder is not None:
            check_folder(folder)
        # Downloads it once, or fails with one error, before several trials need it.
        images = images or load_data(data, allow_sample=False)
        if ray is None:
            failed = run_locally(list(todo.values()), ledger, run_trial, at_once)
        else:
            failed = run_on_ray(list(todo.values()), images, ledger, run_trial, ray, workers, gpus_per_trial, retries)
        recorded = [*recorded, *read_ledger(ledger)]
    found = {trial.key: trial for trial in of_precision(recorded, precision)}
    names = [find_variant(trial["variant"]).name for trial in requested]
    return failed, [replace(found[key], variant=name) for key, name in zip(keys, names, strict=True) if key in found]


def _key(trial: dict, source: str) -> tuple:
    """The `trial_key` of arguments of `run_trial`, on data of this name. Raises ValueError if they make no sense."""
    check_seed(trial["seed"])
    variant = find_variant(trial["variant"])
    recipe = variant.recipe.changed(**trial["changes"] or {})
    if recipe.teacher and recipe.teacher not in KNOWN:
        raise ValueError(f"teacher must be a variant, {', '.join(KNOWN)}, not {recipe.teacher!r}")
    return trial_key(variant.network_name, recipe, trial["seed"], trial["split"], source)


def estimate(
    work: list[tuple[Variant, int]],
    recorded: list[Trial],
    source: str,
    device: str,
    precision: str,
    workers: int | None,
) -> str:
    """The expected duration of the training of (variant, epochs) pairs, as text.

    The seconds of an epoch are read off a line through those of recorded trials, on as many images, in the precision
    and on a device of this kind, against their multiply-adds, both as logarithms: so a large network does not decide
    what small ones take. `workers` is the number of trials at a time, None if it depends on a cluster.
    """
    trials = select(of_precision(recorded, precision), data="sample" if source == "sample" else "mnist")
    trials = [trial for trial in trials if trial.device.startswith(pick_device(device).type)]
    if len({trial.macs for trial in trials}) < 2:
        return "no estimate of the time: nothing comparable is recorded"
    known = [(math.log(max(1, trial.macs)), math.log(max(0.1, trial.seconds) / trial.epochs)) for trial in trials]
    slope, intercept = statistics.linear_regression(*zip(*known, strict=True))
    with torch.random.fork_rng(devices=[]):
        macs = [max(1, count_macs(each.build())) for each, _ in work]
    seconds = sum(epochs * math.exp(intercept) * size**slope for size, (_, epochs) in zip(macs, work, strict=True))
    duration = f"about {plural(math.ceil(seconds / 60 / (workers or 1)), 'minute')}"
    return f"{duration} with {workers} at a time" if workers else f"{duration} of work, shared by the cluster's workers"


def default_workers(device: str) -> int:
    """How many trials to run at a time on the device: one per CPU core, or one on a GPU."""
    return cores() if pick_device(device).type == "cpu" else 1
