"""Search for the best network below a number of parameters, by the loss on the validation split."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from s5.analysis.style import Picture
from s5.experiments.claims import MILD, find_variant
from s5.experiments.compare import network_table
from s5.experiments.figures import plot_search
from s5.experiments.ledger import by_variant, mean_loss, read_ledger
from s5.experiments.local_runner import RERUN
from s5.experiments.sweep import SEEDS, check_options, comparable, default_workers, estimate, run_missing
from s5.experiments.trial import Trial, changed_recipe
from s5.networks.grammar import NetworkError, parse
from s5.training.command_line import plural
from s5.training.device import pick_device, pick_precision
from s5.training.files import LEDGER, USER_LEDGER
from s5.training.recipe import check_seed, short

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
    """What `search` finds."""

    best: str  # the network's line
    table: pd.DataFrame  # a row per network of the last round, the best first
    figure: Picture

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
    their duration. Trials in `ledger` and in results/ledger.jsonl are not trained again. A network whose trial fails is
    out. Raises ValueError for a budget that no network fits or for zero trials, RuntimeError if all trials of a round
    fail, and else what `sweep` raises.
    """
    check_search(below, trials, seed, epochs)
    check_options(workers, ray)
    recipe = changed_recipe(MILD, changes)
    precision = pick_precision(precision, pick_device(device))
    shared = {"split": "validation", "sample": sample, "device": device, "precision": precision, "threads": 1}
    networks = draw_networks(below, trials, seed)
    rates = draw_rates(networks, seed) if vary_rate else {}
    recipes = {line: recipe.changed(**rates.get(line, {})) for line in networks}
    plan = rounds(trials, epochs)
    recorded = read_ledger(LEDGER)
    if dry_run:
        print("\n".join(f"Round {number}: {each}" for number, each in enumerate(plan, start=1)))
        print("\n  ".join(["The networks of the first round:", *networks]))
        found = [find_variant(line) for line in networks]
        work = [(each, turn.epochs * len(turn.seeds)) for turn in plan for each in found[: turn.networks]]
        at_once = workers or (None if ray else default_workers(device))
        print(estimate(work, comparable(recorded, sample, device, precision), at_once))
        return None
    tried: list[list[Trial]] = []
    for number, each in enumerate(plan, start=1):
        print(f"Round {number} of {len(plan)}: {each}")
        requested = [
            {"variant": line, "seed": seed, "changes": recipes[line].changed(epochs=each.epochs).as_dict(), **shared}
            for line in networks
            for seed in each.seeds
        ]
        _, found = run_missing(requested, ledger, [*recorded, *read_ledger(ledger)], workers, ray)
        complete = {line: group for line, group in by_variant(found).items() if len(group) == len(each.seeds)}
        if not complete:
            raise RuntimeError(f"no trial of round {number} succeeded")
        if lost := [line for line in networks if line not in complete]:
            print(f"Out of the search, since a trial failed: {'; '.join(lost)}\n{RERUN}")
        tried += complete.values()
        networks = sorted(complete, key=lambda line: mean_loss(complete[line]))[: max(FINALISTS, each.networks // KEPT)]
    table = network_table({line: complete[line] for line in networks})
    if vary_rate:
        table["Learning rate"] = [complete[line][0].recipe.learning_rate for line in networks]
    on, loss = " on the sample" if sample else "", mean_loss(complete[networks[0]])
    title = f"{trials} networks below {below:,} parameters{on}: best validation loss {loss:.4f}"
    return Found(networks[0], table, plot_search(tried, title))


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
