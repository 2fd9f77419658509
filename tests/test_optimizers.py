"""Muon against linear algebra and against torch's SGD."""

import pytest
import torch
from torch import nn

import helpers
from s5.training.optimizers import Muon, orthogonal


@pytest.mark.parametrize("shape", [(4, 9), (40, 288), (8, 8)])
def test_orthogonal_sets_all_singular_values_to_about_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, result in zip(matrices, orthogonal(matrices), strict=True):
        left, singular_values, right = torch.linalg.svd(matrix, full_matrices=False)
        new_values = left.T @ result @ right.T  # diagonal if the singular vectors are the same
        assert torch.allclose(new_values, new_values.diagonal().diag(), atol=1e-3)
        assert (new_values.diagonal()[singular_values > 0.1 * singular_values.max()] - 1).abs().max() < 0.35
    assert not orthogonal(torch.zeros(1, *shape)).any()


def test_convolutions_keep_their_norm_and_change_by_the_learning_rate():
    """Of any shape: more outputs than inputs × height × width, or fewer."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 9, 1), nn.AvgPool2d(3))
    before = [layer.weight.detach().clone() for layer in model[:3]]
    optimizer = Muon(model.parameters(), lr=0.1, sgd_lr=0.1, momentum=0.9)
    model(torch.randn(4, 2, 3, 3)).square().sum().backward()
    optimizer.step()
    for layer, weight in zip(model, before, strict=False):
        after = layer.weight.detach()
        assert after.norm() == pytest.approx(weight.norm().item(), rel=1e-5)
        assert 0.05 < (after - weight).norm() / weight.norm() < 0.11


def test_other_parameters_are_updated_as_by_torchs_sgd():
    def state_after_steps(optimizer_class, **options) -> dict:
        model = helpers.build(lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), 0)
        optimizer = optimizer_class(model.parameters(), momentum=0.9, weight_decay=0.01, **options)
        for index in range(3):
            optimizer.zero_grad()
            model(torch.full((4, 5), index + 1.0)).square().sum().backward()
            optimizer.step()
        return model.state_dict()

    actual = state_after_steps(Muon, lr=1.0, sgd_lr=0.01)
    expected = state_after_steps(torch.optim.SGD, lr=0.01, nesterov=True)
    for name in expected:
        assert torch.allclose(actual[name], expected[name], atol=1e-6), name


def test_a_convolution_that_starts_at_zero_is_trained():
    model = nn.Conv2d(2, 6, 3)
    nn.init.zeros_(model.weight)
    optimizer = Muon(model.parameters(), lr=0.1, sgd_lr=0.1, momentum=0.9)
    model(torch.ones(1, 2, 3, 3)).sum().backward()
    optimizer.step()
    assert model.weight.any()
