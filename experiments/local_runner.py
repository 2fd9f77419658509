"""Trials in processes of this machine, several at a time, into a ledger."""

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
    """Call `run(**trial)` for each of `trials` in `workers` processes, results into the ledger; return the failures.

    A trial that raises is reported and the others continue. If a worker process dies, all unfinished trials count as
    failed, since it is unknown which of them killed it. Raises KeyboardInterrupt on Ctrl-C, with no process left.
    """
    check_writable(ledger)
    failed = lost = 0
    context = get_context("spawn")  # torch's threads and CUDA do not survive a fork
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_exit_with_parent, initargs=(worker_end,))
    # Leaving the pool waits for everything queued, so `parent_end` is closed first: that ends the workers at once.
    with deferred_interrupt() as interrupted, pool, parent_end, tqdm(total=len(trials), unit="trial") as bar:
        names = {pool.submit(run, **trial): f"{trial['variant']}, seed {trial['seed']}" for trial in trials}
        running = set(names)
        while running and not interrupted.is_set():
            finished, running = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                try:
                    trial = future.result()
                    append_trial(trial, ledger)
                except BrokenProcessPool:
                    lost += 1
                except Exception as error:
                    failed += 1
                    tqdm.write(f"{names[future]}: FAILED, {type(error).__name__}: {error}")
                else:
                    tqdm.write(f"{names[future]}: {trial['accuracy']:.2f}%, {trial['seconds']:.0f} s")
                bar.update()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if lost:
        print(f"A worker process died (killed, or out of memory?): {lost} trials not done. {RERUN}", file=sys.stderr)
    return failed + lost


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of raising KeyboardInterrupt at an arbitrary place.

    Raised inside the pool's own locking it would leave a lock taken, and leaving the pool would hang.
    """
    pressed = threading.Event()
    can_handle = threading.current_thread() is threading.main_thread()
    can_handle = can_handle and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set()) if can_handle else None
    try:
        yield pressed
    finally:
        if can_handle:
            signal.signal(signal.SIGINT, before)


def _exit_with_parent(connection: Connection) -> None:
    """The workers' initializer: exit when the parent closes its end of the pipe or is killed.

    Otherwise the workers of a killed sweep would train on for hours. Ctrl-C reaches all processes; only the parent
    reacts to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore, which os._exit would leave behind

    def watch() -> None:
        wait([connection])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
