"""Recorded training steps: what may be recorded, and on a GPU that a recorded step does what the step does."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers
from experiments.candidates import KNOWN
from experiments.distillation import distillation_loss
from experiments.source import Source
from experiments.variants import VARIANTS
from tests.utils import SHORT, assert_same_weights, fit
from training.graphs import Recordable, RecordedStep, can_record, is_own, record, takes_tensor_rates
from training.kernels import CompileError
from training.optimizers import make_optimizer
from training.recipe import Recipe

OPTIMIZERS = {"muon": 0.01, "sgd": 0.02, "adam": 0.001, "adamw": 0.001, "adadelta": 0.5}  # with learning rates
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="requires a CUDA device")


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self):
        super().__init__()
        self.net = helpers.Net()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.net(images)


def own_loss(inputs, logits, labels):
    return nn.functional.cross_entropy(logits, labels)


# --- What may be recorded ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_the_networks_of_this_project_may_be_recorded(name):
    assert can_record(KNOWN[name].build())


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_what_python_does_in_a_forward_pass_prevents_recording(hook):
    assert not can_record(Counting())
    assert not can_record(Source("own", "def own(): return type('Own', (nn.Flatten,), {})()").build())
    model = helpers.build()
    getattr(model.fc, hook)(lambda *_: None)
    assert not can_record(model)


def test_only_losses_of_this_project_may_be_recorded():
    recipe = Recipe(teacher="s5")
    assert is_own(helpers.cross_entropy(recipe))
    assert is_own(distillation_loss(helpers.Net(), recipe))
    assert not is_own(own_loss)
    assert not is_own(Counting())


def test_without_a_mark_or_for_a_loss_of_ones_own_the_step_stays_as_it_is():
    model = helpers.build()
    generator, optimizer = torch.Generator(), make_optimizer(model.parameters(), SHORT)
    assert takes_tensor_rates(optimizer)

    def step(batch):
        pass

    loss = helpers.cross_entropy(SHORT)
    assert isinstance(record(Recordable(model), loss, optimizer, generator)(step), RecordedStep)
    assert record(model, loss, optimizer, generator)(step) is step
    assert record(Recordable(model), own_loss, optimizer, generator)(step) is step
    adam = torch.optim.Adam(model.parameters())
    assert record(Recordable(model), loss, adam, generator)(step) is step


# --- Recording, with a graph that runs nothing ------------------------------------------------------------------------


class Graph:
    """Counts what is asked of a CUDA graph."""

    def __init__(self):
        self.generators, self.replays = [], 0

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.replays += 1


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are made, in place of CUDA's."""
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Graph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())
    return made


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_run_twice_then_recorded_and_replayed(graphs, name):
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model.parameters(), replace(SHORT, optimizer=name, learning_rate=0.5))
    rate = optimizer.param_groups[0]["lr"]
    settings = [{**group} for group in optimizer.param_groups]
    ran = []

    def step(batch):
        ran.append((len(batch), type(optimizer.param_groups[0]["lr"])))
        optimizer.zero_grad()
        model(torch.ones(len(batch), 3)).sum().backward()

    generator = torch.Generator()
    recorded = RecordedStep(step, optimizer, [generator])
    for number, size in enumerate([4, 4, 4, 4, 3, 4]):
        optimizer.param_groups[0]["lr"] = rate / (1 + number)
        recorded(torch.arange(size))
    assert ran == [(4, float), (4, float), (4, torch.Tensor), (3, float)]
    (graph,) = graphs
    assert (graph.generators, graph.replays) == ([generator], 3)
    assert recorded.rates[0] == pytest.approx(rate / 6), "of the last replay"
    optimizer.param_groups[0]["lr"] = rate
    assert optimizer.param_groups == settings


class Generator:
    """A CUDA generator: its state is replaced by a copy after a recording that failed."""

    def __init__(self):
        self.state = "recording"

    def clone_state(self):
        return "new"

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def unrecordable(graphs, monkeypatch):
    """A step that fails while it is recorded, its optimiser and a list of its batches' lengths."""
    optimizer, lengths = make_optimizer(nn.Linear(3, 2).parameters(), SHORT), []

    def step(batch):
        if type(optimizer.param_groups[0]["lr"]) is not float:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nDevice-side assertions …")
        lengths.append(len(batch))

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return step, optimizer, lengths


def test_a_step_that_cannot_be_recorded_is_trained_as_it_is_with_a_warning(unrecordable, monkeypatch):
    step, optimizer, lengths = unrecordable
    of_the_step, of_the_device = Generator(), Generator()
    monkeypatch.setattr(torch.cuda, "default_generators", {None: of_the_device})
    monkeypatch.setattr(Graph, "register_generator_state", lambda *_: None)
    recorded = RecordedStep(step, optimizer, [of_the_step])

    def train():
        for size in (4, 4, 4, 4, 3):
            recorded(torch.arange(size))

    expected = r"cannot be recorded as a CUDA graph \(CUDA error: .* is capturing\)\. Training is slower\.$"
    with pytest.warns(UserWarning, match=expected) as warned:
        train()
    assert len(warned) == 1
    assert lengths == [4, 4, 4, 4, 3]
    assert (of_the_step.state, of_the_device.state) == ("new", "new")
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_it_is_an_error_if_recording_is_required(unrecordable):
    step, optimizer, lengths = unrecordable
    recorded = RecordedStep(step, optimizer, [], required=True)
    with pytest.raises(CompileError, match=r"cannot be recorded as a CUDA graph \(CUDA error: .* is capturing\)\.$"):
        for _ in range(3):
            recorded(torch.arange(4))
    assert lengths == [4, 4]
    assert type(optimizer.param_groups[0]["lr"]) is float


def test_a_step_that_waits_for_the_gpu_is_found_before_it_is_recorded(graphs, monkeypatch):
    optimizer, modes = make_optimizer(nn.Linear(3, 2).parameters(), SHORT), ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step(batch):
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    recorded = RecordedStep(step, optimizer, [], required=True)
    recorded(torch.arange(4))
    with pytest.raises(CompileError, match=r"\(called a synchronizing CUDA operation\)\.$"):
        recorded(torch.arange(4))
    assert modes == ["default", "error", "default"]
    assert not graphs


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_training_gives_the_same_network(small, optimizer, precision):
    recipe = replace(SHORT, optimizer=optimizer, learning_rate=OPTIMIZERS[optimizer], epochs=2, batch_size=90)
    (plain, plain_history), (recorded, history) = (
        fit(small, recipe, device="cuda", precision=precision, compile=compile) for compile in (False, None)
    )
    assert [each["learning_rate"] for each in history] == [each["learning_rate"] for each in plain_history]
    assert history[0]["train_loss"] == pytest.approx(plain_history[0]["train_loss"], rel=0.02)
    difference = helpers.predict(recorded, small.eval_images) - helpers.predict(plain, small.eval_images)
    assert difference.abs().max() < 0.1
    if optimizer != "muon":  # its rates are rounded differently
        assert_same_weights(recorded, plain)


@needs_cuda
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_recorded_run_is_resumed_bit_for_bit(small, tmp_path, optimizer):
    recipe = replace(SHORT, optimizer=optimizer, learning_rate=OPTIMIZERS[optimizer], epochs=3)
    whole, history = fit(small, recipe, device="cuda")

    def stop(history):
        raise KeyboardInterrupt

    path, model = tmp_path / "checkpoint.pt", helpers.build(helpers.Net, 0)
    helpers.fit(model, small, recipe, device="cuda", checkpoint=path, progress=stop)
    resumed = helpers.build(helpers.Net, 1)
    rest = helpers.fit(resumed, small, recipe, device="cuda", checkpoint=path, resume=True, progress=False)
    assert [each["train_loss"] for each in rest] == [each["train_loss"] for each in history]
    assert_same_weights(resumed, whole)


@needs_cuda
def test_a_network_and_a_loss_that_count_their_calls_are_called_for_every_batch(small):
    calls = []

    def loss(inputs, logits, labels):
        calls.append(len(labels))
        return own_loss(inputs, logits, labels)

    network, _ = fit(small, SHORT, architecture=Counting, device="cuda")
    batches = SHORT.epochs * SHORT.steps_per_epoch(len(small.train_images))
    assert network.calls >= batches
    fit(small, SHORT, device="cuda", loss=loss)
    assert len(calls) == batches


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="requires two CUDA devices")
def test_a_second_gpu_trains_the_same_network(small):
    (first, _), (second, _) = (fit(small, SHORT, device=device) for device in ("cuda:0", "cuda:1"))
    assert_same_weights(first.cpu(), second.cpu())


@needs_cuda
@pytest.mark.parametrize("name", ["dropout", "pytorch_example", "below_8k", "below_500"])
def test_other_networks_are_recorded_too(small, name):
    recipe = VARIANTS[name].recipe if name in VARIANTS else KNOWN[name].recipe
    model, history = fit(small, recipe.for_smoke(), architecture=KNOWN[name].build, device="cuda")
    assert history[-1]["train_loss"] < 2.6
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@needs_cuda
def test_a_network_of_ones_own_is_recorded_when_asked_for_unless_it_cannot_be(small):
    class Reading(helpers.Net):
        def forward(self, images):
            return super().forward(images) * float(images.mean() > -9)

    Reading.__module__ = "__main__"
    fit(small, SHORT, architecture=Reading, device="cuda")
    network, _ = fit(small, SHORT, architecture=Counting, device="cuda", compile=True)
    assert network.calls < SHORT.epochs * SHORT.steps_per_epoch(len(small.train_images))
    with pytest.raises(CompileError, match="cannot be recorded as a CUDA graph"):
        fit(small, SHORT, architecture=Reading, device="cuda", compile=True)
