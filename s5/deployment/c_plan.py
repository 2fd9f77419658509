"""A network's steps in the order in which a small chip runs them: convolutions one after another, then a few values."""

from __future__ import annotations

from dataclasses import dataclass, field

from s5.deployment.layer_graph import IMAGE, GraphError, Step


@dataclass
class Layer:
    """A convolution with what follows it until the next one: an addition, then max-pooling, if any."""

    conv: Step
    size_in: tuple[int, int]  # height and width of its input
    last: Step  # the step that gives its output
    add: Step | None = None
    residual: int | None = None  # the number of the layer whose input is added
    pool: int = 1

    @property
    def depthwise(self) -> bool:
        """True if each output channel has one input channel."""
        return self.conv.groups > 1

    @property
    def size_out(self) -> tuple[int, int]:
        """Height and width of its output, after pooling."""
        return self.last.shape[1:]


@dataclass
class Plan:
    """The image goes through `deskew` and `crop`; the last maps, or the image, through `head` and `dense` layers."""

    deskew: float = 0.0  # the height, in pixels
    crop: int = 0
    layers: list[Layer] = field(default_factory=list)
    head: Step | None = None  # mean, or a convolution by the whole map (gdconv); None: dense reads the maps
    dense: list[Step] = field(default_factory=list)
    shape: tuple[int, int, int] = (1, 28, 28)  # of the last maps

    @property
    def macs(self) -> int:
        """The multiply-adds of one image."""
        convs = [layer.conv for layer in self.layers]
        convs += [self.head] if self.head is not None and self.head.kind == "conv" else []
        per_output = [(conv.shape, conv.weight[0].numel()) for conv in convs]
        count = sum(channels * height * width * number for (channels, height, width), number in per_output)
        return count + sum(dense.weight.numel() for dense in self.dense)


def plan(steps: list[Step]) -> Plan:
    """The plan of a network's steps.

    Raises GraphError if the network is not one line of convolutions, with additions of an earlier layer's input and
    max-pooling, then a mean or a convolution by the whole map, or neither, then linear layers.
    """
    reader = _Reader(steps)
    plan = Plan()
    if step := reader.take("deskew"):
        plan.deskew = step.size
    if step := reader.take("crop"):
        plan.crop = step.size
    inputs = []  # the place and the shape of each layer's input
    while (step := reader.next) and step.kind == "conv" and not reader.is_head():
        inputs.append((reader.place, reader.shape))
        plan.layers.append(_layer(reader, inputs))
    if step := reader.take("mean") or (reader.is_head() and reader.take("conv")):
        if step.relu:
            raise GraphError(f"ReLU after {step.name or step.kind} cannot be exported to C")
        plan.head = step
        plan.shape = reader.shape_before
    else:
        plan.shape = reader.shape
    while step := reader.take("linear"):
        plan.dense.append(step)
    if step := reader.next:
        raise GraphError(f"{step.name or step.kind} cannot be exported to C in this place")
    if not plan.dense or plan.dense[-1].relu or plan.dense[-1].shape != (10,):
        raise GraphError("a network exported to C must end with a linear layer that gives 10 logits")
    return plan


class _Reader:
    """The steps one after another; each must read the output of the one before it."""

    def __init__(self, steps: list[Step]):
        self.steps, self.number, self.place = steps, 0, IMAGE
        self.shape = self.shape_before = (1, 28, 28)

    @property
    def next(self) -> Step | None:
        return self.steps[self.number] if self.number < len(self.steps) else None

    def take(self, kind: str) -> Step | None:
        """Go on to the next step and return it if it is of this kind and reads what was read last."""
        step = self.next
        if step is None or step.kind != kind or self.place not in step.inputs:
            return None
        self.place, self.number = self.number, self.number + 1
        self.shape_before, self.shape = self.shape, step.shape
        return step

    def is_head(self) -> bool:
        """True if the next step is a depthwise convolution by the whole map and then comes a linear layer."""
        step = self.next
        if step is None or step.kind != "conv" or step.relu or step.padding or self.number + 1 == len(self.steps):
            return False
        channels, *size = self.shape
        whole = step.weight.shape == (channels, 1, *size) and step.groups == channels
        return whole and self.steps[self.number + 1].kind == "linear"


def _layer(reader: _Reader, inputs: list[tuple[int, tuple]]) -> Layer:
    """The layer that begins with the next step, a convolution; its input is the last of `inputs`."""
    size_in, channels = reader.shape[1:], reader.shape[0]
    conv = reader.take("conv")
    if conv is None:
        raise GraphError(f"{reader.next.name} reads an earlier layer's output: that cannot be exported to C")
    if conv.groups != 1 and not conv.groups == channels == len(conv.weight):
        raise GraphError(f"{conv.name} has {conv.groups} groups; only 1 or one per channel can be exported to C")
    layer = Layer(conv, size_in, conv)
    before = reader.place
    if add := reader.take("add"):
        source = [(place, add.shape) for place in add.inputs if place != before]
        if len(source) != 1 or source[0] not in inputs:
            raise GraphError("an addition of anything but an earlier layer's input cannot be exported to C")
        layer.add = layer.last = add
        layer.residual = inputs.index(source[0])
    if pool := reader.take("pool"):
        layer.pool, layer.last = pool.size, pool
    return layer
