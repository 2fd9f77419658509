"""A network as one line of text, such as `conv 4 8 / 16 32 / 40 gap`: `parse` reads it, `str` writes it.

    conv 4 8 / 16 32 / 40 gap       3×3 convolutions with BatchNorm and ReLU; `/` is 2×2 max-pooling: 28×28, 14×14, 7×7
    conv5 8 / 24 / 20 gap           the same with 5×5 convolutions
    separable 8 16 / 32 / 40 gap    depthwise-separable convolutions
    plain 4 8 / 16 32 / 40 gap      convolutions with a bias, no BatchNorm
    shared 12 ×1 / ×2 / ×2 gap      one convolution of 12 channels, used 1, 2 and 2 times (`x1` is read too)
    shared-separable 14 ×1 / ×2 gap
    cellular 6 ×2 / ×2 gdconv       shared, without a first convolution: see layers.Cellular
    cellular-separable 10 ×2 / ×2 gdconv
    linear 24                       fully connected: the units of each hidden layer; no head, no options

Heads, each ending in a linear layer: `gap` (global average pooling), `flat` (all values), `gdconv` (global depthwise
convolution). Options follow in any order: `deskew 5` (make every digit upright and equally high, the standard deviation
of its rows being 5 pixels), `crop 2` (cut a border of 2 pixels), `squeeze 8` (a 1×1 convolution to 8 channels before
each pooling), `dropout 0.05` (after each pooling).
"""

import re
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest

import torch
from torch import nn

from s5.analysis.inspection import count_macs, count_parameters
from s5.networks import layers

CONVOLUTIONS = {
    "conv": layers.conv_block,
    "conv5": partial(layers.conv_block, kernel=5),
    "separable": layers.separable_block,
    "plain": layers.plain_conv_block,
}
HEADS = {
    "gap": lambda channels, side: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)],
    "flat": lambda channels, side: [nn.Flatten(), nn.Linear(channels * side * side, 10)],
    "gdconv": layers.gdconv_head,
}
MAX_LAYERS = 64
# Of each kind of number: the largest (an int if it must be whole), its meaning, and a mark before it.
CHANNELS, UNITS = (4096, "channel count (1 to 4096)"), (4096, "number of units (1 to 4096)")
USES = (MAX_LAYERS, "number of uses (×1 to ×64)", "×")
OPTIONS = {  # in the order of writing
    "deskew": (14.0, "standard deviation in pixels (above 0, at most 14)"),
    "crop": (13, "border in pixels (1 to 13)"),
    "squeeze": (4096, CHANNELS[1]),
    "dropout": (0.99, "probability (above 0, at most 0.99)"),
}
BLOCKS = {  # what the numbers of the stages mean, and the heads and options that are allowed
    "conv": (CHANNELS, HEADS, OPTIONS),
    "conv5": (CHANNELS, HEADS, OPTIONS),
    "separable": (CHANNELS, HEADS, OPTIONS),
    "plain": (CHANNELS, HEADS, ("deskew", "crop", "dropout")),
    "shared": (USES, HEADS, ("deskew", "crop")),
    "shared-separable": (USES, HEADS, ("deskew", "crop")),
    "cellular": (USES, HEADS, ("deskew", "crop")),
    "cellular-separable": (USES, HEADS, ("deskew", "crop")),
    "linear": (UNITS, (), ()),
}


class NetworkError(ValueError):
    """A network that is not understood, or that cannot be built or trained. The message is one line."""


@dataclass(frozen=True)
class Network:
    """The description of a network, as `parse` reads it from a line."""

    block: str  # a key of BLOCKS
    stages: tuple[tuple[int, ...], ...]  # channels of the layers at each resolution; shared: number of uses, one each
    head: str = ""  # a key of HEADS; linear: none
    channels: int = 0  # shared: of the one convolution
    deskew: float = 0.0
    crop: int = 0
    squeeze: int = 0
    dropout: float = 0.0

    def __str__(self) -> str:
        mark = "×" if self.channels else ""
        stages = " / ".join(" ".join(f"{mark}{number}" for number in stage) for stage in self.stages)
        values = {name: str(getattr(self, name)).removesuffix(".0") for name in OPTIONS if getattr(self, name)}
        options = [f"{name} {value}" for name, value in values.items()]
        return " ".join(str(part) for part in (self.block, self.channels, stages, self.head, *options) if part)

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return count_parameters(self._without_weights())

    @property
    def macs(self) -> int:
        """The multiply-adds of one image."""
        return count_macs(self._without_weights())

    def _without_weights(self) -> nn.Module:
        """The layers and their shapes only; takes no memory and no random numbers."""
        with torch.device("meta"):
            return self.build()

    def build(self) -> nn.Module:
        """A new module, images (N, 1, 28, 28) → logits (N, 10), with initial weights from torch's random state."""
        uses = [stage[0] for stage in self.stages]
        match self.block:
            case "linear":
                sizes = pairwise((28 * 28, *self.stages[0]))
                hidden = [layer for pair in sizes for layer in (nn.Linear(*pair), nn.ReLU())]
                network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(self.stages[0][-1], 10))
            case "shared":
                network = layers.Shared(self.channels, uses, self._head, self.crop)
            case "shared-separable":
                network = layers.Shared(self.channels, uses, self._head, self.crop, separable=True)
            case "cellular":
                network = layers.Cellular(self.channels, uses, self._head, self.crop)
            case "cellular-separable":
                network = layers.CellularSeparable(self.channels, uses, self._head, self.crop)
            case _:
                network = nn.Sequential(*self._layers())
        return nn.Sequential(layers.Deskew(self.deskew), network) if self.deskew else network

    def _layers(self) -> list[nn.Module]:
        """Crop, if any; convolutions with squeezing, pooling and dropout in between; the head."""
        blocks, before = [nn.ZeroPad2d(-self.crop)] if self.crop else [], 1
        for number, stage in enumerate(self.stages):
            if number and self.squeeze:
                blocks += layers.conv_block(before, self.squeeze, kernel=1)
                before = self.squeeze
            blocks += [nn.MaxPool2d(2)] if number else []
            blocks += [nn.Dropout(self.dropout)] if number and self.dropout else []
            for channels in stage:
                blocks += CONVOLUTIONS[self.block](before, channels)
                before = channels
        return [*blocks, *self._head(before)]

    def _head(self, channels: int) -> list[nn.Module]:
        side = (28 - 2 * self.crop) >> (len(self.stages) - 1)
        return HEADS[self.head](channels, side)


def parse(line: str) -> Network:
    """The network of a line; upper case and extra spaces do not matter. Raises NetworkError."""
    words = re.sub(r"\bx(?=[0-9])", "×", line.lower().replace("/", " / ")).split()
    try:
        return _parse(*words)
    except ValueError as error:
        raise NetworkError(f'in "{" ".join(line.split())}": {error}') from error


def _parse(block: str = "", *words: str) -> Network:
    """The network of the words of a line. Raises ValueError."""
    if block not in BLOCKS:
        raise ValueError(f'"{block}" is no block ({", ".join(BLOCKS)})')
    kind, heads, allowed = BLOCKS[block]
    end = next((place for place, word in enumerate(words) if word in heads), len(words))
    if heads and end == len(words):
        raise ValueError(f"a head is missing ({', '.join(heads)})")
    numbers, options = list(words[:end]), words[end + 1 :]
    channels = _number(numbers.pop(0) if numbers else "", *CHANNELS) if kind == USES else 0
    line = " ".join(numbers)
    parts = line.split("/") if heads else [line]
    stages = tuple(tuple(_number(word, *kind) for word in part.split() or [""]) for part in parts)
    if kind == USES and max(map(len, stages)) > 1:
        raise ValueError("a number of uses is followed by / or a head")
    if (sum(map(sum, stages)) if kind == USES else sum(map(len, stages))) > MAX_LAYERS:
        raise ValueError(f"more than {MAX_LAYERS} layers")
    values = {}
    for name, value in zip_longest(options[::2], options[1::2], fillvalue=""):
        if name not in allowed:
            raise ValueError(f'"{name}" is no option of {block} ({", ".join(allowed)})')
        values[name] = _number(value, *OPTIONS[name])
    if (28 - 2 * values.get("crop", 0)) >> (len(stages) - 1) == 0:
        raise ValueError(f"the image is too small to be pooled {len(stages) - 1} times")
    for name in ("squeeze", "dropout"):
        if name in values and len(stages) == 1:
            raise ValueError(f"{name} stands at each pooling (/), and there is none")
    return Network(block, stages, words[end] if heads else "", channels, **values)


def _number(word: str, largest: float, meaning: str, mark: str = "") -> float:
    """A word as a number above 0 and at most `largest`, whole if that is an int. Raises ValueError."""
    try:
        value = type(largest)(word.removeprefix(mark)) if word.startswith(mark) else 0
    except ValueError:
        value = 0
    if not 0 < value <= largest:
        raise ValueError(f'"{word}" is no {meaning}' if word else f"a {meaning} is missing")
    return value
