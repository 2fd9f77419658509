"""The exported files give the same predictions as PyTorch, everywhere, and describe themselves."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from s5.commands.export import main
from s5.deployment import export
from s5.deployment.c_code import CompiledNetwork, find_compiler
from s5.experiments.ledger import read_ledger
from s5.inference.trained import load_trained
from s5.training import mnist
from s5.training.augmentation import normalize
from tests.utils import ROOT

try:
    export.check_packages()
    missing = ""
except export.ExportError as error:
    missing = str(error)
else:
    import onnx
    import onnxruntime

    from s5.deployment import onnx_files
    from s5.deployment.onnx_files import OnnxNetwork, read_metadata, to_int8, to_onnx

needs_export = pytest.mark.skipif(bool(missing), reason=missing)
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler (cc, gcc or clang)")


@pytest.fixture(scope="module")
def model():
    return load_trained()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The model as an ONNX file, alone in its folder."""
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    to_onnx(model, path, about=export.describe("s5", model, read_ledger()))
    return path


@pytest.fixture(autouse=True)
def small_sample(sample, monkeypatch):
    """The commands use a part of the sample, which takes seconds to read."""
    small = sample.subset(50, 300)
    monkeypatch.setattr("s5.training.mnist.load_sample", lambda: small)


@pytest.fixture
def quick(exported, monkeypatch):
    """The commands need not export to ONNX again."""
    monkeypatch.setattr(onnx_files, "to_onnx", lambda model, path, *_: path.write_bytes(exported.read_bytes()))


# --- ONNX -------------------------------------------------------------------------------------------------------------


@needs_export
@pytest.mark.parametrize("normalized", [False, True])
def test_logits_equal_those_of_pytorch_for_every_batch_size(model, sample, tmp_path, normalized):
    path = tmp_path / "net.onnx"
    to_onnx(model, path, normalized)
    network = OnnxNetwork(path)
    assert network.normalized == normalized
    for count in (1, 2, 7):
        images = sample.eval_images[:count]
        with torch.inference_mode():
            expected = model(normalize(images))
        torch.testing.assert_close(network(images), expected, atol=export.TOLERANCE, rtol=0)
    assert network(sample.eval_images[:5], batch_size=2).shape == (5, 10)


@needs_export
@pytest.mark.parametrize("name", ["s5", "below_5k", "below_500"])  # plain, separable, shared
def test_int8_predictions_do_not_depend_on_the_kernels(name, sample, tmp_path):
    """As written, the graph computes in float32 and rounds between the layers; optimised, in integers."""
    source, path = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    to_onnx(load_trained(name), source)
    to_int8(source, path, sample.train_images[:200])
    kernels, as_written = OnnxNetwork(path), OnnxNetwork(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kernels, floats = (network(sample.eval_images).argmax(1) for network in (kernels, as_written))
    assert torch.equal(kernels, floats)
    assert (kernels == sample.eval_labels).float().mean() > 0.97


@needs_export
def test_int8_file_multiplies_only_unsigned_bytes(exported, sample, tmp_path):
    """Int8 weights saturate on processors without VNNI, which this one may have."""
    to_int8(exported, tmp_path / "int8.onnx", sample.train_images[:20])
    graph = onnx.load(tmp_path / "int8.onnx").graph
    quantized = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    types = {each.name: each.data_type for each in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    weights = [types[name] for name in quantized if types.get(name) in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)]
    assert weights == [onnx.TensorProto.UINT8] * len(convolutions) == [onnx.TensorProto.UINT8] * 5
    zero_points = {node.input[2] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert onnx.TensorProto.INT8 not in {types[name] for name in zero_points}


@needs_export
def test_file_alone_is_enough_to_use_it(model, exported, sample, tmp_path):
    to_int8(exported, tmp_path / "int8.onnx", sample.train_images[:20])
    for path in (exported, tmp_path / "int8.onnx"):
        found = read_metadata(path)
        assert found["parameters"] == "18214"
        assert found["network"] == "Net"
        assert "uint8 (batch, 28, 28)" in found["input images"]
        assert "(pixel / 255 - 0.1307) / 0.3081" in found["input images"]
        assert found["output logits"].startswith("float32 (batch, 10)")
        assert "% of 10,000 test images" in found["accuracy"]
        network = onnx.load(path)
        assert [each.name for each in network.graph.input] == ["images"]
        assert [each.name for each in network.graph.output] == ["logits"]
        assert [entry.version for entry in network.opset_import if entry.domain == ""] == [onnx_files.OPSET]
        assert str(ROOT).encode() not in path.read_bytes()  # no stack traces
    assert [path.name for path in exported.parent.iterdir()] == ["net.onnx"]  # includes the weights
    assert "accuracy" not in export.describe("s5", model, [])


# --- The command ------------------------------------------------------------------------------------------------------


@needs_export
def test_command_exports_and_measures_onnx(tmp_path, capsys):
    assert main(["onnx", "--smoke", "--normalized", "--output", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(kind in output for kind in ("PyTorch", "ONNX float32", "ONNX int8"))
    assert "C int8" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s5-int8.onnx", "s5.onnx"]
    assert OnnxNetwork(tmp_path / "s5.onnx").normalized


@needs_compiler
def test_command_exports_c(tmp_path, capsys, monkeypatch):
    command = ["c", "s5", "--smoke", "--output", str(tmp_path)]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "C int8" in output
    assert "The sample's images are of the training set: these accuracies are not those of new images." in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s5.c", "s5.h"]
    header = (tmp_path / "s5.h").read_text()
    assert "s5, Net, 18,214 parameters" in header
    assert "images are right" not in header.replace("\n * ", " ")
    full = replace(mnist.load_sample(), source="mnist")
    monkeypatch.setattr("s5.training.mnist.load_sample", lambda: full)
    assert main(command) == 0
    assert "of 300 images are right" in (tmp_path / "s5.h").read_text().replace("\n * ", " ")
    assert "of the training set" not in capsys.readouterr().out


@needs_export
@pytest.mark.parametrize("compiler", [True, False])
def test_all_networks_are_recorded(compiler, quick, sample, tmp_path, capsys, monkeypatch):
    if not compiler:
        monkeypatch.setattr(export, "find_compiler", lambda: None)
    elif find_compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang)")
    monkeypatch.setattr("s5.inference.trained.trained_networks", lambda: ["s5"])
    monkeypatch.setattr(export, "EXPORT", tmp_path / "export.json")
    monkeypatch.setattr("s5.training.mnist.load_mnist", lambda allow_sample: sample)
    assert main(["onnx", "--record", "--output", str(tmp_path)]) == 0
    assert "Cycles on a chip are not measured" in capsys.readouterr().out
    record = json.loads((tmp_path / "export.json").read_text())
    rows = {row["format"]: row for row in record["rows"]}
    assert list(rows) == ["PyTorch", "ONNX float32", "ONNX int8", "C int8"]
    assert rows["ONNX float32"]["correct"] == rows["PyTorch"]["correct"]
    for kind in ("ONNX int8", "C int8"):
        assert abs(rows[kind]["accuracy"] - rows["PyTorch"]["accuracy"]) < 0.5
        assert rows[kind]["bytes"] < rows["ONNX float32"]["bytes"]
    assert rows["C int8"]["memory"] < 3000
    assert ("microseconds" in rows["C int8"]) == compiler


def test_difference_is_relative_to_the_largest_logit_of_an_image():
    expected = torch.tensor([[20.0, -1.0], [0.5, 0.1]])
    assert export.relative_difference(expected, expected) == 0
    large, small = torch.tensor([[0.0, 0.2], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.2]])
    assert export.relative_difference(expected + large, expected) == pytest.approx(0.01)
    assert export.relative_difference(expected + small, expected) == pytest.approx(0.2)
    assert not export.relative_difference(expected * float("nan"), expected) <= export.TOLERANCE


@needs_export
def test_onnx_file_with_other_logits_is_refused(quick, tmp_path, capsys, monkeypatch):
    class Wrong(OnnxNetwork):
        def __call__(self, images, batch_size=1000):
            return super().__call__(images, batch_size) + 1e-3

    monkeypatch.setattr(onnx_files, "to_int8", lambda source, path, *_: path.write_bytes(source.read_bytes()))
    monkeypatch.setattr(onnx_files, "OnnxNetwork", Wrong)
    assert main(["onnx", "--smoke", "--output", str(tmp_path)]) == 1
    assert "logits differ from PyTorch's by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_c_code_with_other_logits_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(CompiledNetwork, "__call__", lambda self, images: torch.zeros(len(images), 10))
    assert main(["c", "s5", "--smoke", "--output", str(tmp_path)]) == 1
    assert "s5.c differ from the reference" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_weights_and_packages_are_reported(tmp_path, capsys, monkeypatch):
    assert main(["c", "s5", "--smoke", "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "export: cannot read weights" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["onnx", "--smoke"]) == 1
    assert 'pip install -e ".[export]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        ("", 2, "required: page|onnx|c"),
        ("c", 2, "required: NETWORK"),
        ("c nothing --smoke", 1, "no trained network 'nothing'; there are below_20k, s5"),
        ("c s5 --output={file}", 2, "must be a folder"),
        ("c s5 --normalized", 2, "unrecognized arguments: --normalized"),
        ("c s5 below_5k --weights=x", 2, "--weights requires a single network"),
        ("onnx all --weights=x", 2, "--weights requires a single network"),
        ("onnx s5 --record", 2, "--record measures every network"),
        ("onnx --smoke --record", 2, "--record measures every network"),
    ],
)
def test_wrong_options_are_reported_in_one_line(command, code, complaint, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    try:
        found = main(command.format(file=file).split())
    except SystemExit as exit:
        found = exit.code
    assert found == code
    message = capsys.readouterr().err
    assert message.startswith("export: ")
    assert complaint in message
    assert message.count("\n") == 1
