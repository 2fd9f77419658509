"""What `sweep`, `compare` and `search` share: options, and a line for each error."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from s5.training.command_line import INTERRUPTED, PRECISIONS, Parser, recipe_changes


def make_parser(name: str, description: str, usage: str) -> Parser:
    """A parser without defaults: an option that is not used is absent, and the library's default counts."""
    parser = Parser(name, description, usage=f"python -m s5 {usage}")
    parser.argument_default = argparse.SUPPRESS
    return parser


def add_trial_options(add: Callable) -> None:
    """The options of every command that runs trials; `add` is `add_argument`."""
    add("--data", metavar="NAME", help="mnist (default), fashion, kmnist, sample, or a folder with files as MNIST's")
    add("--ledger", type=Path, metavar="FILE", help="record the trials there (default: runs/ledger.jsonl)")
    add("--device", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", choices=PRECISIONS, help="default: bfloat16 if the device multiplies it natively")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per core; GPU: 1; --ray: no limit)")


def add_ray(add: Callable) -> None:
    """The option of a Ray cluster."""
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's, or one that is started here")


def seeds(text: str) -> list[int]:
    """ "0-2,7" → [0, 1, 2, 7]. Raises ValueError for any other text."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def with_changes(options: argparse.Namespace) -> dict:
    """The options of a command as arguments of the library: those of a recipe in a dict, as `changes`."""
    changes = recipe_changes(options)
    return {name: value for name, value in vars(options).items() if name not in changes} | {"changes": changes}


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
