"""The figures of one run and of many: their texts, lines and images, not their pixels."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn

from helpers import Net
from s5.analysis import plots, style
from s5.experiments.claims import BUDGETS
from s5.experiments.ledger import read_ledger
from s5.reports import tables
from s5.reports.plots import COLUMNS, plot_frontier, plot_hardest, plot_training_time, plot_variants
from s5.training.augmentation import normalize
from s5.training.files import PEERS
from s5.training.mnist import DATA_SETS
from s5.training.recipe import Recipe

ACCURACIES = [98.02, 98.07, 98.89, 98.29, 99.2, 98.84, 99.33, 99.37, 99.35, 99.4]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40) % 10
PEER_LIST = pd.read_csv(PEERS).sort_values("parameters")
POINTS = pd.DataFrame(
    [
        ("below_2k", 1_900, False, 39.0, 5, 99.2, 99.1, 99.3),
        ("below_1k", 950, True, 23.4, 2, 98.8, 98.7, 98.9),
        ("s5", 18_214, False, 4.6, 1, 99.41, np.nan, np.nan),
        ("original", 18_300, False, np.nan, 3, 99.0, 98.9, 99.1),
    ],
    columns=["name", "parameters", "deskewed", "minutes", "seeds", "mean", "low", "high"],
)


def make_history(eval_accuracy=ACCURACIES, train_accuracy=None):
    train_accuracy = train_accuracy or [accuracy - 0.5 for accuracy in eval_accuracy]
    history = []
    for epoch, (train, accuracy) in enumerate(zip(train_accuracy, eval_accuracy, strict=True), 1):
        loss = None if accuracy is None else (100.2 - accuracy) / 30
        history.append({"epoch": epoch, "train_loss": (100.2 - train) / 30, "train_accuracy": train})
        history[-1] |= {"eval_loss": loss, "eval_accuracy": accuracy}
    return history


def texts(axes):
    return [text.get_text() for text in axes.texts]


def assert_apart(labels, figure):
    """No text is on another, or outside the figure."""
    figure.draw_without_rendering()
    # Of the base class: an Annotation's own extent includes the line to the point.
    boxes = [Text.get_window_extent(label) for label in labels]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


# --- One run ----------------------------------------------------------------------------------------------------------


def test_figure_has_no_side_effects_and_does_not_depend_on_the_style_of_the_caller(tmp_path):
    before = dict(matplotlib.rcParams)
    figure = plots.plot_curves(make_history())
    data, metadata = figure._repr_mimebundle_()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert metadata["image/png"]["alt"] == "Epoch 10: 99.40% test accuracy"
    with plt.style.context(["dark_background", {"xtick.labelsize": 20, "savefig.dpi": 30, "image.cmap": "jet"}]):
        assert plots.plot_curves(make_history())._repr_mimebundle_()[0] == data
    style.save_figure(figure, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert (image.width, image.info["Description"]) == (1800, figure.text_alternative())


def test_curves_contain_the_data_and_show_the_last_values():
    history = make_history()
    figure = plots.plot_curves(history)
    for axes, quantity, form in zip(figure.axes, ("loss", "accuracy"), ("{:.4g}", "{:.2f}%"), strict=True):
        for line, prefix, name in zip(axes.lines, ("train", "eval"), ("train", "test"), strict=False):
            values = [row[f"{prefix}_{quantity}"] for row in history]
            np.testing.assert_allclose(line.get_xydata(), list(enumerate(values, 1)))
            assert f"{name} {form.format(values[-1])}" in texts(axes)
    assert "99.4%" in texts(figure.axes[1])  # the threshold


def test_curves_skip_epochs_without_evaluation():
    figure = plots.plot_curves(make_history([98.0, None, 99.0, None], [97.0, 98.0, 98.5, 98.6]))
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_xdata(), [1, 3])
    assert "test 99.00% (epoch 3)" in texts(figure.axes[1])
    figure = plots.plot_curves(make_history([None], [60.0]), threshold=None)
    assert texts(figure.axes[1]) == ["train 60.00%"]


def test_curve_labels_do_not_overlap_and_are_inside_the_figure():
    variants = {f"a rather long name {i}": [make_history([50.0, 99.4 - i / 1000])] for i in range(7)}
    figure = plot_variants("", variants, {}, {})
    assert_apart([text for text in figure.axes[1].texts if text.get_text().startswith("a rather")], figure)


def test_digits_with_their_labels():
    axes = plots.plot_digits(torch.tensor(IMAGES[:12]), torch.tensor(LABELS[:12]), columns=8).axes[0]
    assert texts(axes) == [str(label) for label in LABELS[:12]]
    np.testing.assert_array_equal(axes.images[7].get_array(), IMAGES[7])
    axes = plots.plot_digits(IMAGES[:3], LABELS[:3], classes=DATA_SETS["fashion"].classes).axes[0]
    assert texts(axes) == [DATA_SETS["fashion"].classes[label] for label in LABELS[:3]]


def test_augmented_digits_are_below_the_originals():
    axes = plots.plot_augmentation(IMAGES[:3], np.stack([IMAGES[10:13], IMAGES[20:23]]) / 255.0).axes[0]
    assert texts(axes) == ["original", "draw 1", "draw 2"]
    expected = np.concatenate([IMAGES[:3], IMAGES[10:13], IMAGES[20:23]]) / 255
    np.testing.assert_allclose([image.get_array() for image in axes.images], expected, atol=0.02)


@pytest.mark.parametrize("count", [0, 25])
def test_mistakes_are_sorted_by_confidence(count):
    probabilities = np.full((40, 10), 0.001)
    predictions = (LABELS + (np.arange(40) < count)) % 10
    probabilities[np.arange(40), predictions] = RANDOM.permutation(np.linspace(0.5, 0.95, 40))
    axes = plots.plot_mistakes(torch.tensor(IMAGES), LABELS, torch.tensor(probabilities)).axes[0]
    assert axes.get_title(loc="left").startswith(f"Mistakes: {count} of 40 images")
    order = sorted(range(count), key=lambda i: -probabilities[i].max())
    assert texts(axes) == [f"{LABELS[i]} → {predictions[i]}  {100 * probabilities[i].max():.0f}%" for i in order]
    for image, index in zip(axes.images, order, strict=True):
        np.testing.assert_array_equal(image.get_array(), IMAGES[index])


def test_confusion_counts():
    predictions = LABELS.copy()
    predictions[[4, 14, 7]] = [9, 9, 1]  # two fours predicted as nines, a seven as a one
    axes = plots.plot_confusion(LABELS, torch.tensor(predictions)).axes[0]
    written = np.array([0 if text == "·" else int(text) for text in texts(axes)]).reshape(10, 10)
    expected = np.diag([4, 4, 4, 4, 2, 4, 4, 3, 4, 4])
    expected[4, 9], expected[7, 1] = 2, 1
    np.testing.assert_array_equal(written, expected)
    assert axes.get_title(loc="left") == "Mistakes: 3 of 40 images"


def test_class_accuracy():
    axes = plots.plot_class_accuracy([0] * 4 + [3] * 8, [0] * 4 + [3] * 7 + [5]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0\n100.00%\n0 of 4", "3\n87.50%\n1 of 8"]


def test_what_speaks_for_a_mistake_and_for_its_label_is_drawn_over_it():
    maps = np.zeros((2, 10, 7, 7))
    maps[0, 3, 2, 1] = 1.0  # the first is taken for a 3
    probabilities = np.eye(10)[[3, 1]]
    first, second, *_ = plots.plot_activation_maps(IMAGES[:2], [5, 7], probabilities, maps).axes
    assert (first.get_title(), second.get_title()) == ("5 → 3", "7 → 1")
    assert first.images[0].get_array()[2, 1] == 1.0
    assert not second.images[0].get_array().any()


def test_the_learning_rate_of_every_step_is_drawn():
    line = plots.plot_learning_rate(Recipe(epochs=2, warmup=0.5, batch_size=100), 1000).axes[0].lines[0]
    assert len(line.get_ydata()) == 21  # and the end of the last step
    assert max(line.get_ydata()) == line.get_ydata()[9] == Recipe().learning_rate


def test_filters_share_one_scale_centred_at_zero():
    conv = nn.Conv2d(1, 20, 3)
    axes = plots.plot_filters(conv).axes[0]
    largest = conv.weight.abs().max().item()
    assert all(image.get_clim() == pytest.approx((-largest, largest)) for image in axes.images)
    np.testing.assert_array_equal(axes.images[5].get_array(), conv.weight[5, 0].detach())


def test_feature_maps_are_computed_in_evaluation_mode():
    model = Net().train()
    model.conv1[2].inplace = True  # it changes the output of the layer before it
    figure = plots.plot_feature_maps(model, torch.tensor(IMAGES[0]), ["conv1.1", "conv1.2", "conv2.1"], normalize)
    assert [len(axes.images) for axes in figure.axes] == [1, 4, 4, 16]
    assert model.training
    with torch.no_grad():
        batchnorm = model.eval().conv1[:2](normalize(torch.tensor(IMAGES[:1])))[0]
    assert (batchnorm < 0).any()
    np.testing.assert_allclose([image.get_array() for image in figure.axes[1].images], batchnorm, atol=1e-6)


# --- Many runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    """The frontier of the ledger."""
    return plot_frontier(tables.frontier_points(read_ledger()), PEER_LIST)


def test_frontier_joins_the_points_that_no_smaller_one_equals():
    figure = plot_frontier(POINTS, PEER_LIST)
    axes = figure.axes[0]
    bars, other_bars = axes.containers
    np.testing.assert_allclose(other_bars.lines[0].get_xydata(), [(18_300, 99.0)])
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [(950, 98.8), (1_900, 99.2), (18_214, 99.41)])
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(98.7, 98.9), (99.1, 99.3), (99.41, 99.41)])
    np.testing.assert_array_equal(axes.get_xticks(), BUDGETS)
    assert figure.text_alternative() == "Mean test accuracy: 98.80% with 950 parameters, 99.41% with 18,214"


def test_frontier_has_a_table_of_all_networks(recorded):
    rows = np.array(texts(recorded.axes[1])).reshape(len(COLUMNS), -1).T.tolist()
    assert ["●", "below_500", "496", "98.39%", "–", "mean of 5 seeds"] in rows
    assert ["□", "original document (TSAI S5)", "18,214", "99.37%", "99.44%"] in [row[:5] for row in rows]


def test_frontier_texts_do_not_overlap(recorded):
    words = [text for axes in recorded.axes for text in axes.texts if text.get_text() not in ("", "99.4%")]
    assert_apart(words, recorded)


def test_training_time_is_labelled_with_the_size_and_leaves_out_what_is_unknown():
    figure = plot_training_time(POINTS)
    assert [text for text in texts(figure.axes[0]) if "%" not in text] == ["1,900", "950", "18,214"]
    assert figure.text_alternative().startswith("Training time: 99.41% takes 5 minutes")


def test_hardest_images_are_counted_with_their_most_common_prediction():
    mistakes = [{"3": 5, "1": 7}, {"3": 8}, {"3": 5}, {}]
    figure = plot_hardest(np.zeros((5, 28, 28), np.uint8), np.arange(5), mistakes)
    assert texts(figure.axes[0]) == ["3 → 5  3", "1 → 7  1"]
    assert "most of 4 networks misclassify" in figure.text_alternative()
