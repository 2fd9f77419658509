"""Read digits from image files: photos, scans or drawings, one digit each.

python -m inference.predict digit.png photos/      a table: image, digit, probability
python -m inference.predict --show digit.png       also print the network's input, 28×28 pixels
python -m inference.predict --json photos/         all results as JSON
cat digit.png | python -m inference.predict -      read from standard input

PNG, JPEG and every other format that Pillow opens; any size, colour or grey, dark on light or light on dark,
transparent background. Exit code: 0 if every image was read, 1 if some were not (each is reported with the reason),
2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.command_line import Parser, run_command
from training.files import WEIGHTS, atomic_path

# Torch and scipy take seconds to load, so what needs them is imported inside functions: --help responds at once.

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # of the files read from a folder
SHADES = " ░▒▓█"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with folders replaced by their images in `sources`; exits with code 2 if it is wrong."""
    parser = Parser("predict", __doc__, usage="python -m inference.predict [options] IMAGE [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or - for standard input")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--show", action="store_true", help="also print the network's input, 28×28 pixels")
    add("--prepared", type=Path, metavar="FOLDER", help="write the network's inputs to this folder, as PNG files")
    add("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="of Net, safetensors (default: in results/)")
    options = parser.parse_args(arguments)
    options.sources, empty = [], []
    for name in options.images:
        path = Path(name)
        if name != "-" and path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            options.sources += [str(file) for file in found]
            empty += [] if found else [name]
        else:
            options.sources.append(name)
    if empty:
        parser.error(f"no image in {', '.join(empty)}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
    return options


def read(source: str | Path):
    """Read an image file, or standard input for "-", and prepare it for a network: uint8 tensor (28, 28).

    Raises DigitError if no digit is found in it and OSError if it cannot be read: see `inference.preprocessing`.
    """
    from inference.preprocessing import DigitError, prepare, read_image

    if source == "-":
        return prepare(read_image(sys.stdin.buffer.read()))
    if Path(source).exists() and not Path(source).is_file():  # opening a pipe could block forever
        raise DigitError("not a regular file; pipe the image to standard input and pass - instead")
    return prepare(read_image(source))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)

    import helpers
    from inference.preprocessing import DigitError
    from training.checkpoint import CheckpointError, load_weights

    try:
        model = load_weights(helpers.build(), options.weights)
    except CheckpointError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    results = []
    for number, source in enumerate(options.sources):
        try:
            image = read(source)
        except (DigitError, OSError) as error:
            results.append({"image": source, "error": getattr(error, "strerror", None) or str(error)})
            continue
        probabilities = helpers.predict(model, image[None])[0]
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
                print(f"predict: cannot write to {options.prepared}: {error}", file=sys.stderr)
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
    read = [result for result in results if "digit" in result]
    if not read:
        return "no digit was read"
    width = max(len(result["image"]) for result in read)
    lines = [f"{'image':<{width}}  digit  probability  next best"]
    for result in read:
        first, second = sorted(enumerate(result["probabilities"]), key=lambda item: -item[1])[:2]
        lines.append(f"{result['image']:<{width}}  {first[0]:>5}  {first[1]:>10.2%}   {second[0]} {second[1]:.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
