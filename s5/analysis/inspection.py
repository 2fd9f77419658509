"""Reports on an untrained or trained network: layers, numbers to train and to store, multiply-adds, receptive fields.

No function has side effects: training modes, BatchNorm statistics, gradients, the device and the random state stay as
they are.
"""

import copy
import functools
from collections.abc import Callable

import pandas as pd
import torch
import torchinfo
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode
from torchinfo.enums import Units

from s5.training.checks import check_registered, evaluation_mode

SIDE = 28  # pixels of an MNIST digit
PARAMETERS, BUDGET = 18_214, 20_000  # of `Net`; what the assignment allows are fewer
NET_COUNTS = {"BatchNorm2d": 5, "Dropout": 0, "Linear": 1, "GAP": 1}

# From Python 3.11 on, torchinfo 1.8 prints "Units.MEGABYTES" for "M".
Units.__str__ = str.__str__


def summary(model: nn.Module) -> torchinfo.ModelStatistics:
    """The layer summary of torchinfo, to be printed, or displayed by a notebook cell."""
    with evaluation_mode(model), torch.no_grad():
        found = torchinfo.summary(
            model,
            input_data=black_images(model),  # torchinfo's own input would change the random state
            mode="eval",
            col_names=("output_size", "num_params", "mult_adds"),
            col_width=16,
            row_settings=("var_names",),
            verbose=0,
        )
    # Torchinfo counts shared weights twice, and leaves out layers whose weights are computed from others.
    found.trainable_params = count_parameters(model)
    found.total_params = sum(parameter.numel() for parameter in model.parameters())
    found.total_mult_adds = max(found.total_mult_adds, count_macs(model))
    return found


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_stored(model: nn.Module) -> int:
    """How many numbers must be stored to run the network, once each BatchNorm is folded into a scale and a shift.

    These are all trainable numbers that are not BatchNorm's, and two per channel for every BatchNorm. They are more
    than the trainable numbers where several BatchNorms share their scale and shift, but not their statistics: each
    folds into numbers of its own.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    folded = {parameter for norm in norms for parameter in norm.parameters()}
    others = [each for each in model.parameters() if each.requires_grad and each not in folded]
    return sum(each.numel() for each in others) + sum(2 * norm.num_features for norm in norms)


def count_macs(model: nn.Module) -> int:
    """The multiply-adds of the convolutions and matrix products for one image, counted as they are executed."""
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(black_images(model))
    return counter.get_total_flops() // 2  # a multiply-add is two floating-point operations


def layer_table(model: nn.Module) -> pd.DataFrame:
    """One row per layer in the order of definition, then a total: Layer ("name (Type)"), Parameters, Details.

    Parameters are the trainable ones. Activations without parameters are omitted. Shared parameters are counted at
    their first layer, so that the rows add up to the total.
    """
    rows, counted = [], set()
    for name, module in named_layers(model):
        own = own_parameters(module)
        is_activation = type(module).__module__ == nn.ReLU.__module__  # torch.nn.modules.activation
        is_layer = not list(module.children()) and not is_activation
        if own or is_layer:
            rows.append((_title(name, module), count_new_parameters(module, counted), _details(module)))
    rows.append(("Total", count_parameters(model), ""))
    return pd.DataFrame(rows, columns=["Layer", "Parameters", "Details"])


def _details(module: nn.Module) -> str:
    """A usual layer's settings in the words of the original document's architecture table, any other's in torch's."""
    bias = "no bias" if getattr(module, "bias", None) is None else "bias"
    match module:
        case nn.Conv2d(stride=(1, 1), dilation=(1, 1), groups=1):
            kernel = "×".join(map(str, module.kernel_size))
            return f"{module.in_channels}→{module.out_channels} channels, kernel {kernel}, {bias}"
        case nn.MaxPool2d():
            return f"kernel {module.kernel_size}, stride {module.stride}"
        case nn.AdaptiveAvgPool2d():
            return f"output size {module.output_size}"
        case nn.BatchNorm2d(affine=True):
            return f"{module.num_features} features, affine"
        case nn.Linear():
            return f"{module.in_features}→{module.out_features}, {bias}"
        case _:
            return module.extra_repr()


def count_new_parameters(layer: nn.Module, counted: set[nn.Parameter]) -> int:
    """The number of a layer's own trainable parameters that are not yet in `counted`, to which they are added."""
    new = [each for each in own_parameters(layer) if each.requires_grad and each not in counted]
    counted.update(new)
    return sum(parameter.numel() for parameter in new)


def named_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules and their names, but for what computes the weights of a layer (`torch.nn.utils.parametrize`)."""
    return [each for each in model.named_modules() if "parametrizations" not in each[0].split(".")]


def own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer without those of the layers in it."""
    return [*layer.parameters(recurse=False), *getattr(layer, "parametrizations", nn.Module()).parameters()]


def count_layers(model: nn.Module) -> dict[str, int]:
    """The number of layers of four kinds: "BatchNorm2d", "Dropout" (of any type), "Linear" and "GAP".

    GAP is global average pooling: any average pooling that makes one value of a map.
    """
    kinds = {"BatchNorm2d": nn.BatchNorm2d, "Dropout": _DropoutNd, "Linear": nn.Linear}
    counts = {name: sum(isinstance(layer, kind) for layer in model.modules()) for name, kind in kinds.items()}
    sizes = {}

    def note_size(name: str, layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        sizes[name] = output.shape[2:].numel()

    run_observed(model, black_images(model), (nn.AvgPool2d, nn.AdaptiveAvgPool2d), note_size)
    return counts | {"GAP": list(sizes.values()).count(1)}


def check_requirements(model: nn.Module) -> pd.DataFrame:
    """What the assignment asks of `Net`, a row each: Check, Required, Found (all text) and Result, "pass" or "FAIL"."""
    parameters, layers = count_parameters(model), count_layers(model)
    checks = [
        ("Parameters", f"{PARAMETERS:,}", parameters, parameters == PARAMETERS),
        ("Parameter budget", f"< {BUDGET:,}", parameters, parameters < BUDGET),
    ]
    for kind, required in NET_COUNTS.items():
        checks.append((f"{kind} layers", f"{required}", layers[kind], layers[kind] == required))
    rows = [(check, required, f"{found:,}", "pass" if ok else "FAIL") for check, required, found, ok in checks]
    return pd.DataFrame(rows, columns=["Check", "Required", "Found", "Result"])


def receptive_field_table(model: nn.Module) -> pd.DataFrame:
    """The receptive field of each convolution and pooling layer, one row per call, in the order of execution.

    Columns: Layer, Kernel, Stride, Padding, Output size (height×width×channels), Jump (input pixels between
    neighbouring outputs) and Receptive field (input pixels); "height×width" if the two differ.

    The receptive field is measured, so it is right for any architecture: it is the extent of the pixels that make the
    unit in the middle of the map NaN if they are NaN. (NaN passes max-pooling, ReLU and zero weights, which block
    gradients.) Padding is not counted, and a layer that depends on the whole image has the image's size. For how
    kernels and strides add up to it, see Araujo, Norris and Sim, "Computing receptive fields of convolutional neural
    networks", Distill 2019.

    The jump is the product of the strides of the layers up to this one. The model must accept any batch size, and its
    forward pass must not branch on pixel values.
    """
    check_registered(model)
    count_macs(model)  # a pass without gradients, after which the old torch.nn.utils.weight_norm can be copied
    # In float64, which rules out Winograd's algorithm: it would spread NaN over tiles of pixels.
    model = copy.deepcopy(model).cpu().double()
    images, line = black_images(model, 2 * SIDE), torch.arange(SIDE)
    images[line, :, line] = torch.nan  # a row of pixels in each of the first images, a column in each of the others
    images[SIDE + line, :, :, line] = torch.nan
    rows, jump = [], [1, 1]

    def add_row(name: str, layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        before, after = inputs[0].shape[2:], output.shape[2:]
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            kernel = stride = tuple(old // new for old, new in zip(before, after, strict=True))
            padding = 0
        else:
            kernel, stride, padding = layer.kernel_size, _pair(layer.stride), layer.padding
        jump[:] = jump[0] * stride[0], jump[1] * stride[1]
        depends = output[:, :, after[0] // 2, after[1] // 2].isnan().any(dim=1)
        field = [int(part.nonzero().max() - part.nonzero().min()) + 1 for part in depends.split(SIDE)]
        size = f"{after[0]}×{after[1]}×{output.shape[1]}"
        rows.append((_title(name, layer), *map(_text, (kernel, stride, padding)), size, _text(jump), _text(field)))

    run_observed(model, images, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), add_row)
    columns = ["Layer", "Kernel", "Stride", "Padding", "Output size", "Jump", "Receptive field"]
    return pd.DataFrame(rows, columns=columns)


def receptive_field(model: nn.Module) -> int:
    """The longer side, in pixels, of the part of the image that a position of the last maps depends on.

    That is the receptive field of the last convolution or pooling whose map has several positions; without any, it is
    the whole image. See `receptive_field_table`, whose model this takes.
    """
    table = receptive_field_table(model)
    fields = table["Receptive field"][~table["Output size"].str.startswith("1×1×")]
    return max(map(int, str(fields.iloc[-1]).split("×"))) if len(fields) else SIDE


@torch.no_grad()
def class_activation_maps(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each position of the last maps contributes to each logit, float (N, 10, H, W), for inputs (N, 1, 28, 28).

    Exact for a network that ends in global average pooling and a linear layer: the sum over the positions, plus the
    layer's bias, is the logit. Raises ValueError for any other. Zhou et al., "Learning deep features for discriminative
    localization", CVPR 2016.
    """
    found = {}

    def keep(name: str, layer: nn.Module, before: tuple[torch.Tensor], after: torch.Tensor) -> None:
        found[type(layer)] = layer, before[0], after

    run_observed(model, inputs, (nn.AdaptiveAvgPool2d, nn.Linear), keep)
    if len(found) == 2:
        (_, features, _), (linear, _, logits) = found[nn.AdaptiveAvgPool2d], found[nn.Linear]
        if linear.in_features == features.shape[1]:
            maps = torch.einsum("kc,nchw->nkhw", linear.weight, features) / features[0, 0].numel()
            bias = 0 if linear.bias is None else linear.bias
            if torch.allclose(maps.sum((2, 3)) + bias, logits, atol=1e-3):
                return maps
    raise ValueError("class activation maps require global average pooling and a linear layer at the end")


def _title(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})".strip()


def _pair(value) -> tuple:
    """(height, width) from a setting that may be one value for both."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _text(value):
    """One value if height and width are equal, else "height×width"."""
    height, width = _pair(value)
    return height if height == width else f"{height}×{width}"


def black_images(model: nn.Module, count: int = 1) -> torch.Tensor:
    """Black images on the model's device and of its dtype."""
    return next(model.parameters(), torch.empty(0)).new_zeros(count, 1, SIDE, SIDE)


def run_observed(model: nn.Module, images: torch.Tensor, kinds: type | tuple[type, ...], observe: Callable) -> None:
    """One forward pass in evaluation mode; `observe(name, layer, inputs, output)` follows each call of such layers."""
    layers = [(name, layer) for name, layer in named_layers(model) if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(functools.partial(observe, name)) for name, layer in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
