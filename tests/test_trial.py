"""One trial: what cannot be is refused, and what a training records."""

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers
from s5.experiments import trial
from s5.experiments.claims import CLAIMS, find_variant
from s5.experiments.distillation import Ensemble
from s5.experiments.ledger import append_trial
from s5.experiments.trial import Trial
from s5.experiments.variants import VARIANTS
from s5.networks.grammar import NetworkError
from s5.networks.user_code import from_object
from s5.training.checkpoint import load_weights
from s5.training.mnist import validation_split
from tests.utils import make_trial, read_strictly


def run_trial(data, variant="s5", split="validation", changes=None, **options) -> Trial:
    here = {"device": "cpu", "threads": 1, "loaded": data}
    return trial.run_trial(variant, 3, split, {"epochs": 1} | (changes or {}), **here, **options)


@pytest.fixture(scope="module")
def trained(small):
    return run_trial(small)


# --- The record -------------------------------------------------------------------------------------------------------


def test_a_trial_that_cannot_be_is_refused():
    for name, value, message in (
        ("seed", None, "seed must be of the type int, not None"),
        ("parameters", True, "parameters must be of the type int"),
        ("split", "valid", "split must be validation or test, not 'valid'"),
        ("epochs", 3, "20 epochs by the recipe, 20 by the curve, and 3 stated"),
        ("curve", [], "20 epochs by the recipe, 0 by the curve"),
        ("accuracy", 99.5, "the accuracy is 99.5, and 99.4 by the curve"),
        ("best_accuracy", 99.5, "the accuracy is 99.5, and 99.4 by the curve"),
        ("mistakes", {"7": 3}, "the accuracy is 99.4, but 1 of 995 are mistakes"),
        ("data", "mnist", "right answers and mistakes are 1,000 images, not 10,000"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(make_trial(), **{name: value})


def test_a_trial_is_a_line_of_the_ledger(trained, tmp_path):
    append_trial(trained, tmp_path / "ledger.jsonl")
    assert read_strictly(tmp_path / "ledger.jsonl") == [trained]
    assert pickle.loads(pickle.dumps(trained)) == trained


def test_a_claim_counts_the_trials_of_its_seeds_and_precision():
    claim = CLAIMS["below_500"]
    about = {"variant": claim.name, "network": claim.network, "recipe": claim.recipe.as_dict()}
    about |= {"split": "test", "data": "mnist", "precision": claim.precision}
    trials = [make_trial(seed, **about) for seed in (21, 20, 99)]
    others = [make_trial(22, **about | change) for change in ({"precision": "float32"}, {"split": "validation"})]
    assert [each.seed for each in claim.trials([*trials, *others])] == [20, 21]


# --- The training -----------------------------------------------------------------------------------------------------


def test_a_trial_records_its_settings_and_results(trained, small):
    assert (trained.variant, trained.network, trained.source) == ("s5", "Net", "")
    assert trained.recipe == VARIANTS["s5"].recipe.changed(epochs=1)
    assert (trained.seed, trained.split, trained.epochs, trained.data) == (3, "validation", 1, "sample")
    assert trained.parameters == 18_214
    assert 1_940_000 < trained.macs < 1_960_000
    assert trained.accuracy == trained.best_accuracy == pytest.approx(trained.curve[-1]["eval_accuracy"])
    assert trained.device.startswith("cpu")
    assert trained.device.endswith("1 thread")
    assert trained.seconds > 0
    labels = validation_split(small).eval_labels
    assert len(labels) == 100, "a sixth of the 600 training images; the test images are 200"
    assert trained.accuracy == pytest.approx(100 * (1 - len(trained.mistakes) / len(labels)))
    assert all(predicted != labels[int(index)] for index, predicted in trained.mistakes.items())


def test_split_test_evaluates_on_the_test_images_and_any_other_word_is_refused(small):
    tested = run_trial(small, split="test")
    assert tested.split == "test"
    assert tested.curve[0]["eval_correct"] + len(tested.mistakes) == len(small.eval_labels) == 200
    with pytest.raises(ValueError, match="split must be validation or test, not 'valid'"):
        run_trial(small, split="valid")


def test_a_recipe_with_a_teacher_trains_with_the_distillation_loss(small, monkeypatch):
    class Always7(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 7), 10) * 20.0

    taught = []
    monkeypatch.setattr(trial, "load_teacher", lambda *arguments: taught.append(arguments) or Ensemble([Always7()]))
    student = run_trial(small, changes={"batch_size": 50, "teacher": "budget_1k", "teacher_weight": 1.0})
    assert str(taught[0][1]) == str(validation_split(small)), "the student's own training images"
    assert set(student.mistakes.values()) == {7}


def test_an_interrupted_trial_raises_keyboard_interrupt(small, monkeypatch):
    monkeypatch.setattr(trial, "fit", lambda *_, **__: [])  # the complete epochs, as after Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        run_trial(small)


def test_the_weights_that_a_trial_saves_are_those_it_was_scored_with(small, tmp_path):
    scored = run_trial(small, "conv 4 / 8 gap", "test", precision="float32", weights=tmp_path / "new")
    (path,) = (tmp_path / "new").iterdir()
    assert path.name == "conv_4___8_gap-seed3.safetensors"
    model = load_weights(find_variant("conv 4 / 8 gap").build(), path)
    assert scored.mistakes == helpers.mistakes(small.eval_labels, helpers.predict(model, small.eval_images))


def small_network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_the_code_of_a_users_network_goes_with_its_trial(small):
    source = from_object(small_network)
    of_user = run_trial(small, pickle.loads(pickle.dumps(source)))
    assert (of_user.variant, of_user.network, of_user.source) == (source.name, source.name, source.text)
    assert of_user.parameters == 7850


def test_a_network_is_found_by_name_line_file_or_class():
    assert find_variant("augmentation") is VARIANTS["augmentation"]
    assert find_variant("CONV 4  gap").name == "conv 4 gap"
    assert find_variant(small_network).name.startswith("small_network@")
    for network, message in (
        ("Conv 4  q gap", 'in "Conv 4 q gap": "q" is no channel count .*'),
        ("below_2K", 'in "below_2K": .*; did you mean below_2k or '),
        ("resnet18", 'in "resnet18": .*; it is no variant either'),
        ("missing.py:MyNet", "there is no file missing.py"),
        (small_network(), "not a network: write Sequential, not Sequential"),
    ):
        with pytest.raises(NetworkError, match=message):
            find_variant(network)
