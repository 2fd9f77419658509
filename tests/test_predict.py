"""The command that reads digits from image files."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save

from s5.commands import predict
from s5.inference.predict import read
from s5.inference.trained import trained_networks, weights_file
from tests.utils import draw_digit, to_bytes


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    draw_digit(7).save(folder / "seven.png")
    draw_digit(4).save(folder / "more" / "four.JPG")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("name", trained_networks())
def test_table_of_a_folder(name, folder, capsys):
    assert predict.main(["--network", name, str(folder)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "digit", "probability", "next", "best"]
    assert [(Path(row.split()[0]).name, row.split()[1]) for row in rows] == [("four.JPG", "4"), ("seven.png", "7")]


def test_json(folder, capsys):
    assert predict.main(["--json", "--show", str(folder / "seven.png")]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["digit"] == 7
    assert sum(result["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert result["probabilities"][7] == max(result["probabilities"])
    assert result["prepared"] == read(folder / "seven.png").tolist()
    assert predict.main(["--json", str(folder / "seven.png")]) == 0
    assert "prepared" not in json.loads(capsys.readouterr().out)[0]


def test_unreadable_images_are_reported_in_one_line_each_and_the_others_are_read(folder, capsys):
    contents = {
        "broken.png": (to_bytes(draw_digit())[:200], "damaged"),
        "empty.png": (to_bytes(Image.new("L", (50, 50), 255)), "no ink"),
        "nothing.jpg": (b"", "the file is empty"),
        "drawing.bmp": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
        "nothing.gif": (b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\2\0;", ""),
        "none.png": (None, "No such file"),
        "x" * 300 + ".png": (None, "File name too long"),
    }
    for name, (content, _) in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    missing = [str(folder / name) for name, (content, _) in contents.items() if content is None]
    assert predict.main([str(folder), *missing]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    lines = {Path(line.split(": ")[1]).name: line for line in captured.err.splitlines()}
    assert lines.keys() == contents.keys()
    for name, (_, reason) in contents.items():
        assert reason in lines[name]
    assert predict.main(["--json", str(folder / "empty.png")]) == 1
    assert "no ink" in json.loads(capsys.readouterr().out)[0]["error"]


def test_network_input_is_shown_and_written(folder, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    assert predict.main(["--show", "--prepared", str(prepared), str(folder)]) == 0
    assert capsys.readouterr().out.count("█") > 50
    assert sorted(path.name for path in prepared.iterdir()) == ["000-four.png", "001-seven.png"]
    assert Image.open(prepared / "000-four.png").size == (28, 28)
    assert predict.main(["--prepared", str(folder / "notes.txt"), str(folder / "seven.png")]) == 1
    assert "predict: cannot write to" in capsys.readouterr().err


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(to_bytes(draw_digit(7)))))
    assert predict.main(["-"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["-", "7"]


def test_wrong_arguments_are_reported_in_one_line(tmp_path, capsys):
    cases = {
        "required: IMAGE": [],
        "no image in": [str(tmp_path)],
        "the name of an image is empty": [""],
        "there is no trained network 'resnet'; there are": ["--network", "resnet", "digit.png"],
    }
    for complaint, arguments in cases.items():
        with pytest.raises(SystemExit, match="2"):
            predict.main(arguments)
        message = capsys.readouterr().err
        assert message.startswith("predict: ")
        assert complaint in message
        assert message.count("\n") == 1


def bad_weights(change) -> bytes:
    state = load_file(weights_file("s5"))
    change(state)
    return save(state)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read weights"),
        (b"hello world" * 9, "which must be a safetensors file"),
        (bad_weights(lambda state: state.pop("fc.bias")), "another architecture"),
    ],
    ids=["missing", "text", "layer missing"],
)
def test_unusable_weights_are_reported_in_one_line(content, reason, tmp_path, capsys):
    path = tmp_path / "some.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert predict.main(["digit.png", "--weights", str(path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("predict: ")
    assert reason in message
    assert message.count("\n") == 1
