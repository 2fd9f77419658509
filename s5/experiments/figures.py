"""Figures of many trainings: the spread over seeds, and the networks of a search. All functions return a `Picture`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from s5.analysis.style import ACCURACY_TICKS, COLOURS, INK, Picture, accuracy_axis, draw_threshold, loss_axis, styled
from s5.experiments.claims import BUDGETS
from s5.experiments.ledger import mean_loss
from s5.experiments.trial import Trial
from s5.training.command_line import plural

SEVERAL_BUDGETS = 5  # times the parameters, from which on they are drawn on a logarithmic scale


@styled()
def plot_seeds(
    accuracies: dict[str, list[float]],
    threshold: float | None = 99.4,
    title: str = "Accuracy of each seed (dots) and mean over n seeds (lines)",
    split: str = "validation",
    limits: tuple[float, float] = (98, 99.8),
    ticks: Sequence[float] = ACCURACY_TICKS,
) -> Picture:
    """One row per name, one dot per seed and a line at the mean.

    accuracies: `{name: accuracies in percent, one per seed}`. limits: what the axis contains.
    """
    figure = Picture(1.2 + 0.3 * len(accuracies))
    axes = figure.subplots()
    for row, values in enumerate(accuracies.values()):
        axes.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.6, markersize=6)
        axes.vlines(np.mean(values), row - 0.3, row + 0.3, color=COLOURS[1], linewidth=2)
    accuracy_axis(axes, [value for values in accuracies.values() for value in values], "x", limits, ticks)
    draw_threshold(axes, threshold, "x")
    names = [f"{name}  {np.mean(values):.2f}% (n={len(values)})" for name, values in accuracies.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5 + (0.6 if threshold else 0), -0.5)  # room for the threshold's label
    axes.set_xlabel(f"{split} {axes.get_xlabel()}")
    axes.set_title(title)
    return figure


@styled()
def plot_search(
    groups: list[list[Trial]], title: str = "Validation loss against size, in each round of a search"
) -> Picture:
    """Validation loss against parameters: a dot per group of trials, and the front of those with the most epochs.

    groups: lists of trials, each of one network, recipe and number of epochs.
    """
    columns = ["name", "parameters", "epochs", "loss"]
    rows = [(group[0].network, group[0].parameters, group[0].epochs, mean_loss(group)) for group in groups]
    points = pd.DataFrame(rows, columns=columns).sort_values(["parameters", "loss"])
    figure = Picture(4.5)
    axes = figure.subplots()
    for colour, (epochs, part) in zip(COLOURS * len(points), points.groupby("epochs"), strict=False):
        label = f"{plural(epochs, 'epoch')}: {plural(part['name'].nunique(), 'network')}"
        axes.plot(part["parameters"], part["loss"], "o", color=colour, markersize=5, label=label)
    longest = points[points["epochs"] == points["epochs"].max()]
    front = longest[longest["loss"] < longest["loss"].cummin().shift(fill_value=np.inf)]
    style = {"color": INK, "linewidth": 1, "drawstyle": "steps-post"}
    axes.plot(front["parameters"], front["loss"], "-", label="lowest loss up to this size", **style)
    best = longest.loc[longest["loss"].idxmin()]
    side = "right" if best["parameters"] > points["parameters"].mean() else "left"
    offset = {"xytext": (0, -7), "textcoords": "offset points", "fontsize": 9.5}
    axes.annotate(best["name"], (best["parameters"], best["loss"]), ha=side, va="top", **offset)
    loss_axis(axes)
    axes.margins(x=0.08, y=0.12)
    axes.set_ylabel("validation loss (mean cross-entropy), log scale")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("parameters")
    if points["parameters"].max() > SEVERAL_BUDGETS * points["parameters"].min():
        budget_axis(axes)
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def budget_axis(axes) -> None:
    """Parameters on a logarithmic scale, with a line for each budget."""
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#BBBBBB", linewidth=0.8)
    axes.set_xlabel("parameters; the vertical lines are the budgets")
