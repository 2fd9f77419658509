"""Read digits from image files: photos, scans or drawings, one digit each.

python predict.py digit.png photos/        a table: image, digit, how sure
python predict.py --show digit.png         and what the network was given, 28×28
python predict.py --json photos/           everything, for another program
cat digit.png | python predict.py -        from standard input

PNG, JPEG and what else Pillow opens; any size, colour or grey, dark on light or light on dark, transparent background.
Exit code: 0 when every image was read, 1 when some were not (each is named with the reason), 2 for a wrong command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.checkpoint import CheckpointError, load_weights
from training.files import WEIGHTS

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # what is taken from a folder
SHADES = " ░▒▓█"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as options; exits with a message and code 2 where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of them, or - for standard input")
    add("--json", action="store_true", help="print JSON in place of a table")
    add("--show", action="store_true", help="print the 28×28 pixels that the network was given, too")
    add("--prepared", type=Path, metavar="FOLDER", help="write them as PNG files into this folder")
    add(
        "--weights",
        type=Path,
        default=WEIGHTS,
        metavar="FILE",
        help="of Net, safetensors (default: the ones in results/)",
    )
    options = parser.parse_args(arguments)
    options.sources, lacking = [], []
    for name in options.images:
        path = Path(name)
        if name != "-" and path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            options.sources += [str(file) for file in found]
            lacking += [] if found else [name]
        else:
            options.sources.append(name)
    if lacking:
        parser.error(f"no image in {', '.join(lacking)}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
    return options


def read(source: str):
    """One image, prepared: uint8 (28, 28). Raises DigitError and OSError (see `digits`)."""
    from inference.preprocessing import DigitError, prepare, read_image

    if source != "-" and Path(source).exists() and not Path(source).is_file():
        raise DigitError("this is no file: a pipe goes to standard input, as -")  # opening it might wait for ever
    return prepare(read_image(sys.stdin.buffer.read() if source == "-" else source))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parse_arguments(arguments)

    import helpers
    from inference.preprocessing import DigitError

    try:
        model = load_weights(helpers.build(), options.weights)
    except CheckpointError as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    answers = []
    for number, source in enumerate(options.sources):
        try:
            image = read(source)
        except (DigitError, OSError) as error:
            answers.append({"image": source, "error": getattr(error, "strerror", None) or str(error)})
            continue
        probabilities = helpers.predict(model, image[None])[0]
        answers.append({"image": source, "digit": int(probabilities.argmax())})
        answers[-1]["probabilities"] = [round(value, 6) for value in probabilities.tolist()]
        if options.show and not options.json:
            print(picture(image))
        if options.prepared:
            try:
                write_prepared(image, options.prepared, number, source)
            except OSError as error:
                print(f"predict.py: cannot write into {options.prepared}: {error}", file=sys.stderr)
                return 1
        if options.show and options.json:
            answers[-1]["prepared"] = image.tolist()
    print(json.dumps(answers, indent=1) if options.json else table(answers))
    failed = [answer for answer in answers if "error" in answer]
    for answer in failed:
        print(f"predict.py: {answer['image']}: {answer['error']}", file=sys.stderr)
    return 1 if failed else 0


def picture(image) -> str:
    """uint8 (28, 28) as text, two characters a pixel."""
    return "\n".join("".join(2 * SHADES[value * len(SHADES) // 256] for value in row) for row in image.tolist())


def write_prepared(image, folder: Path, number: int, source: str) -> None:
    """Write the prepared image as NUMBER-NAME.png into `folder`: no two sources share a name."""
    from PIL import Image

    from training.files import atomic_path

    name = "stdin" if source == "-" else Path(source).stem
    with atomic_path(folder / f"{number:03d}-{name}.png") as temporary:
        Image.fromarray(image.numpy()).save(temporary)


def table(answers: list[dict]) -> str:
    """One line an image that was read: its name, the digit, its probability and the next best digit."""
    read = [answer for answer in answers if "digit" in answer]
    if not read:
        return "no digit was read"
    width = max(len(answer["image"]) for answer in read)
    lines = [f"{'image':<{width}}  digit  probability  next best"]
    for answer in read:
        first, second = sorted(enumerate(answer["probabilities"]), key=lambda item: -item[1])[:2]
        lines.append(f"{answer['image']:<{width}}  {first[0]:>5}  {first[1]:>10.2%}   {second[0]} {second[1]:.2%}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
