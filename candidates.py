"""Networks that were tried on the way, beside the variants that tell the story; `sweep.py` knows both."""

from __future__ import annotations

from torch import nn

from recipe import Recipe
from variants import VARIANTS, Variant, conv_block, head, separable_block

QUICK = Recipe(epochs=8, precision="bfloat16")  # for a first look


def stem(channels: int) -> list[nn.Module]:
    """5×5 convolution with stride 2, BatchNorm, ReLU: 28×28 → 14×14 at once, which is what makes a network cheap."""
    return [nn.Conv2d(1, channels, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def placed_head(channels: int, side: int = 7) -> list[nn.Module]:
    """A learnt weight for every place of every map in place of the average, then the linear classifier."""
    return [nn.Conv2d(channels, channels, side, groups=channels, bias=False), nn.Flatten(), nn.Linear(channels, 10)]


def strided() -> nn.Module:
    """Half the resolution from the first layer on, ordinary convolutions."""
    return nn.Sequential(
        *stem(16), *conv_block(16, 16), *conv_block(16, 24), nn.MaxPool2d(2), *conv_block(24, 32), *placed_head(32)
    )


def strided_average() -> nn.Module:
    """`strided` with global average pooling."""
    return nn.Sequential(*list(strided())[:-3], *head(32))


def strided_separable() -> nn.Module:
    """Half the resolution from the first layer on, then depthwise-separable convolutions."""
    return nn.Sequential(
        *stem(16),
        *separable_block(16, 32),
        *separable_block(32, 64),
        nn.MaxPool2d(2),
        *separable_block(64, 72),
        *separable_block(72, 88),
        *head(88),
    )


def placed() -> nn.Module:
    """`Net`'s layout, a little narrower, with a learnt weight for every place at the end."""
    return nn.Sequential(
        *conv_block(1, 4),
        *conv_block(4, 8),
        nn.MaxPool2d(2),
        *conv_block(8, 16),
        *conv_block(16, 32),
        nn.MaxPool2d(2),
        *conv_block(32, 38),
        *placed_head(38),
    )


CANDIDATES = {
    variant.name: variant
    for variant in (
        Variant("strided", strided, QUICK, "Half the resolution at once.", "Cheaper, not worse.", "s5"),
        Variant("strided_average", strided_average, QUICK, "With average pooling.", "Worse.", "strided"),
        Variant("strided_separable", strided_separable, QUICK, "Separable.", "As good as separable.", "strided"),
        Variant("placed", placed, QUICK, "Learnt weights for every place.", "Between s5 and flattened.", "s5"),
    )
}

KNOWN = VARIANTS | CANDIDATES
