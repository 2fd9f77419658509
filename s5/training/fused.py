"""Training on a CPU with BatchNorm, ReLU and max-pooling as one function of `kernels.cpp`.

Torch runs these layers one after the other, each over all activations.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.training.checks import has_hooks, has_only_project_layers
from s5.training.kernels import DTYPES, NormRelu, load_kernels

POOLING = nn.MaxPool2d(2)


def fused_forwards(model: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """For each `nn.Sequential` of the model that contains BatchNorm2d → ReLU (→ MaxPool2d(2)) a fused forward pass.

    It uses the model's own layers and weights. A user's code gets its results in the usual memory layout, on which it
    may rely; a Sequential that contains a user's layers stays as it is. Raises CompileError if the kernels cannot be
    compiled here.
    """
    load_kernels()
    forwards, is_known = {}, has_only_project_layers(model)
    for module in model.modules():
        if type(module) is nn.Sequential and has_only_project_layers(module):
            layers = _fused_layers(list(module))
            if len(layers) < len(module):
                forwards[module] = (nn.Sequential if is_known else ContiguousSequential)(*layers).forward
    return forwards


class ContiguousSequential(nn.Sequential):
    """Layers whose results are in the usual memory layout."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).contiguous()


def _fused_layers(layers: list[nn.Module]) -> list[nn.Module]:
    fused: list[nn.Module] = []
    while layers:
        norm, relu, pool = [*layers, None, None][:3]
        if _is_usual(norm) and type(relu) is nn.ReLU and not has_hooks(norm, relu):
            pools = _is_2x2_max_pooling(pool) and not has_hooks(pool)
            fused.append(FusedNorm(norm, pools))
            layers = layers[3 if pools else 2 :]
        else:
            fused.append(norm)
            layers = layers[1:]
    return fused


def _is_usual(norm: nn.Module) -> bool:
    """True for a BatchNorm2d that has what the kernel reads."""
    if type(norm) is not nn.BatchNorm2d or not norm.affine or not norm.track_running_stats:
        return False
    return norm.momentum is not None and norm.weight.dtype == torch.float32


def _is_2x2_max_pooling(layer: nn.Module | None) -> bool:
    settings = nn.MaxPool2d.__constants__
    return type(layer) is nn.MaxPool2d and all(getattr(layer, name) == getattr(POOLING, name) for name in settings)


class FusedNorm(nn.Module):
    """BatchNorm2d, ReLU and, if `pools`, 2×2 max-pooling: (N, C, H, W) → (N, C, H, W) or (N, C, H/2, W/2).

    Evaluation, odd sides with pooling, and values that the kernel does not take run layer by layer.
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
        if images.dim() != 4 or images.shape[1] != self.norm.num_features or images.dtype not in DTYPES:
            return False
        odd = self.pools and (images.shape[2] | images.shape[3]) % 2
        return not odd and images.numel() > images.shape[1]
