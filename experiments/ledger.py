"""The ledger, `results/ledger.jsonl`: one JSON line per trial. Every accuracy in this project comes from it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from experiments.legacy import modernize
from training.files import LEDGER

KEYS = (
    "variant",  # name, from variants.py or candidates.py
    "recipe",  # all fields, as a dict
    "seed",
    "split",  # evaluated on "validation" or "test"
    "epochs",
    "parameters",
    "macs",  # multiply-adds for one image
    "accuracy",  # percent, last epoch
    "best_accuracy",  # percent, best epoch; only to show the bias of choosing by it
    "curve",  # the history that `fit` returns: one dict per epoch
    "mistakes",  # {image number: predicted digit}, last epoch
    "seconds",  # of training and the evaluations after each epoch
    "device",
    "precision",  # of the forward and backward pass: "float32" or "bfloat16"
    "versions",
    "commit",
    "data",  # "mnist" or "sample"
    "time",  # when the trial ended, UTC
)


class LedgerWarning(UserWarning):
    """A line of the ledger is faulty; the message names it and says how it is treated."""


def trial_key(trial: dict) -> tuple:
    """What a trial is of: variant, split, seed, data and recipe. 15 and 15.0 in a recipe are equal."""
    return trial["variant"], trial["split"], trial["seed"], trial["data"], *sorted(trial["recipe"].items())


def read_ledger(path: str | Path = LEDGER) -> list[dict]:
    """All trials of the ledger in order; a missing file is an empty ledger.

    Lines of earlier versions get today's names and the missing recipe fields (`legacy.py`); the file is not changed.
    A LedgerWarning names each line that is torn or no trial (left out), that repeats an earlier trial (the earlier one
    counts), or that has unknown keys (kept).
    """
    path = Path(path)
    content = path.read_bytes() if path.exists() else b""
    trials, first_seen = [], {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            trial = json.loads(line)
        except ValueError as error:  # no JSON, or bytes that are no text
            _warn(f"{where} is torn or no JSON ({error}): left out")
            continue
        if isinstance(trial, dict):
            trial = modernize(trial)
        if problem := _problem(trial):
            _warn(f"{where} is no trial, {problem}: left out")
            continue
        if unknown := sorted(trial.keys() - set(KEYS)):
            _warn(f"{where} has keys that this version does not know, {', '.join(unknown)}: kept")
        if (key := _identity(trial)) in first_seen:
            _warn(f"{where} repeats the trial of line {first_seen[key]}: the earlier one counts")
            continue
        first_seen[key] = number
        trials.append(trial)
    return trials


def append_trial(trial: dict, path: str | Path = LEDGER) -> bool:
    """Append one trial; return False, and write nothing, if the ledger already has it.

    Safe while several processes append. Raises ValueError, before anything is written, for missing or unknown keys or
    a value that JSON cannot hold.
    """
    path = Path(path)
    if wrong := sorted(trial.keys() ^ set(KEYS)):
        raise ValueError(f"a trial has exactly the keys of ledger.KEYS; missing or unknown: {', '.join(wrong)}")
    if problem := _problem(trial):
        raise ValueError(f"this is no trial: {problem}")
    try:
        line = json.dumps(trial, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"a trial must be valid JSON: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)  # for readers of the ledger, not for every writer
            if _identity(trial) in set(map(_identity, read_ledger(path))):
                return False
        append_line(line, path)
    return True


def check_writable(path: str | Path) -> None:
    """Raise OSError if the ledger cannot be written: better before the first trial than after it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()


def append_line(line: bytes, path: Path) -> None:
    """Append a line and flush it to disk. The caller holds the file's lock."""
    with open(path, "a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            line = b"\n" + line  # a writer was killed in the middle of a line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def select(trials: Iterable[dict], **conditions) -> list[dict]:
    """The trials that match all conditions, e.g. `select(trials, variant="s5", split="test")`."""
    return [trial for trial in trials if all(trial[key] == value for key, value in conditions.items())]


def _identity(trial: dict) -> tuple:
    """Two lines with the same identity are one trial twice. The same trial in two precisions stays two."""
    return trial["precision"], *trial_key(trial)


def _problem(line) -> str:
    """Why a parsed line is not a trial; empty if it is one."""
    if not isinstance(line, dict):
        return "it is no JSON object"
    if missing := [key for key in KEYS if key not in line]:
        return f"missing keys: {', '.join(missing)}"
    try:
        hash(_identity(line))
    except (AttributeError, TypeError):
        return "its variant, split, seed, data, recipe or precision is not of the right kind"
    return ""


def _warn(message: str) -> None:
    warnings.warn(message, LedgerWarning, stacklevel=3)
