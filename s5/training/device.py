"""The device that a network is trained on, and what makes it fast there: precision, threads, layout, fused layers."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch
from torch import nn

from s5.training.checks import has_only_project_layers
from s5.training.command_line import PRECISIONS
from s5.training.fused import fused_forwards
from s5.training.kernels import can_compile

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc's
SECONDS_TO_LOOK = 0.2  # how long the other programs' load is measured


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device by name; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises ValueError when the name is unknown or the machine has no such device.
    """
    available = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    names = [name for name, count in available.items() if count]
    try:
        chosen = torch.device(names[0] if device == "auto" else device)
        is_available = (chosen.index or 0) < available.get(chosen.type, 0)
    except RuntimeError:
        is_available = False
    if not is_available:
        raise ValueError(f"device must be auto or one that torch finds here, {' or '.join(names)}, not {str(device)!r}")
    return chosen


def pick_precision(precision: str, device: torch.device) -> str:
    """The precision of the forward and backward pass, "float32" or "bfloat16"; weights are always float32.

    "auto" takes bfloat16 if the device multiplies it natively: a CUDA card from Ampere on, an x86 processor with AMX
    or AVX512-BF16. Emulated, it takes several times as long. Raises ValueError for any other word.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if _has_fast_tensor_cores(device) else "float32"
    return "bfloat16" if device.type == "cpu" and bfloat16_instructions() else "float32"


def _has_fast_tensor_cores(device: torch.device) -> bool:
    """True for a CUDA card from Ampere on: its tensor cores multiply bfloat16, and TF32, as float32 is multiplied."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def bfloat16_instructions() -> str:
    """The widest instructions of an x86 processor that multiply bfloat16: "AMX", "AVX512-BF16", or "" for none."""
    asked = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}  # an older torch lacks them
    return next((name for name, function in asked.items() if getattr(torch.cpu, function, bool)()), "")


def eval_batch_size(device: torch.device) -> int:
    """Images at once where no gradients are needed: on a CPU few, whose activations stay in its cache."""
    return 128 if device.type == "cpu" else 1000


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_threads() -> tuple[int, str]:
    """The number of threads for a command that is told none, and the reason for it in a few words.

    One thread per idle core, at least one. A thread beside another busy program is slow, and all others wait for it at
    every operation: with one such program on two cores, two threads take more than twice as long as one.
    """
    most = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return most, "as in OMP_NUM_THREADS"
    idle = sum(1 - percent / 100 for percent in psutil.cpu_percent(SECONDS_TO_LOOK, percpu=True))
    threads = max(1, min(most, round(idle)))
    return threads, "one per core" if threads == most else "other programs use the other cores"


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, in place, and lay out its convolutions channels last where that is faster.

    Not with layers of a user: `images.view(len(images), -1)` after a convolution works for the usual layout only. Nor
    while a weight is trained: fused optimizers need the same strides of everything.
    """
    is_faster = device.type == "cpu" or (device.type == "cuda" and _has_fast_tensor_cores(device))
    with torch.inference_mode(False):  # weights made in inference mode could not be trained
        model.to(device)
        for parameter in model.parameters() if is_faster and has_only_project_layers(model) else ():
            if parameter.dim() != 4 or parameter.grad is not None:
                continue
            # cuDNN goes by the strides even where a weight has one input channel, and either order is contiguous.
            if parameter.is_cuda or not parameter.is_contiguous(memory_format=torch.channels_last):
                parameter.data = parameter.data.clone(memory_format=torch.channels_last)
        for parameter in model.parameters() if device.type == "mps" else ():
            parameter.data = parameter.data.contiguous()  # batch normalisation was wrong there after channels last
    return model


@contextmanager
def prepare_device(model: nn.Module, device: torch.device, threads: int, compile: bool | None = None) -> Iterator[None]:
    """Make training of `model` fast on `device`, and repeatable: one seed gives the same weights twice.

    On a CPU, BatchNorm, ReLU and max-pooling are fused (`fused.py`), which takes two seconds the first time; the model
    has its usual layers again afterwards. `compile` None: if there is a compiler; False: never; True: always, and
    without a compiler CompileError is raised.
    """
    fuses = device.type == "cpu" and (can_compile() if compile is None else compile)
    forwards = fused_forwards(model) if fuses else {}
    _keep_freed_memory()
    # cuDNN's fastest convolutions add up in any order.
    with use_threads(threads), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for module, forward in forwards.items():
            module.forward = forward  # of this object; it hides the method of its class
        try:
            yield
        finally:
            for module in forwards:
                del module.forward


def _keep_freed_memory() -> None:
    """Keep freed memory in the process for the next batch (glibc only).

    Otherwise the pages of every activation, a few megabytes each, are returned and faulted in again at every batch.
    """
    with suppress(OSError, AttributeError, TypeError):  # macOS, Windows, musl
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 2**30)
