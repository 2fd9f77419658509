"""Search for the best network below a number of parameters, by the loss on the validation split."""

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
from s5.experiments.sweep import SEEDS, default_workers, estimate, run_missing
from s5.experiments.trial import Trial
from s5.networks.grammar import NetworkError, parse
from s5.training.command_line import plural
from s5.training.device import pick_device, pick_precision
from s5.training.files import LEDGER, USER_LEDGER
from s5.training.mnist import split_title

KEPT = 3  # one network in so many goes on, and is trained for so many times the epochs
FINALISTS = 3  # networks in the last round, from all SEEDS; earlier rounds train from the first seed alone
SMALLEST_SHARE = 0.75  # of the budget that a network must use
DRAWS = 1000  # in vain, after which no further network is expected


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
    data: str | Path = "mnist",
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
    Tune's, would compare networks in the middle of a schedule, where the learning rate is still high. Jamieson and
    Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", 2016: arxiv.org/abs/1502.07943.

    The same `seed` draws the same networks. The recipe is `claims.MILD`. `dry_run` only prints the rounds, the networks
    and an estimate of the duration. Trials in `ledger` and in results/ledger.jsonl are not trained again. A network
    whose trial fails is out. Raises ValueError for a budget that no network fits or for zero trials, RuntimeError if
    all trials of a round fail, and else what `sweep` raises.
    """
    networks, recorded, plan = draw_networks(below, trials, seed), read_ledger(LEDGER), rounds(trials, epochs)
    precision = pick_precision(precision, pick_device(device))
    shared = {"split": "validation", "data": data, "device": device, "precision": precision, "threads": 1}
    if dry_run:
        work = [(find_variant(line), longer * len(seeds)) for count, longer, seeds in plan for line in networks[:count]]
        print("\n  ".join(["The networks of the first round:", *networks]))
        print("\n".join(_describe(number, *each) for number, each in enumerate(plan, start=1)))
        at_once = workers or (None if ray else default_workers(device))
        print(estimate(work, recorded, str(data), device, precision, at_once))
        return None
    tried: list[list[Trial]] = []
    for number, (count, longer, seeds) in enumerate(plan, start=1):
        print(_describe(number, count, longer, seeds))
        changes = MILD.changed(epochs=longer).as_dict()
        requested = [
            {"variant": line, "seed": seed, "changes": changes, **shared} for line in networks for seed in seeds
        ]
        _, found = run_missing(requested, ledger, [*recorded, *read_ledger(ledger)], workers, ray)
        complete = {line: group for line, group in by_variant(found).items() if len(group) == len(seeds)}
        if not complete:
            raise RuntimeError(f"no trial of round {number} succeeded")
        if lost := [line for line in networks if line not in complete]:
            print(f"Out of the search, since a trial failed: {'; '.join(lost)}\n{RERUN}")
        tried += complete.values()
        networks = sorted(complete, key=lambda line: mean_loss(complete[line]))[: max(FINALISTS, count // KEPT)]
    table = network_table({line: complete[line] for line in networks})
    images, loss = split_title(tried[0][0].data, "validation"), mean_loss(complete[networks[0]])
    title = f"{trials} networks below {below:,} parameters: best {images} loss {loss:.4f}"
    return Found(networks[0], table, plot_search(tried, title))


def rounds(trials: int, epochs: int) -> list[tuple[int, int, list[int]]]:
    """The rounds of a search, fewer and fewer networks, longer and longer: (networks, epochs, seeds of each)."""
    plan = []
    while trials > FINALISTS:
        plan.append((trials, epochs, SEEDS[:1]))
        trials, epochs = max(FINALISTS, trials // KEPT), epochs * KEPT
    return [*plan, (trials, epochs, SEEDS)]


def _describe(number: int, networks: int, epochs: int, seeds: list[int]) -> str:
    counts = plural(networks, "network"), plural(epochs, "epoch"), plural(len(seeds), "seed")
    return f"Round {number}: {', '.join(counts)}"


def draw_networks(below: int, count: int, seed: int) -> list[str]:
    """Lines of `count` different networks with fewer parameters than `below`, but not many fewer.

    Raises NetworkError if they are not found, and ValueError for numbers that make no sense.
    """
    if min(below, count) < 1:
        raise ValueError(f"below and trials must be 1 or more, not {below} and {count}")
    draw, lines, in_vain = random.Random(seed), {}, 0  # a dict keeps the order
    while len(lines) < count and in_vain < DRAWS:
        line = _draw_line(draw, below)
        in_vain += 1
        if line not in lines and SMALLEST_SHARE * below <= parse(line).parameters < below:
            lines[line], in_vain = None, 0
    if len(lines) < count:
        raise NetworkError(f"only {len(lines)} of {count} networks were found below {below:,} parameters")
    return list(lines)


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
