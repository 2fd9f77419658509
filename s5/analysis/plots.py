"""Figures of one run or a few: curves, digits, augmentation, mistakes, filters and feature maps.

Each `plot_*` function returns a `Picture`, a matplotlib figure outside pyplot: a notebook cell that ends with the call
displays it once, and no figure stays open. Inputs are NumPy arrays or tensors on the CPU: images (N, 28, 28), uint8 or
float; labels and predictions (N,), from 0 to 9, whose names are `classes`, as `MnistData.classes`.
"""

import itertools
import math

import numpy as np
import pandas as pd
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.ticker import MaxNLocator
from torch import nn

from s5.analysis.inspection import run_observed
from s5.analysis.style import (
    COLOURS,
    FAINT,
    INK,
    STYLE,
    WIDTH,
    Picture,
    accuracy_axis,
    draw_threshold,
    loss_axis,
    styled,
)
from s5.training.mnist import DIGITS

MAX_MISTAKES = 100  # that are shown: on harder data than MNIST there are many more
GAP, CAPTION = 0.08, 0.26  # between the tiles of a grid, and for the caption above each, in tile widths


@styled()
def plot_curves(history, title=None, threshold=99.4):
    """Loss and accuracy of one run on the training and test images, each line labelled with its last value.

    history: a list of dicts, one per epoch: epoch (from 1), train_loss, train_accuracy, eval_loss, eval_accuracy;
    losses are means per image, accuracies in percent, eval_* is None in epochs without evaluation.
    threshold: an accuracy in percent that is drawn as a line, or None.
    """
    figure = Picture(3.8)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_lines(axes, history, quantity, threshold)
    epoch, accuracy = history[-1]["epoch"], history[-1]["eval_accuracy"]
    result = "" if accuracy is None else f": {accuracy:.2f}% test accuracy"
    figure.suptitle(title or f"Epoch {epoch}{result}", x=0.01, ha="left")
    return figure


def _draw_lines(axes, history, quantity, threshold):
    """Draw the losses or accuracies of a history by epoch, each labelled with its last value."""
    values, lines = [], []
    for name, key in (("train", f"train_{quantity}"), ("test", f"eval_{quantity}")):
        points = pd.DataFrame(history)[["epoch", key]].astype(float).dropna().to_numpy()
        values += list(points[:, 1])
        if len(points):
            lines += axes.plot(*points.T, label=name, marker="o" if len(points) <= 30 else None)
    axes.set(xlabel="epoch", ylabel="loss (mean per image)", xlim=(0.5, len(history) + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if quantity == "accuracy":
        accuracy_axis(axes, values if threshold is None else [*values, threshold])
        draw_threshold(axes, threshold)
    else:
        loss_axis(axes)
    label_ends(axes, lines, "{:.2f}%" if quantity == "accuracy" else "{:.4g}", len(history))


def label_ends(axes, lines, form, last_epoch):
    """Write the name and last value of each line to the right of `axes`, without overlaps."""
    to_axes = axes.transScale + axes.transLimits
    heights = spread([to_axes.transform(line.get_xydata()[-1])[1] for line in lines], axes.figure)
    for line, height in zip(lines, heights, strict=True):
        epoch, value = line.get_xydata()[-1]
        early = f" (epoch {epoch:.0f})" if epoch < last_epoch else ""
        leader = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "relpos": (0, 0.5)}
        position = {"xytext": (1.04, height), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        text = f"{line.get_label()} {form.format(value)}{early}"
        axes.annotate(text, (epoch, value), **position, arrowprops=leader)


def spread(heights, figure):
    """Heights of labels, in fractions of the axes, moved apart so that no two lines of text overlap."""
    gap = 1.5 * STYLE["font.size"] / (72 * 0.75 * figure.get_figheight())  # a line of text, in axes heights
    upwards = sorted(range(len(heights)), key=lambda index: heights[index])
    heights = list(heights)
    for below, index in itertools.pairwise(upwards):
        heights[index] = max(heights[index], heights[below] + gap)
    for steps, index in enumerate(reversed(upwards)):  # back down, if that exceeded the top
        heights[index] = min(heights[index], 1 - steps * gap)
    return heights


@styled()
def plot_confusion(labels, predictions, classes=DIGITS):
    """The confusion matrix, 10 × 10 counts; only the mistakes are coloured."""
    counts = np.bincount(10 * np.asarray(labels) + np.asarray(predictions), minlength=100).reshape(10, 10)
    # Without the diagonal: three mistakes would be invisible next to a thousand correct predictions.
    mistakes = counts - np.diag(counts.diagonal())
    figure = Picture(5)
    axes = figure.subplots()
    brightest = 1.6 * max(mistakes.max(), 1)  # of which dark text stays legible
    axes.imshow(mistakes, "Oranges", vmin=0, vmax=brightest, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = FAINT if row == column or not count else INK
        axes.text(column, row, count or "·", color=colour, ha="center", va="center")
    axes.set(xlabel="prediction", ylabel="label")
    axes.set_xticks(range(10), classes)
    axes.set_yticks(range(10), classes)
    axes.set_title(f"Mistakes: {mistakes.sum()} of {counts.sum():,} images")
    axes.grid(False)
    return figure


@styled()
def plot_class_accuracy(labels, predictions, classes=DIGITS):
    """The accuracy of each class compared with the overall accuracy, in percent, and its number of mistakes."""
    correct = np.asarray(labels) == np.asarray(predictions)
    groups = pd.Series(correct).groupby(np.asarray(labels))
    places, totals, wrong = groups.mean().index, groups.size(), groups.size() - groups.sum()
    accuracies, overall = 100 * (1 - wrong / totals), 100 * correct.mean()
    figure = Picture(3.8)
    axes = figure.subplots()
    accuracy_axis(axes, accuracies)
    axes.axhline(overall, color=FAINT, linewidth=1)
    axes.vlines(places, overall, accuracies, color=COLOURS[0])
    axes.plot(places, accuracies, "o", color=COLOURS[0], markersize=7)
    rows = zip(places, accuracies, wrong, totals, strict=True)
    axes.set_xticks(places, [f"{classes[place]}\n{accuracy:.2f}%\n{w} of {n}" for place, accuracy, w, n in rows])
    axes.set(xlabel="class", xlim=(-0.6, 9.6))
    axes.set_title(f"Accuracy and mistakes of each class; the line is the overall accuracy, {overall:.2f}%")
    return figure


@styled()
def plot_digits(images, labels, columns=10, title="Images and their labels", classes=DIGITS):
    """A grid of images with their labels above them."""
    count = f" ({len(images)})" if len(images) > 1 else ""
    return tile_figure(images, columns, title + count, [classes[label] for label in labels])


@styled()
def plot_augmentation(images, augmented, names=None):
    """Digits and, below them, their augmented versions, (V, N, 28, 28): one row for each of V random draws or names."""
    # Both are mapped to 0–1, so that uint8 and normalised floats share one scale of brightness.
    rows = [np.interp(part, (part.min(), part.max()), (0, 1)) for part in map(np.asarray, (images[None], augmented))]
    tiles = np.concatenate(rows)
    figure = tile_figure(tiles.reshape(-1, *tiles.shape[2:]), len(images), "Digits before and after augmentation")
    names = names or [f"draw {draw}" for draw in range(1, len(tiles))]
    for row, name in enumerate(["original", *names]):
        figure.axes[0].text(-0.05, row * (1 + GAP) + 0.5 + GAP, name, ha="right", va="center")
    return figure


@styled()
def plot_mistakes(images, labels, probabilities, classes=DIGITS):
    """The misclassified images, at most 100, captioned "label → prediction  confidence", the most confident first.

    probabilities: (N, 10), from a softmax; the confidence is the largest one, in percent.
    """
    images, labels, probabilities = map(np.asarray, (images, labels, probabilities))
    predictions, confidences = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predictions != labels)
    wrong = wrong[np.argsort(-confidences[wrong], kind="stable")]
    shown = wrong[:MAX_MISTAKES]
    captions = [f"{classes[labels[i]]} → {classes[predictions[i]]}  {100 * confidences[i]:.0f}%" for i in shown]
    title = f"Mistakes: {len(wrong)} of {len(images):,} images (label → prediction, confidence)"
    return tile_figure(images[shown], 10 if classes == DIGITS else 5, title, captions)


@styled()
def plot_filters(conv):
    """The filters of a first layer, nn.Conv2d with weights (out, 1, k, k), on one colour scale centred at 0."""
    weights = conv.weight.detach().cpu()[:, 0]
    title = f"{len(weights)} filters of {' × '.join(map(str, conv.kernel_size))} in the first layer"
    figure = tile_figure(weights, min(len(weights), 8), title, cmap="RdBu_r", norm=CenteredNorm())
    figure.colorbar(figure.axes[0].images[0], label="weight", shrink=0.9)
    return figure


@styled()
def plot_learning_rate(recipe, images, *others):
    """The learning rate of every step of a recipe, grey if there are others, for so many training images."""
    figure = Picture(2.4)
    axes = figure.subplots()
    for each in (recipe, *others):
        steps_per_epoch = each.steps_per_epoch(images)
        steps = np.arange(each.epochs * steps_per_epoch)
        rates = [each.learning_rate * each.learning_rate_factor(step, steps_per_epoch) for step in steps.tolist()]
        places = [*steps / steps_per_epoch, each.epochs]  # the last rate holds until the end
        style = {"drawstyle": "steps-post" if each.schedule_every == "epoch" else "default"}
        style |= {"color": FAINT} if others and each is recipe else {}
        label = f"{each.schedule}, at most {each.learning_rate:g}"
        axes.plot(places, [*rates, rates[-1]], "-", label=label, **style)
    of_muon = " of Muon" if recipe.optimizer == "muon" else ""
    axes.set(xlabel="epoch", ylabel=f"learning rate{of_muon}", xlim=(0, recipe.epochs), ylim=(0, None))
    axes.set_title(f"The learning rate rises for {recipe.warmup:.0%} of the steps, then falls in a line to 0")
    if others:
        axes.legend()
        axes.set_title("The learning rate during training")
    return figure


@styled()
def plot_activation_maps(images, labels, probabilities, maps, columns=8, classes=DIGITS):
    """Mistakes, "label → prediction", over what speaks for the prediction (red) and for the label (blue), by place.

    images: (N, 28, 28). labels: (N,). probabilities: (N, 10). maps: `inspection.class_activation_maps`, (N, 10, H, W).
    """
    labels, predictions, numbers = np.asarray(labels), np.asarray(probabilities).argmax(1), np.arange(len(images))
    differences = np.asarray(maps)[numbers, predictions] - np.asarray(maps)[numbers, labels]
    rows, side, largest = math.ceil(len(images) / columns), images.shape[-1], np.abs(differences).max()
    figure = Picture(0.6 + 1.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    places = np.arange(side) + 0.5
    scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest, "interpolation": "bilinear"}
    for axes in panels.ravel():
        axes.set_axis_off()
    for number, axes in zip(numbers, panels.ravel(), strict=False):
        colours = axes.imshow(differences[number], extent=(0, side, side, 0), **scale)
        axes.contour(places, places, images[number], levels=[100], colors=INK, linewidths=0.9)
        axes.set_title(f"{classes[labels[number]]} → {classes[predictions[number]]}", fontsize=9, loc="center")
    figure.colorbar(colours, ax=panels, label="for the label ← → for the prediction", shrink=0.9)
    figure.suptitle("What speaks for the wrong answer, and where (label → prediction)", x=0.01, ha="left")
    return figure


@styled()
def plot_feature_maps(model, image, layers, normalize, columns=10):
    """The outputs of the named layers for one digit: all channels, each layer on its own scale of brightness.

    image: uint8 (28, 28). layers: names in `model.named_modules()`, of layers with output (1, C, H, W).
    normalize: a function from uint8 (N, 28, 28) to the model's input, float (N, 1, 28, 28).
    The model runs in evaluation mode; its modes are restored afterwards. Raises KeyError for a layer without output.
    """
    outputs = {}

    def keep(name, layer, inputs, output):
        if name in layers:
            outputs[name] = output[0].cpu().clone()  # an in-place ReLU after this layer would change it

    run_observed(model, normalize(image[None]).to(next(model.parameters()).device), nn.Module, keep)
    blocks = {"input": image[None], **{name: outputs[name] for name in layers}}
    heights = [grid_height(len(maps), columns) for maps in blocks.values()]
    figure = Picture(0.4 + sum(heights) + 0.3 * len(blocks))
    panels = figure.subplots(len(blocks), height_ratios=heights)
    for axes, (name, maps) in zip(panels, blocks.items(), strict=True):
        draw_tiles(axes, maps, columns, cmap="gray" if name == "input" else "viridis")
        size = " × ".join(map(str, maps.shape))
        axes.set_title(f"{name}: {size}, from {maps.min():.3g} (dark) to {maps.max():.3g} (bright)", fontsize=10)
    figure.suptitle("Feature maps of one digit", x=0.01, ha="left")
    return figure


# --- Grids of images --------------------------------------------------------------------------------------------------


def grid_height(count, columns, captioned=False):
    """Height, in inches, of `count` tiles in rows of `columns` across the width of a figure."""
    return math.ceil(count / columns) * (1 + GAP + CAPTION * captioned) * WIDTH / (columns * (1 + GAP))


def draw_tiles(axes, tiles, columns, captions=None, cmap="gray", norm=None):
    """Draw tiles (N, H, W) row by row, all on the same scale of brightness.

    They share one Axes, whose unit is a tile: the layout of hundreds of Axes would take long.
    """
    tiles, norm, pitch = np.asarray(tiles), norm or Normalize(), 1 + GAP + CAPTION * bool(captions)
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
    """A figure with one grid of tiles (N, H, W) and a title."""
    height = 0.4 + grid_height(len(tiles), columns, bool(captions))
    figure = Picture(height)
    axes = figure.subplots()
    draw_tiles(axes, tiles, columns, captions, **colours)
    axes.set_title(title)
    return figure
