"""What happens if something goes wrong in the middle: kills, full disks, deleted files, a clock that is set back.

python -m s5.benchmarks.faults               every fault many times, at random moments, into results/faults.json
python -m s5.benchmarks.faults --rounds 5    a quick try, into another file if --output says so

A fault is survived if afterwards every file is whole, no traceback was printed, and the same command, run again, ends
with the same files as a run without any fault, byte for byte. Requires Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import NamedTuple

from s5.benchmarks import fault_checks
from s5.benchmarks.fault_checks import FaultError, Harness, ImpossibleError, prepared
from s5.training.command_line import Parser, output_file, run_command
from s5.training.files import FAULTS, atomic_path

# fault: how it is called in results/faults.json, and how often it is tried
CHECKS: dict[Callable[[Harness, int], None], tuple[str, int]] = {
    fault_checks.repeated_runs: ("none: the same command twice", 5),
    fault_checks.killed_runs: ("a run is killed", 50),
    fault_checks.killed_sweeps: ("a sweep is killed", 10),
    fault_checks.killed_sweeps_that_share_a_ledger: ("one of two sweeps that share a ledger is killed", 10),
    fault_checks.full_disk: ("the disk is full during a run", 20),
    fault_checks.full_disk_under_a_ledger: ("the disk is full during a sweep", 20),
    fault_checks.read_only_disk: ("the folder becomes read-only during a run", 20),
    fault_checks.deleted_checkpoint: ("the checkpoint is deleted during a run", 20),
    fault_checks.clock_set_back: ("the clock is set back", 5),
    fault_checks.busy_cores: ("two busy processes for every core", 3),
    fault_checks.busy_cores_under_ray: ("the same, and Ray runs the sweep", 1),
}


class Outcome(NamedTuple):
    tried: int
    survived: int


def try_faults(harness: Harness, check: Callable[[Harness, int], None], rounds: int) -> Outcome:
    """Try a fault `rounds` times; each that is not survived is printed."""
    tried = survived = 0
    for _ in range(rounds):
        try:
            check(harness, 1)
            survived += 1
        except FaultError as error:
            print(f"{check.__name__}: {error}", file=sys.stderr)
        except ImpossibleError as error:
            print(f"{check.__name__}: not tried, {error}", file=sys.stderr)
            break
        tried += 1
    return Outcome(tried, survived)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("faults", __doc__, usage="python -m s5.benchmarks.faults [options]")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each fault (default: 1 to 50)")
    parser.add_argument(
        "--output", type=output_file, default=FAULTS, metavar="FILE", help="default: results/faults.json"
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, not {options.rounds}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 if a fault was not survived."""
    options = parse_arguments(arguments)
    rows = []
    with prepared() as harness:
        for check, (name, usual) in CHECKS.items():
            tried, survived = try_faults(harness, check, options.rounds or usual)
            rows.append({"fault": name, "tried": tried, "survived": survived})
            print(f"{name}: {survived} of {tried} survived", flush=True)
    with atomic_path(options.output) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["tried"] == row["survived"] for row in rows) else 1


if __name__ == "__main__":
    run_command(main)
