"""Trials in several processes: failures, dying workers, Ctrl-C and a killed parent."""

import os
import signal
import subprocess
import sys
import time

import psutil

from s5.experiments.local_runner import run_locally, trial_name
from s5.experiments.trial import Trial
from s5.training.recipe import Recipe
from tests.utils import ROOT, make_trial, read_strictly, wait_for


def stand_in(variant: str, seed: int) -> Trial:
    """A replacement for `run_trial`: returns at once, or does what the variant's name says."""
    if variant == "raises":
        raise ValueError("no luck today\nwith details")
    if variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "sleeps":
        time.sleep(1000)
    return make_trial(seed, variant=variant)


def test_failures_and_deaths_are_reported_and_the_others_continue(tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    trials = [{"variant": variant, "seed": 0} for variant in ("one", "raises", "two", "dies", "three")]
    assert run_locally(trials, path, stand_in, workers=1) == 2
    assert [trial.variant for trial in read_strictly(path)] == ["one", "two", "three"]
    output = capsys.readouterr()
    assert "one, seed 0: 99.40%" in output.out
    assert "raises, seed 0: FAILED, ValueError: no luck today\n" in output.out
    assert "dies, seed 0: FAILED, a worker process died (killed, or out of memory?)" in output.out
    assert output.err == "", "no traceback, and no bar where there is no terminal"


def test_a_trial_is_named_by_what_is_changed_of_its_recipe():
    trial = {"variant": "s5", "seed": 3}
    assert trial_name(trial) == trial_name({**trial, "changes": Recipe().as_dict()}) == "s5, seed 3"
    assert trial_name({**trial, "changes": {"rotation": 0.0}}) == "s5, rotation 10.0 → 0.0, seed 3"


SCRIPT = """
import sys
from s5.commands import sweep as command
from s5.experiments import local_runner, sweep
from tests.test_local_runner import stand_in

trials = [{"variant": name, "seed": 0} for name in ("one", "sleeps", "two")]
sweep.sweep = lambda **_: local_runner.run_locally(trials, sys.argv[1], stand_in)
sys.exit(command.main([]))
"""


def test_no_worker_continues_after_ctrl_c(tmp_path, interruptible):
    """Nor after the sweep is killed: see test_faults.py."""
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: path.exists() and path.read_bytes().endswith(b"\n"))
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "Interrupted. Finished trials are in the ledger: the same command, run again, runs the others only." in error
    assert "Traceback" not in error
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert [trial.variant for trial in read_strictly(path)] == ["one"]
