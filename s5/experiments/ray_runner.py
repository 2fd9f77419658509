"""Runs trials on a Ray cluster and records them in a ledger on this machine.

Requires Ray: `pip install -e ".[sweep]"`. The code is sent with the trials, the data is put into Ray's object store
once, and only this process writes the ledger, so other hosts need neither a checkout nor a shared disk.
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
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock
from tqdm import tqdm

from s5.experiments.ledger import append_line, append_trial, check_writable
from s5.experiments.local_runner import arguments, deferred_interrupt, trial_name, variant_name
from s5.training.command_line import plural
from s5.training.files import ROOT

if TYPE_CHECKING:  # it imports torch
    from s5.training.mnist import MnistData

POLL = 0.3  # seconds
PACKAGES = ("s5",)  # that a worker imports, besides helpers.py
TOKEN = (
    "A cluster with token authentication requires RAY_AUTH_MODE=token and the token: docs.ray.io/en/latest/ray-security"
)


class ClusterError(RuntimeError):
    """Ray is not installed, or there is no usable cluster at the address."""


class Attempt(NamedTuple):
    """A trial and how often it has been started, counting this time."""

    trial: dict
    number: int

    def key(self) -> str:
        """The attempt's name in the record of start times."""
        return f"{trial_name(self.trial)}, {self.trial.get('changes')}, attempt {self.number}"


def run_on_ray(
    trials: list[dict],
    data: MnistData,
    ledger: str | Path,
    run: Callable[..., dict],
    address: str = "auto",
    workers: int | None = None,
    gpus: float = 0,
    retries: int = 2,
    limit: float | None = None,
    install: bool = True,
) -> int:
    """Call `run(data=data, **trial)` for each of `trials` on a Ray cluster and append the results to the ledger.

    Returns the number of failures. `address` is a cluster's; "auto" is the one this machine belongs to, or else one
    that is started here and stopped at the end. Each trial takes one CPU and `gpus` GPUs (may be a fraction). At most
    `workers` trials run at a time; None: as many as the cluster has resources for. A trial that raises, takes longer
    than `limit` seconds, runs out of memory, or loses its worker or node is retried `retries` times. After that it is
    recorded in `failures_path(ledger)` with the reason, and the others continue. With `install`, hosts install this
    project's requirements.

    Raises ClusterError, OSError if the ledger cannot be written, and KeyboardInterrupt on Ctrl-C.
    """
    check_writable(ledger)
    failed = 0
    progress = tqdm(total=len(trials), unit="trial")
    with deferred_interrupt() as interrupted, progress as bar, connected(address, install) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": this_node, "max_restarts": -1, "max_task_retries": -1}
        clock = ray.remote(**options)(_Clock).remote()
        stored = ray.put(data)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run_trial)
        waiting = deque(Attempt(trial, 1) for trial in trials)
        running: dict = {}  # Ray's reference to the result → the attempt
        best = 0.0
        while (waiting or running) and not interrupted.is_set():
            while waiting and (workers is None or len(running) < workers):
                attempt = waiting.popleft()
                running[task.remote(run, attempt.trial, stored, clock, attempt.key())] = attempt
            finished, _ = ray.wait(list(running), num_returns=len(running), timeout=POLL)
            started = _start_times(ray, clock)
            late = {
                reference
                for reference, attempt in running.items()
                if limit is not None
                and reference not in finished
                and time.time() - started.get(attempt.key(), time.time()) > limit
            }
            for reference in late:
                ray.cancel(reference, force=True)
            for reference in [*finished, *late]:
                attempt = running.pop(reference)
                trial, name, number = attempt.trial, trial_name(attempt.trial), attempt.number
                try:
                    if reference in late:
                        raise TimeoutError(f"longer than {limit:g} seconds")
                    result = ray.get(reference)
                    append_trial(result, ledger)
                except Exception as error:
                    reason = describe_failure(error)
                    if number <= retries:
                        tqdm.write(f"{name}: attempt {number} failed, {reason}; trying again")
                        waiting.append(Attempt(trial, number + 1))
                        continue
                    failed += 1
                    append_failure(trial, number, reason, ledger)
                    tqdm.write(f"{name}: FAILED after {plural(number, 'attempt')}, {reason}")
                else:
                    best = max(best, result["accuracy"])
                    tqdm.write(f"{name}: {result['accuracy']:.2f}%, {result['seconds']:.0f} s")
                bar.update()
            count = sum(attempt.key() in started for attempt in running.values())
            bar.set_postfix_str(f"{count} running, {failed} failed, best {best:.2f}%")
        if interrupted.is_set():
            for reference in running:
                ray.cancel(reference, force=True)
            raise KeyboardInterrupt
    return failed


class _Clock:
    """An actor that records when each attempt starts, on whichever host."""

    def __init__(self):
        self.started: dict[str, float] = {}

    def start(self, key: str) -> None:
        self.started.setdefault(key, time.time())

    def all(self) -> dict[str, float]:
        return self.started


def _run_trial(run: Callable[..., dict], trial: dict, data: MnistData, clock, key: str) -> dict:
    """The Ray task: one attempt at a trial."""
    clock.start.remote(key)
    return run(data=data, **arguments(trial))


def _start_times(ray, clock) -> dict[str, float]:
    """When each attempt started, by its key, in seconds since the epoch; empty while the clock cannot be reached.

    Raises ClusterError if a host cannot be prepared for this project.
    """
    try:
        return ray.get(clock.all.remote(), timeout=5)
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise ClusterError(f"a host cannot be prepared for this project, {describe_failure(error)}") from error
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return {}


@contextmanager
def connected(address: str, install: bool = True) -> Iterator:
    """Yield the `ray` module, connected to the cluster; a cluster that is started here is stopped at the end.

    Workers get a copy of this project's code and settings. Raises ClusterError.
    """
    try:
        import ray
    except ImportError:
        raise ClusterError('Ray is not installed: pip install -e ".[sweep]"') from None
    from s5.training.provenance import COMMIT, current_commit  # imports torch

    if address not in ("auto", "local"):
        _check_reachable(address)
    variables = {name: os.environ[name] for name in ("MNIST_ROOT", "MNIST_SMOKE") if name in os.environ}
    variables |= {"TQDM_DISABLE": "1", COMMIT: current_commit()}
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    with tempfile.TemporaryDirectory() as folder:
        copy_code(Path(folder))
        local_environment = {"working_dir": folder, "env_vars": variables}
        environment = dict(local_environment)
        if install and address != "local":
            environment["pip"] = {"packages": requirements(), "pip_check": False}
        try:
            ray.init(address, runtime_env=environment, **options)
        except ConnectionError as error:
            if address != "auto":
                raise _cannot_connect(address, error) from error
            _start(ray, {"runtime_env": local_environment, "include_dashboard": False, **options})
        except Exception as error:  # Ray raises a bare Exception, too
            raise _cannot_connect(address, error) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _start(ray, options: dict) -> None:
    """Start a cluster on this machine. Raises ClusterError; what has started by then is stopped."""
    try:
        ray.init("local", **options)
    except Exception as error:  # a timeout is a bare Exception
        ray.shutdown()
        raise _cannot_connect("local", error) from error


def _cannot_connect(address: str, error: Exception) -> ClusterError:
    if address == "local":
        advice = "Free memory and processor time, or run without --ray"
        return ClusterError(f"a Ray cluster could not be started here, {_first_line(error)}. {advice}")
    return ClusterError(f"cannot connect to a Ray cluster at {address!r}, {_first_line(error)}. {TOKEN}")


def _first_line(error: Exception) -> str:
    """An error of Ray without the logs that follow."""
    first, *_ = [*str(error).strip().splitlines(), "no reason given"]
    return f"{type(error).__name__}: {first.rstrip('.')}"


def _check_reachable(address: str) -> None:
    """Raise ClusterError if nothing listens at the address; Ray itself would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ClusterError(f"a Ray cluster's address is auto, local, HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}") from error


def copy_code(folder: Path) -> None:
    """Copy the modules that a worker imports into `folder`."""
    shutil.copy(ROOT / "helpers.py", folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))


def requirements() -> list[str]:
    """The packages that a host needs, pinned to the versions installed here."""
    names = [line.split(">=")[0] for line in (ROOT / "requirements.txt").read_text().split()]
    return [f"{name}=={version(name).split('+')[0]}" for name in names if name != "jupyter"]


def failures_path(ledger: str | Path) -> Path:
    """The file beside the ledger that records failed trials."""
    return Path(ledger).with_suffix(".failures.jsonl")


def append_failure(trial: dict, attempts: int, reason: str, ledger: str | Path) -> None:
    """Record a failed trial: its arguments, the number of attempts, the last reason, and the time."""
    path = failures_path(ledger)
    line = {**trial, "variant": variant_name(trial), "attempts": attempts, "reason": reason}
    line["time"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with FileLock(path.with_suffix(".lock")):
        append_line(json.dumps(line).encode() + b"\n", path)


def describe_failure(error: Exception) -> str:
    """The reason of a failure, in one line."""
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
