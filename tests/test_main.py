"""`python main.py`: output, results, exit codes and error messages."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import helpers
import main
import s5.training.mnist
from s5.training import files
from s5.training.checkpoint import load_checkpoint, load_weights
from s5.training.device import pick_device
from s5.training.mnist import load_sample
from s5.training.recipe import Recipe
from tests.utils import ROOT

COMMAND = [sys.executable, "-u", str(ROOT / "main.py")]
DEFAULT = Recipe()
FILES = {"weights.safetensors", "history.json", "curves.png", "checkpoint.pt"}

load_sample = cache(load_sample)  # read once for all of these runs


@pytest.fixture(autouse=True)
def _load_the_sample_once(monkeypatch):
    monkeypatch.setattr(s5.training.mnist, "load_sample", load_sample)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Bad command lines ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: empty but for a file, a folder and a finished run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.json").touch()
    return tmp_path


BAD = {
    "--epochs 0": "epochs must be a whole number, 1 or more, not 0",
    "--lr nan": "learning_rate must be greater than 0, not nan",
    "--seed abc": "--seed: invalid int value: 'abc'",
    "--seed -1": "seed must be a whole number, 0 or more and below 2^63, not -1",
    "--seed " + 4000 * "9": "seed must be a whole number, 0 or more and below 2^63",
    "--threads 0": "threads must be a whole number from 1 to 1,024, not 0",
    "--batch-size 99999999999999999999": "batch_size must be at most 1,000,000, not 99999999999999999999",
    "--output=": "--output: the name is empty",
    "--output missing/" + 300 * "n": "--output: the name is too long: missing/n",
    "--device nonsense": "device must be auto, cpu, cuda or mps, not 'nonsense'",
    "--data missing": "--data missing: there is no such folder",
    "--data file": "--data file: there is no such folder",
    "--data empty --smoke": "--smoke: not allowed with argument --data",
    "--output other --resume run": "--resume: not allowed with argument --output",
    "--resume empty": "--resume empty: there is no checkpoint.pt in it",
    "--resume missing": "--resume missing: there is no checkpoint.pt in it",
    "--optimizer lion": "--optimizer: invalid choice: 'lion'",
    "--epoch-count 3": "unrecognized arguments: --epoch-count 3",
}


@pytest.mark.parametrize("arguments", BAD)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, here, capsys):
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as exit_:
        main.main(arguments.split())
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(f"main.py: .*{re.escape(BAD[arguments])}.*\n", output.err)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "cannot write into file: File exists"),
        ("file/below", "cannot write into file/below: Not a directory"),
        ("locked", "cannot write into locked: Permission denied"),
        ("run", "run already holds a run: --resume it, or choose another folder"),
    ],
)
def test_an_output_folder_that_cannot_be_used_is_reported_before_training(folder, message, here, capsys):
    (here / "locked").mkdir(mode=0o555)
    if folder == "locked" and os.access(here / "locked", os.W_OK):
        pytest.skip("this user can write everywhere")
    before = sorted(here.rglob("*"))
    assert main.main(["--smoke", "--output", folder]) == 1
    output = capsys.readouterr()
    assert output.err == f"main.py: {message}\n"
    assert "Epoch" not in output.out
    assert sorted(here.rglob("*")) == before


# --- A whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output of one run of the command in a folder of its own, and its results folder."""
    folder = tmp_path_factory.mktemp("somewhere else")
    whole = [*COMMAND, "--smoke", "--seed", "1", "--threads", "1"]
    process = subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    (run,) = (folder / "runs").iterdir()
    return process.stdout, run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run that a test may change."""
    return Path(shutil.copytree(finished[1], tmp_path / "run"))


def test_a_run_prints_the_model_the_log_and_the_result(finished):
    printed, run = finished
    expected = (
        r"Total params: 18,214\n(.*\n)*"
        r"MNIST SAMPLE \(not the full data set\): 4,000 training and 1,000 test images\n"
        r"Device \w+, (?:float32|bfloat16), 1 thread \(as asked for\), seed 1, .*epochs=2.*\n\n"
        r"Epoch  1/2  lr .*\n"
        r"Epoch  2/2  lr .* train loss .* sample test loss .* accuracy (\d+)/1000 \(\d+\.\d\d%\) .*s\n\n"
        r"\d+\.\d\d% on the SAMPLE's test images \(\2/1000, 95% interval .*\)\n"
        rf"Saved in runs/{run.name}: weights.safetensors, history.json, curves.png, checkpoint.pt\n"
    )
    assert re.search(expected + r"\Z", printed)
    assert printed.index("Total params") < printed.index("Epoch")
    assert re.fullmatch(r"\d{8}-\d{6}-seed1", run.name)


def test_saved_files_agree_with_each_other(finished):
    printed, run = finished
    assert {path.name for path in run.iterdir()} == FILES
    record = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert (record["data"], record["split"], record["seed"], record["threads"]) == ("sample", "test", 1, 1)
    assert record["recipe"] == DEFAULT.for_smoke().as_dict()
    assert record["precision"] in ("float32", "bfloat16")
    assert record["versions"]["torch"] == torch.__version__
    assert record["device"]
    assert record["commit"]
    assert record["result"] in printed
    assert len(record["history"]) == 2

    device = pick_device()
    data = load_sample().to(device)
    model = load_weights(helpers.Net(), run / "weights.safetensors").to(device)
    _, correct = helpers.evaluate(model, data.eval_images, data.eval_labels)
    assert correct == record["history"][-1]["eval_correct"]
    stored = load_checkpoint(run / "checkpoint.pt")
    assert stored["history"] == record["history"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"data": "sample", "result": record["result"]}


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("also", ["", "--smoke --epochs 2 --seed 1 --threads 1"])
def test_a_complete_run_can_be_resumed(finished, run, also, capsys):
    """On the sample, as the run was; repeating its options is allowed."""
    before = contents(run)
    assert main.main(["--resume", str(run), *also.split()]) == 0
    after = contents(run)
    assert after.keys() == before.keys()
    assert after["history.json"] == before["history.json"]
    assert after["checkpoint.pt"] == before["checkpoint.pt"]
    for name, weights in load_file(finished[1] / "weights.safetensors").items():
        assert torch.equal(load_file(run / "weights.safetensors")[name], weights)
    output = capsys.readouterr().out
    assert json.loads(after["history.json"])["result"] in output
    assert "nothing is left to train" in output
    assert "1 thread (as the run was begun)" in output


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ("--epochs 3", "epochs: 2 there, 3 here"),
        (
            "--lr 0.0123 --batch-size 100",
            f"batch_size: {DEFAULT.for_smoke().batch_size} there, 100 here; "
            f"learning_rate: {DEFAULT.learning_rate} there, 0.0123 here",
        ),
        ("--seed 2 --threads 2", "seed: 1 there, 2 here; threads: 1 there, 2 here"),
    ],
)
def test_resume_with_other_options_is_refused(run, arguments, difference, capsys):
    before = contents(run)
    assert main.main(["--resume", str(run), *arguments.split()]) == 1
    advice = "resume it as it was begun, or start a new run"
    message = f"main.py: {run}/checkpoint.pt belongs to another run ({difference}): {advice}\n"
    assert capsys.readouterr().err == message
    assert contents(run) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "abacus"}, r"cannot be resumed here: device must be auto, .*, not 'abacus'"),
        ({"recipe": DEFAULT.for_smoke().as_dict() | {"luck": 7}}, r"cannot be resumed here: .*'luck'"),
        (
            {"data": "MNIST: 60,000", "sha256": "0"},
            r"belongs to another run \(data: 'MNIST: 60,000' there, 'MNIST SAMPLE",
        ),
        ({}, r"checkpoint.pt is damaged"),
    ],
    ids=["device", "recipe", "data", "damaged"],
)
def test_a_checkpoint_that_cannot_be_continued_is_one_line_and_is_kept(run, changes, message, capsys):
    checkpoint = run / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    state["run"] |= changes
    torch.save(state, checkpoint)
    if not changes:
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    before = contents(run)
    assert main.main(["--resume", str(run)]) == 1
    assert re.fullmatch(f"main.py: .*{message}.*\n", capsys.readouterr().err)
    assert contents(run) == before


# --- Runs that end early ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_divergence_in_the_first_epoch_gives_one_line_and_leaves_no_empty_folder(here, kept, capsys):
    if kept:
        Path("run2").mkdir()
        Path("run2/notes.txt").touch()
    assert main.main(["--smoke", "--optimizer", "sgd", "--lr", "1e30", "--output", "run2"]) == 1
    message = r"main.py: the loss is not finite in epoch 1; the model is as it was before this epoch\. .*\n\Z"
    assert re.search(message, capsys.readouterr().err)
    assert Path("run2").exists() == kept
    assert not kept or [path.name for path in Path("run2").iterdir()] == ["notes.txt"]


def test_ctrl_c_in_the_first_epoch_leaves_no_folder(here, interruptible):
    whole = [*COMMAND, "--smoke", "--batch-size", "1", "--output", "run3"]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Device"):  # an epoch of 4,000 steps begins
                process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 130
    assert not Path("run3").exists()


def test_an_interrupted_first_epoch_is_reported(here, monkeypatch, capsys):
    monkeypatch.setattr(helpers, "fit", lambda *_, **options: [])
    assert main.main(["--smoke", "--output", "run4"]) == 130
    assert "Interrupted in the first epoch: nothing is saved." in capsys.readouterr().out
    assert not Path("run4").exists()


def test_ctrl_c_saves_complete_epochs_and_prints_how_to_resume(here, interruptible, capsys):
    whole = [*COMMAND, "--smoke", "--epochs", "3", "--batch-size", "100", "--output", "my run"]
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Epoch  1/3"):
            process.send_signal(signal.SIGINT)
            break
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in error

    record = json.loads(Path("my run/history.json").read_text(encoding="utf-8"))
    reached = len(record["history"])
    assert 1 <= reached < 3
    assert f"After {reached} of 3 epochs: {record['result']}" in printed
    assert {path.name for path in Path("my run").iterdir()} == FILES

    (hint,) = re.findall("To continue: python main.py (.*)", printed)
    assert main.main(shlex.split(hint)) == 0
    after = json.loads(Path("my run/history.json").read_text(encoding="utf-8"))
    assert after["history"][:reached] == record["history"]
    assert len(after["history"]) == 3
    assert "After" not in capsys.readouterr().out


# --- Two runs in one folder -------------------------------------------------------------------------------------------


HOLD = """
import sys
from s5.training.files import hold_folder

with hold_folder(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@contextmanager
def held(folder: Path):
    """Another process that holds the folder; it is killed at the end."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("option", ["--output", "--resume"])
def test_a_second_run_in_one_folder_is_refused(run, option, capsys):
    folder = run if option == "--resume" else run / "new"
    folder.mkdir(exist_ok=True)
    with held(folder):
        before = contents(folder)
        assert main.main(["--smoke", option, str(folder)]) == 1
        message = f"main.py: {folder} is in use by another process: wait until it ends, or choose another folder\n"
        assert capsys.readouterr().err == message
        assert contents(folder) == before


def test_the_lock_of_a_killed_run_does_not_block_and_none_is_left_at_the_end(run, capsys):
    with held(run):
        pass
    left = {".checkpoint.123.pt", ".curves.4567.png"}  # by processes that were killed while they wrote
    for name in left:
        (run / name).touch()
    assert {path.name for path in run.iterdir()} == {*FILES, *left, files.LOCK}
    assert main.main(["--resume", str(run)]) == 0
    assert {path.name for path in run.iterdir()} == FILES
