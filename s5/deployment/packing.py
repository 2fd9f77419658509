"""The weights of a network as short text for a web page: whole numbers, a few bits each, in base 91.

`page_files/network.js` reads what `pack_network` writes. Rounding changes the logits a little; `fit` finds a rounding
that changes no prediction.
"""

from __future__ import annotations

import math
import string
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from s5.deployment.layer_graph import Step, run, steps_of
from s5.training.augmentation import normalize

# All printable ASCII characters that need no escape in JSON and HTML.
DIGITS = "".join(each for each in string.ascii_letters + string.digits + string.punctuation if each not in '"\\<')
Packing = tuple[int, int]  # characters, and how many numbers they hold
FINE: Packing = (3, 1)  # 19.5 bits a number
COARSE: tuple[Packing, ...] = ((2, 1), (7, 4), (5, 3), (3, 2))  # 13, 11.3, 10.8 and 9.7 bits
STRETCHES = [1 + number / 200 for number in range(40)]  # factors of the unit of rounding that `fit` tries


class PackingError(ValueError):
    """No rounding keeps the predictions."""


def pack_network(model: nn.Module, packing: Packing = FINE, stretch: float = 1.0) -> dict:
    """The steps of a network for network.js: {"packing", "stretch", "weights", "steps", "maps"}, all JSON.

    Each row of weights (an output channel) becomes whole numbers; their unit, which `stretch` enlarges, multiplies the
    channel's factor. `maps` are the numbers of the steps whose outputs are shown. Raises GraphError as
    `graph.steps_of` does.
    """
    steps = steps_of(model)
    tensors = list({id(step.weight): step.weight for step in steps if step.weight is not None}.values())
    rows = [tensor.numpy().astype(np.float64).reshape(len(tensor), -1) for tensor in tensors]
    units = [stretch * _unit(values, packing) for values in rows]
    entries = []
    for place, step in enumerate(steps):
        entry = {"kind": step.kind}
        if step.weight is not None:
            number = next(number for number, tensor in enumerate(tensors) if tensor is step.weight)
            scale = units[number][:, 0] * (1 if step.scale is None else step.scale.numpy())
            entry |= {"weight": number, "scale": _pack_factors(scale), "bias": _pack_factors(step.bias.numpy())}
        kernel = step.weight.shape[-1] if step.kind == "conv" else 1
        settings = {"kernel": kernel, "inputs": step.inputs, "size": step.size, "relu": step.relu}
        settings |= {"groups": step.groups, "stride": step.stride, "padding": step.padding}
        usual = {"kernel": 1, "inputs": (place - 1,), "size": 0, "relu": False, "groups": 1, "stride": 1, "padding": 0}
        entries.append(entry | {name: value for name, value in settings.items() if value != usual[name]})
    weights = [pack(values / unit, packing) for values, unit in zip(rows, units, strict=True)]
    return {"packing": packing, "stretch": stretch, "weights": weights, "steps": entries, "maps": _shown(steps)}


def unpack_network(data: dict, steps: list[Step]) -> list[Step]:
    """`steps` of a network with the rounded weights of `pack_network`: what the page computes, for `graph.run`."""

    def factors(packed: list) -> Tensor:
        exponent, text = packed
        return torch.tensor([number * 2.0**exponent for number in unpack(text, FINE)])

    result = []
    for step, entry in zip(steps, data["steps"], strict=True):
        if step.weight is not None:
            numbers = unpack(data["weights"][entry["weight"]], data["packing"])[: step.weight.numel()]
            weight = torch.tensor(numbers, dtype=torch.float32).reshape(step.weight.shape)
            scale, bias = factors(entry["scale"]), factors(entry["bias"])
            weight = weight * scale[:, None] if step.kind == "linear" else weight  # which has no scale of its own
            step = replace(step, weight=weight, scale=scale, bias=bias)
        result.append(step)
    return result


def fit(model: nn.Module, packing: Packing, images: Tensor) -> float:
    """The smallest of STRETCHES for which rounding changes no prediction of uint8 `images` (N, 28, 28).

    Raises PackingError if there is none.
    """
    steps = steps_of(model)
    with torch.inference_mode():
        logits = torch.cat([model(normalize(batch)) for batch in images.split(500)])
        first, second = logits.topk(2).values.T
        order = (first - second).argsort()  # the closest decisions first: they change most easily
        images, predicted = images[order].split(500), logits.argmax(1)[order].split(500)
        for stretch in STRETCHES:
            rounded = unpack_network(pack_network(model, packing, stretch), steps)
            batches = zip(images, predicted, strict=True)
            if all(torch.equal(run(rounded, normalize(batch)).argmax(1), labels) for batch, labels in batches):
                return stretch
    raise PackingError(f"rounding with packing {packing} changes predictions")


def levels(packing: Packing) -> int:
    """The number of different whole numbers, odd: half of them are negative."""
    characters, numbers = packing
    count = round(len(DIGITS) ** (characters / numbers))
    while count**numbers > len(DIGITS) ** characters or count % 2 == 0:
        count -= 1
    return count


def pack(values: np.ndarray, packing: Packing) -> str:
    """An array of any shape, rounded to whole numbers, as text."""
    (characters, numbers), count, base = packing, levels(packing), len(DIGITS)
    whole = [round(value) + count // 2 for value in values.ravel().tolist()]
    groups = [whole[start : start + numbers] for start in range(0, len(whole), numbers)]
    codes = [sum(number * count**place for place, number in enumerate(group)) for group in groups]
    return "".join(DIGITS[code // base**place % base] for code in codes for place in reversed(range(characters)))


def unpack(text: str, packing: Packing) -> list[int]:
    """The whole numbers of a text by `pack`, and a few more if they do not fill the last group."""
    (characters, numbers), count, base = packing, levels(packing), len(DIGITS)
    values = []
    for start in range(0, len(text), characters):
        code = 0
        for digit in text[start : start + characters]:
            code = code * base + DIGITS.index(digit)
        values += [code // count**place % count - count // 2 for place in range(numbers)]
    return values


def _unit(rows: np.ndarray, packing: Packing) -> np.ndarray:
    """The value of the whole number 1 for each row (rows, values), so that the largest fits: an array (rows, 1).

    A row of zeros takes the unit of the largest row: a much larger one would make the factors of the others inexact.
    """
    units = np.abs(rows).max(1, keepdims=True) / (levels(packing) // 2)
    return np.where(units > 0, units, units.max() or 1.0)


def _pack_factors(values: np.ndarray) -> list:
    """[exponent, text]: the text's whole numbers times 2 to the exponent are the values."""
    values = values.astype(np.float64)
    exponent = math.ceil(math.log2(_unit(values[None], FINE)[0, 0]))
    return [exponent, pack(values / 2.0**exponent, FINE)]


def _shown(steps: list[Step]) -> list[int]:
    """The numbers of the steps whose maps are shown: the output of each block, so no depthwise step and no residual."""

    def is_shown(number: int, step: Step) -> bool:
        readers = [other for other in steps if number in other.inputs]
        is_residual = bool(readers) and all(reader.kind == "add" for reader in readers)
        return step.kind in ("conv", "add") and step.shape[-1] > 1 and step.groups == 1 and not is_residual

    return [number for number, step in enumerate(steps) if is_shown(number, step)]
