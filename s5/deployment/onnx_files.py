"""A network as an ONNX file: in float32 and in int8, with a description of itself."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from s5.training.augmentation import MEAN, STD, normalize

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
    _save(program.model_proto, path, (about or {}) | _interface(normalized))


def to_int8(source: Path, path: Path, images: Tensor, normalized: bool = False) -> None:
    """Quantise the ONNX file `source` to 8-bit convolutions and write it to `path`, with the same input and metadata.

    Static quantisation in QDQ format; the ranges are those of uint8 `images` (N, 28, 28). Weights are uint8 around 128,
    one scale per channel: the products of two uint8 are summed exactly by every processor, while int8 weights saturate
    on x86-64 without VNNI, with uint8 and with int8 activations alike.
    """

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"images": (normalize(batch) if normalized else batch).numpy()} for batch in images.split(100)])

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
    about = read_metadata(source) | {"arithmetic": "convolutions on uint8 activations and uint8 weights around 128"}
    _save(model, path, about)


def read_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


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
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("metadata_props")  # stack traces of the export
        part.ClearField("doc_string")
    model.doc_string = about.get("description", "")
    path.write_bytes(model.SerializeToString())


class OnnxNetwork:
    """An ONNX file as a function from uint8 images (N, 28, 28) to logits, float32 (N, 10), on the CPU."""

    def __init__(self, path: Path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # of more, those that wait spin, and keep other programs from their core
        self.session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        self.normalized = self.session.get_inputs()[0].type == "tensor(float)"

    def __call__(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        batches = ((normalize(batch) if self.normalized else batch).numpy() for batch in images.split(batch_size))
        return torch.cat([torch.from_numpy(self.session.run(None, {"images": batch})[0]) for batch in batches])
