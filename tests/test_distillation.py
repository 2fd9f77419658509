"""Distillation: the loss, the teachers, and their effect on a student."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import helpers
from s5.experiments.claims import KNOWN
from s5.experiments.distillation import Ensemble, distillation_loss, load_teacher, soft_divergence
from s5.training.augmentation import normalize
from tests.utils import SHORT, assert_same_weights, fit

DISTILLED = replace(SHORT, teacher="budget_1k", teachers=2, teacher_weight=0.7)


class Always7(nn.Module):
    """A teacher whose prediction is always 7."""

    def forward(self, images):
        return F.one_hot(torch.full((len(images),), 7), 10) * 20.0


def test_divergence_is_that_of_the_softened_predictions():
    logits, teacher_logits = torch.randn(2, 5, 10, dtype=torch.float64)
    student, teacher = (logits / 3).softmax(1), (teacher_logits / 3).softmax(1)
    expected = 9 * (teacher * (teacher / student).log()).sum(1).mean()
    torch.testing.assert_close(soft_divergence(logits, teacher_logits, 3.0), expected)


def test_loss_is_the_weighted_mean_of_cross_entropy_and_divergence():
    recipe = replace(DISTILLED, label_smoothing=0.1, temperature=3.0)
    logits, labels, images = torch.randn(5, 10), torch.arange(5), torch.zeros(5, 1, 28, 28)
    cross_entropy = F.cross_entropy(logits, labels, label_smoothing=0.1)
    divergence = soft_divergence(logits, Always7()(images), 3.0)
    loss = distillation_loss(Ensemble([Always7()]), recipe)(images, logits, labels)
    torch.testing.assert_close(loss, 0.3 * cross_entropy + 0.7 * divergence)


def test_an_interrupted_teacher_is_not_stored(small, tmp_path, monkeypatch):
    monkeypatch.setattr("s5.experiments.distillation.fit", lambda *_, **__: [])  # after Ctrl-C in the first epoch
    with pytest.raises(KeyboardInterrupt):
        load_teacher(DISTILLED, small, "cpu", tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_teachers_are_trained_once_and_average_their_logits(small, tmp_path, monkeypatch):
    few, fewer = small.subset(300, 200), small.subset(200, 200)
    teacher = load_teacher(DISTILLED, few, "cpu", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert_same_weights(teacher, load_teacher(DISTILLED, few, "cpu", tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == before
    assert len(before) == 2

    images = normalize(small.eval_images[:20])
    first, second = (model(images) for model in teacher.models)
    torch.testing.assert_close(teacher(images), (first + second) / 2)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.train().modules())
    load_teacher(DISTILLED, fewer, "cpu", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4, "other images need other teachers"
    changed = replace(KNOWN["budget_1k"], network="conv 3 3 / 4 6 / 7 gap dropout 0.1")
    monkeypatch.setitem(KNOWN, "budget_1k", changed)
    load_teacher(DISTILLED, fewer, "cpu", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6, "another network is another teacher"


def test_the_student_learns_from_the_teacher_as_far_as_it_has_weight(small):
    teacher = Ensemble([Always7()])
    recipe = replace(DISTILLED, teacher_weight=0.0)
    weight_0, _ = fit(small, recipe, loss=distillation_loss(teacher, recipe))
    assert_same_weights(weight_0, fit(small, SHORT)[0])
    recipe = replace(DISTILLED, teacher_weight=1.0)
    student, _ = fit(small, recipe, loss=distillation_loss(teacher, recipe))
    assert (helpers.predict(student, small.eval_images).argmax(1) == 7).all()


def test_a_recipe_with_a_teacher_requires_a_loss(small):
    with pytest.raises(ValueError, match=r"to learn from 'budget_1k', pass loss=distillation_loss\(teacher, recipe\)"):
        fit(small, DISTILLED)
