"""Runs trials in processes of this machine, several at a time, and records them in a ledger."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tqdm import tqdm

from s5.experiments.claims import find_variant
from s5.experiments.ledger import append_trial, check_writable
from s5.experiments.trial import Trial
from s5.experiments.variants import changes_in_words
from s5.training.checks import first_line

RERUN = "Finished trials are in the ledger: the same command, run again, runs the others only."


def run_locally(trials: list[dict], ledger: str | Path, run: Callable[..., Trial], workers: int = 1) -> int:
    """Call `run(**trial)` for each of `trials` in `workers` processes and append the results to the ledger.

    Returns the number of failures. A trial that raises is reported and the others continue; so it is with all trials
    that run when a process dies. Raises OSError if the ledger cannot be written, and KeyboardInterrupt on Ctrl-C; no
    process is left running. A script that calls this needs `if __name__ == "__main__":`, as for any Python processes.
    """
    check_writable(ledger)
    waiting, failed = deque(trials), 0
    with tqdm(total=len(trials), unit="trial", disable=None) as bar:  # in a terminal only
        while waiting:  # once, and again after each death of a process, which breaks its pool
            with _pool(workers) as pool:
                running, is_broken = {}, False
                while running or (waiting and not is_broken):
                    while waiting and not is_broken and len(running) < workers:
                        try:
                            future = pool.submit(run, **waiting[0])
                        except BrokenProcessPool:  # since the last look
                            is_broken = True
                        else:
                            running[future] = waiting.popleft()
                    for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                        is_broken |= isinstance(future.exception(), BrokenProcessPool)
                        failed += not record(running.pop(future), future.result, ledger)
                        bar.update()
    return failed


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """New processes, which end at once when an error, or Ctrl-C, leaves this context, or when this process dies."""
    context = get_context("spawn")  # torch's threads and CUDA do not survive a fork
    worker_end, parent_end = context.Pipe(duplex=False)
    # Leaving the pool waits for its trials. `parent_end` is closed before that, which ends the processes.
    with worker_end, ProcessPoolExecutor(workers, context, _exit_with_parent, (worker_end,)) as pool, parent_end:
        yield pool


def _exit_with_parent(connection: Connection) -> None:
    """Let a worker exit when the parent closes its end of the pipe or dies: else it would continue for hours."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all processes, and the parent handles it
    tqdm.set_lock(threading.RLock())  # tqdm's default is a semaphore, which os._exit would leak

    def watch() -> None:
        wait([connection])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
    return f"{type(error).__name__}: {first_line(error)}"


def trial_name(trial: dict) -> str:
    """How messages refer to a trial: by its variant, what is changed of its recipe, and the seed."""
    name = trial["variant"] if isinstance(trial["variant"], str) else trial["variant"].name
    changed = ""
    if trial.get("changes"):
        recipe = find_variant(trial["variant"]).recipe.as_dict()
        changed = changes_in_words(recipe | trial["changes"], recipe)
    return ", ".join(filter(None, [name, changed, f"seed {trial['seed']}"]))
