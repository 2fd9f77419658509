"""Every figure of one run or a few: curves, digits, augmentation, mistakes, filters and feature maps.

Each `plot_*` function returns a `Picture`, a matplotlib figure that pyplot knows nothing of: a notebook cell that
ends with the call shows it exactly once, and no figure stays open. Inputs may be torch tensors, on any device, or
anything that numpy understands: images (N, 28, 28), uint8 or float; labels and predictions (N,), digits from 0 to 9.
Shapes that do not fit, or do not fit each other, raise ValueError.
"""

import contextlib
import functools
import io
import itertools
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from training.files import atomic_path

# The colour-blind-safe palette of Okabe and Ito, "Color Universal Design" (2008), jfly.uni-koeln.de/color:
# blue, vermillion, green, purple, black, orange, sky blue. The eighth line of a figure starts over, dashed.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"]
INK, FAINT = "#222222", "#757575"

# On matplotlib's own defaults: an opaque white page, on which dark ink reads well in GitHub's light and dark themes.
STYLE = {
    **{key: INK for key in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")},
    **{"axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6},
    **{"font.size": 9, "axes.titlesize": 12, "figure.titlesize": 12, "lines.markersize": 4},
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS),
}
WIDTH = 9.0  # inches, of every figure
GAP, CAPTION = 0.08, 0.26  # between the tiles of a grid, and for the caption above each, in tile widths
ACCURACY_TICKS = [0, 50, 80, 90, 95, 97, 98, 99, 99.5, 99.8, 100]
AXIS_LABELS = {"accuracy": "accuracy (%), stretched towards 100", "loss": "loss (mean per image)"}


@contextlib.contextmanager
def styled():
    """STYLE for the time of a `with` or of a decorated function; the caller's own style is untouched afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


class Picture(Figure):
    """A figure that shows itself as a PNG in a notebook, with or without pyplot and `%matplotlib inline`."""

    # Under STYLE too, because matplotlib makes the ticks when it first draws, and asks for the page when it saves.
    draw = styled()(Figure.draw)
    savefig = styled()(Figure.savefig)

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def save_figure(figure, path):
    """Write `figure` to `path` as a PNG, whole or not at all, and return the path. OSError where writing fails."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _array(values):
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
    return np.asarray(values)


def checked(**inputs):
    """Inputs, `name=(values, dimensions)`, as arrays that have those dimensions and one common length."""
    arrays = {name: _array(values) for name, (values, _) in inputs.items()}
    for name, array in arrays.items():
        if array.ndim != inputs[name][1]:
            raise ValueError(f"{name} must have {inputs[name][1]} dimensions, but its shape is {array.shape}")
    if len({len(array) for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"lengths differ: {shapes}")
    return list(arrays.values())


def _classes(labels, predictions):
    """Labels and predictions as arrays of digits, both (N,) with N > 0."""
    labels, predictions = checked(labels=(labels, 1), predictions=(predictions, 1))
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not len(array) or not np.isin(array, range(10)).all():
            raise ValueError(f"{name} must be one or more digits from 0 to 9")
    return labels.astype(int), predictions.astype(int)


def _stretch(accuracy):
    """Spread out the region near 100% as the log of the error would; the 0.1 keeps 100% itself on the page."""
    return -np.log10(np.maximum(100.1 - np.asarray(accuracy), 1e-9))


def _unstretch(height):
    return 100.1 - 10.0 ** -np.asarray(height)


def accuracy_axis(axes, values, axis="y"):
    """Give `axes` an axis on which 60% and 99.4% are both readable, and that holds all `values`, in percent."""
    low, high = _stretch([min(98, *values), max(99.8, *values)])
    getattr(axes, f"set_{axis}scale")("function", functions=(_stretch, _unstretch))
    getattr(axes, f"set_{axis}ticks")(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    getattr(axes, f"set_{axis}lim")(*_unstretch([low - 0.1, high + 0.1]))
    getattr(axes, f"set_{axis}label")(AXIS_LABELS["accuracy"])


def draw_threshold(axes, threshold, axis="y"):
    """A dashed line across `axes` at an accuracy in percent, named; nothing for None."""
    if threshold is None:
        return
    line = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}
    (axes.axhline if axis == "y" else axes.axvline)(threshold, **line)
    transform = axes.get_yaxis_transform() if axis == "y" else axes.get_xaxis_transform()
    place = (0.01, threshold) if axis == "y" else (threshold, 0.01)
    axes.annotate(f"{threshold:g}%", place, (2, 2), xycoords=transform, textcoords="offset points")


def _draw_lines(axes, runs, threshold):
    """Draw lines `{name: (history, key)}` against the epoch, each with its last value written at its end."""
    empty = [name for name, (history, _) in runs.items() if not history]
    if empty or not runs:
        raise ValueError(f"nothing to plot: no epochs in {', '.join(empty) or 'an empty dict of runs'}")
    epochs, values, lines = [], [], []
    for name, (history, key) in runs.items():
        points = np.array([(row["epoch"], row[key]) for row in history], dtype=float)  # None becomes NaN
        epochs += list(points[:, 0])
        points = points[np.isfinite(points[:, 1])]
        values += list(points[:, 1])
        if len(points):
            lines += axes.plot(*points.T, label=name, marker="o" if len(points) <= 30 else None)
    quantity = key.split("_")[-1]
    axes.set(xlabel="epoch", ylabel=AXIS_LABELS.get(quantity, key.replace("_", " ")))
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if quantity == "accuracy":
        accuracy_axis(axes, values if threshold is None else [*values, threshold])
        draw_threshold(axes, threshold)
    elif quantity in ("loss", "rate") and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    _label_ends(axes, lines, "{:.2f}%" if quantity == "accuracy" else "{:.4g}", max(epochs))


def spread(heights, figure):
    """Heights of labels, in fractions of the axes, pushed apart so that no two lines of text overlap."""
    gap = 1.5 * STYLE["font.size"] / (72 * 0.75 * figure.get_figheight())  # a line of text, in axes heights
    upwards = sorted(range(len(heights)), key=lambda place: heights[place])
    heights = list(heights)
    for below, place in itertools.pairwise(upwards):
        heights[place] = max(heights[place], heights[below] + gap)
    for steps, place in enumerate(reversed(upwards)):  # and back down, where that led past the top
        heights[place] = min(heights[place], 1 - steps * gap)
    return heights


def _label_ends(axes, lines, form, last_epoch):
    """Write name and last value of each line to the right of `axes`, pushed apart where they would overlap."""
    to_axes = axes.transScale + axes.transLimits
    heights = spread([to_axes.transform(line.get_xydata()[-1])[1] for line in lines], axes.figure)
    for line, height in zip(lines, heights, strict=True):
        epoch, value = line.get_xydata()[-1]
        early = f" (epoch {epoch:.0f})" if epoch < last_epoch else ""
        leader = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "relpos": (0, 0.5)}
        place = {"xytext": (1.04, height), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        text = f"{line.get_label()} {form.format(value)}{early}"
        axes.annotate(text, (epoch, value), **place, arrowprops=leader)


@styled()
def plot_curves(history, title=None, threshold=99.4, eval_name="test", others=None):
    """Loss and accuracy of one run, train and test, each line with its last value written beside it.

    history: a list of dicts, one per epoch: epoch (from 1), train_loss, train_accuracy, eval_loss, eval_accuracy;
    losses are means per image, accuracies in percent, test values None in epochs that were not evaluated.
    threshold: percent, a line in the accuracy panel, or None. eval_name: "validation", say, for another split.
    others: `{name: history}` of runs to compare with, drawn beside it without their training lines, or None.
    Raises ValueError for an empty history.
    """
    figure = Picture(figsize=(WIDTH, 3.8), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        lines = {"train": (history, f"train_{quantity}"), eval_name: (history, f"test_{quantity}")}
        lines |= {name: (other, f"test_{quantity}") for name, other in (others or {}).items()}
        _draw_lines(axes, lines, threshold)
    epoch, accuracy = history[-1]["epoch"], history[-1]["eval_accuracy"]
    result = "" if accuracy is None else f": {accuracy:.2f}% {eval_name} accuracy"
    figure.suptitle(title or f"Epoch {epoch}{result}", x=0.01, ha="left")
    return figure


@styled()
def plot_many_curves(histories, key="eval_accuracy", threshold=99.4, title=None, eval_name="test"):
    """One quantity of several runs over the epochs, each line named at its end.

    histories: `{name: history}`, histories as for `plot_curves`. key: the entry of an epoch to draw, KeyError where
    there is none. threshold: percent or None, for accuracies only. eval_name: as for `plot_curves`. Raises ValueError
    for no run or no epoch.
    """
    figure = Picture(figsize=(WIDTH, max(4.2, 1 + 0.28 * len(histories))), layout="constrained")
    axes = figure.subplots()
    _draw_lines(axes, {name: (history, key) for name, history in histories.items()}, threshold)
    measured_on = {"train": "train", "test": eval_name}.get(key.split("_")[0])
    if measured_on:
        axes.set_ylabel(f"{measured_on} {axes.get_ylabel()}")
    axes.set_title(title or f"{key.replace('_', ' ').capitalize()} by run")
    return figure


@styled()
def plot_confusion(labels, predictions):
    """How often each digit was taken for which: a 10 × 10 matrix of counts; only the mistakes are coloured."""
    labels, predictions = _classes(labels, predictions)
    counts = np.bincount(10 * labels + predictions, minlength=100).reshape(10, 10)
    mistakes = counts - np.diag(counts.diagonal())  # beside a thousand right ones, three mistakes would not show
    figure = Picture(figsize=(WIDTH, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes, "Oranges", vmin=0, vmax=1.6 * max(mistakes.max(), 1), aspect="auto")  # dark ink stays legible
    for (row, column), count in np.ndenumerate(counts):
        colour = FAINT if row == column or not count else INK
        axes.text(column, row, count or "·", color=colour, ha="center", va="center")
    axes.set(xlabel="prediction", ylabel="label", xticks=range(10), yticks=range(10))
    axes.set_title(f"Mistakes: {mistakes.sum()} of {len(labels):,} digits")
    axes.grid(False)
    return figure


@styled()
def plot_class_accuracy(labels, predictions):
    """Accuracy of each digit against that of all digits, in percent, with its mistakes counted below.

    A digit that `labels` lacks is left out.
    """
    labels, predictions = _classes(labels, predictions)
    right = labels == predictions
    digits, totals = np.unique(labels, return_counts=True)
    wrong = np.bincount(labels[~right], minlength=10)[digits]
    accuracies, overall = 100 * (1 - wrong / totals), 100 * right.mean()
    figure = Picture(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.subplots()
    accuracy_axis(axes, accuracies)
    axes.axhline(overall, color=FAINT, linewidth=1)
    axes.vlines(digits, overall, accuracies, color=COLOURS[0])
    axes.plot(digits, accuracies, "o", color=COLOURS[0], markersize=7)
    rows = zip(digits, accuracies, wrong, totals, strict=True)
    axes.set_xticks(digits, [f"{d}\n{accuracy:.2f}%\n{w} of {n}" for d, accuracy, w, n in rows])
    axes.set(xlabel="digit", xlim=(-0.6, 9.6))
    axes.set_title(f"Accuracy of each digit and its mistakes; the line is all digits, {overall:.2f}%")
    return figure


def _grid_height(count, columns, captioned=False):
    """Height, in inches, of `count` tiles in rows of `columns` across the whole width of a figure."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    return math.ceil(count / columns) * (1 + GAP + CAPTION * captioned) * WIDTH / (columns * (1 + GAP))


def _draw_tiles(axes, tiles, columns, captions=None, cmap="gray", norm=None):
    """Draw tiles (N, H, W) row by row, all on one scale of brightness.

    They share one Axes, whose unit is a tile: hundreds of Axes would take long to lay out.
    """
    norm, pitch = norm or Normalize(), 1 + GAP + CAPTION * bool(captions)
    norm.autoscale_None(tiles)
    for index, tile in enumerate(tiles):
        x, y = index % columns * (1 + GAP), (index // columns + 1) * pitch - 1
        axes.imshow(tile, cmap, norm, extent=(x, x + 1, y + 1, y))
        if captions:
            axes.text(x + 0.5, y - 0.03, captions[index], ha="center", va="bottom", fontsize=8.5)
    rows = max(1, math.ceil(len(tiles) / columns))
    axes.set(xlim=(0, columns * (1 + GAP) - GAP), ylim=(rows * pitch, 0), anchor="NW")
    axes.set_axis_off()


def tile_figure(tiles, columns, title, captions=None, **colours):
    """A figure that is one grid of tiles (N, H, W) under a title."""
    height = 0.4 + _grid_height(len(tiles), columns, bool(captions))
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    _draw_tiles(axes, tiles, columns, captions, **colours)
    axes.set_title(title)
    return figure


@styled()
def plot_digits(images, labels, columns=10):
    """A grid of digits, each under its label."""
    images, labels = checked(images=(images, 3), labels=(labels, 1))
    return tile_figure(images, columns, f"{len(images)} digits and their labels", [str(i) for i in labels])


@styled()
def plot_augmentation(images, augmented, columns=10):
    """The first `columns` digits above what augmentation made of them, a row for each of V random draws.

    augmented: (V, N, 28, 28), or (N, 28, 28) for one draw, uint8 or float; N > 0.
    """
    (images,), augmented = checked(images=(images, 3)), _array(augmented)
    draws = augmented if augmented.ndim == 4 else augmented[None]
    if not len(images) or draws.shape[1:] != images.shape:
        raise ValueError(f"augmented {augmented.shape} does not belong to images {images.shape}")
    # Each from its own range to 0-1, so that bytes and normalised floats can share one scale of brightness.
    rows = [np.interp(array, (array.min(), array.max()), (0, 1)) for array in (images[None], draws)]
    tiles = np.concatenate(rows)[:, :columns]
    title = "Digits as they are, and as the network meets them in training"
    figure = tile_figure(tiles.reshape(-1, *images.shape[1:]), tiles.shape[1], title)
    for row, name in enumerate(["original", *(f"draw {draw}" for draw in range(1, len(tiles)))]):
        figure.axes[0].text(-0.05, row * (1 + GAP) + 0.5 + GAP, name, ha="right", va="center")
    return figure


@styled()
def plot_mistakes(images, labels, probabilities, limit=None, columns=10):
    """Every misclassified digit, the most confident mistake first: "label → prediction  confidence".

    probabilities: (N, 10), rows of a softmax: the prediction is the largest, and the confidence its value, written
    in percent. limit: show only that many. Raises ValueError for logits.
    """
    images, labels, probabilities = checked(images=(images, 3), labels=(labels, 1), probabilities=(probabilities, 2))
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-6)).all():
        raise ValueError("probabilities must lie between 0 and 1: apply softmax to the logits first")
    predictions, confidences = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predictions != labels)
    shown = wrong[np.argsort(-confidences[wrong], kind="stable")][:limit]
    captions = [f"{labels[i]} → {predictions[i]}  {100 * confidences[i]:.0f}%" for i in shown]
    title = f"Mistakes: {len(wrong)} of {len(images):,} digits"
    title += f", the {len(shown)} most confident shown" if len(shown) < len(wrong) else ""
    title += " (label → prediction, confidence)" if captions else ""
    return tile_figure(images[shown], columns, title, captions)


@styled()
def plot_filters(conv):
    """The filters of a first layer, `torch.nn.Conv2d` with weights (out, 1, k, k), on one scale centred at 0."""
    if not isinstance(conv, torch.nn.Conv2d) or conv.in_channels != 1:
        raise ValueError(f"filters can be drawn for a Conv2d with one input channel, not for {conv}")
    weights = _array(conv.weight)[:, 0]
    title = f"{len(weights)} filters of {' × '.join(map(str, conv.kernel_size))} in the first layer"
    figure = tile_figure(weights, min(len(weights), 8), title, cmap="RdBu_r", norm=CenteredNorm())
    figure.colorbar(figure.axes[0].images[0], label="weight", shrink=0.9)
    return figure


@styled()
def plot_feature_maps(model, image, layers, normalize, columns=10):
    """What the named layers make of one digit: all their channels, each layer on its own scale of brightness.

    image: uint8 (28, 28). layers: names as in `model.named_modules()`, of layers that give (1, C, H, W).
    normalize: the caller's function from uint8 (N, 28, 28) to the model's float input (N, 1, 28, 28).
    The model runs in evaluation mode; its hooks and modes are afterwards as before. Raises ValueError for a layer
    that the model lacks, or that does not give maps.
    """
    image = torch.as_tensor(image)
    if image.ndim != 2:
        raise ValueError(f"image must have 2 dimensions, but its shape is {tuple(image.shape)}")
    blocks = {"input": _array(image)[None], **_feature_maps(model, normalize(image[None]), layers)}
    heights = [_grid_height(len(maps), columns) for maps in blocks.values()]
    figure = Picture(figsize=(WIDTH, 0.4 + sum(heights) + 0.3 * len(blocks)), layout="constrained")
    panels = figure.subplots(len(blocks), height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, maps) in zip(panels, blocks.items(), strict=True):
        _draw_tiles(axes, maps, columns, cmap="gray" if name == "input" else "viridis")
        size = " × ".join(map(str, maps.shape))
        axes.set_title(f"{name}: {size}, from {maps.min():.3g} (dark) to {maps.max():.3g} (bright)", fontsize=10)
    figure.suptitle("One digit on its way through the network", x=0.01, ha="left")
    return figure


def _feature_maps(model, batch, layers):
    """Outputs of the named layers for a batch of one image, `{name: array (C, H, W)}` in the order asked for."""
    modules = {name: module for name, module in model.named_modules() if name}
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(f"no layer {', '.join(map(repr, unknown))}; the model has {', '.join(modules)}")
    outputs = {}

    def keep(name, module, inputs, output):
        outputs[name] = output.detach().clone()  # a ReLU in place would change what it is given

    with contextlib.ExitStack() as restored, torch.no_grad():
        for module in model.modules():  # one by one: model.train() would also wake layers that were frozen
            restored.callback(setattr, module, "training", module.training)
        for name in layers:
            restored.enter_context(modules[name].register_forward_hook(functools.partial(keep, name)))
        model.eval()
        device = next((parameter.device for parameter in model.parameters()), batch.device)
        model(batch.to(device))
    for name in layers:
        if name not in outputs or outputs[name].ndim != 4:
            raise ValueError(f"layer {name!r} gives no maps (1, channels, height, width) in this model")
    return {name: _array(outputs[name])[0] for name in layers}
