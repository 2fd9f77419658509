"""What several tests share. No torch at the top: the worker processes of some tests import this file."""

from __future__ import annotations

import io
import time
import warnings
from pathlib import Path

from PIL import Image, ImageDraw

from experiments.ledger import LedgerWarning, read_ledger
from training.recipe import Recipe

ROOT = Path(__file__).parent.parent
SHORT = Recipe(epochs=2, batch_size=100)

# --- Training runs ----------------------------------------------------------------------------------------------------


def devices() -> list[str]:
    """The CPU and the accelerators of this machine."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ["cpu", *(name for name, is_available in available.items() if is_available)]


def fit(data, recipe=SHORT, seed=0, architecture=None, device="cpu", **options):
    """Train a new network; return it and its history."""
    import helpers

    model = helpers.build(architecture or helpers.Net, seed)
    history = helpers.fit(model, data, recipe, seed=seed, device=device, progress=False, **options)
    return model, history


def assert_same_weights(first, second) -> None:
    import torch

    for (name, tensor), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def without_seconds(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


# --- Ledgers ----------------------------------------------------------------------------------------------------------


def make_trial(seed: int = 0, **changes) -> dict:
    """A line for a ledger."""
    trial = {
        "variant": "s5",
        "network": "Net",
        "source": "",
        "recipe": Recipe().as_dict(),
        "seed": seed,
        "split": "validation",
        "epochs": 20,
        "parameters": 18214,
        "macs": 1949346,
        "accuracy": 99.4,
        "best_accuracy": 99.5,
        "curve": [{"epoch": 1, "eval_accuracy": 99.4}],
        "mistakes": {"7": 3},
        "seconds": 12.5,
        "device": "cpu: x86_64, 1 thread",
        "precision": "float32",
        "versions": {"torch": "2.4"},
        "commit": "unknown",
        "data": "sample",
        "time": "2025-01-01T00:00:00+00:00",
    }
    return trial | changes


def read_strictly(path) -> list[dict]:
    """The ledger's trials; a faulty line is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", LedgerWarning)
        return read_ledger(path)


def wait_for(condition, seconds: float = 90):
    """Return the value of `condition()` as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {seconds} seconds"
        time.sleep(0.02)
    return value


# --- Images -----------------------------------------------------------------------------------------------------------


def draw_digit(
    digit: int = 7, size: int = 300, ink="black", paper="white", width: int = 18, mode: str = "RGB"
) -> Image.Image:
    """A digit in straight strokes, away from the image's centre."""
    strokes = {
        1: [(60, 20), (60, 120)],
        4: [(70, 20), (30, 80), (90, 80), (70, 80), (70, 20), (70, 125)],
        7: [(20, 20), (85, 20), (45, 125)],
        0: [(50, 20), (25, 45), (25, 95), (50, 120), (75, 95), (75, 45), (50, 20)],
    }[digit]
    image = Image.new(mode, (size, size), paper)
    ImageDraw.Draw(image).line([(x + 40, y + 90) for x, y in strokes], fill=ink, width=width, joint="curve")
    return image


def to_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The image as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
