"""The ledger: one JSON line a trial in `results/ledger.jsonl`. Every number the project states comes from here."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from filelock import FileLock

from recipe import BEFORE

LEDGER = Path(__file__).parent / "results" / "ledger.jsonl"

KEYS = (
    "variant",  # name in variants.py or candidates.py
    "recipe",  # the whole recipe, as a dict
    "seed",
    "split",  # what accuracy was measured on: "validation" or "test"
    "epochs",
    "parameters",
    "macs",  # multiply-adds for one image
    "accuracy",  # percent, last epoch
    "best_accuracy",  # percent, best epoch: only to show how much choosing by it flatters
    "curve",  # the history that `fit` returns: a dict an epoch
    "mistakes",  # {image number: predicted digit}, last epoch: with the labels, the whole prediction vector
    "seconds",  # of training, tests after each epoch included
    "device",
    "versions",
    "commit",
    "data",  # "mnist" or "sample"
    "time",  # when the trial ended, UTC
)


COMMIT = "MNIST_S5_COMMIT"  # the environment variable that says it where there is no checkout


class LedgerWarning(UserWarning):
    """Something in the ledger is not as it should be; the message names the line and what was done with it."""


def trial_key(trial: dict) -> tuple:
    """What makes a trial the same trial: the same work from the same seed. 15 and 15.0 in a recipe are the same."""
    return trial["variant"], trial["split"], trial["seed"], trial["data"], *sorted(trial["recipe"].items())


def read_ledger(path: str | Path = LEDGER) -> list[dict]:
    """All trials of the ledger, in its order; an absent file is an empty ledger.

    Recipes recorded before a field of them existed get the value that stands for what was done then
    (`recipe.BEFORE`). Nothing in the file is changed. A LedgerWarning names each line that is torn or no trial (it
    is left out), that repeats an earlier trial (the earlier one counts), or that has unknown keys (it is kept).
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
        if isinstance(trial, dict) and isinstance(trial.get("recipe"), dict):
            trial["recipe"] = BEFORE | trial["recipe"]
        if problem := _no_trial(trial):
            _warn(f"{where} is no trial, {problem}: left out")
            continue
        if unknown := sorted(trial.keys() - set(KEYS)):
            _warn(f"{where} has keys that this version does not know, {', '.join(unknown)}: kept")
        if (key := trial_key(trial)) in first_seen:
            _warn(f"{where} repeats the trial of line {first_seen[key]}: the earlier one counts")
            continue
        first_seen[key] = number
        trials.append(trial)
    return trials


def append_trial(trial: dict, path: str | Path = LEDGER) -> bool:
    """Append one trial; False, and nothing written, when the ledger holds it already.

    Safe while several processes append. Raises ValueError for a trial with missing or unknown keys, or with a
    value that is no JSON, before anything is written.
    """
    path = Path(path)
    if wrong := sorted(trial.keys() ^ set(KEYS)):
        raise ValueError(f"a trial has exactly the keys of ledger.KEYS; missing or unknown: {', '.join(wrong)}")
    if problem := _no_trial(trial):
        raise ValueError(f"this is no trial: {problem}")
    try:
        line = json.dumps(trial, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"a trial holds what JSON can hold: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)  # for whoever reads the ledger, not for each writer
            if trial_key(trial) in set(map(trial_key, read_ledger(path))):
                return False
        append_line(line, path)
    return True


def append_line(line: bytes, path: Path) -> None:
    """Append a line, on the disk when this returns; whoever calls holds the file's lock."""
    with open(path, "a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            line = b"\n" + line  # a writer was killed in the middle of a line: do not glue ours to it
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def provenance(device) -> dict:
    """Where a trial is run and by what: the ledger's fields device (a `torch.device`), versions and commit."""
    import torch

    where = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type}: {where}",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "commit": current_commit(),
    }


@cache  # a commit that is made while the process runs does not change what runs
def current_commit() -> str:
    """The git commit that is running, with "-dirty" when a Python file differs from it; "unknown" outside git."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def select(trials: Iterable[dict], **conditions) -> list[dict]:
    """The trials whose fields equal all conditions, e.g. `select(trials, variant="s5", split="test")`."""
    return [trial for trial in trials if all(trial[key] == value for key, value in conditions.items())]


def _no_trial(line) -> str:
    """Why a line of the ledger cannot be used as a trial; empty when it can."""
    if not isinstance(line, dict):
        return "it is no JSON object"
    if missing := [key for key in KEYS if key not in line]:
        return f"it lacks {', '.join(missing)}"
    try:
        hash(trial_key(line))
    except (AttributeError, TypeError):
        return "its variant, split, seed, data or recipe is not of the right kind"
    return ""


def _warn(message: str) -> None:
    warnings.warn(message, LedgerWarning, stacklevel=3)
