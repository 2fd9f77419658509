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
from s5.training.command_line import plural

DIED = "A worker process died (killed, or out of memory?)"
MAX_DEATHS = 5  # of worker processes in succession, after which the trials that are left are not tried
RERUN = "Finished trials are in the ledger: the same command, run again, runs the others only."


def run_locally(trials: list[dict], ledger: str | Path, run: Callable[..., dict], workers: int = 1) -> int:
    """Call `run(**trial)` for each of `trials` in `workers` processes and append the results to the ledger.

    A trial's "note" is not passed on: it follows the variant in messages, to tell apart two recipes of one. A result is
    a line of the ledger or a list of lines. Returns the number of failures. A trial that raises is reported and the
    others continue. If a worker process dies, it is unknown which of the trials that ran at this moment killed it, so
    these are run again at the end, one at a time, and only one whose process dies again has failed. Raises OSError if
    the ledger cannot be written, and KeyboardInterrupt on Ctrl-C; no process is left running.
    """
    check_writable(ledger)
    waiting, suspects = deque(trials), deque()
    failed = deaths = 0  # deaths in succession
    with deferred_interrupt() as interrupted, tqdm(total=len(trials), unit="trial") as bar:

        def report_failure(trial: dict, error: Exception) -> None:
            nonlocal failed
            failed += 1
            tqdm.write(f"{trial_name(trial)}: FAILED, {type(error).__name__}: {error}")

        def record(trial: dict, future: Future) -> None:
            nonlocal deaths
            finished = []
            try:
                result = future.result()
                finished = result if isinstance(result, list) else [result]
            except BrokenProcessPool:
                raise
            except Exception as error:
                report_failure(trial, error)
            for line in finished:  # each for itself: one that is refused must not take the others with it
                one = trial | {"seed": line["seed"]}
                try:
                    append_trial(line, ledger)
                except (OSError, ValueError) as error:
                    report_failure(one, error)
                else:
                    tqdm.write(f"{trial_name(one)}: {line['accuracy']:.2f}%, {line['seconds']:.0f} s")
            deaths = 0
            bar.update()

        while waiting and deaths < MAX_DEATHS and not interrupted.is_set():
            if lost := _run_in_pool(waiting, run, workers, record, interrupted):
                deaths += 1
                suspects += lost
                _report(f"{DIED}. To be run again, alone: {', '.join(map(trial_name, lost))}")
        while suspects and deaths < MAX_DEATHS and not interrupted.is_set():
            for trial in _run_in_pool(suspects, run, 1, record, interrupted):
                deaths += 1
                failed += 1
                _report(f"{trial_name(trial)}: FAILED. {DIED}")
                bar.update()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if not_done := len(waiting) + len(suspects):
        _report(f"{DIED}, {deaths} times in succession: {plural(not_done, 'trial')} not done. {RERUN}")
    return failed + not_done


def _run_in_pool(
    waiting: deque[dict],
    run: Callable[..., dict],
    workers: int,
    record: Callable[[dict, Future], None],
    interrupted: threading.Event,
) -> list[dict]:
    """Run the waiting trials until none is left or a process dies; return those that were running when it died.

    `record` takes each finished trial and raises BrokenProcessPool if its process died.
    """
    context = get_context("spawn")  # torch's threads and CUDA do not survive a fork
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_exit_with_parent, initargs=(worker_end,))
    running: dict[Future, dict] = {}
    lost: list[dict] = []
    # Leaving the pool waits for its trials; `parent_end` is closed before that, which ends the workers at once.
    with worker_end, pool, parent_end:
        while (running or (waiting and not lost)) and not interrupted.is_set():
            while waiting and not lost and len(running) < workers:
                trial = waiting.popleft()
                try:
                    with _no_main_module():
                        running[pool.submit(run, **arguments(trial))] = trial
                except BrokenProcessPool:
                    lost.append(trial)
            finished, _ = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                trial = running.pop(future)
                try:
                    record(trial, future)
                except BrokenProcessPool:
                    lost.append(trial)
    return lost


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Let processes that start meanwhile not run the program's file again, which may be a script without a guard.

    They need nothing of it: what they call is in a module, and a network of one's own is text.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _report(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def arguments(trial: dict) -> dict:
    """What a trial's function is called with: all but the note for messages."""
    return {name: value for name, value in trial.items() if name != "note"}


def trial_name(trial: dict) -> str:
    """How messages refer to a trial, or to several with `seeds`."""
    seeds = f"seed {trial['seed']}" if "seed" in trial else f"{len(trial['seeds'])} seeds at once"
    return f"{variant_name(trial)}{trial.get('note', '')}, {seeds}"


def variant_name(trial: dict) -> str:
    """The name of a trial's variant, which may be a `Source`."""
    return trial["variant"] if isinstance(trial["variant"], str) else trial["variant"].name


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
