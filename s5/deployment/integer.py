"""A network in integers: the reference that the generated C code equals bit for bit.

Weights are int8 with one scale per output channel, maps are uint8 with one scale and one zero point per layer, and sums
are exact. What follows the sum of a convolution (BatchNorm, ReLU, an addition, the new scale) is one rounding:

    value = zero + (sum × multiplier + bias × 2^bias_shift + input × residual_multiplier + 2^(shift - 1)) / 2^shift

rounded down and clamped to 0 … 255. A convolution that is used several times keeps one set of weights; each use has its
own int16 multiplier and bias per channel, 4 bytes. The values after the last map are int16 and the logits int32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.deployment.deskew import deskew_bytes
from s5.deployment.layer_graph import IMAGE, GraphError, Step

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
class Layer:
    """A convolution with what follows it until the next one: an addition, then max-pooling, if any."""

    conv: Step
    size_in: tuple[int, int]  # height and width of its input
    size_out: tuple[int, int]  # of its output, after pooling
    output: int  # the number of the step that gives its output
    residual: int | None = None  # the number of the layer whose input is added
    pool: int = 1
    # From here on set by `quantization.quantize`:
    weight: Tensor | None = None  # int8 (outputs, inputs / groups, side, side); the same tensor in every use
    zero_in: int = 0
    zero_out: int = 0
    zero_residual: int = 0
    requantization: Requantization | None = None

    @property
    def depthwise(self) -> bool:
        """True if each output channel has one input channel."""
        return self.conv.groups > 1

    @property
    def channels_in(self) -> int:
        """The number of channels that it reads."""
        return self.conv.weight.shape[1] * self.conv.groups

    def inputs(self, maps: list[Tensor]) -> list[Tensor]:
        """What it reads, of the inputs of all layers up to this one."""
        return [maps[-1]] if self.residual is None else [maps[-1], maps[self.residual]]

    def __call__(self, maps: Tensor, residual: Tensor | None = None) -> Tensor:
        """uint8 maps (N, outputs, height, width) of uint8 `maps` and of those that are added."""
        if residual is not None:
            residual = residual.long() - self.zero_residual
        values = self.requantization(self.sums(maps), residual)
        return max_pool(values.add_(self.zero_out).clamp_(0, 255).to(torch.uint8), self.pool)

    def sums(self, maps: Tensor) -> Tensor:
        """The exact sums, int64."""
        settings = {"stride": self.conv.stride, "padding": self.conv.padding, "groups": self.conv.groups}
        return exact_convolution(maps, self.zero_in, self.weight, **settings)


@dataclass
class Head:
    """From the last maps to int16 values (N, channels): their sums (mean), or sums weighted by position (gdconv)."""

    step: Step
    size: tuple[int, int]  # height and width of the maps
    zero_in: int = 0
    limit: int = LARGEST_INT16  # of a value
    shift: int = 0  # mean: of the sum, so that it fits
    weight: Tensor | None = None  # gdconv: int8 (channels, 1, height, width)
    requantization: Requantization | None = None  # gdconv

    def __call__(self, maps: Tensor) -> Tensor:
        if self.step.kind == "mean":
            sums = (maps.long() - self.zero_in).sum((2, 3))
            return (sums + (1 << self.shift >> 1)) >> self.shift
        sums = exact_convolution(maps, self.zero_in, self.weight, groups=len(self.weight)).flatten(1)
        return self.requantization(sums).clamp(-self.limit, self.limit)


@dataclass
class IntegerNetwork:
    """Integer arithmetic only; its logits times `logit_scale` are about those of the float network.

    The image goes through `deskew` and `crop`, the `layers` one after another, the head, and a linear layer.
    """

    deskew: float  # the height, in pixels; 0: none
    crop: int
    layers: list[Layer]
    head: Head
    linear: Step
    macs: int = 0  # multiply-adds for one image
    weight: Tensor | None = None  # of the linear layer: int8 (10, channels)
    bias: Tensor | None = None  # of the linear layer: (10,), below 2^30
    logit_scale: float = 1.0

    def __call__(self, images: Tensor, batch_size: int = 50) -> Tensor:
        """Logits, int32 (N, 10), of uint8 images (N, 28, 28)."""
        return torch.cat([self._logits(batch) for batch in images.split(batch_size)]).int()

    @torch.inference_mode()
    def _logits(self, images: Tensor) -> Tensor:
        maps = [self.first_maps(images)]
        for layer in self.layers:
            maps.append(layer(*layer.inputs(maps)))
        return self.linear_sums(self.head(maps[-1])) + self.bias

    def first_maps(self, images: Tensor) -> Tensor:
        """What the first layer reads, uint8 (N, 1, side, side), of uint8 images (N, 28, 28)."""
        images = deskew_bytes(images, self.deskew) if self.deskew else images
        return images[:, None, self.crop : 28 - self.crop, self.crop : 28 - self.crop]

    def linear_sums(self, values: Tensor) -> Tensor:
        """The sums of the linear layer, exact: int64 (N, 10)."""
        return F.linear(values.double(), self.weight.double()).long()

    def weight_bytes(self) -> int:
        """The size of all constants: weights, each set once, multipliers and biases."""
        parts = [*self.layers, self.head]
        weights = {id(part.weight): part.weight.numel() for part in parts if part.weight is not None}
        channels = sum(part.requantization.bytes for part in parts if part.requantization)
        return sum(weights.values()) + channels + self.weight.numel() + 4 * len(self.bias)


def max_pool(maps: Tensor, size: int) -> Tensor:
    """The largest of each `size` × `size` values; torch's own function takes no integers."""
    for axis in (2, 3):
        rows = maps.movedim(axis, 0)[: maps.shape[axis] // size * size]
        maps = reduce(torch.maximum, (rows[first::size] for first in range(size))).movedim(0, axis)
    return maps


def exact_convolution(maps: Tensor, zero: int, weight: Tensor, **settings) -> Tensor:
    """The sums of products of integers, int64: by float32 if no sum can exceed its 24 bits, else by float64."""
    type_ = torch.float32 if largest_sum(weight, zero) < 2**24 else torch.float64
    return F.conv2d(maps.to(type_) - zero, weight.to(type_), **settings).long()


def largest_sum(weight: Tensor, zero: int) -> int:
    """The largest possible absolute sum of bytes, minus `zero`, times weights."""
    return max(zero, 255 - zero) * int(weight.long().abs().flatten(1).sum(1).max())


# --- From steps to a network -----------------------------------------------------------------------------------------


def network_of(steps: list[Step]) -> IntegerNetwork:
    """The network that the steps are, in the order in which a small chip runs it, still without integers.

    Raises GraphError if it is anything but convolutions one after another, with additions of an earlier layer's input
    and max-pooling, then a mean or a global depthwise convolution, then a linear layer.
    """
    reader = _Reader(steps)
    deskew, crop = reader.take("deskew"), reader.take("crop")
    layers, inputs = [], []  # inputs: the number and the shape of the step that each layer reads
    while reader.next_kind() == "conv":
        inputs.append((reader.number, reader.shape))
        layers.append(_layer(reader, inputs))
    size = tuple(reader.shape[1:])
    head = reader.take("mean")
    if head is None and layers and _is_global(layers[-1]):
        size, head = layers[-1].size_in, layers.pop().conv
    linear = reader.take("linear")
    if not layers or head is None or head.relu or linear is None or linear.relu or linear.shape != (10,):
        reader.refuse()
    if reader.next_kind():
        reader.refuse()
    return IntegerNetwork(deskew.size if deskew else 0.0, crop.size if crop else 0, layers, Head(head, size), linear)


class _Reader:
    """The steps one after another; each must read the output of the one before it."""

    def __init__(self, steps: list[Step]):
        self.steps, self.number = steps, IMAGE  # `number`: of the step that was read last

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 28, 28) if self.number == IMAGE else self.steps[self.number].shape

    def next_kind(self) -> str | None:
        return self.steps[self.number + 1].kind if self.number + 1 < len(self.steps) else None

    def take(self, kind: str) -> Step | None:
        """Go on to the next step and return it if it is of this kind and reads what was read last."""
        if self.next_kind() != kind or self.number not in self.steps[self.number + 1].inputs:
            return None
        self.number += 1
        return self.steps[self.number]

    def refuse(self) -> NoReturn:
        step = self.steps[min(self.number + 1, len(self.steps) - 1)]
        raise GraphError(
            f"{step.name or step.kind} cannot be exported to C in this place: a network must be convolutions, full or "
            "depthwise, with additions of an earlier layer's input and max-pooling, then a mean or a global depthwise "
            "convolution, then a linear layer of ten outputs"
        )


def _layer(reader: _Reader, inputs: list[tuple[int, tuple]]) -> Layer:
    """The layer that begins with the next step, a convolution; its input is the last of `inputs`."""
    channels, *size_in = reader.shape
    conv = reader.steps[reader.number + 1]
    if conv.groups != 1 and not conv.groups == channels == len(conv.weight):
        reader.refuse()
    if not reader.take("conv"):
        reader.refuse()
    layer = Layer(conv, tuple(size_in), conv.shape[1:], reader.number)
    if reader.next_kind() == "add":
        others = [(number, conv.shape) for number in reader.steps[reader.number + 1].inputs if number != reader.number]
        if len(others) != 1 or others[0] not in inputs or not reader.take("add"):
            reader.refuse()
        layer.residual = inputs.index(others[0])
    if pool := reader.take("pool"):
        layer.pool = pool.size
    layer.output, layer.size_out = reader.number, reader.shape[1:]
    return layer


def _is_global(layer: Layer) -> bool:
    """True for a depthwise convolution by the whole map and nothing else."""
    whole = layer.depthwise and layer.size_out == (1, 1) and tuple(layer.conv.weight.shape[2:]) == layer.size_in
    return whole and not layer.conv.padding and not layer.conv.relu and layer.residual is None and layer.pool == 1
