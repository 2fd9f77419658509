"""A network of one's own: a class or function in a file or in a notebook's cell, kept as text.

The text goes with every trial, so that a worker of any kind can build the network and the ledger says what was run. It
must contain all that the network needs, or import it from installed packages; `torch`, `nn` and `F` are there already.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import linecache
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from s5.networks.grammar import NetworkError
from s5.training.checks import logits_fault, parameters_fault
from s5.training.files import ROOT

COUNTS = (2, 3)  # images that a network is tried on


@dataclass(frozen=True)
class Source:
    """Python code that defines `function`, a class or function without arguments that returns an `nn.Module`."""

    function: str
    text: str

    @property
    def name(self) -> str:
        """The function's name and the beginning of the text's SHA-256, e.g. "MyNet@1a2b3c4d"."""
        return f"{self.function}@{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def build(self) -> nn.Module:
        """A new network. Raises NetworkError if the code fails."""
        file = f"<{self.name}>"
        linecache.cache[file] = (len(self.text), None, self.text.splitlines(keepends=True), file)  # for tracebacks
        module = ModuleType(f"own_network_{self.name.rpartition('@')[2]}")
        module.__dict__.update(torch=torch, nn=nn, F=F)
        sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
        try:
            exec(compile(self.text, file, "exec", dont_inherit=True), module.__dict__)  # no __future__ of this file
            if self.function not in module.__dict__:
                raise NetworkError(f"{self.function!r} is not defined in the network's code")
            network = module.__dict__[self.function]()
        except NetworkError:
            raise
        except (Exception, SystemExit) as error:  # anything, it is the user's code
            hint = "; import and define all it needs in the same class, function or file" * isinstance(
                error, NameError | ImportError
            )
            raise NetworkError(f"{self.function} cannot be built: {_describe(error, file)}{hint}") from error
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.function}() must return an nn.Module, not {type(network).__name__}")
        return network


def from_file(place: str) -> Source:
    """The network of "FILE.py:NAME". Raises NetworkError if there is no such file or name."""
    file, _, function = place.rpartition(":")
    if not file or not function.isidentifier():
        raise NetworkError(f"write a network as FILE.py:NAME, not {place!r}")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NetworkError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        return _checked(Source(function, text))
    except NetworkError as error:
        raise NetworkError(f"{file}: {error}") from error


def from_object(network: Callable[[], nn.Module]) -> Source:
    """The network of a class or function, e.g. one from a notebook's cell. Raises NetworkError without its text."""
    if isinstance(network, nn.Module):
        raise NetworkError(f"pass the class {type(network).__name__}, not an instance of it")
    name = getattr(network, "__name__", "")
    try:
        text = textwrap.dedent(_class_in_a_cell(network) or inspect.getsource(network))
    except (OSError, TypeError) as error:
        is_bare = inspect.isclass(network) and not any(map(inspect.isfunction, vars(network).values()))
        hint = "write it in a cell or a file" + ", with a method of its own" * is_bare
        raise NetworkError(f"the code of {name or network!r} is not available: {hint}") from error
    if not name.isidentifier():
        raise NetworkError(f"a network must be a class or function with a name, not {name or type(network).__name__}")
    return _checked(Source(name, text))


def _checked(source: Source) -> Source:
    """The source, if it can be built and imports installed packages only. Raises NetworkError.

    A module beside it would not be part of the text, so that a change of it would not make another network.
    """
    source.build()
    folders = {Path.cwd(), ROOT}
    for node in ast.walk(ast.parse(source.text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in {name.partition(".")[0] for name in names}:
            file = getattr(sys.modules.get(name), "__file__", None)  # none of what is built into Python
            if file and folders & set(Path(file).parents[:2]):
                wanted = "a network's code must contain all that it needs or import it from installed packages"
                raise NetworkError(f"{source.function} imports {name}, a file of yours: {wanted}")
    return source


def _class_in_a_cell(network: object) -> str:
    """The text of a class in a notebook's cell, which `inspect.getsource` does not find; empty for anything else."""
    if not inspect.isclass(network) or network.__module__ != "__main__":
        return ""
    for method in filter(inspect.isfunction, vars(network).values()):
        text = "".join(linecache.getlines(method.__code__.co_filename))
        for node in ast.walk(ast.parse(text)):
            is_it = isinstance(node, ast.ClassDef) and node.name == network.__name__
            if is_it and node.lineno <= method.__code__.co_firstlineno <= node.end_lineno:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
    return ""


def check_network(build: Callable[[], nn.Module], name: str) -> None:
    """Raise NetworkError unless the network takes images (N, 1, 28, 28), returns logits (N, 10) and can be trained."""
    with torch.random.fork_rng(devices=[]):
        network = build()
        if fault := parameters_fault(network):
            raise NetworkError(f"{name} {fault}")
        for mode, count in itertools.product((False, True), COUNTS):
            images = torch.randn(count, 1, 28, 28)
            try:
                logits = network.train(mode)(images)
            except (Exception, SystemExit) as error:  # anything, it may be the user's code
                raise NetworkError(f"{name} cannot take images {tuple(images.shape)}: {_describe(error)}") from error
            if fault := logits_fault(logits, count):
                raise NetworkError(f"{name} {fault}")
        if not logits.isfinite().all():
            raise NetworkError(f"{name} gives logits that are not finite for random images")
        if not logits.requires_grad:
            raise NetworkError(f"{name} cannot be trained: its logits do not depend on its parameters, or are detached")
        if _leaves(logits) - set(network.parameters()):
            raise NetworkError(f"{name} has layers that it does not know of: use nn.ModuleList instead of a list")
        try:
            logits.sum().backward()
        except RuntimeError as error:
            raise NetworkError(f"{name} cannot be trained: {_describe(error)}") from error


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


def _describe(error: Exception, file: str = "") -> str:
    """The kind and the first line of an error, with the line number in `file`."""
    text = (str(error).splitlines() or [""])[0]
    place, trace = "", error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            place = f" (line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}"
