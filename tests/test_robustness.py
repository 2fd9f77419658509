"""Accuracy on changed images, calibration, and the reject option."""

import numpy as np
import pytest
import torch

import helpers
from s5.inference import robustness
from s5.inference.trained import load_trained


def change(name: str, images, amount):
    return robustness.CHANGES[name][2](images, amount)


@pytest.mark.parametrize("name", robustness.CHANGES)
def test_only_the_neutral_amount_leaves_images_unchanged(sample, name):
    images, amounts = sample.eval_images[:20], robustness.CHANGES[name][1]
    neutral = 1 if name == "scale" else 0
    assert (change(name, images, neutral).int() - images.int()).abs().max() <= 1
    for amount in set(amounts) - {neutral}:
        assert change(name, images, amount).dtype == torch.uint8
        assert not torch.equal(change(name, images, amount), images), amount


def test_directions_of_shift_rotation_and_thickness(sample):
    images = sample.eval_images[:20]
    assert torch.equal(change("shift", images, 3)[:, :, 3:], images[:, :, :-3])
    rotated = change("rotation", images, 90).int()
    assert (rotated - torch.rot90(images, -1, (1, 2)).int()).abs().max() <= 1  # clockwise
    inks = [float(change("thickness", images, pixels).float().mean()) for pixels in (-1, 0, 1, 2)]
    assert inks == sorted(inks)


def test_preprocessing_helps_against_inversion_noise_and_size(sample):
    table = robustness.accuracy_under_changes(load_trained(), sample.eval_images[:40], sample.eval_labels[:40])
    rows = table.set_index(["change", "amount"])
    assert rows.loc[("shift", 0), "accuracy"] > 96
    assert rows.loc[("shift", 0), "prepared"] > 94
    for changed in (("inversion", 1), ("noise", 60), ("scale", 0.5)):
        assert rows.loc[changed, "prepared"] > rows.loc[changed, "accuracy"] + 20, changed
    assert len(robustness.plot_robustness(table).axes) == len(robustness.CHANGES)


def test_images_that_cannot_be_prepared_are_mistakes(sample, monkeypatch):
    monkeypatch.setattr(robustness, "CHANGES", {"none": ("", (0,), lambda images, amount: images)})
    model = load_trained()
    images = torch.cat([sample.eval_images[:2], torch.zeros(2, 28, 28, dtype=torch.uint8)])
    labels = helpers.predict(model, images).argmax(1)
    table = robustness.accuracy_under_changes(model, images, labels, robustness.change_images(images))
    assert table.to_dict("records") == [{"change": "none", "amount": 0, "accuracy": 100, "prepared": 50}]


def test_other_digits_are_counted_as_right_wrong_and_refused(sample):
    model = load_trained()
    first, second = sample.eval_images[:2]
    answers = helpers.predict(model, sample.eval_images[:2]).argmax(1).tolist()
    label = (answers[1] + 1) % 10
    counts = robustness.read_other_digits(model, [first, second, None], [answers[0], label, 3])
    assert counts == {"right": 1, "wrong": 1, "refused": 1, "confusions": [[label, answers[1], 1]]}


def test_calibration_error_of_known_probabilities():
    labels = torch.zeros(10, dtype=torch.long)
    probabilities = torch.zeros(10, 10)
    probabilities[:8, 0], probabilities[:8, 1] = 0.8, 0.2  # correct, with a confidence of 0.8
    probabilities[8:, 0], probabilities[8:, 1] = 0.2, 0.8  # wrong, with the same confidence
    table = robustness.reliability(labels, probabilities)
    assert table[["count", "accuracy"]].to_numpy().tolist() == [[10, pytest.approx(0.8)]]
    assert robustness.calibration_error(table) == pytest.approx(0, abs=1e-6)
    certain = torch.eye(10)[[0] * 5 + [1] * 5]
    assert robustness.calibration_error(robustness.reliability(labels, certain)) == pytest.approx(0.5)
    assert len(robustness.plot_reliability(labels, probabilities).axes) == 2


def test_images_of_lowest_confidence_are_rejected_first():
    labels = torch.zeros(100, dtype=torch.long)
    probabilities = torch.full((100, 10), 0.01)
    probabilities[:, 0] = torch.linspace(0.3, 0.9, 100)
    probabilities[0] = torch.tensor([0.2, 0.25] + 8 * [0.06])  # the only mistake, with the lowest confidence
    table = robustness.rejection_table(labels, probabilities, (0, 1, 10))
    assert list(table["Accepted"]) == [100, 99, 90]
    assert list(table["Mistakes"]) == [1, 0, 0]
    np.testing.assert_allclose(table["Accuracy (%)"], [99, 100, 100])
    assert table["95% interval"][0] == "94.55–99.82", "Wilson's, of 99 of 100"
