"""The sections of the experiments notebook, the map of the variants and the drawing of a network."""

import pandas as pd
import pytest

from helpers import Net
from s5.analysis import notebook
from s5.analysis.drawing import plot_network
from s5.analysis.notebook import Folded, LiveFigure, Table, epoch_table
from s5.experiments.ledger import read_ledger, select
from s5.experiments.variants import VARIANTS
from s5.networks import grammar
from s5.reports import sections, tables
from s5.reports.sections import Sections, result_table
from s5.reports.variant_map import VERDICTS, ancestors, map_table, place_in_words, plot_map
from s5.training.mnist import validation_split
from tests.utils import make_trial


@pytest.fixture(scope="module")
def recorded():
    return tables.current_trials("validation", read_ledger())


@pytest.fixture
def shown(monkeypatch):
    """What is displayed; an object that is updated is there once, with its last content."""
    found = []

    class Handle:
        def __init__(self):
            self.place = len(found) - 1

        def update(self, content):
            found[self.place] = content

    def display(content, display_id=None):
        found.append(content)
        return Handle() if display_id else None

    monkeypatch.setattr(sections, "display", display)
    monkeypatch.setattr(notebook, "display", display)
    return found


def texts(figure):
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# --- The map ----------------------------------------------------------------------------------------------------------


def test_map_has_every_variant_after_its_parent_with_the_change_of_the_comparison_table(recorded):
    table = map_table(recorded)
    assert sorted(table["name"]) == sorted(VARIANTS)
    places = {name: place for place, name in enumerate(table["name"])}
    compared = tables.comparison_table(recorded).set_index("Variant")
    for row in table.itertuples():
        assert row.depth == len(ancestors(row.name))
        if row.parent:
            assert places[row.parent] < places[row.name]
            assert f"{row.errors:+.0f}%" == compared.loc[row.name, "Errors"]
            beyond = {"fewer errors": "yes", "more errors": "yes"}.get(row.verdict, row.verdict)
            assert beyond == compared.loc[row.name, "Beyond seed noise"]
    assert set(table["verdict"]) <= {"", *VERDICTS}


def test_map_writes_every_mean_and_interval(recorded):
    table = map_table(recorded)
    tree, changes = plot_map(table).axes
    written = [text.get_text() for text in tree.texts if text.get_text()]
    assert written == [f"{row.number}  {row.name}  {row.mean:.2f}% ({row.seeds})" for row in table.itertuples()]
    intervals = [text.get_text() for text in changes.texts]
    assert intervals[:3] == ["-69% (-74 to -63)", "-13% (-26 to +2)", "-9% (-20 to +4)"]
    changed = table[table["parent"] != ""]
    known = [f" ({low:+.0f} to {high:+.0f})" for low, high in zip(changed.errors_low, changed.errors_high, strict=True)]
    assert intervals == [f"{errors:+.0f}%{interval}" for errors, interval in zip(changed.errors, known, strict=True)]


def test_one_seed_has_no_interval():
    own = [make_trial(0, accuracy=accuracy, variant=name) for name, accuracy in (("sgd", 99.0), ("dropout", 98.0))]
    _, changes = plot_map(map_table(own)).axes
    assert [text.get_text() for text in changes.texts] == ["+100%"]


def test_map_of_a_few_trials_and_of_none():
    own = [make_trial(seed, accuracy=99 + seed / 10, variant=name) for seed in (0, 1) for name in ("sgd", "dropout")]
    table = map_table(own)
    assert list(table["name"]) == ["sgd", "dropout"]
    assert plot_map(table).text_alternative().startswith("The way to the final model: ")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_map(map_table(own).iloc[:0])


@pytest.mark.parametrize("accuracies", [(60.0, 99.9), (99.9, 60.0)])
def test_map_of_a_huge_change(accuracies):
    own = [
        make_trial(seed, accuracy=accuracy + seed / 100, variant=name)
        for seed in range(3)
        for name, accuracy in zip(("sgd", "dropout"), accuracies, strict=True)
    ]
    _, changes = plot_map(map_table(own)).axes
    low, high = changes.get_xlim()
    (bar,) = (line.get_xdata() for line in changes.lines if len(set(line.get_xdata())) == 2)
    assert low < min(bar)
    assert max(bar) < high
    assert sum(low < tick < high for tick in changes.get_xticks()) >= 3


def test_place_of_a_variant():
    assert place_in_words("fully_connected") == "**1 fully_connected**"
    assert place_in_words("original").endswith(" → 3 first_experiment → **4 original**")


# --- The drawing ------------------------------------------------------------------------------------------------------


def test_drawing_has_each_layer_with_its_parameters():
    written = texts(plot_network(Net()))
    assert [text for text in written if text.replace(",", "").isdigit() and int(text.replace(",", "")) > 40] == [
        *("44", "304", "1,184", "4,672", "11,600", "410")
    ]
    assert sum(text == "max\npool" for text in written) == 2
    assert "4\n28×28" in written
    assert "40\n7×7" in written


@pytest.mark.parametrize(
    "line", ["linear 24", "shared 8 ×1 / ×2 gdconv deskew 5 crop 2", f"conv {'2 ' * 30}gap", "separable 4 8 flat"]
)
def test_every_kind_of_network_can_be_drawn(line):
    network = grammar.parse(line)
    model = network.build().train()
    written = texts(plot_network(model))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    if len(line) < 50:
        numbers = [int(text.replace(",", "")) for text in written[1::3] if text]
        assert sum(numbers) == network.parameters
    else:
        assert "…" in written


# --- Sections ---------------------------------------------------------------------------------------------------------


def test_table_and_folded_show_no_index_and_escape_text():
    frame = pd.DataFrame({"A": ["`<b>`"], "B": 1234}, index=[77])
    assert "77" not in Table(frame)._repr_html_() + repr(Table(frame))
    assert "1,234" in Table(frame)._repr_html_()
    assert "1,234" in repr(Table(frame))
    assert "`" not in repr(Table(frame))
    folded = Folded("a < b", "1 < 2", frame)
    assert folded._repr_html_().startswith("<details><summary>a &lt; b</summary><pre>1 &lt; 2</pre><table")
    assert "&lt;b&gt;" in folded._repr_html_()
    assert repr(folded) == "a < b: open in a notebook"


def test_short_section_trains_and_leaves_one_figure_of_it(shown, recorded, small):
    section = Sections(validation_split(small), recorded, "short", seed=100, device="cpu")
    section("original")
    place, drawing, details, curves, epochs, result = shown
    assert place.data.startswith(f"{place_in_words('original')} · recorded runs: 20 epochs in ")
    assert drawing.text_alternative().startswith("Net: 18,214 parameters")
    assert "class Net" in details._repr_html_()
    assert "this run, seed 100" in curves.text_alternative()
    assert "█" not in curves.text_alternative()
    assert len(section.histories["original"]) == sections.SHORT
    assert epochs.title.startswith("All 2 epochs")
    assert result.frame["Recorded runs"].item() == "original"


def test_recorded_section_trains_nothing(shown, recorded, small, monkeypatch):
    monkeypatch.setattr(sections, "fit", None)
    section = Sections(validation_split(small), recorded, "recorded", seed=101)
    section("sgd")
    assert section.histories["sgd"] == select(recorded, variant="sgd", seed=101)[0]["curve"]
    assert "recorded run, seed 101" in shown[3].text_alternative()


@pytest.mark.parametrize(("trials", "there_are"), [(True, "there are 100, 101, 102"), (False, "there are none")])
def test_a_seed_without_a_recorded_run_is_refused(shown, recorded, small, trials, there_are):
    section = Sections(small, recorded if trials else [], "recorded", seed=7)
    with pytest.raises(ValueError, match=f"sgd has no recorded run of seed 7; {there_are}"):
        section("sgd")
    assert shown == []


def test_wrong_choice_of_runs_is_refused(recorded, small):
    with pytest.raises(ValueError, match="RUNS must be one of recorded, short, full, not 'all'"):
        Sections(small, recorded, "all")


def test_live_figure_counts_down(shown, monkeypatch):
    monkeypatch.setattr(notebook, "SECONDS_BETWEEN", 0)
    titles = []
    live = LiveFigure("sgd", 4, lambda history, title: titles.append(title) or title)
    for done in range(1, 5):
        live([{}] * done)
    assert titles[1].startswith(f"sgd  {'█' * 10}{'░' * 10}  2 of 4 epochs, 0:0")
    assert titles[3] == ""
    assert shown == [""]


def test_live_figure_leaves_out_epochs_that_follow_at_once(shown):
    drawn = []
    live = LiveFigure("sgd", 4, lambda history, title: drawn.append(len(history)))
    for done in range(1, 5):
        live([{}] * done)
    assert drawn == [4]


def test_live_figure_outside_a_notebook_draws_nothing(capsys):
    LiveFigure("sgd", 1, lambda history, title: None)([{}])


def test_result_is_one_row(recorded):
    row = result_table(recorded, "sgd")
    assert len(row) == 1
    assert row["Beyond seed noise"].item() == "yes"
    failed = select(recorded, variant="sgd", seed=101)[0] | {"accuracy": 11.17}
    row = result_table(
        [trial for trial in recorded if trial["variant"] != "sgd" or trial["seed"] != 101] + [failed], "sgd"
    )
    assert row[["Seeds", "Collapsed"]].values.tolist() == [["2 of 3", "seed 101: 11.17%"]]
    assert list(result_table(recorded, "fully_connected")) == ["Recorded runs", "Seeds", "Accuracy"]


def test_epochs_without_evaluation_have_dashes():
    epoch = {"epoch": 1, "learning_rate": 0.1, "train_loss": 0.5, "train_accuracy": 90.0, "seconds": 1.0}
    table = epoch_table([epoch | {"eval_loss": None, "eval_accuracy": None}])
    assert list(table.iloc[0]) == ["1", "0.10000", "0.5000", "90.00", "–", "–", "1.0"]
