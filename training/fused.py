"""A network for training on a CPU: some of its layers run as the functions of `kernels.cpp`.

Torch runs BatchNorm, ReLU and max-pooling one after the other, each over all activations.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn

from training.kernels import DTYPES, NormRelu, load_kernels


def fuse(model: nn.Module) -> nn.Module:
    """The same network for training, sharing its weights.

    Every BatchNorm2d → ReLU (→ MaxPool2d(2)) becomes a `FusedNorm`. Other layers stay as they are, and so does a
    network whose forward pass cannot be traced. Raises CompileError if the kernels cannot be compiled here.
    """
    load_kernels()
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # any kind: the forward pass runs on a stand-in without values
        return model
    for node in list(traced.graph.nodes):
        layer, relu = _layer(traced, node), _only_user(node)
        if isinstance(layer, nn.BatchNorm2d) and isinstance(_layer(traced, relu), nn.ReLU):
            pool = _only_user(relu)
            pools = _is_2x2_max_pooling(_layer(traced, pool))
            _replace(traced, [node, relu, pool] if pools else [node, relu], FusedNorm(layer, pools))
    traced.recompile()
    return traced


def _replace(traced: fx.GraphModule, nodes: list[fx.Node], layer: nn.Module) -> None:
    """Replace a chain of nodes by one layer."""
    name = f"fused_{nodes[0].name}"
    traced.add_submodule(name, layer)
    with traced.graph.inserting_after(nodes[-1]):
        nodes[-1].replace_all_uses_with(traced.graph.call_module(name, nodes[0].args))
    for node in reversed(nodes):
        traced.graph.erase_node(node)


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
        if usual and not odd and images.dtype in DTYPES and images.numel() > images.shape[1]:
            norm.num_batches_tracked.add_(1)
            return NormRelu.apply(images, norm.weight, norm.bias, norm, self.pools)
        outputs = F.relu(norm(images))
        return F.max_pool2d(outputs, 2) if self.pools else outputs
