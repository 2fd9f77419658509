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


# --- Help and bad command lines ---------------------------------------------------------------------------------------


def test_help_is_readable_and_does_not_import_torch():
    whole = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--help"]
    process = subprocess.run(whole, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0
    options = "epochs batch-size learning-rate lr rotation no-nesterov seed device data output resume smoke"
    for option in options.split():
        assert f"--{option}" in process.stdout
    assert "python main.py --smoke" in process.stdout
    assert max(map(len, process.stdout.splitlines())) <= 100
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in process.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "helpers"}


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
    "--epochs 1.5": "--epochs: invalid int value: '1.5'",
    "--lr -1": "learning_rate must be greater than 0, not -1.0",
    "--lr nan": "learning_rate must be greater than 0, not nan",
    "--lr abc": "--lr: invalid float value: 'abc'",
    "--batch-size 0": "batch_size must be a whole number, 1 or more, not 0",
    "--seed abc": "--seed: invalid int value: 'abc'",
    "--seed -1": "seed must be a whole number, 0 or more and below 2^63, not -1",
    "--seed 9223372036854775808": "seed must be a whole number, 0 or more and below 2^63",
    "--seed " + 4000 * "9": "seed must be a whole number, 0 or more and below 2^63",
    "--batch-size 99999999999999999999": "batch_size must be at most 1,000,000, not 99999999999999999999",
    "--epochs " + 4000 * "9": "epochs must be at most 1,000,000, not 999",
    "--epochs-without-augmentation 21": "epochs_without_augmentation must be at most 20 (epochs), not 21",
    "--output=": "--output: the name is empty",
    **{f"{option} {300 * 'n'}": f"{option}: the name is too long: n" for option in ("--output", "--resume", "--data")},
    "--output missing/" + 300 * "n": "--output: the name is too long: missing/n",
    "--output " + 3000 * "n/": "--output: the name is too long: n",
    "--device nonsense": "device must be auto, cpu, cuda or mps, not 'nonsense'",
    "--data missing": "--data missing: there is no such folder",
    "--data file": "--data file: this is a file, not a folder",
    "--data empty --smoke": "--smoke: not allowed with argument --data",
    "--output file": "--output file: this is a file, not a folder",
    "--output run": "--output run already holds a run: --resume it, or choose another folder",
    "--output other --resume run": "--resume: not allowed with argument --output",
    "--resume empty": "--resume empty: there is no checkpoint.pt in it",
    "--resume missing": "--resume missing: there is no checkpoint.pt in it",
    "--optimizer lion": "--optimizer: invalid choice: 'lion'",
    "--shear 90": "shear must be at least 0 and less than 90 degrees, not 90.0",
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_missing_cuda_gives_one_line_and_exit_code_2():
    process = subprocess.run([*COMMAND, "--device", "cuda"], capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    assert re.fullmatch("main.py: device 'cuda' .* no CUDA device on this machine .*\n", process.stderr)


def test_exit_code_of_the_process():
    process = subprocess.run([*COMMAND, "--epochs", "0"], capture_output=True, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr == "main.py: epochs must be a whole number, 1 or more, not 0 (see --help)\n"


@pytest.mark.parametrize("folder", ["file/below", "locked/below", "locked"])
def test_unwritable_output_folder_is_reported_before_training(folder, here, capsys):
    (here / "locked").mkdir(mode=0o555)
    if folder != "file/below" and os.access(here / "locked", os.W_OK):
        pytest.skip("this user can write everywhere")
    assert main.main(["--smoke", "--output", folder]) == 1
    output = capsys.readouterr()
    assert re.fullmatch(f"main.py: cannot write into {folder}: .*\n", output.err)
    assert "Epoch" not in output.out


# --- A whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output of one run of the command in a folder of its own, and its results folder."""
    folder = tmp_path_factory.mktemp("somewhere else")
    whole = [*COMMAND, "--smoke", "--seed", "1"]
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
        r"Device \w+, (?:float32|bfloat16), seed 1, .*epochs=2.*\n\n"
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
    assert (record["data"], record["split"], record["seed"]) == ("sample", "test", 1)
    assert record["recipe"] == DEFAULT.for_smoke().as_dict()
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


def test_weights_carry_their_data_and_result(finished):
    with safe_open(finished[1] / "weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["training"])
    assert metadata["data"] == "sample"
    assert "SAMPLE" in metadata["result"]


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "also", [[], ["--smoke", "--epochs", "2", "--seed", "1", "--batch-size", str(DEFAULT.for_smoke().batch_size)]]
)
def test_a_complete_run_can_be_resumed(finished, run, also, capsys):
    """On the sample, as the run was; repeating its options is allowed."""
    before = contents(run)
    assert main.main(["--resume", str(run), *also]) == 0
    after = contents(run)
    assert after.keys() == before.keys()
    assert after["history.json"] == before["history.json"]
    assert after["checkpoint.pt"] == before["checkpoint.pt"]
    for name, weights in load_file(finished[1] / "weights.safetensors").items():
        assert torch.equal(load_file(run / "weights.safetensors")[name], weights)
    output = capsys.readouterr().out
    assert json.loads(after["history.json"])["result"] in output
    assert "nothing is left to train" in output


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ("--epochs 3", "epochs: 2 there, 3 here"),
        (
            "--lr 0.0123 --batch-size 100",
            f"batch_size: {DEFAULT.for_smoke().batch_size} there, 100 here; "
            f"learning_rate: {DEFAULT.learning_rate} there, 0.0123 here",
        ),
        ("--seed 2", "seed: 1 there, 2 here"),
    ],
)
def test_resume_with_other_options_is_refused(run, arguments, difference, capsys):
    before = contents(run)
    assert main.main(["--resume", str(run), *arguments.split()]) == 1
    advice = "resume it as it was begun, or start a new run"
    message = f"main.py: {run}/checkpoint.pt belongs to another run ({difference}): {advice}\n"
    assert capsys.readouterr().err == message
    assert contents(run) == before


@pytest.mark.parametrize("changes", [{"seed": -5}, {"precision": "float8"}, {"device": "abacus"}], ids=str)
def test_a_checkpoint_with_impossible_settings_is_refused(run, changes, capsys):
    change(run, **changes)
    before = contents(run)
    assert main.main(["--resume", str(run)]) == 1
    assert re.fullmatch(f"main.py: .* cannot be resumed here: {next(iter(changes))} .*\n", capsys.readouterr().err)
    assert contents(run) == before


def test_a_history_longer_than_the_run_is_refused(run, capsys):
    history = load_checkpoint(run / "checkpoint.pt")["history"]
    again = [epoch | {"epoch": epoch["epoch"] + 2} for epoch in history]
    for longer, reason in (
        (history + again, r"history: 4 of 2 epochs"),
        (history + history, "history, entry 3: of epoch 1"),
    ):
        change(run, history=longer)
        assert main.main(["--resume", str(run)]) == 1
        message = f"main.py: .*checkpoint.pt is no complete checkpoint \\({reason}\\); delete it and start a new run\n"
        assert re.fullmatch(message, capsys.readouterr().err)


def test_a_run_on_mnist_cannot_be_resumed_on_the_sample(run, capsys):
    change(run, data="MNIST: 60,000 training and 10,000 test images")
    assert main.main(["--resume", str(run), "--smoke"]) == 1
    error = capsys.readouterr().err
    assert "data: 'MNIST: 60,000 training and 10,000 test images' there, 'MNIST SAMPLE" in error


def change(run: Path, **changes) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save(state | changes, run / "checkpoint.pt")


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"", lambda data: data[::-1]])
def test_a_damaged_checkpoint_is_named_and_kept(run, damage, capsys):
    checkpoint = run / "checkpoint.pt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    before = contents(run)
    assert main.main(["--resume", str(run)]) == 1
    assert re.fullmatch(f"main.py: {re.escape(str(checkpoint))} is damaged .*\n", capsys.readouterr().err)
    assert contents(run) == before


def test_a_checkpoint_of_another_version_is_refused(run, capsys):
    change(run, recipe=DEFAULT.for_smoke().as_dict() | {"luck": 7})
    assert main.main(["--resume", str(run)]) == 1
    assert re.fullmatch(r"main.py: .* cannot be resumed here: .*'luck'\n", capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_run_on_a_missing_device_is_refused(run, capsys):
    change(run, device="cuda")
    assert main.main(["--resume", str(run)]) == 1
    assert re.fullmatch(
        "main.py: .* cannot be resumed here: .* no CUDA device on this machine\n", capsys.readouterr().err
    )


def test_divergence_gives_one_line(here, capsys):
    assert main.main(["--smoke", "--optimizer", "sgd", "--lr", "1e30", "--output", "run2"]) == 1
    message = r"main.py: the loss stopped being finite in epoch 1; the model is as it was before training\. .*\n\Z"
    assert re.search(message, capsys.readouterr().err)
    assert not Path("run2/weights.safetensors").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_before_the_first_epoch_leaves_no_empty_folder(here, monkeypatch, capsys, kept):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(helpers, "fit", interrupted)
    if kept:
        Path("run3").mkdir()
        Path("run3/notes.txt").touch()
    assert main.main(["--smoke", "--output", "run3"]) == 130
    assert "Interrupted before the first epoch: nothing is saved." in capsys.readouterr().out
    assert Path("run3").exists() == kept


def test_ctrl_c_saves_complete_epochs_and_prints_how_to_resume(here, interruptible, monkeypatch, capsys):
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


def test_a_folder_filled_while_the_command_line_was_read_is_refused(here, monkeypatch, capsys):
    monkeypatch.setattr(main, "prepare_output", lambda options: (options.output / "history.json").touch())
    assert main.main(["--smoke", "--output", "empty"]) == 1
    assert capsys.readouterr().err.startswith("main.py: empty already holds a run: --resume it, or choose another")
    assert {path.name for path in (here / "empty").iterdir()} == {"history.json"}
