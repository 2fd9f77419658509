"""Search for the best network below a number of parameters, by the loss on the validation split.

python -m s5.experiments.search --below 2000                60 networks, then the best third for longer, and so on
python -m s5.experiments.search --below 2000 --trials 200 --ray auto
python -m s5.experiments.search --below 2000 --dry-run             what would be trained, and how long it would take

The networks are lines of s5/networks/grammar.py, drawn at random. Every trial is recorded in runs/ledger.jsonl, so
that the same command continues after a stop. The test images are never used.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s5.experiments.ledger import mean_loss, read_ledger
from s5.experiments.local_runner import RERUN
from s5.experiments.ray_runner import ClusterError
from s5.experiments.sweep import SEEDS, check_options, default_workers, run_and_collect
from s5.training.command_line import INTERRUPTED, PRECISIONS, Parser, output_file, plural, run_command
from s5.training.files import LEDGER, RUNS, USER_LEDGER, check_folder
from s5.training.recipe import check_seed, short

# Modules that import torch or pandas, which takes seconds, are imported inside functions, so that --help is fast.

KEPT = 3  # one network in so many goes on, and is trained for so many times the epochs
FINALISTS = 3  # networks in the last round, from all SEEDS; earlier rounds train from the first seed alone
SMALLEST_SHARE = 0.75  # of the budget that a network must use
DRAWS = 1000  # in vain, after which no further network is expected
RATES = (0.015, 0.1)  # of Muon
MAX_TRIALS, MAX_BELOW, MAX_EPOCHS = 10_000, 1_000_000, 100


@dataclass(frozen=True)
class Round:
    """`networks` networks, trained for `epochs` epochs from each of `seeds`."""

    networks: int
    epochs: int
    seeds: list[int]

    def __str__(self) -> str:
        counts = (self.networks, "network"), (self.epochs, "epoch"), (len(self.seeds), "seed")
        return ", ".join(plural(*count) for count in counts)


@dataclass(frozen=True)
class Found:
    """What `search` finds. `figure` is a `Picture`."""

    best: str  # the network's line
    table: Any  # DataFrame: a row per network of the last round, the best first
    figure: Any

    def __str__(self) -> str:
        return f"{self.table.to_string(index=False)}\n\nBest: {self.best}"


def search(
    below: int,
    trials: int = 60,
    seed: int = 0,
    epochs: int = 1,
    changes: dict | None = None,
    vary_rate: bool = False,
    sample: bool = False,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    ledger: str | Path = USER_LEDGER,
    dry_run: bool = False,
) -> Found | None:
    """Draw `trials` networks with fewer parameters than `below` and find the best by successive halving.

    All are trained for `epochs` epochs, the best third for three times as long, and so on; the last few from several
    seeds. Each round trains anew, with a whole schedule: a pruner that stops one long run early, as Optuna's or Ray
    Tune's, would compare networks in the middle of a schedule, where the learning rate is still high. Drawing and
    halving take thirty lines, so no library is used. Jamieson and Talwalkar, "Non-stochastic best arm identification
    and hyperparameter optimization", 2016: arxiv.org/abs/1502.07943.

    The same `seed` draws the same networks. The recipe is `claims.MILD` with `changes`; `vary_rate` draws a
    learning rate for each network, which it keeps in all rounds. `dry_run` only prints the rounds and an estimate of
    their duration. A network whose trial fails is out. Raises ValueError for a budget that no network fits or for zero
    trials, RuntimeError if all trials of a round fail, and else what `sweep` raises.
    """
    from s5.experiments.claims import MILD
    from s5.experiments.trial import checked_changes
    from s5.reports.plots import plot_search
    from s5.reports.tables import by_variant, network_table

    check_search(below, trials, seed, epochs)
    recipe = MILD.as_dict() | checked_changes(changes)
    shared = {"split": "validation", "sample": sample, "device": device, "precision": precision}
    networks = draw_networks(below, trials, seed)
    rates = draw_rates(networks, seed) if vary_rate else {}
    plan = rounds(trials, epochs)
    if dry_run:
        print(describe(plan, networks, workers or (None if ray else default_workers(device))))
        return None
    tried: list[list[dict]] = []
    for number, each in enumerate(plan, start=1):
        print(f"Round {number} of {len(plan)}: {each}")
        recipes = {line: recipe | {"epochs": each.epochs} | rates.get(line, {}) for line in networks}
        requested = [
            {"variant": line, "seed": seed, "changes": recipes[line], **shared}
            for line in networks
            for seed in each.seeds
        ]
        _, found = run_and_collect(requested, ledger, workers, ray)
        complete = [group for group in by_variant(found).values() if len(group) == len(each.seeds)]
        if not complete:
            raise RuntimeError(f"no trial of round {number} succeeded")
        if lost := set(networks) - {group[0]["variant"] for group in complete}:
            print(f"Out of the search, since a trial failed: {'; '.join(line for line in networks if line in lost)}")
            print(RERUN)
        tried += (ranked := sorted(complete, key=mean_loss))
        networks = [group[0]["variant"] for group in ranked[: max(FINALISTS, each.networks // KEPT)]]
    on = " on the sample" if sample else ""
    title = f"{trials} networks below {below:,} parameters{on}: best validation loss {mean_loss(ranked[0]):.4f}"
    table = network_table(ranked)
    if vary_rate:
        table["Learning rate"] = [group[0]["recipe"]["learning_rate"] for group in ranked]
    return Found(ranked[0][0]["variant"], table, plot_search(tried, title))


def check_search(below: int, trials: int, seed: int, epochs: int) -> None:
    """Raise ValueError unless these are whole numbers that make sense."""
    limits = {"below": (below, MAX_BELOW), "trials": (trials, MAX_TRIALS), "epochs": (epochs, MAX_EPOCHS)}
    for name, (value, most) in limits.items():
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most:,}, not {short(value)}")
    check_seed(seed)


def rounds(trials: int, epochs: int) -> list[Round]:
    """The rounds of a search: fewer and fewer networks, longer and longer."""
    plan = []
    while trials > FINALISTS:
        plan.append(Round(trials, epochs, SEEDS[:1]))
        trials, epochs = max(FINALISTS, trials // KEPT), epochs * KEPT
    return [*plan, Round(trials, epochs, SEEDS)]


def draw_networks(below: int, count: int, seed: int) -> list[str]:
    """Lines of `count` different networks with fewer parameters than `below`, but not many fewer.

    Raises NetworkError if none is found.
    """
    from s5.networks.grammar import NetworkError, parse

    draw, lines = random.Random(seed), {}  # a dict keeps the order
    in_vain = 0
    while len(lines) < count and in_vain < DRAWS:
        line = _draw_line(draw, below)
        in_vain += 1
        if line not in lines and SMALLEST_SHARE * below <= parse(line).parameters < below:
            lines[line], in_vain = None, 0
    if len(lines) < count:
        raise NetworkError(f"only {len(lines)} of {count} networks were found below {below:,} parameters")
    return list(lines)


def draw_rates(networks: list[str], seed: int) -> dict[str, dict]:
    """A learning rate for each network, as a change of the recipe: evenly spread on a log scale, within RATES."""
    draw, (low, high) = random.Random(seed), map(math.log, RATES)
    return {line: {"learning_rate": round(math.exp(draw.uniform(low, high)), 4)} for line in networks}


def _draw_line(draw: random.Random, below: int) -> str:
    """A random network whose size is near the budget; it may be above it."""
    block = draw.choice(["conv", "separable", "shared", "shared-separable"])
    crop = draw.choice([0, 2])
    depths = [draw.randint(1, 3) for _ in range(draw.choice([3, 4]) if crop else 3)]  # layers at each resolution
    ending = draw.choice(["gap", "gdconv"]) + (" crop 2" if crop else "")
    weights = 9 if block in ("conv", "shared") else 1  # for each pair of channels
    layers = 1 if block.startswith("shared") else sum(depths)
    width = math.sqrt(below / (weights * layers)) * math.exp(draw.uniform(-1, 0.3))
    if block.startswith("shared"):
        return f"{block} {_channels(width)} {' / '.join(f'×{depth}' for depth in depths)} {ending}"
    growth, stages = draw.uniform(1, 2), []
    for number, depth in enumerate(depths):
        first = width * growth ** (number - (len(depths) - 1) / 2)
        stages.append(" ".join(str(_channels(first * growth ** (layer / depth))) for layer in range(depth)))
    return f"{block} {' / '.join(stages)} {ending}"


def _channels(width: float) -> int:
    return min(512, max(2, round(width)))


def describe(plan: list[Round], networks: list[str], workers: int | None) -> str:
    """The rounds, the networks of the first, and the expected duration, from the recorded trials' multiply-adds.

    `workers` is the number of trials at a time, None if it depends on a cluster.
    """
    import numpy as np

    from s5.networks.grammar import parse

    lines = [f"Round {number}: {each}" for number, each in enumerate(plan, start=1)]
    lines += ["The networks of the first round:", *(f"  {line}" for line in networks)]
    recorded = [(trial["macs"], trial["seconds"] / trial["epochs"]) for trial in read_ledger(LEDGER)]
    if len(recorded) < 2:
        return "\n".join(lines)
    slope, base = np.polyfit(*zip(*recorded, strict=True), 1)
    macs = statistics.mean(parse(line).macs for line in networks)
    epochs = sum(each.networks * each.epochs * len(each.seeds) for each in plan)
    minutes = epochs * max(1.0, base + slope * macs) / 60
    if workers is None:
        return "\n".join([*lines, f"about {minutes:.0f} minutes of work on MNIST, shared by the cluster's workers"])
    return "\n".join([*lines, f"about {minutes / workers:.0f} minutes on MNIST with {workers} at a time"])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 if it is wrong."""
    parser = Parser("search", __doc__, usage="python -m s5.experiments.search --below N [options]")
    add = parser.add_argument_group("search").add_argument
    add("--below", type=int, required=True, metavar="N", help="every network has fewer parameters than this")
    add("--trials", type=int, default=60, metavar="N", help="networks that are drawn (default: 60)")
    add("--seed", type=int, default=0, metavar="N", help="of the drawing (default: 0)")
    add("--epochs", type=int, default=1, metavar="N", help="of the first round (default: 1)")
    add("--vary-rate", action="store_true", help="draw a learning rate for each network as well")
    add("--sample", action="store_true", help="use the small sample instead of MNIST")
    add("--dry-run", action="store_true", help="print the rounds and the expected duration, and stop")
    add("--figure", type=output_file, default=RUNS / "search.png", metavar="FILE", help="default: runs/search.png")
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default: auto)")
    add("--precision", choices=PRECISIONS, default="auto", help="default: bfloat16 if native to the device")
    add("--workers", type=int, metavar="N", help="trials at a time (default: one per core; GPU: 1; --ray: no limit)")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster; auto: this machine's, or one started for the search")
    options = parser.parse_args(arguments)

    from s5.training.device import pick_device

    try:
        check_search(options.below, options.trials, options.seed, options.epochs)
        check_options(options.workers, options.ray)
        pick_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 after a failure, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    from s5.analysis.style import save_figure
    from s5.training.mnist import DataError

    names = (
        "below",
        "trials",
        "seed",
        "epochs",
        "vary_rate",
        "sample",
        "device",
        "precision",
        "workers",
        "ray",
        "dry_run",
    )
    try:
        if not options.dry_run:
            check_folder(options.figure.parent)  # before hours of training
        found = search(**{name: getattr(options, name) for name in names})
        if found:
            print(f"\n{found}")
            save_figure(found.figure, options.figure)
            print(f"Figure: {options.figure}")
    except KeyboardInterrupt:
        print(f"Interrupted. {RERUN}", file=sys.stderr)
        return INTERRUPTED
    except (DataError, ClusterError, OSError, RuntimeError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
