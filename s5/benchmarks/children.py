"""What the fault checks run in child processes. A fork server imports this once, so that every start is quick.

The commands are `main.py` and `sweep` as they are, on 300 images. Only the clock of an epoch stands still:
its seconds are in the files, which could not be equal byte for byte otherwise.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import runpy
import shutil
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pandas  # noqa: F401  imported by a sweep's summary
import torch
import torch._dynamo  # imported by optimisers at their first use, which takes seconds
from analysis import inspection, plots, statistics, style  # noqa: F401  imported by main.py when they are needed

import helpers
from s5.benchmarks import fault_checks
from s5.experiments import sweep, trial
from s5.training import mnist
from s5.training.files import ROOT

torch.set_num_threads(1)
FEW = mnist.load_sample().subset(300, 50)
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE, CLONE_NEWNS = 1, 32, 16384, 1 << 18, 0x20000  # of Linux's headers
MAX_LOG = 2**14  # bytes
LIBC = ctypes.CDLL(None, use_errno=True)


def call(command: str, arguments: list[str], log: Path, started: Connection, clock_runs_back: bool = False) -> None:
    """Run a command line in this process, which ends with its exit code; its output is appended to `log`."""
    _prepare(log)
    if clock_runs_back:
        jumps = itertools.count()
        now, chance = time.time(), random.Random(0)
        time.time = lambda: now - 3600 * next(jumps) + chance.uniform(-60, 60)  # an hour at every look
    started.send(True)
    sys.exit(_run(command, arguments))


def on_a_full_disk(command: str, first: list[str], again: list[str], folder: Path, size: int, log: Path) -> None:
    """Run a command with room for `size` bytes in `folder`, then `again` with more; keep what is there in `folder`."""
    _prepare(log)
    inside = folder / "disk"
    if mounted := _mount(inside, size):
        code = _run(command, first)
        fault_checks.check_files(inside)
        _mount_options(inside, 0, f"size={2**26}")
    else:  # a limit of the size of each file
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, MAX_LOG), hard))
        code = _run(command, first)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        fault_checks.check_files(inside)
    _go_on(command, again if any(inside.rglob("checkpoint.pt")) else first, code, inside, folder, mounted)


def on_a_read_only_disk(first: list[str], again: list[str], folder: Path, delay: float, log: Path) -> None:
    """Run main.py while `folder` becomes read-only after `delay` seconds, then again when it is writable."""
    _prepare(log)
    inside = folder / "disk"
    mounted, ended = _mount(inside, 2**26), threading.Event()
    if not mounted and os.geteuid() == 0:  # permissions mean nothing to this user
        sys.exit(fault_checks.IMPOSSIBLE)

    def close() -> None:
        time.sleep(delay)
        while not ended.is_set() and not _set_writable(inside, False, mounted):  # refused while a file is written
            time.sleep(0.0005)

    threading.Thread(target=close, daemon=True).start()
    code = _run("main", first)
    ended.set()
    fault_checks.check_files(inside)
    _set_writable(inside, True, mounted)
    _go_on("main", again if any(inside.rglob("checkpoint.pt")) else first, code, inside, folder, mounted)


def _set_writable(inside: Path, writable: bool, mounted: bool) -> bool:
    if mounted:
        return _mount_options(inside, 0 if writable else MS_RDONLY, "")
    for folder in [inside, *(path for path in inside.rglob("*") if path.is_dir())]:
        folder.chmod(0o755 if writable else 0o555)
    return True


def _go_on(command: str, arguments: list[str], code: int, inside: Path, folder: Path, mounted: bool) -> None:
    if code not in (0, 1):
        sys.exit(f"exit code {code} instead of 1")
    code = 0 if code == 0 else _run(command, arguments)
    shutil.copytree(inside, folder / "kept")  # a mount is visible in this process only
    if not mounted:
        shutil.rmtree(inside)
    sys.exit(code)


def _run(command: str, arguments: list[str]) -> int:
    if command == "sweep":
        if "--ray" in arguments:
            import ray

            ray.cloudpickle.register_pickle_by_value(fault_checks)  # workers have no copy of the benchmarks
        return sweep.main(arguments)
    sys.argv = ["main.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
    except SystemExit as stopped:
        return stopped.code


def _prepare(log: Path) -> None:
    """Write to `log`, with the clock and the data of the checks."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    helpers.time = SimpleNamespace(perf_counter=lambda: 0.0)
    mnist.load_sample = lambda: FEW
    trial.run_trial = fault_checks.stand_in


def _mount(folder: Path, size: int) -> bool:
    """Mount a file system in memory that only this process sees; False if this user may not."""
    folder.mkdir()
    if LIBC.unshare(CLONE_NEWNS) or LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    return not LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode())


def _mount_options(folder: Path, flags: int, options: str) -> bool:
    return not LIBC.mount(b"tmpfs", bytes(folder), b"tmpfs", MS_REMOUNT | flags, options.encode())
