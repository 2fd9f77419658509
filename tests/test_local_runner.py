"""Trials in several processes: failures, dying workers, Ctrl-C and a killed parent."""

# The worker processes import this file to find `stand_in`, so it must not import torch.

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s5.experiments import local_runner
from s5.experiments.local_runner import run_locally
from tests.utils import ROOT, make_trial, read_strictly, wait_for


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stand_in(variant: str, seed: int, **files: str) -> dict:
    """A replacement for `run_trial`: returns at once, or does what the variant's name says."""
    if variant == "raises":
        raise ValueError("no luck today")
    if variant == "dies":
        wait_for(lambda: count_lines(Path(files["ledger"])) >= 1)
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "never_ends":
        while True:
            with open(files["heartbeat"], "a") as file:
                file.write(".")
            time.sleep(0.02)
    if variant == "slow":
        time.sleep(0.5)
    return make_trial(seed, variant=variant)


def test_a_trial_that_raises_is_reported_and_the_others_continue(tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    trials = [{"variant": variant, "seed": 0} for variant in ("one", "raises", "two", "three")]
    assert run_locally(trials, path, stand_in, workers=2) == 1
    assert {trial["variant"] for trial in read_strictly(path)} == {"one", "two", "three"}
    output = capsys.readouterr()
    assert "raises, seed 0: FAILED, ValueError: no luck today" in output.out
    assert "Traceback" not in output.err
    assert "4/4" in output.err, "the progress bar"


def one_of_them_wrong(variant: str, seeds: list[int], **files: str) -> list[dict]:
    """A replacement for `run_trials`: the line of the first seed contradicts itself."""
    return [make_trial(seed, **({"best_accuracy": 1.0} if seed == seeds[0] else {})) for seed in seeds]


def test_a_line_that_is_refused_does_not_take_the_others_of_its_group_with_it(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    assert run_locally([{"variant": "s5", "seeds": [4, 5, 6]}], path, one_of_them_wrong) == 1
    assert [trial["seed"] for trial in read_strictly(path)] == [5, 6]
    output = capsys.readouterr().out
    assert "s5, seed 4: FAILED, ValueError: " in output
    assert "s5, seed 5: 99.40%" in output


def test_a_dead_worker_costs_its_own_trial_only(tmp_path, capsys):
    """With two at a time another trial is running when it dies; that one is run again."""
    path = tmp_path / "ledger.jsonl"
    names = ("one", "dies", "slow", "two", "three")
    trials = [{"variant": variant, "seed": 0, "ledger": str(path)} for variant in names]
    assert run_locally(trials, path, stand_in, workers=2) == 1
    assert {trial["variant"] for trial in read_strictly(path)} == {*names} - {"dies"}
    output = capsys.readouterr()
    assert "A worker process died (killed, or out of memory?). To be run again, alone: " in output.err
    assert "dies, seed 0: FAILED. A worker process died" in output.err
    assert "5/5" in output.err, "the progress bar"


def test_workers_that_always_die_are_given_up(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local_runner, "MAX_DEATHS", 2)
    path = tmp_path / "ledger.jsonl"
    path.write_text("one line\n")  # "dies" waits for it
    trials = [{"variant": "dies", "seed": seed, "ledger": str(path)} for seed in range(6)]
    assert run_locally(trials, path, stand_in, workers=1) == 6
    error = capsys.readouterr().err
    assert "2 times in succession: 6 trials not done. Finished trials are in the ledger: the same command" in error


def test_a_script_without_a_guard_is_not_run_again_by_the_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom s5.experiments.local_runner import run_locally\n"
        "from tests.test_local_runner import stand_in\n"
        "print('started')\ntrials = [{'variant': 's5', 'seed': seed} for seed in (0, 1)]\n"
        "sys.exit(run_locally(trials, sys.argv[1], stand_in, workers=2))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "ledger.jsonl")]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (result.returncode, result.stdout.count("started")) == (0, 1), result.stderr
    assert len(read_strictly(tmp_path / "ledger.jsonl")) == 2


SCRIPT = """
import sys
from pathlib import Path
from s5.experiments import local_runner, sweep
from tests.test_local_runner import stand_in

folder = Path(sys.argv[1])
trials = [{"variant": name, "seed": 0, "heartbeat": str(folder / name)} for name in ("one", "never_ends", "two")]
sweep.parse_arguments = lambda _: {}
sweep.sweep = lambda: local_runner.run_locally(trials, folder / "ledger.jsonl", stand_in)
sys.exit(sweep.main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_continues_after_the_sweep_has_ended(tmp_path, number, interruptible):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    heartbeat = tmp_path / "never_ends"
    wait_for(lambda: heartbeat.exists() and count_lines(tmp_path / "ledger.jsonl") == 1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends it to every process
    else:
        process.kill()
    error = process.communicate(timeout=30)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert (
            "Interrupted. Finished trials are in the ledger: the same command, run again, runs the others only."
            in error
        )
        assert "Traceback" not in error
    time.sleep(0.5)
    size = heartbeat.stat().st_size
    time.sleep(0.3)
    assert heartbeat.stat().st_size == size
    assert [trial["variant"] for trial in read_strictly(tmp_path / "ledger.jsonl")] == ["one"]
