"""Figures of many runs: accuracy against size, the spread over seeds, and the images that nearly all get wrong.

They return a `Picture`, as the figures of one run in `plots.py` do.
"""

import numpy as np
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator

from analysis.plots import (
    COLOURS,
    FAINT,
    WIDTH,
    Picture,
    accuracy_axis,
    checked,
    draw_threshold,
    spread,
    styled,
    tile_figure,
)

CROWDED = (12_000, 40_000)  # parameters: the budget that everyone aims at, where labels would lie on each other
SIDES = [((8, -8), "left"), ((-8, -8), "right"), ((8, 8), "left"), ((-8, 8), "right")]  # points from the marker


@styled()
def plot_frontier(points, peers=None, threshold=99.4, title="Accuracy against size"):
    """Accuracy against the number of parameters: our means with their intervals, other people's runs hollow.

    points: DataFrame with name, split ("validation" or "test"), parameters, mean, low and high (percent; NaN where a
    single seed gives no interval). peers: DataFrame with name, parameters, best and last (percent, NaN where unknown),
    or None. A peer's line runs from its last epoch up to its best one. Raises ValueError for no points.
    """
    if not len(points):
        raise ValueError("nothing to plot: no points")
    figure = Picture(figsize=(WIDTH, 7.4), layout="constrained")
    axes = figure.subplots()
    kinds = {"validation": ("o", COLOURS[0], "ours, validation split"), "test": ("D", COLOURS[1], "ours, test set")}
    ours = []
    for split, (marker, colour, label) in kinds.items():
        if len(own := points[points["split"] == split]):
            bars = np.nan_to_num(np.abs(own[["low", "high"]].to_numpy().T - own["mean"].to_numpy()))
            style = {"fmt": marker, "color": colour, "capsize": 2, "markersize": 6}
            label = f"{label}: mean over seeds, last epoch, 95% t-interval"
            axes.errorbar(own["parameters"], own["mean"], bars, **style, label=label)
            ours += [(row.name, row.parameters, row.mean, colour) for row in own.itertuples(index=False)]
    others = []
    if peers is not None:
        shown = peers["last"].fillna(peers["best"])
        axes.vlines(peers["parameters"], shown, peers["best"].fillna(shown), color=FAINT, linewidth=1.2)
        label = "others, as they state it, on test: last epoch, line up to the best; one seed, chosen on test, except"
        label += " ".join(
            f"\n{row.name}: {row.made}" for row in peers.itertuples() if "one seed, chosen" not in row.made
        )
        style = {"color": FAINT, "markerfacecolor": "none", "markersize": 6, "linestyle": "none"}
        axes.plot(peers["parameters"], shown, "s", **style, label=label)
        others = list(zip(peers["name"], peers["parameters"], shown, [FAINT] * len(peers), strict=True))
    axes.set_xscale("log")
    sizes = [parameters for _, parameters, _, _ in ours + others]
    axes.set_xlim(0.65 * min(sizes), 8 * max(sizes))  # names stand to the right of their points
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    accuracy_axis(axes, [99.9, *(accuracy for _, _, accuracy, _ in ours + others)])  # the top is for names
    draw_threshold(axes, threshold)
    axes.set_title(title)
    figure.legend(loc="outside lower left", frameon=False)
    _name_points(axes, ours, others)  # last: it measures the page
    return figure


def _name_points(axes, ours, others):
    """Name every point: beside it where it stands alone, else in a column with a line to it, others' at the left."""
    axes.figure.draw_without_rendering()  # so that positions on the page are known
    to_axes = axes.transData - axes.transAxes
    crowd = [label for label in ours if CROWDED[0] < label[1] < CROWDED[1]]
    heights = spread([to_axes.transform(label[1:3])[1] for label in crowd], axes.figure)
    column = to_axes.transform((1.2 * CROWDED[1], 99))[0]
    places = {label: (column, height) for label, height in zip(crowd, heights, strict=True)}
    small = sorted((label for label in others if label[1] < CROWDED[1]), key=lambda label: -label[1])
    places |= {label: (0.02, 0.97 - 0.042 * row) for row, label in enumerate(small)}
    beside = []
    for label in ours + others:
        name, parameters, accuracy, colour = label
        style = {"color": colour, "fontsize": 8, "va": "center"}
        if label in places:
            side = 0 if label in crowd else 1  # of the text, at which its line begins
            style |= {"arrowprops": {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (side, 0.5)}}
            axes.annotate(name, (parameters, accuracy), places[label], textcoords="axes fraction", **style)
            continue
        text = axes.annotate(name, (parameters, accuracy), (0, 0), textcoords="offset points", **style)
        text.set_path_effects([withStroke(linewidth=3, foreground=axes.get_facecolor())])  # lines may pass beneath
        for text.xyann, side in SIDES:  # the first that is free
            text.set_horizontalalignment(side)
            if not any(text.get_window_extent().overlaps(other.get_window_extent()) for other in beside):
                break
        beside.append(text)


@styled()
def plot_seeds(accuracies, threshold=99.4, title=None, eval_name="validation"):
    """Every seed a dot, every variant a row, the mean a line: how far apart seeds lie, and whether rows overlap.

    accuracies: `{name: accuracies in percent, one a seed}`. Raises ValueError for no variant or one without a seed.
    """
    if not accuracies or not all(map(len, accuracies.values())):
        raise ValueError("nothing to plot: every variant needs at least one accuracy")
    figure = Picture(figsize=(WIDTH, 1.2 + 0.3 * len(accuracies)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(accuracies.values()):
        axes.plot(values, [row] * len(values), "o", color=COLOURS[0], alpha=0.6, markersize=6)
        axes.vlines(np.mean(values), row - 0.3, row + 0.3, color=COLOURS[1], linewidth=2)
    accuracy_axis(axes, [value for values in accuracies.values() for value in values], "x")
    draw_threshold(axes, threshold, "x")
    names = [f"{name}  {np.mean(values):.2f}% ({len(values)})" for name, values in accuracies.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{eval_name} {axes.get_xlabel()}")
    axes.set_title(title or "Every seed a dot, the mean a line; mean and number of seeds beside the name")
    return figure


@styled()
def plot_hardest(images, labels, mistakes, limit=30, columns=10):
    """The images that most networks get wrong: "label → commonest wrong answer, how many of the networks".

    images (N, 28, 28) and labels (N,). mistakes: a list of `{image number: predicted digit}`, one a network, numbers
    as strings as in the ledger. Raises ValueError for no networks or for an image number that is not there.
    """
    images, labels = checked(images=(images, 3), labels=(labels, 1))
    if not mistakes:
        raise ValueError("nothing to plot: no networks")
    answers = {}
    for wrong in mistakes:
        for index, digit in wrong.items():
            answers.setdefault(int(index), []).append(digit)
    if answers and max(answers) >= len(images):
        raise ValueError(f"image {max(answers)} is named as a mistake, but there are {len(images)} images")
    hardest = sorted(answers, key=lambda index: (-len(answers[index]), index))[:limit]
    captions = [
        f"{labels[index]} → {max(set(answers[index]), key=answers[index].count)}  {len(answers[index])}"
        for index in hardest
    ]
    title = f"What the most of {len(mistakes)} networks get wrong (label → commonest answer, networks)"
    return tile_figure(images[hardest], columns, title, captions)
