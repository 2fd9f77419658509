"""Train variants from several seeds and record the trials in a ledger; recorded trials are skipped.

python -m s5 sweep --variants s5,original --seeds 103-105    on this machine, one trial per core
python -m s5 sweep --variants "conv 8 16 / 32 gap,mine.py:MyNet"    networks of your own
python -m s5 sweep --variants s5 --rotation 5 --epochs 8     with another recipe
python -m s5 sweep --ray auto                                on a Ray cluster
"""

from pathlib import Path

from s5.commands.options import add_ray, add_trial_options, exit_code, make_parser, seeds, with_changes
from s5.training.command_line import add_recipe_options


def main(arguments: list[str]) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    parser = make_parser("sweep", __doc__, "sweep [options]")
    add = parser.add_argument_group("trials").add_argument
    names = "separated by commas: names of s5/experiments/variants.py or claims.py, lines (s5/networks/grammar.py), or"
    add("--variants", type=split, help=f"{names} FILE.py:NAME (default: all, those of variants.py)")
    add("--seeds", type=seeds, help="e.g. 0-4 or 0,3,7 (default: 100-102)")
    add("--split", choices=("validation", "test"), help="evaluated images (default: validation)")
    add("--weights", type=Path, metavar="FOLDER", help="save the weights of the trials that are run there")
    add("--dry-run", action="store_true", help="list the trials and the expected duration, and stop")
    add = parser.add_argument_group("machine").add_argument
    add_trial_options(add)
    add("--threads", type=int, metavar="N", help="of each trial (default: 1)")
    add_ray(add)
    add("--gpus-per-trial", type=float, metavar="F", help="with --ray: e.g. 0.25 (default: 0)")
    add("--retries", type=int, metavar="N", help="with --ray: retries of a failed trial (default: 2)")
    add_recipe_options(parser, "changes to each variant's recipe")
    options = parser.parse_args(arguments)

    from s5.experiments.sweep import sweep

    return exit_code(parser, lambda: 1 if sweep(**with_changes(options)) else 0)


def split(text: str) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
