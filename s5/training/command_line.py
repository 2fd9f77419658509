"""What the command lines share: one-line errors, exit codes, plurals, and an option for every field of a recipe.

No torch here: it takes seconds to load, and `--help` should not.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from s5.training.recipe import Recipe, short

INTERRUPTED = 130  # the shell's exit code for Ctrl-C
PRECISIONS = ("auto", "float32", "bfloat16")  # of a forward and backward pass: see device.py
MAX_THREADS = 1024
METAVARS = {int: "N", float: "X", str: "NAME"}


class Parser(argparse.ArgumentParser):
    """Prints a module's docstring as its description, and an error in one line, without the usage before it."""

    def __init__(self, prog: str, description: str | None, usage: str):
        layout = argparse.RawDescriptionHelpFormatter
        # Without abbreviations, which would let a mistyped option start a run.
        super().__init__(prog, usage=usage, description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def output_file(text: str) -> Path:
    """The type of an option that names a file to write. Raises ArgumentTypeError for a folder."""
    if os.path.isdir(text):
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
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # in a line, without the place in the code
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # e.g. "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at the exit
        code = 1
    sys.exit(code)


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
        if field.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif field.type is str and field.metadata["allowed"]:
            options["choices"] = field.metadata["allowed"]
        else:
            options |= {"type": field.type, "metavar": METAVARS[field.type]}
        group.add_argument(*names, **options)


def recipe_changes(options: argparse.Namespace) -> dict:
    """The recipe's fields that the command line sets, with their values."""
    names = [field.name for field in fields(Recipe)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
