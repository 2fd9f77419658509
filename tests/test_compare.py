"""Two networks through the same recipe and seeds: what is trained, the verdict and the errors."""

import pandas as pd
import pytest

from s5.experiments import compare, sweep
from s5.experiments.ledger import append_trial
from s5.training.recipe import Recipe
from tests.utils import make_trial, read_strictly

# The worker processes import this file to find `stand_in`, so it must not import torch.

ACCURACY = {"s5": 99.4, "conv 4 8 / 8 gap": 99.0, "conv 8 / 8 gap": 99.4, "below_2k": 99.3}


def stand_in(variant: str, seed: int, changes: dict, accuracy: float = 0, precision: str = "float32", **_) -> dict:
    """A replacement for `run_trial`."""
    accuracy = accuracy or ACCURACY[variant] + seed % 3 / 100 * (2 if variant == "s5" else 1)
    about = {"variant": variant, "recipe": Recipe(**changes).as_dict(), "data": "mnist"}
    if variant == "below_2k":
        from s5.experiments.claims import KNOWN

        about["network"] = KNOWN[variant].network
    return make_trial(seed, accuracy, precision="bfloat16" if precision == "bfloat16" else "float32", **about)


@pytest.fixture
def stood_in(monkeypatch, sample, tmp_path):
    """Replaces training; returns the path of the own ledger."""
    monkeypatch.setattr("s5.experiments.trial.run_trial", stand_in)
    monkeypatch.setattr("s5.experiments.trial.load_data", lambda _: sample)
    monkeypatch.setattr("s5.training.device.pick_precision", lambda name, device: "float32" if name == "auto" else name)
    monkeypatch.setattr(sweep, "LEDGER", tmp_path / "main.jsonl")
    return tmp_path / "own.jsonl"


def test_what_is_recorded_is_taken_from_both_ledgers_and_the_rest_is_trained(stood_in, tmp_path):
    append_trial(stand_in("s5", 100, {}), tmp_path / "main.jsonl")
    append_trial(stand_in("conv 4 8 / 8 gap", 101, {}), stood_in)
    result = compare.compare("conv 4 8/8 GAP", seeds=[100, 101], device="cpu", workers=1, ledger=stood_in)
    trained = [(trial["variant"], trial["seed"]) for trial in read_strictly(stood_in)]
    assert trained == [("conv 4 8 / 8 gap", 101), ("conv 4 8 / 8 gap", 100), ("s5", 101)]
    assert list(result.table["Network"]) == ["conv 4 8 / 8 gap", "s5"]
    assert list(result.table["Seeds"]) == [2, 2]
    assert result.verdict.startswith("conv 4 8 / 8 gap is worse than s5: -0.4")
    assert "paired over 2 seeds" in result.verdict
    assert result.verdict in str(result)
    assert result.verdict in result._repr_html_()
    assert result.figure._repr_mimebundle_()[0]["image/png"].startswith(b"\x89PNG")


def test_both_are_trained_by_the_recipe_of_the_second(stood_in):
    compare.compare("s5", "conv 8 / 8 gap", [100], {"epochs": 3}, device="cpu", workers=1, ledger=stood_in)
    recipes = [trial["recipe"] for trial in read_strictly(stood_in)]
    assert recipes == [Recipe(epochs=3).as_dict()] * 2


def test_a_seed_that_is_given_twice_counts_once(stood_in):
    result = compare.compare("conv 8 / 8 gap", "s5", [100, 100], device="cpu", workers=1, ledger=stood_in)
    assert list(result.table["Seeds"]) == [1, 1]
    assert len(read_strictly(stood_in)) == 2


def test_of_fewer_epochs_the_same_share_is_without_augmentation(stood_in):
    compare.compare("s5", "below_2k", [100], {"epochs": 10}, device="cpu", workers=1, ledger=stood_in)
    own = {"own_changes": {"epochs": 5}, "device": "cpu", "workers": 1, "ledger": stood_in}
    compare.compare("s5", "below_2k", [100], {"epochs": 10}, **own)
    recipes = [trial["recipe"] for trial in read_strictly(stood_in)]
    shares = [(recipe["epochs"], recipe["epochs_without_augmentation"]) for recipe in recipes]
    assert shares == [(10, 2), (10, 2), (5, 1)]


def test_two_recipes_of_one_network_are_compared(stood_in, capsys):
    changes = {"changes": {"epochs": 3}, "own_changes": {"rotation": 0.0}}
    result = compare.compare("s5", "s5", [100, 101], **changes, device="cpu", workers=1, ledger=stood_in)
    assert [trial["recipe"]["rotation"] for trial in read_strictly(stood_in)] == [0.0, 10.0] * 2
    assert list(result.table["Network"]) == ["s5, rotation 10.0 → 0.0", "s5"]
    assert result.verdict.startswith("s5, rotation 10.0 → 0.0 against s5: +0.000 points on mnist validation images")
    assert result.verdict.endswith("from each of 2 seeds, so the noise between seeds is unknown. Use more seeds.")
    printed = capsys.readouterr().out
    assert "s5, rotation 10.0 → 0.0, seed 100: 99.42%" in printed, "the lines of the progress tell the two apart"
    assert "\ns5, seed 100: 99.42%" in printed
    with pytest.raises(ValueError, match="s5 is compared with itself"):
        compare.compare("s5", "s5", [100], own_changes={"rotation": 10.0}, ledger=stood_in)


def test_the_noise_is_named(stood_in):
    result = compare.compare("conv 8 / 8 gap", "s5", [100, 101, 102], device="cpu", workers=1, ledger=stood_in)
    start = "No difference beyond the noise between conv 8 / 8 gap and s5: -0.010 points on mnist validation images"
    assert result.verdict.startswith(start)
    result = compare.compare("conv 8 / 8 gap", "s5", [100], device="cpu", workers=1, ledger=stood_in)
    assert "from one seed, which decides nothing" in result.verdict


@pytest.mark.parametrize(("accuracy", "is_short"), [(60.0, True), (89.9, True), (90.0, False)])
def test_a_verdict_on_hardly_trained_networks_says_so(accuracy, is_short):
    own = [make_trial(seed, variant="s5", accuracy=accuracy) for seed in range(3)]
    others = [make_trial(seed, variant="wide", accuracy=accuracy - 9 - seed / 9) for seed in range(3)]
    verdict = compare.verdict(own, others)
    assert verdict.startswith("s5 is better than wide")
    assert verdict.endswith(" Neither gets 90% right: trained for longer, they may differ in another way.") == is_short


def test_a_failed_trial_is_an_error(stood_in, monkeypatch, capsys):
    monkeypatch.setattr("s5.experiments.trial.run_trial", fails)
    monkeypatch.setattr(compare, "USER_LEDGER", stood_in)
    assert compare.main(["conv 8 / 8 gap", "--seeds", "100", "--device", "cpu"]) == 1
    assert "compare: 2 of 2 trials failed" in capsys.readouterr().err


def fails(**_) -> dict:
    raise ValueError("no luck")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: NETWORK"),
        (["conv 4 q gap"], 'compare: in "conv 4 q gap", word 3'),
        (["missing.py:MyNet"], "missing.py cannot be read: No such file"),
        (["s5"], "s5 is compared with itself"),
        (["original", "s5"], "original and s5 are the same network, and the recipe of s5 would train both"),
        (["mine:MyNet"], "write a network of a file as FILE.py:NAME, not 'mine:MyNet'"),
        (["conv 4 gap", "CONV  4 GAP"], "conv 4 gap is compared with itself"),
        (["conv 4 gap", "--epochs", "0"], "epochs must be"),
        (["conv 4 gap", "--seeds", "x"], "seeds must be like"),
        (["conv 4 gap", "--workers", "0"], "--workers must be 1 or more"),
        (["conv 4 gap", "--device", "abacus"], "device must be"),
        (["conv 4 gap", "--figure", "/"], "argument --figure: / is a folder, not a file"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("compare: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("precision", ["auto", "float32"])
@pytest.mark.parametrize("ledger", ["main.jsonl", "own.jsonl"])
def test_trials_of_one_precision_are_compared(stood_in, tmp_path, precision, ledger):
    wrong = stand_in("s5", 100, {}, accuracy=50.0, precision="bfloat16")
    append_trial(wrong, tmp_path / ledger)
    options = {"device": "cpu", "workers": 1, "ledger": stood_in, "precision": precision}
    result = compare.compare("conv 8 / 8 gap", "s5", [100], **options)
    assert list(result.table["Mean"]) == ["99.410", "99.420"]


def test_the_result_is_printed_even_if_the_figure_cannot_be_saved(tmp_path, monkeypatch, capsys):
    found = compare.Comparison(pd.DataFrame(), "The verdict.", None)
    monkeypatch.setattr(compare, "compare", lambda **_: found)

    def full(figure, path):
        raise OSError(f"no space left for {path}")

    monkeypatch.setattr("s5.analysis.style.save_figure", full)
    assert compare.main(["conv 8 / 8 gap", "--figure", str(tmp_path / "f.png")]) == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("The verdict.\n")
    assert printed.err == f"compare: no space left for {tmp_path / 'f.png'}\n"


def test_no_seeds_are_refused():
    with pytest.raises(ValueError, match="nothing to run"):
        compare.compare("conv 8 / 8 gap", "s5", [])
