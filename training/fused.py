"""Training on a CPU with batch normalisation, ReLU and 2×2 max-pooling fused into one pass over memory.

Torch runs them one after the other, each over all activations. Here `torch.compile` makes one C++ loop of them, and
one of their gradient. It is written with channels last and with the gradient by hand, because what the compiler derives
from the layers themselves does not keep to one memory layout.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def can_fuse() -> bool:
    """True where torch can compile for the CPU: on Linux with a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return sys.platform == "linux" and headers.exists() and any(map(shutil.which, compilers))


@cache
def compiles() -> bool:
    """Does it work here? Tried on a small example, once: a compiler without OpenMP, say, fails only then."""
    if not can_fuse():
        return False
    example = fuse(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)))
    try:
        example(torch.ones(2, 2, 4, 4, requires_grad=True)).sum().backward()
    except Exception:  # what torch raises depends on the step that fails
        return False
    return True


def fuse(model: nn.Module) -> nn.Module:
    """The same network for training, its weights shared; what follows each other as named above becomes one `Fused`.

    What does not fit the pattern stays as it is, and so does a network whose forward pass cannot be traced. Raises
    ValueError where torch cannot compile (`can_fuse`).
    """
    if not can_fuse():
        raise ValueError("to compile for a CPU, torch wants Linux, a C++ compiler and Python's headers (python3-dev)")
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # whatever a forward pass does with a tensor that has no values
        return model
    for node in list(traced.graph.nodes):
        norm, relu = _layer(traced, node), _only_user(node)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(_layer(traced, relu), nn.ReLU):
            continue
        pool = _only_user(relu)
        pools = _halves(_layer(traced, pool))
        last = pool if pools else relu
        name = f"fused_{node.name}"
        traced.add_submodule(name, Fused(norm, pools))
        with traced.graph.inserting_after(last):
            last.replace_all_uses_with(traced.graph.call_module(name, node.args))
        for each in [pool, relu, node] if pools else [relu, node]:
            traced.graph.erase_node(each)
    traced.recompile()
    return traced


def _layer(traced: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    return traced.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def _only_user(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _halves(layer: nn.Module | None) -> bool:
    """Is it a max-pooling of 2×2 blocks?"""
    if not isinstance(layer, nn.MaxPool2d) or layer.ceil_mode or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return sizes in {(2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))}


class Fused(nn.Module):
    """A BatchNorm2d, a ReLU and, where `pools`, a 2×2 max-pooling: (N, C, H, W) → (N, C, H, W) or half the sides.

    Compiled for the size of the first batch in training; batches of another size, such as an epoch's last, run layer
    by layer, and so does evaluation.
    """

    def __init__(self, norm: nn.BatchNorm2d, pools: bool):
        super().__init__()
        self.norm, self.pools = norm, pools
        self.size: torch.Size | None = None

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None:
            self.size = self.size or images.shape
            if images.shape == self.size and not (self.pools and (images.shape[2] | images.shape[3]) % 2):
                outputs, mean, variance = _Fused.apply(images, norm.weight, norm.bias, norm.eps, self.pools)
                count = images.numel() // images.shape[1]
                with torch.no_grad():
                    norm.num_batches_tracked += 1
                    norm.running_mean.lerp_(mean, norm.momentum)
                    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
                return outputs
        outputs = F.relu(norm(images))
        return F.max_pool2d(outputs, 2) if self.pools else outputs


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor, eps: float, pools: bool):
        inputs = images.permute(0, 2, 3, 1).contiguous()
        outputs, mean, variance, *rest = _compiled(_forward)(inputs, weight, bias, eps, pools)
        ctx.save_for_backward(inputs, outputs, mean, *rest)
        ctx.mark_non_differentiable(mean, variance)
        return outputs.permute(0, 3, 1, 2), mean, variance

    @staticmethod
    def backward(ctx, gradient: Tensor, *_):
        gradient = gradient.permute(0, 2, 3, 1).contiguous()
        inputs, outputs, mean, scale, gain, shift = ctx.saved_tensors
        greatest = None
        if outputs.shape != inputs.shape:
            greatest, gradient = _compiled(_share)(gradient, inputs, outputs, gain, shift)
        of_inputs, of_weight, of_bias = _compiled(_backward)(
            gradient, greatest, inputs, outputs, mean, scale, gain, shift
        )
        return of_inputs.permute(0, 3, 1, 2), of_weight, of_bias, None, None


@cache
def _compiled(function):
    torch._dynamo.config.cache_size_limit = 256  # a network has more layers than the eight shapes that are the default
    return torch.compile(function, dynamic=False)


def _forward(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, pools: bool):
    """(N, H, W, C) → outputs and, a number a channel, mean, variance, 1 / deviation, gain and shift.

    Ioffe and Szegedy, "Batch normalization", 2015: arxiv.org/abs/1502.03167.
    """
    exact = inputs.float()
    about = exact[0, 0, 0]  # near the mean, or the difference of two large numbers would be left for the variance
    count = inputs.numel() // inputs.shape[3]
    off = _total(exact - about) / count
    mean = off + about
    variance = _total((exact - about).square()) / count - off * off
    scale = torch.rsqrt(variance + eps)
    gain = weight * scale
    shift = bias - mean * gain
    outputs = F.relu(exact * gain + shift).to(inputs.dtype)
    return (_blocks(outputs).amax((2, 4)) if pools else outputs), mean, variance, scale, gain, shift


def _share(gradient: Tensor, inputs: Tensor, outputs: Tensor, gain: Tensor, shift: Tensor):
    """Of each 2×2 block the maximum before ReLU, and the gradient that each pixel that equals it receives.

    A background is made of equal pixels. Torch gives all of a block's gradient to the first of them; here they share.
    """
    before = _blocks(inputs.float() * gain + shift)
    corners = [before[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]
    greatest = torch.maximum(torch.maximum(*corners[:2]), torch.maximum(*corners[2:]))
    equals = sum((corner == greatest).float() for corner in corners)
    return greatest, torch.where(outputs > 0, gradient.float(), 0.0) / equals


def _backward(
    gradient: Tensor,
    greatest: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    mean: Tensor,
    scale: Tensor,
    gain: Tensor,
    shift: Tensor,
):
    """Gradients of inputs, weight and bias; for blocks, from what `_share` gives."""
    exact = inputs.float()
    if greatest is None:
        gradient = torch.where(outputs > 0, gradient.float(), 0.0)
    else:  # computed again and not stored, as compiled code need not round it to bfloat16 both times
        passes = _blocks(exact * gain + shift) == greatest[:, :, None, :, None]
        gradient = torch.where(passes, gradient[:, :, None, :, None], 0.0).view(inputs.shape)
    standard = (exact - mean) * scale
    of_bias = _total(gradient)
    of_weight = _total(gradient * standard)
    count = inputs.numel() // inputs.shape[3]
    of_inputs = gain * (gradient - (of_bias + standard * of_weight) / count)
    return of_inputs.to(inputs.dtype), of_weight, of_bias


def _total(values: Tensor) -> Tensor:
    """The sum over all pixels, a number a channel; image by image first, for the sake of the last digits."""
    return values.sum((1, 2)).sum(0)


def _blocks(images: Tensor) -> Tensor:
    """(N, H, W, C) → (N, H/2, 2, W/2, 2, C), a view."""
    count, height, width, channels = images.shape
    return images.view(count, height // 2, 2, width // 2, 2, channels)
