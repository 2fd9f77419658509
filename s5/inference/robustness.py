"""Robustness of a trained network to changed images, calibration of its probabilities, and the reject option."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor, nn

from helpers import predict
from s5.analysis.plots import tile_figure
from s5.analysis.statistics import wilson_interval
from s5.analysis.style import COLOURS, FAINT, Picture, styled
from s5.inference.preprocessing import DigitError, prepare
from s5.training.augmentation import warp

REJECTED = (0, 0.5, 1, 2, 5, 10)  # percent of the images
BINS = 15  # of confidence, equally wide
FEW = 10  # images of a bin


def _moved(images: Tensor, scale: float = 1.0, degrees: float = 0.0, pixels: float = 0.0) -> Tensor:
    """Scale images about the centre, rotate them clockwise, then shift them to the right; uint8 (N, 28, 28)."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    shift = 2 * pixels / images.shape[-1]  # `warp` takes coordinates from -1 to 1
    inverse = torch.tensor([[cos, sin, -cos * shift], [-sin, cos, sin * shift]])
    moved = warp(images.unsqueeze(1).float(), inverse.expand(len(images), 2, 3))
    return moved.squeeze(1).round().to(torch.uint8)


def _thickened(images: Tensor, pixels: int) -> Tensor:
    """Widen the strokes by `pixels` on each side, or thin them if it is negative."""
    morphology = ndimage.grey_dilation if pixels > 0 else ndimage.grey_erosion
    footprint = np.abs(np.mgrid[-2:3, -2:3]).sum(0)[None] <= abs(pixels)
    return torch.from_numpy(morphology(images.numpy(), footprint=footprint))


def _noisy(images: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise, the same in every call."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * deviation
    return (images + noise).clamp(0, 255).round().to(torch.uint8)


# Name of a change: its unit, the amounts to evaluate, and the function of images and amount.
CHANGES: dict[str, tuple[str, tuple, Callable[[Tensor, float], Tensor]]] = {
    "shift": ("pixels to the right", (0, 1, 2, 3, 4, 6), lambda images, by: _moved(images, pixels=by)),
    "rotation": ("degrees", (0, 5, 10, 15, 20, 30, 45), lambda images, by: _moved(images, degrees=by)),
    "scale": ("factor", (0.5, 0.7, 0.85, 1, 1.15, 1.3), lambda images, by: _moved(images, scale=by)),
    "thickness": ("pixels added to each side", (-1, 0, 1, 2), _thickened),
    "noise": ("standard deviation (pixels: 0 to 255)", (0, 15, 30, 60, 90), _noisy),
    "inversion": ("0: white on black, 1: black on white", (0, 1), lambda images, by: 255 - images if by else images),
}


def change_images(images: Tensor) -> list[tuple[str, float, Tensor, Tensor]]:
    """Each change of CHANGES and amount, with the images, uint8 (N, 28, 28), so changed, and those prepared.

    One that cannot be prepared is black. Preparing takes milliseconds per image and amount.
    """
    result = []
    for name, (_, amounts, change) in CHANGES.items():
        for amount in amounts:
            changed = change(images, amount)
            prepared = torch.zeros_like(images)
            for number, image in enumerate(changed):
                with contextlib.suppress(DigitError):
                    prepared[number] = prepare(Image.fromarray(image.numpy()))
            result.append((name, amount, changed, prepared))
    return result


def accuracy_under_changes(
    model: nn.Module, images: Tensor, labels: Tensor, changes: list | None = None
) -> pd.DataFrame:
    """Accuracy in percent for every change and amount, without and with preprocessing.

    images: uint8 (N, 28, 28); `changes`: what `change_images` returns for them, to use it for several networks.
    Columns: change, amount, `accuracy` on the changed images, and `prepared`, after `preprocessing.prepare`.
    An image that it refuses counts as a mistake.
    """
    rows = []
    for name, amount, changed, prepared in changes or change_images(images):
        correct = predict(model, changed).argmax(1) == labels
        prepared_correct = (predict(model, prepared).argmax(1) == labels) & prepared.flatten(1).any(1)
        accuracies = (100 * float(part.double().mean()) for part in (correct, prepared_correct))
        rows.append((name, amount, *accuracies))
    return pd.DataFrame(rows, columns=["change", "amount", "accuracy", "prepared"]).round(2)


def other_digits() -> tuple[list[Tensor | None], list[int]]:
    """The 1,797 digits of scikit-learn's `load_digits`, prepared, or None if refused, and their labels.

    They were written by other people for another data set, 8×8 pixels each; here enlarged 20 times, with a margin. They
    are only for stating what networks do on them: nothing is chosen on them.
    """
    from sklearn.datasets import load_digits  # takes a second, and little here uses it

    digits = load_digits()
    prepared: list[Tensor | None] = []
    for image in digits.images:
        larger = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
        try:
            prepared.append(prepare(ImageOps.expand(larger, 20)))
        except DigitError:
            prepared.append(None)
    return prepared, digits.target.tolist()


def read_other_digits(model: nn.Module, prepared: list[Tensor | None], labels: list[int]) -> dict:
    """How many of `other_digits` a network reads right and wrong, how many were refused, and its frequent confusions.

    The confusions are [label, prediction, count], at most three, the most frequent first.
    """
    pairs = [(image, label) for image, label in zip(prepared, labels, strict=True) if image is not None]
    predictions = predict(model, torch.stack([image for image, _ in pairs])).argmax(1).tolist()
    wrong = [(label, answer) for (_, label), answer in zip(pairs, predictions, strict=True) if label != answer]
    counts = {"right": len(pairs) - len(wrong), "wrong": len(wrong), "refused": len(labels) - len(pairs)}
    return counts | {"confusions": [[*pair, count] for pair, count in Counter(wrong).most_common(3)]}


def reliability(labels: Tensor, probabilities: Tensor) -> pd.DataFrame:
    """Mean confidence and accuracy, both from 0 to 1, and number of images per bin of confidence; no empty bins.

    labels (N,), probabilities (N, 10). Columns: bin, confidence, accuracy, count.
    """
    confidence, predictions = probabilities.max(1)
    correct = (predictions == labels).double()
    number = (confidence * BINS).long().clamp(max=BINS - 1)
    table = pd.DataFrame({"bin": number, "confidence": confidence.double(), "accuracy": correct})
    grouped = table.groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index()


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error, from 0 to 1: mean distance of confidence and accuracy in the bins of `reliability`.

    Guo et al., "On calibration of modern neural networks", 2017: arxiv.org/abs/1706.04599.
    """
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def rejection_table(labels: Tensor, probabilities: Tensor, shares=REJECTED) -> pd.DataFrame:
    """Accuracy on the accepted images when the `shares` (percent) with the lowest confidence are rejected.

    labels (N,), probabilities (N, 10). The interval is Wilson's. The reject option: Chow, "On optimum recognition error
    and reject tradeoff", 1970.
    """
    confidence, predictions = probabilities.max(1)
    correct = (predictions == labels)[confidence.argsort(descending=True)]
    rows = []
    for share in shares:
        accepted = correct[: len(correct) - round(share / 100 * len(correct))]
        right, total = int(accepted.sum()), len(accepted)
        low, high = wilson_interval(right, total)
        row = {"Rejected (%)": share, "Accepted": total, "Mistakes": total - right, "Accuracy (%)": 100 * right / total}
        rows.append(row | {"95% interval": f"{low:.2f}–{high:.2f}"})
    return pd.DataFrame(rows).round(3)


@styled()
def plot_robustness(table: pd.DataFrame) -> Picture:
    """Plot a table of `accuracy_under_changes`, one panel per change: accuracy without and with preprocessing."""
    figure = Picture(7.4)
    panels = figure.subplots(3, 2).ravel()
    for axes, (name, part) in zip(panels, table.groupby("change", sort=False), strict=True):
        axes.plot(part["amount"], part["accuracy"], "o-", color=COLOURS[1], label="as it is")
        hollow = {"marker": "s", "markersize": 7, "fillstyle": "none"}  # what lies below is seen
        axes.plot(part["amount"], part["prepared"], "--", color=COLOURS[0], label="prepared as a photo", **hollow)
        axes.set(title=name, xlabel=CHANGES[name][0], ylim=(-3, 103))
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)
    figure.suptitle("Accuracy on changed images", x=0.01, ha="left")
    return figure


@styled()
def plot_changes(changes: list) -> Picture:
    """The first image under every change and amount, and below it, after preprocessing.

    changes: as `change_images` makes them.
    """
    tiles, captions, columns = [], [], 10  # which divides the number of changes: else the last pairs would not line up
    for start in range(0, len(changes), columns):
        row = changes[start : start + columns]
        tiles += [changed[0] for _, _, changed, _ in row] + [prepared[0] for *_, prepared in row]
        captions += [f"{name} {amount:g}" for name, amount, *_ in row] + ["prepared"] * len(row)
    return tile_figure(torch.stack(tiles), columns, "One digit under every change, and below it, prepared", captions)


@styled()
def plot_reliability(labels, probabilities) -> Picture:
    """Reliability diagram: accuracy against confidence, in bins with 95% intervals; and the number of images per bin.

    labels (N,), probabilities (N, 10). A perfectly calibrated network lies on the diagonal. Bins of fewer than FEW
    images are left out on the left: their accuracy could be anything.
    """
    table = reliability(labels, probabilities)
    figure = Picture(3.6)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=FAINT, linestyle=":", label="perfect calibration")
    enough = table[table["count"] >= FEW]
    counts = zip((enough["accuracy"] * enough["count"]).round(), enough["count"], strict=True)
    ends = np.array([wilson_interval(int(correct), int(total)) for correct, total in counts]).reshape(-1, 2) / 100
    bars = np.abs(ends.T - enough["accuracy"].to_numpy())
    label = f"the network, 95% interval (bins of {FEW} images and more)"
    left.errorbar(enough["confidence"], enough["accuracy"], bars, fmt="o", color=COLOURS[0], capsize=3, label=label)
    error = f"expected calibration error {100 * calibration_error(table):.2f}%"
    left.set(xlabel="confidence: the largest probability", ylabel="accuracy")
    left.set_title(error, fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.bar((table["bin"] + 0.5) / BINS, table["count"], width=0.9 / BINS, color=COLOURS[0])
    right.set(xlabel="confidence", ylabel="images", xlim=left.get_xlim(), yscale="log")
    right.yaxis.set_major_formatter("{x:,.0f}")  # not as 10⁴, which requires another font
    figure.suptitle("Calibration: confidence and accuracy", x=0.01, ha="left")
    return figure
