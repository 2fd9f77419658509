"""The sections of the experiments notebook: a variant's place and network, its training, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from IPython.display import Markdown, display

from helpers import build, fit
from s5.analysis import inspection, plots
from s5.analysis.drawing import plot_network
from s5.analysis.notebook import Code, Folded, LiveFigure, Table, epoch_table
from s5.analysis.statistics import mean_text
from s5.analysis.style import Picture
from s5.experiments.ledger import minutes_on_a_cpu, select
from s5.experiments.trial import Trial
from s5.experiments.variants import VARIANTS, code, recipe_change
from s5.reports.tables import comparison_table, seeds_text, trained
from s5.reports.variant_map import path_to
from s5.training.mnist import MnistData
from s5.training.progress import Epoch

MODES = ("recorded", "short", "full")
SHORT = 2  # epochs of a short run


@dataclass
class Sections:
    """Shows the section of a variant. `runs`: "recorded" trains nothing and shows the recorded run of `seed`, "short"
    trains two epochs, "full" by the whole recipe. Raises ValueError for anything else.
    """

    data: MnistData
    recorded: list[Trial]  # of the validation split
    runs: str = "recorded"
    seed: int = 100
    device: str | torch.device = "auto"
    histories: dict[str, list[Epoch]] = field(default_factory=dict)

    def __post_init__(self):
        if self.runs not in MODES:
            raise ValueError(f"RUNS must be one of {', '.join(MODES)}, not {self.runs!r}")

    def __call__(self, name: str) -> None:
        """Display the section of a variant.

        Raises KeyError if there is none of this name, and ValueError if it has no recorded run, or none of the seed.
        """
        seeds = [trial.seed for trial in select(self.recorded, variant=VARIANTS[name].name)]
        if not seeds or (self.runs == "recorded" and self.seed not in seeds):
            known = ", ".join(map(str, sorted(seeds))) or "none"
            raise ValueError(f"{name} has no recorded run of seed {self.seed}; there are {known}")
        self.network(name)
        self.train(name)
        display(Table(result_table(self.recorded, name)))

    def network(self, name: str) -> None:
        """Its place on the map, the time of a run, its network, and what is long, folded."""
        variant, trials = VARIANTS[name], select(self.recorded, variant=name)
        length = f"{trials[0].epochs} epochs in {minutes_on_a_cpu(trials):.1f} minutes (median)"
        display(Markdown(f"{path_to(name)} · recorded runs: {length}"))
        model = build(variant.build, self.seed)
        cost = f"{inspection.count_parameters(model):,} parameters, {inspection.count_macs(model):,} multiply-adds"
        display(plot_network(model, f"{variant.network_name}: {cost}"))
        layers = str(inspection.summary(model))
        display(Folded("Network, layers and recipe", Code(code(name)), layers, recipe_change(name)))

    def train(self, name: str) -> None:
        """Train it, or take the recorded run of the seed, and draw the curves beside the parent's and other seeds'."""
        variant, trials = VARIANTS[name], select(self.recorded, variant=name)
        parents = select(self.recorded, variant=variant.parent, seed=self.seed)
        parent = {trial.variant: trial.curve for trial in parents}
        band = [trial.curve for trial in trained(trials)]

        def draw(history: list[Epoch], title: str) -> Picture:
            run = "recorded run" if self.runs == "recorded" else "this run"
            end = f"{run}, seed {self.seed}: {history[-1]['eval_accuracy']:.2f}% in epoch {history[-1]['epoch']}"
            title = title or f"{name}, {end}; band: {len(band)} recorded seeds"
            return plots.plot_curves(history, title, None, "validation", parent, band)

        if self.runs == "recorded":
            history = select(trials, seed=self.seed)[0].curve
            display(draw(history, ""))
        else:
            recipe = variant.recipe.changed(epochs=SHORT) if self.runs == "short" else variant.recipe
            live = LiveFigure(name, recipe.epochs, draw)
            model = build(variant.build, self.seed)
            history = fit(model, self.data, recipe, seed=self.seed, device=self.device, progress=live)
        self.histories[name] = history
        seconds = sum(epoch["seconds"] for epoch in history)
        display(Folded(f"All {len(history)} epochs, {seconds / 60:.1f} minutes", epoch_table(history)))


def result_table(trials: list[Trial], name: str) -> pd.DataFrame:
    """A variant's recorded accuracy, in percent, and the change of its errors against its parent, as one row.

    Seeds whose training collapsed are named, and in no mean.
    """
    group = select(trials, variant=name)
    accuracies = [trial.accuracy for trial in trained(group)]
    row = {"Recorded runs": name, "Seeds": seeds_text(group), "Accuracy": f"{mean_text(accuracies, 3)}%"}
    if collapsed := [f"seed {trial.seed}: {trial.accuracy:.2f}%" for trial in group if trial not in trained(group)]:
        row["Collapsed"] = ", ".join(collapsed)
    compared = comparison_table(trials).rename(columns={"Pooled 95%": "95%"})
    for change in compared[compared["Variant"] == name].to_dict("records"):
        row |= {column: change[column] for column in ("Against", "Points", "Errors", "95%", "Beyond seed noise")}
    return pd.DataFrame([row])
