"""Sweeps on a Ray cluster of several nodes on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from s5.commands import sweep as command
from s5.experiments import ray_runner
from s5.experiments.trial import Trial, run_trial
from s5.networks.user_code import from_file
from tests.utils import ROOT, make_trial, read_strictly, wait_for

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason='requires Ray: pip install -e ".[sweep]"')


def busy_workers() -> list[int]:
    """The ids of processes that are running a trial; Ray writes the running task into their command line."""
    return [each.pid for each in psutil.process_iter(["cmdline"]) if "ray::_run_trial" in str(each.info["cmdline"])]


@pytest.fixture(scope="module")
def nodes():
    """A cluster with three nodes that run one trial each, and a head node that runs none."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def stand_in(variant: str, line: Trial, folder: str, **_) -> Trial:
    """A replacement for `run_trial` that does what the variant says, and leaves a file for every attempt."""
    (Path(folder) / f"{variant}-{time.time_ns()}").touch()
    if variant == "raises":
        raise ValueError("no luck today")
    if variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return line


@needs_ray
def test_failures_are_retried_then_counted_and_the_others_continue(nodes, tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    trials = [
        {"variant": variant, "seed": 5, "line": make_trial(5, variant=variant), "folder": str(tmp_path)}
        for variant in ("raises", "dies", "one", "two", "three")
    ]
    options = {"workers": 2, "retries": 1, "install": False}
    assert ray_runner.run_on_ray(trials, None, path, stand_in, nodes.address, **options) == 2
    assert {trial.variant for trial in read_strictly(path)} == {"one", "two", "three"}
    assert [len(list(tmp_path.glob(f"{name}-*"))) for name in ("raises", "dies", "one")] == [2, 2, 1]
    output = capsys.readouterr()
    assert "raises, seed 5: FAILED, ValueError: no luck today" in output.out
    assert "dies, seed 5: FAILED, WorkerCrashedError: " in output.out


def run_in_copy(**trial) -> Trial:
    """A real trial from the worker's copy of the code."""
    from s5.experiments import trial as module

    assert "_ray_pkg_" in module.__file__, f"{module.__file__} is not in the worker's copy of the code"
    return module.run_trial(**trial)


@needs_ray
def test_a_trial_on_a_cluster_has_the_result_of_the_same_trial_here(nodes, tmp_path, small):
    (tmp_path / "blocks.py").write_text("from torch import nn\n\ndef linear():\n    return nn.Linear(784, 10)\n")
    code = "from torch import nn\nfrom blocks import linear\ndef MyNet(): return nn.Sequential(nn.Flatten(), linear())"
    (tmp_path / "mine.py").write_text(code)
    own = from_file(f"{tmp_path}/mine.py:MyNet")
    options = {"split": "validation", "changes": {"epochs": 1}, "data": "sample", "device": "cpu", "threads": 1}
    trials = [{**options, "variant": variant, "seed": seed} for seed, variant in enumerate(("s5", own))]
    path = tmp_path / "ledger.jsonl"
    assert ray_runner.run_on_ray(trials, small, path, run_in_copy, nodes.address, install=False) == 0
    done = {trial.seed: trial for trial in read_strictly(path)}
    for trial in trials:
        expected, found = run_trial(**trial, loaded=small), done[trial["seed"]]
        assert (found.key, found.mistakes, found.commit) == (expected.key, expected.mistakes, expected.commit)


SCRIPT = """
import sys, time
from functools import partial
from s5.commands import sweep as command
from s5.experiments import ray_runner, sweep
from tests.utils import make_trial

line = make_trial(0, recipe={"epochs": 1})

def stand_in(seed, **_):
    time.sleep(1000 if seed else 0)
    return line

sweep.run_trial = stand_in
sweep.load_data = lambda *_, **__: None
sweep.run_on_ray = partial(ray_runner.run_on_ray, install=False)
sys.exit(command.main(sys.argv[1:]))
"""


@needs_ray
def test_an_interrupted_sweep_leaves_no_trial_running(nodes, tmp_path, interruptible):
    path = tmp_path / "ledger.jsonl"
    options = ["--variants", "s5", "--seeds", "0-2", "--epochs", "1", "--data", "sample", "--ledger", str(path)]
    options += ["--ray"]
    whole = [sys.executable, "-c", SCRIPT, *options, nodes.address]
    process = subprocess.Popen(whole, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: busy_workers() and path.exists() and path.read_bytes(), 240)
    with FileLock(path.with_suffix(".lock")):  # until the line is on the disk: Ctrl-C before that takes it back
        pass
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "Traceback" not in error
    wait_for(lambda: not busy_workers())
    assert len(read_strictly(path)) == 1


def run_sweep(tmp_path, *options: str) -> int:
    """The sweep of a trial on the sample, with `options`."""
    path = str(tmp_path / "ledger.jsonl")
    return command.main(["--variants", "s5", "--seeds", "0", "--data", "sample", "--ledger", path, *options])


@needs_ray
def test_a_cluster_that_cannot_be_used_is_a_clear_error(nodes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_runner, "requirements", lambda: [])
    for options, error in (
        (["--ray", nodes.address, "--gpus-per-trial", "0.5"], "a trial takes 0.5 GPUs, and the cluster has 0"),
        (["--ray", "127.0.0.1:9"], "no Ray cluster can be used at '127.0.0.1:9', ConnectionRefusedError: "),
        (["--ray", "here"], "no Ray cluster can be used at 'here', ValueError: "),
    ):
        assert run_sweep(tmp_path, *options) == 1
        assert f"sweep: {error}" in capsys.readouterr().err


def test_missing_ray_is_reported_with_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_sweep(tmp_path, "--ray", "auto") == 1
    assert 'sweep: Ray is not installed: pip install -e ".[sweep]"' in capsys.readouterr().err
