"""Interrupted and resumed runs, damaged checkpoints, and weights on disk."""

import copy
import io
import json
import os
from dataclasses import replace

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
from s5.training.device import use_threads
from tests.utils import SHORT, assert_same_weights, devices, fit, without_seconds


class WithDropout(nn.Module):
    """Its dropout draws from the global generator, whose state a checkpoint must restore too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 10))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def cut_off(monkeypatch):
    """Train until the first checkpoint is written, then fail as in a power cut."""

    def run(data, recipe, **options):
        def save_and_stop(path, state):
            save_checkpoint(path, state)
            raise OSError("power cut")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
            patch.setattr(helpers, "save_checkpoint", save_and_stop)
            fit(data, recipe, **options)

    return run


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        (WithDropout, {"optimizer": "adamw"}),
        (Net, {"optimizer": "muon"}),
        (Net, {"optimizer": "adadelta", "ema_decay": 0.0, "schedule": "step", "schedule_every": "epoch"}),
    ],
)
def test_resume_gives_the_same_weights_bit_for_bit(small, tmp_path, cut_off, architecture, changes, device, precision):
    recipe = replace(SHORT, epochs=3, learning_rate=0.01, **changes)
    options = {"architecture": architecture, "device": device, "precision": precision}
    whole, whole_history = fit(small, recipe, **options)
    options["checkpoint"] = tmp_path / "checkpoint.pt"
    cut_off(small, recipe, **options)
    torch.rand(5)
    resumed, history = fit(small, recipe, resume=True, **options)
    assert_same_weights(whole, resumed)
    assert without_seconds(history) == without_seconds(whole_history)


def test_a_resumed_run_has_the_threads_of_its_start(small, tmp_path, cut_off):
    """Another number of threads adds up in another order, and gives other weights."""
    path, used = tmp_path / "checkpoint.pt", []
    cut_off(small, SHORT, checkpoint=path, threads=3)
    options = {"device": "cpu", "checkpoint": path, "resume": True}
    with use_threads(2):
        helpers.fit(helpers.build(), small, SHORT, progress=lambda _: used.append(torch.get_num_threads()), **options)
        assert used == [3]
        assert torch.get_num_threads() == 2, "set back"
    assert load_checkpoint(path)["run"]["threads"] == 3
    with pytest.raises(CheckpointError, match="threads: 3 there, 1 here"):
        fit(small, threads=1, checkpoint=path, resume=True)


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    fit(small, replace(SHORT, epochs=1), checkpoint=path)
    return path


def flip_a_bit(content: bytes) -> bytes:
    """Change the file in the middle of the largest layer's weights."""
    weights = bytes(torch.load(io.BytesIO(content), weights_only=True)["model"]["conv3.0.weight"].untyped_storage())
    place = content.index(weights) + len(weights) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a checkpoint",
        lambda content: content[:-1000],
        flip_a_bit,
    ],
    ids=["empty", "text", "cut off", "one bit"],
)
def test_a_damaged_checkpoint_is_one_line(checkpoint, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(CheckpointError, match=r"\A.*checkpoint.pt is damaged or no checkpoint \(.*delete it.*\Z"):
        load_checkpoint(path)


def test_a_checkpoint_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "checkpoint.pt"
    torch.save({"model": Malice()}, path)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_another_format_is_named(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this project's format"):
        load_checkpoint(tmp_path / "weights.pt")


def test_a_checkpoint_of_another_run_is_refused_and_differences_are_listed(small, checkpoint):
    recipe, flipped = replace(SHORT, epochs=1), replace(small, eval_images=small.eval_images.flip(0))
    for arguments, difference in (
        ({"recipe": replace(recipe, learning_rate=0.2, momentum=0.5)}, "learning_rate: 0.05 there, 0.2 here; momentum"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"precision": "float32" if is_bfloat16(checkpoint) else "bfloat16"}, "precision: "),
        ({"architecture": WithDropout}, r"conv1.0.weight: \(4, 1, 3, 3\) there, absent here"),
        ({"data": small.subset(500, 200)}, "data: .*600 training.* there, .*500 training.* here"),
        ({"data": flipped}, "sha256: '.*' there, '.*' here"),
    ):
        with pytest.raises(CheckpointError, match=f"belongs to another run .*{difference}"):
            fit(**{"data": small, "recipe": recipe} | arguments, checkpoint=checkpoint, resume=True)


def is_bfloat16(checkpoint) -> bool:
    return load_checkpoint(checkpoint)["run"]["precision"] == "bfloat16"


def test_another_gpu_is_another_device(small, checkpoint, monkeypatch):
    state = TrainingState.start(Net(), small, replace(SHORT, epochs=1), 0, torch.device("cpu"))
    state.run["device"] = "cuda:0"
    saved = load_checkpoint(checkpoint)
    saved["run"]["device"] = "cuda:1"
    monkeypatch.setattr("s5.training.checkpoint.load_checkpoint", lambda path: saved)
    with pytest.raises(CheckpointError, match="device: 'cuda:1' there, 'cuda:0' here"):
        state.resume(checkpoint)


@pytest.mark.parametrize(
    ("part", "wrong"), [("optimizer", {}), ("scheduler", None), ("generator", torch.zeros(3)), ("average", {})]
)
def test_a_part_that_torch_cannot_load_changes_nothing(small, checkpoint, tmp_path, part, wrong):
    torch.save(torch.load(checkpoint, weights_only=True) | {part: wrong}, tmp_path / "checkpoint.pt")
    precision = load_checkpoint(checkpoint)["run"]["precision"]
    state = TrainingState.start(helpers.build(), small, replace(SHORT, epochs=1), 0, torch.device("cpu"), precision)
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(CheckpointError, match=r"\A[^\n]*checkpoint.pt is damaged[^\n]*\Z"):
        state.resume(tmp_path / "checkpoint.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())
    state.resume(checkpoint)
    assert len(state.history) == 1


@pytest.mark.parametrize("path", [None, "", 5])
def test_resume_without_a_path_is_refused(small, path):
    with pytest.raises(ValueError, match="resume needs the path of a checkpoint"):
        fit(small, checkpoint=path, resume=True)


@pytest.mark.parametrize("name", ["absent.pt", 300 * "n", "."])
def test_resume_without_a_file_is_refused(small, tmp_path, name):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        fit(small, checkpoint=tmp_path / name, resume=True)


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


# --- Weights ----------------------------------------------------------------------------------------------------------


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
    for wrong in (path, tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=r"\Acannot read weights from [^\n]*\Z"):
            load_weights(Net(), wrong)


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
