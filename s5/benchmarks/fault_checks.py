"""Faults in the middle of a run or a sweep: each function tries one at random moments, and raises FaultError.

No torch here: the workers of the sweeps import this file. What runs in child processes is in children.py.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

from s5.experiments.ledger import LedgerWarning, read_ledger
from s5.training.recipe import Recipe

FILES = ("checkpoint.pt", "weights.safetensors", "history.json", "curves.png")
MAIN = ["--smoke", "--epochs", "8", "--batch-size", "50"]
SEEDS = 8
SWEEP = ["--sample", "--device", "cpu", "--variants", "s5", "--seeds", f"0-{SEEDS - 1}", "--epochs", "1"]
PATIENCE = 600  # seconds for what takes a few: only a process that hangs needs more
BUSY = "while True: pass"
IMPOSSIBLE = 77  # exit code of a child process: this fault cannot be made here


class FaultError(AssertionError):
    """A fault that was not survived."""


class ImpossibleError(RuntimeError):
    """A fault that cannot be made on this machine by this user."""


@dataclass
class Harness:
    """What the checks need: a folder, the processes that run in it, and the files of runs without any fault."""

    folder: Path
    processes: object  # multiprocessing's context of the fork server
    chance: random.Random
    run: dict[str, bytes]  # of main.py
    ledger: bytes
    seconds: dict[str, float]  # that "main" and "sweep" took

    def new(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def start(self, command: str, arguments: list, log: Path, **options):
        """Start a command in a child process; return the process when the command begins."""
        from s5.benchmarks import children

        here, there = self.processes.Pipe(duplex=False)
        arguments = (command, [str(each) for each in arguments], log, there)
        process = self.processes.Process(target=children.call, args=arguments, kwargs=options)
        process.start()
        with here, there:
            wait([here, process.sentinel], PATIENCE)  # or until it ends
            if not here.poll():
                process.kill()
                raise FaultError("a process does not start")
        return process

    def kill(self, process, command: str, folder: Path) -> bool:
        """Kill a command's process at a random moment and check its files; False if it ends before that."""
        process.join(self.chance.uniform(0, 1.2 * self.seconds[command]))
        if not process.is_alive():
            return False
        process.kill()
        process.join()
        check_files(folder)
        return True

    def finish(self, command: str, arguments: list, log: Path, **options) -> None:
        """Run a command to its end. Raises FaultError if it fails."""
        end(self.start(command, arguments, log, **options), log)

    def check_run(self, folder: Path, deleted: str | None = None) -> None:
        """Raise FaultError unless a run's folder holds what a run without any fault leaves, but for a deleted file."""
        found = {file.name: file.read_bytes() for file in folder.iterdir()}
        if found.keys() != self.run.keys() - {deleted}:
            raise FaultError(f"{sorted(found)} instead of {sorted(self.run)}")
        if different := [name for name, content in found.items() if content != self.run[name]]:
            raise FaultError(f"other content: {', '.join(different)}")

    def check_ledger(self, file: Path, in_order: bool) -> None:
        """The same for a sweep's ledger; two sweeps at once may write its lines in another order."""
        found, expected = file.read_bytes(), self.ledger
        if found != expected and (in_order or sorted(found.splitlines()) != sorted(expected.splitlines())):
            raise FaultError("another ledger")


@contextmanager
def prepared(seed: int = 0) -> Iterator[Harness]:
    """Make the folder, start the fork server, and run the commands without any fault."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["s5.benchmarks.children"])
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        harness = Harness(Path(name), context, random.Random(seed), {}, b"", {})
        for command, finish in (("main", _main), ("sweep", _sweep)):
            finish(harness)  # the first one waits for the fork server and the kernels
            start = time.monotonic()
            output = finish(harness)
            harness.seconds[command] = time.monotonic() - start
            if command == "main":
                harness.run = {file.name: file.read_bytes() for file in output.iterdir()}
            else:
                harness.ledger = output.read_bytes()
        yield harness


def _main(harness: Harness, **options) -> Path:
    """The folder of a finished run of main.py."""
    folder = harness.new()
    harness.finish("main", [*MAIN, "--output", folder / "run"], folder / "log", **options)
    return folder / "run"


def _sweep(harness: Harness, *runner: str, **options) -> Path:
    """The ledger of a finished sweep; `runner` are the arguments that say where the trials run."""
    folder = harness.new()
    arguments = [*SWEEP, *(runner or ("--workers", "1")), "--ledger", folder / "ledger.jsonl"]
    harness.finish("sweep", arguments, folder / "log", **options)
    return folder / "ledger.jsonl"


# --- The faults -------------------------------------------------------------------------------------------------------


def repeated_runs(harness: Harness, rounds: int) -> None:
    """No fault: two runs of the same command give the same files."""
    for _ in range(rounds):
        harness.check_run(_main(harness))
        harness.check_ledger(_sweep(harness), in_order=True)


def killed_runs(harness: Harness, rounds: int) -> None:
    """SIGKILL at a random moment of training or saving; the run is resumed and killed until it is complete."""
    kills = 0
    while kills < rounds:
        folder = harness.new()
        run, log = folder / "run", folder / "log"
        while True:
            arguments = ["--resume", run] if (run / FILES[0]).exists() else [*MAIN, "--output", run]
            process = harness.start("main", arguments, log)
            if kills < rounds and harness.kill(process, "main", folder):
                kills += 1
            else:
                end(process, log)
                break
        harness.check_run(run)


def killed_sweeps(harness: Harness, rounds: int, together: int = 1) -> None:
    """SIGKILL at a random moment of a sweep, or of two that share a ledger."""
    kills = 0
    while kills < rounds:
        folder = harness.new()
        ledger, log = folder / "ledger.jsonl", folder / "log"
        arguments = [*SWEEP, "--workers", "1", "--ledger", ledger]
        complete = False
        while not complete:
            sweeps = [harness.start("sweep", arguments, log) for _ in range(together)]
            for process in sweeps:
                if kills < rounds and harness.kill(process, "sweep", folder):
                    kills += 1
                else:
                    end(process, log)
                    complete = True
        harness.check_ledger(ledger, in_order=together == 1)


def killed_sweeps_that_share_a_ledger(harness: Harness, rounds: int) -> None:
    """SIGKILL at a random moment of one of two sweeps that share a ledger."""
    killed_sweeps(harness, rounds, together=2)


def full_disk(harness: Harness, rounds: int) -> None:
    """A disk with room for a part of the files, in all or of each; there is room when the run is resumed."""
    whole = sum(map(len, harness.run.values()))
    for _ in range(rounds):
        run = Path("disk", "run")
        size = harness.chance.randrange(4096, whole)
        kept = _on_disk(harness, "on_a_full_disk", "main", [*MAIN, "--output", run], ["--resume", run], size)
        harness.check_run(kept / "run")


def full_disk_under_a_ledger(harness: Harness, rounds: int) -> None:
    """The same for the ledger of a sweep."""
    for _ in range(rounds):
        size = harness.chance.randrange(1, len(harness.ledger))
        arguments = [*SWEEP, "--workers", "1", "--ledger", Path("disk", "ledger.jsonl")]
        kept = _on_disk(harness, "on_a_full_disk", "sweep", arguments, arguments, size)
        harness.check_ledger(kept / "ledger.jsonl", in_order=False)


def read_only_disk(harness: Harness, rounds: int) -> None:
    """A folder that becomes read-only at a random moment."""
    for _ in range(rounds):
        run, delay = Path("disk", "run"), harness.chance.uniform(0, harness.seconds["main"])
        kept = _on_disk(harness, "on_a_read_only_disk", [*MAIN, "--output", run], ["--resume", run], delay)
        harness.check_run(kept / "run")


def deleted_checkpoint(harness: Harness, rounds: int) -> None:
    """The checkpoint is deleted at a random moment of the run, which writes the next one."""
    for _ in range(rounds):
        folder = harness.new()
        run, log = folder / "run", folder / "log"
        process = harness.start("main", [*MAIN, "--output", run], log)
        while process.is_alive() and not (run / FILES[0]).exists():
            time.sleep(0.001)
        process.join(harness.chance.uniform(0, 0.5 * harness.seconds["main"]))
        (run / FILES[0]).unlink()
        end(process, log)
        harness.check_run(run, deleted=None if (run / FILES[0]).exists() else FILES[0])  # it was the last one


def clock_set_back(harness: Harness, rounds: int) -> None:
    """The clock is an hour earlier every time that it is read."""
    for _ in range(rounds):
        harness.check_run(_main(harness, clock_runs_back=True))
        harness.check_ledger(_sweep(harness, clock_runs_back=True), in_order=True)


def busy_cores(harness: Harness, rounds: int) -> None:
    """Two busy processes for every core."""
    for _ in range(rounds):
        with _busy_processes():
            harness.check_run(_main(harness))
            harness.check_ledger(_sweep(harness), in_order=True)


def busy_cores_under_ray(harness: Harness, rounds: int) -> None:
    """The same, while Ray starts on this machine and runs a sweep."""
    if find_spec("ray") is None:
        raise ImpossibleError("Ray is not installed")
    for _ in range(rounds):
        with _busy_processes():
            harness.check_ledger(_sweep(harness, "--ray", "local"), in_order=False)


# --- What they share --------------------------------------------------------------------------------------------------


@contextmanager
def _busy_processes() -> Iterator[None]:
    """Two for every core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * cores)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _on_disk(harness: Harness, function: str, *arguments) -> Path:
    """Call a function of children.py for a disk of its own; return the folder with what was kept of it."""
    from s5.benchmarks import children

    folder = harness.new()

    def placed(value):
        if isinstance(value, list):
            return [placed(each) for each in value]
        return str(folder / value) if isinstance(value, Path) else value

    *before, last = map(placed, arguments)
    arguments = (*before, folder, last, folder / "log")
    process = harness.processes.Process(target=getattr(children, function), args=arguments)
    process.start()
    end(process, folder / "log")
    return folder / "kept"


def end(process, log: Path) -> None:
    """Wait for a process. Raises FaultError if it hangs or fails, or if a traceback was printed."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
        raise FaultError("a process hangs")
    printed = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if process.exitcode == IMPOSSIBLE:
        raise ImpossibleError("a folder cannot be made read-only for this user")
    if process.exitcode != 0 or "Traceback" in printed:
        raise FaultError(f"exit code {process.exitcode}:\n{printed[-2000:]}")


def check_files(folder: Path) -> None:
    """Raise FaultError unless every file is whole, temporary files of killed processes aside."""
    from PIL import Image
    from safetensors.torch import load_file

    from s5.training.checkpoint import load_checkpoint

    readers = {
        "checkpoint.pt": load_checkpoint,
        "weights.safetensors": load_file,
        "history.json": lambda file: json.loads(file.read_text(encoding="utf-8")),
        "curves.png": lambda file: Image.open(file).load(),
        "ledger.jsonl": _read_whole,
    }
    for file in folder.rglob("*"):
        if file.name in readers:
            try:
                readers[file.name](file)
            except Exception as error:
                raise FaultError(f"{file.name} is damaged: {error}") from error
        elif file.is_file() and not file.name.startswith((".", "log", "ledger.lock")):
            raise FaultError(f"an unknown file: {file.name}")


def _read_whole(ledger: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LedgerWarning)  # of a line that is torn or repeated
        read_ledger(ledger)


def stand_in(variant: str, seed: int, changes: dict, **_) -> dict:
    """A replacement for `run_trial` that takes a moment; without torch, so that a worker starts quickly."""
    time.sleep(0.05)
    epoch = {"epoch": 1, "learning_rate": 0.0, "train_loss": 1.0, "train_accuracy": 90.0}
    epoch |= {"eval_loss": 1.0, "eval_accuracy": 97.0, "eval_correct": 97, "seconds": 1.0}
    line = {"variant": variant, "network": "Net", "source": "", "recipe": Recipe(**changes).as_dict(), "seed": seed}
    line |= {"split": "validation", "epochs": 1, "parameters": 18214, "macs": 1949346, "accuracy": 97.0}
    line |= {"best_accuracy": 97.0, "curve": [epoch], "mistakes": {"7": 3, "8": 3, "9": 3}, "seconds": 1.0}
    line |= {"device": "cpu: x86_64, 1 thread", "precision": "float32", "commit": "unknown", "data": "sample"}
    return line | {"versions": {"python": "3.10.0", "torch": "2.4.0"}, "time": "2025-01-01T00:00:00+00:00"}
