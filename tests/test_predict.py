"""The command that reads digits from image files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save

from s5.inference import predict
from s5.inference.digit_parts import DigitError
from s5.inference.trained import trained_networks
from s5.training.files import WEIGHTS
from tests.utils import ROOT, draw_digit, to_bytes


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    draw_digit(7).save(folder / "seven.png")
    draw_digit(4).save(folder / "more" / "four.JPG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_table_of_a_folder(folder, capsys):
    assert predict.main([str(folder)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "digit", "probability", "next", "best"]
    assert [(Path(row.split()[0]).name, row.split()[1]) for row in rows] == [("four.JPG", "4"), ("seven.png", "7")]


def test_json(folder, capsys):
    assert predict.main(["--json", "--show", str(folder / "seven.png")]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["digit"] == 7
    assert sum(result["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert result["probabilities"][7] == max(result["probabilities"])
    assert len(result["prepared"]) == len(result["prepared"][0]) == 28


@pytest.mark.parametrize("name", [5, None, b"photo.jpg"])
def test_what_is_no_name_of_a_file_is_refused(name):
    with pytest.raises(DigitError, match="the name of an image file must be a text or a path, not "):
        predict.read(name)


def test_bad_images_are_reported_and_the_others_are_read(folder, capsys):
    (folder / "broken.png").write_bytes(to_bytes(draw_digit())[:200])
    Image.new("L", (50, 50), 255).save(folder / "empty.png")
    assert predict.main([str(folder), str(folder / "none.png")]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    for name, reason in (("broken.png", "damaged"), ("empty.png", "no ink"), ("none.png", "No such file")):
        assert any(name in line and reason in line for line in captured.err.splitlines())
    assert "Traceback" not in captured.err
    assert predict.main(["--json", str(folder / "empty.png")]) == 1
    assert "no ink" in json.loads(capsys.readouterr().out)[0]["error"]


def test_network_input_is_shown_and_written(folder, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    assert predict.main(["--show", "--prepared", str(prepared), str(folder)]) == 0
    assert capsys.readouterr().out.count("█") > 50
    assert sorted(path.name for path in prepared.iterdir()) == ["000-four.png", "001-seven.png"]
    assert Image.open(prepared / "000-four.png").size == (28, 28)


def test_unwritable_folder_is_reported(folder, capsys):
    assert predict.main(["--prepared", str(folder / "notes.txt"), str(folder / "seven.png")]) == 1
    assert "predict: cannot write to" in capsys.readouterr().err


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(to_bytes(draw_digit(7)))))
    assert predict.main(["-"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["-", "7"]


def test_wrong_arguments_are_reported_in_one_line(tmp_path, capsys):
    cases = (([], "required: IMAGE"), ([str(tmp_path)], "no image in"), ([""], "the name of an image is empty"))
    for arguments, complaint in cases:
        with pytest.raises(SystemExit) as exit:
            predict.main(arguments)
        assert exit.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("predict: ")
        assert complaint in message
        assert message.count("\n") == 1


def test_missing_weights_are_reported(capsys):
    assert predict.main(["digit.png", "--weights", "none.safetensors"]) == 1
    assert "predict: cannot read weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", trained_networks())
def test_every_trained_network(name, folder, capsys):
    assert predict.main(["--network", name, str(folder)]) == 0
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()[1:]] == ["4", "7"]


def test_unknown_network_is_reported(capsys):
    assert predict.main(["--network", "resnet", "digit.png"]) == 2
    assert "predict: there is no trained network 'resnet'; there are" in capsys.readouterr().err


def bad_weights(change) -> bytes:
    state = load_file(WEIGHTS)
    change(state)
    return save(state)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged, or not in the safetensors format"),
        (b"hello world" * 9, "damaged, or not in the safetensors format"),
        (bad_weights(lambda state: state["fc.weight"].fill_(float("nan"))), "values that are not finite"),
        (bad_weights(lambda state: state["conv1.1.running_var"].neg_()), "running_var is negative"),
        (bad_weights(lambda state: state.pop("fc.bias")), "another architecture"),
    ],
    ids=["empty", "text", "NaN", "negative variance", "layer missing"],
)
def test_unusable_weights_are_reported_in_one_line(content, reason, tmp_path, capsys):
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    assert predict.main(["digit.png", "--weights", str(path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("predict: ")
    assert reason in message
    assert message.count("\n") == 1


def test_other_files_are_refused_in_one_line_each(tmp_path, capsys):
    contents = {
        "data.json": b'{"digit": 7}',
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "nothing.gif": b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\2\0;",
        "x" * 300 + ".png": None,
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert predict.main([str(tmp_path / name)]) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"predict: {tmp_path / name}: ")
        assert message.count("\n") == 1


def test_results_are_those_of_one_image_at_a_time_and_in_order(tmp_path, capsys):
    expected = []
    for number in range(predict.MANY + 20):
        draw_digit((0, 1, 4, 7)[number % 4], size=200, width=5 + number % 9).save(tmp_path / f"{number:03d}.png")
        expected.append((0, 1, 4, 7)[number % 4])
    (tmp_path / "050.png").write_bytes(b"")
    assert predict.main(["--json", str(tmp_path)]) == 1
    results = json.loads(capsys.readouterr().out)
    assert [result.get("digit") for result in results] == [*expected[:50], None, *expected[51:]]
    single = predict.read(tmp_path / "007.png")
    assert predict.main(["--json", "--show", str(tmp_path / "007.png")]) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    assert alone["prepared"] == single.tolist()
    assert alone["probabilities"] == pytest.approx(results[7]["probabilities"], abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_is_refused_without_blocking(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert predict.main([str(tmp_path / "pipe")]) == 1
    assert "pipe the image to standard input" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "demo", "export", "cards"])
def test_help_does_not_load_slow_packages(command):
    code = f"""
import runpy, sys
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("inference.{command}", run_name="__main__")
finally:
    assert not {{"torch", "numpy", "gradio"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"usage: python -m inference.{command} [options]")
    assert f"python -m inference.{command}" in result.stdout
