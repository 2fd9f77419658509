"""How a trained network fares where MNIST ends: changed images, and how far its probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import torch
from matplotlib.ticker import FuncFormatter
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from analysis.plots import COLOURS, FAINT, WIDTH, Picture, checked, styled
from helpers import predict
from inference.preprocessing import DigitError, prepare
from training.augmentation import warp

SHARES = (0, 0.5, 1, 2, 5, 10)  # percent of the images that the network may decline
BINS = 15  # of confidence


def _moved(images: Tensor, scale: float = 1.0, degrees: float = 0.0, pixels: float = 0.0) -> Tensor:
    """uint8 (N, 28, 28), enlarged and turned about the centre, then shifted to the right."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    shift = 2 * pixels / images.shape[-1]
    back = torch.tensor([[cos, sin, -cos * shift], [-sin, cos, sin * shift]])
    moved = warp(images.unsqueeze(1).float(), back.expand(len(images), 2, 3))
    return moved.squeeze(1).round().to(torch.uint8)


def _thickened(images: Tensor, pixels: int) -> Tensor:
    """Strokes wider by so many pixels in every direction, or thinner where negative."""
    if not pixels:
        return images
    change = ndimage.grey_dilation if pixels > 0 else ndimage.grey_erosion
    cross = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), abs(pixels))[None]
    return torch.from_numpy(change(images.numpy(), footprint=cross))


def _noisy(images: Tensor, amount: float) -> Tensor:
    """Normal noise of this standard deviation, of 255, the same for everyone who asks."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * amount
    return (images + noise).clamp(0, 255).round().to(torch.uint8)


CHANGES: dict[str, tuple[str, tuple, Callable[[Tensor, float], Tensor]]] = {
    "shift": ("pixels to the right", (0, 1, 2, 3, 4, 6), lambda images, by: _moved(images, pixels=by)),
    "rotation": ("degrees", (0, 5, 10, 15, 20, 30, 45), lambda images, by: _moved(images, degrees=by)),
    "scale": ("factor", (0.5, 0.7, 0.85, 1, 1.15, 1.3), lambda images, by: _moved(images, scale=by)),
    "thickness": ("pixels added to each side", (-1, 0, 1, 2), _thickened),
    "noise": ("standard deviation, of 255", (0, 15, 30, 60, 90), _noisy),
    "inversion": ("0: as they are, 1: black on white", (0, 1), lambda images, by: 255 - images if by else images),
}


def accuracy_under_changes(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """One row a change and amount: `accuracy` in percent on the images as they are, and `prepared` as `digits` does it.

    images: uint8 (N, 28, 28). An image that cannot be prepared counts as a mistake.
    """
    rows = []
    for name, (_, amounts, change) in CHANGES.items():
        for amount in amounts:
            changed = change(images, amount)
            row = {"change": name, "amount": amount, "accuracy": _percent(model, changed, labels)}
            kept, prepared = _prepared(changed)
            right = _percent(model, prepared, labels[kept]) * len(kept) / len(labels) if kept else 0.0
            rows.append(row | {"prepared": right})
    return pd.DataFrame(rows).round(2)


def _percent(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (predict(model, images).argmax(1) == labels).float().mean().item()


def _prepared(images: Tensor) -> tuple[list[int], Tensor]:
    """The numbers of the images that could be prepared, and these."""
    kept = {}
    for number, image in enumerate(images):
        try:
            kept[number] = prepare(Image.fromarray(image.numpy()))
        except DigitError:
            continue
    return list(kept), torch.stack(list(kept.values())) if kept else images[:0]


def reliability(labels: Tensor, probabilities: Tensor, bins: int = BINS) -> pd.DataFrame:
    """One row a bin of confidence that holds images: their number, mean confidence and accuracy, both from 0 to 1.

    labels (N,), probabilities (N, 10).
    """
    confidence, predictions = probabilities.max(1)
    right = (predictions == labels).double()
    number = (confidence * bins).long().clamp(max=bins - 1)
    table = pd.DataFrame({"bin": number, "confidence": confidence.double(), "accuracy": right})
    grouped = table.groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index()


def calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error, from 0 to 1: how far confidence lies from accuracy in `reliability`'s bins.

    Guo et al., "On calibration of modern neural networks", 2017: arxiv.org/abs/1706.04599.
    """
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def declining_table(labels: Tensor, probabilities: Tensor, shares=SHARES) -> pd.DataFrame:
    """How accuracy rises when the network may decline the share of images, in percent, that it is least sure of."""
    confidence, predictions = probabilities.max(1)
    right = (predictions == labels)[confidence.argsort(descending=True)]
    rows = []
    for share in shares:
        answered = right[: len(right) - round(share / 100 * len(right))]
        mistakes = int((~answered).sum())
        accuracy = 100 * (1 - mistakes / len(answered))
        rows.append({"Declined (%)": share, "Answered": len(answered), "Mistakes": mistakes, "Accuracy (%)": accuracy})
    return pd.DataFrame(rows).round(3)


@styled()
def plot_robustness(table: pd.DataFrame, title: str = "Accuracy when the images change") -> Picture:
    """A panel a change of `accuracy_under_changes`: as they are, and prepared."""
    names = list(dict.fromkeys(table["change"]))
    figure = Picture(figsize=(WIDTH, 2.6 * math.ceil(len(names) / 3)), layout="constrained")
    panels = figure.subplots(math.ceil(len(names) / 3), 3, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        part = table[table["change"] == name]
        axes.plot(part["amount"], part["accuracy"], "o-", color=COLOURS[1], label="as they are")
        axes.plot(part["amount"], part["prepared"], "s--", color=COLOURS[0], label="prepared as a photo would be")
        axes.set_title(name)
        axes.set_xlabel(CHANGES[name][0])
        axes.set_ylim(-3, 103)
    for axes in panels[len(names) :]:
        axes.remove()
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled()
def plot_reliability(labels, probabilities, title: str = "How far its confidence can be trusted") -> Picture:
    """Accuracy against confidence, in bins: on the diagonal a network is as often right as it says."""
    labels, probabilities = checked(labels=(labels, 1), probabilities=(probabilities, 2))
    table = reliability(torch.as_tensor(labels), torch.as_tensor(probabilities))
    figure = Picture(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=FAINT, linestyle=":", label="as often right as it says")
    left.plot(table["confidence"], table["accuracy"], "o-", color=COLOURS[0], label="the network")
    left.set_xlabel("confidence: the largest probability")
    left.set_ylabel("accuracy")
    left.set_title(f"expected calibration error {100 * calibration_error(table):.2f}%", fontsize=10)
    left.legend(frameon=False)
    right.bar((table["bin"] + 0.5) / BINS, table["count"], width=0.9 / BINS, color=COLOURS[0])
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))  # 10⁴ would want a font of its own
    right.set_xlabel("confidence")
    right.set_ylabel("images")
    figure.suptitle(title, x=0.01, ha="left")
    return figure
