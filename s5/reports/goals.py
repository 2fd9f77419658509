"""The goal for each parameter budget, the variant that claims it, and the result.

A claim's network and recipe were chosen on the validation split and frozen. Then it was trained from new seeds and the
last epoch's weights were evaluated on the test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from s5.analysis.statistics import CLAIMED_ACCURACY, interval_text, mean_text, p_mean_above
from s5.experiments.claims import KNOWN
from s5.experiments.ledger import minutes_on_a_cpu, select
from s5.training.command_line import plural

BUDGETS = (500, 1_000, 2_000, 5_000, 8_000, 20_000)  # a network has fewer parameters than its budget
SIGNIFICANCE = 0.001  # p-value below which a mean is shown to be above `Goal.above`


@dataclass(frozen=True)
class Goal:
    """A mean test accuracy, in percent, over at least `seeds` seeds, within a budget of parameters and epochs."""

    budget: str
    parameters: int  # fewer than
    epochs: int  # at most
    accuracy: float
    seeds: int
    variant: str = ""  # that claims it; empty: nothing that was tried is worth a claim
    network: str = ""  # of the variant, described for the README
    above: float = 0.0  # the mean must be above this at p < SIGNIFICANCE, …
    lowest: float = 0.0  # … and no seed below this

    def shortfalls(self, trials: list[dict]) -> list[str]:
        """What these trials of the claim miss, as text; empty if the goal is reached."""
        accuracies = [trial["accuracy"] for trial in trials]
        mean, p = sum(accuracies) / len(accuracies), p_mean_above(accuracies, self.above)
        distance, missing = self.accuracy - mean, self.seeds - len(accuracies)
        faults = {
            f"{distance:.3f} short": distance > 1e-9,  # a mean of decimals is not exact
            f"{plural(missing, 'seed')} missing": missing > 0,
            f"p = {p:.2g} for a mean above {self.above:g}%": self.above and p >= SIGNIFICANCE,
            f"no p-value for a mean above {self.above:g}%": self.above and math.isnan(p),
            f"a seed below {self.lowest:g}%": min(accuracies) < self.lowest,
            "over its budget": any(t["parameters"] >= self.parameters or t["epochs"] > self.epochs for t in trials),
        }
        return [fault for fault, found in faults.items() if found]


GOALS = (
    Goal("`Net`: 18,214", 18_215, 20, 99.50, 10, "s5", "**`Net`**, five convolutions", CLAIMED_ACCURACY, lowest=99.40),
    Goal("`Net`, longer or distilled", 18_215, 60, 99.56, 10),
    Goal("< 20,000", 20_000, 40, 99.66, 10, "below_20k", "seven blocks, depthwise-separable"),
    Goal("< 8,000", 8_000, 40, 99.58, 10, "below_8k", "seven blocks, depthwise-separable"),
    Goal("< 5,000", 5_000, 60, 99.53, 10, "below_5k", "seven blocks, depthwise-separable"),
    Goal("< 2,000", 2_000, 200, 99.32, 10, "below_2k", "deskewed; one shared convolution, eight times"),
    Goal("< 1,000", 1_000, 300, 99.08, 10, "below_1k", "deskewed; a first convolution, then one shared, nine times"),
    Goal("< 500", 500, 300, 98.30, 5, "below_500", "deskewed; one shared convolution, ten times"),
)


def find_claims(goal: Goal, trials: list[dict]) -> list[dict]:
    """The trials on the full test set that claim the goal."""
    return claims_of(goal.variant, trials) if goal.variant else []


def claims_of(variant: str, trials: list[dict]) -> list[dict]:
    """The trials of a variant's network and recipe on the full test set, `ledger.in_usual_precision`."""
    current = {"network": KNOWN[variant].network_name, "recipe": KNOWN[variant].recipe.as_dict()}
    return in_usual_precision(select(trials, variant=variant, split="test", data="mnist", **current))


def goals_table(trials: list[dict]) -> pd.DataFrame:
    """One row per goal: the goal, the variant that claims it, and its test accuracy in the last epoch, in percent."""
    rows = []
    for goal in GOALS:
        row = {"Budget": goal.budget, "Max epochs": goal.epochs, "Goal": f"{goal.accuracy:.2f}"}
        result = dict.fromkeys(
            ("Variant", "Network", "Parameters", "Epochs", "Seeds", "Mean", "95% interval", "Minimum"), "–"
        )
        if found := find_claims(goal, trials):
            accuracies = pd.Series([trial["accuracy"] for trial in found])
            result = {
                "Variant": f"`{goal.variant}`",
                "Network": f"`{KNOWN[goal.variant].network}`",
                "Parameters": f"{found[0]['parameters']:,}",
                "Epochs": found[0]["epochs"],
                "Seeds": len(found),
                "Mean": f"{accuracies.mean():.3f}",
                "95% interval": interval_text(list(accuracies)),
                "Minimum": f"{accuracies.min():.2f}",
            }
        reached = "not claimed yet" if goal.variant else "not claimed"
        if found:
            reached = ", ".join(goal.shortfalls(found)) or "yes"
        rows.append(row | result | {"Reached": reached})
    return pd.DataFrame(rows)


def claims_table(trials: list[dict]) -> pd.DataFrame:
    """One row per claimed network for the README: parameters, accuracy over seeds, epochs and minutes of training."""
    rows = []
    for goal in GOALS:
        if not (found := find_claims(goal, trials)):
            continue
        rows.append(
            {
                "Network": f"`{goal.variant}`: {goal.network}",
                "Parameters": f"{found[0]['parameters']:,}",
                "Test accuracy": f"{mean_text([trial['accuracy'] for trial in found], 2)}%",
                "Seeds": len(found),
                "Epochs": found[0]["epochs"],
                "Minutes": "–" if math.isnan(minutes := minutes_on_a_cpu(found)) else f"{minutes:.0f}",
            }
        )
    return pd.DataFrame(rows)
