"""CUDA graphs: a training step recorded once and replayed, so that a GPU need not wait for Python.

A step of so small a network is hundreds of operations of a few microseconds each, less than Python takes to start one.
A replay starts all of them at once. It repeats what the GPU did, with the same memory, and nothing that Python did: a
network or loss that counts its calls, or draws numbers outside of torch, would do so once. So only what is made of
torch's layers and this project's is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.kernels import CompileError
from training.optimizers import Muon

Step = Callable[[Tensor], None]  # of image numbers: trains on one batch

WARM_UPS = 2  # steps before the recording: in them optimisers and cuDNN allocate what they keep
OWN = ("torch", "helpers", "training", "experiments")  # packages whose layers and losses keep no state in Python


class Recordable:
    """A model whose training step `train` is to record; called, it is the model.

    `required`: if that fails, it is an error. Otherwise the step is trained as it is, with a warning.
    """

    def __init__(self, model: nn.Module, required: bool = False):
        self.model, self.required = model, required

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images)


def can_record(model: nn.Module) -> bool:
    """True if a replay does all that the model's forward pass does: layers of torch and this project, without hooks."""
    return all(
        is_own(type(module)) and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in model.modules()
    )


def takes_tensor_rates(optimizer: torch.optim.Optimizer) -> bool:
    """True if the optimiser takes a learning rate that is a tensor on the GPU, as a recorded step needs."""
    return isinstance(optimizer, Muon | torch.optim.Adadelta) or bool(optimizer.defaults.get("fused"))


def is_own(thing: object) -> bool:
    """True for a class or function of torch or this project."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in OWN


def record(
    forward: Callable[[Tensor], Tensor],
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Callable[[Step], Step]:
    """Decorates a training step: it is recorded if `forward` is marked for it and the loss and optimiser allow it."""
    if isinstance(forward, Recordable) and is_own(loss) and takes_tensor_rates(optimizer):
        return lambda step: RecordedStep(step, optimizer, [generator], forward.required)
    return lambda step: step


class RecordedStep:
    """A training step that is replayed from its third call on.

    `step(batch)` trains on one batch of image numbers, int64 on the GPU; all that it leaves behind must be in tensors
    that it changes in place. Batches of another shape than the first are trained as they would be without recording,
    and all of them, with a warning, if the step cannot be recorded; with `required`, that raises CompileError.
    """

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        generators: Iterable[torch.Generator],
        required: bool = False,
    ):
        self.step, self.optimizer, self.generators, self.required = step, optimizer, list(generators), required
        self.calls = 0
        self.batch: Tensor | None = None  # what the recorded step reads
        self.rates: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> None:
        """Train on one batch."""
        if self.batch is None:
            self.batch = batch.clone()
        if batch.shape == self.batch.shape:
            self.batch.copy_(batch)
            self.calls += 1
            if self.calls == WARM_UPS + 1:
                with torch.cuda.device_of(batch):
                    self._record()
        if batch.shape == self.batch.shape and self.graph is not None:
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
            self.graph.replay()
        elif self.required and self.calls == WARM_UPS:
            self._step_without_waiting(batch)
        else:
            self.step(batch)

    def _record(self) -> None:
        self.rates = [torch.zeros((), device=self.batch.device) for _ in self.optimizer.param_groups]
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            # torch's own stream would be of the first GPU that recorded: what another one does would not be recorded.
            with self._settings_to_record(), torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                self.step(self.batch)
        except Exception as error:
            if self.required:
                raise _not_recorded(error) from error
            warnings.warn(f"{_not_recorded(error)} Training is slower.", stacklevel=2)
            for generator in (*self.generators, torch.cuda.default_generators[self.batch.device.index]):
                generator.graphsafe_set_state(generator.clone_state())  # the old one waits for the graph's end
        else:
            self.graph = graph

    def _step_without_waiting(self, batch: Tensor) -> None:
        """The step, which raises CompileError if it waits for the GPU: an error while recording would spoil more."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.step(batch)
        except RuntimeError as error:
            raise _not_recorded(error) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)

    @contextmanager
    def _settings_to_record(self) -> Iterator[None]:
        """The optimiser reads its rates from tensors, since a replay repeats every plain number."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group |= {"lr": rate} | ({"capturable": True} if "capturable" in group else {})
        for state in self.optimizer.state.values():
            if "step" in state:  # Adadelta counts its steps on the CPU
                state["step"] = state["step"].to(self.batch.device)
        try:
            yield
        finally:
            for group, settings in zip(groups, before, strict=True):
                group |= settings


def _not_recorded(error: Exception) -> CompileError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CompileError(f"The training step cannot be recorded as a CUDA graph ({reason}).")
