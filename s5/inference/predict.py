"""Read digits from image files with a trained network: photos, scans or drawings, one digit each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers import predict
from s5.inference.preprocessing import DigitError, prepare, read_image

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}  # of the files read from a folder
MANY = 100  # images; for more, progress is shown


def find_images(names: Iterable[str]) -> list[str]:
    """The names, with folders replaced by the images in them. Raises ValueError for an empty name or folder."""
    sources = []
    for name in names:
        if not name.strip():
            raise ValueError("the name of an image is empty")
        if not os.path.isdir(name):
            sources.append(name)
            continue
        found = sorted(file for file in Path(name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"no image in {name}: a folder is searched for {' '.join(sorted(SUFFIXES))}")
        sources += map(str, found)
    return sources


def read(source: str | Path) -> Tensor:
    """Read an image file, or standard input for "-", and prepare it for a network: uint8 (28, 28).

    Raises DigitError if no digit is found in it and OSError if it cannot be read: see `s5.inference.preprocessing`.
    """
    return prepare(read_image(sys.stdin.buffer.read() if source == "-" else source))


def read_digits(model: nn.Module, sources: list[str]) -> list[dict]:
    """One result per source, in order: its "image", and an "error" or "digit", "probabilities" and "prepared" image."""
    results, prepared = [], []
    for source in tqdm(sources, leave=False, unit="image", disable=len(sources) <= MANY):
        results.append({"image": source})
        try:
            prepared.append(read(source))
        except (DigitError, OSError) as error:
            results[-1]["error"] = getattr(error, "strerror", None) or str(error)
    answered = [result for result in results if "error" not in result]
    probabilities = predict(model, torch.stack(prepared)) if prepared else []
    for result, image, chances in zip(answered, prepared, probabilities, strict=True):
        rounded = [round(value, 6) for value in chances.tolist()]
        result |= {"digit": int(chances.argmax()), "probabilities": rounded, "prepared": image.tolist()}
    return results


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
