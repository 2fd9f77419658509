"""Write trained networks as a web page, as ONNX files, or as C for a microcontroller.

python -m s5 export page                   docs/index.html: a page on which one draws a digit; it works offline
python -m s5 export onnx [NETWORK ...]     NETWORK.onnx and NETWORK-int8.onnx (default: s5)
python -m s5 export c NETWORK [...]        NETWORK.h and NETWORK.c
python -m s5 export onnx --record          every network in every format, and the table of RESULTS.md

NETWORK is one with weights in results/weights, or "all". Files are written to runs/export, and a table is printed.

ONNX requires `pip install -e ".[export]"`. The files take images as they are in MNIST, uint8 (batch, 28, 28), white on
black, and normalise them themselves; with --normalized they take float32 (batch, 1, 28, 28), normalised as by
`s5.training.augmentation.normalize`. They return logits (batch, 10) and describe themselves in their metadata. The int8
file gives the same predictions on every processor.

C code is C99 with integers only: int8 weights, uint8 activations, no library, no allocation. It keeps a few rows of
each layer, so that Net runs in 2.5 kB of memory. Its logits are compared bit by bit with a reference in Python if there
is a C compiler.

The table gives accuracy on the evaluation images, bytes (of the file; C: of the weights, multipliers and biases), the
memory of the C code besides the image, and microseconds for one image on one thread of this CPU; cycles on a chip are
not measured. Exit code: 1 if the logits of a file differ from what they should be, or if --check finds an old page.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from s5.training.command_line import Parser, output_file
from s5.training.files import RUNS, atomic_path


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("export", __doc__, usage="python -m s5 export page|onnx|c [options]")
    formats = parser.add_subparsers(dest="format", metavar="page|onnx|c", required=True)

    def add(name: str, usage: str, description: str) -> Parser:
        return formats.add_parser(name, prog="export", description=description, usage=f"python -m s5 export {usage}")

    page = add("page", "page [options]", "Write the page on which one draws a digit: one HTML file that works offline.")
    onnx = add("onnx", "onnx [NETWORK ...] [options]", "Write NETWORK.onnx and NETWORK-int8.onnx, and measure them.")
    c = add("c", "c NETWORK [...] [options]", "Write NETWORK.h and NETWORK.c for a microcontroller, and measure them.")
    page.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    page.add_argument("--output", type=output_file, metavar="FILE", help="default: docs/index.html")
    for each, count in ((onnx, "*"), (c, "+")):
        each.add_argument("names", nargs=count, metavar="NETWORK", help="a trained network, or all")
        each.add_argument("--output", type=Path, default=RUNS / "export", metavar="FOLDER", help="default: runs/export")
        each.add_argument("--weights", type=Path, metavar="FILE", help="other weights of the network, safetensors")
        each.add_argument("--smoke", action="store_true", help="use the small sample instead of MNIST")
    onnx.add_argument("--normalized", action="store_true", help="the files take normalised float32 images")
    onnx.add_argument("--record", action="store_true", help="every network and format; save results/export.json")
    options = parser.parse_args(arguments)
    if options.format == "page":
        return options
    if os.path.isfile(options.output):
        parser.error(f"--output must be a folder, but {options.output} is a file")
    options.record = options.format == "onnx" and options.record
    if options.record and (options.names or options.smoke or options.weights or options.normalized):
        parser.error("--record measures every network on all of MNIST: give it alone, or with --output")
    options.names = ["all"] if options.record else options.names or ["s5"]
    if options.weights and (len(options.names) > 1 or options.names == ["all"]):
        parser.error("--weights requires a single network")
    return options


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)

    from s5.deployment.export import ExportError
    from s5.training.checkpoint import CheckpointError
    from s5.training.mnist import DataError

    try:
        return write_page(options) if options.format == "page" else write_files(options)
    except (ExportError, CheckpointError, DataError, OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1


def write_page(options: argparse.Namespace) -> int:
    """Write or check the page; return the exit code."""
    from s5.deployment.page import PAGE, build_page

    path, page = options.output or PAGE, build_page().encode()
    stale = not path.is_file() or path.read_bytes() != page
    if stale and not options.check:
        with atomic_path(path) as temporary:
            temporary.write_bytes(page)
    state = "up to date" if not stale else "stale: python -m s5 export page" if options.check else "written"
    print(f"{path}: {state}, {len(page):,} bytes")
    return int(options.check and stale)


def write_files(options: argparse.Namespace) -> int:
    """Export, compare, measure and print; return the exit code."""
    import pandas as pd

    from s5.deployment.export import export, record
    from s5.inference.trained import trained_networks
    from s5.training.device import use_threads
    from s5.training.mnist import load_mnist, load_sample

    names = trained_networks() if "all" in options.names else options.names
    data = load_sample() if options.smoke else load_mnist(allow_sample=not options.record)
    formats = {"onnx", "c"} if options.record else {options.format}
    settings = {"weights": options.weights, "repeats": 3 if options.smoke else 300}
    if options.format == "onnx":
        settings["normalized"] = options.normalized
    with use_threads(1):  # as in the other formats: for one small image more cost more than they save
        rows = export(names, formats, data, options.output, **settings)
    table = pd.DataFrame(rows).convert_dtypes().astype(object)
    print(table.where(table.notna(), "–").to_string(index=False))
    print(f"{data}. Files are in {options.output}. Cycles on a chip are not measured.")
    if data.source != "mnist":
        print("The sample's images are of the training set: these accuracies are not those of new images.")
    if options.record:
        record(rows, data)
    return 0
