"""The ledger: what is appended is read again, whoever else writes, and whatever happens to the writer."""

import itertools
import json
import random
import signal
import time
import warnings
from dataclasses import fields
from multiprocessing import get_context

import pytest

from experiments import ledger
from experiments.ledger import KEYS, LedgerWarning, append_trial, read_ledger, select, trial_key
from experiments.legacy import DEFAULTS
from tests.utils import make_trial, read_strictly
from training.recipe import Recipe

CONTEXT = get_context("spawn")  # these processes import this file, and no torch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "ledger.jsonl"  # the folder is made by the first append


# --- One writer -------------------------------------------------------------------------------------------------------


def test_round_trip(path):
    trials = [make_trial(seed) for seed in range(3)]
    assert all(append_trial(trial, path) for trial in trials)
    assert read_strictly(path) == trials
    assert len(path.read_text().splitlines()) == 3


def test_a_trial_has_every_key_that_the_issue_asks_for():
    asked_for = "variant recipe seed split epochs parameters macs accuracy best_accuracy curve mistakes seconds device"
    assert set(KEYS) == {*asked_for.split(), "versions", "commit", "data", "time"}
    assert list(make_trial()) == list(KEYS)


def test_an_absent_and_an_empty_ledger_hold_nothing(path):
    assert read_strictly(path) == []
    assert not path.exists()
    path.parent.mkdir()
    path.touch()
    assert read_strictly(path) == []
    assert append_trial(make_trial(), path)
    assert read_strictly(path) == [make_trial()]


@pytest.mark.parametrize("key", ["recipe", "mistakes", "time"])
def test_a_trial_that_lacks_a_key_is_not_written(path, key):
    trial = make_trial()
    del trial[key]
    with pytest.raises(ValueError, match=key):
        append_trial(trial, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"luck": 1}, "luck"),
        ({"accuracy": float("nan")}, "JSON"),
        ({"macs": {1, 2}}, "JSON"),
        ({"recipe": "the usual"}, "recipe"),
    ],
)
def test_a_trial_that_makes_no_good_line_is_not_written(path, changes, message):
    append_trial(make_trial(0), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        append_trial(make_trial(1, **changes), path)
    assert path.read_bytes() == before


def test_the_same_trial_is_written_once(path):
    assert append_trial(make_trial(accuracy=99.1), path)
    assert not append_trial(make_trial(accuracy=99.2), path)
    assert [trial["accuracy"] for trial in read_strictly(path)] == [99.1]


def test_what_makes_another_trial():
    recipe = Recipe().as_dict()
    others = [
        make_trial(1),
        make_trial(variant="net"),
        make_trial(split="test"),
        make_trial(data="mnist"),
        make_trial(recipe=recipe | {"epochs": 19}),
    ]
    assert len({trial_key(trial) for trial in [make_trial(), *others]}) == 6
    assert trial_key(make_trial()) == trial_key(make_trial(time="later", commit="another", seconds=1.0, accuracy=0.0))
    # Neither the order of a recipe's fields nor a number's spelling is another recipe.
    respelled = {name: recipe[name] for name in reversed(recipe)} | {"rotation": int(recipe["rotation"])}
    assert trial_key(make_trial(recipe=respelled)) == trial_key(make_trial())


def test_select(path):
    trials = [make_trial(seed, split=split) for seed in range(2) for split in ("validation", "test")]
    assert select(trials, seed=1, split="test") == [make_trial(1, split="test")]
    assert select(trials) == trials


# --- Ledgers that are not as they should be ---------------------------------------------------------------------------


def test_a_torn_last_line_costs_only_itself(path):
    """Cut anywhere, the line is named; the lines before it are read; the next one is not glued to it."""
    append_trial(make_trial(0), path)
    append_trial(make_trial(1), path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        with pytest.warns(LedgerWarning, match="line 2 is torn"):
            assert read_ledger(path) == [make_trial(0)]
        assert append_trial(make_trial(1), path)
        assert path.read_bytes().startswith(whole[:cut] + b"\n"), "what was there is not changed"
        with pytest.warns(LedgerWarning, match="line 2 is torn") as warned:
            assert read_ledger(path) == [make_trial(0), make_trial(1)]
        assert len(warned) == 1


def test_a_last_line_that_lacks_only_its_newline_is_whole(path):
    append_trial(make_trial(0), path)
    path.write_bytes(path.read_bytes().rstrip())
    assert read_strictly(path) == [make_trial(0)]
    append_trial(make_trial(1), path)
    assert read_strictly(path) == [make_trial(0), make_trial(1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"<<<<<<< HEAD", "line 2 is torn or no JSON"),
        (b"\x00\xff\xfe\x80", "line 2 is torn or no JSON"),
        (b"[1, 2]", "line 2 is no trial, it is no JSON object"),
        (b"17", "line 2 is no trial, it is no JSON object"),
        (b'{"variant": "s5"}', "line 2 is no trial, it lacks recipe, seed"),
        (json.dumps(make_trial(recipe=3)).encode(), "line 2 is no trial, its variant, .* recipe is not of the right kind"),
        (json.dumps(make_trial(variant=["s5"])).encode(), "line 2 is no trial, its variant"),
    ],
)
def test_a_line_that_is_no_trial_is_named_and_left_out(path, line, message):
    append_trial(make_trial(0), path)
    with open(path, "ab") as file:
        file.write(line + b"\n")
    append_trial(make_trial(1), path)
    with pytest.warns(LedgerWarning, match=message) as warned:
        assert read_ledger(path) == [make_trial(0), make_trial(1)]
    assert len(warned) == 1
    assert line in path.read_bytes()


def test_a_duplicate_is_named_and_the_first_counts(path):
    append_trial(make_trial(accuracy=99.1), path)
    with open(path, "a") as file:
        file.write(json.dumps(make_trial(accuracy=99.9)) + "\n")
    with pytest.warns(LedgerWarning, match="line 2 repeats the trial of line 1: the earlier one counts"):
        assert [trial["accuracy"] for trial in read_ledger(path)] == [99.1]


def test_an_unknown_key_is_named_and_kept(path):
    path.parent.mkdir()
    path.write_text(json.dumps(make_trial(luck=7)) + "\n")
    with pytest.warns(LedgerWarning, match="line 1 has keys that this version does not know, luck: kept"):
        assert read_ledger(path) == [make_trial(luck=7)]


def test_blank_lines_and_odd_line_separators_inside_a_value_do_no_harm(path):
    path.parent.mkdir()
    odd = make_trial(device="cpu\u2028\x85 one line")
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\n\n" + json.dumps(make_trial(1)) + "\n", encoding="utf-8")
    assert read_strictly(path) == [odd, make_trial(1)]


def test_the_recorded_ledger_is_in_order():
    for trial in read_strictly(ledger.LEDGER):
        assert trial["data"] == "mnist", "nothing made from the sample belongs into the record"
        assert trial["split"] in ("validation", "test")
        assert len(trial["curve"]) == trial["epochs"] == trial["recipe"]["epochs"]


# --- Many writers, dying writers --------------------------------------------------------------------------------------


def write_many(path, seeds, barrier) -> None:
    barrier.wait(60)
    for seed in seeds:
        append_trial(make_trial(seed, device="x" * 20_000), path)


def test_processes_that_write_at_once_lose_nothing_and_write_nothing_twice(path):
    barrier = CONTEXT.Barrier(4)
    seeds = [range(start, start + 25) for start in (0, 20, 40, 60)]  # five in common with each neighbour
    writers = [CONTEXT.Process(target=write_many, args=(path, some, barrier)) for some in seeds]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == list(range(85))
    assert read_strictly(path) == lines


def write_until_killed(path, first: int, acknowledge) -> None:
    for seed in itertools.count(first):
        append_trial(make_trial(seed, device="x" * 100_000), path)
        acknowledge.send(seed)


def test_a_writer_that_is_killed_costs_at_most_its_line(path):
    """SIGKILL ten times, wherever it hits: what was acknowledged is there, and the next writer is not held up."""
    acknowledged = []
    for round_ in range(10):
        receive, send = CONTEXT.Pipe(duplex=False)
        writer = CONTEXT.Process(target=write_until_killed, args=(path, 1000 * round_, send))
        writer.start()
        send.close()
        assert receive.poll(60), "the next writer waits for a lock that nobody holds"
        time.sleep(random.uniform(0, 0.03))
        writer.kill()
        writer.join(60)
        assert writer.exitcode == -signal.SIGKILL
        try:
            while True:
                acknowledged.append(receive.recv())
        except EOFError:
            pass
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        seeds = [trial["seed"] for trial in read_ledger(path)]
    assert set(acknowledged) <= set(seeds)
    assert len(seeds) == len(set(seeds))
    assert len(set(seeds) - set(acknowledged)) + len(warned) <= 10, "one line a kill, at most, was under way"


def test_a_recipe_recorded_before_a_field_existed_is_the_recipe_of_today(tmp_path):
    path, trial = tmp_path / "ledger.jsonl", make_trial()
    old = {key: value for key, value in trial["recipe"].items() if key not in DEFAULTS}
    path.write_text(json.dumps(trial | {"recipe": old}) + "\n")
    (read,) = read_ledger(path)
    assert trial_key(read) == trial_key(trial)
    assert DEFAULTS.keys() < {field.name for field in fields(Recipe)}
    assert not append_trial(trial, path)
