"""Write trained networks as a web page, as ONNX files, or as C for a microcontroller.

python -m s5 export page                   docs/index.html: a page on which one draws a digit; it works offline
python -m s5 export onnx [NETWORK ...]     NETWORK.onnx and NETWORK-int8.onnx
python -m s5 export c [NETWORK ...]        a folder NETWORK for a microcontroller
python -m s5 export c mine.py:Net --weights FILE      a network of your own, with its weights
python -m s5 export onnx --record          every network in every format, and the table of RESULTS.md

ONNX requires `pip install -e ".[export]"`. The files take images as they are in MNIST, uint8 (batch, 28, 28), white on
black, and normalise them themselves. They return logits (batch, 10) and describe themselves in their metadata. The int8
file gives the same predictions on every processor.

C code is C99 with integers only: int8 weights, uint8 activations, no allocation. It keeps a few rows of each layer, so
that Net runs in 2.5 kB of memory. Beside NETWORK.h and NETWORK.c the folder has an example that checks itself, a
Makefile, an Arduino sketch, drawing.c, which makes an image of a drawing, and a README with memory and time. The logits
are compared bit by bit with a reference in Python if there is a C compiler ($CC or cc).

The table gives accuracy on the evaluation images, bytes (of the file; C: of the weights, multipliers and biases), the
memory of the C code besides the image, and microseconds for one image on one thread of this CPU; instructions and bytes
of flash are those on an emulated Cortex-M4, if gcc-arm-none-eabi and qemu-system-arm are installed. Exit code: 1 if the
logits of a file differ from what they should be, or if --check finds an old page.
"""

import argparse
import sys
from pathlib import Path

from s5.training.command_line import Parser
from s5.training.files import RUNS, check_folder, write_file


def main(arguments: list[str]) -> int:
    """The command; returns its exit code: 0, or 1 after a failure."""
    parser = Parser("export", __doc__, usage="python -m s5 export page|onnx|c [NETWORK ...] [options]")
    parser.add_argument("format", choices=("page", "onnx", "c"), help="what to write")
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="one of results/weights (default: s5), or all")
    add = parser.add_argument_group("page").add_argument
    add("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    add = parser.add_argument_group("ONNX and C").add_argument
    add("--output", type=Path, default=RUNS / "export", metavar="FOLDER", help="default: runs/export")
    add("--weights", type=Path, metavar="FILE", help="safetensors: of NETWORK, which may be any then")
    add("--smoke", action="store_true", help="use the small sample instead of MNIST")
    add("--record", action="store_true", help="every network and format; save results/export.json")
    options = parser.parse_intermixed_args(arguments)  # a network may follow --weights
    if options.format == "page" and options.names:
        parser.error("the page has all networks: name none of them")
    if options.output.is_file():
        parser.error(f"--output must be a folder, but {options.output} is a file")
    if options.record and (options.names or options.smoke or options.weights):
        parser.error("--record measures every network on all of MNIST: give it alone, or with --output")
    if options.weights and (len(options.names) > 1 or options.names == ["all"]):
        parser.error("--weights requires a single network")

    try:
        return write_page(options.check) if options.format == "page" else write_files(options)
    except ImportError as error:
        print(f'export: {error}: pip install -e ".[export]"', file=sys.stderr)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"export: {error}", file=sys.stderr)
    return 1


def write_page(check: bool) -> int:
    """Write or check the page; return the exit code."""
    from s5.deployment import page

    text = page.build_page()
    stale = not page.PAGE.is_file() or page.PAGE.read_text(encoding="utf-8") != text
    if stale and not check:
        write_file(page.PAGE, text)
    state = "up to date" if not stale else "stale: python -m s5 export page" if check else "written"
    print(f"{page.PAGE}: {state}, {len(text.encode()):,} bytes")
    return int(check and stale)


def write_files(options: argparse.Namespace) -> int:
    """Export, compare, measure and print; return the exit code."""
    import pandas as pd

    from s5.deployment.export import export, record
    from s5.inference.trained import network_of, trained_networks
    from s5.training.device import use_threads
    from s5.training.mnist import load_data

    check_folder(options.output)  # before minutes of work
    names = options.names or [network_of(options.weights)]  # "s5" without weights
    if options.record or "all" in names:
        names = trained_networks()
    data = load_data("sample" if options.smoke else "mnist", allow_sample=not options.record)
    formats = {"onnx", "c"} if options.record else {options.format}
    with use_threads(1):  # as in the other formats: for one small image more cost more than they save
        rows = export(names, formats, data, options.output, options.weights, repeats=3 if options.smoke else 300)
    table = pd.DataFrame(rows).convert_dtypes().astype(object)
    print(table.where(table.notna(), "–").to_string(index=False))
    print(f"{data}. Files are in {options.output}.")
    if data.source != "mnist":
        print("The sample's images are of the training set: these accuracies are not those of new images.")
    if options.record:
        record(rows, data)
    return 0
