"""A network in integers: the reference that the generated C code equals bit for bit.

Weights are int8 with one scale per output channel, maps are uint8 with one scale and one zero point per layer, and sums
are exact. What follows the sum of a convolution (BatchNorm, ReLU, an addition, the new scale) is one rounding:

    value = zero + (sum × multiplier + bias × 2^bias_shift + input × residual_multiplier + 2^(shift - 1)) / 2^shift

rounded down and clamped to 0 … 255. A convolution that is used several times keeps one set of weights; each use has its
own int16 multiplier and bias per channel, 4 bytes. The values after the last map are int16 and the logits int32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.deployment.c_plan import Layer, Plan
from s5.deployment.deskew import deskew_bytes
from s5.deployment.layer_graph import Step

LARGEST_INT16 = 2**15 - 1


@dataclass
class Requantization:
    """From a sum to a value: `multiplier` and `bias`, if any, are int16 (channels,)."""

    multiplier: Tensor
    bias: Tensor | None
    shift: int
    bias_shift: int = 0
    relu: bool = False  # before the addition
    residual_multiplier: int = 0

    def __call__(self, sums: Tensor, residual: Tensor | None = None) -> Tensor:
        """int64 values of int64 sums (N, channels, ...), not clamped; `residual` int64 of the same shape is added."""
        shape = (-1,) + (1,) * (sums.dim() - 2)
        values = sums * self.multiplier.long().view(shape)
        if self.bias is not None:
            values += (self.bias.long() << self.bias_shift).view(shape)
        if self.relu:
            values.clamp_(min=0)
        if residual is not None:
            values += residual * self.residual_multiplier
        values += 1 << self.shift - 1
        values >>= self.shift  # rounds down, also below 0
        return values

    @property
    def bytes(self) -> int:
        """The size of its constants."""
        return (2 if self.bias is None else 4) * len(self.multiplier)


@dataclass
class Convolution:
    """A convolution with all that follows it until the next one, from uint8 maps to uint8 maps."""

    layer: Layer
    weight: Tensor  # int8 (outputs, inputs / groups, side, side); the same tensor in every use
    zero_in: int
    zero_out: int
    requantization: Requantization | None = None
    from_maps = True
    bias = None

    def __call__(self, maps: Tensor, residual: Tensor | None = None) -> Tensor:
        """uint8 maps (N, outputs, height, width) of `maps`, and `residual` shifted by its zero point, int64."""
        values = self.requantization(self.sums(maps), residual)
        return max_pool(values.add_(self.zero_out).clamp_(0, 255).to(torch.uint8), self.layer.pool)

    def sums(self, maps: Tensor) -> Tensor:
        """The exact sums, int64."""
        conv = self.layer.conv
        return exact(
            lambda maps, weight: F.conv2d(maps, weight, None, conv.stride, conv.padding, 1, conv.groups),
            (maps, self.zero_in),
            self.weight,
        )


@dataclass
class Head:
    """From the last maps to int16 values (N, channels): their sums, or their sums weighted by position."""

    kind: str  # "mean" or "gdconv"
    zero_in: int
    weight: Tensor | None = None  # gdconv: int8 (channels, 1, height, width)
    requantization: Requantization | None = None  # gdconv
    limit: int = LARGEST_INT16  # of a value
    shift: int = 0  # mean: of the sum, so that it fits
    from_maps = True
    bias = None

    def __call__(self, maps: Tensor) -> Tensor:
        if self.kind == "mean":
            sums = (maps.long() - self.zero_in).sum((2, 3))
            return (sums + (1 << self.shift >> 1)) >> self.shift
        return self.requantization(self.sums(maps)).clamp(-self.limit, self.limit)

    def sums(self, maps: Tensor) -> Tensor:
        return exact(
            lambda maps, weight: F.conv2d(maps, weight, groups=len(weight)), (maps, self.zero_in), self.weight
        ).flatten(1)


@dataclass
class Dense:
    """A linear layer, from maps or values to values, or to the logits."""

    layer: Step
    weight: Tensor  # int8 (outputs, inputs)
    zero_in: int
    from_maps: bool
    bias: Tensor | None = None  # (10,), below 2^30, of the logits
    requantization: Requantization | None = None  # of hidden values
    limit: int = LARGEST_INT16

    def __call__(self, values: Tensor) -> Tensor:
        sums = self.sums(values)
        if self.bias is not None:
            return sums + self.bias
        return self.requantization(sums).clamp(0 if self.layer.relu else -self.limit, self.limit)

    def sums(self, values: Tensor) -> Tensor:
        return exact(F.linear, (values.flatten(1), self.zero_in), self.weight)


@dataclass
class IntegerNetwork:
    """Integer arithmetic only; its logits times `logit_scale` are about those of the float network."""

    plan: Plan
    convolutions: list[Convolution] = field(default_factory=list)
    head: Head | None = None
    dense: list[Dense] = field(default_factory=list)
    logit_scale: float = 1.0

    def __call__(self, images: Tensor, batch_size: int = 50) -> Tensor:
        """Logits, int32 (N, 10), of uint8 images (N, 28, 28)."""
        return torch.cat([self._logits(batch) for batch in images.split(batch_size)]).int()

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        maps = image_maps(images, self.plan)
        inputs = []  # of each convolution
        for convolution in self.convolutions:
            inputs.append(maps)
            maps = convolution(maps, self.residual(convolution, inputs))
        values = self.head(maps) if self.head else maps
        for dense in self.dense:
            values = dense(values)
        return values

    def residual(self, convolution: Convolution, inputs: list[Tensor]) -> Tensor | None:
        """What is added to a convolution's result, int64 without its zero point; None if nothing is."""
        source = convolution.layer.residual
        return None if source is None else inputs[source].long() - self.convolutions[source].zero_in

    def weight_bytes(self) -> int:
        """The size of all constants: weights, each set once, multipliers and biases."""
        parts = [*self.convolutions, *([self.head] if self.head else []), *self.dense]
        weights = {id(part.weight): part.weight.numel() for part in parts if part.weight is not None}
        channels = sum(part.requantization.bytes for part in parts if part.requantization)
        return sum(weights.values()) + channels + 4 * len(self.dense[-1].bias)


def image_maps(images: Tensor, plan: Plan) -> Tensor:
    """What the first layer reads, uint8 (N, 1, side, side), of uint8 images (N, 28, 28)."""
    images = deskew_bytes(images, plan.deskew) if plan.deskew else images
    return images[:, None, plan.crop : 28 - plan.crop, plan.crop : 28 - plan.crop]


def max_pool(maps: Tensor, size: int) -> Tensor:
    """The largest of each `size` × `size` values; torch's own function takes no integers."""
    for axis in (2, 3):
        rows = maps.movedim(axis, 0)[: maps.shape[axis] // size * size]
        maps = reduce(torch.maximum, (rows[first::size] for first in range(size))).movedim(0, axis)
    return maps


def exact(function, maps: tuple[Tensor, int], weight: Tensor) -> Tensor:
    """The sums of products of integers, int64: by float32 if no sum can exceed its 24 bits, else by float64."""
    maps, zero = maps
    type_ = torch.float32 if bound(weight, zero, maps.dtype == torch.uint8) < 2**24 else torch.float64
    return function(maps.to(type_) - zero, weight.to(type_)).long()


def bound(weight: Tensor, zero: int, from_maps: bool) -> int:
    """The largest possible absolute sum."""
    largest = max(zero, 255 - zero) if from_maps else LARGEST_INT16
    return largest * int(weight.long().abs().flatten(1).sum(1).max())
