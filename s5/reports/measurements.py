"""Whether the measurements in results/, JSON files and peers.csv, agree with themselves.

A median, a range, a rate or a mean must follow from the values that are stored beside it. Nothing is assumed of what is
measured: the checks go by the names of the fields, wherever they are, so new measurements are checked as well.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Iterator

from s5.analysis.statistics import p_mean_above
from s5.experiments.evidence import FORMS, IMAGES, TRAINED_ON, time_fault
from s5.experiments.legacy import modernize
from s5.training.recipe import Recipe

MEDIANS = ("median", "milliseconds", "microseconds", "seconds")  # a number of this name is the median of its range
NEVER_NEGATIVE = re.compile(r"bytes|memory|cores|threads|correct|images|parameters|macs|MB|GFLOP|opset")
PERCENTAGES = re.compile(r"(^|, )(accuracy|accuracies|Accuracy \(%\)|percent of [^,]*)(, [^,]*)?$")
PEER_FIELDS = ["name", "repository", "parameters", "epochs", "best", "last", "made"]


def measurement_faults(value: object, place: str = "") -> Iterator[str]:
    """What contradicts itself in a file of measurements, as parsed from JSON; each text begins with the place."""
    if isinstance(value, dict):
        for about in CHECKS:
            try:
                found = list(about(value))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                found = [f"cannot be checked ({type(error).__name__}: {error})"]
            yield from (f"{place}: {fault}" for fault in found)
        for name, each in value.items():
            yield from measurement_faults(each, f"{place}, {name}" if place else str(name))
    elif isinstance(value, list):
        for number, each in enumerate(value, start=1):
            yield from measurement_faults(each, f"{place}, {number}" if place else str(number))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            yield f"{place}: {value} is not finite"
        elif value < 0 and NEVER_NEGATIVE.search(place.rpartition(", ")[2]):
            yield f"{place}: {value} is below 0"
        elif PERCENTAGES.search(place) and not 0 <= value <= 100:
            yield f"{place}: {value} is not from 0 to 100"


def _numbers(values: object) -> list[float]:
    """The values, which must be finite numbers. Raises ValueError."""
    if not isinstance(values, list) or not values:
        raise ValueError("no list of numbers")
    if any(isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each) for each in values):
        raise ValueError("not all are finite numbers")
    return values


def _range_faults(record: dict) -> Iterator[str]:
    """A median is within its range."""
    if "low" in record or "high" in record:
        low, high = record["low"], record["high"]
    elif "range" in record:
        low, high = _numbers(record["range"])
    else:
        return
    if not low <= high:
        yield f"the range begins with {low} and ends with {high}"
    for name in MEDIANS:
        if isinstance(record.get(name), int | float) and not low <= record[name] <= high:
            yield f"the {name}, {record[name]}, is outside its range, {low} to {high}"


def _survival_faults(record: dict) -> Iterator[str]:
    """No more is survived than tried."""
    if "survived" in record and not 0 <= record["survived"] <= record["tried"]:
        yield f"{record['survived']} of {record['tried']} survived"


def _timing_faults(record: dict) -> Iterator[str]:
    """A median and a range follow from all values, if they are stored."""
    if "all" not in record or not any(name in record for name in MEDIANS):
        return
    values = _numbers(record["all"])
    low, high = (record[key] for key in ("low", "high")) if "low" in record else record["range"]
    stated = {"low": low, "high": high} | {name: record[name] for name in MEDIANS if name in record}
    expected = {"low": min(values), "high": max(values)}
    for name, found in stated.items():
        right = expected.get(name, statistics.median(values))
        if not math.isclose(found, right, rel_tol=1e-3, abs_tol=1e-9):
            yield f"{name} is {found}, but of all values {right}"


def _count_faults(record: dict) -> Iterator[str]:
    """A percentage of images follows from their number."""
    if "correct" in record and "accuracy" in record:
        correct, images = record["correct"], record.get("images", IMAGES)
        if type(correct) is not int or not 0 <= correct <= images:
            yield f"correct must be from 0 to {images:,}, not {correct}"
        elif not math.isclose(record["accuracy"], 100 * correct / images, abs_tol=0.005 + 1e-9):
            yield f"accuracy is {record['accuracy']}, but {correct} of {images:,} are correct"
    if {"Accepted", "Mistakes", "Accuracy (%)"} <= record.keys():
        accepted, wrong = record["Accepted"], record["Mistakes"]
        if not 0 <= wrong <= accepted or abs(record["Accuracy (%)"] - 100 * (accepted - wrong) / accepted) > 5.1e-4:
            yield f"Accuracy (%) is {record['Accuracy (%)']}, but {wrong} mistakes in {accepted:,} images"
    for name, shares in record.items():
        if name.startswith("percent of") and not sum(_numbers(list(shares.values()))) <= 100.5:
            yield f"{name}: the shares add up to more than 100"
        if name.startswith("percent of") and sorted(shares.values(), reverse=True) != list(shares.values()):
            yield f"{name}: the largest share must be the first"


def _rate_faults(record: dict) -> Iterator[str]:
    """Trials per hour follow from the seconds of an epoch."""
    for name, rates in record.items():
        if match := re.fullmatch(r"trials of (\d+) epochs? per hour", name):
            for way, rate in rates.items():
                expected = 3600 / record["seconds per epoch"][way]["median"] / int(match[1])
                if not math.isclose(rate, expected, rel_tol=1e-3):
                    yield f"{name}, {way}: {rate}, but by the seconds per epoch {expected:.2f}"


def _seed_faults(record: dict) -> Iterator[str]:
    """Mean, standard deviation, minimum and p-value over seeds follow from the accuracies."""
    if "accuracies" not in record:
        return
    accuracies, seeds = _numbers(record["accuracies"]), record["seeds"]
    if len(set(seeds)) != len(accuracies) or any(type(seed) is not int or seed < 0 for seed in seeds):
        yield f"seeds must be {len(accuracies)} different whole numbers, as there are accuracies"
    expected = {
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies),
        "minimum": min(accuracies),
        "p of a mean above the target": p_mean_above(accuracies, record["target"]),
    }
    for name, right in expected.items():
        if not math.isclose(record[name], right, rel_tol=1e-6, abs_tol=0 if name.startswith("p ") else 5.1e-5):
            yield f"{name} is {record[name]}, but of all seeds {right:.6g}"
    if wrong := [each for each in accuracies if not math.isclose(100 * each, round(100 * each), abs_tol=1e-6)]:
        yield f"accuracies: {wrong[0]} is no number of {IMAGES:,} images"
    for name, timing in record.items():
        if isinstance(timing, dict) and "all" in timing and len(timing["all"]) != len(seeds):
            yield f"{name}: {len(timing['all'])} values of {len(seeds)} seeds"
    training, whole = (record[name]["all"] for name in ("training seconds", "seconds from process start"))
    if any(part >= total for part, total in zip(training, whole, strict=True)):
        yield "training seconds: longer than the seconds from process start"
    if isinstance(record.get("recipe"), dict):
        Recipe(**modernize({"recipe": record["recipe"]})["recipe"])


def _environment_faults(record: dict) -> Iterator[str]:
    """Device, commit, versions and time are of their form."""
    for name in ("device", "commit"):
        if isinstance(record.get(name), str) and "versions" in record and not FORMS[name].fullmatch(record[name]):
            yield f"{name} is not of the form of a {name}: {record[name]!r}"
    for name, version in record.get("versions", {}).items():
        if name in FORMS and not FORMS[name].fullmatch(version):
            yield f"versions: {name} must be a version, not {version!r}"
    if "time" in record and "versions" in record and (fault := time_fault(record["time"])):
        yield fault


def machine_faults(records: dict[str, dict], macs: int) -> Iterator[str]:
    """Every part of a machine's record in speed.json was measured on that machine, for a network of `macs` an image."""
    for machine, parts in records.items():
        for part, record in parts.items():
            about = record["environment"]
            if not machine.startswith(f"{about['processor']}, {about['cores']} cores, {about['capability']}"):
                yield f"{machine}, {part}: measured on another machine, {about['processor']}, {about['cores']} cores"
            expected = 6 * macs * TRAINED_ON["test"] / 1e9  # the backward pass costs two forward passes
            if not math.isclose(record.get("GFLOP per epoch", expected), expected, abs_tol=0.06):
                yield f"{machine}, {part}: an epoch has {expected:.1f} GFLOP"


def peer_faults(text: str) -> Iterator[str]:
    """What is impossible in peers.csv, the networks of other people."""
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames != PEER_FIELDS:
        yield f"the columns must be {', '.join(PEER_FIELDS)}"
        return
    for number, row in enumerate(rows, start=2):
        try:
            parameters, epochs = int(row["parameters"]), int(row["epochs"] or 1)  # not everybody states the epochs
            best, last = (float(row[key]) if row[key] else None for key in ("best", "last"))
        except (TypeError, ValueError) as error:
            yield f"line {number}: {error}"
            continue
        if not all(row[key] for key in ("name", "repository", "made")) or None in row or min(parameters, epochs) < 1:
            yield f"line {number}: name, repository, parameters, epochs and made must be there"
        if best is None and last is None:
            yield f"line {number}: best or last must be there"
        if not all(90 <= each <= 100 for each in (best, last) if each is not None):
            yield f"line {number}: best and last must be percentages of MNIST, from 90 to 100"
        if best is not None and last is not None and last > best:
            yield f"line {number}: the last epoch, {last}, is better than the best, {best}"


CHECKS = (
    _range_faults,
    _survival_faults,
    _timing_faults,
    _count_faults,
    _rate_faults,
    _seed_faults,
    _environment_faults,
)
