"""Export the trained network to ONNX, in float32 and int8, and compare both files with PyTorch.

python -m inference.export                 write net.onnx and net-int8.onnx to runs/export, and print a table
python -m inference.export --weights FILE  with other weights of Net, safetensors

Requires `pip install -e ".[export]"`. Both networks take float32 (batch, 1, 28, 28), normalised as by
`training.augmentation.normalize`, and return logits (batch, 10); the batch size is free. The table gives accuracy, file
size and latency. Exit code: 1 if the float32 network's logits differ from PyTorch's by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

from training.command_line import Parser, run_command
from training.files import EXPORT, RUNS, WEIGHTS, atomic_path

# Torch takes seconds to load, so what needs it is imported inside functions: --help responds at once.

OPSET = 18
TOLERANCE = 1e-5  # largest `relative_difference` of the float32 network's logits from PyTorch's
CALIBRATION_IMAGES = 1000  # training images that determine the int8 ranges


class ExportError(RuntimeError):
    """An exported network differs from PyTorch's, or packages, weights or data are missing; the message says which."""


def check_packages() -> None:
    """Raise ExportError, with the command that installs it, if an optional package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  torch.onnx.export requires it
    except ImportError as error:
        raise ExportError(f'{error.name} is not installed: pip install -e ".[export]"') from error


def to_onnx(model, path: Path) -> None:
    """Write `model`, which takes float (N, 1, 28, 28), as one ONNX file with its weights and a free batch size."""
    import onnx
    import torch

    model = model.cpu().eval()
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(program.model_proto.SerializeToString())


def to_int8(source: Path, path: Path, images) -> None:
    """Quantise the ONNX file `source` to int8 weights and activations and write it to `path`.

    Static quantisation in QDQ format, with one scale per channel of a convolution. The ranges are calibrated on uint8
    `images` (N, 28, 28).
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from training.augmentation import normalize

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"images": batch.numpy()} for batch in normalize(images).split(100)])

        def get_next(self):
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # it recommends the preprocessing that is done below
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(temporary),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


class OnnxNetwork:
    """An ONNX file as a function from uint8 images (N, 28, 28) to logits, float32 (N, 10), on the CPU."""

    def __init__(self, path: Path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, images, batch_size: int = 1000):
        import torch

        from training.augmentation import normalize

        batches = (normalize(batch).numpy() for batch in images.split(batch_size))
        return torch.cat([torch.from_numpy(self.session.run(None, {"images": batch})[0]) for batch in batches])


def relative_difference(logits, expected) -> float:
    """Largest difference of `logits` from `expected`, both (N, 10), relative to the image's largest expected logit.

    Relative, because the rounding errors of float32 grow with the values and differ between processors; absolute for
    images whose logits are all below 1.
    """
    scale = expected.abs().amax(1, keepdim=True).clamp(min=1)
    return ((logits - expected).abs() / scale).max().item()


def milliseconds(network, images) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    network(images)
    return 1000 * (time.perf_counter() - start)


def measure(networks: dict, paths: dict[str, Path], data, repeats: int) -> list[dict]:
    """One row per network: accuracy on the evaluation images, file size, and milliseconds for a single image.

    The networks are timed in turns, so that a change in the machine's load affects all of them.
    """
    image = data.eval_images[:1]
    for network in networks.values():
        for _ in range(repeats):
            network(image)  # warm-up
    times = {name: [] for name in networks}
    for _ in range(repeats):
        for name, network in networks.items():
            times[name].append(milliseconds(network, image))
    rows = []
    for name, network in networks.items():
        correct = int((network(data.eval_images).argmax(1) == data.eval_labels).sum())
        rows.append(
            {
                "network": name,
                "correct": correct,
                "accuracy": round(100 * correct / len(data.eval_labels), 2),
                "bytes": paths[name].stat().st_size,
                "milliseconds": round(statistics.median(times[name]), 4),
                "range": [round(value, 4) for value in (min(times[name]), max(times[name]))],
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = Parser("export", __doc__, usage="python -m inference.export [options]")
    add = parser.add_argument
    add("--output", type=Path, default=RUNS / "export", metavar="FOLDER", help="default: runs/export")
    add("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="of Net, safetensors (default: in results/)")
    add("--repeats", type=int, default=300, metavar="N", help="timed calls per network (default: 300)")
    add("--record", action="store_true", help="save the table in results/export.json, for RESULTS.md")
    add("--smoke", action="store_true", help="use the small sample instead of MNIST")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, not {options.repeats}")
    if options.output.is_file():
        parser.error(f"--output must be a folder, but {options.output} is a file")
    try:
        check_packages()
        return run(options)
    except (ExportError, OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Export, compare, measure and print; return the exit code."""
    import pandas as pd
    import torch

    import helpers
    from training.augmentation import normalize
    from training.checkpoint import CheckpointError, load_weights
    from training.mnist import DataError, load_mnist, load_sample
    from training.provenance import provenance

    try:
        model = load_weights(helpers.build(), options.weights).eval()
        data = load_sample() if options.smoke else load_mnist()
    except (CheckpointError, DataError) as error:
        raise ExportError(str(error)) from error

    @torch.inference_mode()
    def pytorch_network(images):
        return torch.cat([model(normalize(batch)) for batch in images.split(1000)])

    paths = {
        "PyTorch": options.weights,
        "ONNX float32": options.output / "net.onnx",
        "ONNX int8": options.output / "net-int8.onnx",
    }
    to_onnx(model, paths["ONNX float32"])
    to_int8(paths["ONNX float32"], paths["ONNX int8"], data.train_images[:CALIBRATION_IMAGES])
    networks = {name: pytorch_network if name == "PyTorch" else OnnxNetwork(path) for name, path in paths.items()}
    difference = relative_difference(networks["ONNX float32"](data.eval_images), pytorch_network(data.eval_images))
    if not difference <= TOLERANCE:  # NaN fails too
        raise ExportError(
            f"the float32 network's logits differ from PyTorch's by {difference:.2g} (relative; at most {TOLERANCE:g})"
        )
    rows = measure(networks, paths, data, options.repeats)
    print(pd.DataFrame(rows).to_string(index=False))
    print(
        f"ONNX opset {OPSET}; float32 logits differ from PyTorch's by {difference:.1e} (relative); in {options.output}"
    )
    if options.record:
        record = {"rows": rows, "difference": difference, "opset": OPSET, "data": str(data)}
        with atomic_path(EXPORT) as temporary:
            temporary.write_text(json.dumps(record | provenance(torch.device("cpu"), "float32"), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_command(main)
