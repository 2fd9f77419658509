"""A trained network as a list of plain steps: what an export to another language has to write down.

BatchNorm becomes a factor and an offset per channel, and ReLU a flag, of the convolution before it. A convolution that
is used several times keeps its one set of weights.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.utils import _pair

from s5.networks.layers import Deskew, InitialState, deskew

IMAGE = -1  # as an input of a step: the normalised image


class GraphError(ValueError):
    """A network that cannot be written as steps; the message names the layer."""


@dataclass
class Step:
    """One operation on maps (channels, height, width), or on values (count,) after `linear`.

    deskew: `layers.deskew` to the height `size`. crop: cuts a border of `size` pixels. conv: convolution with `weight`
    (outputs, inputs / groups, height, width), zero padding of `padding` pixels and `stride`, times `scale` (outputs,),
    plus `bias` (outputs,). pool: the largest of each `size` × `size` pixels. mean: of each map. linear: `weight`
    (outputs, inputs), plus `bias`, of the flattened input. add: the sum of two inputs. relu: alone only where it cannot
    be the flag of the step before.
    """

    kind: str
    inputs: tuple[int, ...]  # the numbers of the steps whose outputs are read; IMAGE: the image
    shape: tuple[int, ...]  # of the output
    weight: Tensor | None = None  # the same tensor in every step that shares it
    scale: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    stride: int = 1
    padding: int = 0
    size: float = 0
    relu: bool = False
    name: str = ""  # of the layer in the network


def steps_of(model: nn.Module) -> list[Step]:
    """The steps of `model` in evaluation mode, float32; the last one gives the logits (10,). The model is not changed.

    Raises GraphError for a layer that is none of Deskew, crop, convolution, BatchNorm, ReLU, max-pooling, average over
    all pixels, linear, addition, flattening and dropout.
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:  # fx raises many types for what it cannot follow
        raise GraphError(f"the network cannot be traced: {error}") from error
    ShapeProp(graph).propagate(torch.zeros(1, 1, 28, 28))
    steps: list[Step] = []
    places: dict[fx.Node, int] = {}  # of each node's output
    uses = {node: len(node.users) for node in graph.graph.nodes}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            places[node] = IMAGE
        elif node.op != "output":
            layer = graph.get_submodule(node.target) if node.op == "call_module" else None
            places[node] = _append(steps, places, node, layer, uses)
    return steps


def run(steps: list[Step], images: Tensor) -> Tensor:
    """Logits, float (N, 10), of normalised images (N, 1, 28, 28) by the steps: the reference for an export."""
    outputs = {IMAGE: images}
    for number, step in enumerate(steps):
        outputs[number] = apply(step, *(outputs[each] for each in step.inputs))
    return outputs[len(steps) - 1]


def apply(step: Step, maps: Tensor, *others: Tensor) -> Tensor:
    """The output of one step for a batch of its inputs."""
    match step.kind:
        case "deskew":
            maps = deskew(maps, step.size)
        case "crop":
            maps = maps[:, :, step.size : -step.size, step.size : -step.size]
        case "conv":
            maps = F.conv2d(maps, step.weight, None, step.stride, step.padding, 1, step.groups)
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


def _append(steps: list[Step], places: dict, node: fx.Node, layer: nn.Module | None, uses: dict) -> int:
    """Add the step of a node, or change the one before it; return the place of the node's output."""
    inputs = tuple(places[each] for each in node.all_input_nodes)
    before = None  # the step before this one, if nothing else reads its output
    if inputs and inputs[0] != IMAGE and uses[node.all_input_nodes[0]] == 1:
        before = steps[inputs[0]]
    shape = tuple(node.meta["tensor_meta"].shape[1:]) if "tensor_meta" in node.meta else ()

    def add(kind: str, shape: tuple = shape, **values) -> int:
        steps.append(Step(kind, inputs, shape, name=str(node.target) if layer is not None else "", **values))
        return len(steps) - 1

    function = node.target if node.op == "call_function" else getattr(Tensor, str(node.target), None)
    if isinstance(layer, nn.Conv2d) and _is_plain(layer):
        one, zero = torch.ones(layer.out_channels), torch.zeros(layer.out_channels)
        bias = zero if layer.bias is None else layer.bias
        settings = {"groups": layer.groups, "stride": layer.stride[0], "padding": layer.padding[0]}
        return add("conv", weight=layer.weight, scale=one, bias=bias, **settings)
    if isinstance(layer, nn.BatchNorm2d) and before and before.kind == "conv" and not before.relu:
        factor = (layer.running_var + layer.eps).rsqrt() * (1 if layer.weight is None else layer.weight)
        before.scale = before.scale * factor
        before.bias = (before.bias - layer.running_mean) * factor + (0 if layer.bias is None else layer.bias)
        return inputs[0]
    if isinstance(layer, nn.ReLU) or function in (F.relu, torch.relu, Tensor.relu):
        if before is None:
            return add("relu", relu=True)
        before.relu = True
        return inputs[0]
    if isinstance(layer, nn.MaxPool2d) and _is_plain_pooling(layer):
        return add("pool", size=_pair(layer.kernel_size)[0])
    if isinstance(layer, nn.AdaptiveAvgPool2d) and _pair(layer.output_size) == (1, 1):
        return add("mean")
    if isinstance(layer, nn.Linear):
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        return add("linear", weight=layer.weight, bias=bias)
    if isinstance(layer, Deskew):
        return add("deskew", size=layer.height)
    if isinstance(layer, InitialState):
        if layer.border:
            inputs = (add("crop", (1, *shape[1:]), size=layer.border),)
        first = torch.eye(layer.channels)[:, :1, None, None]  # a 1×1 convolution that copies the image
        return add("conv", weight=first, scale=torch.ones(layer.channels), bias=torch.zeros(layer.channels))
    if isinstance(layer, nn.ZeroPad2d) and max(layer.padding) <= 0 and len(set(layer.padding)) == 1:
        return add("crop", size=-layer.padding[0]) if layer.padding[0] else inputs[0]
    if function in (operator.add, torch.add) and len(inputs) == 2 and not node.kwargs:  # without a factor
        return add("add")
    if isinstance(layer, nn.Flatten | nn.Dropout | nn.Identity) or function in (torch.flatten, Tensor.flatten):
        uses[node] = max(uses[node], uses[node.all_input_nodes[0]])  # the same output under another name
        return inputs[0]
    raise GraphError(f"{node.name if layer is None else node.target} ({layer or node.op}) cannot be written as a step")


def _is_plain(layer: nn.Conv2d) -> bool:
    """True for the same kernel, stride and padding in both directions, zero padding and no dilation."""
    pairs = (layer.kernel_size, layer.stride, layer.padding)
    same = all(isinstance(pair, tuple) and len(set(pair)) == 1 for pair in pairs)
    return same and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _is_plain_pooling(layer: nn.MaxPool2d) -> bool:
    """True for pooling of squares side by side, without a padded, dilated or cut-off one."""
    (height, width), stride = _pair(layer.kernel_size), _pair(layer.stride)
    simple = not layer.padding and not layer.ceil_mode and _pair(layer.dilation) == (1, 1)
    return simple and height == width and stride == (height, width)
