"""Interrupted and resumed runs, damaged checkpoints, and weights on disk."""

import copy
import functools
import io
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import helpers
from helpers import Net
from s5.training.checkpoint import (
    CheckpointError,
    TrainingState,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from s5.training.device import pick_precision, use_threads
from tests.utils import SHORT, assert_same_weights, devices, fit, without_seconds


class WithDropout(nn.Module):
    """Its dropout draws from the global generator, whose state a checkpoint must restore too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 10))

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        (Net, {}),
        (WithDropout, {"optimizer": "adamw"}),
        (Net, {"optimizer": "muon"}),
        (Net, {"optimizer": "adadelta", "ema_decay": 0.0, "schedule": "step", "schedule_every": "epoch"}),
    ],
)
def test_resume_gives_the_same_weights_bit_for_bit(
    small, tmp_path, monkeypatch, architecture, changes, device, precision
):
    recipe = replace(SHORT, epochs=4, learning_rate=0.01, **changes)
    path = tmp_path / "checkpoint.pt"
    options = {"architecture": architecture, "device": device, "precision": precision}
    whole, whole_history = fit(small, recipe, **options)

    saved = save_checkpoint

    def stop_after_two(path, state):
        saved(path, state)
        if len(state["history"]) == 2:
            raise OSError("power cut")

    monkeypatch.setattr(helpers, "save_checkpoint", stop_after_two)
    with pytest.raises(OSError, match="power cut"):
        fit(small, recipe, checkpoint=path, **options)
    monkeypatch.undo()

    torch.rand(5)
    resumed, history = fit(small, recipe, checkpoint=path, resume=True, **options)
    assert_same_weights(whole, resumed)
    assert without_seconds(history) == without_seconds(whole_history)


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
def test_a_resumed_run_writes_the_same_bytes(small, tmp_path, monkeypatch, optimizer):
    """Whatever strings and numbers came from the file; the seconds of an epoch aside, which stand still here."""
    monkeypatch.setattr(helpers, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    recipe = replace(SHORT, optimizer=optimizer, learning_rate=0.01)
    whole, resumed = tmp_path / "whole.pt", tmp_path / "resumed.pt"

    def stop_after_one(path, state):
        save_checkpoint(path, state)
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(helpers, "save_checkpoint", stop_after_one)
        with pytest.raises(OSError, match="power cut"):
            fit(small, recipe, checkpoint=resumed)
    fit(small, recipe, checkpoint=resumed, resume=True)
    fit(small, recipe, checkpoint=whole)
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_resumed_run_has_the_threads_of_its_start(small, tmp_path, monkeypatch):
    """Another number of threads adds up in another order, and gives other weights."""
    path, recipe, used = tmp_path / "checkpoint.pt", replace(SHORT, epochs=2), []

    def stop_after_one(path, state):
        save_checkpoint(path, state)
        raise OSError("power cut")

    with use_threads(3):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
            patch.setattr(helpers, "save_checkpoint", stop_after_one)
            fit(small, recipe, checkpoint=path)
        started = load_checkpoint(path)["threads"]
        torch.set_num_threads(1)
        options = {"checkpoint": path, "resume": True, "progress": lambda _: used.append(torch.get_num_threads())}
        helpers.fit(helpers.build(), small, recipe, device="cpu", **options)
        assert used == [started]
        assert torch.get_num_threads() == 1, "set back"


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    fit(small, replace(SHORT, epochs=1), checkpoint=path)
    return path


def content(path: Path) -> bytes:
    """A checkpoint's whole state as bytes that can be compared."""
    file = io.BytesIO()
    torch.save(load_checkpoint(path), file)
    return file.getvalue()


def test_a_flipped_byte_is_detected(checkpoint, tmp_path):
    good = checkpoint.read_bytes()
    whole = content(checkpoint)
    harmless = 0
    chance = random.Random(0)
    directory = range(len(good) - 5000, len(good))  # of the archive: it has no checksums
    for position in [*chance.sample(range(len(good)), 100), *chance.sample(directory, 100)]:
        bad = bytearray(good)
        bad[position] ^= 0x55
        path = tmp_path / "bad.pt"
        path.write_bytes(bad)
        try:
            assert content(path) == whole
            harmless += 1  # padding and time stamps of the archive
        except CheckpointError as error:
            assert "bad.pt" in str(error)
            assert "\n" not in str(error)
    assert harmless < 100


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_missing_and_invalid_checkpoints(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)


def test_truncated_checkpoint(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "mnist-s5-checkpoint-2", "model": Malice()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_run_is_refused_and_differences_are_listed(small, checkpoint):
    recipe = replace(SHORT, epochs=1)
    with pytest.raises(CheckpointError, match="learning_rate: 0.05 there, 0.2 here"):
        fit(small, replace(recipe, learning_rate=0.2), checkpoint=checkpoint, resume=True)
    with pytest.raises(CheckpointError, match="seed: 0 there, 1 here"):
        fit(small, recipe, seed=1, checkpoint=checkpoint, resume=True)
    with pytest.raises(CheckpointError, match=r"conv1.0.weight: \(4, 1, 3, 3\) there, absent here"):
        fit(small, recipe, architecture=WithDropout, checkpoint=checkpoint, resume=True)
    with pytest.raises(CheckpointError, match="data: .*600 training.* there, .*500 training.* here"):
        fewer = replace(small, train_images=small.train_images[:500], train_labels=small.train_labels[:500])
        fit(fewer, recipe, checkpoint=checkpoint, resume=True)


def test_full_disk_raises_oserror_and_keeps_the_old_files(tmp_path):
    """A file size limit of 5,000 bytes stands in for a full disk."""
    resource = pytest.importorskip("resource", reason="needs the file size limit of Unix")
    checkpoint, weights = tmp_path / "checkpoint.pt", tmp_path / "weights.safetensors"
    checkpoint.write_bytes(b"old checkpoint")
    weights.write_bytes(b"old weights")
    model = helpers.build()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(checkpoint, model.state_dict())
        with pytest.raises(OSError, match="File too large"):
            save_weights(model, weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.read_bytes() == b"old checkpoint"
    assert weights.read_bytes() == b"old weights"
    assert set(tmp_path.iterdir()) == {checkpoint, weights}


def test_weights_round_trip_and_invalid_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = helpers.build(seed=1)
    save_weights(model, path, {"data": "sample"})
    again = load_weights(helpers.build(seed=2), path)
    assert_same_weights(model, again)
    images = torch.randint(256, (50, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(helpers.predict(model, images), helpers.predict(again, images))
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(WithDropout(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot read weights"):
        load_weights(Net(), path)
    with pytest.raises(CheckpointError, match="cannot read weights"):
        load_weights(Net(), tmp_path / "absent.safetensors")


def test_equal_weights_and_metadata_give_equal_files(tmp_path):
    """Safetensors writes several metadata keys in an order that differs from call to call."""
    path = tmp_path / "weights.safetensors"
    metadata = {"data": "sample", "result": "99%", "seed": "1"}
    contents = set()
    for order in (metadata, dict(reversed(metadata.items()))) * 5:
        save_weights(helpers.build(seed=1), path, order)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["training"]) == metadata


@pytest.mark.parametrize("path", [None, "", 5])
def test_resume_without_a_path_is_refused(small, path):
    with pytest.raises(ValueError, match="resume needs the path of a checkpoint"):
        fit(small, checkpoint=path, resume=True)


@pytest.mark.parametrize("name", ["absent.pt", 300 * "n", "folder"])
def test_resume_without_a_file_is_refused(small, tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        fit(small, checkpoint=tmp_path / name, resume=True)


@pytest.mark.parametrize("seed", [2**64, 2**63, "a", 1.5, None, -1, True])
def test_a_bad_seed_is_refused(small, seed):
    for call in (lambda: helpers.build(seed=seed), lambda: helpers.fit(Net(), small, SHORT, seed=seed, device="cpu")):
        with pytest.raises(ValueError, match=r"\Aseed must be a whole number, 0 or more and below 2\^63, not .*\Z"):
            call()


# --- Checkpoints that are intact files with something wrong inside ----------------------------------------------------

DELETED = object()
WRONG = (DELETED, None, "x", -3, 2.5, math.nan, [], {}, [1, 2], torch.zeros(3), torch.zeros(3, dtype=torch.uint8))


def places(value, path: tuple = ()) -> list[tuple]:
    """The path of every part of a state, such as ("history", 0, "epoch")."""
    inside = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ()
    return [path, *(place for name in inside for place in places(value[name], (*path, name)))]


def with_part(value, path: tuple, part):
    """A copy of a state with one part replaced or deleted."""
    if not path:
        return part
    changed = list(value) if isinstance(value, tuple) else copy.copy(value)
    if part is DELETED and len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = with_part(value[path[0]], path[1:], part)
    return tuple(changed) if isinstance(value, tuple) else changed


def may_be(good: dict, path: tuple, part) -> bool:
    """Whether a part may be replaced like this: other results of an epoch, no state of a parameter without gradient."""
    before = functools.reduce(lambda value, name: value[name], path, good)
    if part is None or (type(before) is type(part) is not torch.Tensor):
        return before is part or before == part or (path[0] == "history" and part == 2.5)
    return part is DELETED and path[:2] == ("optimizer", "state") and len(path) == 3


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
def test_a_wrong_part_is_named_in_one_line_and_changes_nothing(small, tmp_path, optimizer):
    """Any part of a checkpoint is deleted or replaced by something else."""
    recipe = replace(SHORT, epochs=1, optimizer=optimizer, learning_rate=0.01)
    path = tmp_path / "checkpoint.pt"
    model, _ = fit(small, recipe, checkpoint=path)
    good = torch.load(path, weights_only=True)
    state = TrainingState.start(
        model, small, recipe, 0, torch.device("cpu"), pick_precision("auto", torch.device("cpu"))
    )
    before = copy.deepcopy(model.state_dict())
    parts = [(place, part) for place in places(good)[1:] for part in WRONG if not may_be(good, place, part)]
    for place, part in random.Random(0).sample(parts, 60):
        torch.save(with_part(good, place, part), path)
        with pytest.raises(CheckpointError, match=r"\A[^\n]*checkpoint.pt[^\n]*\Z"):
            state.resume(path)
            pytest.fail(f"accepted: {place} is {part}")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.save(good, path)
    state.resume(path)
    assert state.history == good["history"]


def test_the_state_of_another_recipe_is_refused(small, tmp_path):
    """A learning rate, a schedule's progress or a momentum that this run could not have after its first epoch."""
    path, cpu = tmp_path / "checkpoint.pt", torch.device("cpu")
    model, _ = fit(small, replace(SHORT, epochs=1), checkpoint=path)
    good = torch.load(path, weights_only=True)
    state = TrainingState.start(model, small, replace(SHORT, epochs=1), 0, cpu, pick_precision("auto", cpu))
    for place, part in (
        (("scheduler", "last_epoch"), 3),
        (("optimizer", "param_groups", 0, "lr"), 0.05),
        (("optimizer", "param_groups", 0, "momentum"), 0.9),
        (("optimizer", "state"), {}),
        (("optimizer", "state", 0, "momentum"), torch.zeros(4, 1, 5, 5)),
        (("generator",), good["generator"][:-1]),
        (("average",), None),
    ):
        torch.save(with_part(good, place, part), path)
        with pytest.raises(CheckpointError, match=f"is no complete checkpoint \\({place[0]}"):
            state.resume(path)
