"""Read digits from image files: photos, scans or drawings, one digit each.

python -m s5.inference.predict digit.png photos/      a table: image, digit, probability
python -m s5.inference.predict --show digit.png       also print the network's input, 28×28 pixels
python -m s5.inference.predict --json photos/         all results as JSON
cat digit.png | python -m s5.inference.predict -      read from standard input

PNG, JPEG, WebP, BMP, GIF and TIFF; any size, colour or grey, dark on light or light on dark, transparent background,
blank or ruled paper. Exit code: 0 if every image was read, 1 if some were not (each is reported with the reason), 2 for
a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from s5.training.command_line import Parser, path, run_command
from s5.training.files import atomic_path
from s5.training.recipe import short

# Torch and scipy take seconds to load, so what needs them is imported inside functions: --help responds at once.

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # of the files read from a folder
SHADES = " ░▒▓█"
MANY = 100  # images; for more, progress is shown


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with folders replaced by their images in `sources`; exits with code 2 if it is wrong."""
    parser = Parser("predict", __doc__, usage="python -m s5.inference.predict [options] IMAGE [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or - for standard input")
    add("--network", default="s5", metavar="NAME", help="a file of results/weights without its suffix (default: s5)")
    add("--weights", type=path, metavar="FILE", help="other weights of the network, safetensors")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--show", action="store_true", help="also print the network's input, 28×28 pixels")
    add("--prepared", type=path, metavar="FOLDER", help="write the network's inputs to this folder, as PNG files")
    options = parser.parse_args(arguments)
    options.sources, empty = [], []
    for name in options.images:
        if not name.strip():
            parser.error("the name of an image is empty")
        if name != "-" and os.path.isdir(name):  # False for a name that is too long, too
            found = sorted(file for file in Path(name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            options.sources += [str(file) for file in found]
            empty += [] if found else [name]
        else:
            options.sources.append(name)
    if empty:
        parser.error(f"no image in {', '.join(empty)}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
    return options


def read(source: str | Path):
    """Read an image file, or standard input for "-", and prepare it for a network: uint8 tensor (28, 28).

    Raises DigitError if no digit is found in it and OSError if it cannot be read: see `s5.inference.preprocessing`.
    """
    from s5.inference.preprocessing import DigitError, prepare, read_image

    if not isinstance(source, str | os.PathLike):
        raise DigitError(f"the name of an image file must be a text or a path, not {short(source)}")
    if source == "-":
        return prepare(read_image(sys.stdin.buffer.read()))
    if os.path.isdir(source):
        raise DigitError("a folder; name an image in it")
    if os.path.exists(source) and not os.path.isfile(source):  # opening a pipe could block forever
        raise DigitError("not a regular file; pipe the image to standard input and pass - instead")
    return prepare(read_image(source))


def read_all(sources: Iterable[str | Path]) -> Iterator:
    """What `read` returns for each source, in order, or the DigitError or OSError that it raises.

    One after the other: threads wait for each other's Python code, so that two read fewer small images than one.
    """
    from s5.inference.preprocessing import DigitError

    for source in sources:
        try:
            yield read(source)
        except (DigitError, OSError) as error:
            yield error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when NumPy loads; more cost time for small images

    import torch
    from tqdm import tqdm

    import helpers
    from s5.inference.trained import load_trained
    from s5.training.checkpoint import CheckpointError

    try:
        model = load_trained(options.network, options.weights)
    except ValueError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    hidden = len(options.sources) <= MANY or "TQDM_DISABLE" in os.environ
    inputs = list(
        tqdm(read_all(options.sources), total=len(options.sources), leave=False, unit="image", disable=hidden)
    )
    images = [image for image in inputs if isinstance(image, torch.Tensor)]
    predicted = iter(helpers.predict(model, torch.stack(images)) if images else ())
    results = []
    for number, (source, image) in enumerate(zip(options.sources, inputs, strict=True)):
        if isinstance(image, Exception):
            results.append({"image": source, "error": getattr(image, "strerror", None) or str(image)})
            continue
        probabilities = next(predicted)
        results.append({"image": source, "digit": int(probabilities.argmax())})
        results[-1]["probabilities"] = [round(value, 6) for value in probabilities.tolist()]
        if options.show and options.json:
            results[-1]["prepared"] = image.tolist()
        elif options.show:
            print(to_text(image))
        if options.prepared:
            try:
                write_prepared(image, options.prepared, number, source)
            except OSError as error:
                print(f"predict: cannot write to {options.prepared}: {error.strerror or error}", file=sys.stderr)
                return 1
    print(json.dumps(results, indent=1) if options.json else table(results))
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"predict: {result['image']}: {result['error']}", file=sys.stderr)
    return 1 if failed else 0


def to_text(image) -> str:
    """A uint8 image (28, 28) as text, two characters per pixel."""
    return "\n".join("".join(2 * SHADES[value * len(SHADES) // 256] for value in row) for row in image.tolist())


def write_prepared(image, folder: Path, number: int, source: str) -> None:
    """Write a prepared image to `folder` as NUMBER-NAME.png; the number keeps files of the same name apart."""
    from PIL import Image

    name = "stdin" if source == "-" else Path(source).stem
    with atomic_path(folder / f"{number:03d}-{name}.png") as temporary:
        Image.fromarray(image.numpy()).save(temporary)


def table(results: list[dict]) -> str:
    """One line per image that was read: its name, the digit, its probability and the second most probable digit."""
    answered = [result for result in results if "digit" in result]
    if not answered:
        return "no digit was read"
    width = max(len(result["image"]) for result in answered)
    lines = [f"{'image':<{width}}  digit  probability  next best"]
    for result in answered:
        first, second = sorted(enumerate(result["probabilities"]), key=lambda item: -item[1])[:2]
        lines.append(f"{result['image']:<{width}}  {first[0]:>5}  {first[1]:>10.2%}   {second[0]} {second[1]:.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
