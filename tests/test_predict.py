"""The command that reads digits from image files."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from s5.commands import predict
from s5.inference.predict import UNSURE, read, table
from s5.inference.trained import trained_networks, weights_file
from tests.drawings import samples
from tests.utils import ROOT, draw_digit, to_bytes

SAMPLES = ROOT / "figures" / "digits"


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
    assert lines.keys() == contents.keys() | {"notes.txt"}
    for name, (_, reason) in contents.items():
        assert reason in lines[name]
    assert predict.main(["--json", str(folder / "empty.png")]) == 1
    assert "no ink" in json.loads(capsys.readouterr().out)[0]["error"]


def test_labelled_folders_are_scored(folder, capsys):
    for label, digit in (("7", 7), ("4", 4), ("1", 7)):
        (folder / label).mkdir()
        draw_digit(digit).save(folder / label / "a.png")
    Image.new("L", (50, 50), 255).save(folder / label / "empty.png")
    assert predict.main([str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 4 right (50.0%), 1 wrong, 1 not read; 1 → 7: 1"


def test_csv_has_a_row_per_image(folder, capsys):
    Image.new("L", (50, 50), 255).save(folder / "empty.png")
    assert predict.main(["--csv", str(folder)]) == 1
    rows = {Path(row["image"]).name: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert {name: row["digit"] for name, row in rows.items() if row["digit"]} == {"seven.png": "7", "four.JPG": "4"}
    assert rows["seven.png"]["unsure"] == "False"
    assert "no ink" in rows["empty.png"]["error"]
    assert "skipped" in rows["notes.txt"]["skipped"]


def test_files_of_other_formats_are_named(folder, capsys):
    (folder / "photo.HEIC").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"")
    (folder / ".notebook").mkdir()
    (folder / ".notebook" / "hidden.png").write_bytes(b"")
    assert predict.main([str(folder)]) == 1
    lines = {Path(line.split(": ")[1]).name: line for line in capsys.readouterr().err.splitlines()}
    assert lines.keys() == {"photo.HEIC", "notes.txt"}
    assert "save it as JPEG" in lines["photo.HEIC"]


def test_an_answer_of_low_probability_is_unsure_and_none_is_certain():
    chances = {"sure": [0.9999999, 1e-7], "half": [0.55, 0.45]}
    results = [
        {"image": name, "digit": 0, "next": 1, "probabilities": [*two, *8 * [0.0]], "unsure": two[0] < UNSURE}
        for name, two in chances.items()
    ]
    sure, half = table(results).splitlines()[1:]
    assert sure.split() == ["sure", "0", "99.99%", "1", "0.00%"]
    assert half.endswith("unsure: 0 or 1")


def test_samples_are_drawn_by_code_and_read(capsys):
    assert {path.name for path in SAMPLES.iterdir()} == set(samples())
    assert predict.main(["--json", str(SAMPLES)]) == 0
    for result in json.loads(capsys.readouterr().out):
        assert Path(result["image"]).stem.endswith(f"-{result['digit']}")
        assert result["unsure"] is False


def test_weights_say_of_which_network_they_are(folder, capsys):
    for name in ("below_500", "s5"):
        assert predict.main(["--weights", str(weights_file(name)), str(folder / "seven.png")]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[1] == "7"


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


def test_unusable_weights_are_reported_in_one_line(tmp_path, capsys):
    assert predict.main(["digit.png", "--weights", str(tmp_path / "some.safetensors")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("predict: network 's5': cannot read weights")
    assert message.count("\n") == 1
