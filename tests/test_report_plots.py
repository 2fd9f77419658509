"""The figures of many runs: their texts, points and errors."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from s5.experiments.claims import BUDGETS
from s5.experiments.ledger import read_ledger
from s5.reports import plots, tables
from s5.training.files import PEERS

NAN = float("nan")
POINTS = pd.DataFrame(
    [
        ("below_2k", 1_900, False, 39.0, 5, 99.2, 99.1, 99.3),
        ("below_1k", 950, True, 23.4, 2, 98.8, 98.7, 98.9),
        ("s5", 18_214, False, 4.6, 1, 99.41, NAN, NAN),
        ("original", 18_300, False, NAN, 3, 99.0, 98.9, 99.1),
    ],
    columns=["name", "parameters", "deskewed", "minutes", "seeds", "mean", "low", "high"],
)
PEER_LIST = pd.read_csv(PEERS).sort_values("parameters")


def texts(figure):
    """The texts of a figure and its legends."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def recorded():
    """The frontier of the ledger."""
    return plots.plot_frontier(tables.frontier_points(read_ledger()), PEER_LIST)


def test_frontier_joins_the_points_that_no_smaller_one_equals():
    figure = plots.plot_frontier(POINTS, PEER_LIST)
    axes = figure.axes[0]
    bars, other_bars = axes.containers
    np.testing.assert_allclose(other_bars.lines[0].get_xydata(), [(18_300, 99.0)])
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [(950, 98.8), (1_900, 99.2), (18_214, 99.41)])
    ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(98.7, 98.9), (99.1, 99.3), (99.41, 99.41)])
    np.testing.assert_array_equal(axes.get_xticks(), BUDGETS)
    assert figure.text_alternative() == "Mean test accuracy: 98.80% with 950 parameters, 99.41% with 18,214"
    with pytest.raises(ValueError, match="no points"):
        plots.plot_frontier(POINTS[:0], PEER_LIST)


def test_frontier_has_a_table_of_all_networks_by_size(recorded):
    below = [text.get_text() for text in recorded.axes[1].texts]
    columns = np.array(below).reshape(len(plots.COLUMNS), -1)[:, 1:].T
    sizes = [int(row[2].replace(",", "")) for row in columns]
    assert sizes == sorted(sizes)
    rows = columns.tolist()
    assert ["●", "below_500", "496", "98.39%", "–", "mean of 5 seeds"] in rows
    for number, peer in enumerate(PEER_LIST.itertuples(), 1):
        (row,) = (row for row in rows if row[0] == str(number))
        assert [row[1], row[2], row[5]] == [peer.name, f"{peer.parameters:,}", peer.made]
    assert ["13", "original document (TSAI S5)", "18,214", "99.37%", "99.44%"] in [row[:5] for row in rows]


def test_frontier_draws_peers_at_their_last_epoch_and_much_larger_ones_at_the_edge(recorded):
    axes = recorded.axes[0]
    drawn = {line.get_marker(): [] for line in axes.lines}
    for line in axes.lines:
        drawn[line.get_marker()] += line.get_xydata().tolist()
    assert len(drawn["s"]) == len(PEER_LIST) - 1
    assert [18_214, 99.37] in drawn["s"]  # not its best epoch, 99.44
    assert [697, 99.03] in drawn["s"]  # only its best epoch is known
    assert drawn[">"] == [[axes.get_xlim()[1], 99.19]]


def test_frontier_texts_do_not_overlap(recorded):
    recorded.draw_without_rendering()
    words = [text for axes in recorded.axes for text in axes.texts if text.get_text() not in ("", "99.4%")]
    boxes = {text: Text.get_window_extent(text) for text in words}
    for first, second in combinations(words, 2):
        assert not boxes[first].overlaps(boxes[second]), (first.get_text(), second.get_text())
    width, height = recorded.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes.values())


def test_training_time_is_labelled_with_the_size_and_leaves_out_what_is_unknown():
    figure = plots.plot_training_time(POINTS)
    assert {"1,900", "950", "18,214"} <= set(texts(figure))
    assert "18,300" not in texts(figure)
    assert figure.text_alternative().startswith("Training time: 99.41% takes 5 minutes")
    with pytest.raises(ValueError, match="no points"):
        plots.plot_training_time(POINTS[3:])


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
