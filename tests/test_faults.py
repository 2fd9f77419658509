"""Kills and a full disk: a run or a sweep that continues ends with the same result.

What is disturbed runs in a process of its own, as a user starts it. Many kills: `pytest -m faults`.
"""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import main
from s5.commands import sweep
from s5.experiments.ledger import append_trial
from s5.experiments.trial import run_trial
from s5.training.device import use_threads

from .utils import ROOT, read_strictly, wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="requires signals, as on Linux and macOS"),
]

RUN = ["--smoke", "--device", "cpu", "--epochs", "2", "--batch-size", "100", "--output"]
SWEEP = ["--data", "sample", "--device", "cpu", "--variants", "s5", "--seeds", "0-1", "--workers", "1"]
SWEEP += ["--epochs", "1", "--batch-size", "200", "--ema-decay", "0", "--ledger"]
CHANGES = {"epochs": 1, "batch_size": 200, "ema_decay": 0.0}  # of the recipe: what the sweep says
FILES = {"checkpoint.pt", "weights.safetensors", "history.json", "curves.png"}
FULL = 100_000  # bytes: more than what a command prints, less than a checkpoint


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Everywhere, since another number of threads would change the last bits of the weights."""
    with pytest.MonkeyPatch.context() as patch, use_threads(1):
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def kills(request) -> int:
    return 20 if "faults" in request.config.getoption("-m") else 1


@pytest.fixture(scope="module")
def undisturbed_run(one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.main([*RUN, str(folder)]) == 0
    return results(folder)


def results(folder: Path) -> tuple[bytes, str]:
    """The weights and the history of a complete run, without the seconds that it took."""
    assert {file.name for file in folder.iterdir()} == FILES
    history = (folder / "history.json").read_text(encoding="utf-8")
    return (folder / "weights.safetensors").read_bytes(), re.sub(r'"seconds": [\d.]+', "", history)


def trials(ledger: Path) -> list[tuple]:
    return [(trial.seed, trial.accuracy, trial.mistakes) for trial in read_strictly(ledger)]


def start(command: list, log: Path) -> subprocess.Popen:
    """Start a command; its output is appended to `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=output, stderr=output)


def kill(process: subprocess.Popen, watched: Path) -> bool:
    """Kill a process soon after it changes the file or folder; False if it ends before that.

    The processes that it started must then end by themselves.
    """
    before = watched.stat().st_mtime_ns if watched.exists() else None
    wait_for(lambda: process.poll() is not None or (watched.exists() and watched.stat().st_mtime_ns != before))
    time.sleep(random.random() ** 3)  # mostly short: while the file is written, or the next one
    if process.poll() is not None:
        return False
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(children, timeout=60)[1] == []
    return True


def test_a_killed_run_is_resumed_to_the_same_result(undisturbed_run, tmp_path, kills):
    def run_or_resume() -> list[str]:
        return ["--resume", str(run)] if (run / "checkpoint.pt").exists() else [*RUN, str(run)]

    done = 0
    while done < kills:
        run = tmp_path / f"run-{done}"
        watched = [run, run / "checkpoint.pt"]
        while done < kills and kill(start(["main.py", *run_or_resume()], tmp_path / "log"), random.choice(watched)):
            done += 1
        assert main.main(run_or_resume()) == 0
        assert results(run) == undisturbed_run


def test_a_killed_sweep_is_continued_to_the_same_trials(tmp_path, kills):
    undisturbed = tmp_path / "undisturbed.jsonl"
    for seed in (0, 1):
        append_trial(run_trial("s5", seed, "validation", CHANGES, data="sample", device="cpu"), undisturbed)
    done = 0
    while done < kills:
        command = [*SWEEP, str(tmp_path / f"{done}.jsonl")]
        while done < kills and kill(start(["-m", "s5", "sweep", *command], tmp_path / "log"), Path(command[-1])):
            done += 1
        assert sweep.main(command) == 0
        assert trials(Path(command[-1])) == trials(undisturbed)


@pytest.mark.skipif(sys.platform != "linux", reason="requires prlimit, of Linux")
def test_a_run_on_a_full_disk_keeps_its_last_checkpoint(undisturbed_run, tmp_path):
    """Files of the running command can no longer grow beyond a size: what a full disk does to them."""
    import resource

    run, log = tmp_path / "run", tmp_path / "log"
    process = start(["main.py", *RUN, run], log)
    wait_for((run / "checkpoint.pt").exists)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL, FULL))
    assert process.wait(timeout=300) == 1
    assert log.read_text().splitlines()[-1].startswith("main.py: ")
    assert "Traceback" not in log.read_text()
    assert main.main(["--resume", str(run)]) == 0
    assert results(run) == undisturbed_run
