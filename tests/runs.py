"""Short training runs, and how two of them are compared."""

import torch
from torch import nn

import helpers
from helpers import Net, Recipe

SHORT = Recipe(epochs=2, batch_size=100)
ACCELERATORS = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = ["cpu", *(name for name, there in ACCELERATORS.items() if there)]


def fit(data, recipe=SHORT, seed=0, architecture=Net, device="cpu", **options):
    model = helpers.build(architecture, seed)
    history = helpers.fit(model, data, recipe, seed, device, progress=False, **options)
    return model, history


def assert_same_weights(one: nn.Module, other: nn.Module):
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def without_seconds(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]
