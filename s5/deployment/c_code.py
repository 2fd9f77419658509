"""A network in integers as plain C99 for a microcontroller: one header and one source file.

The fixed parts are in `c_files/`; tables and sizes are filled in here. The code computes exactly what
`integer.IntegerNetwork` does. It keeps a few rows of each layer's input instead of whole maps, since 28×28 pixels of
many channels are what does not fit into a small chip.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from string import Template

import numpy as np
import torch
from torch import Tensor

from s5.deployment.deskew import constants
from s5.deployment.integer import Convolution, IntegerNetwork, Requantization
from s5.training.files import atomic_path

TEMPLATES = Path(__file__).parent / "c_files"
SUFFIXES = (".h", ".c")
LAYER_BYTES = 40  # of a row of the table of layers on a 32-bit chip
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


class CompilerError(OSError):
    """There is no C compiler, or it refuses the code."""


def write_c(network: IntegerNetwork, name: str, folder: Path, description: str = "") -> list[Path]:
    """Write NAME.h and NAME.c to `folder`; return their paths. Raises OSError as the file system does."""
    paths = [folder / f"{identifier(name)}{suffix}" for suffix in SUFFIXES]
    for path, text in zip(paths, c_code(network, name, description), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="ascii")
    return paths


def identifier(name: str) -> str:
    """The name as C allows it: letters, digits and underscores, a letter first."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if name[:1].isalpha() else f"network_{name}"


def c_code(network: IntegerNetwork, name: str, description: str = "") -> tuple[str, str]:
    """The text of the header and of the source file."""
    file = identifier(name)
    layer_bytes = LAYER_BYTES * len(network.convolutions)
    names = {"file": file, "name": file.lower(), "macro": file.upper()}
    header = _fill(
        "network.h",
        **names,
        description=textwrap.fill(_ascii(description), 116).replace("\n", "\n * "),
        weight_bytes=f"{network.weight_bytes():,}",
        layers=f", and {layer_bytes:,} for the table of layers" if layer_bytes else "",
        activation_bytes=f"{activation_bytes(network):,}",
        macs=f"{network.plan.macs:,}",
        logit_scale=f"{network.logit_scale:.6g}",
    )
    from_values = any(not dense.from_maps for dense in network.dense)
    parts = [
        f"/* Recognises handwritten digits: see {file}.h. Written by code: change the network, not this file. */\n"
        f'#include "{file}.h"',
        _fill("arithmetic.c"),
        _fill("deskew.c", **constants(network.plan.deskew)) if network.plan.deskew else "",
        _fill("channel.c") if any(_channel_parts(network)) else "",
        "/* --- Weights " + 101 * "-" + " */",
        *_tables(network),
        _head(network),
        _fill("dense.c") if from_values else "",
        _convolutions(network) if network.convolutions else "",
        _fill("predict.c", **names, evaluate="\n".join(f"    {line}" for line in _evaluate(network))),
    ]
    return header, "\n\n".join(part.strip() for part in parts if part) + "\n"


def slots(network: IntegerNetwork) -> list[int]:
    """How many rows of its input each convolution keeps: those of its kernel, or more for a later addition."""
    layers = network.plan.layers
    kept = [layer.conv.weight.shape[2] for layer in layers]
    for number, layer in enumerate(layers):
        if layer.residual is not None:
            convs = [between.conv for between in layers[layer.residual : number + 1]]
            ahead = sum(conv.weight.shape[2] - 1 - conv.padding for conv in convs)  # rows that were read since
            kept[layer.residual] = max(kept[layer.residual], 1 + ahead)
    return [min(count, layer.size_in[0]) for count, layer in zip(kept, layers, strict=True)]


def in_shared_row(network: IntegerNetwork) -> list[bool]:
    """Whether the input of each layer and, last, of the head, is a row that is used up as soon as it is complete.

    All such rows are kept in the same place, but never both the input and the output of a layer. A row that pooling
    makes of two is completed too late, and one that is added later is needed too long.
    """
    layers, shared = network.plan.layers, [False]
    if not layers:
        return shared
    added_later = {layer.residual for number, layer in enumerate(layers) if layer.residual != number}
    for number, (before, count) in enumerate(zip(layers, [*slots(network)[1:], 1], strict=True), 1):
        shared.append(count == 1 and before.pool == 1 and number not in added_later and not shared[-1])
    return shared


def row_buffers(network: IntegerNetwork) -> dict[str, int]:
    """The bytes of each buffer of rows, by its name in the C code."""
    buffers, shared = {}, in_shared_row(network)
    (channels, _, width), layers = network.plan.shape, network.plan.layers
    sizes = [
        count * layer.size_in[1] * _inputs(convolution)
        for layer, convolution, count in zip(layers, network.convolutions, slots(network), strict=True)
    ]
    for number, size in enumerate([*sizes, width * channels]):
        name = _buffer_name(number, shared)
        if number:
            buffers[name] = max(size, buffers.get(name, 0))
    return buffers if layers else {}


def _buffer_name(number: int, shared: list[bool]) -> str:
    return "shared_row" if shared[number] else f"rows_{number}"


def activation_bytes(network: IntegerNetwork) -> int:
    """The bytes that change while the code runs, except the image, the logits and a few variables on the stack."""
    head, first = network.plan.head, network.dense[0]
    sums = network.plan.shape[0] if head is not None else len(first.weight)
    values = sum(len(dense.weight) for dense in network.dense[:-1]) + (sums if head is not None else 0)
    image = 28 * 28 if network.plan.deskew else 0
    return image + sum(row_buffers(network).values()) + len(network.convolutions) + 4 * sums + 2 * values


def _ascii(text: str) -> str:
    """For comments, since some compilers warn of other characters."""
    for character, replacement in (("×", "x"), ("→", "->"), ("–", "-")):
        text = text.replace(character, replacement)
    return text.encode("ascii", "replace").decode()


def _fill(template: str, **values) -> str:
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)


def _channel_parts(network: IntegerNetwork) -> list:
    """The parts with a multiplier and a bias per channel."""
    return [part for part in (*network.convolutions, *network.dense) if part.requantization]


def _tables(network: IntegerNetwork) -> list[str]:
    """The weights, each set once, and the constants of the channels."""
    tables, written = [], set()
    for number, convolution in enumerate(network.convolutions):
        weight, layer = convolution.weight, convolution.layer
        if id(weight) not in written:
            # The innermost loop runs over channels, which are neighbours in a map's row.
            order = (1, 2, 3, 0) if layer.depthwise else (0, 2, 3, 1)
            comment = f"{layer.conv.name}: {_describe(convolution)}"
            tables.append(_table("int8_t", _weights_name(network, convolution), weight.permute(order), comment))
            written.add(id(weight))
        tables.append(_channel_table(f"channels_{number}", convolution.requantization))
    head, (channels, height, width) = network.head, network.plan.shape
    if head and head.kind == "gdconv":
        name = network.plan.head.name
        weight = head.weight.reshape(channels, height, width).permute(1, 2, 0)
        tables.append(_table("int8_t", "head_weights", weight, f"{name}: [row][column][channel]"))
        tables.append(_table("int16_t", "head_multipliers", head.requantization.multiplier))
    for number, dense in enumerate(network.dense):
        weight = dense.weight
        if dense.from_maps:
            weight = weight.reshape(-1, channels, height, width).permute(0, 2, 3, 1)
        comment = f"{dense.layer.name}: {dense.weight.shape[1]} -> {len(weight)}"
        tables.append(_table("int8_t", f"dense_{number}_weights", weight, comment))
        if dense.bias is not None:
            tables.append(_table("int32_t", f"dense_{number}_biases", dense.bias))
        else:
            tables.append(_channel_table(f"dense_{number}_channels", dense.requantization))
    return tables


def _table(type_: str, name: str, values: Tensor, comment: str = "") -> str:
    numbers = textwrap.fill(", ".join(map(str, values.flatten().tolist())), 112)
    text = f"static const {type_} {name}[{values.numel()}] = {{\n{textwrap.indent(numbers, '    ')}\n}};"
    return f"/* {comment} */\n{text}" if comment else text


def _channel_table(name: str, requantization: Requantization) -> str:
    pairs = zip(requantization.multiplier.tolist(), requantization.bias.tolist(), strict=True)
    text = textwrap.fill(", ".join(f"{{{multiplier},\0{bias}}}" for multiplier, bias in pairs), 112).replace("\0", " ")
    size = len(requantization.multiplier)
    return f"static const Channel {name}[{size}] = {{\n{textwrap.indent(text, '    ')}\n}};"


def _describe(convolution: Convolution) -> str:
    layer, side = convolution.layer, convolution.weight.shape[2]
    kind = "depthwise" if layer.depthwise else f"{_inputs(convolution)} -> {len(convolution.weight)} channels"
    return f"{kind}, {side}x{side}"


def _inputs(convolution: Convolution) -> int:
    """The number of channels that a convolution reads."""
    return convolution.weight.shape[1] * convolution.layer.conv.groups


def _weights_name(network: IntegerNetwork, convolution: Convolution) -> str:
    first = next(n for n, other in enumerate(network.convolutions) if other.weight is convolution.weight)
    return f"weights_{first}"


def _convolutions(network: IntegerNetwork) -> str:
    """The table of the layers, the buffers of their rows, and the code that runs them."""
    kept, rows = slots(network), []
    shared = in_shared_row(network)
    buffers = [f"static uint8_t {name}[{size}];" for name, size in row_buffers(network).items()]
    for number, convolution in enumerate(network.convolutions):
        layer, requantization = convolution.layer, convolution.requantization
        (height, columns), (height_out, columns_out) = layer.size_in, layer.size_out
        fields = {
            "weights": _weights_name(network, convolution),
            "channels": f"channels_{number}",
            "rows": _buffer_name(number, shared) if number else "0",
            "residual_multiplier": requantization.residual_multiplier,
            "residual": -1 if layer.residual is None else layer.residual,
            "inputs": _inputs(convolution),
            "outputs": len(convolution.weight),
            "height": height,
            "width": columns,
            "rows_out": height_out * layer.pool,
            "columns_out": columns_out * layer.pool,
            "side": convolution.weight.shape[2],
            "stride": layer.conv.stride,
            "padding": layer.conv.padding,
            "pool": layer.pool,
            "slots": kept[number],
            "depthwise": int(layer.depthwise),
            "relu": int(requantization.relu),
            "zero_in": convolution.zero_in,
            "zero_out": convolution.zero_out,
            "shift": requantization.shift,
            "bias_shift": requantization.bias_shift,
        }
        values = textwrap.fill(", ".join(f".{name}\0=\0{value}" for name, value in fields.items()), 110)
        comment = f"/* {number}: {layer.conv.name}, {_describe(convolution)} */"
        rows.append(f"    {comment}\n    {{{textwrap.indent(values, '     ').strip()}}},".replace("\0", " "))
    return _fill(
        "convolutions.c",
        layer_count=len(rows),
        largest_side=max(convolution.weight.shape[2] for convolution in network.convolutions),
        crop=network.plan.crop,
        buffers="\n".join(buffers),
        last_row=_buffer_name(len(rows), shared),
        layers="\n".join(rows),
    )


def _head(network: IntegerNetwork) -> str:
    """What is done with each row of the last maps, or of the image."""
    head, (channels, height, width) = network.head, network.plan.shape
    first = network.dense[0]
    if head is None:
        size = {"count": width * channels, "height": height, "outputs": len(first.weight)}
        code = _fill("flat.c", weights="dense_0_weights", zero=first.zero_in, **size)
    elif head.kind == "mean":
        value = f"divide(sums[channel], {head.shift})" if head.shift else "sums[channel]"
        code = _fill("mean.c", width=width, channels=channels, zero=head.zero_in, value=value)
    else:
        size = {"width": width, "channels": channels}
        code = _fill("gdconv.c", zero=head.zero_in, limit=head.limit, shift=head.requantization.shift, **size)
    return f"static int32_t sums[{channels if head else len(first.weight)}];\n\n{code}"


def _evaluate(network: IntegerNetwork) -> list[str]:
    """The lines from an image to the logits."""
    channels, height, _ = network.plan.shape
    head, crop = network.head, network.plan.crop
    count = channels if head else len(network.dense[0].weight)
    lines = [f"for (int i = 0; i < {count}; i++)", "    sums[i] = 0;"]
    if network.plan.deskew:
        lines.append("image = deskew(image);")
    if network.convolutions:
        lines += ["input_image = image;", "run_convolutions();"]
    else:
        first = f"image + ({crop} + row) * 28 + {crop}" if crop else "image + row * 28"
        lines += [f"for (int row = 0; row < {height}; row++)", f"    add_row({first}, row);"]
    values = "values"
    if head:
        lines = [f"static int16_t values[{channels}];", *lines, "finish_sums(values);"]
    for number, dense in enumerate(network.dense):
        outputs, inputs = dense.weight.shape
        total = "sums[output]"
        if not dense.from_maps:
            total = f"dot_values({values}, dense_{number}_weights + output * {inputs}, {inputs})"
        lines.append(f"for (int output = 0; output < {outputs}; output++) {{")
        if dense.bias is not None:
            lines.append(f"    logits[output] = {total} + dense_{number}_biases[output];")
        else:
            requantization, low = dense.requantization, 0 if dense.layer.relu else -dense.limit
            values = f"values_{number}"
            lines.insert(0, f"static int16_t {values}[{outputs}];")
            channel = f"&dense_{number}_channels[output], {requantization.bias_shift}"
            lines.append(f"    const int64_t value = scaled({total}, {channel});")
            result = f"clamp(divide(value, {requantization.shift}), {low}, {dense.limit})"
            lines.append(f"    {values}[output] = (int16_t){result};")
        lines.append("}")
    return lines


def find_compiler() -> str | None:
    """The system's C compiler: $CC, cc, gcc or clang; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))), None)


class CompiledNetwork:
    """The C code as a function from uint8 images (N, 28, 28) to logits, int32 (N, 10)."""

    def __init__(self, source: Path, folder: Path, options: tuple[str, ...] = ("-O2",)):
        """Compile NAME.c, with NAME.h beside it, to a library in `folder`. Raises CompilerError."""
        compiler = find_compiler()
        if compiler is None:
            raise CompilerError("no C compiler (cc, gcc or clang) was found")
        library = folder / f"{source.stem}.so"
        command = [compiler, *WARNINGS, *options, "-shared", "-fPIC", "-o", str(library), str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise CompilerError(f"{compiler} does not compile {source.name}: {result.stderr.strip()}")
        code = ctypes.CDLL(str(library))
        self._logits, self._predict = (getattr(code, f"{source.stem.lower()}_{name}") for name in ("logits", "predict"))
        self._logits.restype = None

    def __call__(self, images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.numpy())
        logits = np.zeros((len(pixels), 10), np.int32)
        for image, row in zip(pixels, logits, strict=True):
            self._logits(image.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
        return torch.from_numpy(logits)

    def predict(self, image: Tensor) -> int:
        """The digit in one uint8 image (28, 28)."""
        return self._predict(np.ascontiguousarray(image.numpy()).ctypes.data_as(ctypes.c_void_p))
