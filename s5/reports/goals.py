"""The goal for each parameter budget, the claim that is to reach it (`claims.py`), and the result."""

import statistics
from dataclasses import dataclass
from functools import cache

import pandas as pd

from s5.analysis.inspection import count_parameters, count_stored
from s5.analysis.statistics import CLAIMED_ACCURACY, interval_text, mean_text, p_mean_above
from s5.experiments.claims import CLAIMS
from s5.experiments.ledger import minutes_on_a_cpu
from s5.experiments.trial import Trial
from s5.training.command_line import plural

SIGNIFICANCE = 0.001  # p-value below which a mean is shown to be above `Goal.above`


@dataclass(frozen=True)
class Goal:
    """A mean test accuracy, in percent, over at least `seeds` seeds, within a budget of parameters and epochs."""

    budget: str
    parameters: int  # fewer than, also of the numbers to store
    epochs: int  # at most
    accuracy: float
    seeds: int
    variant: str = ""  # that claims it; empty: nothing that was tried is worth a claim
    network: str = ""  # of the variant, described for the README
    above: float = 0.0  # the mean must be above this at p < SIGNIFICANCE, …
    lowest: float = 0.0  # … and no seed below this

    def trials(self, trials: list[Trial]) -> list[Trial]:
        """Those of `trials` that claim the goal."""
        return CLAIMS[self.variant].trials(trials) if self.variant else []

    def shortfalls(self, trials: list[Trial]) -> list[str]:
        """What these trials of the claim miss, as text; empty if the goal is reached."""
        accuracies = [trial.accuracy for trial in trials]
        parameters, stored = network_size(self.variant)
        p = p_mean_above(accuracies, self.above)
        distance, missing = self.accuracy - statistics.mean(accuracies), self.seeds - len(accuracies)
        faults = {
            f"{distance:.3f} short": distance > 1e-9,  # a mean of decimals is not exact
            f"{plural(missing, 'seed')} missing": missing > 0,
            f"p = {p:.2g} for a mean above {self.above:g}%": self.above and not p < SIGNIFICANCE,  # also if it is NaN
            f"a seed below {self.lowest:g}%": min(accuracies) < self.lowest,
            f"{parameters:,} parameters": parameters >= self.parameters,
            f"{stored:,} numbers to store": stored >= self.parameters,
            f"more than {self.epochs} epochs": any(trial.epochs > self.epochs for trial in trials),
        }
        return [fault for fault, found in faults.items() if found]


GOALS = (
    Goal("`Net`: 18,214", 18_215, 20, 99.50, 10, "s5", "**`Net`**, five convolutions", CLAIMED_ACCURACY, lowest=99.40),
    Goal("`Net`, longer or distilled", 18_215, 60, 99.56, 10),
    Goal("< 20,000", 20_000, 40, 99.66, 10, "below_20k", "seven blocks, depthwise-separable"),
    Goal("< 8,000", 8_000, 40, 99.58, 10, "below_8k", "deskewed; seven blocks, depthwise-separable"),
    Goal("< 5,000", 5_000, 60, 99.53, 10, "below_5k", "deskewed; seven blocks, depthwise-separable"),
    Goal("< 2,000", 2_000, 200, 99.32, 10, "below_2k", "deskewed; one shared convolution, eight times"),
    Goal("< 1,000", 1_000, 300, 99.08, 10, "below_1k", "deskewed; a first convolution, then one shared, nine times"),
    Goal("< 500", 500, 300, 98.40, 10, "below_500", "deskewed; one shared convolution, ten times"),
)


@cache
def network_size(name: str) -> tuple[int, int]:
    """The trainable parameters of a claim's network, and the numbers to store it once BatchNorm is folded."""
    model = CLAIMS[name].build()
    return count_parameters(model), count_stored(model)


def parameters_text(name: str) -> str:
    """The trainable parameters and, where it differs, what must be stored: "496 (568 to store)"."""
    parameters, stored = network_size(name)
    return f"{parameters:,}" if stored == parameters else f"{parameters:,} ({stored:,} to store)"


def goals_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per goal: the goal, the claim, and its test accuracy in the last epoch, in percent."""
    rows = []
    for goal in GOALS:
        row = {"Budget": goal.budget, "Max epochs": goal.epochs, "Goal": f"{goal.accuracy:.2f}"}
        row["Reached"] = "not claimed yet" if goal.variant else "not claimed"
        if found := goal.trials(trials):
            accuracies = [trial.accuracy for trial in found]
            row |= {
                "Variant": f"`{goal.variant}`",
                "Network": f"`{CLAIMS[goal.variant].network}`",
                "Parameters": parameters_text(goal.variant),
                "Epochs": str(found[0].epochs),
                "Seeds": str(len(found)),
                "Mean": f"{statistics.mean(accuracies):.3f}",
                "95% interval": interval_text(accuracies),
                "Minimum": f"{min(accuracies):.2f}",
                "Reached": ", ".join(goal.shortfalls(found)) or "yes",
            }
        rows.append(row)
    table = pd.DataFrame(rows).fillna("–")
    return table.assign(Reached=table.pop("Reached"))  # the last column


def claims_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per claimed network for the README: parameters, accuracy over seeds, epochs and minutes of training."""
    rows = [
        {
            "Network": f"`{goal.variant}`: {goal.network}",
            "Parameters": parameters_text(goal.variant),
            "Test accuracy": f"{mean_text([trial.accuracy for trial in found], 2)}%",
            "Seeds": len(found),
            "Epochs": found[0].epochs,
            "Minutes": f"{minutes_on_a_cpu(found):.0f}",
        }
        for goal in GOALS
        if (found := goal.trials(trials))
    ]
    return pd.DataFrame(rows)
