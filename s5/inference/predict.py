"""Read digits from image files with a trained network: photos, scans or drawings, one digit each."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers import predict
from s5.inference.preprocessing import DigitError, prepare, read_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # of the files read from a folder
OTHERS = {".heic", ".heif", ".avif", ".jxl", ".svg", ".pdf", ".dng"}  # images, too, but not read
UNSURE = 0.8  # probability of an answer; below it, the answer is given together with the next best
COLUMNS = ["image", "label", "digit", "probability", "next", "unsure", "error", "skipped"]  # of the CSV
MANY = 100  # images; for more, progress is shown


def find_images(names: Iterable[str]) -> tuple[list[str], list[dict]]:
    """The names, with folders replaced by the images in them; and the other files there, as results.

    Images of formats that are not read have an "error", what is no image is "skipped"; hidden files are passed over.
    Raises ValueError for an empty name and for a folder without images.
    """
    sources, others = [], []
    for name in names:
        if not name.strip():
            raise ValueError("the name of an image is empty")
        if not os.path.isdir(name):
            sources.append(name)
            continue
        inside = ((file, file.relative_to(name).parts) for file in Path(name).rglob("*") if file.is_file())
        files = sorted(file for file, parts in inside if not any(part.startswith(".") for part in parts))
        images = [file for file in files if file.suffix.lower() in SUFFIXES | OTHERS]
        if not images:
            raise ValueError(f"no image in {name}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
        for file in files:
            if file.suffix.lower() in SUFFIXES:
                sources.append(str(file))
            elif file in images:
                reason = f"{file.suffix} is not read: save it as JPEG or PNG first"
                others.append({"image": str(file), "error": reason})
            else:
                others.append({"image": str(file), "skipped": "not an image, skipped"})
    return sources, others


def read(source: str | Path) -> Tensor:
    """Read an image file, or standard input for "-", and prepare it for a network: uint8 (28, 28).

    Raises DigitError if no digit is found in it and OSError if it cannot be read: see `s5.inference.preprocessing`.
    """
    return prepare(read_image(sys.stdin.buffer.read() if source == "-" else source))


def read_digits(model: nn.Module, sources: list[str]) -> list[dict]:
    """One result per source, in order: its "image", and an "error" or what was read.

    That is the "digit", its "probabilities", "unsure" if that of the digit is below UNSURE, the "prepared" image, and
    the "label" if the folder of the file is named by a digit.
    """
    results, prepared = [], []
    for source in tqdm(sources, leave=False, unit="image", disable=len(sources) <= MANY or None):
        folder = Path(source).parent.name
        results.append({"image": source} | ({"label": int(folder)} if folder in tuple("0123456789") else {}))
        try:
            prepared.append(read(source))
        except (DigitError, OSError) as error:
            results[-1]["error"] = getattr(error, "strerror", None) or str(error)
    answered = [result for result in results if "error" not in result]
    probabilities = predict(model, torch.stack(prepared)) if prepared else []
    for result, image, chances in zip(answered, prepared, probabilities, strict=True):
        first, second = chances.argsort(descending=True)[:2].tolist()
        rounded = [round(value, 6) for value in chances.tolist()]
        result |= {"digit": first, "probability": rounded[first], "next": second, "probabilities": rounded}
        result |= {"unsure": float(chances[first]) < UNSURE, "prepared": image.tolist()}
    return results


def table(results: list[dict]) -> str:
    """One line per image that was read: its name, the digit, its probability and the second most probable digit."""
    answered = [result for result in results if "digit" in result]
    if not answered:
        return "no digit was read"
    width = max(len(result["image"]) for result in answered)
    lines = [f"{'image':<{width}}  digit  probability  next best"]
    for result in answered:
        first, second = result["digit"], result["next"]
        # Never 100%, as a network is never certain.
        chances = [min(result["probabilities"][digit], 0.9999) for digit in (first, second)]
        unsure = f"   unsure: {first} or {second}" if result["unsure"] else ""
        lines.append(f"{result['image']:<{width}}  {first:>5}  {chances[0]:>11.2%}  {second} {chances[1]:.2%}{unsure}")
    return "\n".join(lines)


def csv_table(results: list[dict]) -> str:
    """All results as CSV, with a header; what a result does not have is empty."""
    return pd.DataFrame(results).reindex(columns=COLUMNS).convert_dtypes().to_csv(index=False)


def score(results: list[dict]) -> str:
    """Accuracy and confusions of the images whose folders are named by their digits; empty if there are none."""
    pairs = [(result["label"], result.get("digit")) for result in results if "label" in result]
    right, refused = sum(label == digit for label, digit in pairs), sum(digit is None for _, digit in pairs)
    wrong = Counter(pair for pair in pairs if pair[1] not in (None, pair[0])).most_common()
    text = f"{right} of {len(pairs)} right ({100 * right / max(1, len(pairs)):.1f}%)"
    text += f", {len(pairs) - right - refused} wrong, {refused} not read"
    return text + "".join(f"; {label} → {digit}: {count}" for (label, digit), count in wrong) if pairs else ""
