"""A network of the user's: a class or function in a file or in a notebook's cell.

cloudpickle sends it to other processes, and its text goes with every trial, so that the ledger says what was run. The
text is that of the file, or of the class or function with the constants, classes and functions of the notebook that it
uses. A change elsewhere, as of a module beside the file, is not noticed: trials that are recorded under the same text
count as done.
"""

import ast
import hashlib
import inspect
import pickle
import re
import runpy
import sys
import textwrap
import tokenize
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import cloudpickle
import torch
from torch import nn

from s5.networks.grammar import NetworkError
from s5.training.checks import PROJECT, check_architecture, check_network, first_line

CONSTANTS = (int, float, str, tuple, list, dict)


@dataclass(frozen=True)
class Source:
    """A class or function of the user's that returns an `nn.Module` when it is called without arguments."""

    function: str  # its name
    text: str
    network: Callable[[], nn.Module] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """The function's name and the beginning of the text's SHA-256, e.g. "MyNet@1a2b3c4d"."""
        return f"{self.function}@{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def build(self) -> nn.Module:
        """A new network. Raises NetworkError if the code fails."""
        try:
            return self.network()
        except Exception as error:  # anything, it is the user's code
            raise NetworkError(f"it cannot be built: {_describe(error)}") from error

    def __reduce__(self):
        return _loaded, (self.function, self.text, cloudpickle.dumps(self.network))


def _loaded(function: str, text: str, network: bytes) -> Source:
    return Source(function, text, pickle.loads(network))


def from_file(place: str) -> Source:
    """The network of "FILE.py:NAME", which may import the modules beside it. Raises NetworkError."""
    file, _, function = place.rpartition(":")
    if not file or not function.isidentifier():
        raise NetworkError(f"write a network as FILE.py:NAME, not {place!r}")
    path = Path(file).resolve()
    if not path.is_file():
        raise NetworkError(f"there is no file {file}")
    loaded = set(sys.modules)
    sys.path.insert(0, str(path.parent))
    try:
        with tokenize.open(path) as opened:  # decodes it as Python does
            text = opened.read()
        network = runpy.run_path(str(path), run_name=f"user_code_{path.stem}").get(function)
    except Exception as error:
        raise NetworkError(f"{file} cannot be imported: {_describe(error, path)}") from error
    finally:
        sys.path.remove(str(path.parent))
        for name in set(sys.modules) - loaded:  # cloudpickle sends the code of modules that are not loaded
            package = name.partition(".")[0]
            if package not in PROJECT and any((path.parent / each).exists() for each in (package, f"{package}.py")):
                del sys.modules[name]
    if network is None:
        raise NetworkError(f"{file} defines no class or function {function!r}")
    return _checked(Source(function, text, network))


def from_object(network: Callable[[], nn.Module]) -> Source:
    """The network of a class or function, e.g. one from a notebook's cell. Raises NetworkError.

    A class that was imported from a file of the user's is that of "FILE.py:NAME".
    """
    function = getattr(network, "func", network)  # of a partial
    name = getattr(function, "__name__", type(function).__name__).strip("<>")  # <lambda>
    module = sys.modules.get(getattr(network, "__module__", None))
    file = None if getattr(module, "__package__", None) else getattr(module, "__file__", None)
    if file and getattr(module, name, None) is network and module.__name__ not in ("__main__", *PROJECT):
        return from_file(f"{file}:{name}")
    text = _text(function, name)
    if function is not network:
        text += f"# called with {network.args} {network.keywords}\n"
    return _checked(Source(name, text, network))


def _text(thing: object, name: str, users: frozenset[str] = frozenset()) -> str:
    """The code of a class or function, after that of the classes, functions and constants of its module that it uses.

    `users` are the names of those that use it.
    """
    own, before = _own_text(thing, name), ""
    with suppress(SyntaxError):  # of a lambda, whose line may be only a part of a statement
        nodes = list(ast.walk(ast.parse(textwrap.dedent(own))))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {node.arg for node in nodes if isinstance(node, ast.arg)} | {name, *users}
        scope = vars(sys.modules.get(getattr(thing, "__module__", None), object))
        for used in sorted(names & scope.keys() - bound):
            if isinstance(scope[used], CONSTANTS):
                before += f"{used} = {scope[used]!r}\n"
            elif callable(scope[used]) and getattr(scope[used], "__module__", None) == thing.__module__:
                before += _text(scope[used], used, users | {name})
    return before + own


def _own_text(thing: object, name: str) -> str:
    """The code of a class or function; where it is not available, a comment that no other network has."""
    with suppress(OSError, TypeError):
        return inspect.getsource(thing)
    # `inspect` finds no class in a notebook's cell, and nothing in one that begins with %%time.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    for cell in reversed(shell.history_manager.input_hist_raw if shell else []):
        lines = cell.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if re.match(rf"\s*(class|def) {name}\b", line):
                return "".join(inspect.getblock(lines[number:])).rstrip() + "\n"
    return f"# The code of {name} is not available, {datetime.now()}.\n"


def _checked(source: Source) -> Source:
    """The same, if its network can be trained. Raises NetworkError."""
    try:
        check_architecture(source.network)
        with torch.random.fork_rng(devices=[]):
            check_network(source.build())
    except ValueError as error:
        raise NetworkError(f"{source.function}: {error}") from error
    return source


def _describe(error: Exception, file: Path | None = None) -> str:
    """The kind and the first line of an error, with the line number in `file`."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{type(error).__name__}: {first_line(error)}" + (f" (line {lines[-1]})" if lines else "")
