"""A network of the user's: a class or function in a file or in a notebook's cell.

cloudpickle sends it to other processes, and its text goes with every trial, so that the ledger says what was run.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import linecache
import pickle
import re
import runpy
import sys
import textwrap
import tokenize
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FunctionType

import cloudpickle
import torch
from torch import nn

from s5.networks.grammar import NetworkError
from s5.training.checks import PROJECT, logits_fault, parameters_fault
from s5.training.recipe import short

COUNTS = (2, 3)  # images that a network is tried on


@dataclass(frozen=True)
class Source:
    """A class or function of the user's that returns an `nn.Module` when it is called without arguments."""

    function: str  # its name
    text: str  # its code, the user's other code that it uses, and the layers
    network: Callable[[], nn.Module] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The function's name and the beginning of the text's SHA-256, e.g. "MyNet@1a2b3c4d"."""
        return f"{self.function}@{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def build(self) -> nn.Module:
        """A new network. Raises NetworkError if the code fails."""
        try:
            network = self.network()
        except (Exception, SystemExit) as error:  # anything, it is the user's code
            raise NetworkError(f"{self.function} cannot be built: {_describe(error)}") from error
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.function}() must return an nn.Module, not {type(network).__name__}")
        return network

    def __reduce__(self):
        return _loaded, (self.function, self.text, cloudpickle.dumps(self.network))


def _loaded(function: str, text: str, network: bytes) -> Source:
    return Source(function, text, pickle.loads(network))


def from_file(place: str) -> Source:
    """The network of "FILE.py:NAME", which may import the modules beside it. Raises NetworkError."""
    file, _, function = place.rpartition(":")
    if not file or not function.isidentifier():
        raise NetworkError(f"write a network as FILE.py:NAME, not {place!r}")
    try:
        path = Path(file).resolve()
        with tokenize.open(path) as opened:  # decodes it as Python does
            text = opened.read()
    except (OSError, ValueError, SyntaxError) as error:
        raise NetworkError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        with _modules_of(path.parent):
            network = runpy.run_path(str(path), run_name=f"user_code_{path.stem}").get(function)
    except (Exception, SystemExit) as error:
        raise NetworkError(f"{file} cannot be imported: {_describe(error, path)}") from error
    if not callable(network):
        raise NetworkError(f"{file} defines no class or function {function!r}")
    return _source(network, function, f"{file}: {function}", text)


def from_object(network: Callable[[], nn.Module]) -> Source:
    """The network of a class or function, e.g. one from a notebook's cell. Raises NetworkError."""
    if isinstance(network, nn.Module):
        raise NetworkError(f"pass the class {type(network).__name__}, not an instance of it")
    if not callable(network):
        raise NetworkError(f"a network is a name, a line, FILE.py:NAME, or a class or function, not {short(network)}")
    name = getattr(network, "__name__", type(network).__name__).strip("<>")  # <lambda>, partial
    return _source(network, name, name)


def _source(network: Callable[[], nn.Module], name: str, place: str, text: str = "") -> Source:
    """The network with its text: `text` or its own code, then other code of the user's that it uses, then its layers.

    The layers tell two networks of the same code apart: their sizes may be written elsewhere, or in no available code.
    """
    text = text or _text(network)
    others = [other for other in map(_text, _used_code(network, name)) if other not in text]
    layers = repr(check_network(Source(name, text, network).build, place))
    return Source(name, "\n".join([text, *others, textwrap.indent(layers, "# ")]), network)


@contextmanager
def _modules_of(folder: Path) -> Iterator[None]:
    """Let code import the modules of `folder`. They are forgotten again: cloudpickle then sends them as well."""

    def loaded() -> list[str]:
        files = {name: getattr(module, "__file__", None) or "/" for name, module in sys.modules.items()}
        own = {name.partition(".")[0] for name, file in files.items() if folder in Path(file).parents[:2]}
        return [name for name in files if name.partition(".")[0] in own - set(PROJECT)]

    before = {name: sys.modules.pop(name) for name in loaded()}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


def _used_code(network: Callable, name: str) -> list[Callable]:
    """The user's classes and functions that are sent with a network. Raises NetworkError if it cannot be sent."""
    sent = []

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, thing):
            reduced = super().reducer_override(thing)
            is_code = isinstance(thing, type | FunctionType) and thing.__module__ != "builtins"
            if is_code and reduced is not NotImplemented:  # as a whole, not by its name
                sent.append(thing)
            return reduced

    try:
        Pickler(io.BytesIO()).dump(network)
    except Exception as error:
        raise NetworkError(f"{name} cannot be sent to another process: {_describe(error)}") from error
    return [thing for thing in sent if thing is not network and "." not in thing.__qualname__]  # no methods


def _text(thing: Callable) -> str:
    """The code of a class or function; where it is not available, a comment that no other network has."""
    if not isinstance(thing, type | FunctionType):
        return f"# {thing!r}\n"  # e.g. a partial
    with suppress(OSError, TypeError):
        return textwrap.dedent(inspect.getsource(thing))
    # `inspect` does not find a class in a notebook's cell. Its methods know the cell.
    for method in filter(inspect.isfunction, vars(thing).values()):
        lines = linecache.getlines(method.__code__.co_filename)
        for number, line in enumerate(lines):
            if re.match(rf"\s*class {thing.__name__}\b", line):
                return textwrap.dedent("".join(inspect.getblock(lines[number:])))
    return f"# The code of {thing.__name__} is not available, {datetime.now()}.\n"


def check_network(build: Callable[[], nn.Module], name: str) -> nn.Module:
    """A network that takes images (N, 1, 28, 28), returns logits (N, 10) and can be trained, else NetworkError."""
    with torch.random.fork_rng(devices=[]):
        network = build()
        if fault := _fault(network):
            raise NetworkError(f"{name} {fault}")
    return network


def _fault(network: nn.Module) -> str:
    """Why a network cannot be trained; empty if it can."""
    if fault := parameters_fault(network):
        return fault
    for mode, count in itertools.product((False, True), COUNTS):
        images = torch.randn(count, 1, 28, 28)
        try:
            logits = network.train(mode)(images)
        except (Exception, SystemExit) as error:
            return f"cannot take images {tuple(images.shape)}: {_describe(error)}"
        if fault := logits_fault(logits, count):
            return fault
    if not logits.isfinite().all():
        return "gives logits that are not finite for random images"
    if not logits.requires_grad:
        return "cannot be trained: its logits do not depend on its parameters, or are detached"
    if _leaves(logits) - set(network.parameters()):
        return "has layers that it does not know of: use nn.ModuleList instead of a list"
    try:
        logits.sum().backward()
    except RuntimeError as error:
        return f"cannot be trained: {_describe(error)}"
    return ""


def _leaves(logits: torch.Tensor) -> set[torch.Tensor]:
    """The tensors that training would give a gradient."""
    nodes, leaves, waiting = set(), set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [each for each, _ in node.next_functions]
            leaves |= {node.variable} if hasattr(node, "variable") else set()
    return leaves


def _describe(error: BaseException, file: Path | None = None) -> str:
    """The kind and the first line of an error, with the line number in `file`."""
    text, *_ = [*str(error).splitlines(), ""]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")
