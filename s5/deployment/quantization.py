"""From a trained network to integers after training: ranges and biases from training images.

Layer by layer, the float network and the integer network run side by side on the calibration images. A layer's scale
covers all values that it has on them; its biases make the mean of every channel before ReLU equal in both networks,
which also corrects what the rounding of earlier layers has shifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.deployment.c_plan import Layer, plan
from s5.deployment.integer import (
    LARGEST_INT16,
    Convolution,
    Dense,
    Head,
    IntegerNetwork,
    Requantization,
    bound,
    image_maps,
)
from s5.deployment.layer_graph import GraphError, Step, steps_of
from s5.networks.layers import deskew
from s5.training.augmentation import MEAN, STD, normalize

IMAGE_SCALE, IMAGE_ZERO = 1 / (255 * STD), round(255 * MEAN)  # a pixel of this value is about 0 once it is normalised
CALIBRATION_IMAGES = 1000  # training images
BATCH = 50  # of them: what is computed of it fits into the processor's cache
LARGEST_SHIFT = 30


def quantize(model: nn.Module, images: Tensor) -> IntegerNetwork:
    """The integer network of `model`, calibrated on uint8 `images` (N, 28, 28); the model is not changed.

    Raises GraphError if the model has a layer that cannot be exported or values that are not finite.
    """
    steps = steps_of(model)
    for step in steps:
        check_finite(step)
    with torch.inference_mode():
        network = _Calibration(images, plan(steps)).network
    _check_bounds(network)
    return network


def check_finite(step: Step) -> None:
    """Raise GraphError if a value of the step is NaN or infinite."""
    for values in (step.weight, step.scale, step.bias):
        if values is not None and not values.isfinite().all():
            raise GraphError(f"the weights of {step.name or step.kind} are not finite: train the network again")


class _Calibration:
    """The float and the integer maps on the calibration images, and the integer network as far as it is built."""

    def __init__(self, images: Tensor, plan):
        self.network = IntegerNetwork(plan)
        self.maps = image_maps(images, plan)
        floats = deskew(normalize(images), plan.deskew) if plan.deskew else normalize(images)
        self.floats = floats[:, :, plan.crop : 28 - plan.crop, plan.crop : 28 - plan.crop]
        self.scale, self.zero = IMAGE_SCALE, IMAGE_ZERO  # of `maps`: float = (integer - zero) × scale
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}  # int8 and scale, of each float tensor
        self.inputs: list[tuple[Tensor, Tensor, float]] = []  # of each layer: floats, maps, scale
        for layer in plan.layers:
            self.add_convolution(layer)
        for step, after in zip(plan.dense, [*plan.dense[1:], None], strict=True):
            if plan.head is not None and step is plan.dense[0]:
                self.add_head(plan.head, _value_limit(step))
            self.add_dense(step, after)

    def add_convolution(self, layer: Layer) -> None:
        conv, network = layer.conv, self.network
        self.inputs.append((self.floats, self.maps, self.scale))
        weight, weight_scale = self._weights(conv.weight)

        def before_relu(floats: Tensor) -> Tensor:
            sums = F.conv2d(floats, conv.weight, None, conv.stride, conv.padding, 1, conv.groups)
            return sums * conv.scale[:, None, None] + conv.bias[:, None, None]

        def relu(values: Tensor, step: Step) -> Tensor:
            return values.relu() if step.relu else values

        def after_all(floats: Tensor, *residual: Tensor) -> Tensor:
            values = relu(before_relu(floats), conv)
            values = relu(values + residual[0], layer.add) if residual else values
            return relu(F.max_pool2d(values, layer.pool), layer.last)

        source = [] if layer.residual is None else [self.inputs[layer.residual]]
        mean = _mean(before_relu, self.floats)
        self.floats = _batched(after_all, self.floats, *(floats for floats, _, _ in source))
        scale, zero = choose_range(self.floats)
        convolution = Convolution(layer, weight, self.zero, zero)
        factor = weight_scale * conv.scale * (self.scale / scale)
        bias = mean / scale - _mean(convolution.sums, self.maps) * factor
        convolution.requantization = requantization = fixed_point(factor, bias)
        if source:
            requantization.relu = conv.relu
            requantization.residual_multiplier = round(source[0][2] / scale * 2**requantization.shift)
        network.convolutions.append(convolution)

        def integer(maps: Tensor, *residual: Tensor) -> Tensor:
            zeros = [network.convolutions[layer.residual].zero_in] if residual else []
            return convolution(maps, *(maps.long() - zero for maps, zero in zip(residual, zeros, strict=True)))

        self.maps = _batched(integer, self.maps, *(maps for _, maps, _ in source))
        self.scale, self.zero = scale, zero

    def add_head(self, step: Step, limit: int) -> None:
        if step.kind == "mean":
            area = self.maps[0, 0].numel()
            head = Head("mean", self.zero, limit=limit)
            while area * max(self.zero, 255 - self.zero) >> head.shift > limit:
                head.shift += 1
            self.floats = self.floats.mean((2, 3))
            scale = self.scale / area * 2**head.shift
        else:
            weight, weight_scale = self._weights(step.weight)
            floats = F.conv2d(self.floats, step.weight, groups=step.groups).flatten(1)
            floats *= step.scale
            scale = _value_scale(floats, limit)
            head = Head(
                "gdconv", self.zero, weight, fixed_point(weight_scale * step.scale * (self.scale / scale)), limit
            )
            self.floats = floats + step.bias  # its bias becomes part of the next layer's
        self.network.head = head
        self.maps, self.scale, self.zero = head(self.maps), scale, 0

    def add_dense(self, step: Step, after: Step | None) -> None:
        floats = F.linear(self.floats.flatten(1), step.weight, step.bias)
        weight, weight_scale = self._weights(step.weight, per_channel=after is not None)
        dense = Dense(step, weight, self.zero, from_maps=self.maps.dtype == torch.uint8)
        sums = _mean(dense.sums, self.maps)
        if after is None:
            self.network.logit_scale = scale = (weight_scale * self.scale).item()
            dense.bias = (floats.mean(0) / scale - sums).round().long()
        else:
            dense.limit = _value_limit(after)
            scale = _value_scale(floats, dense.limit)
            factor = weight_scale * (self.scale / scale)
            dense.requantization = fixed_point(factor, floats.mean(0) / scale - sums * factor)
        self.network.dense.append(dense)
        self.floats = floats.relu() if step.relu else floats
        self.maps, self.scale, self.zero = _batched(dense, self.maps), scale, 0

    def _weights(self, weight: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
        """The int8 weights, the same tensor for the same `weight`, and their scale, (channels,) or a single one."""
        if id(weight) not in self.weights:
            largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()
            # Zeros may have any scale: 0 leaves a channel out of the choice of the shift, but logits need a unit.
            scale = largest / 127 if per_channel or largest > 0 else torch.ones(())
            divisor = scale.where(scale > 0, 1).view(-1, *(1,) * (weight.dim() - 1))
            self.weights[id(weight)] = (weight / divisor).round().to(torch.int8), scale
        return self.weights[id(weight)]


def choose_range(values: Tensor) -> tuple[float, int]:
    """Scale and zero point of uint8 for all float `values`; 0 is exact.

    Cutting off the largest values, by mean squared error or by percentile, made the logits of these networks worse.
    """
    low, high = min(values.min().item(), 0), max(values.max().item(), 0)
    scale = (high - low) / 255
    return (scale, round(-low / scale)) if scale > 1e-30 else (1.0, 0)


def fixed_point(factor: Tensor, bias: Tensor | None = None) -> Requantization:
    """The requantisation value = sum × factor + bias, both float (channels,), in integers."""
    largest = factor.abs().max().item()
    shift = LARGEST_SHIFT if largest == 0 else min(LARGEST_SHIFT, math.floor(math.log2(LARGEST_INT16 / largest)))
    if shift < 1:
        raise GraphError("the scales of two layers differ too much for int16 multipliers")
    result = Requantization((factor.double() * 2**shift).round().to(torch.int16), None, shift)
    if bias is not None:
        largest = bias.abs().max().item() * 2**shift
        result.bias_shift = max(0, math.ceil(math.log2(max(largest, 1) / LARGEST_INT16)))
        result.bias = (bias.double() * 2 ** (shift - result.bias_shift)).round().to(torch.int16)
    return result


def _value_limit(after: Step) -> int:
    """The largest absolute int16 value for which no sum of the linear layer `after` can leave int32."""
    return min(LARGEST_INT16, 2**30 // (127 * after.weight.shape[1]))


def _value_scale(floats: Tensor, limit: int) -> float:
    """The scale of int16 values: twice what was seen fits."""
    largest = floats.abs().max().item()
    return 2 * largest / limit if largest > 1e-30 else 1.0


def _check_bounds(network: IntegerNetwork) -> None:
    """Raise GraphError, naming the layer, if its constants or sums do not fit into the integers of the C code."""
    parts = [(each, each.layer.conv) for each in network.convolutions] + [(each, each.layer) for each in network.dense]
    parts += [(network.head, network.plan.head)] if network.head else []
    for part, step in parts:
        fits = part.weight is None or not part.from_maps or bound(part.weight, part.zero_in, True) < 2**30
        if requantization := part.requantization:
            fits = fits and requantization.bias_shift <= 40 and requantization.residual_multiplier < 2**31
        if not fits or (part.bias is not None and part.bias.abs().max() >= 2**30):
            raise GraphError(f"the sums of {step.name or step.kind} do not fit into 32 bits")


def _batched(function: Callable, *tensors: Tensor) -> Tensor:
    return torch.cat([function(*parts) for parts in zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)])


def _mean(function: Callable, images: Tensor) -> Tensor:
    """The mean of each channel of what `function` makes of the images, (channels,)."""
    results = (function(batch).double() for batch in images.split(BATCH))
    sums = [result.reshape(*result.shape[:2], -1).mean(2).sum(0) for result in results]
    return torch.stack(sums).sum(0) / len(images)
