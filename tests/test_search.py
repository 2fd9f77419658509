"""The search: what is drawn, the rounds, resuming, its figure."""

import re

import pytest
from matplotlib.text import Text

from s5.commands import search as command
from s5.experiments import search, sweep
from s5.experiments.figures import plot_search
from s5.experiments.trial import Trial
from s5.networks.grammar import parse
from tests.utils import make_trial, read_strictly, run_here

HERE = {"device": "cpu", "workers": 1}


def stand_in(variant: str, seed: int, changes: dict, **_) -> Trial:
    """A replacement for `run_trial`: the loss is the smaller, the more channels the network begins with."""
    channels = int(variant.split()[1])
    return make_trial(seed, 99.9, 1 / channels + seed / 1e6, changes, variant=variant, data="mnist")


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Replaces training; returns the path of the user's ledger."""
    monkeypatch.setattr(sweep, "run_trial", stand_in)
    monkeypatch.setattr(sweep, "run_locally", run_here)
    monkeypatch.setattr(sweep, "load_data", lambda *_, **__: None)
    monkeypatch.setattr(search, "pick_precision", lambda *_: "float32")  # which the stand-in returns
    return tmp_path / "ledger.jsonl"


def test_networks_are_different_and_within_the_budget():
    lines = search.draw_networks(2000, 30, seed=0)
    assert len(set(lines)) == 30
    assert all(search.SMALLEST_SHARE * 2000 <= parse(line).parameters < 2000 for line in lines)
    assert len({line.split()[0] for line in lines}) == 4, "every block"
    assert search.draw_networks(2000, 5, seed=0) == lines[:5] != search.draw_networks(2000, 5, seed=1)


def test_a_third_goes_on_for_three_times_as_long_and_the_last_from_several_seeds():
    first, last = [100], [100, 101, 102]
    assert search.rounds(60, 1) == [(60, 1, first), (20, 3, first), (6, 9, first), (3, 27, last)]
    assert search.rounds(2, 5) == [(2, 5, last)]


def test_the_best_of_each_round_goes_on_and_a_second_call_trains_nothing(path, capsys):
    found = search.search(2000, trials=12, ledger=path, **HERE)
    drawn = search.draw_networks(2000, 12, seed=0)
    assert int(found.best.split()[1]) == max(int(line.split()[1]) for line in drawn)
    assert len(read_strictly(path)) == 12 + 4 + 3 * 3
    assert found.table[["Epochs", "Seeds"]].to_numpy().tolist() == [[9, 3]] * 3
    assert list(found.table["Loss"]) == sorted(found.table["Loss"])
    assert {trial.split for trial in read_strictly(path)} == {"validation"}
    assert "Round 2: 4 networks, 3 epochs, 1 seed" in capsys.readouterr().out

    content = path.read_bytes()
    again = search.search(2000, trials=12, ledger=path, **HERE)
    assert path.read_bytes() == content
    assert again.table.equals(found.table)
    assert "12 already recorded, 0 to run" in capsys.readouterr().out


def test_a_network_whose_trial_fails_is_out_and_the_output_says_so(path, monkeypatch, capsys):
    def fail_for_one_block(variant: str, **trial) -> Trial:
        if variant.startswith("conv"):
            raise RuntimeError("no luck")
        return stand_in(variant, **trial)

    monkeypatch.setattr(sweep, "run_trial", fail_for_one_block)
    drawn = search.draw_networks(2000, 9, seed=0)
    failing = [line for line in drawn if line.startswith("conv")]
    found = search.search(2000, trials=9, ledger=path, **HERE)
    first = {trial.variant for trial in read_strictly(path) if trial.epochs == 1}
    assert first == {*drawn} - {*failing}
    assert found.best in first
    assert f"Out of the search, since a trial failed: {'; '.join(failing)}\n" in capsys.readouterr().out


def test_a_dry_run_trains_nothing(path, capsys):
    assert search.search(1000, trials=9, dry_run=True, ledger=path, device="cpu", workers=2) is None
    printed = capsys.readouterr().out
    assert "Round 1: 9 networks, 1 epoch, 1 seed" in printed
    assert all(f"  {line}" in printed for line in search.draw_networks(1000, 9, 0))
    assert re.search(r"about \d+ minutes with 2 at a time", printed)
    assert not path.exists()


# --- The figure -------------------------------------------------------------------------------------------------------


def searched(name: str, parameters: int, epochs: int, *losses: float) -> list[Trial]:
    """The trials of one network in a search, one per loss."""
    about = {"network": name, "parameters": parameters, "recipe": {"epochs": epochs}}
    return [make_trial(seed, loss=loss, **about) for seed, loss in enumerate(losses)]


def test_the_figure_shows_every_round_and_the_front_of_the_longest():
    first = [searched(f"conv {number} gap", 700 + number, 1, 1.0 - number / 10) for number in range(5)]
    longest = [("conv 9 gap", 750, 3, 0.4, 0.6), ("conv 8 gap", 760, 3, 0.7), ("best 7 gap", 800, 3, 0.3)]
    figure = plot_search([*first, *(searched(*each) for each in longest)])
    figure.draw_without_rendering()
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert {"1 epoch: 5 networks", "3 epochs: 3 networks", "best 7 gap"} <= texts
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[750, 0.5], [800, 0.3]]


def test_losses_have_ticks():
    for losses in ((0.03, 0.31), (0.0312, 0.0318), (6.0, 9.0)):
        axes = plot_search([searched("conv 4 gap", 900, 1, loss) for loss in losses]).axes[0]
        low, high = axes.get_ylim()
        assert 2 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 9, losses


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --below"),
        ("--below 0", "below and trials must be 1 or more, not 0 and 60"),
        ("--below few", "argument --below: invalid int value: 'few'"),
        ("--below 20 --dry-run", "only 0 of 60 networks were found below 20 parameters"),
        ("--below 2000 --trials 3 --epochs 0", "epochs must be a whole number from 1 to 1,000,000, not 0"),
        ("--below 2000 --figure tests", "argument --figure: tests is a folder, not a file"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(search, "DRAWS", 50)
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments.split())
    assert stopped.value.code == 2
    assert re.fullmatch(f"search: .*{message}.*\n", capsys.readouterr().err)


def test_the_command_prints_the_best_and_saves_the_figure(path, tmp_path, capsys):
    options = ["--below", "2000", "--trials", "3", "--ledger", str(path), "--device", "cpu"]
    assert command.main([*options, "--figure", str(tmp_path / "f.png")]) == 0
    assert "\nBest: " in capsys.readouterr().out
    assert (tmp_path / "f.png").exists()
