"""Variants × seeds on this machine, into the ledger: `python sweep.py --variants s5,seed_recipe --seeds 0-2`.

Trials that the ledger holds are skipped, so a sweep that was cut off goes on where it stopped. Other recipes are tried
by `--set`, e.g. `--variants s5 --set optimizer=muon --set learning_rate=0.05 --epochs 8`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from ledger import LEDGER, append_trial, provenance, read_ledger, select, trial_key

if TYPE_CHECKING:  # torch is heavy, and a worker's alone
    from mnist import MnistData

INTERRUPTED = 130  # the shell's exit code for Ctrl-C
MOST_SEEDS = 10_000
GO_ON = "Finished trials are in the ledger; the same command runs the others."


def run_trial(
    variant: str,
    seed: int,
    split: str,
    epochs: int | None = None,
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    threads: int | None = None,
    data: MnistData | None = None,
) -> dict:
    """Train one variant from one seed and return its line for the ledger (see `ledger.KEYS`).

    "validation" trains on five sixths of the training images and scores on the rest; "test" trains on
    all and scores on the test images. `epochs` and `changes` (of any fields) go into the recipe. All
    arguments and the result are plain values, so a trial can run in any process, on any host; `data` spares
    it reading MNIST. A trial that Ctrl-C cuts short is no trial: KeyboardInterrupt goes on to the caller.
    """
    import torch

    import helpers
    from candidates import KNOWN
    from distillation import teacher_for

    if split not in ("validation", "test"):  # a slip of the pen must not end on the test images
        raise ValueError(f"split must be validation or test, not {split!r}")
    if threads:
        torch.set_num_threads(threads)
    recipe = planned_recipe(variant, epochs, changes)
    origin = provenance(helpers.pick_device(device))
    data = data or load(sample)
    if split == "validation":
        data = helpers.validation_split(data)
    teacher = teacher_for(recipe, data, device)
    model = helpers.build(KNOWN[variant].build, seed)
    start = time.perf_counter()
    history = helpers.fit(model, data, recipe, seed, device, progress=False, teacher=teacher)
    seconds = time.perf_counter() - start
    if len(history) < recipe.epochs:  # `fit` ends early, and returns, on Ctrl-C
        raise KeyboardInterrupt
    return {
        "variant": variant,
        "recipe": recipe.as_dict(),
        "seed": seed,
        "split": split,
        "epochs": recipe.epochs,
        "parameters": helpers.count_parameters(model),
        "macs": helpers.count_macs(model),
        "accuracy": history[-1]["test_accuracy"],
        "best_accuracy": max(epoch["test_accuracy"] for epoch in history),
        "curve": [{key: round(value, 6) for key, value in epoch.items()} for epoch in history],
        "mistakes": helpers.mistakes(data.test_labels, helpers.predict(model, data.test_images)),
        "seconds": round(seconds, 1),
        **origin,
        "data": data.source,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def load(sample: bool) -> MnistData:
    """The data of a sweep. DataError where the full MNIST cannot be had."""
    import helpers

    return helpers.load_sample() if sample else helpers.load_mnist(allow_sample=False)


def planned_recipe(variant: str, epochs: int | None = None, changes: dict | None = None):
    """The variant's recipe with `changes`, and another number of epochs where one is given. ValueError for bad ones."""
    from candidates import KNOWN

    recipe = KNOWN[variant].recipe
    if unknown := sorted((changes or {}).keys() - recipe.as_dict().keys()):
        raise ValueError(f"a recipe has no {', '.join(unknown)}; it has {', '.join(recipe.as_dict())}")
    recipe = replace(recipe, **(changes or {}), **({} if epochs is None else {"epochs": epochs}))
    if recipe.teacher and recipe.teacher not in KNOWN:
        raise ValueError(f"teacher must be a variant, {', '.join(KNOWN)}, not {recipe.teacher!r}")
    return recipe


def sweep(
    variants: list[str],
    seeds: list[int],
    split: str = "validation",
    epochs: int | None = None,
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_trial: float = 0,
    retries: int = 2,
    limit: float | None = None,
    ledger: str | Path = LEDGER,
    dry_run: bool = False,
) -> int:
    """Run all trials that the ledger lacks, `workers` at a time; return how many failed.

    By default there are as many workers as CPU cores, a thread each, which is faster than one after the other
    with all threads; on a GPU there is one. With `ray`, a cluster's address or "auto", the trials run there, as many
    at a time as it has room for: see `cluster.run_on_ray`, also for what follows it here. With `dry_run` they are
    only listed. Raises DataError when MNIST cannot be had, OSError when the ledger cannot be written, ClusterError
    without a cluster, and KeyboardInterrupt on Ctrl-C, each with no process left behind.
    """
    source = "sample" if sample else "mnist"
    fixed = {"split": split, "epochs": epochs, "changes": changes, "sample": sample, "device": device}
    wanted = [{"variant": variant, "seed": seed, **fixed} for seed in seeds for variant in variants]

    def key(trial: dict) -> tuple:
        recipe = planned_recipe(trial["variant"], epochs, changes)
        return trial_key({**trial, "data": source, "recipe": recipe.as_dict()})

    recorded = read_ledger(ledger)
    done = set(map(trial_key, recorded))
    todo = [trial for trial in wanted if key(trial) not in done]
    already = f"{len(wanted) - len(todo)} already in {Path(ledger).name}"
    print(f"{len(wanted)} trials, {source} {split}: {already}, {len(todo)} to run")
    at_once = min(workers or default_workers(device), len(todo) or 1)
    threads = max(1, cores() // at_once) if at_once > 1 else None  # one worker: torch's own choice
    if ray:
        threads = 1  # the CPU that Ray gives each trial; what this machine has says nothing of other hosts
    todo = [trial | {"threads": threads} for trial in todo]
    if dry_run:
        print("\n".join(f"  {trial['variant']}, seed {trial['seed']}" for trial in todo))
        work = [(trial["variant"], planned_recipe(trial["variant"], epochs, changes).epochs) for trial in todo]
        print(estimate(work, recorded, workers if ray else at_once))
    if dry_run or not todo:
        return 0
    if ray:
        from cluster import run_on_ray

        failed = run_on_ray(todo, load(sample), ledger, ray, workers, gpus_per_trial, retries, limit)
    else:
        if not sample:
            load(sample)  # one download, or one clear error, before all trials want it at once
        failed = run_all(todo, ledger, at_once)
    print(summary(list(map(key, wanted)), ledger))
    return failed


def estimate(work: list[tuple[str, int]], trials: list[dict], workers: int | None) -> str:
    """How long trials of so many epochs of a variant will take, by the seconds an epoch of earlier ones; in words."""
    if not work:
        return "nothing to run"
    minutes, unknown = 0.0, set()
    for name, epochs in work:
        known = [trial["seconds"] / trial["epochs"] for trial in select(trials, variant=name)]
        if not known:
            unknown.add(name)
            continue
        minutes += statistics.median(known) * epochs / 60
    if unknown == {name for name, _ in work}:
        return f"no earlier trial in this ledger says how long {', '.join(sorted(unknown))} will take"
    without = f", without {', '.join(sorted(unknown))}: no earlier trial says" if unknown else ""
    if workers is None:
        return f"about {minutes:.0f} minutes of work, over all of the cluster's workers{without}"
    return f"about {minutes / workers:.0f} minutes with {workers} at a time{without}"


def summary(keys: list[tuple], ledger: str | Path) -> str:
    """What the ledger holds of the trials with these keys, a line a variant."""
    import pandas as pd

    variants = dict.fromkeys(key[0] for key in keys)
    found = {key: trial for trial in read_ledger(ledger) if (key := trial_key(trial)) in set(keys)}
    rows = []
    for variant in variants:
        accuracies = [trial["accuracy"] for trial in found.values() if trial["variant"] == variant]
        done = f"{len(accuracies)} of {sum(key[0] == variant for key in keys)}"
        mean, lowest = (f"{f(accuracies):.3f}" if accuracies else "–" for f in (statistics.mean, min))
        rows.append({"variant": variant, "done": done, "mean": mean, "minimum": lowest})
    return pd.DataFrame(rows).to_string(index=False)


def default_workers(device: str) -> int:
    """How many trials at a time suit the device."""
    from helpers import pick_device

    return cores() if pick_device(device).type == "cpu" else 1


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(trials: list[dict], ledger: str | Path, workers: int = 1, run: Callable[..., dict] = run_trial) -> int:
    """Call `run(**trial)` for each of `trials` in `workers` processes, results into the ledger; return how many failed.

    A trial that raises is reported and the rest goes on. When a worker dies, the trials that are not finished
    then count as failed: which of them killed it cannot be known.
    """
    from tqdm import tqdm

    prepare_ledger(ledger)
    failed = lost = 0
    context = get_context("spawn")  # rather than fork, which torch's threads and CUDA do not survive
    lifeline, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_hold_on_to, initargs=(lifeline,))
    # Leaving the pool waits for all that is queued, so `our_end` is left first: that ends the workers at once.
    with noted_interrupt() as interrupted, pool, our_end, tqdm(total=len(trials), unit="trial") as bar:
        names = {pool.submit(run, **trial): f"{trial['variant']}, seed {trial['seed']}" for trial in trials}
        running = set(names)
        while running and not interrupted.is_set():
            finished, running = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                try:
                    trial = future.result()
                    append_trial(trial, ledger)
                except BrokenProcessPool:
                    lost += 1
                except Exception as error:
                    failed += 1
                    tqdm.write(f"{names[future]}: FAILED, {type(error).__name__}: {error}")
                else:
                    tqdm.write(f"{names[future]}: {trial['accuracy']:.2f}%, {trial['seconds']:.0f} s")
                bar.update()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if lost:
        print(
            f"A worker process died (killed, or out of memory?): {lost} trials are not done. {GO_ON}", file=sys.stderr
        )
    return failed + lost


def prepare_ledger(ledger: str | Path) -> None:
    """OSError for a ledger that cannot be written: better before the first trial than after."""
    Path(ledger).parent.mkdir(parents=True, exist_ok=True)
    open(ledger, "ab").close()


@contextmanager
def noted_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising KeyboardInterrupt wherever it strikes.

    Raised in the middle of the pool's own locking it would leave a lock taken, and leaving the pool would hang.
    """
    pressed = threading.Event()
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set()) if ours else None
    try:
        yield pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _hold_on_to(lifeline: Connection) -> None:
    """Runs first in each worker: it ends when the sweep lets go of its end of the pipe, or is killed itself.

    Otherwise the workers of a sweep that was killed would train on for hours, for nobody. Ctrl-C reaches all
    processes; only the sweep is to react to it.
    """
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which an end like the one below would leave behind

    def watch() -> None:
        wait([lifeline])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7]. Raises ArgumentTypeError when the text is something else."""
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not 0 < len(numbers) <= MOST_SEEDS:
                raise ValueError("the first is larger than the last, or there are too many")
            seeds += numbers
    except ValueError:
        wanted = f"seeds are written like 0-4 or 0,3,7, and are at most {MOST_SEEDS:,}, not {text!r}"
        raise argparse.ArgumentTypeError(wanted) from None
    return list(dict.fromkeys(seeds))


def parse_change(text: str) -> tuple[str, object]:
    """ "optimizer=muon" → ("optimizer", "muon"), "epochs=8" → ("epochs", 8). ArgumentTypeError for anything else."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"a change is written like learning_rate=0.05, not {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, as arguments of `sweep`; exits with code 2 on a bad one."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("sweep.py", description=__doc__, formatter_class=layout)
    add = parser.add_argument
    names = "from variants.py or candidates.py, comma-separated, or all of variants.py (default: all)"
    add("--variants", default="all", metavar="NAMES", help=names)
    add("--seeds", type=parse_seeds, default=[100, 101, 102], help="e.g. 0-4 or 0,3,7 (default: 100-102)")
    add("--split", choices=("validation", "test"), default="validation", help="what to score on (default: validation)")
    add("--epochs", type=int, metavar="N", help="instead of each recipe's own")
    change = "another value in the recipe; may be given several times"
    add("--set", dest="changes", type=parse_change, action="append", default=[], metavar="FIELD=VALUE", help=change)
    add("--sample", action="store_true", help="the small sample instead of MNIST, to try things out")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="trials at a time (default: as many as cores; 1 on a GPU; with --ray, as the cluster has room for)",
    )
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's, or one started for the sweep")
    add("--gpus-per-trial", type=float, default=0, metavar="F", help="with --ray: e.g. 0.25 (default: 0)")
    add("--retries", type=int, default=2, metavar="N", help="with --ray: of a trial that fails (default: 2)")
    add("--limit", type=float, metavar="SECONDS", help="with --ray: a trial that takes longer has failed")
    add("--ledger", type=Path, default=LEDGER, metavar="FILE", help="default: results/ledger.jsonl")
    add("--dry-run", action="store_true", help="list the trials that would be run, and stop")
    options = parser.parse_args(arguments)
    if options.gpus_per_trial < 0 or options.retries < 0 or (options.limit or 1) <= 0:
        parser.error("--gpus-per-trial and --retries must be 0 or more, --limit greater than 0")
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be 1 or more, not {options.workers}")
    if options.ledger.suffix != LEDGER.suffix:  # no line is ever appended to what was meant for something else
        parser.error(f"--ledger is a file of JSON lines, named {LEDGER.suffix}, not {options.ledger}")

    from candidates import KNOWN
    from helpers import pick_device
    from variants import VARIANTS

    names = [name.strip() for name in options.variants.split(",") if name.strip()]
    options.variants = list(VARIANTS) if names == ["all"] else list(dict.fromkeys(names))
    if not names:
        parser.error(f"--variants names none; there are: {', '.join(KNOWN)}")
    if unknown := [name for name in options.variants if name not in KNOWN]:
        parser.error(f"unknown variant {', '.join(unknown)}; there are: {', '.join(KNOWN)}")
    options.changes = dict(options.changes)
    if options.epochs is not None and "epochs" in options.changes:
        parser.error("--epochs and --set epochs say the same: give one of them")
    try:
        pick_device(options.device)
        for name in options.variants:
            planned_recipe(name, options.epochs, options.changes)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, 1 when something failed, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    from cluster import ClusterError
    from helpers import DataError

    try:
        return 1 if sweep(**vars(options)) else 0
    except KeyboardInterrupt:
        print(f"Interrupted. {GO_ON}", file=sys.stderr)
        return INTERRUPTED
    except (DataError, ClusterError, OSError) as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
