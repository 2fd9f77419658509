"""Compare a network with another one, both trained by the same recipe from the same seeds.

python -m s5 compare "conv 8 16 / 24 32 / 32 gap"       a line of s5/networks/grammar.py, against s5
python -m s5 compare mine.py:MyNet s5 --seeds 100-104   a class or function of your own
python -m s5 compare separable dropout                  two variants

Trials in the ledger and in results/ledger.jsonl are not trained again.
"""

from s5.commands.options import add_trial_options, exit_code, make_parser, seeds, with_changes
from s5.training.command_line import add_recipe_options, output_file
from s5.training.files import RUNS, check_folder


def main(arguments: list[str]) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    parser = make_parser("compare", __doc__, "compare NETWORK [OTHER] [options]")
    parser.add_argument("network", metavar="NETWORK", help="a variant, a line, or FILE.py:NAME")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="the same; its recipe trains both (default: s5)")
    add = parser.add_argument_group("trials").add_argument
    add("--seeds", type=seeds, help="e.g. 0-4 or 0,3,7 (default: 100-102)")
    add_trial_options(add)
    add("--figure", type=output_file, default=RUNS / "compare.png", metavar="FILE", help="default: runs/compare.png")
    add_recipe_options(parser, "changes to the recipe")
    options = with_changes(parser.parse_args(arguments))
    figure = options.pop("figure")

    from s5.analysis.style import save_figure
    from s5.experiments.compare import compare

    def run() -> int:
        check_folder(figure.parent)  # before hours of training
        result = compare(**options)
        print(f"\n{result}")
        save_figure(result.figure, figure)
        print(f"Figure: {figure}")
        return 0

    return exit_code(parser, run)
