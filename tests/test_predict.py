"""The command that reads image files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from inference import predict
from tests.utils import draw_digit, to_bytes


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "digits"
    (folder / "more").mkdir(parents=True)
    draw_digit(7).save(folder / "seven.png")
    draw_digit(4).save(folder / "more" / "four.JPG")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_table(folder, capsys):
    assert predict.main([str(folder)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "digit", "probability", "next", "best"]
    assert [(Path(row.split()[0]).name, row.split()[1]) for row in rows] == [("four.JPG", "4"), ("seven.png", "7")]


def test_json(folder, capsys):
    assert predict.main(["--json", "--show", str(folder / "seven.png")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["digit"] == 7
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert answer["probabilities"][7] == max(answer["probabilities"])
    assert len(answer["prepared"]) == len(answer["prepared"][0]) == 28


def test_bad_images_are_named_and_the_others_still_read(folder, capsys):
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


def test_what_the_network_was_given(folder, tmp_path, capsys):
    seen = tmp_path / "seen"
    assert predict.main(["--show", "--prepared", str(seen), str(folder)]) == 0
    assert capsys.readouterr().out.count("█") > 50
    assert sorted(path.name for path in seen.iterdir()) == ["000-four.png", "001-seven.png"]
    assert Image.open(seen / "000-four.png").size == (28, 28)


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(to_bytes(draw_digit(7)))))
    assert predict.main(["-"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["-", "7"]


def test_wrong_commands(tmp_path, capsys):
    for arguments in ([], [str(tmp_path)]):
        with pytest.raises(SystemExit) as exit:
            predict.main(arguments)
        assert exit.value.code == 2
    assert "no image in" in capsys.readouterr().err
    draw_digit().save(tmp_path / "digit.png")
    assert predict.main([str(tmp_path), "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "cannot read weights" in capsys.readouterr().err


def test_help_is_quick_and_imports_no_torch():
    code = "import sys, predict; predict.parse_arguments(['x']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(predict.__file__).parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    assert predict.main([str(tmp_path / "pipe")]) == 1
    assert "a pipe goes to standard input" in capsys.readouterr().err
