"""Write the tables of README.md and RESULTS.md from the ledger and the measurements in results/.

python -m s5.reports.write            update both pages, between their markers
python -m s5.reports.write --check    change nothing; check pages, figures, ledger, measurements and weights
python -m s5.reports.write --figures  also draw the figures (requires the full MNIST)
python -m s5.reports.write --logits   also record what new weights compute (results/logits.json)

Nothing is written from a ledger, measurements or weights that contradict themselves.
"""

from __future__ import annotations

import argparse
import sys

from s5.training.command_line import Parser, run_command
from s5.training.files import README, RESULTS_PAGE, atomic_path


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 for an error or, with --check, for anything that is wrong."""
    parser = Parser("report", __doc__, usage="python -m s5.reports.write [options]")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if anything is wrong")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    parser.add_argument("--logits", action="store_true", help="record the logits of the committed weights too")
    options = parser.parse_args(arguments)
    if options.check and (options.figures or options.logits):
        parser.error("--check changes nothing: without --figures and --logits")
    try:
        return check() if options.check else update(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1


def check() -> int:
    """Print all that is wrong; returns 0 if nothing is, else 1."""
    from experiments import audit  # torch and pandas take seconds to load

    found = audit.problems()
    for problem in found:
        print(f"report: {problem}", file=sys.stderr)
    if not found:
        print("README.md, RESULTS.md, figures and results: up to date, no contradiction")
    return int(bool(found))


def update(options: argparse.Namespace) -> int:
    """Write what is stale. Raises ValueError if what it is made from contradicts itself."""
    from experiments import audit, pages  # torch and pandas take seconds to load

    from s5.experiments.ledger import read_ledger

    if options.logits:
        audit.record_logits()
    if found := audit.source_problems():
        raise ValueError("\nreport: ".join(found))
    trials = read_ledger()
    current = {page: page.read_text(encoding="utf-8") for page in (README, RESULTS_PAGE)}
    updated = pages.fill(current, pages.sections(trials))
    if options.figures:
        pages.draw_figures(trials)
    for page in current:
        stale = updated[page] != current[page]
        if stale:
            with atomic_path(page) as temporary:
                temporary.write_text(updated[page], encoding="utf-8")
        print(f"{page.name}: {f'updated from {len(trials)} trials' if stale else 'up to date'}")
    return 0


if __name__ == "__main__":
    run_command(main)
