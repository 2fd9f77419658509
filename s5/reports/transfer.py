"""Does what was learnt on MNIST hold on Fashion-MNIST? The variants trained on both, with nothing tuned anew."""

from statistics import mean

import numpy as np
import pandas as pd
from scipy import stats

from s5.analysis.plots import spread
from s5.analysis.statistics import interval_text, mean_text
from s5.analysis.style import COLOURS, FAINT, INK, Picture, styled
from s5.experiments.claims import CLAIMS, FASHION_CLAIMS
from s5.experiments.ledger import by_variant
from s5.experiments.trial import Trial
from s5.reports.tables import compared_variants, current_trials, trained
from s5.reports.variant_map import place_change
from s5.training.mnist import DATA_SETS

PAIR = ("mnist", "fashion")
TICKS = (-70, -50, -30, -15, 0, 20, 50, 100, 200)  # percent
FINDINGS = {  # is the change beyond seed noise on MNIST, and on Fashion-MNIST? Whether it carries over, and its colour
    ("yes", "yes"): ("yes", COLOURS[0]),
    ("yes", "no"): ("not shown there", COLOURS[1]),
    ("no", "yes"): ("only there", COLOURS[2]),
    ("no", "no"): ("not shown on either", FAINT),
}
REVERSED = ("the other way round", COLOURS[3])


def transfer_changes(trials: list[Trial]) -> pd.DataFrame:
    """One row per change that was trained on both: `compared_variants` of both, and whether the finding carries over.

    Columns: variant, against, of each of PAIR errors_mean, errors_low, errors_high and beyond_noise, with the ending
    "_mnist" or "_fashion"; finding and colour, of FINDINGS or REVERSED.
    """
    both = [compared_variants(current_trials("validation", trials, data)) for data in PAIR]
    table = both[0].merge(both[1], on=["variant", "against"], suffixes=[f"_{data}" for data in PAIR])
    table = table[(table[[f"beyond_noise_{data}" for data in PAIR]] != "not tested").all(axis=1)]
    found = [FINDINGS[pair] for pair in zip(table["beyond_noise_mnist"], table["beyond_noise_fashion"], strict=True)]
    opposite = table["errors_mean_mnist"] * table["errors_mean_fashion"] < 0
    found = [REVERSED if turned and each[0] == "yes" else each for each, turned in zip(found, opposite, strict=True)]
    return table.assign(finding=[text for text, _ in found], colour=[colour for _, colour in found])


def transfer_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per change: the mean validation accuracy on both, in percent, and the change of the errors, with 95%."""
    means = {data: mean_accuracies(current_trials("validation", trials, data)) for data in PAIR}
    rows = []
    for change in transfer_changes(trials).to_dict("records"):
        row = {"Variant": change["variant"], "Against": change["against"]}
        row |= {DATA_SETS[data].title: f"{means[data][change['variant']]:.2f}" for data in PAIR}
        for data in PAIR:
            mid, low, high = (change[f"errors_{part}_{data}"] for part in ("mean", "low", "high"))
            row[f"Errors, {DATA_SETS[data].title}"] = f"{mid:+.0f}% ({low:+.0f} to {high:+.0f})"
        rows.append(row | {"Carries over": change["finding"]})
    return pd.DataFrame(rows)


def mean_accuracies(trials: list[Trial]) -> dict[str, float]:
    """The mean accuracy of each variant, in percent, without seeds whose training collapsed."""
    return {name: mean(trial.accuracy for trial in group) for name, group in by_variant(trained(trials)).items()}


def describe_order(trials: list[Trial]) -> str:
    """How far the variants are in the same order on both data sets, as a sentence."""
    first, second = (mean_accuracies(current_trials("validation", trials, data)) for data in PAIR)
    names = [name for name in first if name in second]
    result = stats.spearmanr([first[name] for name in names], [second[name] for name in names])
    return (
        f"The rank correlation of the {len(names)} variants' mean accuracies on MNIST and Fashion-MNIST is "
        f"{result.statistic:.2f} (Spearman; 1: the same order)."
    )


def transfer_claims_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per network that was trained by its MNIST recipe and evaluated on Fashion-MNIST's test set."""
    rows = []
    for name, claim in FASHION_CLAIMS.items():
        if found := claim.trials(trials):
            accuracies = {"MNIST": [trial.accuracy for trial in CLAIMS[name].trials(trials)]}
            accuracies |= {"Fashion-MNIST": [trial.accuracy for trial in found]}
            row = {"Network": f"`{name}`", "Parameters": f"{found[0].parameters:,}", "Epochs": found[0].epochs}
            row |= {title: f"{mean_text(values, 2)} (n={len(values)})" for title, values in accuracies.items()}
            rows.append(row | {"95% interval": interval_text(accuracies["Fashion-MNIST"])})
    return pd.DataFrame(rows)


@styled()
def plot_transfer(changes: pd.DataFrame) -> Picture:
    """The change of errors of each variant on Fashion-MNIST against that on MNIST, both with 95% interval.

    changes: as `transfer_changes` makes them.
    """
    figure = Picture(5)
    axes = figure.subplots()
    shown = place_change(changes[[f"errors_{part}_{data}" for part in ("low", "high") for data in PAIR]].to_numpy())
    limits = shown.min() - 0.1, shown.max() + 0.1
    axes.plot(limits, limits, "-", color=FAINT, linewidth=1, zorder=1)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for row in changes.itertuples():
        x, y = ([getattr(row, f"errors_{part}_{data}") for part in ("low", "mean", "high")] for data in PAIR)
        (left, middle, right), (low, centre, high) = place_change(x), place_change(y)
        axes.plot([left, right], [centre, centre], "-", color=row.colour, linewidth=1.2)
        axes.plot([middle, middle], [low, high], "-", color=row.colour, linewidth=1.2)
        axes.plot(middle, centre, "o", color=row.colour, markersize=5)
    points = np.stack([place_change(changes[f"errors_mean_{data}"]) for data in PAIR], 1)
    heights = spread((points[:, 1] - limits[0]) / (limits[1] - limits[0]), figure)
    for name, point, height, colour in zip(changes["variant"], points, heights, changes["colour"], strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5)}
        place = {"xytext": (1.02, height), "textcoords": "axes fraction", "va": "center", "color": colour}
        axes.annotate(name, point, **place, arrowprops=leader)
    for finding, part in changes.groupby("finding", sort=False):
        axes.plot([], [], "o", color=part["colour"].iloc[0], label=f"{finding}: {len(part)}")
    labels = [f"{tick:+}%" if tick else "0" for tick in TICKS]
    axes.set_xticks(place_change(TICKS), labels)
    axes.set_yticks(place_change(TICKS), labels)
    axes.set(xlim=limits, ylim=limits)
    axes.set_xlabel("errors against the parent on MNIST (95% interval), log scale")
    axes.set_ylabel("errors against the parent on Fashion-MNIST")
    beyond = (changes["beyond_noise_mnist"] == "yes").sum()
    carried = (changes["finding"] == "yes").sum()
    verb = "carries" if carried == 1 else "carry"
    axes.set_title(f"Of {beyond} changes beyond seed noise on MNIST, {carried} {verb} over to Fashion-MNIST")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
