"""Runs trials in processes of this machine, several at a time, and records them in a ledger."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from experiments.ledger import append_trial, check_writable

RERUN = "Finished trials are in the ledger; run the same command again for the others."


def run_locally(trials: list[dict], ledger: str | Path, run: Callable[..., dict], workers: int = 1) -> int:
    """Call `run(**trial)` for each of `trials` in `workers` processes and append the results to the ledger.

    A result is a line of the ledger or a list of lines. Returns the number of failures. A trial that raises is reported
    and the others continue. If a worker process dies, all unfinished trials count as failed, since it is unknown which
    of them killed it. Raises OSError if the ledger cannot be written, and KeyboardInterrupt on Ctrl-C; no process is
    left running.
    """
    check_writable(ledger)
    failed = lost = 0
    context = get_context("spawn")  # torch's threads and CUDA do not survive a fork
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_exit_with_parent, initargs=(worker_end,))
    # Leaving the pool waits for all queued trials; `parent_end` is closed before that, which ends the workers at once.
    with deferred_interrupt() as interrupted, pool, parent_end, tqdm(total=len(trials), unit="trial") as bar:
        names = {pool.submit(run, **trial): trial_name(trial) for trial in trials}
        running = set(names)
        while running and not interrupted.is_set():
            finished, running = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                try:
                    result = future.result()
                    finished_trials = result if isinstance(result, list) else [result]
                    for trial in finished_trials:
                        append_trial(trial, ledger)
                except BrokenProcessPool:
                    lost += 1
                except Exception as error:
                    failed += 1
                    tqdm.write(f"{names[future]}: FAILED, {type(error).__name__}: {error}")
                else:
                    for trial in finished_trials:
                        tqdm.write(f"{trial_name(trial)}: {trial['accuracy']:.2f}%, {trial['seconds']:.0f} s")
                bar.update()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if lost:
        message = f"A worker process died (killed, or out of memory?): {plural(lost, 'trial')} not done. {RERUN}"
        print(message, file=sys.stderr)
    return failed + lost


def trial_name(trial: dict) -> str:
    """How messages refer to a trial, or to several with `seeds`."""
    seeds = f"seed {trial['seed']}" if "seed" in trial else f"{len(trial['seeds'])} seeds at once"
    return f"{variant_name(trial)}, {seeds}"


def variant_name(trial: dict) -> str:
    """The name of a trial's variant, which may be a `Source`."""
    return trial["variant"] if isinstance(trial["variant"], str) else trial["variant"].name


def plural(number: int, noun: str) -> str:
    """ "1 trial", "2 trials" """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
