"""Training on a CPU with BatchNorm, ReLU and max-pooling as one function of `kernels.cpp`.

Torch runs these layers one after the other, each over all activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from s5.training.checks import has_hooks
from s5.training.kernels import DTYPES, NormRelu, load_kernels


def fused_forwards(model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """For each `nn.Sequential` of the model that contains BatchNorm2d → ReLU (→ MaxPool2d(2)) a fused forward pass.

    It uses the model's own layers and weights. Raises CompileError if the kernels cannot be compiled here.
    """
    load_kernels()
    forwards = {}
    for module in model.modules():
        if type(module) is nn.Sequential and "forward" not in vars(module):
            layers = _fused_layers(list(module))
            if len(layers) < len(module):
                forwards[module] = nn.Sequential(*layers).forward
    return forwards


def _fused_layers(layers: list[nn.Module]) -> list[nn.Module]:
    fused: list[nn.Module] = []
    while layers:
        norm, relu, pool = [*layers, None, None][:3]
        if type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU and not has_hooks(norm, relu):
            pools = _is_2x2_max_pooling(pool) and not has_hooks(pool)
            fused.append(FusedNorm(norm, pools))
            layers = layers[3 if pools else 2 :]
        else:
            fused.append(norm)
            layers = layers[1:]
    return fused


def _is_2x2_max_pooling(layer: nn.Module | None) -> bool:
    if type(layer) is not nn.MaxPool2d or layer.ceil_mode or layer.return_indices:
        return False
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return [tuple(_pair(size)) for size in sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)]


class FusedNorm(nn.Module):
    """BatchNorm2d, ReLU and, if `pools`, 2×2 max-pooling: (N, C, H, W) → (N, C, H, W) or (N, C, H/2, W/2).

    Evaluation, odd sides with pooling, and unusual settings or types of the BatchNorm run layer by layer.
    """

    def __init__(self, norm: nn.BatchNorm2d, pools: bool):
        super().__init__()
        self.norm, self.pools = norm, pools

    def forward(self, images: Tensor) -> Tensor:
        norm = self.norm
        if norm.training and self._fits(images):
            norm.num_batches_tracked.add_(1)
            return NormRelu.apply(images, norm.weight, norm.bias, norm, self.pools)
        outputs = F.relu(norm(images))
        return F.max_pool2d(outputs, 2) if self.pools else outputs

    def _fits(self, images: Tensor) -> bool:
        """True if the kernel can run: it gets addresses only, so everything behind them must be as it expects."""
        norm = self.norm
        tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if images.dim() != 4 or images.shape[1] != norm.num_features or images.dtype not in DTYPES:
            return False
        if norm.momentum is None or norm.num_batches_tracked is None or any(tensor is None for tensor in tensors):
            return False
        if not all(each.dtype == torch.float32 and each.is_contiguous() and each.is_cpu for each in tensors):
            return False
        odd = self.pools and (images.shape[2] | images.shape[3]) % 2
        return images.is_cpu and not odd and images.numel() > images.shape[1]
