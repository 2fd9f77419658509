"""Sweeps on a Ray cluster of several nodes on this machine, while workers, nodes and the sweep itself are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from experiments import ray_runner, sweep
from tests.utils import make_trial, read_strictly, wait_for

ROOT = Path(__file__).parent.parent

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason='needs Ray: pip install -e ".[sweep]"')


def workers_at_work() -> list[int]:
    """The processes that are in the middle of a trial; Ray writes what they do into their names."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_one_trial" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def nodes():
    """A cluster whose head does no work, and three nodes for a trial each."""
    ours = [sys.modules[name] for name in (__name__, wait_for.__module__)]  # workers cannot import the tests
    for module in ours:
        ray.cloudpickle.register_pickle_by_value(module)
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        started.add_node(num_cpus=1)
    yield started
    started.shutdown()
    for module in ours:
        ray.cloudpickle.unregister_pickle_by_value(module)


def pretend(variant: str, data, line: dict, **_) -> dict:
    """A stand-in for `run_trial`, which fails as its name says, or returns its `line` with `data` as the accuracy."""
    if variant == "raises":
        raise ValueError("no luck today")
    if variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "hangs":
        time.sleep(1000)
    return line | {"accuracy": data}


@needs_ray
def test_what_fails_is_tried_again_then_recorded_and_the_rest_goes_on(nodes, tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    variants = ("raises", "dies", "hangs", "one", "two", "three")
    trials = [{"variant": variant, "seed": 5, "line": make_trial(5, variant=variant)} for variant in variants]
    failed = ray_runner.run_on_ray(trials, 99.0, path, nodes.address, retries=1, limit=4, run=pretend, install=False)
    assert failed == 3
    assert {trial["variant"] for trial in read_strictly(path)} == {"one", "two", "three"}
    lines = [json.loads(line) for line in ray_runner.failures_path(path).read_text().splitlines()]
    reasons = {line["variant"]: (line["attempts"], line["reason"]) for line in lines}
    assert reasons == {
        "raises": (2, "ValueError: no luck today"),
        "dies": (2, "its worker died"),
        "hangs": (2, "TimeoutError: longer than 4 seconds"),
    }
    output = capsys.readouterr()
    assert "raises, seed 5: attempt 1 failed, ValueError: no luck today; trying again" in output.out
    assert "raises, seed 5: FAILED after 2 attempts" in output.out
    assert "3 failed, best 99.00%" in output.err


def after_a_while(**trial) -> dict:
    """A real trial with time to be killed before it."""
    from experiments import sweep

    time.sleep(2)
    return sweep.run_trial(**trial)


@needs_ray
def test_a_killed_worker_and_a_killed_node_cost_nothing_but_time(nodes, tmp_path):
    """Accuracies are those of the same trials one by one, nothing is missing and nothing there twice."""
    trials = [
        {"variant": "s5", "seed": seed, "split": "validation", "epochs": 1, "sample": True, "device": "cpu"}
        | {"threads": 1}
        for seed in range(4)
    ]
    path = tmp_path / "ledger.jsonl"
    killed = []

    def kill():
        victim = wait_for(workers_at_work)[0]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
        wait_for(lambda: set(workers_at_work()) - {victim})
        node = next(iter(nodes.worker_nodes))
        nodes.remove_node(node, allow_graceful=False)
        killed.append(node)

    killer = threading.Thread(target=kill)
    killer.start()
    assert ray_runner.run_on_ray(trials, sweep.load(True), path, nodes.address, run=after_a_while, install=False) == 0
    killer.join()
    assert len(killed) == 2
    done = {trial["seed"]: trial for trial in read_strictly(path)}
    assert path.read_bytes().count(b"\n") == len(done) == 4
    for trial in trials:
        alone = sweep.run_trial(**trial)
        assert done[trial["seed"]]["accuracy"] == alone["accuracy"]
        assert done[trial["seed"]]["mistakes"] == alone["mistakes"]
        assert done[trial["seed"]]["commit"] == alone["commit"]
    assert not ray_runner.failures_path(path).exists()


def alone(variant: str, line: dict, place: str, **_) -> dict:
    """A stand-in for `run_trial` that raises where another one is under way."""
    open(place, "x").close()
    time.sleep(0.5)
    os.unlink(place)
    return line | {"accuracy": 99.0}


def met(line: dict, place: str, **_) -> dict:
    """A stand-in for `run_trial` that ends only when another one is under way beside it."""
    (Path(place) / str(line["seed"])).touch()
    wait_for(lambda: len(list(Path(place).iterdir())) == 2)
    return line | {"accuracy": 99.0}


@needs_ray
@pytest.mark.parametrize(("stand_in", "place", "workers"), [(alone, "taken", 1), (met, "", None)])
def test_as_many_at_a_time_as_there_is_room_for_but_no_more_than_workers(nodes, tmp_path, stand_in, place, workers):
    folder = tmp_path / "place"
    folder.mkdir()
    trials = [
        {"variant": "one", "seed": seed, "line": make_trial(seed, variant="one"), "place": str(folder / place)}
        for seed in (1, 2)
    ]
    run = {"run": stand_in, "retries": 0, "install": False}
    assert ray_runner.run_on_ray(trials, None, tmp_path / "ledger.jsonl", nodes.address, workers, **run) == 0


COMMAND = ["sweep.py", "--variants", "s5", "--seeds", "0-2", "--epochs", "1", "--sample", "--device", "cpu"]


@needs_ray
def test_a_sweep_that_is_stopped_or_killed_goes_on_where_it_stopped(tmp_path, interruptible):
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, *COMMAND, "--ray", "local", "--ledger", str(path)]
    for how, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(workers_at_work)
        os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
        error = process.communicate(timeout=60)[1]
        assert process.returncode == code, error
        assert "Traceback" not in error
        wait_for(lambda: not workers_at_work(), 60)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert sorted(trial["seed"] for trial in read_strictly(path)) == [0, 1, 2]
    assert path.read_bytes().count(b"\n") == 3
    assert "3 of 3" in again.stdout


@needs_ray
def test_no_cluster_at_the_address_is_a_clear_word(tmp_path):
    for address, complaint in (("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9'"), ("here", "HOST:PORT, not 'here'")):
        with pytest.raises(ray_runner.ClusterError, match=complaint):
            ray_runner.run_on_ray([], None, tmp_path / "ledger.jsonl", address)


@needs_ray
def test_a_host_that_cannot_be_prepared_is_a_clear_word(monkeypatch):
    def get(*_, **__):
        raise ray.exceptions.RuntimeEnvSetupError("Traceback\n  much\nRuntimeError: Please install virtualenv")

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ray_runner.ClusterError, match=r"cannot be prepared for this project, .*install virtualenv$"):
        ray_runner._start_times(ray, Mock())


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = [
        "--variants",
        "s5",
        "--seeds",
        "0",
        "--sample",
        "--ray",
        "auto",
        "--ledger",
        str(tmp_path / "ledger.jsonl"),
    ]
    assert sweep.main(command) == 1
    assert 'sweep.py: Ray is not installed: pip install -e ".[sweep]"' in capsys.readouterr().err


def test_requirements_are_pinned():
    pinned = dict(line.split("==") for line in ray_runner.requirements())
    import torch

    assert torch.__version__.startswith(pinned["torch"])
    assert "+" not in pinned["torch"]
