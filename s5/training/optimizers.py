"""Optimizers, learning-rate schedules, moving average."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from s5.training.recipe import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # five steps bring singular values to between 0.7 and 1.2 (Jordan et al.)
EPSILON = 1e-7  # against a division by zero, where a layer's weights or gradients are all zero


def make_optimizer(parameters: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over all of a model's parameters."""
    parameters = list(parameters)
    settings = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":
        return Muon(parameters, sgd_lr=recipe.sgd_learning_rate, momentum=recipe.momentum, **settings)
    if recipe.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, **settings)
    settings["fused"] = parameters[0].is_cuda or None  # a CUDA graph can then hold the step; None: torch chooses
    if recipe.optimizer == "sgd":
        settings |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov and recipe.momentum > 0}
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[recipe.optimizer](parameters, **settings)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, images: int) -> LambdaLR:
    """The recipe's schedule for `images` training images; `recipe.schedule_every` says when to step it."""
    steps_per_epoch = recipe.steps_per_epoch(images)
    return LambdaLR(optimizer, lambda step: recipe.learning_rate_factor(step, steps_per_epoch))


class MovingAverage(AveragedModel):
    """An exponential moving average of a model's weights and BatchNorm statistics, to be updated after every batch.

    The decay grows up to `decay`. A constant one would keep half-random weights in the average for the first epochs.
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's tensors; the first time it takes their values."""
        count = int(self.n_averaged)  # on the CPU, as torch's own update is not: it makes a GPU wait for a copy of it
        weight = 1 - min(self.decay, (1 + count) / (10 + count)) if count else 1.0
        tensors = ([*each.parameters(), *each.buffers()] for each in (self.module, model))
        pairs = list(zip(*tensors, strict=True))
        torch._foreach_lerp_(*zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True), weight)
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_(*zip(*counts, strict=True))  # an average of whole numbers makes no sense
        self.n_averaged += 1


class Muon(torch.optim.Optimizer):
    """Muon for convolutions, SGD with Nesterov momentum for everything else: BatchNorm, biases, linear layers.

    The gradient of a convolution (outputs, inputs, height, width), with momentum, is flattened to a matrix
    (outputs, inputs × height × width) and replaced by the nearest matrix with orthonormal rows or columns, so that no
    direction dominates. Weights keep their initial norm: after a convolution that BatchNorm follows, the output does
    not depend on it, so it would only change the effective rate. A convolution that starts at zero is trained by SGD.

    `lr` is the rate of convolutions as a fraction of their norm; `sgd_lr` and `weight_decay` belong to SGD.

    Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024:
    kellerjordan.github.io/posts/muon
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, sgd_lr: float, momentum: float, weight_decay: float = 0.0
    ):
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter in parameters:
            parts[parameter.dim() == 4 and bool(parameter.any())].append(parameter)
        others, convolutions = parts
        groups = [
            {"params": convolutions, "lr": lr, "orthogonal": True, "weight_decay": 0.0},
            {"params": others, "lr": sgd_lr, "orthogonal": False, "weight_decay": weight_decay},
        ]
        super().__init__([group for group in groups if group["params"]], {"momentum": momentum})
        for parameter in convolutions + others:
            self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = torch._foreach_add([p.grad for p in parameters], parameters, alpha=group["weight_decay"])
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients)
            updates = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
            if group["orthogonal"]:
                _update_convolutions(parameters, updates, group["lr"])
            elif isinstance(group["lr"], Tensor):  # in a CUDA graph, where a number could not change
                torch._foreach_sub_(parameters, torch._foreach_mul(updates, group["lr"]))
            else:
                torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _update_convolutions(convolutions: list[Tensor], updates: list[Tensor], rate: float) -> None:
    """Move each convolution's weights by `rate` of their norm along minus its orthogonalised update; keep the norm.

    All layers at once, their matrices padded with zeros to one size: that is faster than one after the other.
    """
    (weights, views), (matrices, _) = _as_matrices(convolutions), _as_matrices(updates)
    directions = orthogonal(matrices)
    norms = _norms(weights)
    weights -= directions * (rate * norms / _norms(directions).clamp_min(EPSILON))
    weights *= norms / _norms(weights).clamp_min(EPSILON)
    torch._foreach_copy_(convolutions, views)


def _as_matrices(filters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Filters (outputs, inputs, height, width) as matrices (layers, rows, columns), padded with zeros.

    No matrix has more rows than columns. Also returns the views of the matrices that have the filters' shapes.
    """
    sizes = [(len(each), each[0].numel()) for each in filters]
    rows, columns = max(map(min, sizes)), max(map(max, sizes))
    matrices = filters[0].new_zeros(len(filters), rows, columns)
    views = []
    for matrix, each, (height, width) in zip(matrices, filters, sizes, strict=True):
        view = matrix[:height, :width] if height <= width else matrix[:width, :height].mT
        views.append(view.unflatten(1, each.shape[1:]))
    torch._foreach_copy_(views, filters)
    return matrices, views


def _norms(matrices: Tensor) -> Tensor:
    """The Frobenius norm of each matrix (layers, rows, columns), as (layers, 1, 1)."""
    return torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows, approximated by Newton-Schulz iteration.

    Takes and returns float matrices (layers, rows, columns), with no more rows than columns. All singular values become
    about 1; zero stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    matrices = matrices / _norms(matrices).clamp_min(EPSILON)
    for _ in range(5):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=a)
    return matrices
