"""Read digits from image files: photos, scans or drawings, one digit each.

python -m s5 predict digit.png photos/      a table: image, digit, probability, and "unsure" below 80%
python -m s5 predict --show digit.png       also print the network's input, 28×28 pixels
python -m s5 predict --json photos/         all results as JSON; --csv as CSV
python -m s5 predict labelled/              in subfolders 0 … 9: also how many are right, and the confusions
cat digit.png | python -m s5 predict -      read from standard input

PNG, JPEG, WebP, BMP, GIF and TIFF; any size, colour or grey, dark on light or light on dark, transparent background,
blank or ruled paper, also photographed on a table. Exit code: 0 if every image was read, 1 if some were not (each is
reported with the reason), 2 for a wrong command line.
"""

import json
import sys
from pathlib import Path

from s5.training.command_line import Parser
from s5.training.files import TRAINED

SHADES = " ░▒▓█"


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = Parser("predict", __doc__, usage="python -m s5 predict [options] IMAGE [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or - for standard input")
    names = ", ".join(sorted(file.stem for file in TRAINED.glob("*.safetensors")))
    add("--network", metavar="NAME", help=f"{names}; with --weights any (default: that of the weights, or s5)")
    add("--weights", type=Path, metavar="FILE", help="safetensors: of another training, or of a network of your own")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--csv", action="store_true", help="print CSV instead of a table")
    add("--show", action="store_true", help="also print the network's input, 28×28 pixels")
    add("--prepared", type=Path, metavar="FOLDER", help="write the network's inputs to this folder, as PNG files")
    options = parser.parse_args(arguments)

    from s5.inference.predict import csv_table, find_images, read_digits, score, table
    from s5.inference.trained import load_trained, network_of
    from s5.training.checkpoint import CheckpointError

    try:
        sources, skipped = find_images(options.images)
        model = load_trained(options.network or network_of(options.weights), options.weights)
    except CheckpointError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    results = read_digits(model, sources) + skipped
    if options.prepared:
        try:
            write_prepared(results, options.prepared)
        except OSError as error:
            print(f"predict: cannot write to {options.prepared}: {error.strerror or error}", file=sys.stderr)
            return 1
    if options.json:
        hidden = () if options.show else ("prepared",)
        print(json.dumps([{key: row[key] for key in row if key not in hidden} for row in results], indent=1))
    elif options.csv:
        print(csv_table(results), end="")
    else:
        for result in results if options.show else ():
            if "prepared" in result:
                print(to_text(result["prepared"]))
        print(table(results))
        print(score(results), end="\n" * bool(score(results)))
    for result in results:
        if reason := result.get("error") or result.get("skipped"):
            print(f"predict: {result['image']}: {reason}", file=sys.stderr)
    return int(any("error" in result for result in results))


def to_text(image: list[list[int]]) -> str:
    """An image of 28 rows of bytes as text, two characters per pixel."""
    return "\n".join("".join(2 * SHADES[value * len(SHADES) // 256] for value in row) for row in image)


def write_prepared(results: list[dict], folder: Path) -> None:
    """Write each prepared image to `folder` as NUMBER-NAME.png; the number keeps files of the same name apart."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, result in enumerate(results):
        if "prepared" in result:
            name = "stdin" if result["image"] == "-" else Path(result["image"]).stem
            Image.fromarray(np.array(result["prepared"], np.uint8)).save(folder / f"{number:03d}-{name}.png")
