"""The functions of `kernels.cpp`: compiled for this processor at first use, which takes two seconds, then kept on disk.

Plain C functions, called by ctypes: compiling PyTorch's own headers would take much longer.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from s5.training.files import RUNS, atomic_path

SOURCE = Path(__file__).with_suffix(".cpp")
KERNELS = RUNS / "kernels"  # the compiled files, one per machine and version
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
DTYPES = (torch.float32, torch.bfloat16)


class CompileError(RuntimeError):
    """The kernels cannot be compiled here; the message says why."""


class Shape(ctypes.Structure):
    """The shape of a batch of images, channels last; as in `kernels.cpp`."""

    _fields_ = [(name, ctypes.c_long) for name in ("images", "height", "width", "channels")]


@cache
def can_compile() -> bool:
    """True if the kernels can be compiled and loaded here."""
    try:
        load_kernels()
    except CompileError:
        return False
    return True


@cache
def load_kernels() -> ctypes.CDLL:
    """The compiled functions; `$CXX` may name a compiler and options. Raises CompileError if they cannot be made."""
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    command = [*shlex.split(os.environ.get("CXX") or "c++"), *FLAGS, native]
    machine = [*platform.uname(), torch.backends.cpu.get_cpu_capability()]
    identity = "\n".join([SOURCE.read_text(encoding="utf-8"), *command, *machine])
    path = KERNELS / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        KERNELS.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # several processes may need them at once
            if not path.exists():
                with atomic_path(path) as temporary:
                    subprocess.run([*command, SOURCE, "-o", temporary], check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        raise CompileError(f"{command[0]} cannot compile {SOURCE.name}: {error.stderr.strip()}") from error
    except OSError as error:
        raise CompileError(f"{SOURCE.name} cannot be compiled by {command[0]} and loaded: {error}") from error


def _call(name: str, images: Tensor, *arguments: Tensor | float | bool) -> None:
    """Call a function of `kernels.cpp` for images (N, C, H, W): their shape, the arguments, the number of threads."""
    count, channels, height, width = images.shape
    address = ctypes.c_void_p.in_dll(load_kernels(), f"{name}_{str(images.dtype).removeprefix('torch.')}")
    function = ctypes.CFUNCTYPE(None)(address.value)
    function(Shape(count, height, width, channels), *map(_as_c, [images, *arguments, torch.get_num_threads()]))


def _as_c(argument: Tensor | float | bool | int) -> object:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)


class NormRelu(torch.autograd.Function):
    """BatchNorm in training mode, ReLU and, if `pools`, 2×2 max-pooling.

    `NormRelu.apply(images, weight, bias, norm, pools)`: float32 or bfloat16 (N, C, H, W) → the same type, (N, C, H, W)
    or (N, C, H/2, W/2). Updates the running statistics of `norm`.
    Ioffe and Szegedy, "Batch normalization", 2015: arxiv.org/abs/1502.03167.
    """

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pools: bool) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = images.shape
        size = (count, channels, height // 2, width // 2) if pools else images.shape
        outputs = torch.empty(size, dtype=images.dtype, memory_format=torch.channels_last)
        saved = weight.new_empty(4, channels)
        settings = pools, float(norm.eps), float(norm.momentum)
        _call("norm_forward", images, outputs, weight, bias, norm.running_mean, norm.running_var, saved, *settings)
        ctx.save_for_backward(images, saved)
        ctx.pools = pools
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        images, saved = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        input_gradient = torch.empty_like(images)
        weight_gradient, bias_gradient = saved.new_empty(2, saved.shape[1])
        gradients = input_gradient, weight_gradient, bias_gradient
        _call("norm_backward", images, gradient, saved, *gradients, ctx.pools)
        return *gradients, None, None
