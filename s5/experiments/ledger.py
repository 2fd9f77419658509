"""A ledger: one JSON line per trial. Every accuracy in this project comes from `results/ledger.jsonl`.

That file is written by maintainers; what users run goes to `runs/ledger.jsonl`, unless they name another file.
"""

import json
import math
import os
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from s5.experiments.trial import Trial
from s5.training.files import LEDGER, check_folder


class LedgerWarning(UserWarning):
    """A line of the ledger is not used; the message names it and says why."""


def read_ledger(path: str | Path = LEDGER) -> list[Trial]:
    """All trials of the ledger in order; a missing file is an empty ledger.

    A LedgerWarning names each line that is torn or no trial, which is left out. Of a trial that was repeated, with the
    same network, recipe, seed, split, data and precision, the last line counts.
    """
    trials: dict[tuple, Trial] = {}
    lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            trial = parse_line(line)
        except ValueError as error:
            message = f"{Path(path).name}, line {number} is left out: {error}"
            warnings.warn(message, LedgerWarning, stacklevel=2)
        else:
            trials[trial.key, trial.precision] = trial
    return list(trials.values())


def parse_line(line: bytes) -> Trial:
    """The trial of a line of a ledger. Raises ValueError, which says what is wrong with it."""
    try:
        return Trial.from_dict(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"it is torn or no trial ({type(error).__name__}: {error})") from error


def append_trial(trial: Trial, path: str | Path) -> None:
    """Append one trial and flush it to disk. Safe while several processes append.

    Raises OSError; after an error nothing of the line is left.
    """
    path, line = Path(path), json.dumps(trial.as_dict(), separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = file.read(1) not in (b"", b"\n")  # a writer was killed in the middle of a line
        content = ("\n" * torn + line + "\n").encode()
        try:
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except BaseException:  # the disk is full, or Ctrl-C
            file.truncate(size)
            raise


def check_writable(path: str | Path) -> None:
    """Raise OSError if the ledger cannot be written: better before the first trial than after it."""
    check_folder(Path(path).parent)
    open(path, "ab").close()


def of_precision(trials: Iterable[Trial], precision: str) -> list[Trial]:
    """The trials that were trained in a precision; all of them for "auto"."""
    return [trial for trial in trials if precision in ("auto", trial.precision)]


def select(trials: Iterable[Trial], **conditions) -> list[Trial]:
    """The trials that match all conditions, e.g. `select(trials, variant="s5", split="test")`."""
    return [trial for trial in trials if all(getattr(trial, name) == value for name, value in conditions.items())]


def by_variant(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials of each variant, in the order of the first ones."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.variant, []).append(trial)
    return groups


def minutes_on_a_cpu(trials: Iterable[Trial]) -> float:
    """The median duration of those of `trials` that a CPU trained, in minutes; NaN if there is none."""
    minutes = [trial.seconds / 60 for trial in trials if trial.device.startswith("cpu")]
    return statistics.median(minutes) if minutes else math.nan


def mean_loss(trials: Iterable[Trial]) -> float:
    """The mean loss of trials on the evaluated images, in the last epoch."""
    return statistics.mean(trial.curve[-1]["eval_loss"] for trial in trials)
