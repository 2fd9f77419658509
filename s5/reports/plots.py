"""Figures of many runs: accuracy against size, the spread over seeds, and the images most networks get wrong.

All functions return a `Picture`, as those of `s5.analysis.plots` do.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from s5.analysis.style import (
    COLOURS,
    FAINT,
    INK,
    WIDTH,
    Picture,
    accuracy_axis,
    checked,
    draw_threshold,
    styled,
    tile_figure,
)
from s5.experiments.ledger import mean_loss
from s5.reports.goals import BUDGETS
from s5.training.command_line import plural

FRONTIER_TICKS = [96, 97, 98, 98.5, 99, 99.2, 99.4, 99.5, 99.6, 99.7, 99.8]  # percent
KEY_COLUMNS = {  # of the peers' table: position in the axes, alignment, text
    "": (0.015, "right", lambda number, peer: number),
    "others, as they report it": (0.03, "left", lambda number, peer: peer.name),
    "parameters": (0.44, "right", lambda number, peer: f"{peer.parameters:,}"),
    "last epoch": (0.54, "right", lambda number, peer: _percent(peer.last)),
    "best epoch": (0.64, "right", lambda number, peer: _percent(peer.best)),
    "how it was made": (0.665, "left", lambda number, peer: peer.made),
}
SEVERAL_BUDGETS = 5  # times the parameters, from which on they are drawn on a logarithmic scale
LOSS_TICKS = [digit / scale for scale in (1000, 100, 10, 1) for digit in (1, 2, 3, 5)]
MINUTE_TICKS = [digit * scale for scale in (0.1, 1, 10, 100) for digit in (1, 2, 3, 5)]
OFFSET = {"textcoords": "offset points", "fontsize": 9.5}  # of a label
ROW = 0.19  # inches, a row of that table
SIDES = [  # of a label at its point, the preferred first: offset in points, horizontal and vertical alignment
    ((0, 5), "center", "bottom"),
    ((-3, 4), "right", "bottom"),
    ((-8, 0), "right", "center"),
    ((8, 0), "left", "center"),
    ((0, -5), "center", "top"),
    ((3, -4), "left", "top"),
    ((-3, -4), "right", "top"),
    ((3, 4), "left", "bottom"),
    ((10, -10), "left", "top"),
    ((10, 10), "left", "bottom"),
    ((-10, 12), "right", "bottom"),
    ((0, 18), "center", "bottom"),
    ((0, 26), "center", "bottom"),
    ((6, 24), "left", "bottom"),
    ((0, -18), "center", "top"),
]
FAR = 14.5  # points: a label whose offset is longer is joined to its point


@styled()
def plot_frontier(points, peers=None, threshold=99.4, title=None, split="test"):
    """Mean accuracy against the number of parameters; other people's networks are numbered points with a key.

    A line joins the networks that are more accurate than all smaller ones. Vertical lines are the budgets.

    points: DataFrame with name, split, parameters, deskewed, seeds, mean, low, high (percent; NaN for a single seed).
    peers: DataFrame with name, parameters, best and last (percent, NaN if unknown) and made (how), or None. Peers that
    are much larger than all points are at the right edge. split: which points to draw; ValueError if there are none.
    """
    points = points[points["split"] == split].sort_values(["parameters", "mean"], ascending=[True, False])
    if points.empty:
        raise ValueError(f"nothing to plot: no points of the {split} split")
    on_front = points["mean"] > points["mean"].cummax().shift(fill_value=-np.inf)
    front, rest = points[on_front], points[~on_front]
    peers = [] if peers is None else list(peers.sort_values("parameters").itertuples(index=False))
    shown = [peer.best if np.isnan(peer.last) else peer.last for peer in peers]

    key_height = ROW * (len(peers) + 2) if peers else 0.01
    figure = Picture(figsize=(WIDTH, 5.4 + key_height), layout="constrained")
    axes, key = figure.subplots(2, 1, height_ratios=[5.4, key_height])
    _frontier_axes(axes, points, shown)
    axes.set_ylabel(f"{split} {axes.get_ylabel()}")
    axes.set_title(title or _finding(front, split))
    draw_threshold(axes, threshold)

    label = "this project: mean over n seeds, last epoch, with 95% t-interval"
    style = {"color": COLOURS[0], "zorder": 5, "capsize": 3}
    axes.errorbar(front["parameters"], front["mean"], _bars(front), fmt="o-", markersize=7, label=label, **style)
    axes.errorbar(rest["parameters"], rest["mean"], _bars(rest), fmt="o", markersize=4, **style)
    if (deskewed := points[points["deskewed"]]).size:
        style = {"color": COLOURS[0], "markerfacecolor": "white", "linestyle": "none", "zorder": 6}
        label = "hollow: the images are deskewed first"
        axes.plot(deskewed["parameters"], deskewed["mean"], "o", markersize=6, label=label, **style)
    texts = [
        (row.parameters, row.mean, f"{row.name}\n{row.mean:.2f}% (n={row.seeds})", COLOURS[0])
        for row in pd.concat([front, rest]).itertuples(index=False)
    ]
    edge = axes.get_xlim()[1]
    style = {"color": COLOURS[1], "markerfacecolor": "white", "clip_on": False, "linestyle": "none", "zorder": 4}
    for number, (peer, accuracy) in enumerate(zip(peers, shown, strict=True), 1):
        x, marker = (peer.parameters, "s") if peer.parameters < edge else (edge, ">")
        label = "others: last epoch if known, mostly one seed (numbers: see below)" if number == 1 else None
        axes.plot(x, accuracy, marker, markersize=5, label=label, **style)
        texts.append((x, accuracy, str(number), COLOURS[1]))
    if peers and peers[-1].parameters >= edge:
        axes.set_xlabel(f"{axes.get_xlabel()}; ▷: larger than fits here")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right", framealpha=1, edgecolor="white")
    _draw_key(key, peers)
    _label_points(axes, texts, points, front, threshold)  # last: it depends on the layout
    return figure


def _bars(points) -> np.ndarray:
    """The lengths of the error bars below and above the means; 0 where there is one seed."""
    return np.nan_to_num(np.abs(points[["low", "high"]].to_numpy().T - points["mean"].to_numpy()))


@styled()
def plot_training_time(points, title=None):
    """Mean test accuracy against the minutes of training, a labelled point per network.

    points: DataFrame with name, parameters, minutes (NaN: left out), seeds, mean, low and high (percent; NaN for a
    single seed). Raises ValueError if there are none.
    """
    points = points[points["minutes"].notna()]
    if points.empty:
        raise ValueError("nothing to plot: no points")
    figure = Picture(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(points["minutes"], points["mean"], _bars(points), fmt="o", capsize=3, markersize=7, color=COLOURS[0])
    for row in points.itertuples():
        top = np.nanmax([row.mean, row.high])
        axes.annotate(f"{row.parameters:,}", (row.minutes, top), (0, 4), ha="center", va="bottom", **OFFSET)
    low, high = points["minutes"].min(), points["minutes"].max()
    axes.set_xscale("log")
    axes.set_xlim(0.7 * low, 1.4 * high)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    ticks = [tick for tick in MINUTE_TICKS if 0.7 * low <= tick <= 1.4 * high]
    axes.set_xticks(ticks)
    accuracy_axis(axes, [*points["mean"], *points["low"].dropna(), *points["high"].dropna()])
    axes.set_ylabel(f"test {axes.get_ylabel()}")
    axes.set_xlabel("minutes of training on one thread, median, log scale")
    best = points.loc[points["mean"].idxmax()]
    found = f"Training time: {best['mean']:.2f}% takes {best['minutes']:.0f} minutes (labels: number of parameters)"
    axes.set_title(title or found)
    return figure


def _frontier_axes(axes, points, accuracies):
    """Set the scales, limits and ticks; the limits contain the points, their intervals and `accuracies`."""
    sizes = [*points["parameters"], *BUDGETS]
    _budget_axis(axes)
    axes.set_xlim(0.5 * min(sizes), 2.2 * max(sizes))
    values = points[["mean", "low", "high"]].to_numpy().ravel()
    accuracy_axis(axes, [*values[np.isfinite(values)], *accuracies], limits=(98.75, 99.65))
    low, high = axes.get_ylim()
    ticks = [tick for tick in FRONTIER_TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _budget_axis(axes):
    """Parameters on a logarithmic scale, with a line for each budget."""
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#BBBBBB", linewidth=0.8)
    axes.set_xlabel("parameters; the vertical lines are the budgets")


def _finding(front, split):
    """A title such as "Mean test accuracy: 98.85% with 970 parameters, 99.61% with 19,074"."""
    (_, first), *others = front.iterrows()
    text = f"Mean {split} accuracy: {first['mean']:.2f}% with {first['parameters']:,} parameters"
    return text + "".join(f", {last['mean']:.2f}% with {last['parameters']:,}" for _, last in others[-1:])


def _percent(accuracy):
    return "–" if np.isnan(accuracy) else f"{accuracy:.2f}%"


def _draw_key(axes, peers):
    """The table of the numbered points."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(peers) + 1.5, -0.5))
    for heading, (x, alignment, write) in KEY_COLUMNS.items() if peers else ():
        axes.text(x, 0, heading, ha=alignment, va="center", color=FAINT)
        for number, peer in enumerate(peers, 1):
            colour = COLOURS[1] if heading == "" else INK
            axes.text(x, number, write(number, peer), ha=alignment, va="center", color=colour)


def _label_points(axes, texts, points, front, threshold):
    """Write texts (x, y, text, colour) beside their points, where they cover least of points, lines and other texts."""
    axes.figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    corners = to_pixels(front[["parameters", "mean"]].to_numpy())
    line = [start + (end - start) * t for start, end in pairwise(corners) for t in np.linspace(0, 1, 30)]
    bars = {row[:2]: row[2:] for row in points[["parameters", "mean", "low", "high"]].dropna().itertuples(index=False)}
    taken = [axes.get_legend().get_window_extent()]
    if threshold is not None:
        height = to_pixels((1, threshold))[1]
        taken.append(Bbox([(axes.bbox.x0, height), (axes.bbox.x1, height)]).padded(2))
    taken += [Bbox([point, point]).padded(3) for point in line]
    taken += [Bbox(to_pixels([(x, low), (x, high)])).padded(4) for (x, _), (low, high) in bars.items()]
    taken += [Bbox(to_pixels([(x, y), (x, y)])).padded(5) for x, y, *_ in texts]
    for x, y, text, colour in texts:
        label = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", color=colour, fontsize=9.5, zorder=5)
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        low, high = bars.get((x, y), (y, y))
        anchors = {"bottom": (x, high), "center": (x, y), "top": (x, low)}
        boxes = [_place(label, anchors, *side) for side in SIDES]
        covered = [
            sum(_common_area(box, other) for other in taken)
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            else np.inf
            for box in boxes
        ]
        side = SIDES[np.argmin(covered)]
        taken.append(_place(label, anchors, *side).padded(3))
        if np.hypot(*side[0]) > FAR:  # a line to the point, which else could be taken for another one's
            line = {"arrowstyle": "-", "linestyle": ":", "color": colour, "shrinkA": 0, "shrinkB": 2}
            axes.annotate("", label.xy, label.xyann, textcoords="offset points", arrowprops=line, zorder=5)


def _place(label, anchors, offset, horizontal, vertical):
    """Put a label on one side of its point; return the box that it takes there, in pixels."""
    label.xy, label.xyann = anchors[vertical], offset
    label.set(ha=horizontal, va=vertical)
    return label.get_window_extent()


def _common_area(box, other):
    """The area that two boxes share, in square pixels."""
    common = Bbox.intersection(box, other)
    return 0 if common is None else common.width * common.height


@styled()
def plot_seeds(accuracies, threshold=99.4, title=None, eval_name="validation"):
    """One row per variant, one dot per seed and a line at the mean.

    accuracies: `{name: accuracies in percent, one per seed}`. Raises ValueError for no variant or one without a seed.
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
    names = [f"{name}  {np.mean(values):.2f}% (n={len(values)})" for name, values in accuracies.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5 + (0.6 if threshold else 0), -0.5)  # room for the threshold's label
    axes.set_xlabel(f"{eval_name} {axes.get_xlabel()}")
    axes.set_title(title or "Accuracy of each seed (dots) and mean over n seeds (lines)")
    return figure


@styled()
def plot_search(groups, title=None):
    """Validation loss against parameters: a dot per group of trials, and the front of those with the most epochs.

    groups: lists of trials, each of one network, recipe and number of epochs. Raises ValueError if there are none.
    """
    if not groups:
        raise ValueError("nothing to plot: no trials")
    points = pd.DataFrame(
        {
            "name": group[0]["network"],
            "parameters": group[0]["parameters"],
            "epochs": group[0]["epochs"],
            "loss": mean_loss(group),
        }
        for group in groups
    ).sort_values(["parameters", "loss"])
    figure = Picture(figsize=(WIDTH, 4.5), layout="constrained")
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
    axes.annotate(best["name"], (best["parameters"], best["loss"]), (0, -7), ha=side, va="top", **OFFSET)
    axes.set_yscale("log")
    axes.margins(x=0.08, y=0.12)
    axes.set_yticks(_loss_ticks(*axes.get_ylim()))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("validation loss (mean cross-entropy), log scale")
    if points["parameters"].max() > SEVERAL_BUDGETS * points["parameters"].min():
        _budget_axis(axes)
    else:
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("parameters")
    axes.set_title(title or "Validation loss against size, in each round of a search")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _loss_ticks(low, high):
    """Round losses from `low` to `high`, for a logarithmic axis."""
    ticks = [tick for tick in LOSS_TICKS if low <= tick <= high]
    if len(ticks) < 2:  # all losses are nearly the same
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks


@styled()
def plot_hardest(images, labels, mistakes, limit=30, columns=10):
    """The images that most networks misclassify: "label → most common wrong prediction, number of networks".

    images: (N, 28, 28). labels: (N,). mistakes: one `{image index: predicted digit}` per network; the indices may be
    strings, as in the ledger. Raises ValueError for no networks or an index that is out of range.
    """
    images, labels = checked(images=(images, 3), labels=(labels, 1))
    if not mistakes:
        raise ValueError("nothing to plot: no networks")
    predictions = {}
    for network in mistakes:
        for index, digit in network.items():
            predictions.setdefault(int(index), []).append(digit)
    if predictions and max(predictions) >= len(images):
        raise ValueError(f"image {max(predictions)} is listed as a mistake, but there are {len(images)} images")
    hardest = sorted(predictions, key=lambda index: (-len(predictions[index]), index))[:limit]
    captions = [
        f"{labels[index]} → {max(set(predictions[index]), key=predictions[index].count)}  {len(predictions[index])}"
        for index in hardest
    ]
    title = f"Images that most of {len(mistakes)} networks misclassify (label → commonest prediction, networks)"
    return tile_figure(images[hardest], columns, title, captions)
