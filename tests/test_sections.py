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
from s5.reports.variant_map import VERDICTS, ancestors, map_table, path_to, plot_map
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


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


# --- The map ----------------------------------------------------------------------------------------------------------


def test_map_has_every_variant_after_its_parent_with_the_change_of_the_comparison_table(recorded):
    table = map_table(recorded)
    assert sorted(table["name"]) == sorted(VARIANTS)
    assert set(table["verdict"]) <= {"", *VERDICTS}
    places = {name: place for place, name in enumerate(table["name"])}
    compared = tables.comparison_table(recorded).set_index("Variant")
    for row in table[table["parent"] != ""].itertuples():
        assert row.depth == len(ancestors(row.name))
        assert places[row.parent] < places[row.name]
        beyond = {"fewer errors": "yes", "more errors": "yes"}.get(row.verdict, row.verdict)
        assert [f"{row.errors:+.0f}%", beyond] == list(compared.loc[row.name, ["Errors", "Beyond seed noise"]])


def test_map_writes_every_mean_and_interval(recorded):
    table = map_table(recorded)
    tree, changes = plot_map(table).axes
    assert texts(tree) == [f"{row.number}  {row.name}  {row.mean:.2f}% ({row.seeds})" for row in table.itertuples()]
    assert texts(changes)[:3] == ["-69% (-74 to -63)", "-13% (-26 to +2)", "-9% (-20 to +4)"]
    assert len(texts(changes)) == sum(table["parent"] != "")


@pytest.mark.parametrize("accuracies", [(99.0, 98.0), (60.0, 99.9), (99.9, 60.0)])
def test_map_of_a_few_trials_shows_all_of_each_interval(accuracies):
    own = [
        make_trial(seed, accuracy=accuracy + seed / 10, variant=name)
        for seed in (0, 1)
        for name, accuracy in zip(("sgd", "dropout"), accuracies, strict=True)
    ]
    figure = plot_map(map_table(own))
    figure.draw_without_rendering()
    assert figure.text_alternative().startswith("The way to the final model: ")
    changes = figure.axes[1]
    low, high = changes.get_xlim()
    (bar,) = (line.get_xdata() for line in changes.lines if len(set(line.get_xdata())) == 2)
    assert low <= min(bar) < max(bar) <= high
    (text,) = texts(plot_map(map_table(own[:2])).axes[1])
    assert "to" not in text  # one seed has no interval
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_map(map_table(own).iloc[:0])


def test_path_to_a_variant():
    assert path_to("fully_connected") == "**1 fully_connected**"
    assert path_to("original").endswith(" → 3 first_experiment → **4 original**")


# --- The drawing ------------------------------------------------------------------------------------------------------


def test_drawing_has_each_layer_with_its_parameters():
    figure = plot_network(Net())
    figure.draw_without_rendering()
    written = [text for axes in figure.axes for text in texts(axes)]
    assert {"44", "304", "1,184", "4,672", "11,600", "410", "4\n28×28", "40\n7×7"} <= set(written)
    assert written.count("max\npool") == 2


@pytest.mark.parametrize(
    "line", ["linear 24", "shared 8 ×1 / ×2 gdconv deskew 5 crop 2", f"conv {'2 ' * 30}gap", "separable 4 8 flat"]
)
def test_every_kind_of_network_can_be_drawn(line):
    network = grammar.parse(line)
    model = network.build().train()
    figure = plot_network(model)
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    if len(line) < 50:
        assert sum(int(text.replace(",", "")) for text in written[1::3] if text) == network.parameters
    else:
        assert "…" in written


# --- What a notebook shows --------------------------------------------------------------------------------------------


def test_table_and_folded_show_no_index_and_escape_text():
    frame = pd.DataFrame({"A": ["`<b>`"], "B": 1234}, index=[77])
    for text in (Table(frame)._repr_html_(), repr(Table(frame))):
        assert "77" not in text
        assert "`" not in text
        assert "1,234" in text
    folded = Folded("a < b", "1 < 2", frame)
    assert folded._repr_html_().startswith("<details><summary>a &lt; b</summary><pre>1 &lt; 2</pre><table")
    assert "&lt;b&gt;" in folded._repr_html_()
    assert repr(folded) == "a < b: open in a notebook"


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
    LiveFigure("sgd", 1, lambda history, title: pytest.fail("drawn"))([{}])


def test_epochs_without_evaluation_have_dashes():
    epoch = {"epoch": 1, "learning_rate": 0.1, "train_loss": 0.5, "train_accuracy": 90.0, "seconds": 1.0}
    table = epoch_table([epoch | {"eval_loss": None, "eval_accuracy": None}])
    assert list(table.iloc[0]) == ["1", "0.10000", "0.5000", "90.00", "–", "–", "1.0"]


# --- Sections ---------------------------------------------------------------------------------------------------------


def test_short_section_trains_and_leaves_one_figure_of_it(shown, recorded, small):
    section = Sections(validation_split(small), recorded, "short", seed=100, device="cpu")
    section("original")
    place, drawing, details, curves, epochs, result = shown
    assert place.data.startswith(f"{path_to('original')} · recorded runs: 20 epochs in ")
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
    assert section.histories["sgd"] == select(recorded, variant="sgd", seed=101)[0].curve
    assert "recorded run, seed 101" in shown[3].text_alternative()


def test_wrong_choices_are_refused(shown, recorded, small):
    for trials, there_are in ((recorded, "there are 100, 101, 102"), ([], "there are none")):
        with pytest.raises(ValueError, match=f"sgd has no recorded run of seed 7; {there_are}"):
            Sections(small, trials, "recorded", seed=7)("sgd")
    with pytest.raises(ValueError, match="RUNS must be one of recorded, short, full, not 'all'"):
        Sections(small, recorded, "all")
    assert shown == []


def test_result_is_one_row_that_names_a_collapsed_seed(recorded):
    assert result_table(recorded, "sgd")["Beyond seed noise"].tolist() == ["yes"]
    assert list(result_table(recorded, "fully_connected")) == ["Recorded runs", "Seeds", "Accuracy"]
    others = [trial for trial in recorded if (trial.variant, trial.seed) != ("sgd", 101)]
    failed = make_trial(101, 11.17, variant="sgd", data="mnist", precision="bfloat16")
    row = result_table([*others, failed], "sgd")
    assert row[["Seeds", "Collapsed"]].to_numpy().tolist() == [["2 of 3", "seed 101: 11.17%"]]
