"""CUDA graphs: a training step captured once and replayed, so that a GPU need not wait for Python.

A step of so small a network is hundreds of operations of a few microseconds each, less than Python takes to start one.
A replay repeats what the GPU did, in the same memory, and nothing that Python did, such as counting calls.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s5.training.checks import first_line, has_hooks, has_only_project_layers, is_project_code
from s5.training.optimizers import Muon

WARM_UPS = 2  # steps before the capture: in them optimizers and cuDNN allocate what they keep


def can_capture(
    model: nn.Module, loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, compile: bool | None = None
) -> bool:
    """True if a training step on a GPU may be captured.

    The loss must be the project's, and the optimizer must take its learning rate as a tensor on the GPU. `compile`
    None: the model's layers must be torch's or the project's, too, and have no hooks; True: any model may be captured;
    False: none.
    """
    if compile is None:
        compile = _runs_on_the_gpu_alone(model)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    takes_tensors = fused or isinstance(optimizer, Muon | torch.optim.Adadelta)
    return compile and takes_tensors and _is_project_loss(loss)


def _runs_on_the_gpu_alone(model: nn.Module) -> bool:
    """True if the model does nothing in Python that a replay would leave out."""
    return has_only_project_layers(model) and not has_hooks(*model.modules())


def _is_project_loss(loss: Callable[..., Tensor]) -> bool:
    """True for a loss of the project that uses no network of a user, such as a teacher."""
    if not is_project_code(loss):
        return False
    used = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    return all(_runs_on_the_gpu_alone(each) for each in used if isinstance(each, nn.Module))


class GraphedStep:
    """A training step that is captured as a CUDA graph at its third call and replayed from then on.

    `step(batch)` trains on one batch of image numbers, int64 on the GPU; all that it leaves behind must be in tensors
    that it changes in place. Batches of another shape than the captured one are trained by `step` itself, and so are
    all, with a warning, if the step cannot be captured.
    """

    def __init__(self, step: Callable[[Tensor], None], optimizer: torch.optim.Optimizer, generator: torch.Generator):
        self.step, self.optimizer, self.generator = step, optimizer, generator
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> None:
        """Train on one batch."""
        if self.calls == WARM_UPS:
            # After an error torch would stay on the stream of the capture.
            with torch.cuda.device_of(batch), torch.cuda.stream(torch.cuda.current_stream()):
                self._capture(batch)
        self.calls += 1
        if self.graph is None or batch.shape != self.batch.shape:
            self.step(batch)
            return
        self.batch.copy_(batch)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()

    def _capture(self, batch: Tensor) -> None:
        """Capture the step, which then reads its batch and the learning rates of the optimizer's groups from here."""
        self.batch = batch.clone()
        self.rates = [torch.zeros((), device=batch.device) for _ in self.optimizer.param_groups]
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        try:
            with self._rates_in_tensors(), torch.cuda.graph(graph):
                self.step(self.batch)
        except Exception as error:  # for example of a network that waits for the GPU to read a number
            for generator in (self.generator, torch.cuda.default_generators[batch.device.index]):
                generator.graphsafe_set_state(generator.clone_state())  # the old state is still marked as capturing
            problem = "training is slower: a step cannot be captured as a CUDA graph"
            warnings.warn(f"{problem} ({first_line(error)})", stacklevel=4)
        else:
            self.graph = graph

    @contextmanager
    def _rates_in_tensors(self) -> Iterator[None]:
        """Let the optimizer read its learning rates from tensors, since a replay repeats every plain number."""
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
