"""The figures of one run: their texts, lines, images and errors, not their pixels."""

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import Net
from s5.analysis import plots, style
from s5.training.augmentation import normalize

ACCURACIES = [98.02, 98.07, 98.89, 98.29, 99.2, 98.84, 99.33, 99.37, 99.35, 99.4]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40) % 10


def make_history(eval_accuracy=ACCURACIES, train_accuracy=None):
    train_accuracy = train_accuracy or [accuracy - 0.5 for accuracy in eval_accuracy]
    history = []
    for epoch, (train, accuracy) in enumerate(zip(train_accuracy, eval_accuracy, strict=True), 1):
        loss = None if accuracy is None else (100.2 - accuracy) / 30
        history.append({"epoch": epoch, "train_loss": (100.2 - train) / 30, "train_accuracy": train})
        history[-1] |= {"eval_loss": loss, "eval_accuracy": accuracy}
    return history


def make_probabilities(wrong):
    """Softmax-like rows for LABELS; the first `wrong` predict the next class. All confidences differ."""
    probabilities = np.full((len(LABELS), 10), 0.001)
    predictions = (LABELS + (np.arange(len(LABELS)) < wrong)) % 10
    probabilities[np.arange(len(LABELS)), predictions] = RANDOM.permutation(np.linspace(0.5, 0.95, len(LABELS)))
    return probabilities


def texts(axes):
    return [text.get_text() for text in axes.texts]


def calls():
    """A call of every plot function."""
    predictions = np.where(np.arange(40) < 5, (LABELS + 1) % 10, LABELS)
    return {
        "curves": lambda: plots.plot_curves(make_history()),
        "others": lambda: plots.plot_curves(make_history(), others={"a": make_history()}, band=[make_history()]),
        "digits": lambda: plots.plot_digits(IMAGES[:12], LABELS[:12]),
        "augmentation": lambda: plots.plot_augmentation(IMAGES[:4], IMAGES[4:12].reshape(2, 4, 28, 28)),
        "confusion": lambda: plots.plot_confusion(LABELS, predictions),
        "mistakes": lambda: plots.plot_mistakes(IMAGES, LABELS, make_probabilities(5)),
        "classes": lambda: plots.plot_class_accuracy(LABELS, predictions),
        "filters": lambda: plots.plot_filters(nn.Conv2d(1, 4, 3)),
        "maps": lambda: plots.plot_feature_maps(Net(), IMAGES[0], ["conv1.2"], normalize),
    }


@pytest.mark.parametrize("name", calls())
def test_figure_has_no_side_effects_and_does_not_depend_on_the_style_of_the_caller(name):
    before = dict(matplotlib.rcParams)
    figure = calls()[name]()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    assert figure.get_figwidth() == style.WIDTH
    data, metadata = figure._repr_mimebundle_()
    assert len(metadata["image/png"]["alt"]) > 10
    png = data["image/png"]
    assert png.startswith(b"\x89PNG")
    if name == "curves":
        with plt.style.context(["dark_background", {"xtick.labelsize": 20, "savefig.dpi": 30, "image.cmap": "jet"}]):
            assert calls()[name]()._repr_mimebundle_()[0]["image/png"] == png


@pytest.mark.parametrize("accuracies", [[88.3], ACCURACIES, [50.0, 100.0]], ids=len)
def test_curves_contain_the_data_and_show_the_last_values(accuracies):
    history = make_history(accuracies)
    figure = plots.plot_curves(history, others={"parent": make_history([97.0])})
    for axes, quantity, form in zip(figure.axes, ("loss", "accuracy"), ("{:.4g}", "{:.2f}%"), strict=True):
        for line, prefix, name in zip(axes.lines, ("train", "eval"), ("train", "test"), strict=False):
            values = [row[f"{prefix}_{quantity}"] for row in history]
            np.testing.assert_array_equal(line.get_xdata(), range(1, len(history) + 1))
            np.testing.assert_allclose(line.get_ydata(), values)
            assert f"{name} {form.format(values[-1])}" in texts(axes)
            low, high = axes.get_ylim()
            assert low < min(values)
            assert max(values) < high
    assert f"{accuracies[-1]:.2f}% test accuracy" in figure.get_suptitle()
    assert any(text.startswith("parent 97.00%") for text in texts(figure.axes[1]))
    assert "99.4%" in texts(figure.axes[1])  # the threshold


def test_curves_skip_epochs_without_evaluation():
    figure = plots.plot_curves(make_history([98.0, None, 99.0, None], [97.0, 98.0, 98.5, 98.6]), eval_name="validation")
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_xdata(), [1, 3])
    assert "validation 99.00% (epoch 3)" in texts(figure.axes[1])
    figure = plots.plot_curves(make_history([None], [60.0]), title="Not evaluated", threshold=None)
    assert figure.get_suptitle() == "Not evaluated"
    assert texts(figure.axes[1]) == ["train 60.00%"]


@pytest.mark.parametrize("accuracy", [10.0, 99.4, 100.0])
def test_curve_labels_do_not_overlap_and_are_inside_the_figure(accuracy):
    count = 9
    others = {f"a rather long name {i}": make_history([50.0, accuracy - i / 1000]) for i in range(count)}
    figure = plots.plot_curves(make_history(), others=others)
    figure.draw_without_rendering()
    axes = figure.axes[1]
    labels = [text for text in axes.texts if text.get_text().startswith("a rather")]
    assert len(labels) == count
    # Of the base class: an Annotation's own extent includes the line to the point.
    boxes = sorted((matplotlib.text.Text.get_window_extent(label) for label in labels), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in itertools.pairwise(boxes))
    width, height = figure.bbox.size
    assert all(box.x0 > 0 and box.y0 > 0 and box.x1 < width and box.y1 < height for box in boxes)


def test_band_reaches_from_the_lowest_to_the_highest_seed_inside_the_axes():
    band = [make_history([98.0, 99.0]), make_history([10.0, 99.2]), make_history([97.5])]
    axes = plots.plot_curves(make_history(), band=band).axes[1]
    (path,) = axes.collections[0].get_paths()
    assert path.get_extents().bounds == pytest.approx((1, 10.0, 1, 89.2))
    assert axes.get_ylim()[0] < 10


def test_curves_without_epochs():
    with pytest.raises(ValueError, match="no epochs in train, test"):
        plots.plot_curves([])
    with pytest.raises(ValueError, match="no epochs in b$"):
        plots.plot_curves(make_history(), others={"a": make_history(), "b": []})


def test_digits_from_tensors_and_arrays():
    few = IMAGES[:12]
    for images in (torch.tensor(few), torch.tensor(few / 255.0).bfloat16().requires_grad_(), few):
        axes = plots.plot_digits(images, torch.tensor(LABELS[:12]), columns=8).axes[0]
        assert texts(axes) == [str(label) for label in LABELS[:12]]
    np.testing.assert_array_equal(axes.images[7].get_array(), few[7])


def test_augmented_digits_are_below_the_originals():
    draws = np.stack([IMAGES[10:14], IMAGES[20:24]]) / 255.0
    axes = plots.plot_augmentation(IMAGES[:4], draws, columns=3).axes[0]
    assert texts(axes) == ["original", "draw 1", "draw 2"]
    expected = np.concatenate([IMAGES[:3], IMAGES[10:13], IMAGES[20:23]]) / 255
    np.testing.assert_allclose([image.get_array() for image in axes.images], expected, atol=0.02)
    assert texts(plots.plot_augmentation(IMAGES[:4], draws[0]).axes[0]) == ["original", "draw 1"]


@pytest.mark.parametrize("count", [0, 25])
def test_mistakes_are_sorted_by_confidence(count):
    probabilities = make_probabilities(count)
    axes = plots.plot_mistakes(torch.tensor(IMAGES), LABELS, torch.tensor(probabilities)).axes[0]
    assert len(axes.images) == len(axes.texts) == count
    assert axes.get_title(loc="left").startswith(f"Mistakes: {count} of 40 digits")
    order = sorted(range(count), key=lambda i: -probabilities[i].max())
    expected = [f"{LABELS[i]} → {(LABELS[i] + 1) % 10}  {100 * probabilities[i].max():.0f}%" for i in order]
    assert texts(axes) == expected
    for image, index in zip(axes.images, order, strict=True):
        np.testing.assert_array_equal(image.get_array(), IMAGES[index])
    limited = plots.plot_mistakes(IMAGES, LABELS, probabilities, limit=7).axes[0]
    assert texts(limited) == expected[:7]
    assert ("25 of 40 digits, the 7 most confident shown" in limited.get_title(loc="left")) == (count == 25)


def test_confusion_counts():
    predictions = LABELS.copy()
    predictions[[4, 14, 7]] = [9, 9, 1]  # two fours predicted as nines, a seven as a one
    axes = plots.plot_confusion(LABELS, predictions).axes[0]
    written = np.array([0 if text == "·" else int(text) for text in texts(axes)]).reshape(10, 10)
    expected = np.diag([4, 4, 4, 4, 2, 4, 4, 3, 4, 4])
    expected[4, 9], expected[7, 1] = 2, 1
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_array_equal(axes.images[0].get_array(), expected - np.diag(expected.diagonal()))
    assert axes.get_title(loc="left") == "Mistakes: 3 of 40 digits"


def test_class_accuracy():
    labels, predictions = [0] * 4 + [3] * 8, [0] * 4 + [3] * 7 + [5]
    axes = plots.plot_class_accuracy(labels, predictions).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0\n100.00%\n0 of 4", "3\n87.50%\n1 of 8"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [100, 87.5])
    assert "91.67%" in axes.get_title(loc="left")


def test_filters_share_one_scale_centred_at_zero():
    conv = nn.Conv2d(1, 20, 3)
    axes = plots.plot_filters(conv).axes[0]
    largest = conv.weight.abs().max().item()
    assert len(axes.images) == 20
    assert all(image.get_clim() == pytest.approx((-largest, largest)) for image in axes.images)
    np.testing.assert_array_equal(axes.images[5].get_array(), conv.weight[5, 0].detach())
    for wrong in (nn.Conv2d(3, 4, 3), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="one input channel"):
            plots.plot_filters(wrong)


def test_feature_maps_are_computed_in_evaluation_mode():
    model = Net().train()
    model.conv1[2].inplace = True  # it changes the output of the layer before it
    figure = plots.plot_feature_maps(model, torch.tensor(IMAGES[0]), ["conv1.1", "conv1.2", "conv2.1"], normalize)
    assert [len(axes.images) for axes in figure.axes] == [1, 4, 4, 16]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())

    with torch.no_grad():
        batchnorm = model.eval().conv1[:2](normalize(torch.tensor(IMAGES[:1])))[0]
    assert (batchnorm < 0).any()
    np.testing.assert_allclose([image.get_array() for image in figure.axes[1].images], batchnorm, atol=1e-6)


def test_feature_maps_of_unsuitable_layers_and_images():
    with pytest.raises(ValueError, match=r"no layer 'conv9'.*conv1\.0.*conv2\.1.*fc"):
        plots.plot_feature_maps(Net(), IMAGES[0], ["conv1.2", "conv9"], normalize)
    with pytest.raises(ValueError, match="layer 'fc' has no output of shape"):
        plots.plot_feature_maps(Net(), IMAGES[0], ["fc"], normalize)
    with pytest.raises(ValueError, match=r"image must have 2 dimensions.*\(1, 28, 28\)"):
        plots.plot_feature_maps(Net(), IMAGES[:1], ["conv1.2"], normalize)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.plot_digits(IMAGES, LABELS[:3]), r"images \(40, 28, 28\), labels \(3,\)"),
        (lambda: plots.plot_digits(IMAGES[0], LABELS), r"images must have 3 dimensions.*\(28, 28\)"),
        (lambda: plots.plot_digits(IMAGES, LABELS, columns=0), "columns must be at least 1, not 0"),
        (lambda: plots.plot_augmentation(IMAGES, IMAGES[:3]), r"augmented, \(3, 28, 28\).*images, \(40, 28, 28\)"),
        (lambda: plots.plot_confusion(LABELS, LABELS[1:]), r"labels \(40,\), predictions \(39,\)"),
        (lambda: plots.plot_confusion(LABELS, LABELS + 1), "predictions must be one or more digits from 0 to 9"),
        (lambda: plots.plot_class_accuracy([], []), "labels must be one or more digits"),
        (lambda: plots.plot_mistakes(IMAGES, LABELS, np.ones((39, 10))), r"labels \(40,\), probabilities \(39, 10\)"),
        (lambda: plots.plot_mistakes(IMAGES, LABELS, np.full((40, 10), -3.0)), "apply softmax"),
    ],
)
def test_unsuitable_shapes_and_values_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_save_figure_writes_atomically(tmp_path, monkeypatch):
    figure = plots.plot_digits(IMAGES[:3], LABELS[:3])
    path = style.save_figure(figure, tmp_path / "digits.png")
    with Image.open(path) as image:
        assert (image.width, image.info["Description"]) == (900, "Digits and their labels (3)")
    complete = path.read_bytes()

    def run_out_of_space(target, **kwargs):
        target.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", run_out_of_space)
    with pytest.raises(OSError, match="No space left"):
        style.save_figure(figure, path)
    assert path.read_bytes() == complete
    assert list(tmp_path.iterdir()) == [path]
