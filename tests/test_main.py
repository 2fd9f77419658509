"""`python main.py`: output, results, exit codes and error messages. Kills and two runs at once: test_faults.py."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import helpers
import main
from s5.analysis import inspection
from s5.experiments.claims import KNOWN
from s5.training.checkpoint import load_checkpoint, load_weights
from s5.training.device import pick_device
from s5.training.mnist import load_sample
from s5.training.recipe import Recipe
from tests.utils import ROOT

COMMAND = [sys.executable, "-u", str(ROOT / "main.py")]
FILES = {"weights.safetensors", "history.json", "curves.png", "checkpoint.pt"}

# --- Bad command lines ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: empty but for a file, a folder and a finished run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    return tmp_path


BAD = {
    "--epochs 0": "epochs must be a whole number from 1 to 1,000,000, not 0",
    "--lr nan": "learning_rate must be a number from 1e-09 to 1,000, not nan",
    "--seed -1": "seed must be a whole number, 0 or more and below 2^63, not -1",
    "--threads 0": "threads must be a whole number from 1 to 1,024, not 0",
    "--data empty --smoke": "--smoke: not allowed with argument --data",
    "--output other --resume run": "--resume: not allowed with argument --output",
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
    ("arguments", "message"),
    [
        ("--output file", "cannot write into file: File exists. Choose another place: --output, .*"),
        ("--output run", "run already holds a run: --resume it, or choose another folder"),
        ("--output new --device nonsense", "device must be auto or one that torch finds here, .*, not 'nonsense'"),
        (
            "--data missing",
            "there is no data set or folder 'missing': write mnist, fashion, kmnist, sample, or a folder",
        ),
        ("--data empty", "empty must hold the four files train-images-idx3-ubyte, .* each as it is or as .gz"),
        ("--resume empty", r"there is no checkpoint empty/checkpoint\.pt"),
    ],
)
def test_what_cannot_be_used_is_reported_before_training(arguments, message, here, capsys):
    before = set(here.rglob("*"))
    assert main.main([*arguments.split(), *([] if "--data" in arguments else ["--smoke"])]) == 1
    output = capsys.readouterr()
    assert re.fullmatch(f"main.py: {message}\n", output.err)
    assert "Epoch" not in output.out
    assert set(here.rglob("*")) == before


def test_results_go_to_the_projects_folder_wherever_it_is_run(here):
    folder = main.parse_arguments(["--seed", "1"]).output.resolve()
    assert folder.parent == ROOT / "runs"
    assert re.fullmatch(r"\d{8}-\d{6}-seed1", folder.name)


def test_the_fast_run_is_of_another_network_and_recipe(here, capsys):
    options = ["--fast", "--smoke", "--batch-size", "400", "--threads", "1"]
    assert main.parse_arguments(options).recipe == KNOWN["to_99_4"].recipe.changed(batch_size=400)
    assert main.main([*options, "--output", "fast"]) == 0
    assert f"Total params: {inspection.count_parameters(KNOWN['to_99_4'].build()):,}" in capsys.readouterr().out


# --- A whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output of one run of the command in a folder of its own, and its results folder."""
    folder = tmp_path_factory.mktemp("somewhere else")
    whole = [*COMMAND, "--smoke", "--seed", "1", "--threads", "1", "--output", "runs/first"]
    process = subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    (run,) = (folder / "runs").iterdir()
    return process.stdout, run


def test_a_run_prints_the_model_the_log_and_the_result(finished):
    printed, _ = finished
    expected = (
        r"Total params: 18,214\n(.*\n)*"
        r"MNIST SAMPLE \(not the full data set\): 4,000 training and 1,000 test images\n"
        r"Device \w+, (?:float32|bfloat16), 1 thread \(as asked for\), seed 1, .*epochs=2.*\n\n"
        r"Epoch  1/2  lr .*\n"
        r"Epoch  2/2  lr .* train loss .* sample test loss .* accuracy (\d+)/1000 \(\d+\.\d\d%\) .*s\n\n"
        r"\d+\.\d\d% on the sample test images \(\2/1000, 95% interval .*\), .* s of training and evaluation\n"
        r"Saved in runs/first: weights.safetensors, history.json, curves.png, checkpoint.pt\n"
    )
    assert re.search(expected + r"\Z", printed)


def test_saved_files_agree_with_each_other(finished):
    printed, run = finished
    assert {path.name for path in run.iterdir()} == FILES
    record = json.loads((run / "history.json").read_text(encoding="utf-8"))
    assert (record["data"], record["split"], record["seed"], record["threads"]) == ("sample", "test", 1, 1)
    assert record["recipe"] == Recipe().for_smoke().as_dict()
    assert record.keys() >= {"precision", "versions", "device", "commit"}
    assert record["result"] in printed
    device = pick_device()
    data = load_sample().to(device)
    model = load_weights(helpers.Net(), run / "weights.safetensors").to(device)
    _, correct = helpers.evaluate(model, data.eval_images, data.eval_labels)
    assert correct == record["history"][-1]["eval_correct"]
    assert load_checkpoint(run / "checkpoint.pt")["history"] == record["history"]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    with safe_open(run / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["training"]) == {"data": "sample", "result": record["result"]}


# --- Runs that end early ----------------------------------------------------------------------------------------------


def test_divergence_in_the_first_epoch_gives_one_line_and_leaves_no_empty_folder(here, capsys):
    assert main.main(["--smoke", "--optimizer", "sgd", "--lr", "1000", "--output", "run2"]) == 1
    message = r"main.py: the loss is not finite in epoch 1; the model is as it was before this epoch\. .*\n\Z"
    assert re.search(message, capsys.readouterr().err)
    assert not Path("run2").exists()
    assert main.main(["--smoke", "--optimizer", "sgd", "--lr", "1000", "--output", "new/run"]) == 1
    assert not Path("new").exists()


def test_ctrl_c_in_the_first_epoch_leaves_no_folder(here, interruptible):
    whole = [*COMMAND, "--smoke", "--batch-size", "1", "--output", "run3"]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("Device"):  # an epoch of 4,000 steps begins
                process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 130
    assert not Path("run3").exists()


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

    assert main.main([*shlex.split(hint), "--seed", "0"]) == 0  # once more: it is complete
    assert "nothing is left to train" in capsys.readouterr().out
    assert json.loads(Path("my run/history.json").read_text(encoding="utf-8")) == after
    assert main.main([*shlex.split(hint), "--lr", "0.0123", "--seed", "2"]) == 1
    difference = "learning_rate: 0.05 there, 0.0123 here; seed: 0 there, 2 here"
    advice = "resume it as it was begun, or start a new run"
    message = f"main.py: my run/checkpoint.pt belongs to another run ({difference}): {advice}\n"
    assert capsys.readouterr().err == message
