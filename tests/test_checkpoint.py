"""Interrupted and resumed runs, damaged checkpoints, and weights on disk."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import helpers
import s5.training.checkpoint as checkpoint_file
from helpers import Net
from s5.training.checkpoint import CheckpointError, load_checkpoint, load_weights, save_checkpoint, save_weights
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
@pytest.mark.parametrize(
    ("architecture", "precision", "changes"),
    [
        (WithDropout, "float32", {"optimizer": "adamw"}),
        (Net, "bfloat16", {"optimizer": "muon"}),
        (Net, "float32", {"optimizer": "sgd", "ema_decay": 0.0, "schedule": "step", "schedule_every": "epoch"}),
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
    with pytest.raises(CheckpointError, match="threads: 3 there, 1 here"):
        fit(small, threads=1, checkpoint=path, resume=True)


@pytest.fixture(scope="module")
def checkpoint(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    fit(small, replace(SHORT, epochs=1), checkpoint=path, precision="float32")
    return path


def test_a_file_that_is_no_checkpoint_is_one_line_and_its_code_does_not_run(checkpoint, tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "checkpoint.pt"
    for content in (b"", b"not a checkpoint", checkpoint.read_bytes()[:-1000], {"model": Malice()}):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"\A.*checkpoint.pt is damaged or no checkpoint \(.*delete it.*\Z"):
            load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    for content in (Net().state_dict(), {"format": checkpoint_file.FORMAT, "run": {}}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="no checkpoint of this project's format"):
            load_checkpoint(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")


def test_a_checkpoint_of_another_run_is_refused_and_differences_are_listed(small, checkpoint):
    recipe, flipped = replace(SHORT, epochs=1), replace(small, eval_images=small.eval_images.flip(0))
    for arguments, difference in (
        ({"recipe": replace(recipe, learning_rate=0.2, momentum=0.5)}, "learning_rate: 0.05 there, 0.2 here; momentum"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"precision": "bfloat16"}, "precision: float32 there, bfloat16 here"),
        ({"architecture": WithDropout}, r"conv1.0.weight: \(4, 1, 3, 3\) there, absent here.* and 24 more"),
        ({"data": small.subset(500, 200)}, "data: .*600 training.* there, .*500 training.* here"),
        ({"data": flipped}, "sha256: .* there, .* here"),
    ):
        given = {"data": small, "recipe": recipe, "precision": "float32"} | arguments
        with pytest.raises(CheckpointError, match=f"belongs to another run .*{difference}"):
            fit(**given, checkpoint=checkpoint, resume=True)
    with pytest.raises(ValueError, match="resume needs the path of a checkpoint"):
        fit(small, resume=True)


def test_weights_round_trip_and_invalid_files(tmp_path):
    path, metadata = tmp_path / "weights.safetensors", {"data": "sample", "result": "99%"}
    model = helpers.build(seed=1)
    save_weights(model, path, metadata)
    assert_same_weights(load_weights(helpers.build(seed=2), path), model)
    compiled = torch.compile(helpers.build(seed=3))
    assert_same_weights(load_weights(compiled, path), model)
    content = path.read_bytes()
    save_weights(compiled, path, metadata)
    assert path.read_bytes() == content
    save_weights(model, path, dict(reversed(metadata.items())))
    assert path.read_bytes() == content
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["training"]) == metadata
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(WithDropout(), path)
    path.write_bytes(content[:-100])
    for wrong in (path, tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=r"\Acannot read weights from [^\n]*\Z"):
            load_weights(Net(), wrong)
