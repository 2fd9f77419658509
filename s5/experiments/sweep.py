"""Train variants from several seeds and record the trials in a ledger; recorded trials are skipped.

python -m s5.experiments.sweep --variants s5,original --seeds 103-105   on this machine, one trial per core
python -m s5.experiments.sweep --variants s5 --rotation 5 --epochs 8    with another recipe
python -m s5.experiments.sweep --ray auto                               on a Ray cluster
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from s5.experiments.ledger import of_precision, read_ledger, read_precision, select, trial_key
from s5.experiments.local_runner import RERUN, run_locally, trial_name, variant_name
from s5.experiments.ray_runner import ClusterError, run_on_ray
from s5.training.command_line import (
    INTERRUPTED,
    PRECISIONS,
    Parser,
    add_recipe_options,
    path,
    plural,
    recipe_changes,
    run_command,
)
from s5.training.files import LEDGER, USER_LEDGER, check_folder
from s5.training.recipe import check_seed

# Modules that import torch or pandas, which takes seconds, are imported inside functions, so that --help is fast.

SEEDS = [100, 101, 102]  # to choose by, unless others are given
SPLITS = ("validation", "test")
MAX_SEEDS = 10_000
MAX_SEEDS_AT_ONCE = 32  # on a GPU


def sweep(
    variants: list,
    seeds: list[int],
    split: str = "validation",
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    limit: float | None = None,
    ledger: str | Path | None = None,
    weights: str | Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run all trials that are not in the ledger, `workers` at a time; return the number of failures.

    `variants` are names or networks of one's own: lines, "FILE.py:NAME", classes (`claims.find_variant`). The
    ledger is results/ledger.jsonl, or runs/ledger.jsonl if one of them is one's own. `changes` replaces fields of the
    recipes. By default there is one worker per CPU core, with one thread each, which is faster than one trial after
    another with all threads; on a GPU there is one worker, which trains the seeds of a variant at once where it can.
    `precision`: see `s5.training.device.pick_precision`; with "auto", trials that are recorded in any precision are
    skipped. With `ray`, a cluster's address or "auto", the trials run on a Ray cluster: see `ray_runner.run_on_ray`,
    which also explains `gpus_per_trial`, `retries` and `limit`. `weights` is a folder in which every trial's weights
    are saved (`trial.weights_path`), on this machine only: not with `ray`. `dry_run` only lists the trials.

    Raises ValueError for a bad network or recipe, DataError if MNIST cannot be loaded, OSError if a file cannot be
    written, ClusterError if there is no usable cluster, and KeyboardInterrupt on Ctrl-C; no process is left running.
    """
    from s5.experiments.claims import KNOWN, find_variant

    where = {"workers": workers, "ray": ray, "gpus_per_trial": gpus_per_trial, "retries": retries, "limit": limit}
    fixed = {"split": split, "changes": changes, "sample": sample, "device": device, "precision": precision}
    if weights is not None:
        fixed["weights"] = weights
    if not isinstance(variants, list | tuple):
        raise ValueError(f"variants must be a list, e.g. ['s5'], not {variants!r}")
    found = list({variant.name: variant for variant in map(find_variant, variants)}.values())
    ledger = ledger or (LEDGER if all(variant.name in KNOWN for variant in found) else USER_LEDGER)
    requested = [{"variant": variant.reference, "seed": seed, **fixed} for seed in distinct(seeds) for variant in found]
    failed, keys = run_missing(requested, ledger, dry_run=dry_run, **where)
    if not dry_run and len(keys) > failed:
        print(summary(keys, ledger, precision))
    return failed


def run_missing(
    requested: list[dict],
    ledger: str | Path,
    recorded: list[dict] | None = None,
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    limit: float | None = None,
    dry_run: bool = False,
) -> tuple[int, list[tuple]]:
    """Run the trials that are not `recorded` (default: in the ledger); return the failures and all trials' keys.

    `requested` are arguments of `trial.run_trial`, equal in all but variant, seed and changes. See also `sweep`.
    Raises ValueError, before anything is run, for an option or a seed that makes no sense.
    """
    from s5.experiments.claims import find_variant
    from s5.experiments.trial import changed_recipe, load_data, planned_recipe, run_trial, run_trials, weights_path
    from s5.training.device import cores, pick_device

    if not requested:
        raise ValueError("there is nothing to run: no variant, or no seed")
    folder = requested[0].get("weights")
    check_options(workers, ray, gpus_per_trial, retries, limit, folder)
    for trial in requested:
        check_seed(trial["seed"])
    sample, split, device, precision = (requested[0][name] for name in ("sample", "split", "device", "precision"))
    for name, value, allowed in (("split", split, SPLITS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(allowed)}, not {value!r}")
    source = "sample" if sample else "mnist"
    recorded = read_ledger(ledger) if recorded is None else recorded

    def key(trial: dict) -> tuple:
        variant = find_variant(trial["variant"])
        recipe = changed_recipe(variant.recipe, trial["changes"]).as_dict()
        about = {"variant": variant.name, "network": variant.network_name, "recipe": recipe, "data": source}
        return trial_key(trial | about)

    keys = list(map(key, requested))
    done = set(map(trial_key, of_precision(recorded, precision)))
    todo = [trial for trial, key in zip(requested, keys, strict=True) if key not in done]
    skipped = f"{len(requested) - len(todo)} already in {Path(ledger).name}"
    print(f"{plural(len(requested), 'trial')}, {source} {split}: {skipped}, {len(todo)} to run")
    if folder is not None:
        files = [weights_path(folder, key[0], key[2]) for key in keys if key in done]  # of a variant and a seed
        if missing := sum(not file.is_file() for file in files):
            without = f"{plural(missing, 'recorded trial')} without weights in {folder}"
            print(f"{without}: not trained again, unless with another --ledger")
    at_once = min(workers or default_workers(device), max(1, len(todo)))
    threads = max(1, cores() // at_once) if at_once > 1 else None  # None: torch's default
    if ray is not None:
        threads = 1  # Ray gives each trial one CPU
    todo = [trial | {"threads": threads} for trial in todo]
    if dry_run:
        print("\n".join(f"  {trial_name(trial)}" for trial in todo))
    if dry_run or todo:
        work = [(variant_name(trial), planned_recipe(trial["variant"], trial["changes"]).epochs) for trial in todo]
        known = select(of_precision(recorded, precision), data=source)
        if ray is None:  # a cluster may have devices of any kind
            known = [trial for trial in known if trial["device"].startswith(pick_device(device).type)]
        print(estimate(work, known, at_once if ray is None else workers))
    if dry_run or not todo:
        return 0, keys
    if folder is not None:
        check_folder(folder)
    if ray is not None:
        data = load_data(sample)
        given = {"gpus": gpus_per_trial, "retries": retries, "limit": limit}
        given = {name: value for name, value in given.items() if value is not None}
        return run_on_ray(todo, data, ledger, run_trial, ray, workers, **given), keys
    if not sample:
        load_data(sample)  # download once, or fail with one error, before several trials need it
    if pick_device(device).type == "cuda":
        run_locally(grouped(todo), ledger, run_trials)
        done = set(map(trial_key, read_precision(precision, ledger)))
        todo = [trial for trial in todo if key(trial) not in done]  # those that cannot be trained at once
    return run_locally(todo, ledger, run_trial, at_once), keys


def check_options(
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float | None = None,
    retries: int | None = None,
    limit: float | None = None,
    weights: str | Path | None = None,
) -> None:
    """Raise ValueError for options of `sweep` that make no sense or that would be ignored."""
    on_ray = {"gpus_per_trial": gpus_per_trial, "retries": retries, "limit": limit}
    unused = [name for name, value in on_ray.items() if value is not None]
    if ray is None and unused:
        raise ValueError(f"{', '.join(unused)}: only with ray")
    if ray is not None and weights is not None:
        raise ValueError("weights are saved on this machine only, not with ray")
    if ray is not None and not ray:
        raise ValueError("ray must be auto, local or a cluster's address, and it is empty")
    for name, value, least in (("workers", workers, 1), ("retries", retries, 0)):
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{name} must be a whole number, {least} or more, not {value!r}")
    if gpus_per_trial is not None and not 0 <= gpus_per_trial < math.inf:
        raise ValueError(f"gpus_per_trial must be 0 or more, not {gpus_per_trial!r}")
    if limit is not None and not 0 < limit < math.inf:
        raise ValueError(f"limit must be a number of seconds greater than 0, not {limit!r}")


def run_and_collect(
    requested: list[dict], ledger: str | Path, workers: int | None = None, ray: str | None = None
) -> tuple[int, list[dict]]:
    """`run_missing`, with what results/ledger.jsonl has already; return the failures and the trials, in this order.

    All of them are of one precision, since they are to be compared: "auto" is that of this machine. Raises ValueError
    as `run_missing` does.
    """
    from s5.training.device import pick_device, pick_precision

    precision = "auto"
    if requested:
        precision = pick_precision(requested[0]["precision"], pick_device(requested[0]["device"]))
    requested = [trial | {"precision": precision} for trial in requested]
    recorded = read_precision(precision, LEDGER, ledger)
    failed, keys = run_missing(requested, ledger, recorded, workers, ray)
    found = {trial_key(trial): trial for trial in [*read_precision(precision, ledger), *recorded]}
    return failed, [found[key] for key in keys if key in found]


def grouped(trials: list[dict]) -> list[dict]:
    """The trials as arguments of `trial.run_trials`: `seeds` instead of `seed`. Lone trials are left out."""
    groups: list[tuple[dict, list[int]]] = []
    for trial in trials:
        shared = {name: value for name, value in trial.items() if name != "seed"}
        seeds = next((seeds for other, seeds in groups if other == shared and len(seeds) < MAX_SEEDS_AT_ONCE), None)
        if seeds is None:
            groups.append((shared, seeds := []))
        seeds.append(trial["seed"])
    return [{**shared, "seeds": seeds} for shared, seeds in groups if len(seeds) > 1]


def estimate(work: list[tuple[str, int]], trials: list[dict], workers: int | None) -> str:
    """Describe the expected duration of (variant, epochs) pairs, from the seconds per epoch of comparable trials.

    `workers` is the number of trials at a time, None if it depends on the cluster.
    """
    if not work:
        return "nothing to run"
    minutes, unknown, epochs = 0.0, set(), Counter()
    for name, count in work:
        epochs[name] += count
    for name in epochs:
        known = [trial["seconds"] / trial["epochs"] for trial in select(trials, variant=name)]
        if not known:
            unknown.add(name)
            continue
        minutes += statistics.median(known) * epochs[name] / 60
    if unknown == epochs.keys():
        return f"no estimate of the time: no comparable trial of {_few(unknown)} is recorded"
    without = f", not counting {_few(unknown)}: no comparable trial is recorded" if unknown else ""
    expected = minutes / (workers or 1)
    duration = "less than a minute" if expected < 1 else f"about {plural(round(expected), 'minute')}"
    if workers is None:
        return f"{duration} of work, shared by the cluster's workers{without}"
    return f"{duration} with {workers} at a time{without}"


def _few(names: Collection[str]) -> str:
    """Up to three of the names, in words."""
    first = ", ".join(sorted(names)[:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first


def summary(keys: list[tuple], ledger: str | Path, precision: str = "auto") -> str:
    """A table of the recorded trials with these keys (`ledger.trial_key`) and precision, one row per variant."""
    import pandas as pd

    variants = dict.fromkeys(key[0] for key in keys)
    wanted = set(keys)
    found = {key: trial for trial in read_precision(precision, ledger) if (key := trial_key(trial)) in wanted}
    rows = []
    for variant in variants:
        accuracies = [trial["accuracy"] for trial in found.values() if trial["variant"] == variant]
        done = f"{len(accuracies)} of {sum(key[0] == variant for key in keys)}"
        mean, lowest = (f"{f(accuracies):.3f}" if accuracies else "–" for f in (statistics.mean, min))
        rows.append({"variant": variant, "done": done, "mean": mean, "minimum": lowest})
    return pd.DataFrame(rows).to_string(index=False)


def default_workers(device: str) -> int:
    """How many trials to run at a time on the device: one per CPU core, or one on a GPU."""
    from s5.training.device import cores, pick_device

    return cores() if pick_device(device).type == "cpu" else 1


def distinct(seeds: list[int]) -> list[int]:
    """Each seed once. Raises ValueError for what is no list of seeds."""
    if not isinstance(seeds, list | tuple | set | range):
        raise ValueError(f"seeds must be a list of whole numbers, e.g. [100, 101], not {seeds!r}")
    return list(dict.fromkeys(seeds))


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7]. Raises ArgumentTypeError for any other text."""
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not 0 < len(numbers) <= MAX_SEEDS or numbers[-1] >= 2**63:
                raise ValueError("an empty range, too many seeds, or more than torch takes")
            seeds += numbers
            if len(seeds) > MAX_SEEDS:
                raise ValueError("too many seeds")
    except (ValueError, OverflowError):
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        message = f"seeds must be like 0-4 or 0,3,7, at most {MAX_SEEDS:,} and below 2^63, not {shown!r}"
        raise argparse.ArgumentTypeError(message) from None
    return list(dict.fromkeys(seeds))


def parse_arguments(arguments: list[str] | None = None) -> dict:
    """Parse the command line into arguments of `sweep`; exits with code 2 if it is wrong."""
    parser = Parser("sweep", __doc__, usage="python -m s5.experiments.sweep [options]")
    add = parser.add_argument_group("trials").add_argument
    names = "comma-separated, from s5/experiments/variants.py or claims.py; all: those of variants.py (the default)"
    add("--variants", metavar="NAMES", help=names)
    own = 'of one\'s own, e.g. "conv 8 16 / 32 gap" or mine.py:MyNet; can be repeated (see s5/networks/grammar.py)'
    add("--network", action="append", default=[], metavar="NETWORK", help=own)
    add("--seeds", type=parse_seeds, default=SEEDS, help="e.g. 0-4 or 0,3,7 (default: 100-102)")
    add("--split", choices=SPLITS, default="validation", help="evaluated images (default: validation)")
    add("--sample", action="store_true", help="use the small sample instead of MNIST")
    add("--ledger", type=path, metavar="FILE", help="default: results/ledger.jsonl; with --network: runs/ledger.jsonl")
    add("--weights", type=path, metavar="FOLDER", help="save every trial's weights there")
    add("--dry-run", action="store_true", help="list the trials and the expected duration, and stop")
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add(
        "--precision", choices=PRECISIONS, default="auto", help="default: bfloat16 if the device multiplies it natively"
    )
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per core; GPU: 1; --ray: no limit)")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's, or one started for the sweep")
    add("--gpus-per-trial", type=float, metavar="F", help="with --ray: e.g. 0.25 (default: 0)")
    add("--retries", type=int, metavar="N", help="with --ray: retries of a failed trial (default: 2)")
    add("--limit", type=float, metavar="SECONDS", help="with --ray: a trial that takes longer fails")
    add_recipe_options(parser, "changes to each variant's recipe")
    options = parser.parse_args(arguments)
    machine = {name: getattr(options, name) for name in ("workers", "ray", "gpus_per_trial", "retries", "limit")}
    try:
        check_options(**machine, weights=options.weights)
    except ValueError as error:
        parser.error(str(error))
    if options.weights and os.path.exists(options.weights) and not os.path.isdir(options.weights):
        parser.error(f"--weights {options.weights}: this is a file, not a folder")
    if options.ledger and options.ledger.suffix != LEDGER.suffix:  # so that no other file is appended to by mistake
        parser.error(f"--ledger must be a {LEDGER.suffix} file, not {options.ledger}")

    from s5.experiments.claims import KNOWN, find_variant
    from s5.experiments.trial import planned_recipe
    from s5.experiments.variants import VARIANTS
    from s5.training.device import pick_device

    listed = options.variants if options.variants is not None else "" if options.network else "all"
    names = [name.strip() for name in listed.split(",") if name.strip()]
    names = list(VARIANTS) if names == ["all"] else names
    if not names and not options.network:
        parser.error(f"--variants is empty; known: {', '.join(KNOWN)}")
    if unknown := [name for name in names if name not in KNOWN]:
        parser.error(f"unknown variant {', '.join(unknown)}; known: {', '.join(KNOWN)}")
    changes = recipe_changes(options)
    try:
        pick_device(options.device)
        own = [find_variant(network).reference for network in options.network]
        options.variants = list(dict.fromkeys([*names, *own]))
        for variant in options.variants:
            planned_recipe(variant, changes)
    except ValueError as error:
        parser.error(str(error))
    del options.network
    arguments = {name: value for name, value in vars(options).items() if name not in changes}
    return arguments | {"changes": changes}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    from s5.training.mnist import DataError

    try:
        return 1 if sweep(**options) else 0
    except KeyboardInterrupt:
        print(f"Interrupted. {RERUN}", file=sys.stderr)
        return INTERRUPTED
    except (DataError, ClusterError, OSError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_command(main)
