"""The ledger: appending and reading, faulty lines, several writers."""

import hashlib
import json
from multiprocessing import get_context

import pytest

from s5.experiments import ledger
from s5.experiments.ledger import LedgerWarning, append_trial, read_ledger
from s5.training.files import LEDGER
from s5.training.mnist import DATA_SETS
from s5.training.recipe import Recipe
from tests.utils import make_trial, read_strictly


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "ledger.jsonl"  # the first append makes the folder


# --- One writer -------------------------------------------------------------------------------------------------------


def test_what_is_appended_is_read(path):
    assert read_strictly(path) == []
    assert not path.exists()
    trials = [make_trial(seed, device="cuda: \u2028\x85 one line") for seed in range(3)]
    for trial in trials:
        append_trial(trial, path)
    assert read_strictly(path) == trials
    assert len(path.read_text().splitlines()) == 3


def test_of_a_repeated_trial_the_last_line_counts(path):
    """Of the same network, recipe, seed, split, data and precision."""
    changes = ["network", "split", "data", "precision", "recipe"]
    values = ["net", "test", "mnist", "bfloat16", {"epochs": 19}]
    trials = [make_trial(1), *(make_trial(**{name: value}) for name, value in zip(changes, values, strict=True))]
    for trial in (make_trial(accuracy=99.1), *trials, make_trial(accuracy=99.3, time="later", commit="another")):
        append_trial(trial, path)
    accuracies = [trial.accuracy for trial in read_strictly(path)]
    assert accuracies == [99.3] + [99.4] * 6


# --- Faulty ledgers ---------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_the_only_one_lost(path):
    """Wherever it was cut, the line is named, earlier lines are read, and the next trial starts a new line."""
    append_trial(make_trial(0), path)
    append_trial(make_trial(1), path)
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 2, len(whole) - 1, 397):
        path.write_bytes(whole[:cut])
        append_trial(make_trial(1), path)
        assert path.read_bytes().startswith(whole[:cut] + b"\n"), "existing bytes must not change"
        with pytest.warns(LedgerWarning, match=r"ledger\.jsonl, line 2 is left out: it is torn") as warned:
            assert read_ledger(path) == [make_trial(0), make_trial(1)]
        assert len(warned) == 1
        assert warned[0].filename == __file__, "the warning points to the reader"


def test_an_invalid_line_is_named_and_left_out(path):
    no_recipe, contradiction = make_trial(2).as_dict() | {"recipe": 3}, make_trial(2).as_dict() | {"accuracy": 99.5}
    for line, problem in {
        b"<<<<<<< HEAD": "JSONDecodeError",
        b"\xff\xfe\x80": "UnicodeDecodeError",
        b"[1, 2]": "TypeError",
        b'{"variant": "s5"}': "KeyError: 'recipe'",
        json.dumps(no_recipe).encode(): "TypeError",
        json.dumps(contradiction).encode(): "ValueError: the accuracy is 99.5, and 99.4 by the curve",
    }.items():
        path.unlink(missing_ok=True)
        append_trial(make_trial(0), path)
        with open(path, "ab") as file:
            file.write(line + b"\n")
        append_trial(make_trial(1), path)
        with pytest.warns(LedgerWarning, match=f"line 2 is left out: it is torn or no trial .{problem}"):
            assert read_ledger(path) == [make_trial(0), make_trial(1)]


def test_a_failed_write_leaves_nothing(path, monkeypatch):
    def fail(descriptor):
        raise OSError("no space left on device")

    append_trial(make_trial(0), path)
    before = path.read_bytes()
    monkeypatch.setattr(ledger.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        append_trial(make_trial(1), path)
    assert path.read_bytes() == before


# --- The committed ledger ---------------------------------------------------------------------------------------------


def test_the_committed_ledger_is_valid_and_of_the_full_data():
    trials = read_strictly(LEDGER)
    assert {trial.data for trial in trials} <= DATA_SETS.keys()
    assert {type(trial.recipe) for trial in trials} == {Recipe}


def test_the_first_lines_are_as_recorded():
    """They were rewritten once, in today's form; no result, seed, curve, time or commit may change."""
    lines = [json.loads(line) for line in LEDGER.read_text(encoding="utf-8").splitlines()[:414]]
    results = [
        [
            *(line["accuracy"], line["best_accuracy"], sorted(line["mistakes"].items()), line["seed"]),
            *([list(epoch.values()) for epoch in line["curve"]], line["time"], line["seconds"], line["commit"]),
        ]
        for line in lines
    ]
    digest = hashlib.sha256(json.dumps(results).encode()).hexdigest()
    assert digest == "b47e6ba460dea61010d8d1a5e882e3d5f551cee926e0586e7ea5061a04569b4a"


# --- Several writers --------------------------------------------------------------------------------------------------


def write(path, seeds) -> None:
    for seed in seeds:
        append_trial(make_trial(seed, device="cuda: " + "x" * 50_000), path)


def test_several_processes_may_append_at_once(path):
    context = get_context("spawn")
    writers = [context.Process(target=write, args=(path, range(first, first + 100))) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert sorted(trial.seed for trial in read_strictly(path)) == list(range(200))
