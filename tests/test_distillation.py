"""Students and their teachers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers
from experiments import sweep
from experiments.distillation import Ensemble, distillation_loss, teacher_for
from experiments.vectorized import fit_vectorized
from tests.utils import SHORT, assert_same_weights, fit
from training.augmentation import normalize
from training.recipe import Recipe

DISTILLED = replace(SHORT, teacher="budget_1k", teachers=2, teacher_weight=0.7)


def test_the_loss_is_the_divergence_of_the_softened_answers():
    logits, answers = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (logits / 3).softmax(1), (answers / 3).softmax(1)
    expected = 9 * (theirs * (theirs / ours).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, answers, 3.0), expected)
    assert distillation_loss(answers, answers, 3.0).abs() < 1e-12


def test_teachers_are_trained_once_and_answer_with_one_voice(small, tmp_path):
    teacher = teacher_for(DISTILLED, small, "cpu", tmp_path)
    kept = sorted(tmp_path.glob("*.safetensors"))
    assert len(kept) == 2
    before = [path.stat().st_mtime_ns for path in kept]
    again = teacher_for(DISTILLED, small, "cpu", tmp_path)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert_same_weights(teacher, again)

    images = normalize(small.eval_images[:20])
    one, two = (model(images) for model in teacher.models)
    torch.testing.assert_close(teacher(images), (one + two) / 2)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher_for(SHORT, small, "cpu", tmp_path) is None
    other = replace(small, train_images=small.train_images[:500], train_labels=small.train_labels[:500])
    teacher_for(DISTILLED, other, "cpu", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4, "other images, other teachers"


def test_a_teacher_is_heard_and_not_changed(small):
    class Says7(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 7), 10) * 20.0

    teacher = Ensemble([Says7(), helpers.build(seed=3)])
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    deaf, _ = fit(small, replace(DISTILLED, teacher_weight=0.0), teacher=teacher)
    plain, _ = fit(small, SHORT)
    assert_same_weights(deaf, plain)
    student, _ = fit(small, replace(DISTILLED, teacher_weight=1.0), teacher=Ensemble([Says7()]))
    assert (helpers.predict(student, small.eval_images).argmax(1) == 7).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_a_recipe_with_a_teacher_wants_one(small):
    with pytest.raises(ValueError, match="this recipe learns from 'budget_1k': give fit distillation.teacher_for"):
        fit(small, DISTILLED)
    with pytest.raises(ValueError, match="fit_vectorized does not distil"):
        fit_vectorized(helpers.Net, small, DISTILLED, [0], "cpu")
    with pytest.raises(ValueError, match="teacher must be a variant, .*, not 'nobody'"):
        sweep.planned_recipe("s5", changes={"teacher": "nobody"})
    for field, value in (("teacher_weight", 1.5), ("temperature", 0), ("teachers", 0)):
        with pytest.raises(ValueError, match=f"{field} must be"):
            Recipe(**{field: value})
