"""The figures of many runs: their texts, points and errors."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from matplotlib.text import Text

from s5.experiments.ledger import read_ledger
from s5.reports import plots, tables
from s5.reports.goals import BUDGETS
from s5.training.files import PEERS

NAN = float("nan")
POINTS = pd.DataFrame(
    [
        ("below_2k", "test", 1_900, False, 5, 99.2, 99.1, 99.3),
        ("below_1k", "test", 950, True, 2, 98.8, 98.7, 98.9),
        ("s5", "test", 18_214, False, 1, 99.41, NAN, NAN),
        ("worse", "test", 18_300, False, 3, 99.0, 98.9, 99.1),
        ("s5", "validation", 18_214, False, 3, 99.33, 99.2, 99.4),
        ("fully_connected", "validation", 19_090, False, 3, 97.0, 96.9, 97.1),
    ],
    columns=["name", "split", "parameters", "deskewed", "seeds", "mean", "low", "high"],
)


def texts(figure):
    """The texts of a figure and its legends."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def recorded():
    """The frontier of the ledger."""
    points = tables.frontier_points(tables.frontier_trials(read_ledger()))
    figure = plots.plot_frontier(points, pd.read_csv(PEERS))
    figure.draw_without_rendering()
    return figure


def test_frontier_labels_show_name_mean_and_number_of_seeds():
    figure = plots.plot_frontier(POINTS)
    written = texts(figure)
    labels = ["below_1k\n98.80% (n=2)", "below_2k\n99.20% (n=5)", "s5\n99.41% (n=1)", "worse\n99.00% (n=3)"]
    assert [text for text in written if "(n=" in text] == labels  # no validation runs
    assert "Mean test accuracy: 98.80% with 950 parameters, 99.41% with 18,214" in written
    assert any("mean over n seeds, last epoch, with 95% t-interval" in text for text in written)
    assert "99.4%" in written
    assert not any("others" in text for text in written)


def test_frontier_joins_the_points_that_no_smaller_one_equals():
    axes = plots.plot_frontier(POINTS).axes[0]
    bars, other_bars = axes.containers
    np.testing.assert_allclose(other_bars.lines[0].get_xydata(), [(18_300, 99.0)])
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [(950, 98.8), (1_900, 99.2), (18_214, 99.41)])
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(98.7, 98.9), (99.1, 99.3), (99.41, 99.41)])
    np.testing.assert_array_equal(axes.get_xticks(), BUDGETS)


def test_frontier_of_another_split():
    written = texts(plots.plot_frontier(POINTS, split="validation", threshold=None, title="Another title"))
    assert "s5\n99.33% (n=3)" in written
    assert "fully_connected\n97.00% (n=3)" in written
    assert "Another title" in written
    assert "99.4%" not in written
    assert any(text.startswith("validation accuracy (%)") for text in written)


def test_frontier_has_a_numbered_key_of_the_peers(recorded):
    peers = pd.read_csv(PEERS).sort_values("parameters")
    written = texts(recorded)
    positions = [written.index(name) for name in peers["name"]]
    assert positions == sorted(positions)
    for number, peer in enumerate(peers.itertuples(), 1):
        assert written.count(str(number)) == 2  # at the point and in the key
        assert f"{peer.parameters:,}" in written
        assert peer.made in written
    assert "99.37%" in written  # the last epoch of one of them
    assert "–" in written  # unknown


def test_frontier_draws_peers_at_their_last_epoch_and_much_larger_ones_at_the_edge(recorded):
    axes = recorded.axes[0]
    drawn = {line.get_marker(): [] for line in axes.lines}
    for line in axes.lines:
        drawn[line.get_marker()] += line.get_xydata().tolist()
    assert len(drawn["s"]) == 14
    assert [18_214, 99.37] in drawn["s"]  # not its best epoch, 99.44
    assert [697, 99.03] in drawn["s"]  # only its best epoch is known
    assert drawn[">"] == [[axes.get_xlim()[1], 99.19]]


@pytest.mark.parametrize("points", ["few", "recorded"])
def test_frontier_labels_do_not_overlap(points, recorded):
    figure = recorded if points == "recorded" else plots.plot_frontier(POINTS, pd.read_csv(PEERS))
    figure.draw_without_rendering()
    words = [text for axes in figure.axes for text in axes.texts if text.get_text() not in ("", "99.4%")]
    boxes = {text: Text.get_window_extent(text) for text in words}
    for first, second in combinations(words, 2):
        assert not boxes[first].overlaps(boxes[second]), (first.get_text(), second.get_text())
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes.values())


def test_frontier_without_points():
    with pytest.raises(ValueError, match="no points of the test split"):
        plots.plot_frontier(POINTS[POINTS["split"] == "validation"])


def test_seeds_are_dots_and_the_mean_is_in_the_name():
    figure = plots.plot_seeds({"s5": [99.4, 99.3], "dropout": [99.2]})
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["s5  99.35% (n=2)", "dropout  99.20% (n=1)"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] == [[99.4, 99.3], [99.2]]
    assert axes.get_xlabel().startswith("validation accuracy (%)")
    with pytest.raises(ValueError, match="at least one accuracy"):
        plots.plot_seeds({"s5": []})


def test_hardest_images_are_counted_with_their_most_common_prediction():
    images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5)
    mistakes = [{"3": 5, "1": 7}, {"3": 8}, {"3": 5}, {}]
    figure = plots.plot_hardest(images, labels, mistakes)
    assert [text.get_text() for text in figure.axes[0].texts] == ["3 → 5  3", "1 → 7  1"]
    assert any("most of 4 networks misclassify" in text for text in texts(figure))
    assert "1 → 7  1" not in texts(plots.plot_hardest(images, labels, mistakes, limit=1))
    with pytest.raises(ValueError, match="image 9 is listed as a mistake, but there are 5 images"):
        plots.plot_hardest(images, labels, [{"9": 1}])
    with pytest.raises(ValueError, match="no networks"):
        plots.plot_hardest(images, labels, [])


def searched(name, parameters, epochs, *losses):
    """The trials of one network in a search, one per loss."""
    return [
        {"network": name, "parameters": parameters, "epochs": epochs, "curve": [{"eval_loss": loss}]} for loss in losses
    ]


def test_a_search_shows_every_round_and_the_front_of_the_longest():
    groups = [
        *(searched(f"conv {number} gap", 700 + number, 1, 1.0 - number / 10) for number in range(5)),
        searched("conv 9 gap", 750, 3, 0.4, 0.6),
        searched("conv 8 gap", 760, 3, 0.7),
        searched("best 7 gap", 800, 3, 0.3),
    ]
    figure = plots.plot_search(groups)
    written = texts(figure)
    assert {"1 epoch: 5 networks", "3 epochs: 3 networks", "best 7 gap"} <= set(written)
    front = figure.axes[0].lines[-1]
    assert front.get_xydata().tolist() == [[750, 0.5], [800, 0.3]]
    assert figure.axes[0].get_xscale() == "linear"
    with pytest.raises(ValueError, match="no trials"):
        plots.plot_search([])


@pytest.mark.parametrize("losses", [(0.0312, 0.0318), (0.5, 0.5001), (6.0, 9.0)])
def test_a_search_whose_losses_are_alike_has_ticks(losses):
    groups = [searched(f"conv {index} gap", 900 + index, 1, loss) for index, loss in enumerate(losses, 3)]
    axes = plots.plot_search(groups).axes[0]
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 2


def test_networks_of_several_budgets_are_drawn_on_a_logarithmic_scale():
    groups = [searched("conv 4 gap", 900, 15, 0.1), *(searched("conv 9 gap", 19_000, 15, loss) for loss in (0.1, 0.2))]
    figure = plots.plot_search(groups)
    assert figure.axes[0].get_xscale() == "log"
    assert {"15 epochs: 2 networks", "20,000"} <= set(texts(figure))
