"""From a trained network to integers after training: ranges and biases from training images.

Layer by layer, the float network and the integer network run side by side on the calibration images. A layer's scale
covers all values that it has on them; its biases make the mean of every channel before ReLU equal in both networks,
which also corrects what the rounding of earlier layers has shifted.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s5.analysis.inspection import count_macs
from s5.deployment.integer import (
    BATCH,
    LARGEST_INT16,
    Head,
    IntegerNetwork,
    Layer,
    exact_sums,
    first_maps,
    linear_sums,
)
from s5.deployment.layer_graph import GraphError, Step, apply, run, steps_of
from s5.training.augmentation import MEAN, STD, normalize

IMAGE_SCALE, IMAGE_ZERO = 1 / (255 * STD), round(255 * MEAN)  # a pixel of this value is about 0 once it is normalised
CALIBRATION_IMAGES = 1000  # training images
LARGEST_SHIFT = 30
KINDS = re.compile(r"(deskew )?(crop )?(conv (add )?(pool )?)+(mean|conv) linear")  # of the steps, in this order


class Maps(NamedTuple):
    """uint8 maps (N, channels, height, width) that stand for floats: (value - zero) × scale."""

    values: Tensor
    scale: float
    zero: int


@torch.inference_mode()
def quantize(model: nn.Module, images: Tensor) -> IntegerNetwork:
    """The integer network of `model`, calibrated on uint8 `images` (N, 28, 28); the model is not changed.

    Raises GraphError if the model cannot be exported to C.
    """
    steps = steps_of(model)
    check(steps)
    batches = [run(steps, batch) for batch in normalize(images).split(BATCH)]
    floats = [torch.cat(outputs) for outputs in zip(*batches, strict=True)] + [normalize(images)]  # [IMAGE] is the last
    height, crop = (sum(step.size for step in steps if step.kind == kind) for kind in ("deskew", "crop"))
    before = maps = Maps(first_maps(images, height, crop), IMAGE_SCALE, IMAGE_ZERO)
    layers, weights = [], {}  # int8 weights and scales, each once, by the float tensor
    starts = [number for number, step in enumerate(steps[:-2]) if step.kind == "conv"]
    for start, end in pairwise([*starts, len(steps) - 2]):
        shared = weights.setdefault(id(steps[start].weight), int8_weights(steps[start].weight))
        unit = maps.scale * (shared[1] * steps[start].scale).abs().max().item()  # of the sums
        range_out = choose_range(floats[end - 1], 2.01 * unit)  # the C code needs multipliers below 1/2
        layers.append(_quantize_layer(steps[start:end], floats[start - 1], before, maps, shared, *range_out))
        batches = zip(before.values.split(BATCH), maps.values.split(BATCH), strict=True)
        before, maps = maps, Maps(torch.cat([layers[-1](*batch) for batch in batches]), *range_out)
    head, scale = _quantize_head(steps[-2], floats[len(steps) - 3], steps[-1].weight.shape[1], maps.scale, maps.zero)
    linear = steps[-1]
    unit = linear.weight.abs().max() / 127
    weight, logit_scale = (linear.weight / unit).round().to(torch.int8), (unit * scale).item()
    sums = linear_sums(head(maps.values), weight).double().mean(0)
    bias = (floats[len(steps) - 1].mean(0) / logit_scale - sums).round().long()
    return IntegerNetwork(height, crop, layers, head, linear.name, weight, bias, logit_scale, count_macs(model))


def check(steps: list[Step]) -> None:
    """Raise GraphError unless the C code can compute these steps."""
    kinds = " ".join(step.kind for step in steps)
    if KINDS.fullmatch(kinds) and all(_reads_the_last_map(steps, number) for number in range(len(steps))):
        before, head, linear = steps[-3:]
        convs = [step for step in steps if step.kind == "conv"]
        depthwise = [conv for conv in convs if conv.weight.shape[1] == 1 and conv.groups == len(conv.weight)]
        is_global = head in depthwise and head.shape[1:] == (1, 1) and not head.padding
        is_mean = head.kind == "mean" and math.prod(before.shape[1:]) <= LARGEST_INT16 // 255
        plain = all(conv in depthwise or conv.groups == 1 for conv in convs)
        plain &= all(conv.padding < conv.weight.shape[2] == conv.weight.shape[3] for conv in convs)
        if plain and (is_global or is_mean) and not head.relu and not linear.relu and linear.shape == (10,):
            return
    raise GraphError(
        "this network cannot be exported to C: it must be square convolutions, full or depthwise, padded by less than "
        "their size, with max-pooling and with additions around one or two of them, then the mean of at most 128 "
        "pixels or a global depthwise convolution, then a linear layer of ten outputs"
    )


def _reads_the_last_map(steps: list[Step], number: int) -> bool:
    """True if a step reads only the output of the one before, to which an addition adds an input of a layer.

    That is the input of the convolution before, or of the one before that if nothing comes in between.
    """
    if steps[number].kind != "add":
        return steps[number].inputs == (number - 1,)
    convs = [step for step in steps[max(number - 2, 0) : number] if step.kind == "conv"]
    return sorted(steps[number].inputs) in [[*conv.inputs, number - 1] for conv in convs]


def _quantize_layer(
    steps: list[Step],
    floats: Tensor,
    before: Maps,
    maps: Maps,
    weights: tuple[Tensor, Tensor],
    scale_out: float,
    zero_out: int,
) -> Layer:
    """A convolution and what follows it, in integers.

    `floats` is its float input, `maps` its integer input, and `before` that of the layer before.
    """
    conv, kinds = steps[0], [step.kind for step in steps]
    weight, weight_scale = weights
    factor = weight_scale * conv.scale * (maps.scale / scale_out)
    multiplier, shift = fixed_point(factor)
    before_relu = mean(partial(apply, replace(conv, relu=False)), floats)
    sums = mean(partial(exact_sums, conv, weight, maps.zero), maps.values)
    bias = before_relu / scale_out - sums * factor
    largest = max(bias.abs().max().item() * 2**shift, 1)
    bias_shift = max(0, math.ceil(math.log2(largest / LARGEST_INT16)))
    residual_from = int(any(step.kind == "add" and min(step.inputs) != conv.inputs[0] for step in steps))
    residual = before if residual_from else maps
    return Layer(
        conv=conv,
        size_in=tuple(maps.values.shape[2:]),
        size_out=steps[-1].shape[1:],
        pool=2 if "pool" in kinds else 1,
        weight=weight,
        zero_in=maps.zero,
        zero_out=zero_out,
        multiplier=multiplier,
        shift=shift,
        bias=(bias.double() * 2 ** (shift - bias_shift)).round().to(torch.int16),
        bias_shift=bias_shift,
        residual_multiplier=round(residual.scale / scale_out * 2**shift) if "add" in kinds else 0,
        residual_from=residual_from,
        residual_zero=residual.zero,
    )


def _quantize_head(step: Step, floats: Tensor, channels: int, scale: float, zero: int) -> tuple[Head, float]:
    """The head in integers, and the scale of its values; `floats` is its float input."""
    size = tuple(floats.shape[2:])
    # No sum of the linear layer can leave int32 with values up to this limit.
    limit = min(LARGEST_INT16, 2**30 // (127 * channels))
    if step.kind == "mean":
        return Head(step, size, zero, limit), scale / math.prod(size)
    weight, weight_scale = int8_weights(step.weight)
    without_bias = replace(step, bias=torch.zeros_like(step.bias))  # which becomes part of the linear layer's
    value_scale = 2 * apply(without_bias, floats).abs().max().item() / limit or 1.0  # twice what was seen fits
    multiplier, shift = fixed_point(weight_scale * step.scale * (scale / value_scale))
    return Head(step, size, zero, limit, weight, multiplier, shift), value_scale


def int8_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights in int8, and the scale of each output channel; a channel of zeros has the scale 0."""
    scale = weight.abs().flatten(1).amax(1) / 127
    divisor = scale.where(scale > 0, 1).view(-1, *(1,) * (weight.dim() - 1))
    return (weight / divisor).round().to(torch.int8), scale


def choose_range(values: Tensor, smallest: float = 0.0) -> tuple[float, int]:
    """Scale, not below `smallest`, and zero point of uint8 for all float `values`; 0 is exact.

    Cutting off the largest values, by mean squared error or by percentile, made the logits of these networks worse.
    """
    low, high = min(values.min().item(), 0), max(values.max().item(), 0)
    scale = max((high - low) / 255 or 1.0, smallest)  # 1: of a map that is 0 everywhere
    return scale, round(-low / scale)


def fixed_point(factor: Tensor) -> tuple[Tensor, int]:
    """The float factors (channels,) as int16 multipliers and a shift: factor = multiplier / 2^shift."""
    shift = min(LARGEST_SHIFT, math.floor(math.log2(LARGEST_INT16 / factor.abs().max().item())))
    return (factor.double() * 2**shift).round().to(torch.int16), shift


def mean(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """The mean of each channel of what `function` makes of the maps, (channels,)."""
    results = (function(batch).double() for batch in maps.split(BATCH))
    sums = [result.reshape(*result.shape[:2], -1).mean(2).sum(0) for result in results]
    return torch.stack(sums).sum(0) / len(maps)
