"""Measure how fast this project is, beside the pipeline that it started from. Use an idle machine.

python -m s5 bench                    all parts, into runs/speed.json
python -m s5 bench epoch "to 99.4%"   these parts; the last results of the others are kept
python -m s5 bench --smoke            try all parts on the small sample; nothing is written
"""

import sys

from s5.training.command_line import Parser, output_file
from s5.training.files import RUNS

PARTS = ("epoch", "small", "to 99.4%", "inference", "gpu")


def main(arguments: list[str]) -> int:
    """The command; returns its exit code: 0, or 1 for a failure."""
    parser = Parser("bench", __doc__, usage="python -m s5 bench [PART …] [options]")
    names = ", ".join(f'"{part}"' if " " in part else part for part in PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"from {names} (default: all)".replace("%", "%%"))
    add = parser.add_argument_group("measurement").add_argument
    add("--repeats", type=int, default=5, metavar="N", help="of each timing (default 5)")
    add("--smoke", action="store_true", help="try everything on a small sample; write nothing")
    add("--output", type=output_file, default=RUNS / "speed.json", metavar="FILE", help="default runs/speed.json")
    add = parser.add_argument_group("time to accuracy").add_argument
    add("--seeds", type=int, default=10, metavar="N", help="number of seeds, none measured before (default 10)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}; there are: {names}")
    if min(options.repeats, options.seeds) < 2:
        parser.error("--repeats and --seeds must be 2 or more: one measurement has no spread")
    options.parts = options.parts or PARTS

    from s5.benchmarks.bench import bench
    from s5.training.mnist import DataError

    try:
        bench(**vars(options))
    except (DataError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0
