"""The ledger: one JSON line a trial in `results/ledger.jsonl`. Every number the project states comes from here."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

LEDGER = Path(__file__).parent / "results" / "ledger.jsonl"

KEYS = (
    "variant",  # name in variants.py
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


class LedgerWarning(UserWarning):
    """Something in the ledger is not as it should be; the message names the line and what was done with it."""


def trial_key(trial: dict) -> tuple:
    """What makes a trial the same trial: the same work from the same seed."""
    recipe = json.dumps(trial["recipe"], sort_keys=True)
    return trial["variant"], trial["split"], trial["seed"], trial["data"], recipe


def read_ledger(path: str | Path = LEDGER) -> list[dict]:
    """All trials of the ledger, in its order; an absent file is an empty ledger.

    Nothing in the file is changed. A LedgerWarning names each line that is torn or no trial (it is left out),
    that repeats an earlier trial (the earlier one counts), or that has unknown keys (it is kept).
    """
    path = Path(path)
    trials, first_seen = [], {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        where = f"{path.name}, line {number}"
        try:
            trial = json.loads(line)
        except json.JSONDecodeError as error:
            _warn(f"{where} is torn or no JSON ({error}): left out")
            continue
        if missing := [key for key in KEYS if not isinstance(trial, dict) or key not in trial]:
            _warn(f"{where} is no trial, it lacks {', '.join(missing)}: left out")
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

    Safe while several processes append. Raises ValueError for a trial with missing or unknown keys.
    """
    path = Path(path)
    if wrong := sorted(trial.keys() ^ set(KEYS)):
        raise ValueError(f"a trial has exactly the keys of ledger.KEYS; missing or unknown: {', '.join(wrong)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)  # for whoever reads the ledger, not for each writer
            if trial_key(trial) in set(map(trial_key, read_ledger(path))):
                return False
        line = json.dumps(trial, separators=(",", ":")) + "\n"
        if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:
            line = "\n" + line  # a writer was killed in the middle of a line: do not glue ours to it
        with open(path, "a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    return True


def select(trials: Iterable[dict], **conditions) -> list[dict]:
    """The trials whose fields equal all conditions, e.g. `select(trials, variant="s5", split="test")`."""
    return [trial for trial in trials if all(trial[key] == value for key, value in conditions.items())]


def _warn(message: str) -> None:
    warnings.warn(message, LedgerWarning, stacklevel=3)
