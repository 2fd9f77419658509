"""Write the tables of README.md and RESULTS.md from the ledger and the measurements in results/.

python -m experiments.report            update both pages, between their markers
python -m experiments.report --check    only check that they are up to date
python -m experiments.report --figures  also draw the figures (requires the full MNIST)
"""

from __future__ import annotations

import sys

from training.command_line import Parser, run_command
from training.files import README, RESULTS_PAGE, atomic_path


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, or 1 for an error or, with --check, for a stale page."""
    parser = Parser("report", __doc__, usage="python -m experiments.report [options]")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is stale")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    options = parser.parse_args(arguments)

    from experiments import pages  # torch and pandas take seconds to load
    from experiments.ledger import read_ledger

    try:
        trials = read_ledger()
        sections = pages.sections(trials)
        current = {page: page.read_text(encoding="utf-8") for page in (README, RESULTS_PAGE)}
        updated = pages.fill(current, sections)
        if options.figures and not options.check:
            pages.draw_figures(trials)
        for page in current:
            stale = updated[page] != current[page]
            if stale and not options.check:
                with atomic_path(page) as temporary:
                    temporary.write_text(updated[page], encoding="utf-8")
            state = "up to date" if not stale else "stale" if options.check else f"updated from {len(trials)} trials"
            print(f"{page.name}: {state}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return int(options.check and updated != current)


if __name__ == "__main__":
    run_command(main)
