"""Measure how fast this project is, beside the pipeline that it started from. Use an idle machine.

python -m s5.benchmarks.bench                     all parts, into this machine's record in results/speed.json
python -m s5.benchmarks.bench --only epoch,start  these parts; the last results of the others are kept
python -m s5.benchmarks.bench --smoke             try all parts on the small sample; nothing is written
"""

from __future__ import annotations

import argparse
import json
import sys

from s5.training.command_line import Parser, output_file, run_command
from s5.training.files import SPEED, atomic_path

# Torch takes seconds to load, so what needs it is imported inside functions: --help answers at once.

# part: (mean test accuracy in percent, variant that reaches it in the fewest epochs)
ACCURACY_TARGETS = {"to 99.0%": (99.0, "to_99_0"), "to 99.4%": (99.4, "to_99_4")}
IN_EPOCHS = ("epoch", "small", "busy", "profile", "memory", "start")  # functions of epochs.py
IN_RUNS = ("inference", "throughput", "sweeps", "ledger", "gpu")  # of runs.py
PARTS = (*IN_EPOCHS, *ACCURACY_TARGETS, *IN_RUNS)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("bench", __doc__, usage="python -m s5.benchmarks.bench [options]")
    add = parser.add_argument_group("parts").add_argument
    names = f"comma-separated, from {', '.join(PARTS)} (default: all)".replace("%", "%%")
    add("--only", default=",".join(PARTS), metavar="PARTS", help=names)
    add("--repeats", type=int, default=5, metavar="N", help="of each timing (default: 5)")
    add("--smoke", action="store_true", help="try everything on a small sample; write nothing")
    add("--output", type=output_file, default=SPEED, metavar="FILE", help="default: results/speed.json")
    add = parser.add_argument_group("time to accuracy").add_argument
    add("--seeds", type=int, default=10, metavar="N", help="number of seeds (default: 10)")
    add("--first-seed", type=int, metavar="N", help="the smallest of them (default: the first that was never measured)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := [part for part in options.only if part not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if min(options.repeats, options.seeds) < 2:
        parser.error("--repeats and --seeds must be 2 or more: one measurement has no spread")
    return options


def measure(part: str, options: argparse.Namespace, records: dict[str, dict]) -> dict:
    """The results of one part; a smoke run takes as few measurements as possible. `records`: of all machines."""
    from s5.benchmarks import epochs, runs

    if part in ACCURACY_TARGETS:
        target, variant = ACCURACY_TARGETS[part]
        first = unused_seed(part, records) if options.first_seed is None else options.first_seed
        seeds = [first + number for number in range(2 if options.smoke else options.seeds)]
        return runs.time_to_accuracy(variant, target, seeds, options.device, options.smoke)
    return getattr(epochs if part in IN_EPOCHS else runs, part)(1 if options.smoke else options.repeats, options.smoke)


def unused_seed(part: str, records: dict[str, dict]) -> int:
    """The first seed above those of all recorded runs of a part: a test accuracy takes fresh ones."""
    from s5.reports.speed_tables import accuracy_runs

    return 1 + max(
        (max(run["seeds"]) for record in records.values() for run in accuracy_runs(record, part)), default=-1
    )


def update(results: dict, part: str, measured: dict) -> None:
    """Record what was measured. A test accuracy that it replaces stays in the record, under "earlier"."""
    if part in ACCURACY_TARGETS and part in results:
        replaced = results[part]
        measured = measured | {"earlier": [*replaced.pop("earlier", []), replaced]}
    results[part] = measured


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 for a failure."""
    options = parse_arguments(arguments)

    import torch

    from s5.benchmarks.timing import environment, machine
    from s5.reports.speed_tables import read_measurements
    from s5.training.mnist import DataError

    print(json.dumps(environment(), indent=1))
    try:
        records = read_measurements(options.output) if options.output.exists() and not options.smoke else {}
        for part in options.only:
            print(f"{part} …", flush=True)
            measured = measure(part, options, records)
            if measured and not options.smoke:  # without a GPU, its part measures nothing
                device = options.device if part in ACCURACY_TARGETS else "cuda" if part == "gpu" else "cpu"
                about = environment(torch.device(device))
                results = records.setdefault(machine(about), {})  # other machines' records stay as they are
                update(results, part, {"environment": about, **measured})
                with atomic_path(options.output) as temporary:
                    temporary.write_text(json.dumps(records, indent=1) + "\n")
    except (DataError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
