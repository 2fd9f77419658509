"""One trial and its line in the ledger."""

import json
import os
import pickle
import signal
import sys
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from safetensors import safe_open
from torch import nn

import helpers
from s5.experiments import ledger, trial
from s5.experiments.claims import find_variant
from s5.experiments.distillation import Ensemble
from s5.experiments.evidence import PRECISIONS
from s5.experiments.variants import VARIANTS
from s5.networks.user_code import Source
from s5.training.checkpoint import load_weights
from s5.training.mnist import validation_split
from tests.utils import devices, read_strictly, wait_for

ONE_EPOCH = {"epochs": 1}


def run_trial(data, split="validation", changes=ONE_EPOCH) -> dict:
    return trial.run_trial("s5", 3, split, changes, sample=True, device="cpu", data=data)


@pytest.fixture(scope="module")
def line(small):
    return run_trial(small)


def test_a_trial_is_a_line_of_the_ledger(line, tmp_path):
    assert list(line) == list(ledger.KEYS)
    assert json.loads(json.dumps(line)) == line
    assert pickle.loads(pickle.dumps(line)) == line
    assert ledger.append_trial(line, tmp_path / "ledger.jsonl")
    assert read_strictly(tmp_path / "ledger.jsonl") == [line]


def test_a_trial_records_its_settings_and_results(line):
    assert line["variant"] == "s5"
    assert line["recipe"] == VARIANTS["s5"].recipe.as_dict() | ONE_EPOCH
    assert (line["seed"], line["split"], line["epochs"], line["data"]) == (3, "validation", 1, "sample")
    assert line["parameters"] == 18_214
    assert 1_940_000 < line["macs"] < 1_960_000
    assert len(line["curve"]) == 1
    assert line["accuracy"] == line["best_accuracy"] == pytest.approx(line["curve"][-1]["eval_accuracy"])
    assert line["device"].startswith("cpu")
    assert line["seconds"] > 0


def test_mistakes_agree_with_the_accuracy(line, small):
    labels = validation_split(small).eval_labels
    assert len(labels) == 100, "a sixth of the 600 training images; the test images are 200"
    assert line["accuracy"] == pytest.approx(100 * (1 - len(line["mistakes"]) / len(labels)))
    for index, predicted in line["mistakes"].items():
        assert predicted in range(10)
        assert predicted != labels[int(index)]


def test_the_same_trial_twice_gives_the_same_result(line, small):
    def without_times(line: dict) -> dict:
        curve = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in line["curve"]]
        return line | {"curve": curve, "seconds": None, "time": None}

    assert without_times(run_trial(small)) == without_times(line)


def test_split_test_evaluates_on_the_test_images(small):
    line = run_trial(small, "test")
    assert line["split"] == "test"
    assert line["curve"][0]["eval_correct"] + len(line["mistakes"]) == len(small.eval_labels) == 200


def test_an_unknown_split_is_refused(small):
    with pytest.raises(ValueError, match="split must be validation or test, not 'valid'"):
        run_trial(small, "valid")


def test_changes_replace_fields_of_the_recipe(small):
    recipe = trial.planned_recipe("s5", {"epochs": 3, "optimizer": "sgd", "learning_rate": 0.05})
    assert (recipe.epochs, recipe.optimizer, recipe.learning_rate) == (3, "sgd", 0.05)
    assert recipe.momentum == trial.planned_recipe("s5").momentum
    assert run_trial(small, changes={"epochs": 1, "batch_size": 100})["recipe"]["batch_size"] == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horses": 3}, "a recipe has no horses; it has epochs, "),
        (5, r'changes must be a dict, e\.g\. \{"epochs": 5\}, not 5'),
        ({"nesterov": "maybe"}, "nesterov must be true or false, not 'maybe'"),
        ({"teacher": "nobody"}, "teacher must be a variant, .*s5.*, not 'nobody'"),
    ],
)
def test_bad_changes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        trial.planned_recipe("s5", changes)


def test_a_recipe_with_a_teacher_trains_with_the_distillation_loss(small, monkeypatch):
    class Always7(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 7), 10) * 20.0

    requested = []

    def load_teacher(recipe, data, device):
        requested.append((recipe.teacher, str(data), device))
        return Ensemble([Always7()])

    monkeypatch.setattr(trial, "load_teacher", load_teacher)
    changes = {"epochs": 2, "batch_size": 50, "teacher": "budget_1k", "teacher_weight": 1.0}
    line = run_trial(small, changes=changes)
    assert requested == [("budget_1k", str(validation_split(small)), "cpu")], "the student's own training images"
    assert set(line["mistakes"].values()) == {7}
    assert len(line["mistakes"]) == (validation_split(small).eval_labels != 7).sum()


def test_an_interrupted_trial_raises_keyboard_interrupt(small, interruptible):
    """`fit` returns the complete epochs on Ctrl-C; they must not enter the ledger as a result."""
    main_thread = threading.get_ident()

    def is_training() -> bool:
        frame = sys._current_frames()[main_thread]
        while frame and frame.f_code.co_name != "train":
            frame = frame.f_back
        return frame is not None

    def interrupt() -> None:
        wait_for(is_training)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_trial(small, changes={"epochs": 300})


def test_the_weights_that_a_trial_saves_are_those_it_was_scored_with(small, tmp_path):
    arguments = {"split": "test", "changes": ONE_EPOCH, "sample": True, "device": "cpu", "data": small}
    arguments |= {"precision": "float32", "weights": tmp_path / "new"}
    lines = [trial.run_trial("s5", 3, **arguments), *trial.run_trials("conv 4 / 8 gap", [3, 4], **arguments)]
    names = ["s5-seed3.safetensors", *(f"conv_4___8_gap-seed{seed}.safetensors" for seed in (3, 4))]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    for name, line in zip(names, lines, strict=True):
        path = tmp_path / "new" / name
        model = load_weights(find_variant(line["variant"]).build(), path)
        wrong = helpers.mistakes(small.eval_labels, helpers.predict(model, small.eval_images))
        assert line["mistakes"] == wrong
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["training"])
        assert metadata == {key: line[key] for key in ("data", "variant", "seed", "split")}


def test_files_of_weights_have_different_names_that_every_file_system_takes(tmp_path):
    lines = [
        "conv 4 / 8 gap",
        "conv 4 8 gap",
        "conv 4 / 8 flat",
        *(f"conv {'4096 ' * 60}{last} gap" for last in (1, 2)),
    ]
    paths = {trial.weights_path(tmp_path, line, seed) for line in lines for seed in (0, 1, 2**63 - 1)}
    assert len(paths) == 3 * len(lines)
    assert {path.parent for path in paths} == {tmp_path}
    for path in paths:
        path.touch()


OWN = Source(
    "MyNet",
    "class MyNet(nn.Sequential):\n"
    "    def __init__(self):\n"
    "        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(2704, 10))\n",
)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", ["s5", "below_500", OWN], ids=["s5", "below_500", "own"])
def test_trials_at_once_give_the_lines_of_each_seed(small, monkeypatch, variant, precision, device):
    monkeypatch.setattr(trial, "threads_for_idle_cores", nullcontext)  # the line names the threads
    arguments = {"changes": ONE_EPOCH, "sample": True, "device": device, "precision": precision, "data": small}
    lines = trial.run_trials(variant, [3, 4], "validation", **arguments)
    for line in lines:
        expected = trial.run_trial(variant, line["seed"], "validation", **arguments)
        assert line.keys() == expected.keys() == set(ledger.KEYS)
        assert line["accuracy"] == pytest.approx(expected["accuracy"], abs=2.0)
        assert line["curve"][-1]["eval_loss"] == pytest.approx(expected["curve"][-1]["eval_loss"], rel=0.02)
        for key in ("recipe", "parameters", "macs", "split", "precision", "device"):
            assert line[key] == expected[key]


def test_the_code_of_ones_own_network_goes_with_its_trial(small, tmp_path):
    source = Source("MyNet", "def MyNet():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n")
    run = partial(trial.run_trial, seed=3, split="validation", changes=ONE_EPOCH, sample=True, device="cpu", data=small)
    line = run(pickle.loads(pickle.dumps(source)))
    assert (line["variant"], line["network"], line["source"]) == (source.name, source.name, source.text)
    assert line["parameters"] == 7850
    assert ledger.append_trial(line, tmp_path / "ledger.jsonl")
    assert read_strictly(tmp_path / "ledger.jsonl") == [line]
    assert run("conv 4 gap")["network"] == "conv 4 gap"
    assert run("s5")["network"] == "Net"
