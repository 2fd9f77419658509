"""One trial, its place in the ledger, and sweeps that fail, are interrupted or are killed."""

import argparse
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest

from experiments import ledger, ray_runner, sweep
from tests.utils import make_trial, read_strictly, wait_for
from training.mnist import load_sample, validation_split

# No torch up here: the processes of a sweep import this file to find `pretend`.
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def _load_the_sample_once():
    """It takes more than a second."""
    import helpers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "load_sample", cache(load_sample))
        yield


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# --- One trial --------------------------------------------------------------------------------------------------------


def small_trial(split: str) -> dict:
    return sweep.run_trial("s5", 3, split, epochs=1, sample=True, device="cpu")


@pytest.fixture(scope="module")
def trial():
    return small_trial("validation")


def test_a_trial_is_a_line_of_the_ledger(trial, tmp_path):
    assert list(trial) == list(ledger.KEYS)
    assert json.loads(json.dumps(trial)) == trial
    assert pickle.loads(pickle.dumps(trial)) == trial
    assert ledger.append_trial(trial, tmp_path / "ledger.jsonl")
    assert read_strictly(tmp_path / "ledger.jsonl") == [trial]


def test_a_trial_says_what_it_is(trial):
    from experiments.variants import VARIANTS

    assert trial["variant"] == "s5"
    assert trial["recipe"] == VARIANTS["s5"].recipe.as_dict() | {"epochs": 1}
    assert (trial["seed"], trial["split"], trial["epochs"], trial["data"]) == (3, "validation", 1, "sample")
    assert trial["parameters"] == 18_214
    assert 1_940_000 < trial["macs"] < 1_960_000
    assert len(trial["curve"]) == 1
    assert trial["accuracy"] == trial["best_accuracy"] == pytest.approx(trial["curve"][-1]["eval_accuracy"])
    assert trial["device"].startswith("cpu")
    assert trial["seconds"] > 0


def test_a_trials_mistakes_agree_with_its_accuracy(trial):
    import helpers

    labels = validation_split(load_sample()).eval_labels
    assert len(labels) == 4000 // 6, "held out of the 4,000 training images; the test images are 1,000"
    assert trial["accuracy"] == pytest.approx(100 * (1 - len(trial["mistakes"]) / len(labels)))
    for index, predicted in trial["mistakes"].items():
        assert predicted in range(10)
        assert predicted != labels[int(index)]


def test_the_same_trial_twice_is_the_same(trial):
    def essence(trial: dict) -> dict:
        curve = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in trial["curve"]]
        return trial | {"curve": curve, "seconds": None, "time": None}

    assert essence(small_trial("validation")) == essence(trial)


def test_the_test_split_is_scored_on_the_test_images():
    trial = small_trial("test")
    assert trial["split"] == "test"
    assert trial["curve"][0]["eval_correct"] + len(trial["mistakes"]) == 1000


def test_a_misspelt_split_is_not_taken_for_the_test_set():
    with pytest.raises(ValueError, match="split must be validation or test, not 'valid'"):
        sweep.run_trial("s5", 0, "valid", epochs=1, sample=True)


def test_a_trial_that_is_interrupted_is_no_trial(interruptible):
    """`fit` returns what it has on Ctrl-C: half a curve must not enter the ledger as a result."""
    main_thread = threading.get_ident()

    def is_training() -> bool:
        frame = sys._current_frames()[main_thread]
        while frame and frame.f_code.co_name != "train":
            frame = frame.f_back
        return frame is not None

    def interrupt() -> None:
        wait_for(is_training)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.run_trial("s5", 0, "validation", epochs=100, sample=True, device="cpu")


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-2", [0, 1, 2]), ("0-2,7", [0, 1, 2, 7]), ("4,4,3-4", [4, 3]), (" 1, 2", [1, 2]), ("5-5", [5])],
)
def test_seeds(text, seeds):
    assert sweep.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "abc", "1-", "-1", "1,,2", "1-2-3", "5-2", "0,5-2", "1.5", "0-1000000000"])
def test_seeds_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="0-4 or 0,3,7"):
        sweep.parse_seeds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants s5,s6,s7", "unknown variant s6, s7; there are: .*s5"),
        ("--variants ,", "names none; there are: .*s5"),
        ("--seeds one", "seeds are written like"),
        ("--epochs 3 --set epochs=4", "say the same"),
        ("--set nesterov=maybe", "nesterov must be true or false, not 'maybe'"),
        ("--ledger README.md", "--ledger is a file of JSON lines, named .jsonl, not README.md"),
        ("--workers 0", "--workers must be 1 or more, not 0"),
        ("--epochs 0", "epochs must be a whole number, 1 or more, not 0"),
        ("--set horses=3", "a recipe has no horses; it has epochs, "),
        ("--set momentum", "a change is written like learning_rate=0.05, not 'momentum'"),
        ("--set batch_size=much", "batch_size must be a whole number, 1 or more, not 'much'"),
        ("--set optimizer=lion", "optimizer must be one of sgd, .*not 'lion'"),
        ("--split training", "invalid choice: 'training'"),
        ("--device nonsense", "device must be auto, cpu, cuda or mps, not 'nonsense'"),
    ],
)
def test_a_bad_command_line_ends_with_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        sweep.main(arguments.split())
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(f"sweep.py: error: .*{message}.*", error)


def test_a_dry_run_lists_what_is_missing_and_runs_nothing(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    recipe = sweep.planned_recipe("s5", 2).as_dict()
    ledger.append_trial(make_trial(1, recipe=recipe, epochs=2, data="sample"), path)
    before = path.read_bytes()
    plan = ["--variants", "s5,original,s5", "--seeds", "0-1", "--epochs", "2", "--sample", "--ledger", str(path)]
    assert sweep.main([*plan, "--dry-run"]) == 0
    header, *listed, duration = capsys.readouterr().out.splitlines()
    assert header == "4 trials, sample validation: 1 already in ledger.jsonl, 3 to run"
    assert duration == f"about 0 minutes with {sweep.cores()} at a time, without original: no earlier trial says"
    assert [line.strip() for line in listed] == ["s5, seed 0", "original, seed 0", "original, seed 1"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("other", [["--epochs", "3"], ["--split", "test"], ["--seeds", "2"], ["--set", "momentum=0.8"]])
def test_a_trial_by_another_recipe_split_or_seed_is_not_taken_for_done(tmp_path, capsys, other):
    path = tmp_path / "ledger.jsonl"
    ledger.append_trial(make_trial(1, recipe=sweep.planned_recipe("s5", 2).as_dict(), epochs=2), path)
    plan = ["--variants", "s5", "--seeds", "1", "--epochs", "2", "--sample", "--ledger", str(path), "--dry-run"]
    sweep.main(plan)
    assert "0 to run" in capsys.readouterr().out
    sweep.main([*plan, *other])
    assert "1 to run" in capsys.readouterr().out


def test_the_duration_is_estimated_from_earlier_trials_of_the_variant():
    trials = [make_trial(seed, epochs=20, seconds=20 * seconds) for seed, seconds in enumerate((9.0, 12.0, 30.0))]
    assert sweep.estimate([("s5", 20)] * 10, trials, 2) == "about 20 minutes with 2 at a time"
    assert sweep.estimate([("s5", 10)] * 10, trials, None).startswith("about 20 minutes of work, over all")
    assert sweep.estimate([], trials, 2) == "nothing to run"
    assert sweep.estimate([("s5", 20)], [], 2) == "no earlier trial in this ledger says how long s5 will take"
    assert "without sgd: no earlier trial" in sweep.estimate([("s5", 20), ("sgd", 20)], trials, 2)


def test_the_summary_counts_and_averages_what_was_wanted(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for seed, accuracy in ((0, 99.25), (1, 99.5), (2, 10.0)):
        ledger.append_trial(make_trial(seed, accuracy=accuracy), path)
    wanted = [ledger.trial_key(make_trial(seed)) for seed in (0, 1, 7)]
    line = sweep.summary(wanted, path).splitlines()[-1]
    assert line.split() == ["s5", "2", "of", "3", "99.375", "99.250"]


def test_a_recipe_with_changes():
    recipe = sweep.planned_recipe("s5", 3, {"optimizer": "muon", "learning_rate": 0.05})
    assert (recipe.epochs, recipe.optimizer, recipe.learning_rate) == (3, "muon", 0.05)
    assert recipe.momentum == sweep.planned_recipe("s5").momentum
    assert sweep.parse_change("learning_rate=0.05") == ("learning_rate", 0.05)
    assert sweep.parse_change("precision=bfloat16") == ("precision", "bfloat16")
    assert sweep.parse_change("nesterov=false") == ("nesterov", False)
    trial = sweep.run_trial("s5", 0, "validation", changes={"epochs": 1, "batch_size": 100}, sample=True, device="cpu")
    assert trial["recipe"]["batch_size"] == 100


def test_as_many_workers_as_cores_unless_told_otherwise(tmp_path, monkeypatch):
    arrangements = []
    monkeypatch.setattr(sweep, "cores", lambda: 6)
    monkeypatch.setattr(sweep, "run_all", lambda todo, _, workers: arrangements.append((workers, todo[0]["threads"])))
    for seeds, workers in ((range(9), None), (range(3), None), ([0], None), (range(9), 2)):
        sweep.sweep(["s5"], list(seeds), sample=True, device="cpu", workers=workers, ledger=tmp_path / "ledger.jsonl")
    assert arrangements == [(6, 1), (3, 2), (1, None), (2, 3)]


def test_on_ray_a_trial_has_the_one_thread_of_its_cpu(tmp_path, monkeypatch):
    arrangements = []
    monkeypatch.setattr(
        ray_runner, "run_on_ray", lambda todo, *rest: arrangements.append((todo[0]["threads"], rest[3]))
    )
    for workers in (None, 2):
        ledger = tmp_path / "ledger.jsonl"
        sweep.sweep(["s5"], [0, 1], sample=True, device="cpu", workers=workers, ray="auto", ledger=ledger)
    assert arrangements == [(1, None), (1, 2)]


def test_a_ledger_that_cannot_be_written_is_found_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "file").touch()
    start = time.monotonic()
    assert (
        sweep.main(["--sample", "--variants", "s5", "--seeds", "0", "--ledger", f"{tmp_path}/file/ledger.jsonl"]) == 1
    )
    assert time.monotonic() - start < 2
    error = capsys.readouterr().err
    assert error.startswith("sweep.py: ")
    assert error.count("\n") == 1


# --- Many trials ------------------------------------------------------------------------------------------------------


def pretend(variant: str, seed: int, **files: str) -> dict:
    """A stand-in for `run_trial` that takes no time, or fails as its name says."""
    if variant == "raises":
        raise ValueError("no luck today")
    if variant == "dies":
        wait_for(lambda: count_lines(Path(files["ledger"])) == 1)
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "trains":
        while True:
            with open(files["heartbeat"], "a") as file:
                file.write(".")
            time.sleep(0.02)
    return make_trial(seed, variant=variant)


def test_a_trial_that_raises_is_named_and_the_rest_goes_on(tmp_path, capsys):
    path = tmp_path / "results" / "ledger.jsonl"
    trials = [{"variant": variant, "seed": 0} for variant in ("one", "raises", "two", "three")]
    assert sweep.run_all(trials, path, 2, pretend) == 1
    assert {trial["variant"] for trial in read_strictly(path)} == {"one", "two", "three"}
    output = capsys.readouterr()
    assert "raises, seed 0: FAILED, ValueError: no luck today" in output.out
    assert "Traceback" not in output.err
    assert "4/4" in output.err, "the progress over trials"


def test_a_worker_that_dies_is_reported_and_what_was_done_is_kept(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    trials = [{"variant": variant, "seed": 0, "ledger": str(path)} for variant in ("one", "dies", "two", "three")]
    assert sweep.run_all(trials, path, 1, pretend) == 3
    assert [trial["variant"] for trial in read_strictly(path)] == ["one"]
    error = capsys.readouterr().err
    assert "A worker process died (killed, or out of memory?): 3 trials are not done." in error
    assert "the same command runs the others" in error


DRIVER = """
import sys
from pathlib import Path
from experiments import sweep
from tests.test_sweep import pretend

folder = Path(sys.argv[1])
trials = [{"variant": name, "seed": 0, "heartbeat": str(folder / name)} for name in ("one", "trains", "two")]
sweep.sweep = lambda **options: sweep.run_all(trials, folder / "ledger.jsonl", 1, pretend)
sys.exit(sweep.main([]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_trains_on_when_the_sweep_has_ended(tmp_path, how, interruptible):
    whole = [sys.executable, "-c", DRIVER, str(tmp_path)]
    process = subprocess.Popen(whole, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    heartbeat = tmp_path / "trains"
    wait_for(lambda: heartbeat.exists() and count_lines(tmp_path / "ledger.jsonl") == 1)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does: every process gets it
    else:
        process.kill()
    error = process.communicate(timeout=30)[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Interrupted. Finished trials are in the ledger; the same command runs the others." in error
        assert "Traceback" not in error
    time.sleep(0.5)
    beats = heartbeat.stat().st_size
    time.sleep(0.3)
    assert heartbeat.stat().st_size == beats
    assert [trial["variant"] for trial in read_strictly(tmp_path / "ledger.jsonl")] == ["one"]


def test_a_sweep_that_is_killed_goes_on_where_it_stopped(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    command = ["--variants", "s5", "--seeds", "0-1", "--epochs", "1", "--sample", "--ledger", str(path)]
    command += ["--workers", "1"]  # or both trials may be over before the kill
    with subprocess.Popen([sys.executable, str(ROOT / "sweep.py"), *command], cwd=tmp_path) as process:
        wait_for(lambda: count_lines(path) == 1)
        process.kill()
    before = path.read_bytes()

    assert sweep.main(command) == 0
    assert "2 trials, sample validation: 1 already in ledger.jsonl, 1 to run" in capsys.readouterr().out
    assert path.read_bytes().startswith(before)
    assert [trial["seed"] for trial in read_strictly(path)] == [0, 1]
    after = path.read_bytes()

    assert sweep.main(command) == 0
    assert "2 already in ledger.jsonl, 0 to run" in capsys.readouterr().out
    assert path.read_bytes() == after
