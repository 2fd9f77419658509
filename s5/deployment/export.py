"""A trained network as ONNX files, in float32 and int8, and as C for a microcontroller; both checked and measured.

Two other projects were weighed for the C code: emlearn's converter of neural networks takes fully connected layers
only; onnx2c translates operator by operator with whole maps in memory, and its own quantisation is, in its words, at an
alpha stage, without BatchNorm folded into the scales or weights that several layers share.
"""

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from s5.analysis.inspection import count_parameters
from s5.analysis.statistics import mean_text
from s5.deployment import emulator
from s5.deployment.c_code import COMPILER, CompiledNetwork, activation_bytes, write_c
from s5.deployment.quantization import CALIBRATION_IMAGES, quantize
from s5.experiments.claims import CLAIMS, find_variant
from s5.experiments.ledger import read_ledger
from s5.experiments.trial import Trial
from s5.inference.trained import load_trained, weights_file
from s5.training.augmentation import normalize
from s5.training.command_line import plural
from s5.training.files import EXPORT, atomic_path, write_file
from s5.training.mnist import MnistData
from s5.training.provenance import provenance

TOLERANCE = 1e-5  # largest difference of the float32 network's logits from PyTorch's, relative to an image's largest


@dataclass
class Exported:
    """A network in one format."""

    run: Callable[[Tensor], Tensor] | None  # the logits of uint8 images (N, 28, 28); None: cannot be run here
    logits: Tensor  # of the evaluation images
    bytes: int
    memory: int | None = None  # C
    chip: emulator.Run | None = None  # C on an emulated Cortex-M4, optimised for size


class ExportError(RuntimeError):
    """An exported network differs from the trained one."""


def export(
    names: Iterable[str],
    formats: set[str],
    data: MnistData,
    output: Path,
    weights: Path | None = None,
    repeats: int = 300,
) -> list[dict]:
    """Write trained networks to the folder `output`, in the `formats` "onnx" and "c"; return the rows of `measure`.

    With `weights` the network may be any that `find_variant` knows. Raises CheckpointError for weights that cannot be
    read, GraphError for a network that cannot be written in C, ImportError for a missing package, and ExportError; then
    files of this network are not written.
    """
    models = {name: load_trained(name, weights) for name in names}
    rows, trials = [], [] if weights else read_ledger()
    for reference, model in models.items():
        about, run, name = describe(reference, model, trials), partial(logits_of, model), identifier(reference)
        logits = run(data.eval_images)
        networks = {"PyTorch": Exported(run, logits, (weights or weights_file(reference)).stat().st_size)}
        if "onnx" in formats:
            networks |= export_onnx(name, model, data, output, about, logits)
        if "c" in formats:
            networks["C int8"] = export_c(name, model, data, output, about["description"])
        rows += [{"network": name, **row} for row in measure(networks, data, repeats)]
    return rows


def identifier(reference: str) -> str:
    """A name for the files of a network, which is also one in C, from a name, a line, or "FILE.py:NAME"."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", reference.rpartition(":")[2]).strip("_") or "network"


def record(rows: list[dict], data: MnistData) -> None:
    """Save measurements in results/export.json, from which the table of RESULTS.md is written."""
    content = {"rows": rows, "data": str(data)} | provenance(torch.device("cpu"), "float32")
    write_file(EXPORT, json.dumps(content, indent=1) + "\n")


def describe(reference: str, model: nn.Module, trials: list[Trial]) -> dict[str, str]:
    """What the network is, and its accuracy in `trials` if it was claimed there: none of them for other weights."""
    variant, parameters = find_variant(reference), count_parameters(model)
    names = ", ".join(dict.fromkeys((variant.name, variant.network_name)))
    about = {
        "description": f"Handwritten digits 0 to 9, as in MNIST: {names}, {parameters:,} parameters",
        "network": variant.network_name,
        "parameters": str(parameters),
    }
    if accuracies := [trial.accuracy for trial in CLAIMS[reference].trials(trials)] if reference in CLAIMS else []:
        seeds = plural(len(accuracies), "seed")
        about["accuracy"] = f"{mean_text(accuracies, 2)}% of 10,000 test images before the export, mean of {seeds}"
    return about


def export_onnx(
    name: str, model: nn.Module, data: MnistData, output: Path, about: dict[str, str], expected: Tensor
) -> dict[str, Exported]:
    """Write both ONNX files. Raises ExportError if the float32 logits are not the `expected` ones of PyTorch.

    They are compared relative to the largest logit of the image, or absolutely if that is below 1, because the rounding
    errors of float32 grow with the values and differ between processors.
    """
    from s5.deployment.onnx_files import OnnxNetwork, to_int8, to_onnx

    with atomic_path(output / f"{name}.onnx") as path, atomic_path(output / f"{name}-int8.onnx") as path_int8:
        to_onnx(model, path, about)
        to_int8(path, path_int8, data.train_images[:CALIBRATION_IMAGES])
        exported = {}
        for kind, file in (("ONNX float32", path), ("ONNX int8", path_int8)):
            run = OnnxNetwork(file)
            exported[kind] = Exported(run, run(data.eval_images), file.stat().st_size)
        tolerance = TOLERANCE * expected.abs().amax(1, keepdim=True).clamp(min=1)
        if not ((exported["ONNX float32"].logits - expected).abs() <= tolerance).all():  # NaN fails too
            raise ExportError(f"the float32 logits of {name} differ from PyTorch's: it is not written")
    return exported


def export_c(name: str, model: nn.Module, data: MnistData, output: Path, description: str) -> Exported:
    """Check and write the C code. Raises ExportError if its logits differ from the reference, where it can be run."""
    network = quantize(model, data.train_images[:CALIBRATION_IMAGES])
    logits, compiled = network(data.eval_images), None
    description = f"{description}."
    if data.source == "mnist":  # the sample's images are of the training set
        correct = int((logits.argmax(1) == data.eval_labels).sum())
        description += f" In this code {correct:,} of {len(data.eval_labels):,} images are right ({data})."
    write = partial(write_c, network, name, images=data.eval_images[:3], description=description)
    if COMPILER:
        with tempfile.TemporaryDirectory() as folder:
            write(folder=Path(folder))
            compiled = CompiledNetwork(Path(folder) / f"{name}.c", Path(folder))
        if (compiled(data.eval_images) != logits).any():
            raise ExportError(f"the logits of {name}.c differ from the reference: it is not written")
    write(folder=output / name)
    chip = emulator.emulate(network, data.eval_images[:20], emulator.M4, "-Os") if emulator.is_available() else None
    return Exported(compiled, logits, network.weight_bytes(), activation_bytes(network), chip)


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of uint8 images (N, 28, 28)."""
    return torch.cat([model(normalize(batch)) for batch in images.split(1000)])


def measure(networks: dict[str, Exported], data: MnistData, repeats: int) -> list[dict]:
    """A row for each format: accuracy on the evaluation images, size, and microseconds for a single image, one thread.

    The networks are timed in turns, so that a change in the machine's load affects all of them.
    """
    times = {kind: [] for kind, network in networks.items() if network.run}
    for _ in range(2 * repeats):  # the first half warms up
        for kind, seconds in times.items():
            start = time.perf_counter()
            networks[kind].run(data.eval_images[:1])
            seconds.append(time.perf_counter() - start)
    rows = []
    for kind, network in networks.items():
        correct, count = int((network.logits.argmax(1) == data.eval_labels).sum()), len(data.eval_labels)
        row = {"format": kind, "correct": correct, "images": count, "accuracy": round(100 * correct / count, 2)}
        row |= {"bytes": network.bytes, "memory": network.memory}
        if network.chip:
            row |= {"flash": network.chip.flash, "instructions": network.chip.instructions}
        if kind in times:
            microseconds = [1e6 * seconds for seconds in times[kind][repeats:]]
            row["microseconds"] = round(statistics.median(microseconds), 1)
            row["range"] = [round(value, 1) for value in (min(microseconds), max(microseconds))]
        rows.append(row)
    return rows
