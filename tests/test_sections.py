"""The sections of the experiments notebook, the map of the variants and the drawing of a network."""

import re

import matplotlib
import pandas as pd
import pytest

from s5.analysis import notebook
from s5.analysis.drawing import plot_network, plot_networks
from s5.analysis.notebook import Code, Folded, LiveFigure, Table
from s5.analysis.style import COLOURS
from s5.experiments.ledger import read_ledger, select
from s5.experiments.variants import VARIANTS
from s5.networks import grammar
from s5.reports import sections, tables
from s5.reports.plots import plot_variants
from s5.reports.sections import Sections
from s5.reports.variant_map import VERDICTS, ancestors, map_table, plot_map
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
    assert set(table["name"]) <= set(VARIANTS)
    assert set(table["verdict"]) <= {"", *VERDICTS}
    places = {name: place for place, name in enumerate(table["name"])}
    compared = tables.comparison_table(recorded).set_index("Variant")
    for row in table[table["verdict"] != ""].itertuples():
        assert row.depth == len(ancestors(row.name))
        assert places[row.parent] < places[row.name]
        beyond = {"fewer errors": "yes", "more errors": "yes"}.get(row.verdict, row.verdict)
        assert [f"{row.errors_mean:+.0f}%", beyond] == list(compared.loc[row.name, ["Errors", "Beyond seed noise"]])
    tree, changes = plot_map(table).axes
    assert texts(tree) == [f"{row.name}  {row.mean:.2f}% ({row.seeds})" for row in table.itertuples()]
    assert texts(changes)[0] == "-69% (-73 to -65)"
    assert len(texts(changes)) == len(table) - 1


def test_map_shows_all_of_an_interval_and_none_of_one_seed():
    pairs = [
        ("augmentation", 0, 60.0),
        ("augmentation", 1, 60.1),
        ("dropout", 0, 99.9),
        ("dropout", 1, 99.8),
        ("separable", 0, 60.0),
    ]
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
    assert "nowrap" in Table(pd.DataFrame({name: ["1"] for name in "abcdefgh"}))._repr_html_()
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


def test_short_section_trains_and_leaves_one_figure_of_each(shown, recorded, small):
    section = Sections(validation_split(small), recorded, "short", seed=100, device="cpu")
    section("no_batchnorm", "flattened")
    change, drawing, details, first, epochs, curves, _, result = shown
    assert change.data.splitlines()[0] == f"- **no_batchnorm**, from *augmentation*: {VARIANTS['no_batchnorm'].change}"
    assert "no_batchnorm: plain 4 8 / 16 32 / 40 gap, 18,114 parameters" in drawing.text_alternative()
    assert "augmentation: the same recipe" in re.sub("<[^<>]*>", "", details._repr_html_())
    assert first.text_alternative() == curves.text_alternative()
    assert curves.text_alternative().startswith("no_batchnorm 99.09%; flattened 99.53%")
    assert epochs.title.startswith("This run of no_batchnorm, seed 100: 2 epochs")
    assert list(result.frame["Variant"]) == ["no_batchnorm", "flattened"]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("original", "The learning rate during training"), ("augmentation", "before and after augmentation")],
)
def test_recorded_section_trains_nothing_and_draws_a_change_of_the_recipe(
    shown, recorded, small, monkeypatch, name, drawn
):
    monkeypatch.setattr(sections, "fit", None)
    Sections(validation_split(small), recorded)(name)
    _, change, _, curves, result = shown
    assert drawn in change.text_alternative()
    assert " errors against " in curves.text_alternative()
    assert list(result.frame["Seeds"]) == ["3"]


def test_drawing_marks_what_the_parent_does_not_have():
    build, parent = (VARIANTS[name].build for name in ("dropout", "augmentation"))
    (axes,) = plot_networks({"dropout": (build(), parent())}).axes
    kinds = [text.get_text() for text in axes.texts[::3]]
    orange = [matplotlib.colors.to_hex(patch.get_facecolor()).upper() == COLOURS[1] for patch in axes.patches]
    assert [kind for kind, is_new in zip(kinds, orange, strict=True) if is_new] == ["dropout\n0.05"] * 2
    assert kinds[:2] == ["image", "conv\n3×3 BN"]


def test_curves_show_a_collapsed_seed_outside_the_mean():
    histories = [[{"epoch": 1, "train_loss": 1.0, "eval_loss": 1.0, "eval_accuracy": each}] for each in (99.0, 11.0)]
    _, accuracy = plot_variants("", {"new": histories}, {"old": histories[:1]}, {"new": histories[0]}).axes
    assert [text.get_text() for text in accuracy.texts] == ["old 99.00%", "new 99.00%"]
    (inset,) = accuracy.child_axes
    assert sorted(line.get_ydata()[0] for line in inset.lines) == [11.0, 99.0, 99.0]
    assert not plot_variants("", {"new": histories[:1]}, {}, {}).axes[1].child_axes


def test_wrong_choices_are_refused(shown, recorded, small):
    with pytest.raises(ValueError, match="there is no recorded variant 'sgd'; there are fully_connected, "):
        Sections(small, recorded)("sgd")
    with pytest.raises(ValueError, match="RUNS must be one of recorded, short, full, not 'all'"):
        Sections(small, recorded, "all")


def test_ladder_counts_a_collapsed_seed_and_leaves_it_out_of_the_mean(recorded):
    table = tables.ladder_table(recorded).set_index("Variant")
    assert list(table.index) == [name for name in VARIANTS if select(recorded, variant=name)]
    assert list(table.loc["fully_connected", ["Parameters", "Receptive field", "Against"]]) == [19_090, 28, "–"]
    row = table.loc["no_batchnorm", ["Receptive field", "Seeds", "Accuracy (%)", "Against", "Beyond noise"]]
    assert list(row) == [24, "3", "99.09 ± 0.09", "augmentation", "yes"]
    failed = make_trial(103, 11.17, variant="no_batchnorm", network=VARIANTS["no_batchnorm"].network)
    row = tables.ladder_table([*recorded, failed], ["no_batchnorm"])
    assert row[["Seeds", "Accuracy (%)"]].to_numpy().tolist() == [["3 of 4", "99.09 ± 0.09"]]
