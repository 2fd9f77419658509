"""A network as an ONNX file: in float32 and in int8, with a description of itself."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from s5.inference.trained import IMAGES, LOGITS
from s5.training.augmentation import MEAN, STD, normalize

OPSET = 18
QUANTIZED = ["Conv", "Add", "MaxPool", "Relu"]  # a linear layer of ten outputs stays in float32
INTERFACE = {"input images": IMAGES, "output logits": LOGITS, "arithmetic": "float32"}
INTERFACE |= {"scale": "255", "mean": str(MEAN), "std": str(STD)}


class FromImages(nn.Module):
    """A network that takes images as they are in MNIST, uint8 (N, 28, 28), and normalises them itself."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalize(images))


def to_onnx(network: nn.Module, path: Path, about: dict[str, str]) -> None:
    """Write `network` as one ONNX file, uint8 images (N, 28, 28) → logits, for any N; `about` is its metadata too."""
    program = torch.onnx.export(
        FromImages(network).eval(),
        (torch.zeros(2, 28, 28, dtype=torch.uint8),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    model = program.model_proto
    _save(model, path, about | INTERFACE, [weight.name for weight in model.graph.initializer])


def to_int8(source: Path, path: Path, images: Tensor) -> None:
    """Quantise the ONNX file `source` to 8-bit convolutions and write it to `path`, with the same input and metadata.

    Static quantisation in QDQ format; the ranges are those of uint8 `images` (N, 28, 28). Weights are uint8 around 128,
    one scale per channel: the products of two uint8 are summed exactly by every processor, while int8 weights saturate
    on x86-64 without VNNI, with uint8 and with int8 activations alike.
    """

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"images": batch.numpy()} for batch in images.split(100)])

        def get_next(self):
            return next(self.batches, None)

    logging.disable(logging.WARNING)  # onnxruntime recommends the preprocessing that is done anyway
    try:
        with tempfile.TemporaryDirectory() as folder:
            folded, quantized = Path(folder) / "folded.onnx", Path(folder) / "quantized.onnx"
            quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(folded),
                str(quantized),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=QUANTIZED,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QUInt8,
                extra_options={"WeightSymmetric": True},
            )
            model = onnx.load(quantized)
    finally:
        logging.disable(logging.NOTSET)
    about = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
    _save(model, path, about | {"arithmetic": "convolutions on uint8 activations and uint8 weights around 128"})


def _save(model: onnx.ModelProto, path: Path, about: dict[str, str], weights: Iterable[str] = ()) -> None:
    """Write the file without what running it does not need; of the names only those of `weights` are kept."""
    graph = model.graph
    onnx.helper.set_model_props(model, about)
    model.doc_string = about["description"]
    del graph.value_info[:]  # shapes, which follow from the nodes
    del model.opset_import[:]  # onnxruntime adds eight that no node is of
    model.opset_import.add(version=OPSET)
    names = {name: name for name in (*weights, *(value.name for value in (*graph.input, *graph.output)))}
    constants = {}  # names by content: equal ones are stored once
    for constant in list(graph.initializer):
        if constant.name not in names:
            before, constant.name = constant.name, ""
            content = constant.SerializeToString()
            if content in constants:
                graph.initializer.remove(constant)
            names[before] = constant.name = constants.setdefault(content, f"c{len(constants)}")
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):  # these have stack traces of the export
            node.ClearField(field)
        for values in (node.input, node.output):
            values[:] = [names.setdefault(value, f"v{len(names)}") if value else "" for value in values]
    for constant in graph.initializer:
        constant.ClearField("metadata_props")
    path.write_bytes(model.SerializeToString())


class OnnxNetwork:
    """An ONNX file as a function from uint8 images (N, 28, 28) to logits, float32 (N, 10), on the CPU."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # of more, those that wait spin, and keep other programs from their core
        self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        batches = images.split(1000)
        return torch.cat([torch.from_numpy(self.session.run(None, {"images": each.numpy()})[0]) for each in batches])
