"""A network as one line of text, such as `conv 4 8 / 16 32 / 40 gap`: `parse` reads it, `str` writes it.

    conv 4 8 / 16 32 / 40 gap       3×3 convolutions with BatchNorm and ReLU; `/` is 2×2 max-pooling: 28×28, 14×14, 7×7
    separable 8 16 / 32 / 40 gap    depthwise-separable convolutions
    plain 4 8 / 16 32 / 40 gap      convolutions with a bias, no BatchNorm
    shared 12 ×1 / ×2 / ×2 gap      one convolution of 12 channels, used 1, 2 and 2 times (`x1` is read too)
    shared-separable 14 ×1 / ×2 gap
    cellular 6 ×2 / ×2 gdconv       shared, without a first convolution: see layers.Cellular
    linear 24                       fully connected: the units of each hidden layer; no head, no options

Heads, each ending in a linear layer: `gap` (global average pooling), `flat` (all values), `gdconv` (global depthwise
convolution). Options follow in any order: `deskew 5` (make every digit upright and equally high, the standard deviation
of its rows being 5 pixels), `crop 2` (cut a border of 2 pixels), `dropout 0.05` (after each pooling).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from s5.analysis.inspection import count_macs, count_parameters
from s5.networks import layers

CONVOLUTIONS = {
    "conv": layers.conv_block,
    "separable": layers.separable_block,
    "plain": layers.plain_conv_block,
}
HEADS = {
    "gap": lambda channels, side: layers.gap_head(channels),
    "flat": lambda channels, side: [nn.Flatten(), nn.Linear(channels * side * side, 10)],
    "gdconv": layers.gdconv_head,
}
MAX_CHANNELS, MAX_LAYERS = 4096, 64
CHANNELS, UNITS, USES = "channel count (1 to 4096)", "number of units (1 to 4096)", "number of uses (×1 to ×64)"
OPTIONS = {  # in the order of writing: the largest value (an int if only whole numbers are allowed) and the meaning
    "deskew": (14.0, "standard deviation in pixels (above 0, at most 14)"),
    "crop": (13, "border in pixels (1 to 13)"),
    "dropout": (0.99, "probability (above 0, at most 0.99)"),
}
BLOCKS = {  # what the numbers of the stages mean, and the heads and options that are allowed
    "conv": (CHANNELS, HEADS, OPTIONS),
    "separable": (CHANNELS, HEADS, OPTIONS),
    "plain": (CHANNELS, HEADS, OPTIONS),
    "shared": (USES, HEADS, ("deskew", "crop")),
    "shared-separable": (USES, HEADS, ("deskew", "crop")),
    "cellular": (USES, HEADS, ("deskew", "crop")),
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
            case _:
                network = nn.Sequential(*self._layers())
        return nn.Sequential(layers.Deskew(self.deskew), network) if self.deskew else network

    def _layers(self) -> list[nn.Module]:
        """Crop, if any; convolutions with pooling and dropout in between; the head."""
        blocks, before = [nn.ZeroPad2d(-self.crop)] if self.crop else [], 1
        for number, stage in enumerate(self.stages):
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
    words = _Words(line)
    block = words.choose(BLOCKS, "block")
    meaning, heads, allowed = BLOCKS[block]
    channels = words.take(words.number(MAX_CHANNELS), CHANNELS) if meaning == USES else 0
    stages = _stages(words, meaning, bool(heads))
    head = words.choose(heads, "/ or head" if meaning == USES else f"{meaning}, / or head") if heads else ""
    options = {}
    while words.word:
        name = words.choose(allowed, f"option of {block}") if allowed else words.take(None, meaning)
        if name in options:
            raise words.error(f"{name} is repeated", words.position - 1)
        largest, value = OPTIONS[name]
        options[name] = words.take(words.number(largest), value)
    pools = [position for position, word in enumerate(words.words) if word == "/"]
    possible = (28 - 2 * options.get("crop", 0)).bit_length() - 1
    if len(pools) > possible:
        raise words.error(f"the image can be pooled {possible} times at most", pools[possible])
    if "dropout" in options and not pools:
        raise words.error("dropout follows the pooling (/), and there is none", words.words.index("dropout"))
    return Network(block, stages, head, channels, **options)


def _stages(words: _Words, meaning: str, poolable: bool) -> tuple[tuple[int, ...], ...]:
    """The numbers at each resolution, up to the first word that is neither a number nor, if `poolable`, "/"."""
    largest, mark = (MAX_LAYERS, "×") if meaning == USES else (MAX_CHANNELS, "")
    stages, layers = [()], 0
    while True:
        number = words.number(largest, mark)
        if not stages[-1] or (number and meaning != USES):  # a shared convolution has one number per stage
            stages[-1] += (words.take(number, meaning),)
            layers += number if meaning == USES else 1
            if layers > MAX_LAYERS:
                raise words.error(f"more than {MAX_LAYERS} layers", words.position - 1)
        elif words.word == "/" and poolable:
            stages.append(words.take((), "/"))
        else:
            return tuple(stages)


class _Words:
    """The words of a line, read one after another."""

    def __init__(self, line: str):
        if not isinstance(line, str):
            raise NetworkError(f"a network is one line of text, not of type {type(line).__name__}")
        self.words = re.sub(r"\bx(?=[0-9])", "×", line.lower().replace("/", " / ")).split()
        self.position = 0

    @property
    def word(self) -> str:
        """The next word; empty at the end."""
        return self.words[self.position] if self.position < len(self.words) else ""

    def number(self, largest: float, mark: str = "") -> float | None:
        """The next word as a number above 0 and at most `largest`, whole if that is an int; None if it is not one."""
        digits = re.fullmatch(f"{mark}([0-9.e-]+)", self.word)
        try:
            value = type(largest)(digits[1]) if digits else 0
        except ValueError:
            return None
        return value if 0 < value <= largest else None

    def take(self, value, expected: str):
        """Go on to the next word and return `value`, which this one says; None: it does not say what is expected."""
        if value is None:
            raise self.error(f"{_quoted(self.word)} is no {expected}" if self.word else f"missing {expected}")
        self.position += 1
        return value

    def choose(self, allowed: Collection[str], kind: str) -> str:
        return self.take(self.word if self.word in allowed else None, f"{kind} ({', '.join(allowed)})")

    def error(self, problem: str, position: int | None = None) -> NetworkError:
        position = self.position if position is None else position
        place = f"word {position + 1}" if position < len(self.words) else "at the end"
        return NetworkError(f"in {_quoted(' '.join(self.words))}, {place}: {problem}")


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= 200 else f'"{text[:199]}…"'
