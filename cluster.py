"""A sweep's trials on a Ray cluster: from the processes of this machine to many hosts, with the same results.

Needs Ray: `pip install -e ".[sweep]"`. The code travels with the trials, the data lies in Ray's object store once, and
this process alone writes the ledger, so other hosts need neither a checkout nor a shared disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from ledger import COMMIT, append_line, append_trial, current_commit

REPO = Path(__file__).parent
POLL = 0.3  # seconds
TOKEN = "One that asks for a token wants RAY_AUTH_MODE=token here, and the token: docs.ray.io/en/latest/ray-security"


class ClusterError(RuntimeError):
    """There is no Ray, or no cluster at the address."""


def run_on_ray(
    trials: list[dict],
    data,
    ledger: str | Path,
    address: str = "auto",
    workers: int | None = None,
    gpus: float = 0,
    retries: int = 2,
    limit: float | None = None,
    run: Callable[..., dict] | None = None,
    install: bool = True,
) -> int:
    """Call `run(data=data, **trial)` for each of `trials` on a Ray cluster, results into the ledger.

    Returns how many failed. `address` is a cluster's; "auto" is the one that this machine belongs to, else one that
    is started here and ends with the sweep. Each trial takes a CPU and `gpus`, which may be a fraction; `workers`
    is the most at a time, None: as many as the cluster has room for. One that raises, or whose worker or node dies,
    runs out of memory or takes longer than `limit` seconds, is tried `retries` times more; then it is recorded, with
    its reason, in the file of `failures_path`, and the rest goes on.
    Unless not `install`, hosts get this project's requirements. Raises ClusterError, and KeyboardInterrupt on Ctrl-C.
    """
    from tqdm import tqdm

    from sweep import noted_interrupt, prepare_ledger, run_trial

    prepare_ledger(ledger)
    failed = 0
    progress = tqdm(total=len(trials), unit="trial")
    with noted_interrupt() as interrupted, progress as bar, connected(address, install) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        clock = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)(_Clock).remote()
        stored = ray.put(data)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_one_trial)
        waiting = deque((trial, 1) for trial in trials)
        running: dict = {}
        best = 0.0
        while (waiting or running) and not interrupted.is_set():
            while waiting and (workers is None or len(running) < workers):
                trial, attempt = waiting.popleft()
                name = f"{trial['variant']}, seed {trial['seed']}"
                key = f"{name}, attempt {attempt}"
                running[task.remote(run or run_trial, trial, stored, clock, key)] = (trial, attempt, name, key)
            finished, _ = ray.wait(list(running), num_returns=len(running), timeout=POLL)
            started = _ask(ray, clock)
            late = {
                reference
                for reference, (*_, key) in running.items()
                if limit and reference not in finished and time.time() - started.get(key, time.time()) > limit
            }
            for reference in late:
                ray.cancel(reference, force=True)
            for reference in [*finished, *late]:
                trial, attempt, name, key = running.pop(reference)
                try:
                    if reference in late:
                        raise TimeoutError(f"longer than {limit:g} seconds")
                    result = ray.get(reference)
                    append_trial(result, ledger)
                except Exception as error:
                    reason = describe_failure(error)
                    if attempt <= retries:
                        tqdm.write(f"{name}: attempt {attempt} failed, {reason}; trying again")
                        waiting.append((trial, attempt + 1))
                        continue
                    failed += 1
                    append_failure(trial, attempt, reason, ledger)
                    tqdm.write(f"{name}: FAILED after {attempt} attempts, {reason}")
                else:
                    best = max(best, result["accuracy"])
                    tqdm.write(f"{name}: {result['accuracy']:.2f}%, {result['seconds']:.0f} s")
                bar.update()
            count = sum(key in started for *_, key in running.values())
            bar.set_postfix_str(f"{count} running, {failed} failed, best {best:.2f}%")
        if interrupted.is_set():
            for reference in running:
                ray.cancel(reference, force=True)
            raise KeyboardInterrupt
    return failed


class _Clock:
    """Knows when each trial was started, wherever it runs."""

    def __init__(self):
        self.started: dict[str, float] = {}

    def start(self, key: str) -> None:
        self.started.setdefault(key, time.time())

    def all(self) -> dict[str, float]:
        return self.started


def _one_trial(run: Callable[..., dict], trial: dict, data, clock, key: str) -> dict:
    """What a worker does."""
    clock.start.remote(key)
    return run(data=data, **trial)


def _ask(ray, clock) -> dict[str, float]:
    """When the trials were started; nothing while the clock cannot be reached. ClusterError where it never will be."""
    try:
        return ray.get(clock.all.remote(), timeout=5)
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise ClusterError(f"a host cannot be prepared for this project, {describe_failure(error)}") from error
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return {}


@contextmanager
def connected(address: str, install: bool = True) -> Iterator:
    """Ray, connected to the cluster; code and settings travel with the trials. What was started here ends here."""
    try:
        import ray
    except ImportError:
        raise ClusterError('Ray is not installed: pip install -e ".[sweep]"') from None
    if address not in ("auto", "local"):
        _knock(address)
    variables = {name: os.environ[name] for name in ("MNIST_ROOT", "MNIST_SMOKE") if name in os.environ}
    variables |= {"TQDM_DISABLE": "1", COMMIT: current_commit()}
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory() as folder:
        for module in REPO.glob("*.py"):
            shutil.copy(module, folder)
        here = {"working_dir": folder, "env_vars": variables}
        there = dict(here)
        if install and address != "local":
            there["pip"] = {"packages": requirements(), "pip_check": False}
        try:
            ray.init(address, runtime_env=there, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            if address != "auto" or not isinstance(error, ConnectionError):
                raise ClusterError(f"no Ray cluster at {address!r} lets us in: {error}. {TOKEN}") from error
            ray.init("local", runtime_env=here, include_dashboard=False, **options)
        try:
            yield ray
        finally:
            ray.shutdown()


def _knock(address: str) -> None:
    """ClusterError where nobody listens at the address: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ClusterError(f"a Ray cluster's address is auto, local, HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}") from error


def requirements() -> list[str]:
    """What a host needs, pinned to what is installed here."""
    names = [line.split(">=")[0] for line in (REPO / "requirements.txt").read_text().split()]
    return [f"{name}=={version(name).split('+')[0]}" for name in names if name != "jupyter"]


def failures_path(ledger: str | Path) -> Path:
    """Where a sweep records the trials that failed for good: beside its ledger."""
    return Path(ledger).with_suffix(".failures.jsonl")


def append_failure(trial: dict, attempts: int, reason: str, ledger: str | Path) -> None:
    """Record one trial that failed: its arguments, the number of attempts, the last reason, and when."""
    path = failures_path(ledger)
    line = {**trial, "attempts": attempts, "reason": reason}
    line["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with FileLock(path.with_suffix(".lock")):
        append_line(json.dumps(line).encode() + b"\n", path)


def describe_failure(error: Exception) -> str:
    """Why a trial failed, in one line."""
    kinds = {
        "OutOfMemoryError": "it ran out of memory",
        "NodeDiedError": "its node died",
        "WorkerCrashedError": "its worker died",
        "LocalRayletDiedError": "its node died",
        "TaskCancelledError": "it was cancelled",
        "ObjectLostError": "its node died",
        "OwnerDiedError": "its node died",
    }
    if (kind := type(error).__name__) in kinds:
        return kinds[kind]
    cause = getattr(error, "cause", None) or error
    *_, last = ["no reason given", *str(cause).strip().splitlines()]
    return f"{type(cause).__name__}: {last}"
