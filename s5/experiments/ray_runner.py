"""Runs trials on a Ray cluster and records them in a ledger on this machine.

Requires Ray: `pip install -e ".[sweep]"`. The code is sent with the trials, the data is put into Ray's object store
once, and only this process writes the ledger, so other hosts need neither a checkout nor a shared disk.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from s5.experiments.ledger import check_writable
from s5.experiments.local_runner import describe, record
from s5.experiments.trial import Trial
from s5.training.files import ROOT
from s5.training.mnist import MnistData
from s5.training.provenance import COMMIT, current_commit

POLL = 0.3  # seconds
NOT_SENT = ["/*", "!.", "!/helpers.py", "!/s5"]  # as in a .gitignore: all but the folder itself and these


class ClusterError(RuntimeError):
    """Ray is not installed, or there is no usable cluster at the address."""


def run_on_ray(
    trials: list[dict],
    data: MnistData,
    ledger: str | Path,
    run: Callable[..., Trial],
    address: str = "auto",
    workers: int | None = None,
    gpus: float = 0,
    retries: int = 2,
    install: bool = True,
) -> int:
    """Call `run(loaded=data, **trial)` for each of `trials` on a Ray cluster and append the results to the ledger.

    Returns the number of failures. `address` is a cluster's; "auto" is the one this machine belongs to, or else one
    that is started here and stopped at the end. Each trial takes one CPU and `gpus` GPUs (may be a fraction). At most
    `workers` trials run at a time; None: as many as the cluster has resources for. Ray tries a trial again, up to
    `retries` times, if it raises, or if its worker or node dies. After that it is reported and the others continue.
    With `install`, hosts install this project's requirements.

    Raises ClusterError, OSError if the ledger cannot be written, and KeyboardInterrupt on Ctrl-C; this process then
    leaves the cluster, which ends its trials.
    """
    check_writable(ledger)
    waiting, running, failed = deque(trials), {}, 0
    with tqdm(total=len(trials), unit="trial", disable=None) as bar, _connected(address, install) as ray:
        available = ray.cluster_resources().get("GPU", 0)
        if gpus > available:
            raise ClusterError(f"a trial takes {gpus:g} GPUs, and the cluster has {available:g}")
        stored = ray.put(data)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=retries, retry_exceptions=True)(_run_trial)
        while waiting or running:
            while waiting and (workers is None or len(running) < workers):
                trial = waiting.popleft()
                running[task.remote(run, trial, stored)] = trial
            finished, _ = ray.wait(list(running), num_returns=len(running), timeout=POLL)
            for reference in finished:
                failed += not record(running.pop(reference), partial(ray.get, reference), ledger)
                bar.update()
    return failed


def _run_trial(run: Callable[..., Trial], trial: dict, data: MnistData) -> Trial:
    """The Ray task."""
    return run(loaded=data, **trial)


@contextmanager
def _connected(address: str, install: bool) -> Iterator:
    """Yield the `ray` module, connected to the cluster; a cluster that is started here is stopped at the end.

    Workers get a copy of this project's code and settings. Raises ClusterError.
    """
    try:
        import ray
    except ImportError:
        raise ClusterError('Ray is not installed: pip install -e ".[sweep]"') from None
    variables = {name: os.environ[name] for name in ("MNIST_ROOT", "MNIST_SMOKE") if name in os.environ}
    variables |= {"TQDM_DISABLE": "1", COMMIT: current_commit()}
    here = {"working_dir": str(ROOT), "excludes": NOT_SENT, "env_vars": variables}
    packages = {"pip": {"packages": requirements(), "pip_check": False}} if install else {}
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address not in ("auto", "local"):  # if nothing listens there, Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        if address != "local":
            with suppress(ConnectionError) if address == "auto" else nullcontext():  # there is no cluster yet
                ray.init(address, runtime_env=here | packages, **options)
        if not ray.is_initialized():
            ray.init("local", runtime_env=here, include_dashboard=False, **options)
    except Exception as error:  # Ray raises bare Exceptions, too
        ray.shutdown()
        reason = f"no Ray cluster can be used at {address!r}, {describe(error)}"
        raise ClusterError(f"{reason} (an address is auto, local, HOST:PORT or ray://HOST:PORT)") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def requirements() -> list[str]:
    """The packages that a host needs, pinned to the versions installed here."""
    names = [line.split(">=")[0] for line in (ROOT / "requirements.txt").read_text().split()]
    return [f"{name}=={version(name).split('+')[0]}" for name in names if name != "jupyter"]
