"""What the command lines share: one-line errors, exit codes, plurals, and an option for every field of a recipe.

No torch here: it takes seconds to load, and `--help` should not.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from s5.training.recipe import CHOICES, Recipe, short

INTERRUPTED = 130  # the shell's exit code for Ctrl-C
PRECISIONS = ("auto", "float32", "bfloat16")  # of a forward and backward pass: see device.py
MAX_THREADS = 1024
MAX_NAME, MAX_PATH = 255, 4000  # bytes that the usual file systems take
TYPES = {"int": int, "float": float, "str": str}
METAVARS = {"int": "N", "float": "X", "str": "NAME"}


class Parser(argparse.ArgumentParser):
    """Prints a module's docstring as its description, and an error in one line, without the usage before it."""

    def __init__(self, prog: str, description: str | None, usage: str):
        layout = argparse.RawDescriptionHelpFormatter
        # Without abbreviations, which would let a mistyped option start a run.
        super().__init__(prog, usage=usage, description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def path(text: str) -> Path:
    """The type of an option that names a file or a folder.

    Raises ArgumentTypeError for an empty name, which would be the current folder, and for one that is too long.
    """
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    if any(len(os.fsencode(part)) > MAX_NAME for part in Path(text).parts) or len(os.fsencode(text)) > MAX_PATH:
        raise argparse.ArgumentTypeError(f"the name is too long: {text[:60]}…")
    return Path(text)


def output_file(text: str) -> Path:
    """The type of an option that names a file to write. Raises ArgumentTypeError as `path` does, and for a folder."""
    if os.path.isdir(path(text)):  # False where one may not look
        raise argparse.ArgumentTypeError(f"{text} is a folder, not a file")
    return Path(text)


def check_threads(threads: int | None) -> None:
    """Raise ValueError unless this is a number of threads, or None for as many as torch is set to."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise ValueError(f"threads must be a whole number from 1 to {MAX_THREADS:,}, not {short(threads)}")


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its code, or quietly on Ctrl-C or if nobody reads its output any more."""
    for stream in (sys.stdout, sys.stderr):
        # On Windows a redirected stream may not encode └ and –; a file's name may contain bytes that are no text.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.formatwarning = partial(_format_warning, warnings.formatwarning)
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # e.g. "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at the exit
        code = 1
    sys.exit(code)


def _format_warning(usual: Callable[..., str], message: Warning | str, category: type[Warning], *place: Any) -> str:
    """A warning for users in a line, without the place in the code; any other in the `usual` way."""
    return f"warning: {message}\n" if issubclass(category, UserWarning) else usual(message, category, *place)


def plural(number: int, noun: str) -> str:
    """The number and the noun: "1 trial", "2 trials"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def add_recipe_options(
    parser: argparse.ArgumentParser, title: str, defaults: Recipe | None = None, skip: Collection[str] = ()
) -> None:
    """Give `parser` a group with an option for every field of `Recipe` except those in `skip`.

    The help names the values of `defaults`; an option that is not used is absent from the parsed namespace.
    """
    group = parser.add_argument_group(title)
    for field in fields(Recipe):
        if field.name in skip:
            continue
        names = ["--" + field.name.replace("_", "-")] + (["--lr"] if field.name == "learning_rate" else [])
        default = f" (default {getattr(defaults, field.name)})" if defaults else ""
        help = (field.metadata["help"] + default).replace("%", "%%")
        options: dict = {"dest": field.name, "default": argparse.SUPPRESS, "help": help}
        if field.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif field.name in CHOICES:
            options["choices"] = CHOICES[field.name]
        else:
            options |= {"type": TYPES[field.type], "metavar": METAVARS[field.type]}
        group.add_argument(*names, **options)


def recipe_changes(options: argparse.Namespace) -> dict:
    """The recipe's fields that the command line sets, with their values."""
    names = [field.name for field in fields(Recipe)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
