"""Read digits from image files with a trained network: photos, scans or drawings, one digit each."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers import predict
from s5.inference.preprocessing import DigitError, prepare, read_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # of the files read from a folder
OTHERS = {".heic", ".heif", ".avif", ".jxl", ".svg", ".pdf", ".dng"}  # images, too, but not read
UNSURE = 0.8  # probability of an answer; below it, the answer is given together with the next best
MANY = 100  # images; for more, progress is shown


def find_images(names: Iterable[str]) -> tuple[list[str], list[dict]]:
    """The names, with folders replaced by the images in them; and the other files there, as results.

    Images of formats that are not read have an "error", what is no image is "skipped"; hidden files are passed over.
    Raises ValueError for an empty name and for a folder without images.
    """
    sources, skipped = [], []
    for name in names:
        if not name.strip():
            raise ValueError("the name of an image is empty")
        files = sorted(file for file in Path(name).rglob("*") if file.is_file()) if os.path.isdir(name) else []
        found = [str(file) for file in files if file.suffix.lower() in SUFFIXES]
        for file in files:
            if file.suffix.lower() in OTHERS:
                skipped.append({"image": str(file), "error": f"{file.suffix} is not read: save it as JPEG or PNG first"})
            elif str(file) not in found and not file.name.startswith("."):
                skipped.append({"image": str(file), "skipped": "not an image, skipped"})
        if os.path.isdir(name) and not found and not any("error" in result for result in skipped):
            raise ValueError(f"no image in {name}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
        sources += found if os.path.isdir(name) else [name]
    return sources, skipped


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
    for source in tqdm(sources, leave=False, unit="image", disable=len(sources) <= MANY):
        folder = Path(source).parent.name
        results.append({"image": source} | ({"label": int(folder)} if folder in tuple("0123456789") else {}))
        try:
            prepared.append(read(source))
        except (DigitError, OSError) as error:
            results[-1]["error"] = getattr(error, "strerror", None) or str(error)
    answered = [result for result in results if "error" not in result]
    probabilities = predict(model, torch.stack(prepared)) if prepared else []
    for result, image, chances in zip(answered, prepared, probabilities, strict=True):
        rounded = [round(value, 6) for value in chances.tolist()]
        result |= {"digit": int(chances.argmax()), "probabilities": rounded, "unsure": float(chances.max()) < UNSURE}
        result["prepared"] = image.tolist()
    return results


def _percent(probability: float) -> str:
    """Two decimals; never 100 or 0, as a network is never certain."""
    return f"{min(max(100 * probability, 0.01), 99.99):.2f}%"


def _two_best(result: dict) -> list[int]:
    return sorted(range(10), key=lambda digit: -result["probabilities"][digit])[:2]


def table(results: list[dict]) -> str:
    """One line per image that was read: its name, the digit, its probability and the second most probable digit."""
    answered = [result for result in results if "digit" in result]
    if not answered:
        return "no digit was read"
    width = max(len(result["image"]) for result in answered)
    lines = [f"{'image':<{width}}  digit  probability  next best"]
    for result in answered:
        first, second = _two_best(result)
        chances = [_percent(result["probabilities"][digit]) for digit in (first, second)]
        unsure = f"   unsure: {first} or {second}" if result["unsure"] else ""
        lines.append(f"{result['image']:<{width}}  {first:>5}  {chances[0]:>11}  {second} {chances[1]}{unsure}")
    return "\n".join(lines)


def csv_table(results: list[dict]) -> str:
    """All results as CSV, with a header; what a result does not have is empty."""
    text = io.StringIO()
    columns = ["image", "label", "digit", "probability", "next", "unsure", "error"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for result in results:
        more = {"error": result.get("error") or result.get("skipped")}
        if "digit" in result:
            more |= {"probability": max(result["probabilities"]), "next": _two_best(result)[1]}
        writer.writerow(result | more)
    return text.getvalue().rstrip("\n")


def score(results: list[dict]) -> str:
    """Accuracy and confusions of the images whose folders are named by their digits; empty if there are none."""
    labelled = [result for result in results if "label" in result]
    if not labelled:
        return ""
    outcomes = Counter((result["label"], result.get("digit")) for result in labelled)
    right = sum(count for (label, digit), count in outcomes.items() if label == digit)
    refused = sum(count for (_, digit), count in outcomes.items() if digit is None)
    wrong = [(pair, count) for pair, count in outcomes.most_common() if pair[1] not in (None, pair[0])]
    text = f"{right} of {len(labelled)} right ({100 * right / len(labelled):.1f}%)"
    text += f", {len(labelled) - right - refused} wrong, {refused} not read"
    return text + "".join(f"; {label} → {digit}: {count}" for (label, digit), count in wrong)
