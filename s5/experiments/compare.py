"""Compare a network with another one, both trained by the same recipe from the same seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from s5.analysis.statistics import paired_difference
from s5.analysis.style import Picture
from s5.experiments.claims import find_variant
from s5.experiments.figures import plot_seeds
from s5.experiments.ledger import mean_loss, read_ledger, select
from s5.experiments.local_runner import RERUN
from s5.experiments.sweep import SEEDS, run_missing
from s5.experiments.trial import Trial
from s5.experiments.variants import changes_in_words
from s5.networks.user_code import Source
from s5.training.device import pick_device, pick_precision
from s5.training.files import LEDGER, USER_LEDGER
from s5.training.mnist import data_title, split_title

WELL_TRAINED = 90  # percent; below it, most networks have not been trained for long enough to be judged


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds. A notebook shows the table."""

    table: pd.DataFrame  # a row per network
    verdict: str
    figure: Picture

    def _repr_html_(self) -> str:
        return f"{self.table.to_html(index=False)}<p>{self.verdict}</p>"

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False)}\n\n{self.verdict}"


def compare(
    network: str | Source | Callable[[], nn.Module],
    other: str | Source | Callable[[], nn.Module] = "s5",
    seeds: list[int] = SEEDS,
    changes: dict | None = None,
    data: str | Path = "mnist",
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    ledger: str | Path = USER_LEDGER,
    own_changes: dict | None = None,
) -> Comparison:
    """Train both networks by the recipe of `other`, with `changes`, and compare them on the validation split.

    A network is a variant's name, a line, "FILE.py:NAME", or a class (`claims.find_variant`). `own_changes` are of the
    first one's recipe only: with them two recipes of one network are compared. `data`: see `mnist.load_data`. Trials in
    `ledger` and in results/ledger.jsonl are not trained again. Raises ValueError for a bad network or recipe, or for
    one that is compared with itself, RuntimeError if a trial failed, DataError, OSError, and KeyboardInterrupt on
    Ctrl-C.
    """
    variants = [find_variant(network), find_variant(other)]
    base = variants[1].recipe.changed(**changes or {})
    recipes = [base.changed(**own_changes or {}), base]
    names = [variant.name for variant in variants]
    if variants[0].network == variants[1].network and recipes[0] == base:
        raise ValueError(f"{names[0]} and {names[1]} are the same network, and one recipe would train both")
    if own := changes_in_words(*(recipe.as_dict() for recipe in recipes)):
        names[0] += f", {own}"  # tells two recipes of one network apart
    sides = list(zip(names, variants, recipes, strict=True))
    precision = pick_precision(precision, pick_device(device))  # only trials of one precision are compared
    shared = {"split": "validation", "data": data, "device": device, "precision": precision, "threads": 1}
    requested = [
        {"variant": variant.reference, "seed": seed, "changes": recipe.as_dict(), **shared}
        for seed in dict.fromkeys(seeds)
        for _, variant, recipe in sides
    ]
    failed, trials = run_missing(requested, ledger, [*read_ledger(LEDGER), *read_ledger(ledger)], workers)
    if failed:
        raise RuntimeError(f"{failed} of {len(requested)} trials failed. {RERUN}")
    groups = {name: select(trials, variant=variant.name, recipe=recipe) for name, variant, recipe in sides}
    accuracies = {name: [trial.accuracy for trial in group] for name, group in groups.items()}
    figure = plot_seeds(accuracies, None, split=split_title(trials[0].data, "validation"))
    return Comparison(network_table(groups), verdict(groups), figure)


def network_table(groups: dict[str, list[Trial]]) -> pd.DataFrame:
    """One row per network, {name: its trials}: size, cost, accuracy in percent and loss over seeds."""
    rows = []
    for name, group in groups.items():
        accuracies = pd.Series([trial.accuracy for trial in group])
        rows.append(
            {
                "Network": name,
                "Parameters": f"{group[0].parameters:,}",
                "Multiply-adds": f"{group[0].macs:,}",
                "Epochs": group[0].epochs,
                "Seeds": len(group),
                "Mean": f"{accuracies.mean():.3f}",
                "Std": f"{accuracies.std():.3f}" if len(group) > 1 else "–",
                "Loss": f"{mean_loss(group):.4f}",
            }
        )
    return pd.DataFrame(rows)


def verdict(groups: dict[str, list[Trial]]) -> str:
    """What the trials of two networks, {name: trials}, say, paired by seed, in a sentence."""
    (name, own), (other, others) = groups.items()
    values, other_values = ({trial.seed: trial.accuracy for trial in group} for group in (own, others))
    difference = paired_difference(values, other_values)
    n, points = difference["n"], f"{difference['mean']:+.3f} points on {data_title(own[0].data)} {own[0].split} images"
    if math.isnan(difference["p"]):
        alone = "from one seed, which decides nothing. Use several seeds."
        equal = f"from each of {n} seeds, so the noise between seeds is unknown. Use more seeds."
        return f"{name} against {other}: {points}, {alone if n == 1 else equal}"
    interval = f"95% interval {difference['low']:+.3f} to {difference['high']:+.3f}, paired over {n} seeds"
    note = ""
    if max(*values.values(), *other_values.values()) < WELL_TRAINED:
        note = f" Neither gets {WELL_TRAINED}% right: trained for longer, they may differ in another way."
    if difference["low"] <= 0 <= difference["high"]:
        return f"No difference beyond the noise between {name} and {other}: {points} ({interval}).{note}"
    better = "better" if difference["mean"] > 0 else "worse"
    return f"{name} is {better} than {other}: {points} ({interval}).{note}"
