"""`python -m s5 sweep`: the command line, which trials are run and how."""

import re
import subprocess
import sys

import pytest

from s5.commands import sweep as command
from s5.commands.options import seeds
from s5.experiments import ledger, sweep
from s5.experiments.claims import find_variant
from s5.experiments.trial import Trial, weights_path
from s5.experiments.variants import VARIANTS
from tests.utils import ROOT, make_trial, read_strictly, run_here


def stand_in(variant, seed: int, changes: dict | None = None, precision: str = "float32", weights=None, **_) -> Trial:
    """A replacement for `run_trial` that returns at once."""
    if variant == "dropout":
        raise RuntimeError("no luck today")
    known = find_variant(variant)
    if weights is not None:
        weights_path(weights, known.name, seed).touch()
    about = {"variant": known.name, "recipe": known.recipe.changed(**changes or {}).as_dict()}
    about |= {"source": getattr(variant, "text", "")}
    return make_trial(seed, precision="float32" if precision == "auto" else precision, **about)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The user's ledger; the project's is empty, and nothing is trained."""
    monkeypatch.setattr(sweep, "run_trial", stand_in)
    monkeypatch.setattr(sweep, "run_locally", run_here)
    monkeypatch.setattr(sweep, "load_data", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "LEDGER", tmp_path / "results.jsonl")
    monkeypatch.setattr(sweep, "USER_LEDGER", tmp_path / "runs.jsonl")
    return tmp_path / "runs.jsonl"


# --- The command line -------------------------------------------------------------------------------------------------


def test_seeds():
    texts = {"3": [3], "0-2,7": [0, 1, 2, 7], " 1, 2": [1, 2], "5-5": [5]}
    assert {text: seeds(text) for text in texts} == texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants s5,s6", r'in "s6": .*; did you mean s5\?'),
        ("--variants missing.py:MyNet", "there is no file missing.py"),
        ("--variants ,", "there is nothing to run: no variant, or no seed"),
        ("--seeds 1-", "argument --seeds: invalid seeds value: '1-'"),
        ("--seeds 9223372036854775808", "seed must be a whole number"),
        ("--workers 0", "workers must be 1 or more, not 0"),
        ("--threads 0", "threads must be a whole number"),
        ("--weights w --ray auto", "weights are saved on this machine only, not with ray"),
        ("--epochs 0", "epochs must be a whole number from 1 to 1,000,000, not 0"),
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


def test_what_cannot_be_written_is_reported_before_training(path, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setattr("s5.experiments.local_runner.ProcessPoolExecutor", None)
    for option in ("--ledger", "--weights"):
        path = str(tmp_path / "file" / "ledger.jsonl")
        options = ["--data", "sample", "--variants", "s5", "--seeds", "987", option, path]
        assert command.main(options) == 1
        assert "sweep: cannot write into " in capsys.readouterr().err


def test_a_command_warns_in_one_line(tmp_path):
    (tmp_path / "ledger.jsonl").write_text('{"variant": "s5"\n')
    options = ["--data", "sample", "--dry-run", "--variants", "s5", "--ledger", tmp_path / "ledger.jsonl"]
    whole = [sys.executable, "-m", "s5", "sweep", *options]
    process = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0
    warning = r"warning: ledger\.jsonl, line 1 is left out: it is torn or no trial \(.*\)\n"
    assert re.fullmatch(warning, process.stderr)


# --- Which trials are run ---------------------------------------------------------------------------------------------


def test_a_sweep_records_in_the_users_ledger_and_skips_what_is_there_or_in_the_projects(path, tmp_path, capsys):
    project = tmp_path / "results.jsonl"
    ledger.append_trial(stand_in("s5", 0, {"epochs": 2}), project)
    before = project.read_bytes()
    options = ["--variants", "s5,original,s5", "--epochs", "2", "--data", "sample"]
    assert command.main([*options, "--seeds", "0-1"]) == 0
    assert (
        "4 trials, MNIST SAMPLE (not the full data set) validation: 1 already recorded, 3 to run"
        in capsys.readouterr().out
    )
    assert [(each.variant, each.seed) for each in read_strictly(path)] == [("original", 0), ("s5", 1), ("original", 1)]
    assert project.read_bytes() == before
    assert command.main([*options, "--seeds", "0-1"]) == 0
    header, *table = capsys.readouterr().out.splitlines()
    assert header.endswith("4 already recorded, 0 to run")
    assert table[1].split() == ["s5", "2", "99.400", "99.400"], "the recorded ones count"
    assert len(read_strictly(path)) == 3
    assert command.main([*options, "--seeds", "0", "--ledger", str(tmp_path / "own.jsonl")]) == 0
    assert "0 already recorded, 2 to run" in capsys.readouterr().out, "another ledger has its own trials"


def test_another_recipe_split_seed_or_precision_is_another_trial(path, capsys):
    options = ["--variants", "s5", "--seeds", "1", "--epochs", "2", "--data", "sample", "--dry-run"]
    ledger.append_trial(stand_in("s5", 1, {"epochs": 2}), path)
    for other in ([], ["--epochs", "3"], ["--split", "test"], ["--seeds", "2"], ["--precision", "bfloat16"]):
        command.main([*options, *other])
        assert f"{len(other) // 2} to run" in capsys.readouterr().out


def test_a_dry_run_lists_the_missing_trials_and_runs_nothing(path, capsys):
    assert sweep.sweep(None, [0], data="sample", device="cpu", dry_run=True) == 0
    _, *trials, duration = capsys.readouterr().out.splitlines()
    assert trials == [f"  {name}, seed 0" for name in VARIANTS]
    assert duration == "no estimate of the time: nothing comparable is recorded"
    assert not path.exists()


def test_the_duration_is_estimated_from_recorded_trials_by_their_multiply_adds(path):
    trials = [make_trial(seed, seconds=20.0 * macs / 1e5, macs=macs) for seed, macs in enumerate((10**6, 3 * 10**6))]
    others = [{"precision": "bfloat16"}, {"device": "cuda: NVIDIA H100"}, {"data": "mnist"}]
    trials += [make_trial(seconds=1e9, **other) for other in others]
    work = [(VARIANTS["s5"], 20)] * 10  # 1.95 million multiply-adds: 19.5 seconds an epoch
    here = (trials, "sample", "cpu", "float32")
    assert sweep.estimate(work, *here, 2) == "about 33 minutes with 2 at a time"
    assert sweep.estimate(work, *here, None) == "about 65 minutes of work, shared by the cluster's workers"
    instant = make_trial(macs=0, seconds=0.0)  # without a convolution or matrix product, on few images
    assert sweep.estimate(work, [*trials, instant], *here[1:], 2).startswith("about ")


def test_networks_of_the_users_are_variants(path, tmp_path, capsys):
    code = "from torch import nn\ndef MyNet():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    (tmp_path / "mine.py").write_text(code)
    options = ["--variants", f"conv 4  8 GAP, {tmp_path}/mine.py:MyNet,s5", "--seeds", "0", "--data", "sample"]
    assert command.main(options) == 0
    line, own, named = read_strictly(path)
    assert (line.variant, own.variant.split("@")[0], named.variant) == ("conv 4 8 gap", "MyNet", "s5")
    assert own.source == code
    assert command.main(options) == 0
    assert "3 already recorded, 0 to run" in capsys.readouterr().out


# --- How they are run -------------------------------------------------------------------------------------------------


def test_one_worker_per_core_and_one_thread_each_by_default(path, monkeypatch):
    calls = []
    monkeypatch.setattr(sweep, "cores", lambda: 6)
    monkeypatch.setattr(sweep, "run_locally", lambda todo, *rest: calls.append((rest[-1], todo[0]["threads"])) or 0)
    for count, options in ((9, {}), (3, {}), (9, {"workers": 2, "threads": 3})):
        sweep.sweep(["s5"], list(range(count)), data="sample", device="cpu", **options)
    assert calls == [(6, 1), (3, 1), (2, 3)]


def test_the_options_of_ray_are_passed_on(path, monkeypatch):
    calls = []
    monkeypatch.setattr(sweep, "run_on_ray", lambda *arguments: calls.append(arguments[3:]) or 0)
    options = ["--variants", "s5", "--seeds", "0", "--data", "sample", "--ray", "auto"]
    assert command.main(options) == 0
    assert command.main([*options, "--workers", "2", "--gpus-per-trial", "0.5", "--retries", "1"]) == 0
    assert calls == [(stand_in, "auto", None, 0, 2), (stand_in, "auto", 2, 0.5, 1)]


def test_a_failed_trial_is_counted_and_the_others_are_summarised(path, capsys):
    assert command.main(["--variants", "dropout,s5", "--seeds", "0-1", "--data", "sample"]) == 1
    output = capsys.readouterr().out
    assert "dropout, seed 0: FAILED, RuntimeError: no luck today" in output
    assert "s5       2 99.400   99.400" in output


def test_weights_of_the_trials_that_are_run_are_saved_in_the_folder(path, tmp_path):
    options = ["--variants", "s5", "--data", "sample", "--weights", str(tmp_path / "w")]
    assert command.main([*options, "--seeds", "0"]) == 0
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["s5-seed0.safetensors"]
