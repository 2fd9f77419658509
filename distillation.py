"""Distillation: a small network learns from what larger ones answer, not only from the labels.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015: arxiv.org/abs/1503.02531. The teachers
learn from the same training images as the student and never see what it is scored on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

import helpers
from candidates import KNOWN
from devices import lay_out
from mnist import MnistData
from recipe import Recipe

TEACHERS = Path(__file__).parent / "runs" / "teachers"
FIRST_SEED = 200  # of the teachers: no seed of a student


class Ensemble(nn.Module):
    """Several trained networks as one: the mean of their logits, float (N, 10), in evaluation mode for good."""

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Ensemble:
        """It stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([model(images).float() for model in self.models]).mean(0)


def teacher_for(recipe: Recipe, data: MnistData, device: str = "auto", folder: Path = TEACHERS) -> Ensemble | None:
    """The teachers that the recipe names, trained on `data`; None where it names none.

    They are trained once and kept in `folder`. KeyError for a variant that does not exist.
    """
    if not recipe.teacher:
        return None
    return Ensemble([_teacher(recipe.teacher, FIRST_SEED + n, data, device, folder) for n in range(recipe.teachers)])


def _teacher(variant: str, seed: int, data: MnistData, device: str, folder: Path) -> nn.Module:
    build, recipe = KNOWN[variant].build, KNOWN[variant].recipe
    if helpers.SMOKE or data.source == "sample":
        recipe = recipe.for_smoke()
    about = json.dumps([variant, recipe.as_dict(), seed, str(data)], sort_keys=True)
    path = folder / f"{variant}-{data.split}-{seed}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    device = helpers.pick_device(device)
    with FileLock(path.with_suffix(".lock")):  # several trials may want it at once
        if not path.exists():
            model = helpers.build(build, seed)
            helpers.fit(model, data, recipe, seed, device, progress=False, test_every=recipe.epochs)
            helpers.save_weights(model, path)
    model = helpers.load_weights(helpers.build(build, seed), path).to(device)
    lay_out(model)
    return model
