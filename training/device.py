"""The device that a network is trained on: by name, its memory layout, and compiling for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.fused import compiles, fuse

MIN_BATCHES_TO_COMPILE = 1500  # compiling takes about ten seconds and saves some ten milliseconds per batch
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h, glibc's


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


def compile_model(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The model compiled for training; it shares its weights with `model`.

    On a CPU some of its layers are fused (`fused.py`). On CUDA the model is recorded as CUDA graphs, which removes
    Python's overhead. Raises ValueError if this machine cannot compile.
    """
    if device.type == "cpu":
        return fuse(model)
    return torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else "default")


def should_compile(device: torch.device, batches: int) -> bool:
    """True if compiling saves more time over `batches` training steps than it takes: in long runs on a CPU."""
    return device.type == "cpu" and batches >= MIN_BATCHES_TO_COMPILE and compiles()


def use_channels_last(model: nn.Module) -> None:
    """Lay out a model's weights channels last, in place, if it is on a CPU, where that is faster."""
    if next(model.parameters()).device.type == "cpu":
        with torch.inference_mode(False):  # weights made in inference mode could not be trained
            model.to(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Keep freed memory in the process for the next batch (glibc only).

    Otherwise the pages of every activation, a few megabytes each, are returned and faulted in again at every batch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return
    mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 2**30)
