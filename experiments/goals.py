"""What is aimed at below 20,000 parameters, by which network each aim is claimed, and how far it came.

Each claim's network and recipe were chosen on the validation split and frozen; then the test set was scored by the
last epoch of seeds that nothing was chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.statistics import GOAL, mean_interval, p_mean_above
from experiments.candidates import KNOWN
from experiments.ledger import select

BUDGETS = (1_000, 2_000, 5_000, 8_000, 20_000)  # numbers of parameters that a network may stay below
CERTAIN = 0.001  # the p-value below which a mean counts as shown to be above `Goal.above`


@dataclass(frozen=True)
class Goal:
    """A mean test accuracy, in percent, over at least so many `seeds`, within a budget of epochs and parameters."""

    budget: str
    parameters: int  # fewer than
    epochs: int  # at most
    accuracy: float
    seeds: int
    variant: str = ""  # by which it is claimed; empty as long as none does
    above: float = 0.0  # a mean above this is to be shown at p < `CERTAIN`, and …
    lowest: float = 0.0  # … no seed may lie below this

    def missed(self, trials: list[dict]) -> list[str]:
        """What is lacking in these trials of the claim, in words; empty when the goal is reached."""
        accuracies = [trial["accuracy"] for trial in trials]
        mean, p = sum(accuracies) / len(accuracies), p_mean_above(accuracies, self.above)
        short, lacking = self.accuracy - mean, self.seeds - len(accuracies)
        faults = {
            f"{short:.3f} short": short > 0,
            f"{lacking} seeds lacking": lacking > 0,
            f"p = {p:.2g} for a mean above {self.above:g}%": self.above and not p < CERTAIN,
            f"a seed below {self.lowest:g}%": min(accuracies) < self.lowest,
            "over its budget": any(t["parameters"] >= self.parameters or t["epochs"] > self.epochs for t in trials),
        }
        return [fault for fault, found in faults.items() if found]


GOALS = (
    Goal("`Net`: 18,214", 18_215, 20, 99.50, 10, "s5", above=GOAL, lowest=99.35),
    Goal("< 20,000", 20_000, 20, 99.60, 10, "below_20k"),
    Goal("< 8,000", 8_000, 15, 99.50, 5, "below_8k"),
    Goal("< 5,000", 5_000, 20, 99.45, 5, "below_5k"),
    Goal("< 2,000", 2_000, 30, 99.25, 5, "below_2k"),
    Goal("< 1,000", 1_000, 60, 99.00, 5, "below_1k"),
)


def claims(goal: Goal, trials: list[dict]) -> list[dict]:
    """The trials on the full test set by which the goal is claimed."""
    if not goal.variant:
        return []
    found = select(trials, variant=goal.variant, split="test", data="mnist")
    return [trial for trial in found if trial["recipe"] == KNOWN[goal.variant].recipe.as_dict()]


def goals_table(trials: list[dict]) -> pd.DataFrame:
    """One row a goal: what is aimed at, by what it is claimed, and the result, in percent, last epoch, test set."""
    rows = []
    for goal in GOALS:
        row = {"Parameters": goal.budget, "Epochs at most": goal.epochs, "Goal": f"{goal.accuracy:.2f}"}
        result = dict.fromkeys(("Network", "Its parameters", "Its epochs", "Seeds", "Mean", "95%", "Minimum"), "–")
        if found := claims(goal, trials):
            accuracies = pd.Series([trial["accuracy"] for trial in found])
            low, high = mean_interval(list(accuracies))
            result = {
                "Network": f"`{goal.variant}`",
                "Its parameters": f"{found[0]['parameters']:,}",
                "Its epochs": found[0]["epochs"],
                "Seeds": len(found),
                "Mean": f"{accuracies.mean():.3f}",
                "95%": f"{low:.2f}–{high:.2f}" if len(found) > 1 else "–",
                "Minimum": f"{accuracies.min():.2f}",
            }
        reached = "not claimed yet" if not found else ", ".join(goal.missed(found)) or "yes"
        rows.append(row | result | {"Reached": reached})
    return pd.DataFrame(rows)
