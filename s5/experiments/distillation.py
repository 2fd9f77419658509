"""Distillation: a small network learns from the logits of larger ones as well as from the labels.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015: arxiv.org/abs/1503.02531. Teachers are
trained on the same training images as the student and never see the images that it is evaluated on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from helpers import Loss, build, cross_entropy, fit
from s5.experiments.claims import KNOWN
from s5.training.checkpoint import data_digest, load_weights, save_weights
from s5.training.device import pick_device, to_device
from s5.training.files import TEACHERS
from s5.training.mnist import MnistData
from s5.training.recipe import SMOKE, Recipe

FIRST_TEACHER_SEED = 200  # and up; students have lower ones


class Ensemble(nn.Module):
    """Trained networks as one module that returns the mean of their logits, float (N, 10).

    Always in evaluation mode, without gradients of its parameters.
    """

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([model(images).float() for model in self.models]).mean(0)


def distillation_loss(teacher: nn.Module, recipe: Recipe) -> Loss:
    """A loss for `fit`: the recipe's cross-entropy, mixed with the divergence from the teacher's predictions.

    The teacher gets the same augmented images as the student. `recipe.teacher_weight` is the weight of the divergence,
    1 minus that the weight of the cross-entropy.
    """
    label_loss = cross_entropy(recipe)

    def loss(inputs: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        divergence = soft_divergence(logits, teacher(inputs).float(), recipe.temperature)
        return torch.lerp(label_loss(inputs, logits, labels), divergence, recipe.teacher_weight)

    return loss


def soft_divergence(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence of the student's softened predictions from the teacher's; logits are (N, 10).

    Softened: the logits are divided by `temperature`. The factor temperature² keeps the gradients' scale (section 2).
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def load_teacher(recipe: Recipe, data: MnistData, device: str = "auto", folder: Path = TEACHERS) -> Ensemble:
    """The ensemble of `recipe.teachers` networks of the variant `recipe.teacher`, trained on `data`.

    Each is trained once and stored in `folder`. Raises KeyError for an unknown variant, and KeyboardInterrupt, with
    nothing stored, if Ctrl-C stops the training of one.
    """
    seeds = range(FIRST_TEACHER_SEED, FIRST_TEACHER_SEED + recipe.teachers)
    return Ensemble([_trained(recipe.teacher, seed, data, device, folder) for seed in seeds])


def _trained(variant: str, seed: int, data: MnistData, device: str, folder: Path) -> nn.Module:
    """One teacher: loaded from `folder`, trained first if it is not there."""
    known, recipe = KNOWN[variant], KNOWN[variant].recipe
    if SMOKE or data.source == "sample":
        recipe = recipe.for_smoke()
    content = json.dumps([variant, known.network_name, recipe.as_dict(), seed, data_digest(data)], sort_keys=True)
    path = folder / f"{variant}-{data.split}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    device = pick_device(device)
    with FileLock(path.with_suffix(".lock")):  # several trials may need the same teacher at once
        if not path.exists():
            model = build(known.build, seed)
            history = fit(model, data, recipe, seed=seed, device=device, eval_every=recipe.epochs, progress=False)
            if len(history) < recipe.epochs:  # a stored teacher is never trained again, so it must be complete
                raise KeyboardInterrupt
            save_weights(model, path)
    return to_device(load_weights(build(known.build, seed), path), device)
