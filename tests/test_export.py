"""The exported ONNX networks give the same predictions as PyTorch."""

import json
import shutil
import sys

import pytest
import torch

import helpers
from inference import export
from training.augmentation import normalize
from training.checkpoint import load_weights
from training.files import WEIGHTS

try:
    export.check_packages()
    missing = ""
except export.ExportError as error:
    missing = str(error)

needs_export = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def model():
    return load_weights(helpers.build(), WEIGHTS).eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The model as an ONNX file, alone in its folder."""
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    export.to_onnx(model, path)
    return path


@needs_export
def test_export_is_a_single_file_with_the_stated_opset(exported):
    import onnx

    assert [path.name for path in exported.parent.iterdir()] == ["net.onnx"]  # includes the weights
    opsets = [entry.version for entry in onnx.load(exported).opset_import if entry.domain == ""]
    assert opsets == [export.OPSET]


@needs_export
def test_logits_equal_those_of_pytorch_for_every_batch_size(model, exported, sample):
    network = export.OnnxNetwork(exported)
    for count in (1, 2, 7):
        images = sample.eval_images[:count]
        with torch.inference_mode():
            expected = model(normalize(images))
        torch.testing.assert_close(network(images), expected, atol=export.TOLERANCE, rtol=0)
    assert network(sample.eval_images[:5], batch_size=2).shape == (5, 10)


@needs_export
def test_command_exports_and_measures_all_three_networks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "EXPORT", tmp_path / "export.json")
    assert export.main(["--smoke", "--record", "--repeats", "3", "--output", str(tmp_path / "files")]) == 0
    assert "ONNX int8" in capsys.readouterr().out
    rows = {row["network"]: row for row in json.loads((tmp_path / "export.json").read_text())["rows"]}
    assert rows["ONNX float32"]["correct"] == rows["PyTorch"]["correct"]
    assert abs(rows["ONNX int8"]["accuracy"] - rows["PyTorch"]["accuracy"]) < 1.0
    assert rows["ONNX int8"]["bytes"] < rows["ONNX float32"]["bytes"]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["net-int8.onnx", "net.onnx"]


def test_difference_is_relative_to_the_largest_logit_of_an_image():
    expected = torch.tensor([[20.0, -1.0], [0.5, 0.1]])
    assert export.relative_difference(expected, expected) == 0
    large, small = torch.tensor([[0.0, 0.2], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.2]])
    assert export.relative_difference(expected + large, expected) == pytest.approx(0.01)
    assert export.relative_difference(expected + small, expected) == pytest.approx(0.2)
    assert not export.relative_difference(expected * float("nan"), expected) <= export.TOLERANCE


@needs_export
def test_network_with_other_logits_is_refused(exported, tmp_path, capsys, monkeypatch):
    class Wrong(export.OnnxNetwork):
        def __call__(self, images, batch_size=1000):
            return super().__call__(images, batch_size) + 1e-3

    monkeypatch.setattr(export, "to_onnx", lambda model, path: shutil.copy(exported, path))
    monkeypatch.setattr(export, "to_int8", lambda source, path, images: shutil.copy(source, path))
    monkeypatch.setattr(export, "OnnxNetwork", Wrong)
    assert export.main(["--smoke", "--repeats", "2", "--output", str(tmp_path)]) == 1
    assert "logits differ from PyTorch's by" in capsys.readouterr().err


def test_missing_weights_and_packages_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "check_packages", lambda: None)
    assert export.main(["--smoke", "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "export: cannot read weights" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main(["--smoke"]) == 1
    assert 'pip install -e ".[export]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "complaint"), [("--repeats=0", "1 or more, not 0"), ("--output={file}", "must be a folder")]
)
def test_wrong_options_are_reported_in_one_line(option, complaint, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as exit:
        export.main([option.format(file=file)])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("export: ")
    assert complaint in message
    assert message.count("\n") == 1
