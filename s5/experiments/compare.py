"""Compare a network with another one, both trained by the same recipe from the same seeds.

python -m s5.experiments.compare "conv 8 16 / 24 32 / 32 gap"       a line of s5/networks/grammar.py, against s5
python -m s5.experiments.compare mine.py:MyNet s5 --seeds 100-104   a class or function of one's own
python -m s5.experiments.compare separable sgd                      two variants

Recorded trials are taken from the ledgers; the others are trained and recorded in runs/ledger.jsonl.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s5.experiments.ledger import select
from s5.experiments.local_runner import RERUN
from s5.experiments.sweep import SEEDS, distinct, parse_seeds, run_and_collect
from s5.training.command_line import (
    INTERRUPTED,
    PRECISIONS,
    Parser,
    add_recipe_options,
    output_file,
    recipe_changes,
    run_command,
)
from s5.training.files import RUNS, USER_LEDGER, check_folder

if TYPE_CHECKING:
    from s5.experiments.variants import Variant

WELL_TRAINED = 90  # percent; below it, most networks have not been trained for long enough to be judged

# Modules that import torch or pandas, which takes seconds, are imported inside functions, so that --help is fast.


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds. A notebook shows the table; `figure` is a `Picture`."""

    table: Any  # DataFrame: a row per network
    verdict: str
    figure: Any

    def _repr_html_(self) -> str:
        return f"{self.table.to_html(index=False)}<p>{self.verdict}</p>"

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False)}\n\n{self.verdict}"


def compare(
    network: Any,
    other: Any = "s5",
    seeds: list[int] = SEEDS,
    changes: dict | None = None,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    ledger: str | Path = USER_LEDGER,
    own_changes: dict | None = None,
) -> Comparison:
    """Train both networks by the recipe of `other`, with `changes`, and compare them on the validation split.

    A network is a variant's name, a line, "FILE.py:NAME", or a class (`claims.find_variant`). `own_changes` are of
    the first one's recipe only: with them two recipes of one network are compared. Trials in `ledger` and in
    results/ledger.jsonl are not trained again. Raises ValueError for a bad network or recipe, or for one that is
    compared with itself, RuntimeError if a trial failed, DataError, OSError, and KeyboardInterrupt on Ctrl-C.
    """
    from s5.experiments.claims import find_variant
    from s5.experiments.trial import changed_recipe
    from s5.experiments.variants import changes_in_words
    from s5.reports.plots import plot_seeds
    from s5.reports.tables import network_table

    variants = [find_variant(network), find_variant(other)]
    base = changed_recipe(variants[1].recipe, changes)
    recipes = [recipe.as_dict() for recipe in (changed_recipe(base, own_changes), base)]
    sides = list(zip(variants, recipes, strict=True))
    if variants[0].network == variants[1].network and recipes[0] == recipes[1]:
        raise ValueError(itself(*variants))
    words = changes_in_words(*recipes)
    notes = (f", {words}" if words else "", "")  # what tells two recipes of one network apart
    shared = {"split": "validation", "sample": sample, "device": device, "precision": precision}
    requested = [
        {"variant": each.reference, "seed": seed, "changes": recipe, "note": note, **shared}
        for seed in distinct(seeds)
        for (each, recipe), note in zip(sides, notes, strict=True)
    ]
    failed, trials = run_and_collect(requested, ledger, workers)
    if failed:
        raise RuntimeError(f"{failed} of {len(requested)} trials failed. {RERUN}")
    own, others = (select(trials, variant=each.name, recipe=recipe) for each, recipe in sides)
    own = [trial | {"variant": trial["variant"] + notes[0]} for trial in own]
    accuracies = {trials[0]["variant"]: [trial["accuracy"] for trial in trials] for trials in (own, others)}
    split = "sample validation" if sample else "validation"
    figure = plot_seeds(accuracies, None, "Accuracy of each seed (dots) and mean over n seeds (lines)", split)
    return Comparison(network_table([own, others]), verdict(own, others), figure)


def itself(own: Variant, other: Variant) -> str:
    """Why two variants of one network are not compared."""
    if own.name == other.name:
        return f"{own.name} is compared with itself"
    return f"{own.name} and {other.name} are the same network, and the recipe of {other.name} would train both"


def verdict(own: list[dict], others: list[dict]) -> str:
    """What the trials of two networks say, paired by seed, in a sentence."""
    from s5.analysis.statistics import paired_difference

    difference = paired_difference(own, others)
    name, other, n = own[0]["variant"], others[0]["variant"], difference["n"]
    points = f"{difference['mean']:+.3f} points on {own[0]['data']} {own[0]['split']} images"
    if math.isnan(difference["p"]):
        alone = "from one seed, which decides nothing. Use several seeds."
        equal = f"from each of {n} seeds, so the noise between seeds is unknown. Use more seeds."
        return f"{name} against {other}: {points}, {alone if n == 1 else equal}"
    interval = f"95% interval {difference['low']:+.3f} to {difference['high']:+.3f}, paired over {n} seeds"
    note = ""
    if max(trial["accuracy"] for trial in [*own, *others]) < WELL_TRAINED:
        note = f" Neither gets {WELL_TRAINED}% right: trained for longer, they may differ in another way."
    if difference["low"] <= 0 <= difference["high"]:
        return f"No difference beyond the noise between {name} and {other}: {points} ({interval}).{note}"
    better = "better" if difference["mean"] > 0 else "worse"
    return f"{name} is {better} than {other}: {points} ({interval}).{note}"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("compare", __doc__, usage="python -m s5.experiments.compare NETWORK [OTHER] [options]")
    parser.add_argument("network", metavar="NETWORK", help="a variant, a line, or FILE.py:NAME")
    parser.add_argument("other", metavar="OTHER", nargs="?", default="s5", help="the same; its recipe trains both")
    add = parser.add_argument_group("trials").add_argument
    add("--seeds", type=parse_seeds, default=SEEDS, help="e.g. 0-4 or 0,3,7 (default: 100-102)")
    add("--sample", action="store_true", help="use the small sample instead of MNIST")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", choices=PRECISIONS, default="auto", help="default: bfloat16 if native to the device")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per core)")
    add("--figure", type=output_file, default=RUNS / "compare.png", metavar="FILE", help="default: runs/compare.png")
    add_recipe_options(parser, "changes to the recipe")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers must be 1 or more, not {options.workers}")

    from s5.experiments.claims import find_variant
    from s5.experiments.trial import planned_recipe
    from s5.training.device import pick_device

    options.changes = recipe_changes(options)
    try:
        pick_device(options.device)
        variants = [find_variant(each) for each in (options.network, options.other)]
        planned_recipe(options.other, options.changes)
    except ValueError as error:
        parser.error(str(error))
    if variants[0].network == variants[1].network:
        parser.error(itself(*variants))
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    from s5.analysis.style import save_figure
    from s5.training.mnist import DataError

    names = ("network", "other", "seeds", "changes", "sample", "device", "precision", "workers")
    try:
        check_folder(options.figure.parent)  # before hours of training
        result = compare(**{name: getattr(options, name) for name in names})
        print(f"\n{result}")
        save_figure(result.figure, options.figure)
    except KeyboardInterrupt:
        print(f"Interrupted. {RERUN}", file=sys.stderr)
        return INTERRUPTED
    except (DataError, OSError, RuntimeError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(f"Figure: {options.figure}")
    return 0


if __name__ == "__main__":
    run_command(main)
