"""CUDA graphs: a training step recorded once and replayed, so that a GPU need not wait for Python.

A step of so small a network is hundreds of operations of a few microseconds each, less than Python takes to start one.
A replay starts all of them at once. It repeats what the GPU did, in the same memory, and nothing that Python did: a
network or loss that counts its calls, or draws numbers outside of torch, would do so in the first batches only. So what
is recorded without being asked for is made of torch's layers and this project's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from s5.training.checks import has_hooks, has_only_project_layers, is_project_code
from s5.training.optimizers import Muon

Step = Callable[[Tensor], None]  # of image numbers: trains on one batch

WARM_UPS = 2  # steps before the recording: in them optimisers and cuDNN allocate what they keep


class Recordable:
    """A model on a GPU whose training steps are to be recorded; called, it is the model.

    `failed` becomes True if a step could not be recorded, so that it is not tried again.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.failed = False

    def __call__(self, images: Tensor) -> Tensor:
        return self.model(images)


def can_record(model: nn.Module) -> bool:
    """True if all layers are torch's or this project's, and nobody listens to them."""
    return has_only_project_layers(model) and not has_hooks(*model.modules())


def record(
    forward: Callable[[Tensor], Tensor],
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    generators: Iterable[torch.Generator],
) -> Callable[[Step], Step]:
    """Decorates a training step: it is recorded if `forward` is `Recordable` and loss and optimiser allow it.

    A loss of one's own, or with a network of one's own, such as a teacher, does not: it may do something in Python.
    """
    if isinstance(forward, Recordable) and not forward.failed and _is_project_loss(loss) and _takes_tensors(optimizer):
        return lambda step: RecordedStep(step, forward, optimizer, generators)
    return lambda step: step


def _is_project_loss(loss: Callable[..., Tensor]) -> bool:
    used = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    return is_project_code(loss) and all(can_record(each) for each in used if isinstance(each, nn.Module))


def _takes_tensors(optimizer: torch.optim.Optimizer) -> bool:
    """True if the learning rate may be a tensor on the GPU: a replay would repeat a plain number."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused or isinstance(optimizer, Muon | torch.optim.Adadelta)


class RecordedStep:
    """A training step that is replayed from its third call on.

    `step(batch)` trains on one batch of image numbers, int64 on the GPU; all that it leaves behind must be in tensors
    that it changes in place. Batches of another shape than the first are trained by `step` itself. If the step cannot
    be recorded, there is a warning, and all batches are.
    """

    def __init__(
        self,
        step: Step,
        forward: Recordable,
        optimizer: torch.optim.Optimizer,
        generators: Iterable[torch.Generator],
    ):
        self.step, self.forward, self.optimizer, self.generators = step, forward, optimizer, list(generators)
        self.calls = 0
        self.batch: Tensor | None = None  # what the recorded step reads
        self.rates: list[Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> None:
        """Train on one batch."""
        self.batch = batch.clone() if self.batch is None else self.batch
        if self.forward.failed or batch.shape != self.batch.shape:
            self.step(batch)
            return
        self.calls += 1
        if self.calls == WARM_UPS:
            self._try(batch)
            return
        if self.calls == WARM_UPS + 1:
            # After an error torch would stay on the stream of the recording.
            with torch.cuda.device_of(batch), torch.cuda.stream(torch.cuda.current_stream()):
                self._record()
        if self.graph is not None:
            self.batch.copy_(batch)
            for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
            self.graph.replay()
        else:
            self.step(batch)

    def _try(self, batch: Tensor) -> None:
        """Run the step; it has failed if it waits for the GPU, e.g. to read a number.

        While it is recorded, that would be an error which leaves torch's memory and generators in disorder.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.step(batch)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for each in caught:
            if "called a synchronizing CUDA operation" in str(each.message):
                self.forward.failed = True
            elif "prototype feature" not in str(each.message):  # the mode itself
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if self.forward.failed:
            _warn("it waits for the GPU")

    def _record(self) -> None:
        self.rates = [torch.zeros((), device=self.batch.device) for _ in self.optimizer.param_groups]
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        try:
            with self._settings_to_record(), torch.cuda.graph(graph, stream=_stream(self.batch.device)):
                self.step(self.batch)
        except Exception as error:
            self.forward.failed = True
            for generator in (*self.generators, torch.cuda.default_generators[self.batch.device.index]):
                generator.graphsafe_set_state(generator.clone_state())  # the old state is still marked as recording
            _warn(str(_cause(error)).partition("\n")[0])
        else:
            self.graph = graph

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


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that steps are recorded on, one per GPU: cuBLAS keeps memory for every stream that was ever used."""
    return torch.cuda.Stream(device)


def _cause(error: BaseException) -> BaseException:
    """The first of a chain of errors: those after it come from ending the recording."""
    return error if error.__context__ is None else _cause(error.__context__)


def _warn(reason: str) -> None:
    warnings.warn(f"a training step cannot be recorded as a CUDA graph ({reason}): training is slower", stacklevel=2)
