"""Muon, an optimiser for convolutions: every step turns a filter bank as far as the gradient says, in all directions.

Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: kellerjordan.github.io/posts/muon
"""

from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the article: five steps bring singular values to between 0.7 and 1.2
TINY = 1e-7  # instead of a division by zero, where a layer is dead


class Muon(torch.optim.Optimizer):
    """Muon for convolutions, SGD with Nesterov momentum for everything else: BatchNorm, biases, linear layers.

    A convolution is what has four dimensions: outputs, inputs, height, width; dimensions before these stack the
    convolutions of several networks (`many.py`). Its gradient, with its momentum, is flattened to a matrix (outputs,
    inputs × height × width; the groups of a grouped one together) and replaced by the nearest matrix whose rows (or
    columns) are orthonormal, so that no direction of it dominates. The weights keep their initial norm: BatchNorm makes
    the output independent of it, so it would only change the rate.

    `lr` is the rate of the convolutions, in fractions of their norm a step; `rest_lr` and `weight_decay` are SGD's.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, rest_lr: float, momentum: float, weight_decay: float = 0.0
    ):
        parameters = list(parameters)
        groups = [
            {"params": [p for p in parameters if p.dim() >= 4], "lr": lr, "orthogonal": True, "weight_decay": 0.0},
            {
                "params": [p for p in parameters if p.dim() < 4],
                "lr": rest_lr,
                "orthogonal": False,
                "weight_decay": weight_decay,
            },
        ]
        super().__init__([group for group in groups if group["params"]], {"momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step by the gradients that stand in the parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
                state["momentum"].mul_(group["momentum"]).add_(gradient)
                update = gradient.add(state["momentum"], alpha=group["momentum"])
                if group["orthogonal"]:
                    norm = norm_of(parameter)
                    update = orthogonal(update.flatten(-3)).view_as(update)
                    parameter.sub_(update * (group["lr"] * norm / norm_of(update).clamp_min(TINY)))
                    parameter.mul_(norm / norm_of(parameter).clamp_min(TINY))
                else:
                    parameter.sub_(update, alpha=group["lr"])


def norm_of(filters: Tensor) -> Tensor:
    """The norm of each convolution's weights (..., outputs, inputs, height, width), with their dimensions kept as 1."""
    return filters.square().sum((-4, -3, -2, -1), keepdim=True).sqrt()


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """About the nearest matrix with orthonormal rows (columns, where there are more rows), by Newton-Schulz iteration.

    Takes and returns a float matrix, or a stack of them (..., rows, columns); all singular values become about 1, and
    the zero matrix stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.mT if tall else matrix
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(TINY)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if tall else wide
