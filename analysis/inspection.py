"""What can be said about a network without training it: its layers, its cost and what each layer sees.

Nothing here leaves a trace: training modes, BatchNorm statistics, the device and the random state stay as they were.
Wherever an `input_size` is asked for, it is (batch, channels, height, width).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pandas as pd
import torch
import torch.fx
import torchinfo
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode
from torchinfo.enums import Units

IMAGE = (1, 1, 28, 28)  # one MNIST digit
NET_COUNTS = {"BatchNorm2d": 5, "Dropout": 0, "Linear": 1, "GAP": 1}

# From Python 3.11 on, torchinfo 1.8 prints "Units.MEGABYTES" for "M"; the summary should read alike everywhere.
Units.__str__ = str.__str__

SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def summary(model: nn.Module, input_size: tuple[int, ...] = IMAGE) -> torchinfo.ModelStatistics:
    """The layer summary of torchinfo; it shows itself as a notebook cell's last value, and with `print`."""
    with _evaluating(model):
        return torchinfo.summary(
            model,
            input_data=_zeros(model, input_size),  # torchinfo's own input is random and would move the seed
            mode="eval",
            col_names=("input_size", "output_size", "num_params", "kernel_size", "mult_adds"),
            col_width=16,
            row_settings=("var_names",),
            verbose=0,
        )


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters; one that several layers share counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_macs(model: nn.Module, input_size: tuple[int, ...] = IMAGE) -> int:
    """The multiply-adds of one forward pass: convolutions and matrix products, as PyTorch really runs them."""
    with _evaluating(model), FlopCounterMode(display=False) as counter:
        model(_zeros(model, input_size))
    return counter.get_total_flops() // 2  # a multiply-add is two operations


def layer_table(model: nn.Module) -> pd.DataFrame:
    """One row a layer in the order of definition: Layer, "name (Type)", Parameters (trainable), Details; then a Total.

    Activations without parameters are left out. Shared parameters count where they appear first, so that the rows
    add up to the total.
    """
    rows, counted = [], set()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        is_activation = type(module).__module__ == nn.ReLU.__module__  # torch.nn.modules.activation
        is_layer = not list(module.children()) and not is_activation
        if own or is_layer:
            new = [parameter for parameter in own if parameter.requires_grad and parameter not in counted]
            counted.update(new)
            rows.append((_title(name, module), sum(parameter.numel() for parameter in new), _details(module)))
    rows.append(("Total", count_parameters(model), ""))
    return pd.DataFrame(rows, columns=["Layer", "Parameters", "Details"])


def count_layers(model: nn.Module) -> dict[str, int]:
    """How many layers of each kind the model has: "BatchNorm2d", "Dropout" (of any sort), "Linear" and "GAP"
    (global average pooling: an AdaptiveAvgPool2d down to one value a channel)."""
    modules = list(model.modules())
    average_pools = [module for module in modules if isinstance(module, nn.AdaptiveAvgPool2d)]
    return {
        "BatchNorm2d": sum(isinstance(module, nn.BatchNorm2d) for module in modules),
        "Dropout": sum(isinstance(module, _DropoutNd) for module in modules),
        "Linear": sum(isinstance(module, nn.Linear) for module in modules),
        "GAP": sum(_pair(pool.output_size) == (1, 1) for pool in average_pools),
    }


def check_model(
    model: nn.Module,
    parameters: int | None = 18_214,
    counts: dict[str, int] = NET_COUNTS,
    budget: int = 20_000,
) -> pd.DataFrame:
    """What the model must be beside what it is: Check, Required, Found (all text) and Result, "pass" or "FAIL".

    `parameters` is the exact number, or None where only the budget matters (fewer than `budget`). `counts` may name
    any of the kinds of `count_layers`; another name is a KeyError.
    """
    trainable, layers = count_parameters(model), count_layers(model)
    checks = []
    if parameters is not None:
        checks.append(("Parameters", f"{parameters:,}", trainable, trainable == parameters))
    checks.append(("Parameter budget", f"< {budget:,}", trainable, trainable < budget))
    for kind, required in counts.items():
        checks.append((f"{kind} layers", f"{required:,}", layers[kind], layers[kind] == required))
    rows = [(check, required, f"{found:,}", "pass" if ok else "FAIL") for check, required, found, ok in checks]
    return pd.DataFrame(rows, columns=["Check", "Required", "Found", "Result"])


def receptive_field_table(model: nn.Module, input_size: tuple[int, ...] = IMAGE) -> pd.DataFrame:
    """What each convolution and pooling layer sees, one row a call, in the order of execution.

    Columns: Layer, Kernel, Stride, Padding, Output size (height×width×channels), Jump (input pixels between
    neighbouring outputs) and Receptive field (input pixels, padding included); "height×width" where the two differ.

    The recurrence is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks",
    Distill 2019: on a map with receptive field r and jump j, a kernel k gives r + (k-1)·j and a stride s gives j·s.
    It is carried along the graph of the forward pass as an interval of pixels, so that where branches meet (a
    residual sum, a concatenation) the span of all they see goes on. Any other operation is taken to act on each pixel
    alone (the map-wide statistics of GroupNorm and the like are not counted), except that a map flattened or averaged
    away is one value that sees it all.

    Raises ValueError, naming the place, where a number would be wrong: transposed convolution, upsampling, uneven
    adaptive pooling, a spatial step that is not a layer (functional pooling, slicing, padding), branches of different
    scale, a forward pass whose steps depend on its input (`torch.fx` cannot trace it).
    """
    if len(input_size) != 4:
        raise ValueError(f"input_size must be (batch, channels, height, width), not {tuple(input_size)}")
    with _evaluating(model):
        traced = torch.fx.symbolic_trace(model)
        _ShapeRecorder(traced).run(_zeros(model, input_size))

    rows = []
    maps = {}  # node of the graph → the height and the width of its feature map, as two _Axis
    for node in traced.graph.nodes:
        shape = node.meta["shape"]
        sources = [maps[source] for source in node.all_input_nodes if source in maps]
        if node.op == "placeholder" and shape:
            maps[node] = tuple(_Axis(size, jump=1, low=0, high=0) for size in shape[2:])
        if not shape or not sources or node.op == "output":
            continue  # no tensor, or one that depends on no pixel, or nothing done
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        name = _title(node.target, layer) if layer else node.name
        before = [_join(name, axes) for axes in zip(*sources, strict=True)]
        if isinstance(layer, SLIDING + ADAPTIVE):
            windows = _windows(name, layer, before, shape[2:])
            maps[node] = [axis.slide(*window) for axis, window in zip(before, windows, strict=True)]
            _, kernel, stride, padding, _ = zip(*windows, strict=True)  # each for (height, width)
            size = f"{shape[2]}×{shape[3]}×{shape[1]}"
            jump = [axis.jump for axis in maps[node]]
            field = [axis.high - axis.low + 1 for axis in maps[node]]
            rows.append((name, _text(kernel), _text(stride), _text(padding), size, _text(jump), _text(field)))
        else:
            maps[node] = _pass_on(name, layer or node.target, before, shape)
    columns = ["Layer", "Kernel", "Stride", "Padding", "Output size", "Jump", "Receptive field"]
    return pd.DataFrame(rows, columns=columns)


class _Axis(NamedTuple):
    """The height or the width of a feature map, seen from the image: value i of the `size` values depends on the
    pixels low + i·jump … high + i·jump. Padding lies outside the image, so `low` may be negative."""

    size: int
    jump: int
    low: int
    high: int

    def slide(self, size, kernel, stride, padding=0, dilation=1) -> _Axis:
        """The axis of a map of `size` values that a sliding window makes of this one."""
        first, last = -padding, dilation * (kernel - 1) - padding  # where the first window begins and ends
        return _Axis(size, self.jump * stride, self.low + first * self.jump, self.high + last * self.jump)


class _ShapeRecorder(torch.fx.Interpreter):
    """Runs a traced model and notes at each node the shape of its tensor (the first, if several), else None."""

    def run_node(self, node):
        result = super().run_node(node)
        first = result[0] if isinstance(result, tuple | list) and result else result
        node.meta["shape"] = tuple(first.shape) if isinstance(first, torch.Tensor) else None
        return result


def _windows(name, layer, before, sizes) -> list[tuple]:
    """The arguments of `_Axis.slide`, down and across, for a SLIDING or ADAPTIVE layer that makes maps of `sizes`."""
    if isinstance(layer, ADAPTIVE):
        return [_adaptive_window(name, axis.size, size) for axis, size in zip(before, sizes, strict=True)]
    kernel, stride, dilation = _pair(layer.kernel_size), _pair(layer.stride), _pair(getattr(layer, "dilation", 1))
    if layer.padding == "same":  # of an odd sum of padding, PyTorch puts the smaller half first
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    else:
        padding = _pair(0 if layer.padding == "valid" else layer.padding)
    return list(zip(sizes, kernel, stride, padding, dilation, strict=True))


def _adaptive_window(name, before, after) -> tuple:
    """The window of adaptive pooling, which makes value i of the values ⌊i·before/after⌋ … ⌈(i+1)·before/after⌉ - 1."""
    stride = before // after
    kernel = before - stride * (after - 1)
    actual = [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]
    if stride == 0 or actual != [(i * stride, i * stride + kernel) for i in range(after)]:
        raise ValueError(f"{name}: pools {before} values into {after}, so its windows are not all alike")
    return after, kernel, stride, 0, 1


def _join(name, axes) -> _Axis:
    """What an operation on several maps sees along one axis: the span of all that they see."""
    # A jump means nothing where a map has one value only.
    if len({(axis.size, axis.jump if axis.size > 1 else None) for axis in axes}) > 1:
        raise ValueError(f"{name}: joins feature maps of different scale")
    return axes[0]._replace(low=min(axis.low for axis in axes), high=max(axis.high for axis in axes))


def _pass_on(name, operation, before, shape) -> list[_Axis]:
    """The axes after anything but a sliding layer: unchanged, or one value that sees all where the map is gone."""
    kind = type(operation) if isinstance(operation, nn.Module) else operation
    kind = getattr(kind, "__name__", kind)  # of a class or a function; a tensor's method is a name already
    is_resized = len(shape) == 4 and shape[2:] != tuple(axis.size for axis in before)
    if is_resized or re.search("conv|pool", kind, re.IGNORECASE):
        raise ValueError(f"{name}: no receptive field is known for {kind}; for nn.Conv2d and pooling layers it is")
    if len(shape) == 4:
        return before
    return [axis.slide(size=1, kernel=axis.size, stride=axis.size) for axis in before]


def _details(module: nn.Module) -> str:
    """A layer's settings in the words of the seed's architecture table."""
    match module:
        case nn.Conv2d():
            # As in the seed, padding is worth a word only where it is not the one that keeps the size at stride 1.
            keeping = tuple(d * (k - 1) / 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
            height, width = module.kernel_size
            words = [f"{module.in_channels}→{module.out_channels} channels", f"kernel {height}×{width}"]
            words += _unusual(module, stride=1, padding=keeping, dilation=1, groups=1, padding_mode="zeros")
            return ", ".join([*words, _bias(module)])
        case nn.MaxPool2d() | nn.AvgPool2d():
            words = [f"kernel {_text(module.kernel_size)}", f"stride {_text(module.stride)}"]
            return ", ".join(words + _unusual(module, padding=0, dilation=1, ceil_mode=False))
        case nn.AdaptiveAvgPool2d() | nn.AdaptiveMaxPool2d():
            return f"output size {_text(module.output_size)}"
        case _BatchNorm():
            return f"{module.num_features} features, {'affine' if module.affine else 'not affine'}"
        case nn.Linear():
            return f"{module.in_features}→{module.out_features}, {_bias(module)}"
        case _DropoutNd():
            return f"p {module.p:g}"
        case _:
            return module.extra_repr()


def _unusual(module: nn.Module, **usual) -> list[str]:
    """The settings that are not as usual, in words: "stride 2", "padding 3×1", "ceil_mode True"."""
    found = {name: getattr(module, name, value) for name, value in usual.items()}
    return [f"{name} {_text(found[name])}" for name in usual if _pair(found[name]) != _pair(usual[name])]


def _bias(module: nn.Module) -> str:
    return "no bias" if module.bias is None else "bias"


def _title(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})".strip()


def _pair(value) -> tuple:
    """A setting that PyTorch takes as one value for both axes or as (height, width)."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _text(value):
    """Such a setting for the reader: one value where both axes agree, else "height×width"."""
    height, width = _pair(value)
    return height if height == width else f"{height}×{width}"


def _zeros(model: nn.Module, input_size) -> torch.Tensor:
    """Black images where the model lives and of its dtype; no random number is drawn for them."""
    return next(model.parameters(), torch.empty(0)).new_zeros(input_size)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module has its own mode back (some may be frozen)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
