"""A trained network as a list of plain steps: what an export to another language has to write down.

BatchNorm becomes a factor and an offset per channel, and ReLU a flag, of the convolution before it. A convolution that
is used several times keeps its one set of weights.
"""

import builtins
import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from s5.networks.layers import Deskew, InitialState, deskew

IMAGE = -1  # as an input of a step: the normalised image
IMAGE_SHAPE = (1, 28, 28)


class GraphError(ValueError):
    """A network that cannot be written as steps, or these not in another language."""


@dataclass(eq=False)
class Step:
    """One operation on maps (channels, height, width), or on values (count,) after `linear`.

    deskew: `layers.deskew` to the height `size`. crop: cuts a border of `size` pixels. conv: convolution with `weight`
    (outputs, inputs / groups, height, width) and zero padding of `padding` pixels, times `scale` (outputs,), plus
    `bias` (outputs,). pool: the largest of each `size` × `size` pixels. mean: of each map. linear: `weight`
    (outputs, inputs), plus `bias`, of the flattened input. add: the sum of two inputs. With `relu`, ReLU follows.
    """

    kind: str
    inputs: tuple[int, ...]  # the numbers of the steps whose outputs are read; IMAGE: the image
    weight: Tensor | None = None  # the same tensor in every step that shares it
    scale: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    padding: int = 0
    size: float = 0
    relu: bool = False
    name: str = ""  # of the layer in the network
    shape: tuple[int, ...] = ()  # of the output


def steps_of(model: nn.Module) -> list[Step]:
    """The steps of `model` in evaluation mode; the last one gives the logits (10,). The model is not changed.

    A softmax or log-softmax at the end is left out. Raises GraphError for what no step does.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    steps: list[Step] = []
    places: dict[fx.Node, int] = {}  # of each node's output
    images, ends = torch.rand(2, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0)), ()
    try:
        for node in _Tracer().trace(model).nodes:
            if node.op == "placeholder":
                places[node] = IMAGE
            elif node.op != "output":
                layer = model.get_submodule(node.target) if node.op == "call_module" else node.target
                places[node] = _append(steps, layer, node, tuple(places[each] for each in node.all_input_nodes))
        logits = run(steps, images)[-1].flatten(1)
        ends = logits, logits.softmax(1), logits.log_softmax(1)
    except (fx.proxy.TraceError, RuntimeError):  # it depends on values, or shapes do not fit
        pass
    expected = model(images)
    if not any(end.shape == expected.shape and torch.allclose(end, expected, rtol=1e-3, atol=1e-4) for end in ends):
        raise GraphError(
            "this network cannot be exported: its forward pass is more than convolutions, ReLU, max-pooling, "
            "additions, a global mean and linear layers"
        )
    return steps


def run(steps: list[Step], images: Tensor) -> list[Tensor]:
    """The outputs of all steps for normalised images (N, 1, 28, 28); the last ones are the logits, float (N, 10)."""
    outputs = [images]
    for step in steps:
        outputs.append(apply(step, *(outputs[number + 1] for number in step.inputs)))
    return outputs[1:]


def apply(step: Step, maps: Tensor, *others: Tensor) -> Tensor:
    """The output of one step for a batch of its inputs."""
    match step.kind:
        case "deskew":
            maps = deskew(maps, step.size)
        case "crop":
            maps = maps[:, :, step.size : -step.size, step.size : -step.size]
        case "conv":
            maps = F.conv2d(maps, step.weight, padding=step.padding, groups=step.groups)
            maps = maps * step.scale[:, None, None] + step.bias[:, None, None]
        case "pool":
            maps = F.max_pool2d(maps, step.size)
        case "mean":
            maps = maps.mean((2, 3), keepdim=True)
        case "linear":
            maps = F.linear(maps.flatten(1), step.weight, step.bias)
        case "add":
            maps = maps + others[0]
    return maps.relu() if step.relu else maps


class _Tracer(fx.Tracer):
    """Keeps the layers of `s5.networks.layers` that are steps of their own."""

    def is_leaf_module(self, layer: nn.Module, name: str) -> bool:
        return isinstance(layer, Deskew | InitialState) or super().is_leaf_module(layer, name)


def _append(steps: list[Step], layer, node: fx.Node, inputs: tuple[int, ...]) -> int:
    """Add the step of a layer, or change the one before it; return the number of the step that gives its output."""
    is_only_reader = inputs[0] != IMAGE and len(node.all_input_nodes[0].users) == 1
    before = steps[inputs[0]] if is_only_reader else None

    def add(kind: str, inputs: tuple = inputs, **values) -> int:
        step = Step(kind, inputs, name=str(node.target) if node.op == "call_module" else "", **values)
        shapes = [IMAGE_SHAPE if number == IMAGE else steps[number].shape for number in inputs]
        step.shape = tuple(apply(step, *(torch.zeros(1, *shape) for shape in shapes)).shape[1:])
        steps.append(step)
        return len(steps) - 1

    match layer:
        case nn.Conv2d(stride=(1, 1), dilation=(1, 1), padding_mode="zeros", padding=(top, left)) if top == left:
            one, zero = torch.ones(layer.out_channels), torch.zeros(layer.out_channels)
            bias = zero if layer.bias is None else layer.bias
            return add("conv", weight=layer.weight, scale=one, bias=bias, groups=layer.groups, padding=top)
        case nn.BatchNorm2d() if before and before.kind == "conv" and not before.relu:
            factor = (layer.running_var + layer.eps).rsqrt() * layer.weight
            before.scale = before.scale * factor
            before.bias = (before.bias - layer.running_mean) * factor + layer.bias
            return inputs[0]
        case nn.ReLU() | F.relu | torch.relu | "relu" if before:
            before.relu = True
            return inputs[0]
        case nn.MaxPool2d(kernel_size=2, stride=2, padding=0, ceil_mode=False):
            return add("pool", size=2)
        case F.max_pool2d if node.args[1:] in ((2,), (2, 2)):
            return add("pool", size=2)
        case nn.AdaptiveAvgPool2d() | nn.AvgPool2d() | F.adaptive_avg_pool2d | F.avg_pool2d | torch.mean | "mean":
            return add("mean")
        case nn.Linear():
            return add("linear", weight=layer.weight, bias=layer.bias)
        case Deskew():
            return add("deskew", size=layer.height)
        case InitialState():
            if layer.border:
                inputs = (add("crop", size=layer.border),)
            first = torch.eye(layer.channels)[:, :1, None, None]  # a 1×1 convolution that copies the image
            one, zero = torch.ones(layer.channels), torch.zeros(layer.channels)
            return add("conv", inputs, weight=first, scale=one, bias=zero)
        case nn.ZeroPad2d(padding=(border, *_)):
            return add("crop", size=-border) if border else inputs[0]
        case operator.add | torch.add:
            return add("add")
        case nn.Identity() | nn.Dropout() | nn.Dropout2d() | F.dropout:
            return inputs[0]
        case nn.Flatten() | torch.flatten | "flatten" | "view" | "reshape":
            return inputs[0]
        case "size" | builtins.getattr | operator.getitem:  # of a shape, for the one above
            return inputs[0]
        case nn.Softmax() | nn.LogSoftmax() | F.softmax | F.log_softmax | "softmax" | "log_softmax":
            return inputs[0]
    kind = f" ({layer})" if node.op == "call_module" else ""
    raise GraphError(f"{getattr(node.target, '__name__', node.target)}{kind} cannot be exported")
