"""The exported files give the same predictions as PyTorch, everywhere, and describe themselves."""

import importlib.util
import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from s5.commands import predict
from s5.commands.export import main
from s5.deployment import export
from s5.deployment.c_code import COMPILER, CompiledNetwork, write_c
from s5.deployment.quantization import quantize
from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import read_ledger
from s5.inference.trained import load_trained
from s5.training.checkpoint import save_weights
from s5.training.files import TRAINED
from s5.training.mnist import find_files, load_data
from tests.utils import ROOT

missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)]
if not missing:
    import onnx
    import onnxruntime

    from s5.deployment import onnx_files
    from s5.deployment.onnx_files import OnnxNetwork, to_int8, to_onnx

needs_export = pytest.mark.skipif(bool(missing), reason=f"requires {', '.join(missing)}")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Net as an ONNX file, alone in its folder."""
    path, model = tmp_path_factory.mktemp("export") / "net.onnx", load_trained()
    to_onnx(model, path, export.describe("s5", model, read_ledger()))
    return path


@pytest.fixture(autouse=True)
def small_sample(sample, monkeypatch):
    """The commands use a part of the sample, which takes seconds to read; it is returned."""
    small = sample.subset(50, 300)
    monkeypatch.setattr("s5.training.mnist.load_sample", lambda: small)
    return small


@needs_export
def test_logits_equal_those_of_pytorch_for_every_batch_size(exported, sample):
    for count in (1, 2, 7):
        images = sample.eval_images[:count]
        expected = export.logits_of(load_trained(), images)
        torch.testing.assert_close(OnnxNetwork(exported)(images), expected, atol=export.TOLERANCE, rtol=0)


@needs_export
@pytest.mark.parametrize("name", ["s5", "below_500"])  # plain, shared
def test_int8_predictions_do_not_depend_on_the_kernels(name, sample, tmp_path):
    """As written, the graph computes in float32 and rounds between the layers; optimised, in integers."""
    source, path = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    to_onnx(load_trained(name), source, {"description": name})
    to_int8(source, path, sample.train_images[:200])
    kernels, as_written = OnnxNetwork(path), OnnxNetwork(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    as_written.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kernels, floats = (network(sample.eval_images).argmax(1) for network in (kernels, as_written))
    assert torch.equal(kernels, floats)
    assert path.stat().st_size < source.stat().st_size
    assert (kernels == sample.eval_labels).float().mean() > 0.97


@needs_export
@needs_compiler
@pytest.mark.skipif(find_files("mnist") is None, reason="requires MNIST on disk, in $MNIST_ROOT or data/")
@pytest.mark.parametrize("name", ["below_5k", "below_500"])
def test_c_agrees_with_int8_onnx_on_all_test_images(name, tmp_path):
    """A second opinion: onnxruntime quantises and computes in its own way. Seven networks differ by 0 to 6 answers."""
    data, model = load_data(), load_trained(name)
    to_onnx(model, tmp_path / "net.onnx", {"description": name})
    to_int8(tmp_path / "net.onnx", tmp_path / "int8.onnx", data.train_images[:1000])
    write_c(quantize(model, data.train_images[:1000]), "net", tmp_path, data.eval_images[:3])
    networks = OnnxNetwork(tmp_path / "int8.onnx"), CompiledNetwork(tmp_path / "net.c", tmp_path)
    predictions = [network(data.eval_images).argmax(1) for network in networks]
    correct = [int((each == data.eval_labels).sum()) for each in predictions]
    assert abs(correct[0] - correct[1]) <= 10
    assert (predictions[0] != predictions[1]).sum() <= 80


@needs_export
def test_file_alone_is_enough_to_use_it(exported, sample, tmp_path):
    to_int8(exported, tmp_path / "int8.onnx", sample.train_images[:20])
    for path in (exported, tmp_path / "int8.onnx"):
        network = onnx.load(path)
        about = {entry.key: entry.value for entry in network.metadata_props}
        assert (about["parameters"], about["network"]) == ("18214", "Net")
        assert "uint8 (batch, 28, 28)" in about["input images"]
        assert "(pixel / 255 - 0.1307) / 0.3081" in about["input images"]
        assert about["output logits"].startswith("float32 (batch, 10)")
        assert "% of 10,000 test images" in about["accuracy"]
        assert [each.name for each in (*network.graph.input, *network.graph.output)] == ["images", "logits"]
        assert [(entry.domain, entry.version) for entry in network.opset_import] == [("", onnx_files.OPSET)]
        assert not network.graph.value_info
        assert str(ROOT).encode() not in path.read_bytes()  # no stack traces
    assert [path.name for path in exported.parent.iterdir()] == ["net.onnx"]  # includes the weights
    stored = {each.name for each in onnx.load(exported).graph.initializer}
    assert {"network.conv1.0.weight", "network.fc.weight"} <= stored
    card = (TRAINED / "s5.md").read_text(encoding="utf-8").replace("\n", " ")
    described = re.search(r"`images` is (\w+) \((\w+), (\d+), (\d+)\):", card).groups()
    images = onnxruntime.InferenceSession(exported).get_inputs()[0]
    assert (images.type, *map(str, images.shape)) == (f"tensor({described[0]})", *described[1:])
    # Int8 weights would saturate on processors without VNNI, which this one may have.
    stored = {each.name: each.data_type for each in network.graph.initializer}
    zero_points = [node.input[2] for node in network.graph.node if node.op_type == "DequantizeLinear"]
    assert onnx.TensorProto.INT8 not in {*stored.values(), *(stored[name] for name in zero_points)}


@needs_export
@pytest.mark.parametrize("compiler", [True, False])
def test_all_networks_are_recorded(compiler, exported, sample, tmp_path, monkeypatch):
    if not compiler:
        monkeypatch.setattr(export, "COMPILER", None)
    elif COMPILER is None:
        pytest.skip("no C compiler (cc)")
    monkeypatch.setattr(onnx_files, "to_onnx", lambda model, path, _: path.write_bytes(exported.read_bytes()))
    monkeypatch.setattr("s5.inference.trained.trained_networks", lambda: ["s5"])
    monkeypatch.setattr(export, "EXPORT", tmp_path / "export.json")
    monkeypatch.setattr("s5.training.mnist.load_data", lambda *_, **__: sample)
    assert main(["onnx", "--record", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"export.json", "s5-int8.onnx", "s5.onnx", "s5"}
    rows = {row["format"]: row for row in json.loads((tmp_path / "export.json").read_text())["rows"]}
    assert list(rows) == ["PyTorch", "ONNX float32", "ONNX int8", "C int8"]
    assert rows["ONNX float32"]["correct"] == rows["PyTorch"]["correct"]
    for kind in ("ONNX int8", "C int8"):
        assert abs(rows[kind]["accuracy"] - rows["PyTorch"]["accuracy"]) < 0.5
        assert rows[kind]["bytes"] < rows["ONNX float32"]["bytes"]
    assert rows["C int8"]["memory"] < 3000
    assert ("microseconds" in rows["C int8"]) == compiler


@needs_compiler
def test_command_exports_c(small_sample, tmp_path, capsys, monkeypatch):
    command = ["c", "s5", "--smoke", "--output", str(tmp_path)]
    assert main(command) == 0
    assert "The sample's images are of the training set" in capsys.readouterr().out
    folder = tmp_path / "s5"
    assert {path.name for path in folder.iterdir()} >= {"s5.c", "s5.h", "s5.ino", "example.c", "Makefile", "README.md"}
    header = (folder / "s5.h").read_text()
    assert "s5, Net, 18,214 parameters" in header
    assert "images are right" not in header.replace("\n * ", " ")
    monkeypatch.setattr("s5.training.mnist.load_sample", lambda: replace(small_sample, source="mnist"))
    assert main(command) == 0
    assert "of 300 images are right" in (folder / "s5.h").read_text().replace("\n * ", " ")
    assert "of the training set" not in capsys.readouterr().out


@needs_compiler
def test_network_of_ones_own_is_exported_and_read_with_its_weights(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("from helpers import Net as Mine")
    weights, mine = str(tmp_path / "mine.safetensors"), f"{tmp_path / 'mine.py'}:Mine"
    save_weights(load_trained("below_1k"), weights, {"variant": CLAIMS["below_1k"].network})
    command = ["c", "--smoke", "--output", str(tmp_path), "--weights"]
    assert main([*command, weights]) == 0
    assert (tmp_path / "shared_8_1_2_3_3_gdconv_deskew_5_crop_2" / "Makefile").is_file()
    save_weights(load_trained("s5"), weights)
    assert main([*command, weights, mine]) == 0
    assert "Mine@" in (tmp_path / "Mine" / "Mine.h").read_text()
    assert predict.main([f"--weights={weights}", f"--network={mine}", str(ROOT / "figures" / "digits")]) == 0
    assert main([*command, weights, "resnet"]) == 1
    save_weights(load_trained("s5"), weights, {"variant": "Mine@1a2b3c4d"})
    assert main([*command, weights]) == 1
    unknown, unnamed = capsys.readouterr().err.splitlines()
    assert 'export: in "resnet"' in unknown
    assert "weights of Mine@1a2b3c4d: name that network, too" in unnamed


@needs_export
def test_onnx_file_with_other_logits_is_refused(tmp_path, capsys, monkeypatch):
    logits = OnnxNetwork.__call__
    monkeypatch.setattr(OnnxNetwork, "__call__", lambda self, images: logits(self, images) + 1e-3)
    assert main(["onnx", "--smoke", "--output", str(tmp_path)]) == 1
    assert "the float32 logits of s5 differ from PyTorch's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_c_code_with_other_logits_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(CompiledNetwork, "__call__", lambda self, images: torch.zeros(len(images), 10))
    assert main(["c", "s5", "--smoke", "--output", str(tmp_path)]) == 1
    assert "s5.c differ from the reference" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        ("", 2, "required: format"),
        ("c nothing --smoke", 1, "no trained network 'nothing'; there are below_20k, s5"),
        ("c --smoke --weights=none.safetensors", 1, "cannot read weights"),
        ("onnx --smoke", 1, 'pip install -e ".[export]"'),
        ("c s5 --output={file}", 2, "must be a folder"),
        ("page s5", 2, "the page has all networks"),
        ("c s5 below_5k --weights=x", 2, "--weights requires a single network"),
        ("onnx s5 --record", 2, "--record measures every network"),
    ],
)
def test_errors_are_reported_in_one_line(command, code, complaint, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setitem(sys.modules, "s5.deployment.onnx_files", None)  # as if a package were missing
    try:
        found = main(command.format(file=file).split())
    except SystemExit as exit:
        found = exit.code
    assert found == code
    message = capsys.readouterr().err
    assert message.startswith("export: ")
    assert complaint in message
    assert message.count("\n") == 1
