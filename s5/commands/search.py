"""Search for the best network below a number of parameters, by the loss on the validation split.

python -m s5 search --below 2000                60 networks, then the best third for longer, and so on
python -m s5 search --below 2000 --trials 200 --ray auto
python -m s5 search --below 2000 --dry-run      what would be trained, and how long it would take

The networks are lines of s5/networks/grammar.py, drawn at random. Every trial is recorded, so that the same command
continues after a stop. The test images are never used.
"""

from s5.commands.options import add_ray, add_trial_options, exit_code, make_parser
from s5.training.command_line import output_file
from s5.training.files import RUNS, check_folder


def main(arguments: list[str]) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    parser = make_parser("search", __doc__, "search --below N [options]")
    add = parser.add_argument_group("search").add_argument
    add("--below", type=int, required=True, metavar="N", help="every network has fewer parameters than this")
    add("--trials", type=int, metavar="N", help="networks that are drawn (default: 60)")
    add("--seed", type=int, metavar="N", help="of the drawing (default: 0)")
    add("--epochs", type=int, metavar="N", help="of the first round (default: 1)")
    add("--dry-run", action="store_true", help="print the rounds and the expected duration, and stop")
    add("--figure", type=output_file, default=RUNS / "search.png", metavar="FILE", help="default: runs/search.png")
    add = parser.add_argument_group("machine").add_argument
    add_trial_options(add)
    add_ray(add)
    options = vars(parser.parse_args(arguments))
    figure = options.pop("figure")

    from s5.analysis.style import save_figure
    from s5.experiments.search import search

    def run() -> int:
        if "dry_run" not in options:
            check_folder(figure.parent)  # before hours of training
        if found := search(**options):
            print(f"\n{found}")
            save_figure(found.figure, figure)
            print(f"Figure: {figure}")
        return 0

    return exit_code(parser, run)
