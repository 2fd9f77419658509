"""CUDA graphs of training steps: what may be captured, and on a GPU that a replay does what the step does."""

import re
import types
import warnings
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import helpers
from s5.experiments.claims import KNOWN
from s5.experiments.distillation import distillation_loss
from s5.experiments.variants import VARIANTS
from s5.training import cuda_graphs
from s5.training.cuda_graphs import can_capture, cuda_graph
from s5.training.optimizers import make_optimizer
from s5.training.recipe import Recipe
from tests.utils import SHORT, assert_same_weights, fit

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


# --- What may be captured ---------------------------------------------------------------------------------------------


def captures(model=None, loss=None, compile=None, optimizer="muon"):
    model = model or helpers.Net()
    optimizer = make_optimizer(model.parameters(), replace(SHORT, optimizer=optimizer))
    return can_capture(model, loss or helpers.cross_entropy(SHORT), optimizer, compile)


@pytest.mark.parametrize("name", KNOWN)
def test_the_networks_of_this_project_may_be_captured(name):
    assert captures(KNOWN[name].build())


def test_hooks_and_the_code_of_a_user_prevent_it():
    names = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    hooked, changed = [helpers.Net() for _ in names], helpers.Net()
    for model, name in zip(hooked, names, strict=True):
        getattr(model.fc, f"register_{name}")(lambda *_: None)
    changed.fc.forward = lambda features: features[:, :10]
    for model in (*hooked, changed, Counting()):
        assert not captures(model)
        assert captures(model, compile=True)
    assert not captures(compile=False)


def test_the_loss_and_the_optimizer_must_allow_it():
    recipe = Recipe(teacher="s5")
    assert captures(loss=distillation_loss(helpers.Net(), recipe))
    without_value = helpers.cross_entropy(SHORT)
    without_value = types.FunctionType(without_value.__code__, vars(helpers), closure=(types.CellType(),))
    for loss in (distillation_loss(Counting(), recipe), own_loss, Counting(), without_value):
        assert not captures(loss=loss, compile=True)
    assert captures(optimizer="adadelta")
    assert not captures(optimizer="adam"), "on a CPU it is not fused"


# --- Capturing, with a graph that runs nothing ------------------------------------------------------------------------


class Graph:
    """Counts what is asked of a CUDA graph."""

    def __init__(self):
        self.generators, self.replays = [], 0

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.replays += 1


class Generator:
    """A CUDA generator, whose state is replaced by a copy after a capture that failed."""

    def __init__(self):
        self.state = "capturing"

    def clone_state(self):
        return "new"

    def graphsafe_set_state(self, state):
        self.state = state


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are made, in place of CUDA's."""
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Graph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())
    monkeypatch.setattr(cuda_graphs, "_stream", lambda device: None)
    for name, value in (("current_stream", None), ("get_sync_debug_mode", 0), ("set_sync_debug_mode", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return made


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_run_twice_then_captured_and_replayed(graphs, name):
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
    graphed = cuda_graph(step, optimizer, generator)
    for number, size in enumerate([4, 4, 4, 4, 3, 4]):
        optimizer.param_groups[0]["lr"] = rate / (1 + number)
        graphed(torch.arange(size) + number)
    assert ran == [(4, float), (4, float), (4, torch.Tensor), (3, float)]
    (graph,) = graphs
    assert (graph.generators, graph.replays) == ([generator], 3)
    assert graphed.rates[0] == pytest.approx(rate / 6), "of the last replay"
    assert torch.equal(graphed.batch, torch.arange(4) + 5)
    optimizer.param_groups[0]["lr"] = rate
    assert optimizer.param_groups == settings


def train(step, optimizer, generator=None):
    for _ in range(2):  # epochs
        graphed = cuda_graph(step, optimizer, generator)
        for size in (4, 4, 4, 4, 3):
            graphed(torch.arange(size))


def test_a_step_that_cannot_be_captured_is_run_as_it_is_with_one_warning(graphs, monkeypatch):
    optimizer = make_optimizer(nn.Linear(3, 2).parameters(), SHORT)
    of_the_step, of_the_device, lengths = Generator(), Generator(), []
    monkeypatch.setattr(torch.cuda, "default_generators", {None: of_the_device})

    def step(batch):
        if type(optimizer.param_groups[0]["lr"]) is not float:
            try:
                raise ValueError("the cause\nand advice for programmers")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        lengths.append(len(batch))

    message = r"^a training step cannot be captured as a CUDA graph \(the cause\): training is slower$"
    with pytest.warns(UserWarning, match=message) as warned:
        train(step, optimizer, of_the_step)
    assert len(warned) == 1
    assert lengths == [4, 4, 4, 4, 3] * 2
    assert (of_the_step.state, of_the_device.state) == ("new", "new")
    assert type(optimizer.param_groups[0]["lr"]) is float


@pytest.mark.filterwarnings("ignore:something else")
def test_a_step_that_waits_for_the_gpu_is_found_before_it_is_captured(graphs, monkeypatch):
    optimizer = make_optimizer(nn.Linear(3, 2).parameters(), SHORT)
    modes, lengths = ["default"], []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step(batch):
        lengths.append(len(batch))
        if modes[-1] == "warn":
            warnings.warn("Synchronization debug mode is a prototype feature and does not detect all", stacklevel=1)
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at …)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)

    waits = "a training step cannot be captured as a CUDA graph (it waits for the GPU): training is slower"
    with pytest.warns(UserWarning, match=re.escape(waits)) as warned:
        train(step, optimizer)
    assert [str(each.message) for each in warned] == ["something else", waits]
    assert modes == ["default", "warn", "default"]
    assert lengths == [4, 4, 4, 4, 3] * 2
    assert not graphs


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_by_a_graph_gives_the_same_network(small, optimizer, precision):
    recipe = replace(SHORT, optimizer=optimizer, learning_rate=OPTIMIZERS[optimizer], epochs=2, batch_size=90)
    (plain, plain_history), (graphed, history) = (
        fit(small, recipe, device="cuda", precision=precision, compile=compile) for compile in (False, None)
    )
    assert [each["learning_rate"] for each in history] == [each["learning_rate"] for each in plain_history]
    assert history[0]["train_loss"] == pytest.approx(plain_history[0]["train_loss"], rel=0.02)
    difference = helpers.predict(graphed, small.eval_images) - helpers.predict(plain, small.eval_images)
    assert difference.abs().max() < 0.1
    if optimizer not in ("muon", "adadelta"):  # their rates are rounded differently
        assert_same_weights(graphed, plain)


@needs_cuda
def test_a_network_and_a_loss_of_a_user_are_called_for_every_batch_unless_compiling_is_asked_for(small):
    calls = []

    def loss(inputs, logits, labels):
        calls.append(len(labels))
        return own_loss(inputs, logits, labels)

    batches = SHORT.epochs * SHORT.steps_per_epoch(len(small.train_images))
    assert fit(small, SHORT, architecture=Counting, device="cuda")[0].calls >= batches
    assert fit(small, SHORT, architecture=Counting, device="cuda", compile=True)[0].calls < batches
    fit(small, SHORT, device="cuda", loss=loss)
    assert len(calls) == batches


@needs_cuda
def test_a_network_that_waits_for_the_gpu_is_trained_and_leaves_torch_in_order(small):
    def waiting():
        norm = nn.BatchNorm2d(4, momentum=None)  # reads the number of batches
        return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(2704, 10))

    with pytest.warns(UserWarning, match="it waits for the GPU"):
        fit(small, SHORT, architecture=waiting, device="cuda")
    torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(1, device="cuda") < 1


@needs_cuda
def test_a_graph_every_epoch_takes_no_more_memory(small):
    fit(small, replace(SHORT, epochs=3), device="cuda")
    before = torch.cuda.memory_reserved()
    fit(small, replace(SHORT, epochs=30), device="cuda")
    assert torch.cuda.memory_reserved() <= before + 2**25


@needs_cuda
@pytest.mark.parametrize("name", ["dropout", "pytorch_example", "below_8k", "below_500"])
def test_other_networks_are_trained_by_graphs_too(small, name):
    recipe = VARIANTS[name].recipe if name in VARIANTS else KNOWN[name].recipe
    model, history = fit(small, recipe.for_smoke(), architecture=KNOWN[name].build, device="cuda")
    assert history[-1]["train_loss"] < 2.6
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
