"""Write README.md, RESULTS.md and the cards of the trained networks from the ledger and the measurements in results/.

python -m s5 report             update the pages between their markers, and the cards
python -m s5 report --check     change nothing; check pages, cards, figures, notebooks, weights and ledger
python -m s5 report --figures   also draw the figures (requires the full MNIST)
python -m s5 report --measure   first measure the networks whose weights have changed (the same, some minutes)
"""

import sys

from s5.training.command_line import Parser


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 for an error or, with --check, for anything that is wrong."""
    parser = Parser("report", __doc__, usage="python -m s5 report [options]")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if anything is wrong")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    parser.add_argument("--measure", action="store_true", help="measure networks with new weights before")
    options = parser.parse_args(arguments)
    if options.check and (options.figures or options.measure):
        parser.error("--check changes nothing: without --figures and --measure")

    from s5.experiments.ledger import read_ledger
    from s5.reports import cards, check, pages

    try:
        trials = read_ledger()
        if options.check:
            return check.report(trials)
        if options.measure:
            cards.measure()
        if options.figures:
            pages.draw_figures(trials)
        print(pages.update(trials))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0
