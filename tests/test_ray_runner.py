"""Sweeps on a Ray cluster of several nodes on this machine, while workers, nodes and the sweep itself are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from s5.experiments import ray_runner, sweep
from s5.experiments.trial import run_trial
from tests.utils import ROOT, make_trial, read_strictly, wait_for

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason='requires Ray: pip install -e ".[sweep]"')


def busy_workers() -> list[int]:
    """The ids of processes that are running a trial; Ray writes the running task into their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_run_trial" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def nodes():
    """A cluster with three nodes that run one trial each, and a head node that runs none."""
    modules = [sys.modules[name] for name in (__name__, wait_for.__module__)]  # workers cannot import the tests
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)


def stand_in(variant: str, data, line: dict, **_) -> dict:
    """A replacement for `run_trial` that fails as the variant says, or returns `line` with `data` as the accuracy."""
    if variant == "raises":
        raise ValueError("no luck today")
    if variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "hangs":
        time.sleep(1000)
    return line | {"accuracy": data}


@needs_ray
def test_failures_are_retried_then_recorded_and_the_others_continue(nodes, tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    variants = ("raises", "dies", "hangs", "one", "two", "three")
    trials = [{"variant": variant, "seed": 5, "line": make_trial(5, 99.0, variant=variant)} for variant in variants]
    options = {"retries": 1, "limit": 2, "install": False}
    assert ray_runner.run_on_ray(trials, 99.0, path, stand_in, nodes.address, **options) == 3
    assert {trial["variant"] for trial in read_strictly(path)} == {"one", "two", "three"}
    lines = [json.loads(line) for line in ray_runner.failures_path(path).read_text().splitlines()]
    assert {line["variant"]: (line["attempts"], line["reason"]) for line in lines} == {
        "raises": (2, "ValueError: no luck today"),
        "dies": (2, "its worker died"),
        "hangs": (2, "TimeoutError: longer than 2 seconds"),
    }
    output = capsys.readouterr()
    assert "raises, seed 5: attempt 1 failed, ValueError: no luck today; trying again" in output.out
    assert "raises, seed 5: FAILED after 2 attempts" in output.out
    assert "3 failed, best 99.00%" in output.err


def run_alone(line: dict, path: str, **_) -> dict:
    """A replacement for `run_trial` that raises if another trial is running."""
    open(path, "x").close()
    time.sleep(0.5)
    os.unlink(path)
    return line


def run_together(line: dict, path: str, **_) -> dict:
    """A replacement for `run_trial` that ends only when another trial is running."""
    Path(f"{path}-{line['seed']}").touch()
    wait_for(lambda: len(list(Path(path).parent.glob("running-*"))) == 2)
    return line


@needs_ray
@pytest.mark.parametrize(("run", "workers"), [(run_alone, 1), (run_together, None)])
def test_trials_at_a_time(nodes, tmp_path, run, workers):
    """At most `workers`, by default as many as the cluster has CPUs for."""
    trials = [
        {"variant": "one", "seed": seed, "line": make_trial(seed, variant="one"), "path": str(tmp_path / "running")}
        for seed in (1, 2)
    ]
    options = {"retries": 0, "install": False}
    assert ray_runner.run_on_ray(trials, None, tmp_path / "ledger.jsonl", run, nodes.address, workers, **options) == 0


def run_late(**trial) -> dict:
    """A real trial from the worker's copy of the code, after time enough to kill the worker."""
    from s5.experiments import trial as module

    assert "_ray_pkg_" in module.__file__, f"{module.__file__} is not in the worker's copy of the code"
    time.sleep(1)
    return module.run_trial(**trial)


@needs_ray
def test_killed_workers_and_nodes_change_no_result(nodes, tmp_path, small):
    """Accuracies equal those of the same trials in this process; none is missing and none is recorded twice."""
    options = {"variant": "s5", "split": "validation", "changes": {"epochs": 1}, "sample": True, "device": "cpu"}
    trials = [{**options, "seed": seed, "threads": 1} for seed in range(3)]
    path = tmp_path / "ledger.jsonl"
    killed = []

    def kill():
        worker = wait_for(busy_workers)[0]
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)
        wait_for(lambda: set(busy_workers()) - {worker})
        node = next(iter(nodes.worker_nodes))
        nodes.remove_node(node, allow_graceful=False)
        killed.append(node)

    killer = threading.Thread(target=kill)
    killer.start()
    assert ray_runner.run_on_ray(trials, small, path, run_late, nodes.address, install=False) == 0
    killer.join()
    assert len(killed) == 2
    done = {trial["seed"]: trial for trial in read_strictly(path)}
    assert path.read_bytes().count(b"\n") == len(done) == 3
    for trial in trials:
        expected = run_trial(**trial, data=small)
        for key in ("accuracy", "mistakes", "commit"):
            assert done[trial["seed"]][key] == expected[key]
    assert not ray_runner.failures_path(path).exists()


SCRIPT = """
import sys, time
from functools import partial
import s5.experiments.trial
from s5.experiments import ray_runner, sweep
from tests.utils import make_trial

recipe = s5.experiments.trial.planned_recipe("s5", {"epochs": 1}).as_dict()
line = make_trial(0, recipe=recipe, epochs=1)

def stand_in(seed, **_):
    time.sleep(1000 if seed else 0)
    return line

s5.experiments.trial.run_trial = stand_in
s5.experiments.trial.load_data = lambda sample: None  # tensors would make the workers import torch
sweep.run_on_ray = partial(ray_runner.run_on_ray, install=False)
sys.exit(sweep.main(sys.argv[1:]))
"""


@needs_ray
def test_a_stopped_or_killed_sweep_resumes(nodes, tmp_path, interruptible, capsys):
    """Interrupted, then killed, both after the first trial of three; the third run trains the other two."""
    path = tmp_path / "ledger.jsonl"
    options = ["--variants", "s5", "--seeds", "0-2", "--epochs", "1", "--sample", "--device", "cpu"]
    options += ["--ledger", str(path), "--ray"]
    for number, code, address in ((signal.SIGINT, 130, nodes.address), (signal.SIGKILL, -signal.SIGKILL, "local")):
        command = [sys.executable, "-c", SCRIPT, *options, address]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(lambda: busy_workers() and path.exists() and path.read_bytes())
        os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
        error = process.communicate(timeout=60)[1]
        assert process.returncode == code, error
        assert "Traceback" not in error
        wait_for(lambda: not busy_workers(), 60)
    assert sweep.main([*options, "local"]) == 0
    output = capsys.readouterr().out
    assert "1 already in ledger.jsonl, 2 to run" in output
    assert "3 of 3" in output
    assert sorted(trial["seed"] for trial in read_strictly(path)) == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == 3


@needs_ray
@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9'"), ("here", "HOST:PORT, not 'here'")]
)
def test_an_address_without_a_cluster_is_a_clear_error(tmp_path, address, message):
    with pytest.raises(ray_runner.ClusterError, match=message):
        ray_runner.run_on_ray([], None, tmp_path / "ledger.jsonl", run_trial, address)


TIMEOUT = (
    "The current node timed out during startup. This could happen because it is slow.\nSee the logs:\n  raylet.err"
)


@needs_ray
@pytest.mark.parametrize("error", [Exception(TIMEOUT), RuntimeError(TIMEOUT), OSError("no space left"), ValueError("")])
@pytest.mark.parametrize("address", ["auto", "local"])
def test_a_cluster_that_does_not_start_is_one_line(tmp_path, monkeypatch, capsys, small, address, error):
    def init(address, **_):
        raise ConnectionError("no running cluster") if address == "auto" else error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr("s5.experiments.trial.load_data", lambda sample: small)
    options = ["--variants", "s5", "--seeds", "0", "--sample", "--ledger", str(tmp_path / "ledger.jsonl")]
    assert sweep.main([*options, "--ray", address]) == 1
    printed = capsys.readouterr().err  # after the progress bar
    assert "Traceback" not in printed
    (message,) = re.findall(r"sweep: a Ray cluster could not be started here,[^\n]*\n\Z", printed)
    assert f", {type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0].rstrip('.')}. " in message


@needs_ray
def test_a_host_that_cannot_be_prepared_is_a_clear_error(monkeypatch):
    def get(*_, **__):
        raise ray.exceptions.RuntimeEnvSetupError("Traceback\n  …\nRuntimeError: Please install virtualenv")

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ray_runner.ClusterError, match=r"cannot be prepared for this project, .*install virtualenv$"):
        ray_runner._start_times(ray, Mock())


def test_missing_ray_is_reported_with_how_to_install_it(tmp_path, monkeypatch, capsys, small):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("s5.experiments.trial.load_data", lambda sample: small)
    options = ["--variants", "s5", "--seeds", "0", "--sample", "--ledger", str(tmp_path / "ledger.jsonl")]
    assert sweep.main([*options, "--ray", "auto"]) == 1
    assert 'sweep: Ray is not installed: pip install -e ".[sweep]"' in capsys.readouterr().err


def test_the_copied_code_is_complete(tmp_path):
    """A process that sees only the copy can import what a trial needs."""
    ray_runner.copy_code(tmp_path)
    code = "import s5.experiments.ray_runner, s5.experiments.trial as trial; print(trial.__file__)"
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.strip()) == tmp_path / "experiments" / "trial.py"
    assert not list(tmp_path.rglob("*.jsonl")), "no results, no data"


def test_requirements_are_pinned():
    pinned = dict(line.split("==") for line in ray_runner.requirements())
    assert torch.__version__.startswith(pinned["torch"])
    assert "+" not in pinned["torch"]
