"""The numbers that README.md and RESULTS.md state outside their tables, and where each comes from.

Every number in the prose must be part of a phrase of `STATEMENTS`, and be what that phrase's source gives. Whoever
writes a new number adds the phrase, or lets `s5.reports.write` write the number between markers. Code, links and the
numbers of lists are left out; so are digits inside of words, such as bfloat16 and x86-64.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
from collections.abc import Callable, Iterator
from functools import cache

import torch

from helpers import Net
from s5.analysis.statistics import CLAIMED_ACCURACY, wilson_interval
from s5.experiments.evidence import IMAGES, TRAINED_ON
from s5.experiments.ledger import select
from s5.experiments.variants import FINAL, ORIGINAL
from s5.reports.goals import BUDGETS, GOALS, SIGNIFICANCE, find_claims
from s5.reports.pages import shown_trial
from s5.reports.speed_tables import read_measurements
from s5.reports.tables import COLLAPSED, current_trials
from s5.training.files import EXPORT, ROOT
from s5.training.mnist import MnistData, load_sample

NUMBER = re.compile(r"(?<![\w.,])(?<!\w-)\d[\d,]*(?:\.\d+)?(?!\w)")
NOT_PROSE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\s]*\)|^\d+\. |<[^<>\n]*>", re.DOTALL | re.MULTILINE)
Numbers = Callable[[list[dict]], set]  # right in a place, given the trials of the ledger


def prose_faults(text: str, trials: list[dict]) -> Iterator[str]:
    """The numbers of a page's prose, without its tables, that are not what `STATEMENTS` says, or not in it."""
    prose = NOT_PROSE.sub(lambda match: " " * len(match[0]), text)
    good, wrong = set(), {}
    for phrase, numbers in STATEMENTS.items():
        for match in re.finditer(phrase.replace(" ", r"\s+"), prose):
            expected = {number if isinstance(number, str) else f"{number:,}" for number in numbers(trials)}
            for group in range(1, match.re.groups + 1):
                if match[group] in expected:
                    good.add(match.start(group))
                else:
                    wrong[match.start(group)] = f"but its source says {', '.join(sorted(expected)) or 'nothing'}"
    for match in NUMBER.finditer(prose):
        if match.start() not in good:
            around = " ".join(prose[max(0, match.start() - 40) : match.end() + 30].split())
            reason = wrong.get(match.start(), "which no phrase of s5/reports/prose.py knows")
            yield f'{match[0].rstrip(",")} in "… {around} …", {reason}'


# --- Sources ----------------------------------------------------------------------------------------------------------


def constant(name: str) -> Numbers:
    """A constant of inference/ or benchmarks/, read from the text: their code is above this place."""
    for path in sorted(
        path for place in ("inference", "deployment", "benchmarks") for path in (ROOT / "s5" / place).glob("*.py")
    ):
        if match := re.search(rf"^{name} = ([\d_.]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            return always(ast.literal_eval(match[1]))
    raise ValueError(f"neither inference/ nor benchmarks/ has the constant {name}")


def always(*numbers: float | str) -> Numbers:
    """Numbers that do not depend on the trials."""
    return lambda trials: set(numbers)


def _of_the_project(pattern: str) -> Numbers:
    """What a pattern finds in pyproject.toml."""
    return lambda trials: set(re.findall(pattern, (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


def _exported(network: str, form: str) -> Numbers:
    """Accuracy in percent and size in kilobytes of an exported network, from results/export.json."""

    def numbers(trials: list[dict]) -> set[str]:
        rows = json.loads(EXPORT.read_text(encoding="utf-8"))["rows"]
        found = [row for row in rows if (row["network"], row["format"]) == (network, form)]
        return {text for row in found for text in (f"{row['accuracy']:.2f}", f"{row['bytes'] / 1000:.1f}")}

    return numbers


def _recorded_epoch(gpu: str) -> Numbers:
    """The median seconds of an epoch of `Net` with a recorded step on a GPU, from results/speed.json."""

    def numbers(trials: list[dict]) -> set[str]:
        parts = [record["gpu"] for record in read_measurements().values() if "gpu" in record]
        found = [part for part in parts if part["environment"]["device"].endswith(f" {gpu}")]
        return {f"{part['seconds']['recorded']['median']:.2f}" for part in found}

    return numbers


@cache
def sample() -> MnistData:
    """The small sample of MNIST."""
    return load_sample()


@cache
def _ink_sides() -> set[int]:
    """The largest height and width of a digit of MNIST, in pixels, in the sample."""
    ink = sample().train_images > 0
    return {int((28 - _blank(ink.any(axis)) - _blank(ink.any(axis).flip(1))).max()) for axis in (1, 2)}


def _blank(inked: torch.Tensor) -> torch.Tensor:
    """How many entries of each row are false before the first true one, for (N, 28)."""
    return inked.int().argmax(1)


def _first_seed_above_the_claims(trials: list[dict]) -> set[int]:
    """The first seed of the validation split, if all claims were evaluated with lower ones; else nothing."""
    (first,) = _of_validation(min, "seed")(trials)
    claimed = [trial["seed"] for goal in GOALS for trial in find_claims(goal, trials)]
    return {first} if max(claimed) < first else set()


def _earlier_recipe(choose: Callable) -> Numbers:
    """The first or last seed of the test trials of `Net` with SGD, without those of the original recipe."""

    def seeds(trials: list[dict]) -> set[int]:
        found = select(trials, network="Net", split="test")
        sgd = [trial for trial in found if trial["recipe"]["optimizer"] == "sgd" and trial["variant"] != "original"]
        return {choose(trial["seed"] for trial in sgd)}

    return seeds


def _mean(trials: list[dict]) -> set[str]:
    return {f"{statistics.mean(trial['accuracy'] for trial in trials):.3f}"} if trials else set()


def _below_8k(numbers: Callable[[list[dict], list[dict]], set]) -> Numbers:
    """Numbers of the test trials of `below_8k`: of the short ones and the long ones, the oldest first."""

    def of_all(trials: list[dict]) -> set:
        tested = select(trials, variant="below_8k", split="test")
        most = max((trial["epochs"] for trial in tested), default=0)
        long = [trial for trial in tested if trial["epochs"] == most]
        return numbers([trial for trial in tested if trial["epochs"] < most], long)

    return of_all


def _first_epochs_at_the_claim(trials: list[dict]) -> set[int]:
    """The epochs in which runs of the original recipe first reach the claimed accuracy on the test set."""
    curves = [trial["curve"] for trial in select(trials, variant="original", split="test")]
    reached = [[each["epoch"] for each in curve if each["eval_accuracy"] >= CLAIMED_ACCURACY] for curve in curves]
    return {epochs[0] for epochs in reached if epochs}


def _of_validation(choose: Callable, key: str) -> Numbers:
    return lambda trials: {choose(trial[key] for trial in select(trials, split="validation"))}


KERNELS = {size for layer in Net().modules() if isinstance(layer, torch.nn.Conv2d) for size in layer.kernel_size}
CONFIDENCE = f"{100 * inspect.signature(wilson_interval).parameters['confidence'].default:g}"

# A phrase, whose groups are numbers, and what they may be; a space is any white space.
STATEMENTS: dict[str, Numbers] = {
    r"fewer than ([\d,]+) parameters": always(max(BUDGETS)),
    r"[Aa]bove ([\d,]+) parameters": always(*BUDGETS),
    r"[Bb]elow ([\d,]+) parameters": always(*BUDGETS),
    r"assignment (\d+) of": _of_the_project(r'^name = "\w+-mnist-s(\d+)"'),
    r"([\d.]+)% on the test set": always(f"{CLAIMED_ACCURACY:g}"),
    r"On an H200 an epoch of takes ([\d.]+) s": _recorded_epoch("H200"),
    r"first reports ([\d.]+)%": always(f"{CLAIMED_ACCURACY:g}"),
    r"one reached it, after (\d+)\b": _first_epochs_at_the_claim,
    r"within (\d+) epochs": always(FINAL.epochs),
    r"Net over (\d+) epochs": always(FINAL.epochs),
    r"validation split for up to (\d+) epochs": _of_validation(max, "epochs"),
    r"Python ([\d.]+) or newer": _of_the_project(r'^requires-python = ">=([\d.]+)"'),
    r"(\d+)×(\d+) convolutions": always(*KERNELS),
    r"scaled to (\d+)×(\d+) pixels": lambda trials: _ink_sides(),
    r"middle of (\d+)×(\d+)": always(28),
    r"Training log of seed (\d+)": lambda trials: {shown_trial(current_trials("test", trials))["seed"]},
    r"([\d,]+) images held out": always(IMAGES),
    r"accuracy on ([\d,]+) images": always(IMAGES),
    r"these same ([\d,]+) images": always(IMAGES),
    r"on all ([\d,]+) images": always(TRAINED_ON["test"]),
    r"from seeds below (\d+); choosing used (\d+) and up": _first_seed_above_the_claims,
    r"sample of ([\d,]+) images": lambda trials: {len(sample().train_labels) + len(sample().eval_labels)},
    r"ended below (\d+)%": always(f"{COLLAPSED:g}"),
    r"([\d.]+)% in ([\d.]+) kB": always("99.06", "5.4", "99.44", "9.3", "99.55", "11.0"),  # of BitNetMCU
    r"for (\d+)×(\d+) pixels": always(16),
    r"gets ([\d.]+)% right with ([\d.]+) kB": _exported("below_2k", "C int8"),
    r"intervals are (\d+)% intervals": always(CONFIDENCE),
    r"Wilson (\d+)%": always(CONFIDENCE),
    r"from seeds (\d+)–\d+ before Muon": _earlier_recipe(min),
    r"from seeds \d+–(\d+) before Muon": _earlier_recipe(max),
    r"a mean above ([\d.]+)% \(p < ([\d.]+)\)": always(f"{CLAIMED_ACCURACY:g}", f"{SIGNIFICANCE:g}"),
    r"no seed below ([\d.]+)%": always(f"{GOALS[0].lowest:.2f}"),
    r"seeds: ([\d.]+)%, ([\d.]+)% and ([\d.]+)% had been reached": always("99.60", "99.50", "99.45"),
    r"reached, ([\d.]+)% and ([\d.]+)% missed": always("99.25", "99.00"),
    r"also frozen with (\d+) epochs": _below_8k(lambda short, long: {trial["epochs"] for trial in long}),
    r"after its first test seed \(([\d.]+)%\)": _below_8k(
        lambda short, long: {f"{trial['accuracy']:.2f}" for trial in long[:1]}
    ),
    r"went back to (\d+)": _below_8k(lambda short, long: {trial["epochs"] for trial in short}),
    r"five test seeds \(mean ([\d.]+)%\)": _below_8k(lambda short, long: _mean(short[:5])),
    r"without it the mean is ([\d.]+)%": lambda trials: _mean(select(trials, variant="below_20k", split="test")[:10]),
    r"batches of (\d+)": always(ORIGINAL.batch_size),
    r"measured on ([\d,]+) images": constant("PART_OF_AN_EPOCH"),
    r"and scaled to ([\d,]+)\b": always(TRAINED_ON["test"]),
}
