"""Whether a trial's line of the ledger agrees with itself: what is stated twice in it must be the same.

`is_sound` takes a few microseconds and looks at what tables read; the ledger asks it for every line. `faults` looks at
everything and says what is wrong; a new line must have none. `audit.py` also checks lines against networks and labels.
Importing this is quick: no torch.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from functools import lru_cache

from s5.training.recipe import Recipe

IMAGES = 10_000  # in either evaluation split of the full MNIST
TRAINED_ON = {"test": 60_000, "validation": 50_000}  # images, by split
SAMPLE_TRAINED_ON = {1_000: 4_000, 666: 3_334}  # by the number of evaluated images; tests use smaller parts
LARGEST_SAMPLE = 1_000  # evaluated images
SPLITS, DATA, PRECISIONS = ("test", "validation"), ("mnist", "sample"), ("float32", "bfloat16")
DIGITS = frozenset(range(10))
EPOCH_KEYS = frozenset(
    ("epoch", "learning_rate", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "eval_correct", "seconds")
)
RECIPE_FIELDS = frozenset(field.name for field in fields(Recipe))
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")  # of an image
ROUNDING = 1e-6  # numbers of the curve have six decimals
MOST_SECONDS = (1.5, 30.0)  # a trial's, as a multiple of its epochs' and beyond that: compiling, a busy machine
EARLIEST = datetime(2024, 7, 24, tzinfo=timezone.utc)  # torch 2.4, the oldest that is supported
FORMS = {
    "device": re.compile(r"(cpu|mps): [\w.-]*, (1 thread|([2-9]|\d\d+) threads)|cuda: \S.*"),
    "commit": re.compile(r"[0-9a-f]{7,40}(-dirty)?|unknown"),
    "python": re.compile(r"3\.\d+\.\d+\S*"),
    "torch": re.compile(r"\d+\.\d+\S*"),
}


def is_sound(trial: dict) -> bool:
    """Whether the parts of a trial that tables read agree: `faults`, but quick. False for parts of the wrong type."""
    try:
        curve, accuracy, epochs, seed = trial["curve"], trial["accuracy"], trial["epochs"], trial["seed"]
        last, mistakes, recipe = curve[-1], trial["mistakes"], trial["recipe"]
        images = last["eval_correct"] + len(mistakes)
        return (
            abs(accuracy - 100 * last["eval_correct"] / images) < ROUNDING
            and abs(accuracy - last["eval_accuracy"]) < ROUNDING
            and abs(trial["best_accuracy"] - max([epoch["eval_accuracy"] for epoch in curve])) < ROUNDING
            and len(curve) == epochs == recipe["epochs"]
            and (images == IMAGES if trial["data"] == "mnist" else images <= LARGEST_SAMPLE)
            and DIGITS.issuperset(mistakes.values())
            and type(seed) is type(epochs) is type(trial["parameters"]) is type(trial["macs"]) is int
            and seed >= 0 < trial["parameters"]
            and trial["macs"] > 0
            and 0 <= trial["seconds"] < math.inf
            and 0 <= last["eval_loss"] < math.inf
            and trial["split"] in SPLITS
            and trial["data"] in DATA
            and trial["precision"] in PRECISIONS
            and _is_recipe(frozenset(recipe.items()), tuple(map(type, recipe.values())))
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False


@lru_cache  # many trials share a recipe
def _is_recipe(items: frozenset, types: tuple) -> bool:
    """Whether a recipe has no fault; with the types, because 20 and 20.0 are equal and only one of them is right."""
    return not _recipe_faults(dict(items))


def faults(trial: dict) -> list[str]:
    """All that contradicts itself in a trial with the keys of `ledger.KEYS`, each beginning with the field's name."""
    if wrong := list(_wrong_kinds(trial)) or _recipe_faults(trial["recipe"]):
        return wrong
    try:
        return [*_result_faults(trial), *_curve_faults(trial, Recipe(**trial["recipe"])), *_origin_faults(trial)]
    except ArithmeticError as error:  # numbers too large to calculate with
        return [f"recipe or curve cannot be checked: {_short(str(error))}"]


def _is_number(value: object) -> bool:
    """A finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63  # what torch takes as a seed


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


KINDS = {
    "variant": (_is_text, "a name"),
    "network": (_is_text, "a name or a line"),
    "source": (lambda value: isinstance(value, str), "text"),
    "recipe": (lambda value: isinstance(value, dict), "a dict"),
    "seed": (_is_count, "a whole number, 0 or more"),
    "split": (SPLITS.__contains__, "test or validation"),
    "epochs": (lambda value: _is_count(value) and value, "a whole number above 0"),
    "parameters": (lambda value: _is_count(value) and value, "a whole number above 0"),
    "macs": (lambda value: _is_count(value) and value, "a whole number above 0"),
    "accuracy": (lambda value: _is_number(value) and 0 <= value <= 100, "from 0 to 100"),
    "best_accuracy": (lambda value: _is_number(value) and 0 <= value <= 100, "from 0 to 100"),
    "curve": (lambda value: isinstance(value, list) and value, "a list of epochs"),
    "mistakes": (lambda value: isinstance(value, dict), "a dict"),
    "seconds": (lambda value: _is_number(value) and value >= 0, "0 or more"),
    "device": (lambda value: isinstance(value, str), "text"),
    "precision": (PRECISIONS.__contains__, "float32 or bfloat16"),
    "versions": (lambda value: isinstance(value, dict), "a dict"),
    "commit": (lambda value: isinstance(value, str), "text"),
    "data": (DATA.__contains__, "mnist or sample"),
    "time": (lambda value: isinstance(value, str), "text"),
}


def _wrong_kinds(trial: dict) -> Iterator[str]:
    for name, (is_good, what) in KINDS.items():
        if not is_good(trial[name]):
            yield f"{name} must be {what}, not {_short(trial[name])}"
    epochs = trial["curve"] if isinstance(trial["curve"], list) else []
    for number, epoch in enumerate(epochs, start=1):
        if not isinstance(epoch, dict) or epoch.keys() != EPOCH_KEYS:
            yield f"curve, epoch {number}, must have exactly {', '.join(sorted(EPOCH_KEYS))}"
        elif wrong := [key for key, value in epoch.items() if not _is_number(value)]:
            yield f"curve, epoch {number}: {wrong[0]} must be a finite number, not {_short(epoch[wrong[0]])}"
        elif not _is_count(epoch["eval_correct"]):
            yield f"curve, epoch {number}: eval_correct must be a whole number, not {_short(epoch['eval_correct'])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _recipe_faults(recipe: dict) -> list[str]:
    if different := sorted(map(str, recipe.keys() ^ RECIPE_FIELDS)):
        return [f"recipe has missing or unknown fields: {', '.join(different)}"]
    try:
        Recipe(**recipe)
    except (TypeError, ValueError) as error:
        return [f"recipe: {error}"]
    return []


def _result_faults(trial: dict) -> Iterator[str]:
    """Accuracy, mistakes and the last epoch say the same."""
    curve, mistakes = trial["curve"], trial["mistakes"]
    correct, images = curve[-1]["eval_correct"], curve[-1]["eval_correct"] + len(mistakes)
    if trial["data"] == "mnist" and images != IMAGES:
        yield f"mistakes: {len(mistakes)}, and {correct} correct in the last epoch, are not {IMAGES:,} images"
    if trial["data"] == "sample" and not 0 < images <= LARGEST_SAMPLE:
        yield f"mistakes: {len(mistakes)}, and {correct} correct in the last epoch, are more images than the sample has"
    if images and abs(trial["accuracy"] - 100 * correct / images) >= ROUNDING:
        expected = f"{len(mistakes)} mistakes in {images:,} images are {100 * correct / images:.6g}"
        yield f"accuracy is {trial['accuracy']}, but {expected}"
    if abs(trial["accuracy"] - curve[-1]["eval_accuracy"]) >= ROUNDING:
        yield f"accuracy is {trial['accuracy']}, but the curve ends with {curve[-1]['eval_accuracy']}"
    best = max(epoch["eval_accuracy"] for epoch in curve)
    if abs(trial["best_accuracy"] - best) >= ROUNDING:
        yield f"best_accuracy is {trial['best_accuracy']}, but the best epoch has {best}"
    for index, digit in mistakes.items():
        if not (INDEX.fullmatch(index) and int(index) < images):
            yield f"mistakes: {_short(index)} is no number of one of {images:,} images"
        if type(digit) is not int or digit not in DIGITS:
            yield f"mistakes: image {index} cannot be taken for {_short(digit)}"


def _curve_faults(trial: dict, recipe: Recipe) -> Iterator[str]:
    """The epochs are numbered, follow the recipe, and their counts, percentages and losses are possible together."""
    curve = trial["curve"]
    if not len(curve) == trial["epochs"] == recipe.epochs:
        yield f"epochs is {trial['epochs']}, the recipe's {recipe.epochs}, but the curve has {len(curve)}"
    images = curve[-1]["eval_correct"] + len(trial["mistakes"])
    trained_on = TRAINED_ON[trial["split"]] if trial["data"] == "mnist" else SAMPLE_TRAINED_ON.get(images)
    for number, epoch in enumerate(curve, start=1):
        if epoch["epoch"] != number:
            yield f"curve: epoch {number} is numbered {epoch['epoch']}"
        for fault in _epoch_faults(epoch, images, trained_on):
            yield f"curve, epoch {number}: {fault}"
    if trained_on:
        yield from _learning_rate_faults(curve, recipe, trained_on)
        if not recipe.teacher and not recipe.label_smoothing:
            for number, epoch in enumerate(curve, start=1):
                if epoch["train_loss"] < _least_loss(epoch["train_accuracy"]):
                    yield f"curve, epoch {number}: train_loss {epoch['train_loss']} is too small for that many mistakes"
    seconds, (factor, extra) = sum(epoch["seconds"] for epoch in curve), MOST_SECONDS
    if not seconds - 0.1 <= trial["seconds"] <= factor * seconds + extra:
        yield f"seconds is {trial['seconds']}, but the epochs took {seconds:.1f}"


def _epoch_faults(epoch: dict, images: int, trained_on: int | None) -> Iterator[str]:
    correct, accuracy = epoch["eval_correct"], epoch["eval_accuracy"]
    if correct > images or abs(accuracy - 100 * correct / max(1, images)) >= ROUNDING:
        yield f"eval_accuracy is {accuracy}, but eval_correct {correct} of {images:,}"
    if not 0 <= epoch["train_accuracy"] <= 100:
        yield f"train_accuracy must be from 0 to 100, not {epoch['train_accuracy']}"
    elif trained_on:
        count = epoch["train_accuracy"] * trained_on / 100
        if abs(count - round(count)) > ROUNDING * trained_on / 100:
            yield f"train_accuracy {epoch['train_accuracy']} is no number of {trained_on:,} images"
    if epoch["eval_loss"] < _least_loss(accuracy):
        yield f"eval_loss {epoch['eval_loss']} is too small for that many mistakes"
    if epoch["learning_rate"] < 0 or min(epoch["train_loss"], epoch["seconds"]) <= 0:
        yield "learning_rate must be 0 or more, train_loss and seconds above 0"


def _least_loss(accuracy: float) -> float:
    """The smallest possible mean cross-entropy: of a mistake it is at least log 2, as another digit is more likely."""
    return (100 - accuracy) / 100 * math.log(2) - ROUNDING


def _learning_rate_faults(curve: list[dict], recipe: Recipe, trained_on: int) -> list[str]:
    """The rate after each epoch, by the recipe's schedule. Muon without a convolution has the rate of its SGD."""
    per_batch, steps = recipe.schedule_every == "batch", recipe.steps_per_epoch(trained_on)
    peaks = [recipe.learning_rate, *[recipe.sgd_learning_rate] * (recipe.optimizer == "muon")]
    complaints = []
    for peak in peaks:
        complaints = []
        for number, epoch in enumerate(curve, start=1):
            expected = peak * recipe.learning_rate_factor((number - (not per_batch)) * steps, steps)
            if abs(epoch["learning_rate"] - expected) > ROUNDING:
                found = f"learning_rate is {epoch['learning_rate']}, by the recipe {expected:.6f}"
                complaints.append(f"curve, epoch {number}: {found}")
        if not complaints:
            break
    return complaints[:1]


def _origin_faults(trial: dict) -> Iterator[str]:
    """Where, when and by what the trial was made."""
    for name in ("device", "commit"):
        if not FORMS[name].fullmatch(trial[name]):
            yield f"{name} is not of the form of a {name}: {_short(trial[name])}"
    for name in ("python", "torch"):
        version = trial["versions"].get(name)
        if not (isinstance(version, str) and FORMS[name].fullmatch(version)):
            yield f"versions: {name} must be a version, not {_short(version)}"
    if fault := time_fault(trial["time"]):
        yield fault
    name, digest = trial["network"].rpartition("@")[::2]
    if trial["source"] and (not name or hashlib.sha256(trial["source"].encode()).hexdigest()[:8] != digest):
        yield f"network {_short(trial['network'])} is not the name of the source (see source.py)"


def time_fault(time: object) -> str:
    """What is wrong with a time of a result, as text; empty if it is an ISO time with a zone, and neither very old nor
    in the future."""
    try:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is None:
            return f"time must have a zone, such as +00:00: {_short(time)}"
    except (TypeError, ValueError):
        return f"time must be an ISO time, not {_short(time)}"
    if not EARLIEST <= moment <= datetime.now(timezone.utc) + timedelta(days=1):
        return f"time must be between {EARLIEST:%Y-%m} and now, not {_short(time)}"
    return ""
