"""Two networks through the same recipe and seeds: what is trained, the verdict and the errors."""

import re

import pytest

from s5.commands import compare as command
from s5.experiments import compare, sweep
from s5.experiments.claims import CLAIMS
from s5.experiments.figures import plot_seeds
from s5.experiments.ledger import append_trial
from s5.experiments.trial import Trial
from tests.utils import make_trial, read_strictly, run_here

ACCURACY = {"s5": 99.4, "conv 4 8 / 8 gap": 99.0, "conv 8 / 8 gap": 99.4, "below_2k": 99.3}
HERE = {"device": "cpu", "workers": 1}


def stand_in(variant: str, seed: int, changes: dict | None = None, precision: str = "float32", **_) -> Trial:
    """A replacement for `run_trial`."""
    if variant == "conv 4 gap":
        raise ValueError("no luck")
    accuracy = ACCURACY[variant] + seed % 3 / 100 * (2 if variant == "s5" else 1)
    return make_trial(seed, accuracy, variant=variant, recipe=changes, data="mnist", precision=precision)


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Replaces training; returns the path of the user's ledger."""
    monkeypatch.setattr(sweep, "run_trial", stand_in)
    monkeypatch.setattr(sweep, "run_locally", run_here)
    monkeypatch.setattr(sweep, "load_data", lambda *_, **__: None)
    monkeypatch.setattr(compare, "pick_precision", lambda name, device: "float32" if name == "auto" else name)
    monkeypatch.setattr(compare, "LEDGER", tmp_path / "results.jsonl")
    return tmp_path / "runs.jsonl"


def test_what_is_recorded_is_taken_from_both_ledgers_and_the_rest_is_trained(path, tmp_path):
    append_trial(stand_in("s5", 100), tmp_path / "results.jsonl")
    append_trial(stand_in("conv 4 8 / 8 gap", 101), path)
    result = compare.compare("conv 4 8/8 GAP", seeds=[100, 101], ledger=path, **HERE)
    trained = [(trial.variant, trial.seed) for trial in read_strictly(path)]
    assert trained == [("conv 4 8 / 8 gap", 101), ("conv 4 8 / 8 gap", 100), ("s5", 101)]
    assert list(result.table.loc[1]) == ["s5", "18,214", "1,947,856", 20, 2, "99.430", "0.014", "1.0000"]
    assert result.verdict.startswith("conv 4 8 / 8 gap is worse than s5: -0.4")
    assert "paired over 2 seeds" in result.verdict
    assert result.verdict in str(result)
    assert result.verdict in result._repr_html_()
    assert result.figure._repr_mimebundle_()[0]["image/png"].startswith(b"\x89PNG")


def test_both_are_trained_by_the_recipe_of_the_second_once_from_each_seed(path):
    """Of fewer epochs the same share is without augmentation."""
    result = compare.compare("s5", "below_2k", [100, 100], {"epochs": 10}, ledger=path, **HERE)
    recipes = [trial.recipe for trial in read_strictly(path)]
    assert recipes == [CLAIMS["below_2k"].recipe.changed(epochs=10)] * 2
    assert (recipes[0].epochs, recipes[0].epochs_without_augmentation) == (10, 2)
    assert list(result.table["Seeds"]) == [1, 1]
    assert "from one seed, which decides nothing" in result.verdict


def test_two_recipes_of_one_network_are_compared(path):
    changes = {"changes": {"epochs": 3}, "own_changes": {"rotation": 0.0}}
    result = compare.compare("s5", "s5", [100, 101], **changes, ledger=path, **HERE)
    assert [trial.recipe.rotation for trial in read_strictly(path)] == [0.0, 10.0] * 2
    assert list(result.table["Network"]) == ["s5, rotation 10.0 → 0.0", "s5"]
    assert result.verdict.startswith("s5, rotation 10.0 → 0.0 against s5: +0.000 points on MNIST validation images")
    assert result.verdict.endswith("from each of 2 seeds, so the noise between seeds is unknown. Use more seeds.")
    with pytest.raises(ValueError, match="s5 and s5 are the same network, and one recipe would train both"):
        compare.compare("s5", "s5", [100], own_changes={"rotation": 10.0}, ledger=path)


def test_trials_of_one_precision_are_compared(path, tmp_path):
    append_trial(make_trial(100, 50.0, data="mnist", precision="bfloat16"), tmp_path / "results.jsonl")
    result = compare.compare("conv 8 / 8 gap", "s5", [100], ledger=path, **HERE)
    assert list(result.table["Mean"]) == ["99.410", "99.420"]


def trials(name: str, *accuracies: float) -> dict[str, list[Trial]]:
    return {name: [make_trial(seed, accuracy, variant=name) for seed, accuracy in enumerate(accuracies)]}


def test_a_verdict_names_the_noise_and_networks_that_are_hardly_trained():
    for own, others, start, end in (
        ((99.4, 99.3, 99.5), (98.4, 98.2, 98.6), "s5 is better than wide: +1.000 points on MNIST SAMPLE", " 3 seeds)."),
        ((99.4, 99.3, 99.5), (99.4, 99.4, 99.3), "No difference beyond the noise between s5 and wide", " 3 seeds)."),
        ((60.0, 60.0, 60.0), (51.0, 51.0, 51.1), "s5 is better than wide", " Neither gets 90% right: trained for long"),
    ):
        verdict = compare.verdict(trials("s5", *own) | trials("wide", *others))
        assert verdict.startswith(start)
        assert end in verdict


def test_seeds_are_dots_and_the_mean_is_in_the_name():
    (axes,) = plot_seeds({"s5": [99.4, 99.3], "dropout": [99.2]}).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["s5  99.35% (n=2)", "dropout  99.20% (n=1)"]
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] == [[99.4, 99.3], [99.2]]


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: NETWORK"),
        (["conv 4 q gap"], 'in "conv 4 q gap": '),
        (["conv 4 gap", "CONV  4 GAP"], "conv 4 gap and conv 4 gap are the same network"),
        (["original", "s5"], "original and s5 are the same network, and one recipe would train both"),
        (["conv 4 gap", "--epochs", "0"], "epochs must be"),
        (["conv 4 gap", "--figure", "/"], "argument --figure: / is a folder, not a file"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert re.fullmatch(f"compare: .*{message}.*\n", capsys.readouterr().err)


def test_the_command_prints_the_verdict_and_saves_the_figure(path, tmp_path, capsys):
    options = ["--seeds", "100-101", "--ledger", str(path), "--device", "cpu", "--epochs", "3"]
    assert command.main(["conv 8 / 8 gap", *options, "--figure", str(tmp_path / "f.png")]) == 0
    assert "between conv 8 / 8 gap and s5" in capsys.readouterr().out
    assert (tmp_path / "f.png").exists()
    assert {trial.recipe.epochs for trial in read_strictly(path)} == {3}
    assert command.main(["conv 4 gap", *options, "--figure", str(tmp_path / "g.png")]) == 1
    assert "compare: 2 of 4 trials failed" in capsys.readouterr().err
