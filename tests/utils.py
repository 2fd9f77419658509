"""What several tests share."""

import io
import re
import time
import warnings
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

from s5.experiments.claims import KNOWN, Claim
from s5.experiments.ledger import LedgerWarning, read_ledger
from s5.experiments.local_runner import record
from s5.experiments.trial import Trial
from s5.training.mnist import DATA_SETS
from s5.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
SLUG = "Shankarganesh127/TSAI_ERAv4_MNIST_model_S5"  # on GitHub
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


def with_random_statistics(model):
    """The module with BatchNorm statistics and weights as after training, not 0 and 1."""
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5)
    return model


def without_seconds(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


# --- Ledgers ----------------------------------------------------------------------------------------------------------


def make_trial(
    seed: int = 0, accuracy: float = 99.4, loss: float = 1.0, recipe: dict | None = None, **changes
) -> Trial:
    """A trial of 1,000 images, or 10,000 of a known data set, of one `accuracy` and `loss` but for `changes`."""
    recipe, variant = Recipe(**recipe or {}), changes.get("variant", "s5")
    images = 10_000 if changes.get("data") in DATA_SETS else 1_000
    correct = round(accuracy * images / 100)
    epoch = {"learning_rate": 0.01, "train_loss": 1.0, "train_accuracy": 98.0, "eval_loss": loss}
    epoch |= {"eval_accuracy": 100 * correct / images, "eval_correct": correct, "seconds": 1.0}
    values = {
        "variant": variant,
        "network": KNOWN[variant].network_name if variant in KNOWN else variant,
        "source": "",
        "recipe": recipe,
        "seed": seed,
        "split": "validation",
        "epochs": recipe.epochs,
        "parameters": 18214,
        "macs": 1947856,
        "accuracy": epoch["eval_accuracy"],
        "best_accuracy": epoch["eval_accuracy"],
        "curve": [{"epoch": number, **epoch} for number in range(1, recipe.epochs + 1)],
        "mistakes": {str(index): index % 10 for index in range(images - correct)},
        "seconds": 12.5,
        "device": "cpu: x86_64, 1 thread",
        "precision": "float32",
        "versions": {"python": "3.11.7", "torch": "2.4"},
        "commit": "unknown",
        "data": "sample",
        "time": "2025-01-01T00:00:00+00:00",
    }
    return Trial(**values | changes)


def claim_trials(claim: Claim, accuracies: list[float], **changes) -> list[Trial]:
    """Trials of a claim from its first seeds, one for each accuracy."""
    about = {"variant": claim.name, "recipe": claim.recipe.as_dict(), "split": "test", "data": claim.data}
    about |= {"precision": claim.precision, **changes}
    return [make_trial(seed, accuracy, **about) for seed, accuracy in zip(claim.seeds, accuracies, strict=False)]


def check_links(text: str, page: Path | None = None) -> None:
    """Every link of a Markdown text into the project names what exists; "#…" alone is a heading of `page`."""
    home = rf"https://(?:github|colab\.research\.google)\.com/(?:github/)?{SLUG}/blob/main/"
    for target in set(re.findall(r"\]\(([^)]+)\)", text)):
        file, _, anchor = re.sub(home, "", target).partition("#")
        if file.startswith("https://"):
            continue
        path = ROOT / file if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def run_here(trials: list[dict], ledger, run, workers: int = 1) -> int:
    """A replacement for `run_locally` without processes."""
    return sum(not record(trial, partial(run, **trial), ledger) for trial in trials)


def read_strictly(path) -> list[Trial]:
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
