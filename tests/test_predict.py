"""The command that reads digits from image files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from inference import predict
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
    for arguments, complaint in (([], "required: IMAGE"), ([str(tmp_path)], "no image in")):
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_is_refused_without_blocking(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert predict.main([str(tmp_path / "pipe")]) == 1
    assert "pipe the image to standard input" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "demo", "export"])
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
