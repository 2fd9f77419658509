"""What `sweep`, `compare` and `search` share: options, and a line for each error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from s5.training.command_line import INTERRUPTED, PRECISIONS, Parser
from s5.training.recipe import Recipe

MAX_SEEDS = 10_000


def make_parser(name: str, description: str, usage: str) -> Parser:
    """A parser without defaults: an option that is not used is absent, and the library's default counts."""
    parser = Parser(name, description, usage=f"python -m s5 {usage}")
    parser.argument_default = argparse.SUPPRESS
    return parser


def add_trial_options(add: Callable) -> None:
    """The options of every command that runs trials; `add` is `add_argument`."""
    add("--sample", action="store_true", help="use the small sample instead of MNIST")
    add("--ledger", type=ledger, metavar="FILE", help="record the trials there (default: runs/ledger.jsonl)")
    add("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", choices=PRECISIONS, help="default: bfloat16 if the device multiplies it natively")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per core; GPU: 1; --ray: no limit)")


def add_ray(add: Callable) -> None:
    """The option of a Ray cluster."""
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's, or one that is started here")


def ledger(text: str) -> Path:
    """The type of an option that names a ledger. Raises ArgumentTypeError for any file but a .jsonl file."""
    if Path(text).suffix != ".jsonl":  # so that no other file is appended to by mistake
        raise argparse.ArgumentTypeError(f"it must be a .jsonl file, not {text}")
    return Path(text)


def seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7]. Raises ArgumentTypeError for any other text."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers = range(int(first), int(last if dash else first) + 1)
            if not 0 < len(numbers) <= MAX_SEEDS - len(found) or numbers[-1] >= 2**63:
                raise ValueError("an empty range, too many seeds, or more than torch takes")
            found += numbers
    except (ValueError, OverflowError):
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        message = f"seeds must be like 0-4 or 0,3,7, at most {MAX_SEEDS:,} and below 2^63, not {shown!r}"
        raise argparse.ArgumentTypeError(message) from None
    return list(dict.fromkeys(found))


def with_changes(options: dict) -> dict:
    """The options of a command as arguments of the library: those of a recipe in a dict, as `changes`."""
    recipe = {field.name for field in fields(Recipe)}
    changes = {name: value for name, value in options.items() if name in recipe}
    return {name: value for name, value in options.items() if name not in recipe} | {"changes": changes}


def exit_code(parser: Parser, run: Callable[[], int]) -> int:
    """What `run` returns; 1 after an error, 130 after Ctrl-C. Exits with 2 for an option that makes no sense."""
    from s5.experiments.local_runner import RERUN

    try:
        return run()
    except KeyboardInterrupt:
        print(f"Interrupted. {RERUN}", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        parser.error(str(error))
    except (OSError, RuntimeError) as error:  # among them DataError and ClusterError
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
