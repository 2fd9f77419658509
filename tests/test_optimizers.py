"""Muon against linear algebra and against torch's own SGD."""

import pytest
import torch
from torch import nn

import helpers
from training.optimizers import Muon, make_optimizer, orthogonal
from training.recipe import Recipe


@pytest.mark.parametrize("shape", [(4, 9), (40, 288), (9, 4), (8, 8)])
def test_orthogonal_levels_all_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    level = orthogonal(matrix)
    assert level.shape == shape
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    ours = left.T @ level @ right.T  # same directions, other lengths
    assert torch.allclose(ours, ours.diagonal().diag(), atol=1e-3)
    assert (ours.diagonal()[singular > 0.1 * singular.max()] - 1).abs().max() < 0.35
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_a_stack_is_levelled_one_by_one():
    stack = torch.randn(3, 6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    together = orthogonal(stack.flatten(-3))
    assert torch.allclose(together, torch.stack([orthogonal(each.flatten(-3)) for each in stack]), atol=1e-5)


def test_convolutions_keep_their_norm_and_move_by_the_rate():
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(6, 3))
    before = model[0].weight.detach().clone()
    optimizer = Muon(model.parameters(), lr=0.1, sgd_lr=0.1, momentum=0.9)
    model(torch.randn(4, 2, 3, 3)).square().sum().backward()
    optimizer.step()
    after = model[0].weight.detach()
    assert after.norm() == pytest.approx(before.norm().item(), rel=1e-5)
    assert (after - before).norm() == pytest.approx(0.1 * before.norm().item(), rel=0.1)


def test_a_dead_layer_stays_a_number():
    model = nn.Conv2d(2, 6, 3)
    for weight in (torch.ones(6, 2, 3, 3), torch.zeros(6, 2, 3, 3)):
        model.weight.data = weight
        model.weight.grad = torch.zeros_like(weight)
        Muon(model.parameters(), lr=0.1, sgd_lr=0.1, momentum=0.9).step()
        assert torch.equal(model.weight.detach(), weight)


def test_everything_else_is_torchs_sgd():
    def steps(model, optimizer):
        for index in range(3):
            optimizer.zero_grad()
            model(torch.full((4, 5), index + 1.0)).square().sum().backward()
            optimizer.step()
        return model.state_dict()

    ours, theirs = (helpers.build(lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), 0) for _ in range(2))
    settings = {"momentum": 0.9, "weight_decay": 0.01}
    ours = steps(ours, Muon(ours.parameters(), lr=1.0, sgd_lr=0.01, **settings))
    theirs = steps(theirs, torch.optim.SGD(theirs.parameters(), lr=0.01, nesterov=True, **settings))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name


def test_a_recipe_can_ask_for_it():
    optimizer = make_optimizer(helpers.Net().parameters(), Recipe(learning_rate=0.1, sgd_learning_rate=0.02))
    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [(5, 0.1), (12, 0.02)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(helpers.Net().parameters()))
