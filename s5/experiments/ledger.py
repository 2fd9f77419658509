"""The ledger, `results/ledger.jsonl`: one JSON line per trial. Every accuracy in this project comes from it."""

from __future__ import annotations

import codecs
import gc
import json
import math
import os
import statistics
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from s5.experiments.evidence import faults, is_sound
from s5.experiments.legacy import modernize
from s5.training.files import LEDGER

KEYS = (
    "variant",  # name, from variants.py or claims.py; a network of one's own: as "network"
    "network",  # a line of networks.py, "Net", "pytorch_example", or the name of "source"
    "source",  # the Python code of a network of one's own, else empty
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


MOST_FAULTS = 3  # of a line, that are named


class LedgerWarning(UserWarning):
    """A line of the ledger is faulty; the message names it and says how it is treated."""


def trial_key(trial: dict) -> tuple:
    """What a trial is of: variant, split, seed, data, recipe and network. 15 and 15.0 in a recipe are equal.

    The network, because a variant's may be changed later: then its earlier trials are those of another network.
    """
    names = ("variant", "split", "seed", "data")
    return *(trial[name] for name in names), frozenset(trial["recipe"].items()), trial["network"]


def read_ledger(path: str | Path = LEDGER) -> list[dict]:
    """All trials of the ledger in order; a missing file is an empty ledger.

    Lines of earlier versions get today's names and the missing recipe fields (`legacy.py`); the file is not changed.
    A LedgerWarning names each line that is torn, no trial, or contradicts itself (left out), that repeats an earlier
    trial (the earlier one counts), or that has unknown keys (kept).
    """
    path, known, trials = Path(path), _Known(), []
    if path.exists():
        with open(path, "rb") as file, _no_garbage_collection():
            known.stamp = _stamp(os.fstat(file.fileno()))
            trials = list(_read_on(file, known))
    _known[path.resolve()] = known
    return trials


def read_precision(precision: str, *paths: str | Path) -> list[dict]:
    """The trials of several ledgers that were trained in a precision; all of them for "auto"."""
    return of_precision((trial for path in paths for trial in read_ledger(path)), precision)


def of_precision(trials: Iterable[dict], precision: str) -> list[dict]:
    """The trials that were trained in a precision; all of them for "auto"."""
    return [trial for trial in trials if precision in ("auto", trial["precision"])]


def in_usual_precision(trials: Iterable[dict]) -> list[dict]:
    """The trials of each variant in one precision: that of most of them; of two equally frequent, the newer one.

    A mean over both would count a seed twice that was trained in both.
    """
    trials = list(trials)
    groups: dict[tuple[str, str], list[dict]] = {}
    for trial in trials:
        groups.setdefault((trial["variant"], trial["precision"]), []).append(trial)
    by_number = sorted(groups, key=lambda key: (len(groups[key]), max(trial["time"] for trial in groups[key])))
    usual = dict(by_number)  # the last of each variant
    return [trial for trial in trials if trial["precision"] == usual[trial["variant"]]]


def append_trial(trial: dict, path: str | Path = LEDGER) -> bool:
    """Append one trial; return False, and write nothing, if the ledger already has it.

    Safe while several processes append. Raises ValueError, before anything is written, for missing or unknown keys, a
    value that JSON cannot hold, or a field that contradicts another (`evidence.py`), which it names. Only lines that
    this process has not read yet are parsed (`_catch_up`), so that the time hardly grows with the ledger.
    """
    path = Path(path)
    if wrong := sorted(trial.keys() ^ set(KEYS)):
        raise ValueError(f"a trial has exactly the keys of ledger.KEYS; missing or unknown: {', '.join(wrong)}")
    try:
        line = json.dumps(trial, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"a trial must be valid JSON: {error}") from error
    try:
        written, identity = parse_line(line)
    except ValueError as error:
        raise ValueError(f"this is {error}") from error
    if wrong := faults(written):
        raise ValueError(f"the trial contradicts itself: {'; '.join(wrong[:MOST_FAULTS])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        known = _catch_up(path)
        if known.has(identity):
            return False
        append_line(line + b"\n", path)
        known.stamp = _stamp(path.stat())  # the next append reads the new line, but need not check the earlier ones
    return True


def check_writable(path: str | Path) -> None:
    """Raise OSError if the ledger cannot be written: better before the first trial than after it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()


def append_line(line: bytes, path: Path) -> None:
    """Append a line and flush it to disk; after an error nothing of it is left. The caller holds the file's lock."""
    with open(path, "a+b", buffering=0) as file:  # unbuffered, so that closing it after an error writes nothing
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line  # a writer was killed in the middle of a line
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:  # the disk is full, or Ctrl-C
            file.truncate(size)
            raise


def select(trials: Iterable[dict], **conditions) -> list[dict]:
    """The trials that match all conditions, e.g. `select(trials, variant="s5", split="test")`."""
    return [trial for trial in trials if all(trial[key] == value for key, value in conditions.items())]


def minutes_on_a_cpu(trials: list[dict]) -> float:
    """The median duration of those of `trials` that a CPU trained, in minutes; NaN if there is none."""
    minutes = [trial["seconds"] / 60 for trial in trials if trial["device"].startswith("cpu")]
    return statistics.median(minutes) if minutes else math.nan


def mean_loss(trials: list[dict]) -> float:
    """The mean loss of trials on the evaluated images, in the last epoch."""
    return statistics.mean(trial["curve"][-1]["eval_loss"] for trial in trials)


@dataclass
class _Known:
    """The part of a ledger that this process has read: its first `size` bytes, which end with a line's end."""

    stamp: tuple[int, ...] = ()
    size: int = 0
    checksum: int = 0
    lines: int = 0
    seeds: dict[tuple, dict[int, int]] = field(default_factory=dict)  # of the trials, with the numbers of their lines
    incomplete: tuple | None = None  # the identity of a trial after this part: a last line without a line's end

    def has(self, identity: tuple) -> bool:
        group, seed = identity
        return seed in self.seeds.get(group, ()) or identity == self.incomplete


_known: dict[Path, _Known] = {}


def _catch_up(path: Path) -> _Known:
    """Read the lines that are new since this process last read the ledger. The caller holds the file's lock.

    Others may have changed the file in any way: an editor, a merge, a process on another machine. What was read before
    is unchanged if the file has the same `stamp`, as between two appends of one process. Otherwise, e.g. if another
    process has appended, the CRC-32 of these bytes decides, which needs no parsing. If it differs, or the file is
    shorter, the whole ledger is read again. Only an edit in place that keeps the file's length and happens within a few
    milliseconds of this process's last append, without the lock, can be missed.
    """
    key = path.resolve()
    known = _known.pop(key, _Known())  # and back when it is complete: Ctrl-C must not leave half of it
    if not path.exists():
        known = _Known()
    else:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", LedgerWarning)  # for readers of the ledger, not for every writer
            stamp = _stamp(os.fstat(file.fileno()))
            if stamp != known.stamp and _checksum(file, known.size) != known.checksum:
                known = _Known()
            known.stamp = stamp
            for _ in _read_on(file, known):
                pass
    _known[key] = known
    return known


def _read_on(file: BinaryIO, known: _Known) -> Iterator[dict]:
    """The trials of the lines after the known part, which grows by them; by an incomplete last line only later."""
    file.seek(known.size)
    known.incomplete, name = None, Path(file.name).name
    for line in file:
        number, is_complete = known.lines + 1, line.endswith(b"\n")
        if is_complete:
            known.size += len(line)
            known.checksum = zlib.crc32(line, known.checksum)
            known.lines = number
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            trial, (group, seed) = parse_line(line.rstrip(b"\n"))
        except ValueError as error:
            _warn(f"{where} is {error}: left out")
            continue
        if not is_sound(trial):
            found = "; ".join(faults(trial)[:MOST_FAULTS])
            _warn(f"{where} contradicts itself: {found or 'see s5/experiments/evidence.py'}: left out")
            continue
        if unknown := sorted(trial.keys() - KEYS):
            _warn(f"{where} has keys that this version does not know, {', '.join(unknown)}: kept")
        if first := known.seeds.setdefault(group, {}).get(seed):
            _warn(f"{where} repeats the trial of line {first}: the earlier one counts")
            continue
        if is_complete:
            known.seeds[group][seed] = number
        else:
            known.incomplete = group, seed
        yield trial


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Changes whenever a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _checksum(file: BinaryIO, size: int) -> int | None:
    """The CRC-32 of the first bytes; None if there are fewer."""
    checksum = 0
    while size and (block := file.read(min(size, 2**20))):
        checksum = zlib.crc32(block, checksum)
        size -= len(block)
    return None if size else checksum


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


_decode = json.JSONDecoder(parse_constant=_refuse).decode  # made once, unlike by json.loads


def parse_line(line: bytes) -> tuple[dict, tuple]:
    """The trial of a line, with today's names, and its identity. Raises ValueError, which says what the line is."""
    try:
        trial = _decode(line.removeprefix(codecs.BOM_UTF8).decode())
    except ValueError as error:  # no JSON, or bytes that are no text
        raise ValueError(f"torn or no JSON ({error})") from error
    except RecursionError:
        raise ValueError("no trial, it is nested too deeply") from None
    if not isinstance(trial, dict):
        raise ValueError("no trial, it is no JSON object")
    trial = modernize(trial)
    if missing := [key for key in KEYS if key not in trial]:
        raise ValueError(f"no trial, missing keys: {', '.join(missing)}")
    try:
        identity = _identity(trial)
        hash(identity)
    except (AttributeError, TypeError):
        raise ValueError(
            "no trial, its variant, network, split, seed, data, recipe or precision is not of the right kind"
        ) from None
    return trial, identity


def _identity(trial: dict) -> tuple[tuple, int]:
    """Two lines with the same identity are one trial twice. The same trial in two precisions stays two.

    The seed is apart, so that all seeds of a recipe can share the rest.
    """
    return (trial["precision"], *trial_key(trial | {"seed": None})), trial["seed"]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Trials have no reference cycles; looking for them again and again takes a fifth of the time to read a ledger."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _warn(message: str) -> None:
    warnings.warn(message, LedgerWarning, stacklevel=4)
