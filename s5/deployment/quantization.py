"""From a trained network to integers after training: ranges and biases from training images.

Layer by layer, the float network and the integer network run side by side on the calibration images. A layer's scale
covers all values that it has on them; its biases make the mean of every channel before ReLU equal in both networks,
which also corrects what the rounding of earlier layers has shifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from s5.analysis.inspection import count_macs
from s5.deployment.integer import LARGEST_INT16, IntegerNetwork, Requantization, largest_sum, network_of
from s5.deployment.layer_graph import IMAGE, GraphError, Step, apply, steps_of
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
        for values in (step.weight, step.scale, step.bias):
            if values is not None and not values.isfinite().all():
                raise GraphError(f"the weights of {step.name or step.kind} are not finite: train the network again")
    network = network_of(steps)
    network.macs = count_macs(model)
    with torch.inference_mode():
        floats = _outputs(steps, normalize(images))
        maps, scale, zero = _quantize_layers(network, floats, images)
        values, scale = _quantize_head(network, floats, maps, scale, zero)
        _quantize_linear(network, floats[len(steps) - 1], values, scale)
    _check_bounds(network)
    return network


def _outputs(steps: list[Step], images: Tensor) -> dict[int, Tensor]:
    """The float outputs of all steps on normalised images, by the step's number."""
    outputs = {IMAGE: images}
    for number, step in enumerate(steps):
        outputs[number] = _batched(partial(apply, step), *(outputs[each] for each in step.inputs))
    return outputs


def _quantize_layers(network: IntegerNetwork, floats: dict, images: Tensor) -> tuple[Tensor, float, int]:
    """Set the integers of all layers; return the last maps, their scale and their zero point."""
    scale, zero = IMAGE_SCALE, IMAGE_ZERO  # of the last of `maps`: float = (integer - zero) × scale
    maps, scales = [network.first_maps(images)], []  # of the input of each layer
    quantized: dict[int, tuple[Tensor, Tensor]] = {}  # int8 weights and scales, each once, by the float tensor
    for layer in network.layers:
        conv, shared = layer.conv, id(layer.conv.weight)
        scales.append(scale)
        quantized[shared] = quantized.get(shared) or int8_weights(conv.weight)
        layer.weight, weight_scale = quantized[shared]
        scale_out, layer.zero_out = choose_range(floats[layer.output])
        layer.zero_in = zero
        factor = weight_scale * conv.scale * (scale / scale_out)
        before_relu = _mean(partial(apply, replace(conv, relu=False)), floats[conv.inputs[0]])
        bias = before_relu / scale_out - _mean(layer.sums, maps[-1]) * factor
        layer.requantization = requantization = fixed_point(factor, bias)
        if layer.residual is not None:
            layer.zero_residual = network.layers[layer.residual].zero_in
            requantization.relu = conv.relu
            requantization.residual_multiplier = round(scales[layer.residual] / scale_out * 2**requantization.shift)
        maps.append(_batched(layer, *layer.inputs(maps)))
        scale, zero = scale_out, layer.zero_out
    return maps[-1], scale, zero


def _quantize_head(
    network: IntegerNetwork, floats: dict, maps: Tensor, scale: float, zero: int
) -> tuple[Tensor, float]:
    """Set the integers of the head; return its int16 values on the last maps, and their scale."""
    head, step = network.head, network.head.step
    head.zero_in = zero
    # No sum of the linear layer can leave int32 with values up to this limit.
    head.limit = min(LARGEST_INT16, 2**30 // (127 * network.linear.weight.shape[1]))
    if step.kind == "mean":
        area = math.prod(head.size)
        while area * max(zero, 255 - zero) >> head.shift > head.limit:
            head.shift += 1
        return head(maps), scale / area * 2**head.shift
    head.weight, weight_scale = int8_weights(step.weight)
    without_bias = replace(step, bias=torch.zeros_like(step.bias))  # which becomes part of the linear layer's
    largest = apply(without_bias, floats[step.inputs[0]]).abs().max().item()
    value_scale = 2 * largest / head.limit if largest > 1e-30 else 1.0  # twice what was seen fits
    head.requantization = fixed_point(weight_scale * step.scale * (scale / value_scale))
    return head(maps), value_scale


def _quantize_linear(network: IntegerNetwork, logits: Tensor, values: Tensor, scale: float) -> None:
    """Set the integers of the linear layer, whose float outputs are `logits`; all outputs have one scale."""
    weight = network.linear.weight
    unit = weight.abs().max() / 127 if weight.any() else torch.ones(())  # weights of zero may have any scale
    network.weight = (weight / unit).round().to(torch.int8)
    network.logit_scale = (unit * scale).item()
    sums = network.linear_sums(values).double().mean(0)
    network.bias = (logits.mean(0) / network.logit_scale - sums).round().long()


def int8_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights in int8, and the scale of each output channel; a channel of zeros has the scale 0."""
    scale = weight.abs().flatten(1).amax(1) / 127
    divisor = scale.where(scale > 0, 1).view(-1, *(1,) * (weight.dim() - 1))
    return (weight / divisor).round().to(torch.int8), scale


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


def _check_bounds(network: IntegerNetwork) -> None:
    """Raise GraphError, naming the layer, if its constants or sums do not fit into the integers of the C code."""
    parts = [(layer, layer.conv) for layer in network.layers] + [(network.head, network.head.step)]
    for part, step in parts:
        if requantization := part.requantization:
            fits = largest_sum(part.weight, part.zero_in) < 2**30 and requantization.bias_shift <= 40
            if not fits or requantization.residual_multiplier >= 2**31:
                raise GraphError(f"the sums of {step.name or step.kind} do not fit into 32 bits")
    if network.bias.abs().max() >= 2**30:
        raise GraphError(f"the sums of {network.linear.name} do not fit into 32 bits")


def _batched(function: Callable, *tensors: Tensor) -> Tensor:
    return torch.cat([function(*parts) for parts in zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)])


def _mean(function: Callable, images: Tensor) -> Tensor:
    """The mean of each channel of what `function` makes of the images, (channels,)."""
    results = (function(batch).double() for batch in images.split(BATCH))
    sums = [result.reshape(*result.shape[:2], -1).mean(2).sum(0) for result in results]
    return torch.stack(sums).sum(0) / len(images)
