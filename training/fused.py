"""Batch normalisation, ReLU and 2×2 max-pooling as one pass over memory, for training on a CPU.

Torch runs the three layers one after the other, each over all activations. Here `torch.compile` turns them into one C++
loop, and their gradient into another. The gradient is written by hand and everything is channels last, because code
that the compiler derives from the layers themselves mixes memory layouts.
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
    """True if torch can compile for the CPU: on Linux with a C++ compiler and Python's headers."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return sys.platform == "linux" and headers.exists() and any(map(shutil.which, compilers))


@cache
def compiles() -> bool:
    """True if compiling works. Tries a small example, once: a compiler without OpenMP, say, fails only then."""
    if not can_fuse():
        return False
    example = fuse(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)))
    try:
        example(torch.ones(2, 2, 4, 4, requires_grad=True)).sum().backward()
    except Exception:  # what torch raises depends on the step that fails
        return False
    return True


def fuse(model: nn.Module) -> nn.Module:
    """The same network for training, sharing its weights, with every BatchNorm2d → ReLU (→ MaxPool2d(2)) as a `Fused`.

    Other layers stay as they are, and so does a network whose forward pass cannot be traced. Raises ValueError if
    torch cannot compile here (`can_fuse`).
    """
    if not can_fuse():
        raise ValueError("compiling for a CPU requires Linux, a C++ compiler and Python's headers (python3-dev)")
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # any kind: the forward pass runs on a stand-in without values
        return model
    for node in list(traced.graph.nodes):
        norm, relu = _layer(traced, node), _only_user(node)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(_layer(traced, relu), nn.ReLU):
            continue
        pool = _only_user(relu)
        pools = _is_2x2_max_pooling(_layer(traced, pool))
        last = pool if pools else relu
        name = f"fused_{node.name}"
        traced.add_submodule(name, Fused(norm, pools))
        with traced.graph.inserting_after(last):
            last.replace_all_uses_with(traced.graph.call_module(name, node.args))
        for replaced in [pool, relu, node] if pools else [relu, node]:
            traced.graph.erase_node(replaced)
    traced.recompile()
    return traced


def _layer(traced: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """The layer that the node calls; None if it calls something else."""
    return traced.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def _only_user(node: fx.Node | None) -> fx.Node | None:
    """The node that uses this node's output; None if there are several."""
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _is_2x2_max_pooling(layer: nn.Module | None) -> bool:
    if not isinstance(layer, nn.MaxPool2d) or layer.ceil_mode or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return sizes in {(2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))}


class Fused(nn.Module):
    """BatchNorm2d, ReLU and, if `pools`, 2×2 max-pooling: (N, C, H, W) → (N, C, H, W) or (N, C, H/2, W/2).

    Compiled for the shape of the first training batch. Batches of another shape, such as an epoch's last, and
    evaluation run layer by layer.
    """

    def __init__(self, norm: nn.BatchNorm2d, pools: bool):
        super().__init__()
        self.norm, self.pools = norm, pools
        self.shape: torch.Size | None = None

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None:
            self.shape = self.shape or images.shape
            if images.shape == self.shape and not (self.pools and (images.shape[2] | images.shape[3]) % 2):
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
        block_max = None
        if outputs.shape != inputs.shape:
            block_max, gradient = _compiled(_max_pool_backward)(gradient, inputs, outputs, gain, shift)
        input_gradient, weight_gradient, bias_gradient = _compiled(_norm_backward)(
            gradient, block_max, inputs, outputs, mean, scale, gain, shift
        )
        return input_gradient.permute(0, 3, 1, 2), weight_gradient, bias_gradient, None, None


@cache
def _compiled(function):
    torch._dynamo.config.cache_size_limit = 256  # the default, 8 shapes, is fewer than a network has layers
    return torch.compile(function, dynamic=False)


def _forward(inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, pools: bool):
    """(N, H, W, C) → outputs, and per channel, float (C,): mean, variance, 1 / standard deviation, gain and shift.

    The normalised inputs are `inputs * gain + shift`.
    Ioffe and Szegedy, "Batch normalization", 2015: arxiv.org/abs/1502.03167.
    """
    values = inputs.float()
    offset = values[0, 0, 0]  # near the mean: E[x²] − E[x]² of values far from zero would lose most digits
    count = inputs.numel() // inputs.shape[3]
    shifted_mean = _channel_sum(values - offset) / count
    mean = shifted_mean + offset
    variance = _channel_sum((values - offset).square()) / count - shifted_mean * shifted_mean
    scale = torch.rsqrt(variance + eps)
    gain = weight * scale
    shift = bias - mean * gain
    outputs = F.relu(values * gain + shift).to(inputs.dtype)
    return (_blocks(outputs).amax((2, 4)) if pools else outputs), mean, variance, scale, gain, shift


def _max_pool_backward(gradient: Tensor, inputs: Tensor, outputs: Tensor, gain: Tensor, shift: Tensor):
    """The maximum of each 2×2 block before ReLU, and the gradient of each pixel that equals it; both (N, H/2, W/2, C).

    Pixels of the background are equal. Torch gives a block's gradient to the first maximum; here all of them share it.
    """
    blocks = _blocks(inputs.float() * gain + shift)
    corners = [blocks[:, :, row, :, column] for row in (0, 1) for column in (0, 1)]
    block_max = torch.maximum(torch.maximum(*corners[:2]), torch.maximum(*corners[2:]))
    maxima = sum((corner == block_max).float() for corner in corners)
    return block_max, torch.where(outputs > 0, gradient.float(), 0.0) / maxima


def _norm_backward(
    gradient: Tensor,
    block_max: Tensor | None,
    inputs: Tensor,
    outputs: Tensor,
    mean: Tensor,
    scale: Tensor,
    gain: Tensor,
    shift: Tensor,
):
    """Gradients of inputs (N, H, W, C), weight and bias (C,).

    With pooling, `block_max` and `gradient` are the results of `_max_pool_backward`; without, `block_max` is None.
    """
    values = inputs.float()
    if block_max is None:
        gradient = torch.where(outputs > 0, gradient.float(), 0.0)
    else:  # computed again, not stored: compiled code may round to bfloat16 in one place and not in the other
        is_max = _blocks(values * gain + shift) == block_max[:, :, None, :, None]
        gradient = torch.where(is_max, gradient[:, :, None, :, None], 0.0).view(inputs.shape)
    normalized = (values - mean) * scale
    bias_gradient = _channel_sum(gradient)
    weight_gradient = _channel_sum(gradient * normalized)
    count = inputs.numel() // inputs.shape[3]
    input_gradient = gain * (gradient - (bias_gradient + normalized * weight_gradient) / count)
    return input_gradient.to(inputs.dtype), weight_gradient, bias_gradient


def _channel_sum(values: Tensor) -> Tensor:
    """The sum per channel, (N, H, W, C) → (C,); over each image first, which rounds less."""
    return values.sum((1, 2)).sum(0)


def _blocks(images: Tensor) -> Tensor:
    """(N, H, W, C) → (N, H/2, 2, W/2, 2, C), a view."""
    count, height, width, channels = images.shape
    return images.view(count, height // 2, 2, width // 2, 2, channels)
