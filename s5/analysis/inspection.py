"""Reports on an untrained or trained network: layers, numbers to train and to store, multiply-adds, receptive fields.

No function has side effects: training modes, BatchNorm statistics, gradients, the device and the random state stay as
they are. Every `input_size` is (batch, channels, height, width).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection

import pandas as pd
import torch
import torchinfo
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode
from torchinfo.enums import Units

from s5.training.checks import evaluation_mode

IMAGE = (1, 1, 28, 28)  # one MNIST digit
NET_COUNTS = {"BatchNorm2d": 5, "Dropout": 0, "Linear": 1, "GAP": 1}

# From Python 3.11 on, torchinfo 1.8 prints "Units.MEGABYTES" for "M".
Units.__str__ = str.__str__

SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def summary(model: nn.Module, input_size: tuple[int, ...] = IMAGE) -> torchinfo.ModelStatistics:
    """The layer summary of torchinfo, to be printed, or displayed by a notebook cell."""
    with evaluation_mode(model), torch.no_grad():
        return torchinfo.summary(
            model,
            input_data=black_images(model, input_size),  # torchinfo's own input would change the random state
            mode="eval",
            col_names=("input_size", "output_size", "num_params", "kernel_size", "mult_adds"),
            col_width=16,
            row_settings=("var_names",),
            verbose=0,
        )


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_stored(model: nn.Module) -> int:
    """How many numbers must be stored to run the network, once each BatchNorm is folded into a scale and a shift.

    These are all trainable numbers that are not BatchNorm's, and two per channel for every BatchNorm. They are more
    than the trainable numbers where several BatchNorms share their scale and shift, but not their statistics: each
    folds into numbers of its own.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    folded = {parameter for norm in norms for parameter in norm.parameters()}
    others = [each for each in model.parameters() if each.requires_grad and each not in folded]
    return sum(each.numel() for each in others) + sum(2 * norm.num_features for norm in norms)


def count_macs(model: nn.Module, input_size: tuple[int, ...] = IMAGE) -> int:
    """The multiply-adds of the convolutions and matrix products in one forward pass, counted as they are executed."""
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(black_images(model, input_size))
    return counter.get_total_flops() // 2  # a multiply-add is two floating-point operations


def layer_table(model: nn.Module) -> pd.DataFrame:
    """One row per layer in the order of definition, then a total: Layer ("name (Type)"), Parameters, Details.

    Parameters are the trainable ones. Activations without parameters are omitted. Shared parameters are counted at
    their first layer, so that the rows add up to the total.
    """
    rows, counted = [], set()
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        is_activation = type(module).__module__ == nn.ReLU.__module__  # torch.nn.modules.activation
        is_layer = not list(module.children()) and not is_activation
        if own or is_layer:
            rows.append((_title(name, module), count_new_parameters(module, counted), _details(module)))
    rows.append(("Total", count_parameters(model), ""))
    return pd.DataFrame(rows, columns=["Layer", "Parameters", "Details"])


def count_new_parameters(layer: nn.Module, counted: set[nn.Parameter]) -> int:
    """The number of a layer's own trainable parameters that are not yet in `counted`, to which they are added."""
    new = [each for each in layer.parameters(recurse=False) if each.requires_grad and each not in counted]
    counted.update(new)
    return sum(parameter.numel() for parameter in new)


def count_layers(model: nn.Module) -> dict[str, int]:
    """The number of layers of four kinds: "BatchNorm2d", "Dropout" (of any type), "Linear" and "GAP".

    GAP is global average pooling, an AdaptiveAvgPool2d with output size 1.
    """
    modules = list(model.modules())
    average_pools = [module for module in modules if isinstance(module, nn.AdaptiveAvgPool2d)]
    return {
        "BatchNorm2d": sum(isinstance(module, nn.BatchNorm2d) for module in modules),
        "Dropout": sum(isinstance(module, _DropoutNd) for module in modules),
        "Linear": sum(isinstance(module, nn.Linear) for module in modules),
        "GAP": sum(_pair(pool.output_size) == (1, 1) for pool in average_pools),
    }


def check_requirements(
    model: nn.Module,
    parameters: int | None = 18_214,
    counts: dict[str, int] = NET_COUNTS,
    budget: int = 20_000,
) -> pd.DataFrame:
    """One row per requirement: Check, Required, Found (all text) and Result, "pass" or "FAIL".

    parameters: the exact number of parameters, or None to check only that it is less than `budget`.
    counts: the number of layers of each kind; the kinds are those of `count_layers`, another one is a KeyError.
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
    """The receptive field of each nn.Conv2d and pooling layer, one row per call, in the order of execution.

    Columns: Layer, Kernel, Stride, Padding, Output size (height×width×channels), Jump (input pixels between
    neighbouring outputs) and Receptive field (input pixels); "height×width" if the two differ.

    The receptive field is measured, so it is right for any architecture: it is the extent of the pixels that make the
    unit in the middle of the map NaN if they are NaN. (NaN passes max-pooling, ReLU and zero weights, which block
    gradients.) Padding is not counted, and a layer that depends on the whole image has the image's size. For how
    kernels and strides add up to it, see Araujo, Norris and Sim, "Computing receptive fields of convolutional neural
    networks", Distill 2019.

    The jump is the product of the strides of these layers. Maps of equal size are assumed to have equal jumps. After
    an operation that changes the size otherwise (functional pooling, upsampling) it is unknown, "–"; a crop or padding
    of less than half the size keeps it.

    The model must accept any batch size, and its forward pass must not branch on pixel values. Raises ValueError if
    `input_size` does not have four values.
    """
    if len(input_size) != 4:
        raise ValueError(f"input_size must be (batch, channels, height, width), not {tuple(input_size)}")
    # In float64, which rules out Winograd's algorithm: it would spread NaN over tiles of pixels.
    model = copy.deepcopy(model).cpu().double()
    _, channels, height, width = input_size
    images = black_images(model, (height + width, channels, height, width))
    for row in range(height):
        images[row, :, row] = torch.nan
    for column in range(width):
        images[height + column, :, :, column] = torch.nan
    rows = []
    jumps = {height: 1}, {width: 1}  # size of a map → its jump, for both axes

    def add_row(name: str, layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        output = output[0] if isinstance(output, tuple) else output  # max pooling may return indices too
        before, after = inputs[0].shape[2:], output.shape[2:]
        kernel, stride, padding = _window(layer, before, after)
        jump = list(map(_next_jump, jumps, before, after, stride))
        depends = output[:, :, after[0] // 2, after[1] // 2].isnan().any(dim=1)
        field = _extent(depends[:height]), _extent(depends[height:])
        size = f"{after[0]}×{after[1]}×{output.shape[1]}"
        rows.append((_title(name, layer), *map(_text, (kernel, stride, padding)), size, _text(jump), _text(field)))

    layers = [name for name, layer in model.named_modules() if isinstance(layer, SLIDING + ADAPTIVE)]
    run_observed(model, images, layers, add_row)
    columns = ["Layer", "Kernel", "Stride", "Padding", "Output size", "Jump", "Receptive field"]
    return pd.DataFrame(rows, columns=columns)


def _window(layer: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> tuple:
    """Kernel, stride and padding of a layer, from the sizes of its input and output maps; "–" for unequal windows."""
    if not isinstance(layer, ADAPTIVE):
        return layer.kernel_size, _pair(layer.stride), layer.padding
    window = tuple(old // new if old % new == 0 else "–" for old, new in zip(before, after, strict=True))
    return window, window, 0


def _next_jump(jumps: dict[int, int | str], before: int, after: int, stride: int | str) -> int | str:
    """The jump after a layer along one axis, "–" if unknown; it is also noted in `jumps`, the latest size last."""
    if before not in jumps:
        latest = next(reversed(jumps))
        jumps[before] = jumps[latest] if latest / 2 < before < latest * 2 else "–"
    jump = "–" if "–" in (jumps[before], stride) else jumps[before] * stride
    jumps.pop(after, None)
    jumps[after] = jump
    return jump


def _extent(marked: torch.Tensor) -> int:
    """The number of positions from the first to the last True of a bool vector; 0 if there is none."""
    positions = marked.nonzero()
    return int(positions.max() - positions.min()) + 1 if len(positions) else 0


def _details(module: nn.Module) -> str:
    """A layer's settings in the words of the original document's architecture table."""
    match module:
        case nn.Conv2d():
            kernel = "×".join(map(str, module.kernel_size))
            words = [f"{module.in_channels}→{module.out_channels} channels", f"kernel {kernel}"]
            # Padding is mentioned only if it does not keep the size at stride 1, as in the original document.
            same = tuple(d * (k - 1) / 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
            usual = {"stride": 1, "padding": same, "dilation": 1, "groups": 1}
            actual = {name: getattr(module, name) for name in usual}
            words += [f"{name} {_text(actual[name])}" for name in usual if _pair(actual[name]) != _pair(usual[name])]
            return ", ".join([*words, _bias(module)])
        case nn.MaxPool2d() | nn.AvgPool2d():
            return f"kernel {_text(module.kernel_size)}, stride {_text(module.stride)}"
        case nn.AdaptiveAvgPool2d():
            return f"output size {_text(module.output_size)}"
        case _BatchNorm():
            return f"{module.num_features} features, {'affine' if module.affine else 'not affine'}"
        case nn.Linear():
            return f"{module.in_features}→{module.out_features}, {_bias(module)}"
        case _DropoutNd():
            return f"p {module.p:g}"
        case _:
            return module.extra_repr()


def _bias(module: nn.Module) -> str:
    return "no bias" if module.bias is None else "bias"


def _title(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})".strip()


def _pair(value) -> tuple:
    """(height, width) from a setting that may be one value for both."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _text(value):
    """One value if height and width are equal, else "height×width"."""
    height, width = _pair(value)
    return height if height == width else f"{height}×{width}"


def black_images(model: nn.Module, input_size: tuple[int, ...]) -> torch.Tensor:
    """Black images on the model's device and of its dtype."""
    return next(model.parameters(), torch.empty(0)).new_zeros(input_size)


def run_observed(model: nn.Module, images: torch.Tensor, layers: Collection[str], observe: Callable) -> None:
    """One forward pass in evaluation mode; `observe(name, layer, inputs, output)` follows each call of these layers."""
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(functools.partial(observe, name)) for name in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
