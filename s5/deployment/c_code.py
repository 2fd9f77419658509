"""A network in integers as plain C99 for a microcontroller: a folder that builds, checks itself and explains itself.

The templates are in `c_files/`; tables and sizes are filled in here. The code computes exactly what
`integer.IntegerNetwork` does. It keeps a few rows of each layer's input instead of whole maps, since 28×28 pixels of
many channels are what does not fit into a small chip.
"""

import ctypes
import math
import os
import shutil
import subprocess
import textwrap
from pathlib import Path
from string import Template

import numpy as np
import torch
from torch import Tensor

from s5.deployment.deskew import constants
from s5.deployment.integer import IntegerNetwork, Layer
from s5.training.files import write_file

TEMPLATES = Path(__file__).parent / "c_files"
FILES = ("NAME.h", "NAME.c", "drawing.c", "example.c", "NAME.ino", "Makefile", "README.md")
LAYER_BYTES = 40  # of a row of the table of layers on a 32-bit chip
STACK = 450  # bytes; 400 were measured on Cortex-M0+, 328 on Cortex-M4
INSTRUCTIONS = (2.6, 40)  # on Cortex-M4: for each multiply-add, and for each value of a map that a layer computes
AVR = {"ATmega2560": 8192, "ATmega1284": 16384}  # bytes of RAM
COMPILER = shutil.which(os.environ.get("CC", "cc"))  # None: there is none
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def write_c(network: IntegerNetwork, name: str, folder: Path, images: Tensor, description: str = "") -> None:
    """Write the files of `c_files` to `folder`. `name` must be an identifier in C."""
    for file, text in c_files(network, name, images, description).items():
        encoding = "utf-8" if file.endswith(".md") else "ascii"  # some compilers warn of other characters
        write_file(folder / file, text.encode(encoding, errors="replace"))


def c_files(network: IntegerNetwork, name: str, images: Tensor, description: str = "") -> dict[str, str]:
    """The text of each file, by its name. `images`, uint8 (3, 28, 28), are those of the example."""
    (names, sizes), slots = row_buffers(network), kept_rows(network.layers)
    head, channels, layers = network.head, network.weight.shape[1], network.layers
    group, memory, logits = group_size(network), activation_bytes(network), network(images)
    expected = (("uint8_t", "images", images), ("int32_t", "logits", logits), ("int8_t", "digits", logits.argmax(1)))
    avr = [chip for chip, ram in AVR.items() if ram >= memory + images[0].numel() + STACK + 200]  # for others' code
    values = {
        "name": name,
        "macro": name.upper(),
        "description": description,
        "comment": textwrap.fill(description.replace("×", "x"), 116).replace("\n", "\n * "),
        "weight_bytes": f"{network.weight_bytes():,}",
        "layer_bytes": f"{LAYER_BYTES * len(layers):,}",
        "activation_bytes": f"{memory:,}",
        "stack": STACK,
        "macs": f"{network.macs:,}",
        "instructions": f"{instructions(network) / 1e6:.1f}",
        "avr": " or an ".join(avr),
        "library": "for 64-bit division" if network.deskew else "on AVR and Cortex-M0+",
        "logit_scale": f"{network.logit_scale:.6g}",
        "expected": "\n\n".join(_table(*each) for each in expected),
        "weights": "\n\n".join(_weights(network)),
        "width": head.size[1],
        "zero": head.zero_in,
        "limit": head.limit,
        "head_shift": head.shift,
        "layer_count": len(layers),
        "group": group,
        "each": " ".join(f"DO({number})" for number in range(group)),
        "depthwise": int(any(layer.depthwise for layer in layers)),
        "own_zero": "zero" if any(layer.zero_in for layer in layers if layer.depthwise) else "0",
        "additions": int(any(layer.residual_multiplier for layer in layers)),
        "largest_side": max(layer.weight.shape[2] for layer in layers),
        "crop": network.crop,
        "buffers": "\n".join(f"static uint8_t {name}[{size}];" for name, size in sizes.items()),
        "last_row": names[-1],
        "layers": "\n".join(_layer_row(network, number, names[number], slots[number]) for number in range(len(layers))),
        "channels": channels,
        "image": "deskew(image)" if network.deskew else "image",
    }
    values |= constants(network.deskew)
    values["deskew"] = _fill("deskew.c", **values) + "\n" if network.deskew else ""
    values["head"] = _fill("mean.c" if head.weight is None else "gdconv.c", **values).strip()
    return {file.replace("NAME", name): _fill(file, **values) for file in FILES}


def row_buffers(network: IntegerNetwork) -> tuple[list[str], dict[str, int]]:
    """Where the input of each layer and, last, of the head is kept: names of buffers, and the buffers' bytes.

    The first layer reads the image. All rows that are used up as soon as they are
    complete are kept in the same place, but never both the input and the output of a layer. A row that pooling makes of
    two is completed too late.
    """
    rows = [*kept_rows(network.layers), 1]
    names, sizes = ["0"], {}
    for number, before in enumerate(network.layers, start=1):
        is_shared = rows[number] == 1 and before.pool == 1 and names[-1] != "shared_row"
        names.append("shared_row" if is_shared else f"rows_{number}")
        size = rows[number] * before.size_out[1] * len(before.weight)
        sizes[names[-1]] = max(size, sizes.get(names[-1], 0))
    return names, sizes


def kept_rows(layers: list[Layer]) -> list[int]:
    """How many rows of its input each layer keeps: those of its kernel, and those that the next layer will add."""
    kept = [layer.rows for layer in layers]
    for number, layer in enumerate(layers):
        if layer.residual_from:
            before = layers[number - 1]
            rows = sum(each.weight.shape[2] - each.conv.padding for each in (before, layer)) - 1
            kept[number - 1] = min(max(kept[number - 1], rows), before.size_in[0])
    return kept


def activation_bytes(network: IntegerNetwork) -> int:
    """The bytes that change while the code runs, except the image, the logits and a few variables on the stack."""
    upright = 28 * 28 if network.deskew else 0
    sums = 4 * network.weight.shape[1]
    return upright + sum(row_buffers(network)[1].values()) + len(network.layers) + sums


def instructions(network: IntegerNetwork) -> float:
    """About how many instructions an image takes on Cortex-M4, with -O2 or -Os."""
    values = sum(len(layer.weight) * math.prod(layer.size_out) * layer.pool**2 for layer in network.layers)
    return INSTRUCTIONS[0] * network.macs + INSTRUCTIONS[1] * values


def group_size(network: IntegerNetwork) -> int:
    """How many outputs of a layer are computed at once: up to eight, since registers are few.

    The innermost loop has two instructions for each weight and five for each input. A layer's last group may overlap
    the one before.
    """
    layers = [(layer.weight[0].numel() * math.prod(layer.size_out), len(layer.weight)) for layer in network.layers]

    def cost(size: int) -> int:
        return sum(inputs * math.ceil(outputs / size) * (2 * size + 5) for inputs, outputs in layers)

    return min(range(1, min(8, *(outputs for _, outputs in layers)) + 1), key=cost)


def _fill(template: str, **values) -> str:
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _weights(network: IntegerNetwork) -> list[str]:
    """The weights, each set once, and the constants of the channels."""
    tables = []
    for number, layer in enumerate(network.layers):
        if _first_use(network, layer) == number:
            weight = layer.weight.permute(2, 3, 1, 0)  # channels are neighbours, as in a map's row
            tables.append(_table("int8_t", f"weights_{number}", weight, _describe(layer)))
        pairs = zip(layer.multiplier.tolist(), layer.bias.tolist(), strict=True)
        tables.append(_table("Channel", f"channels_{number}", [f"{{{factor}, {bias}}}" for factor, bias in pairs]))
    head = network.head
    if head.weight is not None:
        weight = head.weight.squeeze(1).permute(1, 2, 0)
        tables.append(_table("int8_t", "head_weights", weight, f"{head.step.name}: [row][column][channel]"))
        tables.append(_table("int16_t", "head_multipliers", head.multiplier))
    comment = f"{network.linear}: {network.weight.shape[1]} -> 10"
    tables.append(_table("int8_t", "linear_weights", network.weight, comment))
    return [*tables, _table("int32_t", "linear_biases", network.bias)]


def _table(type_: str, name: str, values: Tensor | list[str], comment: str = "") -> str:
    """An array in C."""
    items = values if isinstance(values, list) else [str(value) for value in values.flatten().tolist()]
    text = textwrap.indent(textwrap.fill(", ".join(items), 112), "    ")
    comment = f"/* {comment} */\n" if comment else ""
    return f"{comment}static const IN_FLASH {type_} {name}[{len(items)}] = {{\n{text}\n}};"


def _describe(layer: Layer) -> str:
    kind = "depthwise" if layer.depthwise else f"{layer.channels_in} -> {len(layer.weight)} channels"
    return f"{layer.conv.name}: {kind}, {layer.weight.shape[2]}x{layer.weight.shape[3]}"


def _first_use(network: IntegerNetwork, layer: Layer) -> int:
    """The number of the first layer with these weights."""
    return next(number for number, other in enumerate(network.layers) if other.weight is layer.weight)


def _layer_row(network: IntegerNetwork, number: int, buffer: str, slots: int) -> str:
    """The row of a layer in the table of layers; `buffer` holds `slots` rows of its input."""
    layer = network.layers[number]
    fields = {
        "weights": f"weights_{_first_use(network, layer)}",
        "channels": f"channels_{number}",
        "rows": buffer,
        "offset": (2 * layer.zero_out + 1) << layer.shift - layer.bias_shift - 1,
        "residual_multiplier": layer.residual_multiplier,
        "inputs": layer.channels_in,
        "outputs": len(layer.weight),
        "height": layer.size_in[0],
        "width": layer.size_in[1],
        "rows_out": layer.size_out[0] * layer.pool,
        "columns_out": layer.size_out[1] * layer.pool,
        "side": layer.weight.shape[2],
        "padding": layer.conv.padding,
        "pooled": layer.pool - 1,
        "slots": slots,
        "depthwise": int(layer.depthwise),
        "relu": int(layer.conv.relu and layer.residual_multiplier > 0),
        "zero": layer.zero_in,
        "residual_from": layer.residual_from,
        "residual_zero": layer.residual_zero,
        "shift": 32 - layer.shift,
        "bias_shift": 32 - layer.shift + layer.bias_shift,
    }
    values = textwrap.fill(", ".join(f".{name} = {value}" for name, value in fields.items()), 110)
    return f"    /* {number}: {_describe(layer)} */\n    {{{textwrap.indent(values, '     ').strip()}}},"


class CompiledNetwork:
    """The C code as a function from uint8 images (N, 28, 28) to logits, int32 (N, 10)."""

    def __init__(self, source: Path, folder: Path):
        """Compile NAME.c, with NAME.h beside it, to a library in `folder`. Raises OSError if that fails."""
        library = folder / f"{source.stem}.so"
        options = [*WARNINGS, "-O2", "-shared", "-fPIC", "-o", str(library)]
        if subprocess.run([COMPILER, *options, str(source)]).returncode:
            raise OSError(f"{COMPILER} does not compile {source.name}")
        self._logits = getattr(ctypes.CDLL(str(library)), f"{source.stem}_logits")
        self._logits.restype = None

    def __call__(self, images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.numpy())
        logits = np.zeros((len(pixels), 10), np.int32)
        for image, row in zip(pixels, logits, strict=True):
            self._logits(image.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
        return torch.from_numpy(logits)
