"""Trials in several processes: failures, dying workers, Ctrl-C and a killed parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from s5.experiments.local_runner import run_locally
from s5.experiments.trial import Trial
from tests.utils import ROOT, make_trial, read_strictly, wait_for


def stand_in(variant: str, seed: int, **files: str) -> Trial:
    """A replacement for `run_trial`: returns at once, or does what the variant's name says."""
    if variant == "raises":
        raise ValueError("no luck today\nwith details")
    if variant == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "never_ends":
        while True:
            with open(files["heartbeat"], "a") as file:
                file.write(".")
            time.sleep(0.02)
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
    assert "Traceback" not in output.err
    assert "5/5" in output.err, "the progress bar"


SCRIPT = """
import sys
from pathlib import Path
from s5.commands import sweep as command
from s5.experiments import local_runner, sweep
from tests.test_local_runner import stand_in

folder = Path(sys.argv[1])
trials = [{"variant": name, "seed": 0, "heartbeat": str(folder / name)} for name in ("one", "never_ends", "two")]
sweep.sweep = lambda **_: local_runner.run_locally(trials, folder / "ledger.jsonl", stand_in)
sys.exit(command.main([]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_continues_after_the_sweep_has_ended(tmp_path, number, interruptible):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    heartbeat, ledger = tmp_path / "never_ends", tmp_path / "ledger.jsonl"
    wait_for(lambda: heartbeat.exists() and ledger.exists() and ledger.read_bytes().endswith(b"\n"))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to every process
    else:
        process.kill()
    error = process.communicate(timeout=30)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        message = "Interrupted. Finished trials are in the ledger: the same command, run again, runs the others only."
        assert message in error
        assert "Traceback" not in error
    time.sleep(0.5)
    size = heartbeat.stat().st_size
    time.sleep(0.3)
    assert heartbeat.stat().st_size == size
    assert [trial.variant for trial in read_strictly(ledger)] == ["one"]
