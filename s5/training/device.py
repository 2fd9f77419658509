"""The device that a network is trained on, and what makes it fast there: precision, memory layout, compiling."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor, nn

from s5.training.checks import has_only_project_layers, runs
from s5.training.command_line import PRECISIONS
from s5.training.cuda_graphs import Recordable, can_record
from s5.training.fused import fuse
from s5.training.kernels import can_compile

MIN_GAIN = 1.2  # by which bfloat16 must be faster to be used where only a measurement tells


def pick_device(device: str = "auto") -> torch.device:
    """The device by name; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises ValueError when the name is unknown or the machine has no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(name for name, is_available in available.items() if is_available))
    kind = str(device).split(":")[0]
    if kind not in available:
        raise ValueError(f"device must be auto, cpu, cuda or mps, not {device!r}")
    if not available[kind]:
        raise ValueError(f"device {device!r} was asked for, but torch finds no {kind.upper()} device on this machine")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is no valid device: {error}") from error
    if kind == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return chosen


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision of the forward and backward pass, "float32" or "bfloat16"; weights are always float32.

    "auto" takes bfloat16 if the device multiplies it natively: a CUDA card from Ampere on, a processor with AMX or
    AVX512-BF16. Emulated, it takes several times as long. Raises ValueError for any other word.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = _has_fast_tensor_cores(device)
    else:
        native = device.type == "cpu" and _cpu_multiplies_bfloat16()
    return "bfloat16" if native else "float32"


def _has_fast_tensor_cores(device: torch.device) -> bool:
    """True for a CUDA card from Ampere on: its tensor cores multiply bfloat16, and TF32, as float32 is multiplied."""
    return torch.cuda.get_device_capability(device)[0] >= 8


@cache
def _cpu_multiplies_bfloat16() -> bool:
    """Ask torch on x86; measure a convolution on other processors."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(bfloat16_instructions())
    images, weight = torch.randn(128, 32, 7, 7), torch.randn(40, 32, 3, 3)
    images = images.to(memory_format=torch.channels_last)

    def fastest(dtype: torch.dtype) -> float:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            torch.conv2d(images.to(dtype), weight.to(dtype), padding=1)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return fastest(torch.float32) > MIN_GAIN * fastest(torch.bfloat16)


def bfloat16_instructions() -> str:
    """The widest instructions of an x86 processor that multiply bfloat16: "AMX", "AVX512-BF16", or "" for none."""
    asked = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}  # an older torch lacks them
    return next((name for name, function in asked.items() if getattr(torch.cpu, function, bool)()), "")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a forward pass runs in a precision (see `pick_precision`)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def eval_batch_size(device: torch.device) -> int:
    """Images at once where no gradients are needed: on a CPU few, whose activations stay in its cache."""
    return 128 if device.type == "cpu" else 1000


def compile_model(model: nn.Module, device: torch.device, compile: bool | None = True) -> Callable[[Tensor], Tensor]:
    """The model compiled for training, equal up to rounding; it shares its weights with `model`.

    On a CPU some of its layers are fused (`fused.py`), which takes two seconds the first time. On CUDA it is marked as
    `Recordable`: the whole training step is recorded (`graphs.py`). `compile` None: on a CPU if there is a compiler, on
    CUDA if all layers are torch's or this project's; False: returns `model`; True: always, on CUDA also a network of
    one's own: what its forward pass does in Python, it then does for the first batches only. Raises CompileError if
    `compile` is True and there is no compiler.
    """
    if compile is None:
        compile = can_compile() if device.type == "cpu" else device.type == "cuda" and can_record(model)
    if not compile:
        return model
    if device.type == "cpu":
        fused = fuse(model)
        # The kernels' results are laid out channels last, which a network of one's own may not expect.
        return fused if has_only_project_layers(model) or runs(fuse(copy.deepcopy(model).train()), device) else model
    return Recordable(model) if device.type == "cuda" else torch.compile(model)


def use_channels_last(model: nn.Module) -> None:
    """Lay out a model's convolutions channels last, in place, on devices where that is faster.

    Not if the model then fails: `images.view(len(images), -1)` after a convolution works for the usual layout only.
    """
    with torch.inference_mode(False):  # weights made in inference mode could not be trained
        if model in _CONTIGUOUS or not any(map(_is_to_be_laid_out, model.parameters())):
            return
        if not has_only_project_layers(model):
            trial = copy.deepcopy(model).eval()
            _lay_out(trial)
            if not runs(trial, next(model.parameters()).device):
                _CONTIGUOUS.add(model)
                return
        _lay_out(model)


_CONTIGUOUS: WeakSet[nn.Module] = WeakSet()  # networks that fail channels last


def _lay_out(model: nn.Module) -> None:
    for parameter in filter(_is_to_be_laid_out, model.parameters()):
        parameter.data = parameter.data.clone(memory_format=torch.channels_last)


def _is_to_be_laid_out(parameter: nn.Parameter) -> bool:
    if parameter.dim() != 4:
        return False
    if parameter.is_cpu:
        return not parameter.is_contiguous(memory_format=torch.channels_last)
    # cuDNN goes by the strides, also where a weight has one input channel and is contiguous in both layouts. While a
    # weight is trained it stays as it is: fused optimisers need the same strides of everything.
    is_usual = parameter.is_cuda and parameter.stride(1) != 1 and parameter.grad is None
    return is_usual and _has_fast_tensor_cores(parameter.device)
