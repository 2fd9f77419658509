"""The sections of the experiments notebook, the map of the variants and the drawing of a network."""

import re

import pandas as pd
import pytest

from s5.analysis import notebook
from s5.analysis.drawing import plot_network
from s5.analysis.notebook import Code, Folded, LiveFigure, Table
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


# --- The map and the drawing ------------------------------------------------------------------------------------------


def test_map_has_every_variant_after_its_parent_with_the_change_of_the_comparison_table(recorded):
    table = map_table(recorded)
    assert sorted(table["name"]) == sorted(VARIANTS)
    assert set(table["verdict"]) <= {"", *VERDICTS}
    places = {name: place for place, name in enumerate(table["name"])}
    compared = tables.comparison_table(recorded).set_index("Variant")
    for row in table[table["verdict"] != ""].itertuples():
        assert row.depth == len(ancestors(row.name))
        assert places[row.parent] < places[row.name]
        beyond = {"fewer errors": "yes", "more errors": "yes"}.get(row.verdict, row.verdict)
        assert [f"{row.errors_mean:+.0f}%", beyond] == list(compared.loc[row.name, ["Errors", "Beyond seed noise"]])
    tree, changes = plot_map(table).axes
    assert texts(tree) == [f"{row.number}  {row.name}  {row.mean:.2f}% ({row.seeds})" for row in table.itertuples()]
    assert texts(changes)[:3] == ["-69% (-74 to -63)", "-13% (-26 to +2)", "-9% (-20 to +4)"]
    assert len(texts(changes)) == len(table) - 1


def test_map_shows_all_of_an_interval_and_none_of_one_seed():
    pairs = [("sgd", 0, 60.0), ("sgd", 1, 60.1), ("dropout", 0, 99.9), ("dropout", 1, 99.8), ("separable", 0, 60.0)]
    own = [make_trial(seed, accuracy, variant=name) for name, seed, accuracy in pairs]
    _, changes = plot_map(map_table(own)).axes
    low, high = changes.get_xlim()
    bar = next(line.get_xdata() for line in changes.lines if len(line.get_xdata()) == 2)  # of dropout, the first
    assert low <= min(bar) < max(bar) <= high
    assert " to " in texts(changes)[0]
    assert texts(changes)[1] == "+0%"


@pytest.mark.parametrize("line", ["linear 24", "shared 8 ×1 / ×2 gdconv deskew 5 crop 2", "separable 4 8 flat"])
def test_every_kind_of_network_can_be_drawn(line):
    network = grammar.parse(line)
    model = network.build().train()
    (axes,) = plot_network(model).axes
    assert model.training
    assert sum(int(text.get_text().replace(",", "") or 0) for text in axes.texts[1::3]) == network.parameters


# --- What a notebook shows --------------------------------------------------------------------------------------------


def test_table_and_folded_show_no_index_and_escape_text():
    frame = pd.DataFrame({"A": ["`<b>`"], "B": 1234}, index=[77])
    for text in (Table(frame)._repr_html_(), repr(Table(frame))):
        assert "77" not in text
        assert "`" not in text
        assert "1,234" in text
    assert '<td style="text-align: left">&lt;b&gt;</td>' in Table(frame)._repr_html_()
    assert '<td style="text-align: right">1,234</td>' in Table(frame)._repr_html_()
    folded = re.sub("<[^<>]*>", "", Folded("a < b", "1 < 2", Code("if a < b:"), frame)._repr_html_())
    assert " ".join(folded.split()) == "a &lt; b1 &lt; 2if a &lt; b: A B &lt;b&gt; 1,234"


@pytest.mark.parametrize(("pause", "drawn"), [(0, [1, 2, 3, 4]), (60, [4])])
def test_live_figure_counts_down_and_leaves_out_epochs_that_follow_at_once(shown, monkeypatch, pause, drawn):
    monkeypatch.setattr(notebook, "SECONDS_BETWEEN", pause)
    titles = {}
    live = LiveFigure("sgd", 4, lambda history, title: titles.setdefault(len(history), title))
    for done in range(1, 5):
        live([{}] * done)
    assert list(titles) == drawn
    assert 2 not in drawn or titles[2].startswith(f"sgd  {'█' * 10}{'░' * 10}  2 of 4 epochs, 0:0")
    assert shown == [titles[4]] == [""]


# --- Sections ---------------------------------------------------------------------------------------------------------


def test_short_section_trains_and_leaves_one_figure_of_it(shown, recorded, small):
    section = Sections(validation_split(small), recorded, "short", seed=100, device="cpu")
    section("original")
    place, drawing, details, curves, epochs, result = shown
    assert place.data.startswith(f"{path_to('original')} · recorded runs: 20 epochs in ")
    assert drawing.text_alternative().startswith("Net: 18,214 parameters")
    assert "class Net" in re.sub("<[^<>]*>", "", details._repr_html_())
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
    with pytest.raises(ValueError, match="sgd has no recorded run of seed 7; there are 100, 101, 102"):
        Sections(small, recorded, "recorded", seed=7)("sgd")
    with pytest.raises(ValueError, match="RUNS must be one of recorded, short, full, not 'all'"):
        Sections(small, recorded, "all")


def test_result_is_one_row_that_names_a_collapsed_seed(recorded):
    assert result_table(recorded, "sgd")["Beyond seed noise"].tolist() == ["yes"]
    assert list(result_table(recorded, "fully_connected")) == ["Recorded runs", "Seeds", "Accuracy"]
    others = [trial for trial in recorded if (trial.variant, trial.seed) != ("sgd", 101)]
    failed = make_trial(101, 11.17, variant="sgd", data="mnist", precision="bfloat16")
    row = result_table([*others, failed], "sgd")
    assert row[["Seeds", "Collapsed"]].to_numpy().tolist() == [["2 of 3", "seed 101: 11.17%"]]
