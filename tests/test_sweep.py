"""`python -m s5.experiments.sweep`: the command line, which trials are run and how, and resuming after a kill."""

# The worker process of one test imports this file to find `stand_in`, so it must not import torch.

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from s5.experiments import ledger, local_runner, sweep
from s5.training.recipe import Recipe
from tests.utils import ROOT, make_trial, read_strictly, wait_for


def ledger_with_seed_1(tmp_path: Path) -> Path:
    """A ledger with one trial: s5, two epochs, seed 1."""
    from s5.experiments.trial import planned_recipe

    path = tmp_path / "ledger.jsonl"
    ledger.append_trial(make_trial(1, recipe=planned_recipe("s5", {"epochs": 2}).as_dict(), epochs=2), path)
    return path


# --- The command line -------------------------------------------------------------------------------------------------


def test_help_shows_no_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as exit_:
        sweep.main(["--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    assert "python -m s5.experiments.sweep --variants s5,original --seeds 103-105" in output
    _, recipe_options = output.split("changes to each variant's recipe:")
    assert "--learning-rate" in recipe_options
    assert "default" not in recipe_options, "each variant has its own"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-2", [0, 1, 2]), ("0-2,7", [0, 1, 2, 7]), ("4,4,3-4", [4, 3]), (" 1, 2", [1, 2]), ("5-5", [5])],
)
def test_seeds(text, seeds):
    assert sweep.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1-",
        "-1",
        "1,,2",
        "1-2-3",
        "5-2",
        "0,5-2",
        "1.5",
        "0-1000000000",
        "0-9999,10000",
        "9223372036854775808",
    ],
)
def test_bad_seeds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="0-4 or 0,3,7"):
        sweep.parse_seeds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants s5,s6,s7", "unknown variant s6, s7; known: .*s5"),
        ("--variants ,", "--variants is empty; known: .*s5"),
        ("--seeds one", "seeds must be like"),
        ("--ledger README.md", "--ledger must be a .jsonl file, not README.md"),
        ("--workers 0", "workers must be a whole number, 1 or more, not 0"),
        ("--ray auto --retries -1", "retries must be a whole number, 0 or more, not -1"),
        *((f"--ray auto --limit {value}", "limit must be a number of seconds") for value in ("0", "-1", "nan", "inf")),
        *(
            (f"--ray auto --gpus-per-trial {value}", "gpus_per_trial must be 0 or more")
            for value in ("-1", "nan", "inf")
        ),
        ("--limit 5 --retries 2", "retries, limit: only with ray"),
        ("--gpus-per-trial 0", "gpus_per_trial: only with ray"),
        ("--ray=", "ray must be auto, local or a cluster's address, and it is empty"),
        ("--batch-size 99999999999999999999", "batch_size must be at most 1,000,000, not 99999999999999999999"),
        ("--seeds 0-99999999999999999999999", "seeds must be like"),
        ("--epochs-without-augmentation 99", r"epochs_without_augmentation must be at most 20 \(epochs\), not 99"),
        *(
            (f"{option} {300 * 'n'}.jsonl", f"{option}: the name is too long: n")
            for option in ("--ledger", "--weights")
        ),
        ("--weights=", "--weights: the name is empty"),
        ("--weights README.md", "--weights README.md: this is a file, not a folder"),
        ("--weights w --ray auto", "weights are saved on this machine only, not with ray"),
        ("--epochs 0", "epochs must be a whole number, 1 or more, not 0"),
        ("--epochs much", "--epochs: invalid int value: 'much'"),
        ("--momentum", "--momentum: expected one argument"),
        ("--momentum nan", "momentum must be at least 0 and less than 1, not nan"),
        ("--nesterov=maybe", "ignored explicit argument 'maybe'"),
        ("--optimizer lion", "--optimizer: invalid choice: 'lion'"),
        ("--teacher nobody", "teacher must be a variant, .*, not 'nobody'"),
        ("--horses 3", "unrecognized arguments: --horses 3"),
        ("--split training", "invalid choice: 'training'"),
        ("--device nonsense", "device must be auto, cpu, cuda or mps, not 'nonsense'"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        sweep.main(arguments.split())
    assert exit_.value.code == 2
    assert re.fullmatch(f"sweep: .*{message}.*\n", capsys.readouterr().err)


def test_every_recipe_field_is_an_option():
    changes = Recipe(epochs=3, optimizer="sgd", nesterov=False, rotation=5.5, epochs_without_augmentation=1)
    expected = {name: value for name, value in changes.as_dict().items() if value != getattr(Recipe(), name)}
    command = ["--epochs", "3", "--optimizer", "sgd", "--no-nesterov", "--rotation", "5.5"]
    arguments = sweep.parse_arguments([*command, "--epochs-without-augmentation", "1", "--variants", "s5,s5"])
    assert arguments["changes"] == expected
    assert arguments["variants"] == ["s5"]
    assert not expected.keys() & arguments.keys()
    assert sweep.parse_arguments([])["changes"] == {}
    assert sweep.parse_arguments(["--lr", "0.02"])["changes"] == {"learning_rate": 0.02}


def test_unwritable_ledger_is_reported_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local_runner, "ProcessPoolExecutor", None)
    (tmp_path / "file").touch()
    command = ["--sample", "--variants", "s5", "--seeds", "0", "--ledger", f"{tmp_path}/file/ledger.jsonl"]
    assert sweep.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("sweep: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("seed", [2**64, 2**63, "a", 1.5, None, -1, True])
def test_a_bad_seed_is_refused(seed, tmp_path):
    with pytest.raises(ValueError, match="seed must be a whole number, 0 or more and below 2"):
        sweep.sweep(["s5"], [0, seed], sample=True, ledger=tmp_path / "ledger.jsonl")


@pytest.mark.parametrize(
    "options",
    [
        *({"workers": value} for value in (0, -1, 1.5, "2", True)),
        *({"ray": "auto", "limit": value} for value in (0, -1, float("nan"), float("inf"))),
        *({"ray": "auto", "retries": value} for value in (-1, 0.5)),
        *({"ray": "auto", "gpus_per_trial": value} for value in (-1, float("nan"))),
        *({name: value} for name, value in (("limit", 9), ("retries", 2), ("gpus_per_trial", 0))),
        {"ray": ""},
        {"split": "valid"},
        {"device": "abacus"},
        {"precision": "float64"},
        {"ray": "auto", "weights": "w"},
    ],
    ids=str,
)
def test_a_bad_option_is_refused_before_anything_is_run(options, tmp_path, monkeypatch):
    monkeypatch.setattr(local_runner, "ProcessPoolExecutor", None)
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        sweep.sweep(["s5"], [0], sample=True, ledger=path, **options)
    assert not path.exists()


def test_an_estimate_names_few_networks():
    work = [(f"conv {width} gap", 1) for width in range(1, 8)]
    assert sweep.estimate(work, [], 2).endswith("conv 1 gap, conv 2 gap, conv 3 gap and 4 more is recorded")


@pytest.mark.parametrize("other", [{"precision": "bfloat16"}, {"device": "cuda: NVIDIA H100"}])
def test_the_duration_is_not_estimated_from_another_precision_or_device(other, tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    ledger.append_trial(make_trial(seconds=20.0, **other), path)
    sweep.sweep(["s5"], [1], sample=True, device="cpu", precision="float32", ledger=path, dry_run=True)
    assert "no comparable trial of s5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variants", "seeds"), [("s5", [0]), (dict, [0]), (["s5"], 100), (["s5"], "100-102"), (["s5"], None)]
)
def test_variants_and_seeds_are_lists(variants, seeds, tmp_path):
    with pytest.raises(ValueError, match="must be a list"):
        sweep.sweep(variants, seeds, sample=True, ledger=tmp_path / "ledger.jsonl")


# --- Which trials are run ---------------------------------------------------------------------------------------------


def test_dry_run_lists_the_missing_trials_and_runs_nothing(tmp_path, capsys):
    path = ledger_with_seed_1(tmp_path)
    before = path.read_bytes()
    command = ["--variants", "s5,original,s5", "--seeds", "0-1", "--epochs", "2", "--sample", "--ledger", str(path)]
    assert sweep.main([*command, "--device", "cpu", "--dry-run"]) == 0
    header, *trials, duration = capsys.readouterr().out.splitlines()
    assert header == "4 trials, sample validation: 1 already in ledger.jsonl, 3 to run"
    workers = min(3, os.cpu_count() if not hasattr(os, "sched_getaffinity") else len(os.sched_getaffinity(0)))
    expected = f"less than a minute with {workers} at a time, not counting original: no comparable trial is recorded"
    assert duration == expected
    assert [trial.strip() for trial in trials] == ["s5, seed 0", "original, seed 0", "original, seed 1"]
    assert path.read_bytes() == before


def test_a_command_warns_in_one_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"variant": "s5"\n')
    command = [
        sys.executable,
        "-m",
        "s5.experiments.sweep",
        "--sample",
        "--dry-run",
        "--variants",
        "s5",
        "--ledger",
        path,
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0
    assert re.fullmatch(r"warning: ledger\.jsonl, line 1 is torn or no JSON \(.*\): left out\n", process.stderr)


@pytest.mark.parametrize("other", ["--epochs 3", "--split test", "--seeds 2", "--momentum 0.8"])
def test_another_recipe_split_or_seed_is_another_trial(tmp_path, capsys, other):
    path = ledger_with_seed_1(tmp_path)
    command = ["--variants", "s5", "--seeds", "1", "--epochs", "2", "--sample", "--ledger", str(path), "--dry-run"]
    sweep.main(command)
    assert "0 to run" in capsys.readouterr().out
    sweep.main([*command, *other.split()])
    assert "1 to run" in capsys.readouterr().out


def test_the_duration_is_estimated_from_recorded_trials_of_the_variant():
    trials = [make_trial(seed, epochs=20, seconds=20 * seconds) for seed, seconds in enumerate((9.0, 12.0, 30.0))]
    assert sweep.estimate([("s5", 20)] * 10, trials, 2) == "about 20 minutes with 2 at a time"
    assert sweep.estimate([("s5", 10)] * 10, trials, None).startswith("about 20 minutes of work, shared by")
    assert sweep.estimate([], trials, 2) == "nothing to run"
    assert sweep.estimate([("s5", 20)], [], 2) == "no estimate of the time: no comparable trial of s5 is recorded"
    assert "not counting sgd" in sweep.estimate([("s5", 20), ("sgd", 20)], trials, 2)


def test_the_summary_counts_and_averages_the_requested_trials(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for seed, accuracy in ((0, 99.25), (1, 99.5), (2, 10.0)):
        ledger.append_trial(make_trial(seed, accuracy=accuracy), path)
    requested = [ledger.trial_key(make_trial(seed)) for seed in (0, 1, 7)]
    row = sweep.summary(requested, path).splitlines()[-1]
    assert row.split() == ["s5", "2", "of", "3", "99.375", "99.250"]


def test_the_summary_is_of_the_requested_precision(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for precision, accuracy in (("float32", 99.25), ("bfloat16", 99.5)):
        ledger.append_trial(make_trial(accuracy=accuracy, precision=precision), path)
    requested = [ledger.trial_key(make_trial())]
    assert sweep.summary(requested, path, "float32").split()[-1] == "99.250"
    assert sweep.summary(requested, path, "bfloat16").split()[-1] == "99.500"


def test_the_time_on_mnist_is_not_estimated_from_the_sample(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    ledger.append_trial(make_trial(seconds=20.0), path)
    sweep.sweep(["s5"], [0], sample=True, device="cpu", ledger=path, dry_run=True)
    sweep.sweep(["s5"], [1], sample=True, device="cpu", ledger=path, dry_run=True)
    assert "less than a minute" in capsys.readouterr().out
    sweep.sweep(["s5"], [1], device="cpu", ledger=path, dry_run=True)
    assert "no comparable trial of s5 is recorded" in capsys.readouterr().out


# --- How they are run -------------------------------------------------------------------------------------------------


def test_one_worker_per_core_by_default(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("s5.training.device.cores", lambda: 6)
    monkeypatch.setattr(
        sweep, "run_locally", lambda todo, *rest: calls.append((rest[-1], todo[0]["threads"])) or len(todo)
    )
    for seeds, workers in ((range(9), None), (range(3), None), ([0], None), (range(9), 2)):
        sweep.sweep(["s5"], list(seeds), sample=True, device="cpu", workers=workers, ledger=tmp_path / "ledger.jsonl")
    assert calls == [(6, 1), (3, 2), (1, None), (2, 3)]


def test_on_ray_each_trial_has_one_thread(tmp_path, monkeypatch, small):
    from s5.experiments import trial

    calls = []

    def run_on_ray(todo, data, ledger, run, address, workers, gpus=0, retries=2, limit=None):
        assert (data, run, address) == (small, trial.run_trial, "auto")
        calls.append((todo[0]["threads"], workers, gpus, retries, limit))
        return len(todo)

    monkeypatch.setattr(sweep, "run_on_ray", run_on_ray)
    monkeypatch.setattr(trial, "load_data", lambda sample: small)
    options = {"sample": True, "device": "cpu", "ray": "auto", "ledger": tmp_path / "ledger.jsonl"}
    sweep.sweep(["s5"], [0, 1], **options)
    sweep.sweep(["s5"], [0, 1], workers=2, gpus_per_trial=0.5, retries=1, limit=9, **options)
    assert calls == [(1, None, 0, 2, None), (1, 2, 0.5, 1, 9)]


def stand_in(seed: int, changes: dict, **_) -> dict:
    """A replacement for `run_trial` that returns at once."""
    return make_trial(seed, recipe=Recipe(**changes).as_dict(), epochs=changes["epochs"])


def test_a_killed_sweep_resumes(tmp_path, capsys, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    command = ["--variants", "s5", "--seeds", "0-1", "--epochs", "1", "--sample", "--ledger", str(path)]
    command += ["--workers", "1"]  # with two, both trials may be finished before the kill
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # several threads are slow beside other tests
    whole = [sys.executable, "-m", "s5.experiments.sweep", *command]
    with subprocess.Popen(whole, cwd=ROOT, env=environment) as process:
        wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") == 1)
        process.kill()
    before = path.read_bytes()
    assert read_strictly(path)[0]["mistakes"], "a real trial"

    monkeypatch.setattr("s5.experiments.trial.run_trial", stand_in)
    assert sweep.main(command) == 0
    assert "2 trials, sample validation: 1 already in ledger.jsonl, 1 to run" in capsys.readouterr().out
    assert path.read_bytes().startswith(before)
    assert [trial["seed"] for trial in read_strictly(path)] == [0, 1]
    after = path.read_bytes()

    assert sweep.main(command) == 0
    assert "2 already in ledger.jsonl, 0 to run" in capsys.readouterr().out
    assert path.read_bytes() == after


def saving_stand_in(weights=None, **trial) -> dict:
    """A replacement for `run_trial` that writes the file of weights."""
    from s5.experiments.trial import weights_path

    weights_path(weights, trial["variant"], trial["seed"]).touch()
    return stand_in(**trial)


def test_weights_are_saved_in_the_folder_and_those_of_recorded_trials_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("s5.experiments.trial.run_trial", saving_stand_in)
    command = ["--variants", "s5", "--epochs", "1", "--sample", "--workers", "1"]
    command += ["--ledger", str(tmp_path / "ledger.jsonl"), "--weights", str(tmp_path / "w")]
    assert sweep.main([*command, "--seeds", "0"]) == 0
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["s5-seed0.safetensors"]
    assert "without weights" not in capsys.readouterr().out
    (tmp_path / "w" / "s5-seed0.safetensors").unlink()
    assert sweep.main([*command, "--seeds", "0-1"]) == 0
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["s5-seed1.safetensors"]
    assert f"1 recorded trial without weights in {tmp_path}/w: not trained again" in capsys.readouterr().out


def test_a_folder_of_weights_that_cannot_be_written_is_reported_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local_runner, "ProcessPoolExecutor", None)
    (tmp_path / "file").touch()
    command = ["--sample", "--variants", "s5", "--seeds", "0", "--ledger", f"{tmp_path}/ledger.jsonl"]
    assert sweep.main([*command, "--weights", f"{tmp_path}/file/weights"]) == 1
    assert re.fullmatch("sweep: cannot write into .*/file/weights: .*\n", capsys.readouterr().err)


def at_once(variant: str, seeds: list[int], changes: dict, **_) -> list[dict]:
    """A replacement for `run_trials`: `s5` fails, any other variant gives a line per seed."""
    if variant == "s5":
        raise RuntimeError("out of memory")
    return [make_trial(seed, variant=variant, accuracy=98.0, recipe=Recipe(**changes).as_dict()) for seed in seeds]


def test_on_a_gpu_seeds_are_trained_at_once_and_one_by_one_where_that_fails(tmp_path, capsys, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setattr("s5.training.device.pick_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr("s5.experiments.trial.run_trial", stand_in)
    monkeypatch.setattr("s5.experiments.trial.run_trials", at_once)
    changes = Recipe(epochs=1).as_dict()
    assert sweep.sweep(["s5", "wide"], [0, 1, 2], changes=changes, sample=True, ledger=path) == 0
    recorded = {(trial["variant"], trial["seed"]): trial["accuracy"] for trial in read_strictly(path)}
    assert recorded == {("wide", seed): 98.0 for seed in range(3)} | {("s5", seed): 99.4 for seed in range(3)}
    assert "s5, 3 seeds at once: FAILED, RuntimeError: out of memory" in capsys.readouterr().out


def test_on_a_gpu_a_trial_in_another_precision_is_not_taken_for_the_one_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    monkeypatch.setattr("s5.training.device.pick_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr("s5.experiments.trial.run_trial", stand_in)
    recipe = Recipe(epochs=1).as_dict()
    ledger.append_trial(make_trial(0, precision="bfloat16", recipe=recipe), path)
    options = {"changes": recipe, "sample": True, "ledger": path, "precision": "float32"}
    assert sweep.sweep(["s5"], [0], **options) == 0
    assert [trial["precision"] for trial in read_strictly(path)] == ["bfloat16", "float32"]


def test_trials_are_grouped_by_all_but_the_seed_and_at_most_32():
    trials = [{"variant": "s5", "seed": seed, "changes": None} for seed in range(40)]
    others = [{"variant": "s5", "seed": seed, "changes": {"epochs": 1}} for seed in range(2)]
    groups = sweep.grouped([*trials, *others, {"variant": "sgd", "seed": 0, "changes": None}])
    assert [(group["variant"], len(group["seeds"]), group["changes"]) for group in groups] == [
        ("s5", 32, None),
        ("s5", 8, None),
        ("s5", 2, {"epochs": 1}),
    ]
    assert sweep.grouped([]) == []


def test_a_trial_in_another_precision_is_skipped_unless_asked_for(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    ledger.append_trial(make_trial(0, precision="bfloat16"), path)
    for precision, skipped in (("auto", 1), ("bfloat16", 1), ("float32", 0)):
        sweep.sweep(["s5"], [0], sample=True, precision=precision, ledger=path, dry_run=True)
        assert f"{skipped} already in ledger.jsonl" in capsys.readouterr().out


def own_stand_in(variant, seed: int, changes: dict | None, **_) -> dict:
    """A replacement for `run_trial` that knows the names of sources."""
    name = getattr(variant, "name", variant)
    return make_trial(seed, variant=name, network=name, source=getattr(variant, "text", ""))


def test_networks_of_ones_own_are_recorded_in_a_ledger_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "USER_LEDGER", tmp_path / "own.jsonl")
    monkeypatch.setattr(sweep, "LEDGER", tmp_path / "main.jsonl")
    monkeypatch.setattr("s5.experiments.trial.run_trial", own_stand_in)
    (tmp_path / "mine.py").write_text("def MyNet():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    command = ["--network", "conv 4  8 GAP", "--network", f"{tmp_path}/mine.py:MyNet", "--seeds", "0", "--sample"]
    assert sweep.main(command) == 0
    line, source = read_strictly(tmp_path / "own.jsonl")
    assert {line["variant"], source["variant"].split("@")[0]} == {"conv 4 8 gap", "MyNet"}
    assert "def MyNet()" in line["source"] + source["source"]
    assert not (tmp_path / "main.jsonl").exists()
    capsys.readouterr()
    assert sweep.main(command) == 0
    assert "2 already in own.jsonl, 0 to run" in capsys.readouterr().out
    assert sweep.parse_arguments([])["ledger"] is None
    assert sweep.parse_arguments(["--network", "conv 4 gap", "--variants", "s5"])["variants"] == ["s5", "conv 4 gap"]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("conv 4 q gap", 'in "conv 4 q gap", word 3: "q" is no .*; it is no variant either'),
        ("missing.py:MyNet", "missing.py cannot be read: No such file or directory"),
        ("mine.py", "write a network as FILE.py:NAME, not 'mine.py'"),
    ],
)
def test_a_bad_network_gives_one_line_and_exit_code_2(network, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep.main(["--network", network])
    assert stopped.value.code == 2
    assert re.fullmatch(f"sweep: .*{message}.*\n", capsys.readouterr().err)
