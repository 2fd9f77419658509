"""The exported files answer as the network does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import helpers
from inference import export
from training.augmentation import normalize
from training.checkpoint import load_weights
from training.files import WEIGHTS

try:
    export.check_packages()
    lacking = ""
except export.ExportError as error:
    lacking = str(error)

needs_export = pytest.mark.skipif(bool(lacking), reason=lacking)


@pytest.fixture(scope="module")
def model():
    return load_weights(helpers.build(), WEIGHTS).eval()


@needs_export
def test_one_file_for_batches_of_every_size(model, sample, tmp_path):
    import onnx

    export.to_onnx(model, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # weights inside, nothing left over
    file = onnx.load(tmp_path / "net.onnx")
    assert [entry.version for entry in file.opset_import if entry.domain == ""] == [export.OPSET]
    network = export.OnnxNetwork(tmp_path / "net.onnx")
    for count in (1, 2, 7):
        images = sample.eval_images[:count]
        with torch.inference_mode():
            wanted = model(normalize(images))
        torch.testing.assert_close(network(images), wanted, atol=export.CLOSE, rtol=0)
    assert network(sample.eval_images[:5], batch_size=2).shape == (5, 10)


@needs_export
def test_the_command_measures_all_three(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "RESULTS", tmp_path / "export.json")
    assert export.main(["--smoke", "--record", "--repeats", "3", "--output", str(tmp_path / "files")]) == 0
    assert "ONNX int8" in capsys.readouterr().out
    rows = {row["network"]: row for row in json.loads((tmp_path / "export.json").read_text())["rows"]}
    assert rows["ONNX float32"]["correct"] == rows["PyTorch"]["correct"]
    assert abs(rows["ONNX int8"]["accuracy"] - rows["PyTorch"]["accuracy"]) < 1.0
    assert rows["ONNX int8"]["bytes"] < rows["ONNX float32"]["bytes"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["net-int8.onnx", "net.onnx"]


def test_a_difference_is_a_share_of_an_images_largest_logit():
    expected = torch.tensor([[20.0, -1.0], [0.5, 0.1]])
    assert export.difference(expected, expected) == 0
    assert export.difference(expected + torch.tensor([[0.0, 0.2], [0.0, 0.0]]), expected) == pytest.approx(0.01)
    assert export.difference(expected + torch.tensor([[0.0, 0.0], [0.0, 0.2]]), expected) == pytest.approx(0.2)
    assert not export.difference(expected * float("nan"), expected) <= export.CLOSE


@needs_export
def test_a_file_that_answers_otherwise_is_refused(tmp_path, capsys, monkeypatch):
    class Wrong(export.OnnxNetwork):
        def __call__(self, images, batch_size=1000):
            return super().__call__(images, batch_size) + 1e-3

    monkeypatch.setattr(export, "OnnxNetwork", Wrong)
    assert export.main(["--smoke", "--repeats", "2", "--output", str(tmp_path)]) == 1
    assert "logits differ from PyTorch's by a share of" in capsys.readouterr().err


def test_bad_weights_and_lacking_packages_are_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "check_packages", lambda: None)
    assert export.main(["--smoke", "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "cannot read weights" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main(["--smoke"]) == 1
    assert 'pip install -e ".[export]"' in capsys.readouterr().err


def test_help_is_quick_and_imports_no_torch():
    code = "import sys, export; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(export.__file__).parent)


@pytest.mark.parametrize(("argument", "complaint"), [("--repeats=0", "1 or more, not 0"), ("--output", "is a file")])
def test_bad_arguments_are_told_at_once(argument, complaint, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit):
        export.main([argument] if "=" in argument else [argument, str(file)])
    assert complaint in capsys.readouterr().err
