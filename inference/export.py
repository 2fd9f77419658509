"""The trained network for other programs: ONNX in float32 and in int8, each checked and measured.

python export.py                 net.onnx and net-int8.onnx in runs/export, and a table: accuracy, bytes, latency
python export.py --weights FILE  other weights of Net, safetensors

Wants `pip install -e ".[export]"`. Both files take float32 (batch, 1, 28, 28), normalised as `normalize` does,
and give logits (batch, 10); the batch size is free. Exit code: 1 where a file does not answer as PyTorch does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from training.checkpoint import CheckpointError, load_weights
from training.files import WEIGHTS
from training.mnist import load_mnist, load_sample

OPSET = 18
CLOSE = 1e-5  # float32 ONNX from PyTorch, at most: see `difference`
CALIBRATION = 1000  # training images that the int8 ranges are taken from


class ExportError(RuntimeError):
    """A file that was written does not answer as the network does, or a package lacks; the message says which."""


def check_packages() -> None:
    """Raises ExportError with the install line where one of the optional packages lacks."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  what torch.onnx.export needs
    except ImportError as error:
        raise ExportError(f'{error.name} is not installed: pip install -e ".[export]"') from error


def to_onnx(model, path: Path) -> None:
    """Write `model`, which takes float (N, 1, 28, 28), as one ONNX file with a free batch size; weights inside."""
    import onnx
    import torch

    from training.files import atomic_path

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
    """Write the ONNX file `source` with int8 weights and activations.

    Their ranges come from uint8 `images` (N, 28, 28). Static quantisation in QDQ form, with a scale for each channel
    of a convolution.
    """
    import logging

    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from training.augmentation import normalize
    from training.files import atomic_path

    class Reader(quantization.CalibrationDataReader):
        batches = iter([{"images": batch.numpy()} for batch in normalize(images).split(100)])

        def get_next(self):
            return next(self.batches, None)

    logging.getLogger().setLevel(logging.ERROR)  # it recommends the preprocessing that is done here
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

        run = self.session.run
        return torch.cat(
            [torch.from_numpy(run(None, {"images": normalize(batch).numpy()})[0]) for batch in images.split(batch_size)]
        )


def difference(logits, expected) -> float:
    """How far `logits` lie from those `expected`, both (N, 10), at most: as a share of an image's largest logit.

    A share, for the rounding of float32 grows with the numbers and differs from one processor to the next; the
    difference itself where all of an image's logits are below 1.
    """
    size = expected.abs().amax(1, keepdim=True).clamp(min=1)
    return ((logits - expected).abs() / size).max().item()


def milliseconds(function, images, repeats: int) -> list[float]:
    """How long each of `repeats` calls took."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(images)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def measure(networks: dict, paths: dict[str, Path], data, repeats: int) -> list[dict]:
    """One row a network: what it is, test accuracy, mistakes, bytes, and milliseconds for one image, taken in turns."""
    one = data.eval_images[:1]
    taken = {name: milliseconds(network, one, repeats)[:0] for name, network in networks.items()}  # warm
    for _ in range(repeats):
        for name, network in networks.items():
            taken[name] += milliseconds(network, one, 1)
    rows = []
    for name, network in networks.items():
        right = int((network(data.eval_images).argmax(1) == data.eval_labels).sum())
        rows.append(
            {
                "network": name,
                "correct": right,
                "accuracy": round(100 * right / len(data.eval_labels), 2),
                "bytes": paths[name].stat().st_size,
                "milliseconds": round(statistics.median(taken[name]), 4),
                "range": [round(value, 4) for value in (min(taken[name]), max(taken[name]))],
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=REPO / "runs" / "export", metavar="FOLDER", help="default: runs/export")
    add("--weights", type=Path, default=WEIGHTS, metavar="FILE", help="safetensors (default: the ones in results/)")
    add("--repeats", type=int, default=300, metavar="N", help="of each timing (default: 300)")
    add("--record", action="store_true", help="keep the figures in results/export.json, for the README")
    add("--smoke", action="store_true", help="the small sample in place of MNIST")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, not {options.repeats}")
    if options.output.is_file():
        parser.error(f"--output is a folder to write into, and {options.output} is a file")
    try:
        check_packages()
        return run(options)
    except (ExportError, OSError, ValueError) as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """Export, check, measure and print."""
    import pandas as pd
    import torch

    import helpers
    from experiments.ledger import provenance
    from training.files import atomic_path

    try:
        model = load_weights(helpers.build(), options.weights).eval()
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    data = load_sample() if options.smoke else load_mnist()

    @torch.inference_mode()
    def plain(images):
        return torch.cat([model(normalize(batch)) for batch in images.split(1000)])

    paths = {
        "PyTorch": options.weights,
        "ONNX float32": options.output / "net.onnx",
        "ONNX int8": options.output / "net-int8.onnx",
    }
    to_onnx(model, paths["ONNX float32"])
    to_int8(paths["ONNX float32"], paths["ONNX int8"], data.train_images[:CALIBRATION])
    networks = {"PyTorch": plain} | {name: OnnxNetwork(path) for name, path in paths.items() if name != "PyTorch"}
    off = difference(networks["ONNX float32"](data.eval_images), plain(data.eval_images))
    if not off <= CLOSE:
        raise ExportError(f"the float32 file's logits differ from PyTorch's by a share of {off:.2g}, not {CLOSE:g}")
    rows = measure(networks, paths, data, options.repeats)
    print(pd.DataFrame(rows).to_string(index=False))
    print(
        f"float32: opset {OPSET}, free batch size, logits within a share of {off:.1e} of PyTorch's; in {options.output}"
    )
    if options.record:
        record = {"rows": rows, "difference": off, "opset": OPSET, "data": str(data)}
        with atomic_path(RESULTS) as temporary:
            temporary.write_text(json.dumps(record | provenance(torch.device("cpu")), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
