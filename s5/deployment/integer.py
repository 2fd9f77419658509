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
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from s5.deployment.deskew import deskew_bytes
from s5.deployment.layer_graph import GraphError, Step

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

    deskew: float = 0.0  # the height, in pixels; 0: none
    crop: int = 0  # pixels
    layers: list[Layer] = field(default_factory=list)
    head: Head | None = None
    linear: Step | None = None
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
    network = IntegerNetwork()
    layers, sources = network.layers, []  # the number of the step that each layer reads, and the shape of its output
    shape = (1, 28, 28)  # of the output of the step before
    for number, step in enumerate(steps):
        layer = layers[-1] if layers and layers[-1].output == number - 1 else None  # that may go on
        others = [each for each in step.inputs if each != number - 1]
        follows = step.inputs[0] == number - 1 if len(step.inputs) == 1 else len(others) == 1
        if not follows or network.linear or (step.relu and step.kind not in ("conv", "add", "pool")):
            _refuse(step)
        elif step.kind == "deskew" and number == 0:
            network.deskew = step.size
        elif step.kind == "crop" and not layers and not network.crop:
            network.crop = step.size
        elif step.kind == "conv" and not network.head and _is_global(step, shape) and steps[-2] is step:
            network.head = Head(step, shape[1:])
        elif step.kind == "conv" and not network.head and (step.groups == 1 or _is_depthwise(step, shape)):
            layers.append(Layer(step, shape[1:], step.shape[1:], number))
            sources.append((number - 1, shape))
        elif step.kind == "add" and layer and layer.conv is steps[number - 1] and (others[0], step.shape) in sources:
            layer.residual, layer.output = sources.index((others[0], step.shape)), number
        elif step.kind == "pool" and layer and layer.pool == 1:
            layer.pool, layer.size_out, layer.output = step.size, step.shape[1:], number
        elif step.kind == "mean" and layers and not network.head:
            network.head = Head(step, shape[1:])
        elif step.kind == "linear" and network.head and step.shape == (10,):
            network.linear = step
        else:
            _refuse(step)
        shape = step.shape
    if not network.linear or not layers:
        _refuse(steps[-1])
    return network


def _is_depthwise(conv: Step, shape: tuple[int, ...]) -> bool:
    """True if each channel of maps of this shape gives one output."""
    return conv.groups == shape[0] == len(conv.weight)


def _is_global(conv: Step, shape: tuple[int, ...]) -> bool:
    """True for a depthwise convolution of maps of this shape by weights as large as the maps, without ReLU."""
    return _is_depthwise(conv, shape) and conv.weight.shape[2:] == shape[1:] and not conv.padding and not conv.relu


def _refuse(step: Step) -> NoReturn:
    raise GraphError(
        f"{step.name or step.kind} cannot be exported to C in this place: a network must be convolutions, full or "
        "depthwise, with additions of an earlier layer's input and max-pooling, then a mean or a global depthwise "
        "convolution, then a linear layer of ten outputs"
    )
