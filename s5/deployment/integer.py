"""A network in integers: the reference that the generated C code equals bit for bit.

Weights are int8 with one scale per output channel, maps are uint8 with one scale and one zero point per layer, and sums
are exact. What follows the sum of a convolution (BatchNorm, ReLU, an addition, the new scale) is one rounding:

    value = zero + (sum × multiplier + bias × 2^bias_shift + added × residual_multiplier + 2^(shift - 1)) / 2^shift

rounded down and clamped to 0 … 255. A convolution that is used several times keeps one set of weights; each use has its
own int16 multiplier and bias per channel, 4 bytes. The values after the last map are int16 and the logits int32.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.deployment.deskew import deskew_bytes
from s5.deployment.layer_graph import Step

LARGEST_INT16 = 2**15 - 1
BATCH = 50  # images: what is computed of them fits into the processor's cache


@dataclass
class Layer:
    """A convolution with what follows it: the addition of an earlier map, then max-pooling, if any."""

    conv: Step
    size_in: tuple[int, int]  # height and width of its input
    size_out: tuple[int, int]  # of its output, after pooling
    pool: int  # 1: none
    weight: Tensor  # int8 (outputs, inputs / groups, side, side); the same tensor in every use
    zero_in: int
    zero_out: int
    multiplier: Tensor  # int16 (outputs,)
    shift: int
    bias: Tensor  # int16 (outputs,)
    bias_shift: int
    residual_multiplier: int  # of the map that is added; 0: none is
    residual_from: int  # 0: its own input is added; 1: that of the layer before
    residual_zero: int  # of the map that is added

    @property
    def depthwise(self) -> bool:
        """True if each output channel has one input channel."""
        return self.conv.groups > 1

    @property
    def rows(self) -> int:
        """The number of rows of its input that an output is computed from."""
        return min(self.weight.shape[2], self.size_in[0])

    @property
    def channels_in(self) -> int:
        """The number of channels that it reads."""
        return self.conv.weight.shape[1] * self.conv.groups

    def __call__(self, before: Tensor, maps: Tensor) -> Tensor:
        """uint8 maps (N, outputs, height, width) of `maps`, and of the input of the layer before, both uint8."""
        values = exact_sums(self.conv, self.weight, self.zero_in, maps) * self.multiplier.long()[:, None, None]
        values += (self.bias.long() << self.bias_shift)[:, None, None]
        if self.residual_multiplier:
            values = values.clamp(min=0) if self.conv.relu else values
            added = before if self.residual_from else maps
            values += (added.long() - self.residual_zero) * self.residual_multiplier
        values = (divide(values, self.shift) + self.zero_out).clamp(0, 255)
        return F.max_pool2d(values.float(), self.pool).to(torch.uint8)


@dataclass
class Head:
    """From the last maps to int16 values (N, channels): their sums (mean), or sums weighted by position (gdconv)."""

    step: Step
    size: tuple[int, int]  # height and width of the maps
    zero_in: int
    limit: int = LARGEST_INT16  # of a value
    weight: Tensor | None = None  # gdconv: int8 (channels, 1, height, width)
    multiplier: Tensor | None = None  # gdconv: int16 (channels,)
    shift: int = 0  # gdconv

    def __call__(self, maps: Tensor) -> Tensor:
        if self.weight is None:
            return (maps.long() - self.zero_in).sum((2, 3))
        sums = exact_sums(self.step, self.weight, self.zero_in, maps).flatten(1)
        return divide(sums * self.multiplier.long(), self.shift).clamp(-self.limit, self.limit)


@dataclass
class IntegerNetwork:
    """Integer arithmetic only; its logits times `logit_scale` are about those of the float network.

    The image goes through `deskew` and `crop`, the `layers` one after another, the head, and a linear layer.
    """

    deskew: float  # the height, in pixels; 0: none
    crop: int  # pixels
    layers: list[Layer]
    head: Head
    linear: str  # the name of the linear layer
    weight: Tensor  # of the linear layer: int8 (10, channels)
    bias: Tensor  # of the linear layer: (10,)
    logit_scale: float
    macs: int  # multiply-adds for one image

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, int32 (N, 10), of uint8 images (N, 28, 28)."""
        return torch.cat([self._logits(batch) for batch in images.split(BATCH)]).int()

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        before = maps = first_maps(images, self.deskew, self.crop)
        for layer in self.layers:
            before, maps = maps, layer(before, maps)
        return linear_sums(self.head(maps), self.weight) + self.bias

    def weight_bytes(self) -> int:
        """The size of all constants: weights, each set once, multipliers and biases."""
        weights = {id(layer.weight): layer.weight.numel() for layer in self.layers}
        channels = sum(4 * len(layer.weight) for layer in self.layers)
        head = 0 if self.head.weight is None else self.head.weight.numel() + 2 * len(self.head.multiplier)
        return sum(weights.values()) + channels + head + self.weight.numel() + 4 * len(self.bias)


def first_maps(images: Tensor, height: float, crop: int) -> Tensor:
    """What the first layer reads, uint8 (N, 1, side, side), of uint8 images (N, 28, 28)."""
    images = deskew_bytes(images, height) if height else images
    return images[:, None, crop : 28 - crop, crop : 28 - crop]


def exact_sums(conv: Step, weight: Tensor, zero: int, maps: Tensor) -> Tensor:
    """The sums of products of the integers `maps` - `zero` and `weight`, int64; float64 holds them exactly."""
    values, weight = maps.double() - zero, weight.double()
    return F.conv2d(values, weight, padding=conv.padding, groups=conv.groups).long()


def linear_sums(values: Tensor, weight: Tensor) -> Tensor:
    """The sums of the linear layer, exact: int64 (N, 10)."""
    return F.linear(values.double(), weight.double()).long()


def divide(values: Tensor, shift: int) -> Tensor:
    """values / 2^shift, to the nearest integer, halves up; shift is 1 or more."""
    return values + (1 << shift - 1) >> shift
