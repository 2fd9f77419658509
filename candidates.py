"""Networks that were tried on the way, beside the variants that tell the story; `sweep.py` knows both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from recipe import Recipe
from variants import NET, VARIANTS, Variant, conv_block, head, placed_head, pyramid, separable_block

QUICK = Recipe(epochs=8, precision="bfloat16")  # for a first look

MUON = Recipe(
    optimizer="muon",
    learning_rate=0.05,
    momentum=0.85,
    weight_decay=2e-4,
    rotation=8.0,
    translation=0.04,
    scale=0.06,
    shear=6.0,
)
FAST = replace(MUON, precision="bfloat16")


def stem(channels: int) -> list[nn.Module]:
    """5×5 convolution with stride 2, BatchNorm, ReLU: 28×28 → 14×14 at once, which is what makes a network cheap."""
    return [nn.Conv2d(1, channels, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def strided(half=(16, 16, 24), quarter=(32,), block: Callable = conv_block, end: Callable = placed_head) -> nn.Module:
    """Half the resolution from the first layer on: `half` are the channels at 14×14, `quarter` those at 7×7."""
    at_half = [layer for pair in pairwise(half) for layer in block(*pair)]
    at_quarter = [layer for pair in pairwise((half[-1], *quarter)) for layer in block(*pair)]
    return nn.Sequential(*stem(half[0]), *at_half, nn.MaxPool2d(2), *at_quarter, *end(quarter[-1]))


def placed(stages=((4, 8), (16, 32), (38,)), block: Callable = conv_block) -> nn.Module:
    """A pyramid with a learnt weight for every place at the end."""
    return pyramid(stages, block, placed_head)


class Shared(nn.Module):
    """One convolution used again and again, added to what it was given; only BatchNorm is new each time.

    `uses` says how often at 28×28, 14×14 and so on; a `border` is cut off first. In the manner of recurrent
    convolutional networks (Liang and Hu, 2015): depth costs computation, but no parameters.
    """

    def __init__(self, channels: int, uses=(1, 2, 2), end: Callable = head, border: int = 0, separable: bool = False):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d(-border), *conv_block(1, channels))
        groups = channels if separable else 1
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        if separable:
            self.conv = nn.Sequential(self.conv, nn.Conv2d(channels, channels, 1, bias=False))
        self.steps = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) for _ in range(count)) for count in uses
        )
        self.pool = nn.MaxPool2d(2)
        self.end = nn.Sequential(*end(channels))

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for level, steps in enumerate(self.steps):
            features = self.pool(features) if level else features
            for step in steps:
                features = features + step(self.conv(features))
        return self.end(features)


def shared_24(channels: int, uses=(1, 2, 2, 2), separable: bool = False) -> nn.Module:
    """`Shared` on the middle 24×24 pixels, which halve to 12, 6 and 3, with a weight for every place."""
    return Shared(channels, uses, partial(placed_head, side=3), 2, separable)


class Dense(nn.Module):
    """Every layer adds a few channels to all that came before: few parameters, and nothing is lost on the way.

    `stages` are the channels that the convolutions add at 24×24, 12×12, 6×6 and 3×3 pixels (of the middle of the
    image). After Huang et al., "Densely connected convolutional networks", 2017.
    """

    def __init__(self, stages=((4,), (3,), (3,), (3,)), block: Callable = conv_block):
        super().__init__()
        self.stages, before = nn.ModuleList(), 1
        for stage in stages:
            layers = nn.ModuleList()
            for channels in stage:
                layers.append(nn.Sequential(*block(before, channels)))
                before = before + channels
            self.stages.append(layers)
        self.crop, self.pool = nn.ZeroPad2d(-2), nn.MaxPool2d(2)
        self.end = nn.Sequential(*placed_head(before, 24 >> (len(stages) - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.crop(images)
        for level, layers in enumerate(self.stages):
            features = self.pool(features) if level else features
            for layer in layers:
                features = torch.cat([features, layer(features)], 1)
        return self.end(features)


class Bowl(nn.Module):
    """Adds a fixed bowl to the images, 0 in the middle and `height` at the corners: brightness then tells the place."""

    def __init__(self, height: float = 1.0, side: int = 28):
        super().__init__()
        squares = torch.linspace(-1, 1, side) ** 2
        self.register_buffer("bowl", height / 2 * (squares + squares[:, None]))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.bowl


def cropped(stages, border: int = 2, block: Callable = conv_block, end: Callable = head) -> nn.Module:
    """A pyramid on the middle of the image: the digits lie there."""
    return nn.Sequential(nn.ZeroPad2d(-border), *pyramid(stages, block, end))


def placed_24(stages=NET, block: Callable = conv_block) -> nn.Module:
    """`placed` on the middle 24×24 pixels, which halve more often: 12, 6, 3."""
    return cropped(stages, 2, block, partial(placed_head, side=24 >> (len(stages) - 1)))


def bowled(height: float = 1.0) -> nn.Module:
    """`Net` that can see the place."""
    return nn.Sequential(Bowl(height), *pyramid(NET))


def _candidate(name: str, build: Callable, change: str, target: str, parent: str = "strided") -> Variant:
    return Variant(name, build, QUICK, change, target, parent)


def _fast(name: str, build: Callable, target: str, **recipe) -> Variant:
    return Variant(name, build, replace(FAST, **recipe), "As few epochs as will do.", target, build.__name__)


CANDIDATES = {
    variant.name: variant
    for variant in (
        _candidate("placed", placed, "A learnt weight for every place.", "Between s5 and flattened.", "s5"),
        _candidate("placed_8k", partial(placed, ((4, 8), (12, 18), (20,))), "Below 8,000.", "99.3%.", "placed"),
        _candidate("placed_5k", partial(placed, ((4, 6), (10, 12), (16,))), "Below 5,000.", "99.2%.", "placed_8k"),
        _candidate("placed_2k", partial(placed, ((3, 4), (6, 7), (9,))), "Below 2,000.", "98.9%.", "placed_5k"),
        _candidate(
            "cropped_24", partial(cropped, NET), "The middle 24×24 pixels.", "No worse, a quarter faster.", "s5"
        ),
        _candidate("cropped_20", partial(cropped, NET, 4), "The middle 20×20 pixels.", "Worse: some is outside.", "s5"),
        _candidate("placed_24", placed_24, "The middle 24×24 pixels.", "No worse, a quarter faster.", "placed"),
        _candidate("bowled", bowled, "Brightness tells the place.", "Between s5 and placed.", "s5"),
        Variant(
            "wide",
            partial(placed, ((16, 32), (64, 64), (128,))),
            replace(FAST, epochs=12),
            "A teacher: 141,946 parameters.",
            "99.7%.",
            "placed",
        ),
        _fast("to_99_0", placed, "A mean of 99.0% on test.", epochs=1),
        _fast("to_99_4", placed_24, "A mean of 99.4% on test.", epochs=3, learning_rate=0.03),
        _candidate("deep", partial(pyramid, ((6, 8), (12, 16, 20), (24, 28))), "Seven layers.", "Better.", "s5"),
        _candidate("late", partial(pyramid, ((4, 8), (16, 20), (24, 24, 24))), "More at 7×7.", "Better.", "s5"),
        _candidate("deep_8k", partial(pyramid, ((4, 6), (8, 12, 12), (14, 16))), "Below 8,000.", "99.4%.", "deep"),
        _candidate("deep_placed_8k", partial(placed, ((4, 6), (10, 12, 12), (14, 16))), "Places.", "99.5%.", "deep_8k"),
        _candidate(
            "deep_placed_5k", partial(placed, ((4, 6), (8, 8, 8), (10, 12))), "Below 5,000.", "99.4%.", "deep_placed_8k"
        ),
        _candidate(
            "deep_placed_2k", partial(placed, ((3, 4), (5, 6, 6), (7,))), "Below 2,000.", "99.1%.", "deep_placed_5k"
        ),
        _candidate(
            "deep_placed_1k", partial(placed, ((2, 3), (4, 4, 4), (5,))), "Below 1,000.", "98.7%.", "deep_placed_2k"
        ),
        _candidate("deep_2k", partial(pyramid, ((3, 4), (5, 6, 6), (6, 8))), "Average.", "99.0%.", "deep_placed_2k"),
        _candidate("small_5k", partial(placed_24, ((4, 6), (8, 10), (12,), (14,))), "24 → 3.", "99.4%.", "placed_5k"),
        _candidate("small_2k", partial(placed_24, ((3, 4), (6,), (8,), (10,))), "24 → 3.", "99%.", "placed_2k"),
        _candidate("small_1k", partial(placed_24, ((3, 4), (4,), (5,), (6,))), "24 → 3.", "98.5%.", "small_2k"),
        _candidate(
            "separable_deep",
            partial(pyramid, ((16, 32), (48, 48, 56), (64, 64)), separable_block),
            "Two layers more.",
            "Better.",
            "separable",
        ),
        _candidate(
            "separable_deep_8k",
            partial(pyramid, ((8, 16), (28, 32, 32), (40, 40)), separable_block),
            "Below 8,000.",
            "99.5%.",
            "separable_deep",
        ),
        _candidate(
            "separable_deep_5k",
            partial(pyramid, ((6, 12), (20, 24, 24), (30, 30)), separable_block),
            "Below 5,000.",
            "99.4%.",
            "separable_deep_8k",
        ),
        _candidate(
            "separable_deep_2k",
            partial(pyramid, ((5, 8), (11, 12, 12), (16, 16)), separable_block),
            "Below 2,000.",
            "99.1%.",
            "separable_deep_5k",
        ),
        _candidate(
            "separable_deeper_8k",
            partial(pyramid, ((8, 16), (26, 26, 26, 28), (36, 36)), separable_block),
            "One layer more.",
            "99.5%.",
            "separable_deep_8k",
        ),
        _candidate(
            "separable_24_2k",
            partial(placed_24, ((4, 8), (12, 12), (12, 14), (14,)), separable_block),
            "24 → 3.",
            "99.1%.",
            "separable_deep_2k",
        ),
        _candidate(
            "separable_24_1k",
            partial(placed_24, ((3, 6), (8, 8), (9,), (10,)), separable_block),
            "24 → 3, below 1,000.",
            "98.5%.",
            "separable_24_2k",
        ),
        _candidate(
            "separable_placed",
            partial(placed, ((8, 16), (48, 64), (72,)), separable_block),
            "Separable: wider.",
            "99.5%.",
            "placed",
        ),
        _candidate(
            "separable_5k",
            partial(placed, ((8, 12), (20, 28), (32,)), separable_block),
            "Below 5,000.",
            "99.3%.",
            "separable_placed",
        ),
        _candidate(
            "separable_2k",
            partial(pyramid, ((6, 8), (12, 14), (16, 20)), separable_block),
            "Below 2,000; average.",
            "99.0%.",
            "separable_5k",
        ),
        _candidate(
            "separable_1k",
            partial(pyramid, ((4, 6), (8, 10), (16,)), separable_block),
            "Below 1,000.",
            "98.7%.",
            "separable_2k",
        ),
        _candidate("shared_5k", partial(Shared, 18, (1, 2, 2), placed_head), "One convolution.", "99.3%.", "placed_5k"),
        _candidate("shared_2k", partial(Shared, 12), "Below 2,000.", "99.0%.", "shared_5k"),
        _candidate("shared_2k_placed", partial(Shared, 10, (1, 2, 2), placed_head), "Places.", "99.0%.", "shared_2k"),
        _candidate("shared_1k", partial(Shared, 8), "Below 1,000.", "98.5%.", "shared_2k"),
        _candidate("dense_1k", Dense, "Dense.", "98.3%.", "small_1k"),
        _candidate("dense_2k", partial(Dense, ((3, 3), (3, 3), (3,), (3,))), "Dense.", "99.0%.", "small_2k"),
        _candidate("dense_5k", partial(Dense, ((4, 4), (4, 4), (5, 5), (5,))), "Dense.", "99.4%.", "small_5k"),
        _candidate("shared_24_1k", partial(shared_24, 8), "24 → 3.", "98.3%.", "shared_1k"),
        _candidate("shared_24_1k_deep", partial(shared_24, 8, (1, 2, 3, 3)), "Deeper.", "98.4%.", "shared_24_1k"),
        _candidate(
            "shared_24_1k_separable", partial(shared_24, 14, separable=True), "Separable.", "98.4%.", "shared_24_1k"
        ),
        _candidate("shared_24_2k", partial(shared_24, 12), "24 → 3.", "99.0%.", "shared_24_1k"),
        _candidate(
            "shared_24_2k_separable", partial(shared_24, 22, separable=True), "Separable.", "99.0%.", "shared_24_2k"
        ),
        _candidate("shared_24_2k_deep", partial(shared_24, 12, (1, 2, 3, 3)), "Deeper.", "99.2%.", "shared_24_2k"),
        _candidate("shared_24_5k", partial(shared_24, 20), "24 → 3.", "99.3%.", "shared_24_2k"),
        _candidate("shared_24_8k", partial(shared_24, 27), "24 → 3.", "99.4%.", "shared_24_5k"),
        _candidate("strided", strided, "Half the resolution at once.", "Cheaper, not worse.", "s5"),
        _candidate("strided_average", partial(strided, end=head), "Average pooling.", "Worse."),
        _candidate("strided_wide", partial(strided, (16, 20, 28), (32,)), "All of the budget.", "Better."),
        _candidate("strided_deep", partial(strided, (16, 16, 16), (28, 28)), "One layer more.", "Better."),
        _candidate(
            "strided_separable",
            partial(strided, (16, 32, 64), (72, 88), separable_block, head),
            "Separable, average pooling.",
            "As good as separable, in half the time.",
        ),
        _candidate(
            "strided_separable_placed",
            partial(strided, (16, 32, 56), (64, 72), separable_block),
            "Separable.",
            "Better still.",
        ),
        _candidate("strided_8k", partial(strided, (12, 12, 16), (20,)), "Below 8,000.", "99.3%."),
        _candidate(
            "strided_separable_8k",
            partial(strided, (12, 24, 32), (40, 38), separable_block),
            "Separable, below 8,000.",
            "99.4%.",
        ),
    )
}


def _claim(name: str, network: str, recipe: Recipe) -> Variant:
    """The network that did best within a budget, as it is scored on the test set (see `goals.GOALS`)."""
    build = (VARIANTS | CANDIDATES)[network].build
    return Variant(name, build, recipe, f"{network}, chosen and trained for longer.", "The goal.", network)


CLAIMS = {
    claim.name: claim
    for claim in (
        _claim("below_20k", "separable_deep", Recipe(epochs=16, precision="bfloat16")),
        _claim("below_8k", "separable_deep_8k", replace(FAST, epochs=15, learning_rate=0.03)),
        _claim("below_5k", "separable_deep_5k", replace(FAST, epochs=20, learning_rate=0.03)),
        _claim("below_2k", "shared_24_2k", replace(FAST, epochs=30)),
        _claim("below_1k", "shared_24_1k_deep", replace(FAST, epochs=60, learning_rate=0.025)),
    )
}

KNOWN = VARIANTS | CANDIDATES | CLAIMS
