"""`python -m s5 sweep`: the command line, which trials are run and how, and resuming after a kill."""

import argparse
import re
import subprocess
import sys

import pytest

from s5.commands import sweep as command
from s5.commands.options import seeds
from s5.experiments import ledger, sweep
from s5.experiments.trial import Trial, planned_recipe, weights_path
from s5.experiments.variants import VARIANTS
from s5.training.recipe import Recipe
from tests.utils import ROOT, make_trial, read_strictly, run_here


def stand_in(variant, seed: int, changes: dict | None = None, precision: str = "float32", weights=None, **_) -> Trial:
    """A replacement for `run_trial` that returns at once."""
    if variant == "sgd":
        raise RuntimeError("no luck today")
    name = getattr(variant, "name", variant)
    if weights is not None:
        weights_path(weights, name, seed).touch()
    recipe = planned_recipe(variant, changes).as_dict()
    about = {"variant": name, "recipe": recipe, "source": getattr(variant, "text", "")}
    return make_trial(seed, precision="float32" if precision == "auto" else precision, **about)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The user's ledger; the project's is empty, and nothing is trained."""
    monkeypatch.setattr(sweep, "run_trial", stand_in)
    monkeypatch.setattr(sweep, "run_locally", run_here)
    monkeypatch.setattr(sweep, "load_data", lambda sample: None)
    monkeypatch.setattr(sweep, "LEDGER", tmp_path / "results.jsonl")
    monkeypatch.setattr(sweep, "USER_LEDGER", tmp_path / "runs.jsonl")
    return tmp_path / "runs.jsonl"


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3]), ("0-2,7", [0, 1, 2, 7]), ("4,4,3-4", [4, 3]), (" 1, 2", [1, 2]), ("5-5", [5])],
)
def test_seeds(text, expected):
    assert seeds(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "abc", "1-", "-1", "1,,2", "1-2-3", "5-2", "1.5", "0-1000000000", "0-9999,10000", "9223372036854775808"],
)
def test_bad_seeds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="0-4 or 0,3,7"):
        seeds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants s5,s6", 'in "s6", word 1: .*; it is no variant either .*s5'),
        ("--variants missing.py:MyNet", "missing.py cannot be read: No such file or directory"),
        ("--variants ,", "there is nothing to run: no variant, or no seed"),
        ("--seeds one", "seeds must be like"),
        ("--ledger README.md", "--ledger: it must be a .jsonl file, not README.md"),
        ("--workers 0", "workers must be a whole number, 1 or more, not 0"),
        ("--threads 0", "threads must be a whole number"),
        ("--ray auto --retries -1", "retries must be a whole number, 0 or more, not -1"),
        ("--ray auto --gpus-per-trial nan", "gpus_per_trial must be 0 or more"),
        ("--gpus-per-trial 0", "gpus_per_trial and retries: only with ray"),
        ("--ray=", "ray must be auto, local or a cluster's address, and it is empty"),
        ("--weights w --ray auto", "weights are saved on this machine only, not with ray"),
        ("--epochs 0", "epochs must be a whole number from 1 to 1,000,000, not 0"),
        ("--momentum much", "--momentum: invalid float value: 'much'"),
        ("--teacher nobody", "teacher must be a variant, .*, not 'nobody'"),
        ("--split training", "invalid choice: 'training'"),
        ("--device nonsense", "device must be auto or one that torch finds here, .*, not 'nonsense'"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, path, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments.split())
    assert exit_.value.code == 2
    assert re.fullmatch(f"sweep: .*{message}.*\n", capsys.readouterr().err)
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--ledger {folder}/file/ledger.jsonl", "cannot write into .*/file: "),
        ("--weights {folder}/file/weights", "cannot write into .*/file/weights: "),
    ],
)
def test_what_cannot_be_written_is_reported_before_training(arguments, message, path, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "file").touch()
    options = ["--sample", "--variants", "s5", "--seeds", "987", *arguments.format(folder=tmp_path).split()]
    monkeypatch.setattr("s5.experiments.local_runner.ProcessPoolExecutor", None)
    assert command.main(options) == 1
    assert re.search(f"^sweep: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [0, 2**63]}, "seed must be a whole number, 0 or more and below 2"),
        ({"seeds": [True]}, "seed must be a whole number"),
        ({"seeds": 100}, "seeds must be a list"),
        ({"variants": "s5"}, "variants must be a list"),
        ({"workers": 1.5}, "workers must be a whole number"),
        ({"split": "valid"}, "split must be validation or test"),
        ({"precision": "float64"}, "precision must be"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused_before_anything_is_run(arguments, message, path):
    with pytest.raises(ValueError, match=message):
        sweep.sweep(**{"variants": ["s5"], "seeds": [0], "sample": True} | arguments)
    assert not path.exists()


def test_a_command_warns_in_one_line(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"variant": "s5"\n')
    options = ["--sample", "--dry-run", "--variants", "s5", "--ledger", tmp_path / "ledger.jsonl"]
    whole = [sys.executable, "-m", "s5", "sweep", *options]
    process = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0
    warning = r"warning: ledger\.jsonl, line 1 is left out: it is torn or no JSON \(.*\)\n"
    assert re.fullmatch(warning, process.stderr)


# --- Which trials are run ---------------------------------------------------------------------------------------------


def test_a_sweep_records_in_the_users_ledger_and_skips_what_is_there_or_in_the_projects(path, tmp_path, capsys):
    project = tmp_path / "results.jsonl"
    ledger.append_trial(stand_in("s5", 0, {"epochs": 2}), project)
    before = project.read_bytes()
    options = ["--variants", "s5,original,s5", "--epochs", "2", "--sample"]
    assert command.main([*options, "--seeds", "0-1"]) == 0
    assert "4 trials, sample validation: 1 already recorded, 3 to run" in capsys.readouterr().out
    assert [(each.variant, each.seed) for each in read_strictly(path)] == [("original", 0), ("s5", 1), ("original", 1)]
    assert project.read_bytes() == before
    after = path.read_bytes()
    assert command.main([*options, "--seeds", "0-1"]) == 0
    header, *table = capsys.readouterr().out.splitlines()
    assert header.endswith("4 already recorded, 0 to run")
    assert table[1].split() == ["s5", "2", "of", "2", "99.400", "99.400"], "the recorded ones count"
    assert path.read_bytes() == after
    assert command.main([*options, "--seeds", "0", "--ledger", str(tmp_path / "own.jsonl")]) == 0
    assert "0 already recorded, 2 to run" in capsys.readouterr().out, "another ledger has its own trials"


@pytest.mark.parametrize("other", ["--epochs 3", "--split test", "--seeds 2", "--momentum 0.8"])
def test_another_recipe_split_or_seed_is_another_trial(path, capsys, other):
    options = ["--variants", "s5", "--seeds", "1", "--epochs", "2", "--sample"]
    ledger.append_trial(stand_in("s5", 1, {"epochs": 2}), path)
    command.main([*options, "--dry-run"])
    assert "0 to run" in capsys.readouterr().out
    command.main([*options, "--dry-run", *other.split()])
    assert "1 to run" in capsys.readouterr().out


def test_a_trial_in_another_precision_is_skipped_unless_asked_for(path, capsys):
    ledger.append_trial(make_trial(0, precision="bfloat16"), path)
    for precision, skipped in (("auto", 1), ("bfloat16", 1), ("float32", 0)):
        sweep.sweep(["s5"], [0], sample=True, precision=precision, dry_run=True)
        assert f"{skipped} already recorded" in capsys.readouterr().out
    assert sweep.sweep(["s5"], [0], sample=True, precision="float32") == 0
    assert [each.precision for each in read_strictly(path)] == ["bfloat16", "float32"]


def test_a_dry_run_lists_the_missing_trials_and_runs_nothing(path, capsys):
    assert sweep.sweep(None, [0], sample=True, device="cpu", dry_run=True) == 0
    _, *trials, duration = capsys.readouterr().out.splitlines()
    assert trials == [f"  {name}, seed 0" for name in VARIANTS]
    assert duration == "no estimate of the time: nothing comparable is recorded"
    assert not path.exists()


def test_the_duration_is_estimated_from_recorded_trials_by_their_multiply_adds(path):
    trials = [make_trial(seed, seconds=20.0 * macs / 1e5, macs=macs) for seed, macs in enumerate((10**6, 3 * 10**6))]
    work = [(VARIANTS["s5"], 20)] * 10  # 1.95 million multiply-adds: 19.5 seconds an epoch
    assert sweep.estimate(work, trials, 2) == "about 32 minutes with 2 at a time"
    assert sweep.estimate(work, trials, None) == "about 65 minutes of work, shared by the cluster's workers"
    assert sweep.estimate(work[:1], [*trials, make_trial(seconds=0.0, macs=1)], 200).startswith("less than a minute")
    others = [{"precision": "bfloat16"}, {"device": "cuda: NVIDIA H100"}, {"data": "mnist"}]
    others = [make_trial(**other) for other in others]
    assert sweep.comparable([*trials, *others], True, "cpu", "float32") == trials


def test_networks_of_the_users_are_variants(path, tmp_path, capsys):
    code = "from torch import nn\ndef MyNet():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    (tmp_path / "mine.py").write_text(code)
    options = ["--variants", f"conv 4  8 GAP, {tmp_path}/mine.py:MyNet,s5", "--seeds", "0", "--sample"]
    assert command.main(options) == 0
    line, own, named = read_strictly(path)
    assert (line.variant, own.variant.split("@")[0], named.variant) == ("conv 4 8 gap", "MyNet", "s5")
    assert own.source.startswith(code)
    assert command.main(options) == 0
    assert "3 already recorded, 0 to run" in capsys.readouterr().out


# --- How they are run -------------------------------------------------------------------------------------------------


def test_one_worker_per_core_and_one_thread_each_by_default(path, monkeypatch):
    calls = []
    monkeypatch.setattr(sweep, "cores", lambda: 6)
    monkeypatch.setattr(sweep, "run_locally", lambda todo, *rest: calls.append((rest[-1], todo[0]["threads"])) or 0)
    for count, options in ((9, {}), (3, {}), (9, {"workers": 2, "threads": 3})):
        sweep.sweep(["s5"], list(range(count)), sample=True, device="cpu", **options)
    assert calls == [(6, 1), (3, 1), (2, 3)]


def test_the_options_of_ray_are_passed_on(path, monkeypatch):
    calls = []

    def run_on_ray(todo, data, ledger, run, address, workers, gpus=0, retries=2):
        assert (run, address) == (stand_in, "auto")
        calls.append((todo[0]["threads"], workers, gpus, retries))
        return len(todo)

    monkeypatch.setattr(sweep, "run_on_ray", run_on_ray)
    options = {"sample": True, "device": "cpu", "ray": "auto"}
    assert sweep.sweep(["s5"], [0, 1], **options) == 2
    sweep.sweep(["s5"], [0, 1], workers=2, gpus_per_trial=0.5, retries=1, **options)
    assert calls == [(1, None, 0, 2), (1, 2, 0.5, 1)]


def test_a_failed_trial_is_counted_and_the_others_are_summarised(path, capsys):
    assert command.main(["--variants", "sgd,s5", "--seeds", "0-1", "--sample"]) == 1
    output = capsys.readouterr().out
    assert "sgd, seed 0: FAILED, RuntimeError: no luck today" in output
    assert "sgd 0 of 2      –       –" in output
    assert "s5 2 of 2 99.400  99.400" in output


def test_weights_are_saved_in_the_folder_and_those_of_recorded_trials_are_named(path, tmp_path, capsys):
    options = ["--variants", "s5", "--sample", "--weights", str(tmp_path / "w")]
    assert command.main([*options, "--seeds", "0"]) == 0
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["s5-seed0.safetensors"]
    assert "without weights" not in capsys.readouterr().out
    (tmp_path / "w" / "s5-seed0.safetensors").unlink()
    assert command.main([*options, "--seeds", "0-1"]) == 0
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["s5-seed1.safetensors"]
    assert f"1 recorded trial without weights in {tmp_path}/w: not trained again" in capsys.readouterr().out


def test_every_field_of_a_recipe_can_be_changed(path, capsys):
    changes = {"epochs": 3, "optimizer": "sgd", "nesterov": False, "rotation": 5.5, "learning_rate": 0.02}
    options = ["--epochs", "3", "--optimizer", "sgd", "--no-nesterov", "--rotation", "5.5", "--lr", "0.02"]
    assert command.main([*options, "--variants", "s5", "--seeds", "0", "--sample"]) == 0
    assert read_strictly(path)[0].recipe == Recipe(**changes)
