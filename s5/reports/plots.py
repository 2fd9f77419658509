"""Figures of many runs: accuracy against size and training time, and the images most networks get wrong.

All functions return a `Picture`, as those of `s5.analysis.plots` do.
"""

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from s5.analysis.plots import label_ends, tile_figure
from s5.analysis.statistics import CLAIMED_ACCURACY
from s5.analysis.style import COLOURS, FAINT, INK, Picture, accuracy_axis, draw_threshold, loss_axis, styled
from s5.experiments.claims import BUDGETS
from s5.experiments.figures import budget_axis
from s5.reports.tables import COLLAPSED
from s5.training.command_line import plural

FRONTIER_TICKS = [96, 97, 98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8]  # percent
COLUMNS = {  # of the table below the frontier: heading, position in the axes, alignment
    "mark": ("", 0.015, "right"),
    "name": ("network", 0.03, "left"),
    "parameters": ("parameters", 0.44, "right"),
    "last": ("last epoch", 0.54, "right"),
    "best": ("best epoch", 0.64, "right"),
    "made": ("how it was made", 0.665, "left"),
}
OWN, PEER = "●", "□"  # the marks of our networks and of others in that table
ROW = 0.19  # inches, a row of that table
HARDEST = 30  # images
CURVE_LIMITS = (97, 99.65)  # percent, the same in all sections
CURVE_TICKS = [0, 50, 80, 90, 95, 97, 98, 98.5, 99, 99.2, 99.4, 99.6]


@styled()
def plot_variants(title, variants, parents, own):
    """Loss and validation accuracy over the epochs: a thin line per seed, a thick one for their mean.

    variants, parents: `{name: histories of its seeds}`; parents are grey. own: `{name: history}` of runs just made,
    drawn dotted. The axis of the accuracy is the same for all recorded runs. Where training collapsed, an inset shows
    all of it, and the mean is of the others.
    """
    figure = Picture(4)
    loss, accuracy = figure.subplots(1, 2)
    drawn, thin, lowest, runs = [], [], 100, {**parents, **variants}
    shades = dict.fromkeys(parents, FAINT) | dict(zip(variants, COLOURS, strict=False))
    is_detailed = len(variants) == 1  # more lines would hide each other
    for name, histories in runs.items():
        colour, seeds = shades[name], [pd.DataFrame(history).astype(float).set_index("epoch") for history in histories]
        ends = [seed["eval_accuracy"].iloc[-1] for seed in seeds]
        lowest = min(lowest, *ends)
        for seed in seeds:
            thin += accuracy.plot(seed["eval_accuracy"], "-", color=colour, linewidth=0.7, alpha=0.5)
        good = [seed for seed, end in zip(seeds, ends, strict=True) if end >= COLLAPSED]
        middle = pd.concat(good or seeds).groupby("epoch").mean()
        drawn += accuracy.plot(middle["eval_accuracy"], "-", color=colour, linewidth=2, label=name)
        loss.plot(middle["train_loss"], color=colour, linewidth=2, linestyle="--" if is_detailed else "-", label=name)
        if is_detailed:
            loss.plot(middle["eval_loss"], "-", color=colour, linewidth=2)
    shown = list(CURVE_LIMITS)
    for name, history in own.items():
        run = pd.DataFrame(history).astype(float).set_index("epoch")
        shown += list(run["eval_accuracy"])
        loss.plot(run["train_loss"], color=shades[name], linestyle=":", marker="o")
        accuracy.plot(run["eval_accuracy"], color=shades[name], linestyle=":", marker="o")
    last = max(line.get_xdata().max() for line in drawn)
    for axes in (loss, accuracy):
        axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    loss_axis(loss)
    loss.set_ylabel("loss (mean per image)" if is_detailed else "training loss (mean per image)")
    loss.set_title("dashed: training, solid: validation" if is_detailed else "training loss", fontsize=10)
    accuracy_axis(accuracy, shown, limits=CURVE_LIMITS, ticks=CURVE_TICKS)
    accuracy.set_title("validation accuracy; thin: each seed" + "; dotted: this run" * bool(own), fontsize=10)
    if lowest < COLLAPSED:
        whole = accuracy.inset_axes([0.5, 0.66, 0.46, 0.3])
        for line in thin:
            whole.plot(*line.get_data(), color=line.get_color(), linewidth=0.7)
        whole.set(ylim=(0, 100), xticks=[], yticks=[0, 50, 100], xlim=(0.5, last + 0.5))
        whole.set_facecolor("#F5F5F5")
    label_ends(accuracy, drawn, "{:.2f}%", last)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled()
def plot_frontier(points, peers):
    """Mean accuracy against the number of parameters, of ours and other people's networks. All are in a table below.

    A line joins the networks that are more accurate than all smaller ones. Vertical lines are the budgets.

    points: as `tables.frontier_points` makes them. peers: DataFrame with name, parameters, best and last (percent, NaN
    if unknown) and made (how). Much larger ones are at the right edge.
    """
    points = points.sort_values(["parameters", "mean"], ascending=[True, False])
    is_on_front = points["mean"] > points["mean"].cummax().shift(fill_value=-np.inf)
    peers = peers.sort_values("parameters")
    peers = peers.assign(mark=PEER, shown=peers["last"].fillna(peers["best"]))
    rows = len(points) + len(peers) + 1.5
    figure = Picture(5.4 + ROW * rows)
    axes, below = figure.subplots(2, 1, height_ratios=[5.4, ROW * rows])
    budget_axis(axes)
    sizes = [*points["parameters"], *BUDGETS]
    axes.set_xlim(0.5 * min(sizes), 2.2 * max(sizes))
    accuracies = pd.concat([*(points[key].dropna() for key in ("mean", "low", "high")), peers["shown"]])
    accuracy_axis(axes, accuracies, limits=(98.75, 99.65), ticks=FRONTIER_TICKS)
    axes.set_ylabel(f"test {axes.get_ylabel()}")
    smallest, *_, largest = points[is_on_front].itertuples()
    axes.set_title(
        f"Mean test accuracy: {smallest.mean:.2f}% with {smallest.parameters:,} parameters, "
        f"{largest.mean:.2f}% with {largest.parameters:,}"
    )
    draw_threshold(axes, CLAIMED_ACCURACY)
    _draw_points(axes, points[is_on_front], points[~is_on_front])
    deskewed = points[points["deskewed"]]
    hollow = {"color": COLOURS[0], "markerfacecolor": "white", "linestyle": "none", "zorder": 6, "markersize": 6}
    label = "hollow: the images are deskewed first"
    axes.plot(deskewed["parameters"], deskewed["mean"], "o", label=label, **hollow)
    _draw_peers(axes, peers)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", framealpha=1, edgecolor="white")
    made = [f"mean of {plural(seeds, 'seed')}" for seeds in points["seeds"]]
    own = points.assign(mark=OWN, last=points["mean"], best=np.nan, made=made)
    _draw_table(below, pd.concat([own, peers])[list(COLUMNS)].sort_values("parameters", kind="stable"))
    return figure


def _draw_points(axes, front, rest):
    """Our networks: a line joins those on the front, whose names are above it; the others' are on the right."""
    label = "this project: mean over seeds, last epoch, with 95% t-interval"
    style = {"color": COLOURS[0], "zorder": 5, "capsize": 3}
    axes.errorbar(front["parameters"], front["mean"], _bars(front), fmt="o-", markersize=7, label=label, **style)
    axes.errorbar(rest["parameters"], rest["mean"], _bars(rest), fmt="o", markersize=4, **style)
    for row in front.itertuples():
        _label(axes, row.name, (row.parameters, row.mean), (-6, 7), COLOURS[0], ha="right", va="bottom")
    for row in rest.itertuples():
        _label(axes, row.name, (row.parameters, row.mean), (22, 0), COLOURS[0], ha="left", va="center")


def _draw_peers(axes, peers):
    """Other people's networks; those that are larger than the axis at its right edge."""
    edge = axes.get_xlim()[1]
    style = {"color": COLOURS[1], "markerfacecolor": "white", "clip_on": False, "linestyle": "none", "zorder": 4}
    label = "others: last epoch if known, mostly one seed, chosen on test"
    is_inside = peers["parameters"] < edge
    inside, outside = peers[is_inside], peers[~is_inside]
    axes.plot(inside["parameters"], inside["shown"], "s", markersize=5, label=label, **style)
    axes.plot([edge] * len(outside), outside["shown"], ">", markersize=5, **style)
    axes.set_xlabel(f"{axes.get_xlabel()}; ▷: larger than fits here")


def _label(axes, text, point, offset, colour, **alignment):
    """A text beside a point, legible on lines."""
    style = {"textcoords": "offset points", "fontsize": 9.5, "color": colour, "zorder": 7}
    label = axes.annotate(text, point, offset, **style, **alignment)
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _draw_table(axes, rows):
    """The table of all points, ours in their colour."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 1, -0.5))
    rows = rows.assign(parameters=rows["parameters"].map("{:,}".format))
    rows[["last", "best"]] = rows[["last", "best"]].map("{:.2f}%".format).replace("nan%", "–")
    for column, (heading, x, alignment) in COLUMNS.items():
        axes.text(x, 0, heading, ha=alignment, va="center", color=FAINT)
        for place, (text, mark) in enumerate(zip(rows[column], rows["mark"], strict=True), 1):
            colour = COLOURS[0] if mark == OWN else COLOURS[1] if column == "mark" else INK
            axes.text(x, place, text, ha=alignment, va="center", color=colour)


def _bars(points) -> np.ndarray:
    """The lengths of the error bars below and above the means; 0 where there is one seed."""
    return np.nan_to_num(np.abs(points[["low", "high"]].to_numpy().T - points["mean"].to_numpy()))


@styled()
def plot_training_time(points):
    """Mean test accuracy against the minutes of training, a labelled point per network whose time is known.

    points: as `tables.frontier_points` makes them.
    """
    points = points[points["minutes"].notna()]
    figure = Picture(4.2)
    axes = figure.subplots()
    axes.errorbar(points["minutes"], points["mean"], _bars(points), fmt="o", capsize=3, markersize=7, color=COLOURS[0])
    for row in points.itertuples():
        top = np.nanmax([row.mean, row.high])
        place = {"textcoords": "offset points", "fontsize": 9.5, "ha": "center", "va": "bottom"}
        axes.annotate(f"{row.parameters:,}", (row.minutes, top), (0, 4), **place)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * points["minutes"].min(), 1.4 * points["minutes"].max())
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    accuracy_axis(axes, [*points["mean"], *points["low"].dropna(), *points["high"].dropna()])
    axes.set_ylabel(f"test {axes.get_ylabel()}")
    axes.set_xlabel("minutes of training on one thread, median, log scale")
    best = points.loc[points["mean"].idxmax()]
    found = f"{best['mean']:.2f}% takes {best['minutes']:.0f} minutes"
    axes.set_title(f"Training time: {found} (labels: number of parameters)")
    return figure


@styled()
def plot_hardest(images, labels, mistakes):
    """The images that most networks misclassify: "label → most common wrong prediction, number of networks".

    images: (N, 28, 28). labels: (N,). mistakes: one `{image index: predicted digit}` per network, as in the ledger.
    """
    rows = [(int(index), digit) for network in mistakes for index, digit in network.items()]
    digits = pd.DataFrame(rows, columns=["image", "digit"]).groupby("image")["digit"]
    hardest = digits.size().sort_values(ascending=False, kind="stable").head(HARDEST)
    captions = [
        f"{labels[image]} → {digits.get_group(image).mode()[0]}  {networks}" for image, networks in hardest.items()
    ]
    title = f"Images that most of {len(mistakes)} networks misclassify (label → commonest prediction, networks)"
    return tile_figure(images[hardest.index], 10, title, captions)
