"""A trial that agrees with itself has no faults; junk anywhere in it is named, and raises nothing."""

import copy
import hashlib
import math

import pytest

from s5.experiments.evidence import KINDS, faults, is_sound, time_fault
from s5.experiments.ledger import KEYS, read_ledger
from s5.reports.measurements import measurement_faults, peer_faults
from s5.training.files import LEDGER
from s5.training.recipe import Recipe
from tests.utils import make_trial

JUNK = [None, math.nan, math.inf, -1, 10**400, "x", "", [], {}, [[]], {"x": {}}]
RECIPES = [
    Recipe(),
    Recipe(epochs=1),
    Recipe(epochs=7, batch_size=64, optimizer="sgd", schedule="step", schedule_every="epoch", warmup=0.0),
    Recipe(epochs=3, schedule="cosine", optimizer="adam", learning_rate=0.001),
    Recipe(epochs=3, schedule="constant", warmup=0.5, label_smoothing=0.1),
]


def places(value, path=()):
    """The paths of all parts of a trial."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def replaced(trial: dict, path: tuple, value) -> dict:
    trial = copy.deepcopy(trial)
    place = trial
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return trial


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("data", ["mnist", "sample"])
def test_a_trial_that_agrees_with_itself_has_no_faults(recipe, split, data):
    trial = make_trial(3, 98.7, recipe=recipe.as_dict(), split=split, data=data)
    assert faults(trial) == []
    assert is_sound(trial)


def test_every_key_has_a_kind():
    assert set(KINDS) == set(KEYS)


def test_committed_trials_are_sound():
    trials = read_ledger(LEDGER)
    assert trials
    assert all(map(is_sound, trials))


@pytest.mark.parametrize("data", ["mnist", "sample"])
def test_junk_anywhere_is_named(data):
    """In one short line each, and `is_sound` never refuses what `faults` finds good: the reason could not be said."""
    trial = make_trial(0, 99.9, recipe=Recipe(epochs=2).as_dict(), data=data)
    for path in places(trial):
        for junk in [*JUNK, 0.5, -0.0]:
            forged = replaced(trial, path, junk)
            found = faults(forged)
            assert all("\n" not in fault and len(fault) < 400 for fault in found)
            assert found or is_sound(forged), (path, junk)
            is_free = path[0] in ("variant", "network", "source") and isinstance(junk, str)  # `audit.py` knows names
            if junk in JUNK and path[0] != "recipe" and not is_free:  # in a recipe, -1 may be good
                assert found, (path, junk)


def test_a_missing_part_is_named():
    trial = make_trial(recipe=Recipe(epochs=2).as_dict())
    for path in places(trial):
        if len(path) > 1 and isinstance(path[-1], str):
            forged = copy.deepcopy(trial)
            place = forged
            for key in path[:-1]:
                place = place[key]
            del place[path[-1]]
            assert faults(forged), path


@pytest.mark.parametrize("key", ["accuracy", "best_accuracy"])
@pytest.mark.parametrize("change", [0.01, -0.01, 0.1, 1])
def test_the_smallest_change_of_an_accuracy_is_found(key, change):
    trial = make_trial(data="mnist")
    forged = trial | {key: trial[key] + change}
    assert not is_sound(forged)
    assert faults(forged)[0].startswith(key)


def test_a_network_of_ones_own_has_the_name_of_its_source():
    text = "def MyNet(): ..."
    name = f"MyNet@{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    trial = make_trial(source=text, network=name, variant=name)
    assert faults(trial) == []
    for other in ("MyNet@00000000", "MyNet", name.replace("MyNet", "")):
        assert faults(trial | {"network": other})[0].startswith("network")
    assert faults(trial | {"source": text + " "})[0].startswith("network")


@pytest.mark.parametrize(
    "time", ["2025-02-30T00:00:00+00:00", "2025-01-01T00:00:00", "1999-01-01T00:00:00+00:00", 7, None]
)
def test_a_time_that_cannot_be_is_named(time):
    assert time_fault(time).startswith("time must")
    assert time_fault("2025-01-01T00:00:00+00:00") == ""


# --- Measurements -----------------------------------------------------------------------------------------------------

TIMING = {"median": 2.0, "low": 1.0, "high": 4.0, "all": [4.0, 1.0, 2.0]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (TIMING, None),
        (TIMING | {"median": 5.0}, "the median, 5.0, is outside its range, 1.0 to 4.0"),
        (TIMING | {"median": 3.0}, "median is 3.0, but of all values 2.0"),
        (TIMING | {"low": 0.5}, "low is 0.5, but of all values 1.0"),
        (TIMING | {"all": []}, "cannot be checked"),
        (TIMING | {"high": None}, "cannot be checked"),
        ({"microseconds": 2, "range": [1, 3]}, None),
        ({"microseconds": 9, "range": [1, 3]}, "the microseconds, 9, is outside its range"),
        ({"milliseconds": 2, "range": [3, 1]}, "the range begins with 3 and ends with 1"),
        ({"correct": 9953, "accuracy": 99.53}, None),
        ({"correct": 9953, "accuracy": 99.63}, "accuracy is 99.63, but 9953 of 10,000"),
        ({"correct": 497, "images": 500, "accuracy": 99.4}, None),
        ({"correct": 501, "images": 500, "accuracy": 100.2}, "correct must be from 0 to 500"),
        ({"deep": [{"value": math.nan}]}, "deep, 1, value: nan is not finite"),
        ({"bytes": -1}, "-1 is below 0"),
        ({"accuracy": 101}, "101 is not from 0 to 100"),
        ({"memory": None, "note": "text", "is": True}, None),
    ],
)
def test_measurements_that_contradict_themselves(record, message):
    found = list(measurement_faults({"part": record}))
    assert (not found) if message is None else any(message in fault for fault in found), found


def test_peers_that_cannot_be():
    head = "name,repository,parameters,epochs,best,last,made\n"
    assert list(peer_faults(head + "one,me/it,697,2000,99.03,,best of many\n")) == []
    assert list(peer_faults(head + "one,me/it,697,,99.03,,epochs unknown\n")) == []
    for row in (
        "one,me/it,0,5,99,98,x",
        "one,me/it,9,5,98,99,x",
        "one,me/it,9,5,,,x",
        "one,me/it,9,5,9,8,x",
        "one,me/it,9,5,nan,,x",
        "one,me/it,9",
        ",me/it,9,5,99,,x",
        "one,,9,5,99,,x",
    ):
        assert list(peer_faults(f"{head}{row}\n")), row
    assert list(peer_faults("name,parameters\n"))
