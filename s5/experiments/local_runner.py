"""Runs trials in processes of this machine, several at a time, and records them in a ledger."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from s5.experiments.ledger import append_trial, check_writable
from s5.experiments.trial import Trial

RERUN = "Finished trials are in the ledger: the same command, run again, runs the others only."


def run_locally(trials: list[dict], ledger: str | Path, run: Callable[..., Trial], workers: int = 1) -> int:
    """Call `run(**trial)` for each of `trials` in `workers` processes and append the results to the ledger.

    A trial's "note" is not passed on: it follows the variant in messages, to tell apart two recipes of one. Returns the
    number of failures. A trial that raises is reported and the others continue; so it is with all trials that run when
    a process dies. Raises OSError if the ledger cannot be written, and KeyboardInterrupt on Ctrl-C; no process is left
    running.
    """
    check_writable(ledger)
    waiting, failed = deque(trials), 0
    with deferred_interrupt() as interrupted, tqdm(total=len(trials), unit="trial") as bar:
        while waiting and not interrupted.is_set():
            for trial, future in _run_in_pool(waiting, run, workers, interrupted):
                failed += not record(trial, future.result, ledger)
                bar.update()
    if interrupted.is_set():
        raise KeyboardInterrupt
    return failed


def _run_in_pool(
    waiting: deque[dict], run: Callable[..., Trial], workers: int, interrupted: threading.Event
) -> Iterator[tuple[dict, Future]]:
    """Run trials in new processes until none is waiting or a process dies; yield each one that has ended."""
    context = get_context("spawn")  # torch's threads and CUDA do not survive a fork
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_exit_with_parent, initargs=(worker_end,))
    running: dict[Future, dict] = {}
    is_broken = False
    # Leaving the pool waits for its trials; `parent_end` is closed before that, which ends the workers at once.
    with worker_end, pool, parent_end:
        while (running or (waiting and not is_broken)) and not interrupted.is_set():
            while waiting and not is_broken and len(running) < workers:
                try:
                    with _no_main_module():
                        running[pool.submit(run, **arguments(waiting[0]))] = waiting[0]
                    waiting.popleft()
                except BrokenProcessPool:
                    is_broken = True
            finished, _ = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                is_broken |= isinstance(future.exception(), BrokenProcessPool)
                yield running.pop(future), future


def record(trial: dict, result: Callable[[], Trial], ledger: str | Path) -> bool:
    """Append the result of a trial to the ledger and say so; False, with the reason, if it has failed."""
    try:
        finished = result()
        append_trial(finished, ledger)
    except Exception as error:
        tqdm.write(f"{trial_name(trial)}: FAILED, {describe(error)}")
        return False
    tqdm.write(f"{trial_name(trial)}: {finished.accuracy:.2f}%, {finished.seconds:.0f} s")
    return True


def describe(error: Exception) -> str:
    """An error in a line; one of Ray's is described by its cause, without the logs that follow."""
    if isinstance(error, BrokenProcessPool):
        return "a worker process died (killed, or out of memory?)"
    error = getattr(error, "cause", None) or error
    first, *_ = [*str(error).strip().splitlines(), "no reason given"]
    return f"{type(error).__name__}: {first}"


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Let processes that start meanwhile not run the program's file again, which may be a script without a guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def arguments(trial: dict) -> dict:
    """What a trial's function is called with: all but the note for messages."""
    return {name: value for name, value in trial.items() if name != "note"}


def trial_name(trial: dict) -> str:
    """How messages refer to a trial."""
    variant = trial["variant"] if isinstance(trial["variant"], str) else trial["variant"].name
    return f"{variant}{trial.get('note', '')}, seed {trial['seed']}"


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Make Ctrl-C set the yielded event instead of raising KeyboardInterrupt at an arbitrary moment.

    An exception inside the pool's own locking would leave a lock held, and leaving the pool would hang.
    """
    pressed = threading.Event()
    can_handle = threading.current_thread() is threading.main_thread()
    can_handle = can_handle and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.set()) if can_handle else None
    try:
        yield pressed
    finally:
        if can_handle:
            signal.signal(signal.SIGINT, previous)


def _exit_with_parent(connection: Connection) -> None:
    """The workers' initializer: exit when the parent closes its end of the pipe or dies.

    Otherwise the workers of a killed sweep would continue for hours. Ctrl-C is sent to all processes, but only the
    parent handles it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # tqdm's default is a semaphore, which os._exit would leak

    def watch() -> None:
        wait([connection])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
