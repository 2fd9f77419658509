"""CUDA graphs of training steps: what may be captured, and on a GPU that a replay does what the step does."""

from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import helpers
from s5.experiments.distillation import distillation_loss
from s5.training.cuda_graphs import GraphedStep, can_capture
from s5.training.optimizers import make_optimizer
from s5.training.recipe import Recipe
from tests.utils import SHORT, assert_same_weights, fit

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


def captures(model=None, loss=None, compile=None, optimizer="muon"):
    model = model or helpers.Net()
    optimizer = make_optimizer(model.parameters(), replace(SHORT, optimizer=optimizer))
    return can_capture(model, loss or helpers.cross_entropy(SHORT), optimizer, compile)


def test_hooks_and_the_code_of_a_user_prevent_a_capture():
    hooked, changed = helpers.Net(), helpers.Net()
    hooked.fc.register_forward_hook(lambda *_: None)
    changed.fc.forward = lambda features: features[:, :10]
    assert captures()
    assert not captures(compile=False)
    for model in (hooked, changed, Counting()):
        assert not captures(model)
        assert captures(model, compile=True)


def test_the_loss_and_the_optimizer_must_allow_it():
    recipe = Recipe(teacher="s5")
    assert captures(loss=distillation_loss(helpers.Net(), recipe))
    for loss in (distillation_loss(Counting(), recipe), own_loss, Counting()):
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


@pytest.fixture
def graph(monkeypatch):
    graph = Graph()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", {None: Mock()})
    return graph


@pytest.mark.parametrize("name", ["muon", "sgd", "adadelta"])
def test_a_step_is_run_twice_then_captured_and_replayed(graph, name):
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model.parameters(), replace(SHORT, optimizer=name, learning_rate=0.5))
    rate = optimizer.param_groups[0]["lr"]
    settings = [{**group} for group in optimizer.param_groups]
    ran = []

    def step(batch):
        ran.append((len(batch), type(optimizer.param_groups[0]["lr"])))

    generator = torch.Generator()
    graphed = GraphedStep(step, optimizer, generator)
    for number, size in enumerate([4, 4, 4, 4, 3, 4]):
        optimizer.param_groups[0]["lr"] = rate / (1 + number)
        graphed(torch.arange(size) + number)
    assert ran == [(4, float), (4, float), (4, torch.Tensor), (3, float)]
    assert (graph.generators, graph.replays) == ([generator], 3)
    assert graphed.rates[0] == pytest.approx(rate / 6), "of the last replay"
    assert torch.equal(graphed.batch, torch.arange(4) + 5)
    optimizer.param_groups[0]["lr"] = rate
    assert optimizer.param_groups == settings


def test_a_step_that_cannot_be_captured_is_run_as_it_is_with_a_warning(graph):
    optimizer = make_optimizer(nn.Linear(3, 2).parameters(), SHORT)
    ran = []

    def step(batch):
        if type(optimizer.param_groups[0]["lr"]) is not float:
            raise ValueError("waits for the GPU\nand advice")
        ran.append(batch)

    graphed = GraphedStep(step, optimizer, generator := Mock())
    graphed(torch.arange(4))
    graphed(torch.arange(4))
    with pytest.warns(UserWarning, match=r"slower: .* \(waits for the GPU\)"):
        graphed(torch.arange(4))
    graphed(torch.arange(4))
    assert len(ran) == 4
    assert graph.replays == 0
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize(("optimizer", "rate"), [("muon", 0.01), ("sgd", 0.02), ("adam", 0.001), ("adadelta", 0.5)])
def test_training_by_a_graph_gives_the_same_network(small, optimizer, rate):
    recipe = replace(SHORT, optimizer=optimizer, learning_rate=rate, batch_size=90)
    (plain, plain_history), (graphed, history) = (
        fit(small, recipe, device="cuda", compile=compile) for compile in (False, None)
    )
    assert [each["learning_rate"] for each in history] == [each["learning_rate"] for each in plain_history]
    assert history[0]["train_loss"] == pytest.approx(plain_history[0]["train_loss"], rel=0.02)
    difference = helpers.predict(graphed, small.eval_images) - helpers.predict(plain, small.eval_images)
    assert difference.abs().max() < 0.1
    if optimizer not in ("muon", "adadelta"):  # their rates are rounded differently
        assert_same_weights(graphed, plain)
