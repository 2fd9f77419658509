"""A network as an ONNX file: in float32 and in int8, with a description of itself."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from s5.training.augmentation import MEAN, STD, normalize
from s5.training.files import atomic_path

OPSET = 18
CALIBRATION_IMAGES = 1000  # training images that determine the int8 ranges
QUANTIZED = ["Conv", "Add", "MaxPool", "Relu"]  # a linear layer of ten outputs stays in float32


class FromImages(nn.Module):
    """A network that takes images as they are in MNIST, uint8 (N, 28, 28), and normalises them itself."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(normalize(images))


def to_onnx(network: nn.Module, path: Path, normalized: bool = False, about: dict[str, str] | None = None) -> None:
    """Write `network`, normalised float32 (N, 1, 28, 28) → logits, as one ONNX file with a free batch size.

    The file takes uint8 images (N, 28, 28), or with `normalized` what the network takes. `about` and the description of
    the input and the output are its metadata.
    """
    module = network if normalized else FromImages(network)
    example = torch.zeros(2, 1, 28, 28) if normalized else torch.zeros(2, 28, 28, dtype=torch.uint8)
    program = torch.onnx.export(
        module.cpu().eval(),
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    with atomic_path(path) as temporary:
        _save(program.model_proto, temporary, (about or {}) | _interface(normalized))


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    """onnxruntime recommends, on the root logger, the preprocessing that is done anyway."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def to_int8(source: Path, path: Path, images: Tensor) -> None:
    """Quantise the ONNX file `source` to 8-bit convolutions and write it to `path`, with the same input and metadata.

    Static quantisation in QDQ format; the ranges are those of uint8 `images` (N, 28, 28). Weights are uint8 around 128,
    one scale per channel: the products of two uint8 are summed exactly by every processor, while int8 weights saturate
    on x86-64 without VNNI, with uint8 and with int8 activations alike.
    """
    normalized = takes_normalized(onnx.load(source))

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"images": (normalize(batch) if normalized else batch).numpy()} for batch in images.split(100)])

        def get_next(self):
            return next(self.batches, None)

    with _only_errors_logged(), tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
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
        about = read_metadata(source)
        about["arithmetic"] = "convolutions on uint8 activations and uint8 weights around 128"
        _save(onnx.load(quantized), temporary, about)


def read_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def takes_normalized(model: onnx.ModelProto) -> bool:
    """True if its input is float."""
    return model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def _interface(normalized: bool) -> dict[str, str]:
    """The description of the input and the output."""
    pixels = "28×28 pixels, row by row, 0 for the black background to 255 for white ink, as in MNIST"
    formula = f"(pixel / 255 - {MEAN}) / {STD}"
    if normalized:
        images = f"float32 (batch, 1, 28, 28): {formula} of {pixels}"
    else:
        images = f"uint8 (batch, 28, 28): {pixels}; the network itself computes {formula}"
    logits = "float32 (batch, 10), one per digit 0 to 9; the largest is the prediction, softmax gives probabilities"
    numbers = {"scale": str(255), "mean": str(MEAN), "std": str(STD)}
    return {"input images": images, "output logits": logits, "arithmetic": "float32", **numbers}


def _save(model: onnx.ModelProto, path: Path, about: dict[str, str]) -> None:
    onnx.helper.set_model_props(model, about)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # stack traces of the export
        node.ClearField("doc_string")
    for value in model.graph.value_info:
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    model.doc_string = about.get("description", "")
    path.write_bytes(model.SerializeToString())


class OnnxNetwork:
    """An ONNX file as a function from uint8 images (N, 28, 28) to logits, float32 (N, 10), on the CPU."""

    def __init__(self, path: Path, optimize: bool = True):
        """Without `optimize` the graph runs as written: a quantised one in float32, rounded between the layers."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # of more, those that wait spin, and keep other programs from their core
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.normalized = self.session.get_inputs()[0].type == "tensor(float)"

    def __call__(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        batches = ((normalize(batch) if self.normalized else batch).numpy() for batch in images.split(batch_size))
        return torch.cat([torch.from_numpy(self.session.run(None, {"images": batch})[0]) for batch in batches])
