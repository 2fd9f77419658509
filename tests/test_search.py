"""The search: what is drawn, the rounds, resuming, and a real one on the sample."""

import os
import signal
import statistics

import pytest

from s5.experiments import search
from s5.experiments.ledger import mean_loss
from s5.training.recipe import Recipe
from tests.utils import make_trial, read_strictly

# The worker processes import this file to find `stand_in`, so it must not import torch.


def stand_in(variant: str, seed: int, changes: dict, **_) -> dict:
    """A replacement for `run_trial`: the loss is the smaller, the more channels the network begins with."""
    channels = int(variant.split()[1])
    about = {"variant": variant, "network": variant, "recipe": Recipe(**changes).as_dict(), "data": "mnist"}
    return make_trial(seed, accuracy=99.9, loss=1 / channels + seed / 1e6, **about)


@pytest.mark.parametrize("below", [500, 2_000, 20_000])
def test_networks_are_different_and_within_the_budget(below):
    from s5.networks.grammar import parse

    lines = search.draw_networks(below, 30, seed=0)
    assert len(set(lines)) == 30
    assert all(search.SMALLEST_SHARE * below <= parse(line).parameters < below for line in lines)
    assert len({line.split()[0] for line in lines}) == 4, "every block"
    assert search.draw_networks(below, 30, seed=0) == lines
    assert search.draw_networks(below, 30, seed=1) != lines


def test_a_third_goes_on_for_three_times_as_long_and_the_last_from_several_seeds():
    plan = [(each.networks, each.epochs, len(each.seeds)) for each in search.rounds(60, 1)]
    assert plan == [(60, 1, 1), (20, 3, 1), (6, 9, 1), (3, 27, 3)]
    assert [(each.networks, each.epochs, len(each.seeds)) for each in search.rounds(2, 5)] == [(2, 5, 3)]


@pytest.fixture
def stood_in(monkeypatch, sample):
    monkeypatch.setattr("s5.experiments.trial.run_trial", stand_in)
    monkeypatch.setattr("s5.experiments.trial.load_data", lambda _: sample)
    monkeypatch.setattr("s5.training.device.pick_precision", lambda *_: "float32")  # which the stand-in returns


def test_the_best_of_each_round_goes_on_and_a_second_call_trains_nothing(stood_in, tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    found = search.search(2000, trials=12, ledger=path, device="cpu", workers=1)
    drawn = search.draw_networks(2000, 12, seed=0)
    channels = sorted((int(line.split()[1]) for line in drawn), reverse=True)
    assert int(found.best.split()[1]) == channels[0]
    assert len(read_strictly(path)) == 12 + 4 + 3 * 3
    assert list(found.table["Seeds"]) == [3, 3, 3]
    assert list(found.table["Epochs"]) == [9, 9, 9]
    assert list(found.table["Loss"]) == sorted(found.table["Loss"])
    assert {trial["split"] for trial in read_strictly(path)} == {"validation"}
    assert "Round 2 of 3: 4 networks, 3 epochs, 1 seed" in capsys.readouterr().out

    content = path.read_bytes()
    again = search.search(2000, trials=12, ledger=path, device="cpu", workers=1)
    assert path.read_bytes() == content
    assert again.table.equals(found.table)
    assert "12 already in ledger.jsonl, 0 to run" in capsys.readouterr().out


def test_a_learning_rate_can_be_drawn_for_each_network(stood_in, tmp_path):
    path = tmp_path / "ledger.jsonl"
    found = search.search(2000, trials=9, vary_rate=True, ledger=path, device="cpu", workers=1)
    rates = {}
    for trial in read_strictly(path):
        rates.setdefault(trial["variant"], set()).add(trial["recipe"]["learning_rate"])
    assert all(len(each) == 1 for each in rates.values()), "the same in all rounds"
    assert len(set().union(*rates.values())) > 5
    assert all(search.RATES[0] <= rate <= search.RATES[1] for (rate,) in rates.values())
    assert {found.table["Learning rate"][0]} == rates[found.best]


def test_dry_run_trains_nothing(tmp_path, capsys):
    path = tmp_path / "ledger.jsonl"
    assert search.search(1000, trials=9, dry_run=True, ledger=path, device="cpu", workers=2) is None
    printed = capsys.readouterr().out
    assert "Round 1: 9 networks, 1 epoch, 1 seed" in printed
    assert all(f"  {line}" in printed for line in search.draw_networks(1000, 9, 0))
    assert "minutes on MNIST with 2 at a time" in printed
    assert not path.exists()


def test_a_search_on_the_sample_finds_a_better_network_than_the_median(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "SEEDS", [100])
    monkeypatch.setattr(search, "FINALISTS", 2)
    path = tmp_path / "ledger.jsonl"
    found = search.search(600, trials=5, sample=True, device="cpu", ledger=path, workers=1)
    first = {trial["variant"]: mean_loss([trial]) for trial in read_strictly(path) if trial["epochs"] == 1}
    assert len(first) == 5
    assert first[found.best] < statistics.median(first.values())


@pytest.mark.parametrize("wrong", [{"trials": 2.5}, {"epochs": 1.5}, {"seed": None}, {"below": "2000"}], ids=str)
def test_wrong_arguments_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
        search.search(**{"below": 2000, "ledger": tmp_path / "ledger.jsonl"} | wrong)


def dying_stand_in(variant: str, **trial) -> dict:
    """A replacement for `run_trial` that kills its process for one block."""
    if variant.startswith("conv"):
        os.kill(os.getpid(), signal.SIGKILL)
    return stand_in(variant, **trial)


def test_a_process_that_dies_costs_its_network_only_and_the_output_says_so(stood_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("s5.experiments.trial.run_trial", dying_stand_in)
    drawn = search.draw_networks(2000, 9, seed=0)
    dying = [line for line in drawn if line.startswith("conv")]
    assert 0 < len(dying) < len(drawn)
    path = tmp_path / "ledger.jsonl"
    found = search.search(2000, trials=9, ledger=path, device="cpu", workers=2)
    first = {trial["variant"] for trial in read_strictly(path) if trial["epochs"] == 1}
    assert first == {*drawn} - {*dying}
    assert found.best in first
    assert f"Out of the search, since a trial failed: {'; '.join(dying)}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --below"),
        ("--below 0", "below must be a whole number from 1 to 1,000,000, not 0"),
        ("--below 1" + 400 * "0", "below must be a whole number from 1 to 1,000,000, not 1000"),
        ("--below few", "argument --below: invalid int value: 'few'"),
        ("--below 2000 --trials 0", "trials must be a whole number from 1 to 10,000, not 0"),
        ("--below 2000 --epochs 0", "epochs must be a whole number from 1 to 100, not 0"),
        ("--below 2000 --epochs 99999999999", "epochs must be a whole number from 1 to 100, not 99999999999"),
        ("--below 2000 --workers 0", "workers must be a whole number, 1 or more, not 0"),
        ("--below 2000 --seed -1", "seed must be a whole number, 0 or more"),
        ("--below 2000 --ray=", "ray must be auto, local or a cluster's address"),
        ("--below 2000 --figure tests", "argument --figure: tests is a folder, not a file"),
        ("--below 2000 --figure " + 300 * "n", "--figure: the name is too long: nnn"),
        ("--below 2000 --device abacus", "device must be auto, cpu, cuda or mps, not 'abacus'"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        search.main(arguments.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("search: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_budget_that_no_network_fits_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(search, "DRAWS", 50)
    assert search.main(["--below", "20", "--dry-run"]) == 1
    assert capsys.readouterr().err == "search: only 0 of 60 networks were found below 20 parameters\n"
