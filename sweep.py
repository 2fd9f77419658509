"""Variants × seeds on this machine, into the ledger: `python sweep.py --variants s5,seed_recipe --seeds 0-2`.

Trials that the ledger holds are skipped, so a sweep that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path

from ledger import LEDGER, append_trial, read_ledger, trial_key


def run_trial(
    variant: str,
    seed: int,
    split: str,
    epochs: int | None = None,
    sample: bool = False,
    device: str = "auto",
    threads: int | None = None,
    progress: bool = False,
) -> dict:
    """Train one variant from one seed and return its line for the ledger (see `ledger.KEYS`).

    "validation" trains on five sixths of the training images and scores on the rest; "test" trains on
    all and scores on the test images. `epochs` replaces the recipe's. All arguments and the result are
    plain values, so a trial can run in any process, on any host.
    """
    import torch

    import helpers
    from variants import VARIANTS

    if threads:
        torch.set_num_threads(threads)
    recipe = planned_recipe(variant, epochs)
    data = helpers.load_sample() if sample else helpers.load_mnist(allow_sample=False)
    if split == "validation":
        data = helpers.validation_split(data)
    model = helpers.build(VARIANTS[variant].build, seed)
    start = time.perf_counter()
    history = helpers.fit(model, data, recipe, seed, device, progress=progress)
    seconds = time.perf_counter() - start
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
        "device": describe_device(next(model.parameters()).device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": current_commit(),
        "data": data.source,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def planned_recipe(variant: str, epochs: int | None):
    """The variant's recipe, with another number of epochs where one is given."""
    from variants import VARIANTS

    recipe = VARIANTS[variant].recipe
    return replace(recipe, epochs=epochs) if epochs else recipe


def describe_device(device) -> str:
    """E.g. "cuda: NVIDIA T4" or "cpu: x86_64, 2 threads"."""
    import torch

    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.machine()}, {torch.get_num_threads()} threads"


def current_commit() -> str:
    """The git commit that is running, with "-dirty" when a Python file differs from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sweep(
    variants: list[str],
    seeds: list[int],
    split: str = "validation",
    epochs: int | None = None,
    sample: bool = False,
    device: str = "auto",
    workers: int = 1,
    ledger: str | Path = LEDGER,
) -> int:
    """Run all trials that the ledger lacks, `workers` at a time; return how many failed.

    A trial that raises is reported and the rest goes on. The cores are divided among the workers.
    """
    from tqdm import tqdm

    done = set(map(trial_key, read_ledger(ledger)))
    source = "sample" if sample else "mnist"
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    todo = []
    for variant, seed in wanted:
        recipe = planned_recipe(variant, epochs).as_dict()
        key = trial_key({"variant": variant, "split": split, "seed": seed, "data": source, "recipe": recipe})
        if key not in done:
            todo.append((variant, seed))
    print(f"{len(wanted)} trials, {len(wanted) - len(todo)} already in {Path(ledger).name}, {len(todo)} to run")

    threads = max(1, (os.cpu_count() or 1) // workers)
    failed = 0
    # Fresh processes rather than forked ones: torch's threads and CUDA do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        trials = {
            pool.submit(run_trial, variant, seed, split, epochs, sample, device, threads): (variant, seed)
            for variant, seed in todo
        }
        try:
            for future in tqdm(as_completed(trials), total=len(todo), unit="trial", disable=not todo):
                variant, seed = trials[future]
                try:
                    trial = future.result()
                except Exception as error:
                    failed += 1
                    tqdm.write(f"{variant}, seed {seed}: FAILED, {type(error).__name__}: {error}")
                    continue
                append_trial(trial, ledger)
                tqdm.write(f"{variant}, seed {seed}: {trial['accuracy']:.2f}% {split}, {trial['seconds']:.0f} s")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("Interrupted: finished trials are in the ledger; the same command goes on from there.")
            raise
    return failed


def parse_seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7]. Raises ArgumentTypeError when the text is something else."""
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise argparse.ArgumentTypeError(f"seeds are written like 0-4 or 0,3,7, not {text!r}")
    return list(dict.fromkeys(seeds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="all", help="names from variants.py, comma-separated, or all")
    parser.add_argument("--seeds", type=parse_seeds, default=[100, 101, 102], help="e.g. 0-4 (default: 100-102)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="default: validation")
    parser.add_argument("--epochs", type=int, help="instead of each recipe's own")
    parser.add_argument("--sample", action="store_true", help="the small sample instead of MNIST, to try things out")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time (default: 1)")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="default: results/ledger.jsonl")
    arguments = parser.parse_args()

    from variants import VARIANTS

    names = list(VARIANTS) if arguments.variants == "all" else arguments.variants.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"unknown variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    if arguments.workers < 1:
        parser.error(f"--workers must be 1 or more, not {arguments.workers}")
    if arguments.epochs is not None and arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more, not {arguments.epochs}")
    options = vars(arguments) | {"variants": names}
    try:
        return 1 if sweep(**options) else 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
