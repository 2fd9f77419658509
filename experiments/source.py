"""A network of one's own: a class or function in a file or in a notebook's cell, kept as text.

The text goes with every trial, so that a worker of any kind can build the network and the ledger says what was run.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from experiments.networks import NetworkError

IMAGES, CLASSES = (2, 1, 28, 28), 10  # what a network is tried on


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
        name = f"<{self.name}>"
        # Tracebacks, and libraries that read the source of a class, find the text here.
        linecache.cache[name] = (len(self.text), None, self.text.splitlines(keepends=True), name)
        space = {"__name__": "own_network", "torch": torch, "nn": nn, "F": F}
        try:
            exec(compile(self.text, name, "exec"), space)
            network = space[self.function]()
        except KeyError as error:
            raise NetworkError(f"{error.args[0]!r} is not defined in the network's code") from error
        except Exception as error:  # anything, it is the user's code
            raise NetworkError(f"{self.function} cannot be built: {_describe(error, name)}") from error
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.function}() must return an nn.Module, not {type(network).__name__}")
        return network


def from_file(place: str) -> Source:
    """The network of "FILE.py:NAME". Raises NetworkError if there is no such file or name."""
    file, _, function = place.rpartition(":")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NetworkError(f"{file or place} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    source = Source(function, text)
    source.build()
    return source


def from_object(network: Callable[[], nn.Module]) -> Source:
    """The network of a class or function, e.g. one from a notebook's cell. Raises NetworkError without its text."""
    name = getattr(network, "__name__", "")
    try:
        text = textwrap.dedent(_class_in_a_cell(network) or inspect.getsource(network))
    except (OSError, TypeError) as error:
        raise NetworkError(f"the code of {name or network!r} is not available: write it in a cell or a file") from error
    if not name.isidentifier():
        raise NetworkError(f"a network must be a class or function with a name, not {name or type(network).__name__}")
    source = Source(name, text)
    source.build()
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
                return ast.get_source_segment(text, node)
    return ""


def check_network(build: Callable[[], nn.Module], name: str) -> None:
    """Raise NetworkError unless the network takes images (N, 1, 28, 28), returns logits (N, 10) and can be trained."""
    with torch.random.fork_rng(devices=[]):
        network = build()
        for mode in (False, True):
            try:
                logits = network.train(mode)(torch.zeros(IMAGES))
            except Exception as error:  # anything, it may be the user's code
                raise NetworkError(f"{name} cannot take images of shape {IMAGES}: {_describe(error)}") from error
            expected = (IMAGES[0], CLASSES)
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            if found != expected:
                raise NetworkError(f"{name} must return logits of shape (N, {CLASSES}); for {IMAGES} it gave {found}")
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise NetworkError(f"{name} has no parameters to train")


def _describe(error: Exception, file: str = "") -> str:
    """The kind and the first line of an error, with the line number in `file`."""
    text = (str(error).splitlines() or [""])[0]
    place, trace = "", error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == file:
            place = f" (line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}"
