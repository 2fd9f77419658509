"""A network for training on a CPU, in which BatchNorm, ReLU and max-pooling are one function of `kernels.cpp`.

Torch runs these layers one after the other, each over all activations.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.kernels import DTYPES, NormRelu, load_kernels


def fuse(model: nn.Module) -> nn.Module:
    """The same network for training, sharing its weights.

    Inside every `nn.Sequential`, BatchNorm2d → ReLU (→ MaxPool2d(2)) becomes a `FusedNorm`; everything else runs as it
    is written. Raises CompileError if the kernels cannot be compiled here.
    """
    load_kernels()
    return _fused(model)


def _fused(module: nn.Module) -> nn.Module:
    """A shallow copy with fused layers, or the module itself if there is nothing to fuse."""
    if type(module) is nn.Sequential:
        layers = _fused_layers(list(module))
        changed = len(layers) < len(module) or any(map(_differ, layers, module))
        return nn.Sequential(*layers) if changed and not _has_hooks(module) else module
    children = {name: child and _fused(child) for name, child in module._modules.items()}
    if not any(map(_differ, children.values(), module._modules.values())):
        return module
    fused = copy.copy(module)
    fused._modules = children
    fused.training = True  # what `model.train()` would set, if it reached the copy
    return fused


def _fused_layers(layers: list[nn.Module]) -> list[nn.Module]:
    if not layers:
        return []
    norm, relu, pool = [*layers, None, None][:3]
    if type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU and not _has_hooks(norm, relu):
        pools = _is_2x2_max_pooling(pool) and not _has_hooks(pool)
        return [FusedNorm(norm, pools), *_fused_layers(layers[3 if pools else 2 :])]
    return [_fused(norm), *_fused_layers(layers[1:])]


def _differ(first: nn.Module | None, second: nn.Module | None) -> bool:
    return first is not second


def _has_hooks(*modules: nn.Module) -> bool:
    """True if someone listens to a module's calls, which a fused layer would not make."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in modules for name in names)


def _is_2x2_max_pooling(layer: nn.Module | None) -> bool:
    if type(layer) is not nn.MaxPool2d or layer.ceil_mode or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return sizes in {(2, 2, 0, 1), ((2, 2), (2, 2), (0, 0), (1, 1))}


class FusedNorm(nn.Module):
    """BatchNorm2d, ReLU and, if `pools`, 2×2 max-pooling: (N, C, H, W) → (N, C, H, W) or (N, C, H/2, W/2).

    Evaluation, odd sides with pooling, and unusual settings of the BatchNorm run layer by layer.
    """

    def __init__(self, norm: nn.BatchNorm2d, pools: bool):
        super().__init__()
        self.norm, self.pools = norm, pools

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        usual = norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
        odd = self.pools and (images.shape[2] | images.shape[3]) % 2
        usual = usual and norm.weight.dtype == torch.float32 and images.dtype in DTYPES
        if usual and not odd and images.numel() > images.shape[1]:
            norm.num_batches_tracked.add_(1)
            return NormRelu.apply(images, norm.weight, norm.bias, norm, self.pools)
        outputs = F.relu(norm(images))
        return F.max_pool2d(outputs, 2) if self.pools else outputs
