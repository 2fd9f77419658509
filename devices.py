"""What a run runs on: devices by name, compiling for them, and the C library's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fused import compiles, fuse

WORTH_COMPILING = 1500  # batches, each some ten milliseconds faster
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
        return torch.device(next(name for name, there in available.items() if there))
    kind = str(device).split(":")[0]
    if kind not in available:
        raise ValueError(f"device must be auto, cpu, cuda or mps, not {device!r}")
    if not available[kind]:
        raise ValueError(f"device {device!r} was asked for, but torch finds no {kind.upper()} on this machine")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is no valid device: {error}") from error
    if kind == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return chosen


def compile_for(device: torch.device, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model compiled for training, its weights shared.

    On a CPU its parts are (`fused.py`); on CUDA the whole, recorded as graphs, so that Python's share of a batch's time
    goes. Raises ValueError where there is nothing to compile with.
    """
    if device.type == "cpu":
        return fuse(model)
    return torch.compile(model, mode="reduce-overhead" if device.type == "cuda" else "default")


def compiling_pays(device: torch.device, batches: int) -> bool:
    """Is a run of so many batches long enough that compiling for it, some ten seconds, pays? On a CPU that can be."""
    return device.type == "cpu" and batches >= WORTH_COMPILING and compiles()


def lay_out(model: nn.Module) -> None:
    """Put a model's weights into the memory layout that suits its device, in place.

    On a CPU that is channels last: oneDNN's convolutions and torch's pooling are faster so.
    """
    if next(model.parameters()).device.type == "cpu":
        with torch.inference_mode(False):  # or weights laid out while predicting could not be trained on
            model.to(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Keep freed memory for the next batch instead of giving it back to the system, where the C library is glibc.

    Activations are a few megabytes each, and would come back as new pages, zeroed one fault at a time, every batch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, Windows, musl
        return
    mallopt(M_MMAP_THRESHOLD, 8 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 2**30)
