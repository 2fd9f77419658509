"""A network in integers as plain C99 for a microcontroller: one header and one source file.

The fixed parts are in `c_files/`; tables and sizes are filled in here. The code computes exactly what
`integer.IntegerNetwork` does. It keeps a few rows of each layer's input instead of whole maps, since 28×28 pixels of
many channels are what does not fit into a small chip.
"""

from __future__ import annotations

import ctypes
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
from s5.training.files import atomic_path

TEMPLATES = Path(__file__).parent / "c_files"
LAYER_BYTES = 40  # of a row of the table of layers on a 32-bit chip
COMPILER = shutil.which(os.environ.get("CC", "cc"))  # None: there is none
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def write_c(network: IntegerNetwork, name: str, folder: Path, description: str = "") -> list[Path]:
    """Write NAME.h and NAME.c to `folder`; return their paths. `name` must be an identifier in C."""
    paths = [folder / f"{name}{suffix}" for suffix in (".h", ".c")]
    for path, text in zip(paths, c_code(network, name, description), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="ascii", errors="replace")  # some compilers warn of other characters
    return paths


def c_code(network: IntegerNetwork, name: str, description: str = "") -> tuple[str, str]:
    """The text of the header and of the source file."""
    names, sizes = row_buffers(network)
    header = _fill(
        "network.h",
        name=name,
        macro=name.upper(),
        description=textwrap.fill(description.replace("×", "x"), 116).replace("\n", "\n * "),
        weight_bytes=f"{network.weight_bytes():,}",
        layer_bytes=f"{LAYER_BYTES * len(network.layers):,}",
        activation_bytes=f"{activation_bytes(network):,}",
        macs=f"{network.macs:,}",
        logit_scale=f"{network.logit_scale:.6g}",
    )
    head, channels = network.head, network.weight.shape[1]
    values = {"channels": channels, "width": head.size[1], "zero": head.zero_in}
    values |= {"limit": head.limit, "shift": head.shift}
    source = _fill(
        "network.c",
        name=name,
        deskew=_fill("deskew.c", **constants(network.deskew)) + "\n" if network.deskew else "",
        weights="\n\n".join(_weights(network)),
        head=_fill("mean.c" if head.weight is None else "gdconv.c", **values).strip(),
        layer_count=len(network.layers),
        largest_side=max(layer.weight.shape[2] for layer in network.layers),
        crop=network.crop,
        buffers="\n".join(f"static uint8_t {name}[{size}];" for name, size in sizes.items()),
        last_row=names[-1],
        layers="\n".join(_layer_row(network, number, names[number]) for number in range(len(network.layers))),
        channels=channels,
        image="deskew(image)" if network.deskew else "image",
    )
    return header, source


def row_buffers(network: IntegerNetwork) -> tuple[list[str], dict[str, int]]:
    """Where the input of each layer and, last, of the head is kept: names of buffers, and the buffers' bytes.

    A layer keeps the rows of its kernel; the first one reads the image. All rows that are used up as soon as they are
    complete are kept in the same place, but never both the input and the output of a layer. A row that pooling makes of
    two is completed too late.
    """
    rows = [layer.rows for layer in network.layers] + [1]
    names, sizes = ["0"], {}
    for number, before in enumerate(network.layers, start=1):
        is_shared = rows[number] == 1 and before.pool == 1 and names[-1] != "shared_row"
        names.append("shared_row" if is_shared else f"rows_{number}")
        size = rows[number] * before.size_out[1] * len(before.weight)
        sizes[names[-1]] = max(size, sizes.get(names[-1], 0))
    return names, sizes


def activation_bytes(network: IntegerNetwork) -> int:
    """The bytes that change while the code runs, except the image, the logits and a few variables on the stack."""
    upright = 28 * 28 if network.deskew else 0
    sums_and_values = (4 + 2) * network.weight.shape[1]
    return upright + sum(row_buffers(network)[1].values()) + len(network.layers) + sums_and_values


def _fill(template: str, **values) -> str:
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _weights(network: IntegerNetwork) -> list[str]:
    """The weights, each set once, and the constants of the channels."""
    tables = []
    for number, layer in enumerate(network.layers):
        if _first_use(network, layer) == number:
            weight = layer.weight.permute(0, 2, 3, 1)  # channels are neighbours, as in a map's row
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
    return f"{comment}static const {type_} {name}[{len(items)}] = {{\n{text}\n}};"


def _describe(layer: Layer) -> str:
    kind = "depthwise" if layer.depthwise else f"{layer.channels_in} -> {len(layer.weight)} channels"
    return f"{layer.conv.name}: {kind}, {layer.weight.shape[2]}x{layer.weight.shape[3]}"


def _first_use(network: IntegerNetwork, layer: Layer) -> int:
    """The number of the first layer with these weights."""
    return next(number for number, other in enumerate(network.layers) if other.weight is layer.weight)


def _layer_row(network: IntegerNetwork, number: int, buffer: str) -> str:
    """The row of a layer in the table of layers; `buffer` holds its input."""
    layer = network.layers[number]
    fields = {
        "weights": f"weights_{_first_use(network, layer)}",
        "channels": f"channels_{number}",
        "rows": buffer,
        "residual_multiplier": layer.residual_multiplier,
        "residual": number if layer.residual_multiplier else -1,
        "inputs": layer.channels_in,
        "outputs": len(layer.weight),
        "height": layer.size_in[0],
        "width": layer.size_in[1],
        "rows_out": layer.size_out[0] * layer.pool,
        "columns_out": layer.size_out[1] * layer.pool,
        "side": layer.weight.shape[2],
        "stride": 1,
        "padding": layer.conv.padding,
        "pool": layer.pool,
        "slots": layer.rows,
        "depthwise": int(layer.depthwise),
        "relu": int(layer.conv.relu and layer.residual_multiplier > 0),
        "zero_in": layer.zero_in,
        "zero_out": layer.zero_out,
        "shift": layer.shift,
        "bias_shift": layer.bias_shift,
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
