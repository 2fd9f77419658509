"""Changed images, calibration, and declining."""

import numpy as np
import pytest
import torch

import helpers
from inference import robustness
from training.checkpoint import load_weights
from training.files import WEIGHTS


@pytest.fixture(scope="module")
def model():
    return load_weights(helpers.build(), WEIGHTS)


def test_every_change_changes_what_it_says(sample):
    images = sample.eval_images[:20]
    for name, (_, amounts, change) in robustness.CHANGES.items():
        neutral = 1 if name == "scale" else 0
        assert neutral in amounts
        assert (change(images, neutral).int() - images.int()).abs().max() <= 1, name
        for amount in set(amounts) - {neutral}:
            changed = change(images, amount)
            assert changed.dtype == torch.uint8
            assert not torch.equal(changed, images), (name, amount)
    moved = robustness.CHANGES["shift"][2](images, 3)
    assert torch.equal(moved[:, :, 3:], images[:, :, :-3])
    turned = robustness.CHANGES["rotation"][2](images, 90).int()
    assert (turned - torch.rot90(images, -1, (1, 2)).int()).abs().max() <= 1  # clockwise, as one sees it
    inks = [float(robustness.CHANGES["thickness"][2](images, by).float().mean()) for by in (-1, 0, 1, 2)]
    assert inks == sorted(inks)


def test_preparation_helps_against_inversion_noise_and_size(model, sample):
    table = robustness.accuracy_under_changes(model, sample.eval_images[:120], sample.eval_labels[:120])
    table = table.set_index(["change", "amount"])
    assert table.loc[("shift", 0), "accuracy"] > 96
    assert table.loc[("shift", 0), "prepared"] > 94
    for change in (("inversion", 1), ("noise", 60), ("scale", 0.5)):
        assert table.loc[change, "prepared"] > table.loc[change, "accuracy"] + 20, change
    figure = robustness.plot_robustness(table.reset_index())
    assert len(figure.axes) == len(robustness.CHANGES)


def test_calibration_of_known_answers():
    labels = torch.zeros(10, dtype=torch.long)
    probabilities = torch.zeros(10, 10)
    probabilities[:8, 0], probabilities[:8, 1] = 0.8, 0.2  # right, and sure by 80%
    probabilities[8:, 0], probabilities[8:, 1] = 0.2, 0.8  # wrong, as sure
    table = robustness.reliability(labels, probabilities)
    assert list(table["count"]) == [10]
    assert table["accuracy"][0] == pytest.approx(0.8)
    assert robustness.calibration_error(table) == pytest.approx(0, abs=1e-6)
    sure = torch.eye(10)[[0] * 5 + [1] * 5]
    assert robustness.calibration_error(robustness.reliability(labels, sure)) == pytest.approx(0.5)
    assert len(robustness.plot_reliability(labels, probabilities).axes) == 2


def test_declining_drops_the_least_sure():
    labels = torch.zeros(100, dtype=torch.long)
    probabilities = torch.full((100, 10), 0.01)
    probabilities[:, 0] = torch.linspace(0.3, 0.9, 100)
    probabilities[0] = torch.tensor([0.2, 0.25] + 8 * [0.06])  # the one mistake, and the least sure
    table = robustness.declining_table(labels, probabilities, (0, 1, 10))
    assert list(table["Answered"]) == [100, 99, 90]
    assert list(table["Mistakes"]) == [1, 0, 0]
    np.testing.assert_allclose(table["Accuracy (%)"], [99, 100, 100])
