"""Export a trained network to ONNX, in float32 and int8, or to C for a microcontroller, and measure what is exported.

python -m s5.deployment.export                      write s5.onnx and s5-int8.onnx to runs/export, and print a table
python -m s5.deployment.export --network below_5k   another network with weights in results/weights
python -m s5.deployment.export --c below_2k         write below_2k.h and below_2k.c
python -m s5.deployment.export --all                everything for every trained network, in one table

ONNX requires `pip install -e ".[export]"`. The files take images as they are in MNIST, uint8 (batch, 28, 28), white on
black, and normalise them themselves; with --normalized they take float32 (batch, 1, 28, 28), normalised as by
`s5.training.augmentation.normalize`. They return logits (batch, 10) and describe themselves in their metadata. The int8
file gives the same predictions on every processor.

C code is C99 with integers only: int8 weights, uint8 activations, no library, no allocation. It keeps a few rows of
each layer, so that Net runs in 2.5 kB of memory. Its logits are compared bit by bit with a reference in Python if there
is a C compiler. Two other projects were weighed: emlearn's converter of neural networks takes fully connected layers
only; onnx2c translates operator by operator with whole maps in memory, and its own quantisation is, in its words, at an
alpha stage, without BatchNorm folded into the scales or weights that several layers share.

The table gives accuracy on the evaluation images, bytes (of the file; C: of the weights, multipliers and biases), the
memory of the C code besides the image, and microseconds for one image on one thread of this CPU; cycles on a chip are
not measured. Exit code: 1 if the logits of a file differ from what they should be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s5.training.command_line import Parser, path, plural, run_command
from s5.training.files import EXPORT, RUNS, atomic_path

if TYPE_CHECKING:
    from torch import Tensor

# Torch takes seconds to load, so what needs it is imported inside functions: --help responds at once.

TOLERANCE = 1e-5  # largest `relative_difference` of the float32 network's logits from PyTorch's


@dataclass
class Exported:
    """A network in one format: `run` gives the logits of uint8 images (N, 28, 28)."""

    run: Callable
    logits: Tensor  # of the evaluation images
    bytes: int
    memory: int | None = None  # C
    timed: bool = True


class ExportError(RuntimeError):
    """An exported network differs from the trained one, or something that it requires is missing or damaged."""


def check_packages() -> None:
    """Raise ExportError, with the command that installs it, if an optional package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch.onnx.export requires it
    except ImportError as error:
        raise ExportError(f'{error.name} is not installed: pip install -e ".[export]"') from error


def relative_difference(logits, expected) -> float:
    """Largest difference of `logits` from `expected`, both (N, 10), relative to the image's largest expected logit.

    Relative, because the rounding errors of float32 grow with the values and differ between processors; absolute for
    images whose logits are all below 1.
    """
    scale = expected.abs().amax(1, keepdim=True).clamp(min=1)
    return ((logits - expected).abs() / scale).max().item()


def describe(name: str, model, trials: list[dict]) -> dict[str, str]:
    """What the network is, and its accuracy in `trials` if it was claimed there: none of them for other weights."""
    from s5.analysis.inspection import count_parameters
    from s5.analysis.statistics import noise_is_unknown
    from s5.experiments.claims import KNOWN
    from s5.reports.goals import claims_of

    variant, parameters = KNOWN[name], count_parameters(model)
    about = {
        "description": f"Handwritten digits 0 to 9, as in MNIST: {name}, {variant.network}, {parameters:,} parameters",
        "network": str(variant.network),
        "parameters": str(parameters),
    }
    accuracies = [trial["accuracy"] for trial in claims_of(name, trials)]
    if accuracies:
        spread = "" if noise_is_unknown(accuracies) else f", standard deviation {statistics.stdev(accuracies):.2f}"
        mean, seeds = statistics.mean(accuracies), plural(len(accuracies), "seed")
        about["accuracy"] = f"{mean:.2f}% of 10,000 test images in float32, mean of {seeds}{spread}"
    return about


def export_onnx(name: str, model, data, options: argparse.Namespace, about: dict, expected) -> dict[str, Exported]:
    """Write both ONNX files. Raises ExportError if the float32 logits are not the `expected` ones of PyTorch."""
    from s5.deployment.onnx_files import CALIBRATION_IMAGES, OnnxNetwork, to_int8, to_onnx

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps an open file
        paths = {"ONNX float32": Path(folder, f"{name}.onnx"), "ONNX int8": Path(folder, f"{name}-int8.onnx")}
        to_onnx(model, paths["ONNX float32"], options.normalized, about)
        to_int8(paths["ONNX float32"], paths["ONNX int8"], data.train_images[:CALIBRATION_IMAGES])
        runs = {kind: OnnxNetwork(path) for kind, path in paths.items()}
        exported = {
            kind: Exported(run, run(data.eval_images), paths[kind].stat().st_size) for kind, run in runs.items()
        }
        difference = relative_difference(exported["ONNX float32"].logits, expected)
        if not difference <= TOLERANCE:  # NaN fails too
            raise ExportError(
                f"the float32 network's logits differ from PyTorch's by {difference:.2g} "
                f"(relative; at most {TOLERANCE:g}): it is not written"
            )
        for path in paths.values():
            with atomic_path(options.output / path.name) as temporary:
                shutil.copyfile(path, temporary)
    return exported


def export_c(name: str, model, data, options: argparse.Namespace, about: dict) -> dict[str, Exported]:
    """Check and write the C code; without a compiler, what is returned runs its reference and is not timed.

    Raises ExportError if the network cannot be written in C or the code differs from the reference.
    """
    from s5.deployment.c_code import CompiledNetwork, activation_bytes, find_compiler, write_c
    from s5.deployment.layer_graph import GraphError
    from s5.deployment.quantization import CALIBRATION_IMAGES, quantize

    try:
        network = quantize(model, data.train_images[:CALIBRATION_IMAGES])
    except GraphError as error:
        raise ExportError(f"{name}: {error}") from error
    logits = network(data.eval_images)
    correct, count = int((logits.argmax(1) == data.eval_labels).sum()), len(data.eval_labels)
    description = f"{about['description']}."
    if data.source == "mnist":  # the sample's images are of the training set
        description += f" In this code {correct:,} of {count:,} images are right ({data})."
    exported = Exported(network, logits, network.weight_bytes(), activation_bytes(network), timed=False)
    if find_compiler():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps a loaded library
            source = write_c(network, name, Path(folder), description)[1]
            exported.run, exported.timed = CompiledNetwork(source, Path(folder)), True
        if (exported.run(data.eval_images) != logits).any():
            raise ExportError(f"the logits of {source.name} differ from the reference: it is not written")
    write_c(network, name, options.output, description)
    return {"C int8": exported}


def pytorch_network(model):
    """The model as a function from uint8 images (N, 28, 28) to logits."""
    import torch

    from s5.training.augmentation import normalize

    @torch.inference_mode()
    def run(images):
        return torch.cat([model(normalize(batch)) for batch in images.split(1000)])

    return run


def measure(networks: dict[str, Exported], data, repeats: int) -> list[dict]:
    """A row for each format: accuracy on the evaluation images, size, and microseconds for a single image, one thread.

    The networks are timed in turns, so that a change in the machine's load affects all of them.
    """
    image = data.eval_images[:1]
    times = {kind: [] for kind in networks}
    for turn in range(2 * repeats):  # the first half warms up
        for kind, network in networks.items():
            start = time.perf_counter()
            if network.timed:
                network.run(image)
            if network.timed and turn >= repeats:
                times[kind].append(1e6 * (time.perf_counter() - start))
    rows = []
    for kind, network in networks.items():
        correct, count = int((network.logits.argmax(1) == data.eval_labels).sum()), len(data.eval_labels)
        row = {"format": kind, "correct": correct, "images": count, "accuracy": round(100 * correct / count, 2)}
        row |= {"bytes": network.bytes, "memory": network.memory}
        if times[kind]:
            row["microseconds"] = round(statistics.median(times[kind]), 1)
            row["range"] = [round(value, 1) for value in (min(times[kind]), max(times[kind]))]
        rows.append(row)
    return rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("export", __doc__, usage="python -m s5.deployment.export [options]")
    add = parser.add_argument
    add("--network", metavar="NAME", help="export this trained network to ONNX (default: s5)")
    add("--c", metavar="NAME", help="export this trained network to C")
    add("--all", action="store_true", help="export all trained networks to ONNX and C")
    add("--normalized", action="store_true", help="ONNX files take normalised float32 images")
    add("--output", type=path, default=RUNS / "export", metavar="FOLDER", help="default: runs/export")
    add("--weights", type=path, metavar="FILE", help="other weights of the network, safetensors")
    add("--repeats", type=int, default=300, metavar="N", help="timed calls per network (default: 300)")
    add("--record", action="store_true", help="as --all, and save the table in results/export.json, for RESULTS.md")
    add("--smoke", action="store_true", help="use the small sample instead of MNIST")
    options = parser.parse_args(arguments)
    if options.record and options.smoke:
        parser.error("--record measures on the whole test set: without --smoke")
    options.all |= options.record
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, not {options.repeats}")
    if os.path.isfile(options.output):
        parser.error(f"--output must be a folder, but {options.output} is a file")
    whole = "--record" if options.record else "--all"
    given = {"--network": options.network is not None, "--c": options.c is not None, whole: options.all}
    if sum(given.values()) > 1:
        parser.error(f"{' and '.join(name for name, is_given in given.items() if is_given)} exclude each other")
    if options.all and options.weights:
        parser.error("--weights requires a single network: --network or --c")
    if given["--c"] and options.normalized:
        parser.error("--normalized is for ONNX files: the C code takes uint8 images")
    name = next((name for name in (options.c, options.network) if name is not None), "s5")
    options.names = None if options.all else [name]
    if name != "s5":
        from s5.experiments.claims import CLAIMS

        if name not in CLAIMS:
            parser.error(f"there is no trained network {name!r}; there are s5, {', '.join(CLAIMS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)

    from s5.training.device import use_threads

    try:
        if not options.c:
            check_packages()
        with use_threads(1):  # as in the other formats: for one small image more cost more than they save
            return run(options)
    except (ExportError, OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Export, compare, measure and print; return the exit code."""
    import pandas as pd
    import torch

    from s5.experiments.ledger import read_ledger
    from s5.inference.trained import load_trained, trained_networks, weights_file
    from s5.training.checkpoint import CheckpointError
    from s5.training.mnist import DataError, load_mnist, load_sample
    from s5.training.provenance import provenance

    names = options.names or trained_networks()
    try:
        models = {name: load_trained(name, options.weights) for name in names}
        data = load_sample() if options.smoke else load_mnist(allow_sample=not options.record)
    except (CheckpointError, DataError) as error:
        raise ExportError(str(error)) from error
    rows, trials = [], [] if options.weights else read_ledger()
    for name, model in models.items():
        about = describe(name, model, trials)
        network = pytorch_network(model)
        logits = network(data.eval_images)
        networks = {"PyTorch": Exported(network, logits, (options.weights or weights_file(name)).stat().st_size)}
        if not options.c:
            networks |= export_onnx(name, model, data, options, about, logits)
        if options.c or options.all:
            networks |= export_c(name, model, data, options, about)
        rows += [{"network": name, **row} for row in measure(networks, data, options.repeats)]
    table = pd.DataFrame(rows).convert_dtypes().astype(object)
    print(table.where(table.notna(), "–").to_string(index=False))
    print(f"{data}. Files are in {options.output}. Cycles on a chip are not measured.")
    if data.source != "mnist":
        print("The sample's images are of the training set: these accuracies are not those of new images.")
    if options.record:
        record = {"rows": rows, "data": str(data)} | provenance(torch.device("cpu"), "float32")
        with atomic_path(EXPORT) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
