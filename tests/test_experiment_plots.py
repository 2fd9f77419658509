"""What the figures of many runs say: their texts, points and errors."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib.text import Text

from experiments import plots, report
from experiments.ledger import read_ledger

POINTS = pd.DataFrame(
    [
        ("s5", "validation", 18_214, 99.33, 99.2, 99.4),
        ("dropout", "validation", 18_214, 99.31, 99.2, 99.4),
        ("s5", "test", 18_214, 99.41, float("nan"), float("nan")),
        ("budget_1k", "validation", 936, 96.5, 96.3, 96.7),
        ("pytorch_example", "validation", 1_199_882, 99.2, float("nan"), float("nan")),
    ],
    columns=["name", "split", "parameters", "mean", "low", "high"],
)


def texts(figure):
    """All that is written in the only axes of a figure, and in its legend."""
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [text.get_text() for text in axes.texts] + [axes.get_title(), axes.get_title("left"), *legend]


def test_frontier_names_every_point_and_says_what_it_is():
    peers = pd.read_csv(report.PEERS)
    written = texts(plots.plot_frontier(POINTS, peers))
    assert written.count("s5") == 2
    for name in [*POINTS["name"], *peers["name"]]:
        assert name in written
    legend = "\n".join(written)
    assert "ours, validation split: mean over seeds" in legend
    assert "one seed, chosen on test, except" in legend
    assert "JoshWarn: best of about 700 runs, stopped on test" in legend
    assert "NSR9 session 6: one seed" not in legend  # the rule needs no naming


def recorded_points():
    return report.frontier_points(report.frontier_trials(read_ledger()))


@pytest.mark.parametrize("points", [POINTS, recorded_points()], ids=["few", "recorded"])
def test_frontier_labels_do_not_overlap(points):
    figure = plots.plot_frontier(points, pd.read_csv(report.PEERS))
    figure._repr_png_()  # places everything
    names = [text for text in figure.axes[0].texts if text.get_text() != "99.4%"]
    words = [Text.get_window_extent(text) for text in names]  # an annotation's own extent takes in its line
    for number, box in enumerate(words):
        assert not any(box.overlaps(other) for other in words[:number]), names[number].get_text()


def test_frontier_without_peers_and_without_points():
    assert not any("others" in text for text in texts(plots.plot_frontier(POINTS)))
    with pytest.raises(ValueError, match="no points"):
        plots.plot_frontier(POINTS[:0])


def test_seeds_shows_every_seed_and_the_mean():
    figure = plots.plot_seeds({"s5": [99.4, 99.3], "dropout": [99.2]})
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["s5  99.35% (2)", "dropout  99.20% (1)"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] == [[99.4, 99.3], [99.2]]
    assert axes.get_xlabel().startswith("validation accuracy (%)")
    with pytest.raises(ValueError, match="at least one accuracy"):
        plots.plot_seeds({"s5": []})


def test_hardest_counts_networks_and_names_the_commonest_answer():
    images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5)
    mistakes = [{"3": 5, "1": 7}, {"3": 8}, {"3": 5}, {}]
    written = texts(plots.plot_hardest(images, labels, mistakes))
    assert written[:2] == ["3 → 5  3", "1 → 7  1"]
    assert any("What the most of 4 networks get wrong" in text for text in written)
    assert "1 → 7  1" not in texts(plots.plot_hardest(images, labels, mistakes, limit=1))
    with pytest.raises(ValueError, match="image 9 is named as a mistake, but there are 5 images"):
        plots.plot_hardest(images, labels, [{"9": 1}])
    with pytest.raises(ValueError, match="no networks"):
        plots.plot_hardest(images, labels, [])
