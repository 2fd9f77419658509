"""The sections of the experiments notebook: a variant's place and network, its training, and the result."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from IPython.display import Markdown, display

from analysis import inspection, plots
from analysis.drawing import plot_network
from analysis.style import Picture
from experiments.ledger import select
from experiments.tables import compared_variants, interval_text
from experiments.trial import planned_recipe
from experiments.variant_map import place_in_words
from experiments.variants import VARIANTS, code, recipe_change
from helpers import build, fit
from training.mnist import MnistData

RUNS = ("recorded", "short", "full")
SHORT = 2  # epochs of a short run
BAR = 20  # characters


class Table:
    """A DataFrame as a notebook and print show it, without its index."""

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame

    def _repr_html_(self) -> str:
        return self.frame.to_html(index=False, border=0)

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


class Folded:
    """Parts, text or DataFrames, that a notebook shows when the title is clicked."""

    def __init__(self, title: str, *parts: str | pd.DataFrame):
        self.title, self.parts = title, parts

    def _repr_html_(self) -> str:
        shown = (
            f"<pre>{html.escape(part)}</pre>" if isinstance(part, str) else Table(part)._repr_html_()
            for part in self.parts
        )
        return f"<details><summary>{html.escape(self.title)}</summary>{''.join(shown)}</details>"

    def __repr__(self) -> str:
        return f"{self.title}: open in a notebook"


class LiveFigure:
    """For `fit(progress=...)`: a figure that is drawn again after every epoch, with a bar in its title."""

    def __init__(self, name: str, epochs: int, draw: Callable[[list[dict], str], Picture]):
        """`draw` makes the figure of a history and a title; `epochs` is the length of the whole run."""
        self.name, self.epochs, self.draw = name, epochs, draw
        self.start = time.monotonic()
        self.handle = display(Markdown(f"*{name}: the first of {epochs} epochs …*"), display_id=True)

    def __call__(self, history: list[dict]) -> None:
        """Show the epochs so far; the title of the last one is the figure's own."""
        done = len(history)
        seconds = (time.monotonic() - self.start) / done * (self.epochs - done)
        filled = round(BAR * done / self.epochs)
        bar = "█" * filled + "░" * (BAR - filled)
        left = f"{self.name}  {bar}  {done} of {self.epochs} epochs, {seconds // 60:.0f}:{seconds % 60:02.0f} to go"
        self.show(self.draw(history, left if done < self.epochs else ""))

    def show(self, figure: Picture) -> None:
        if self.handle is None:  # outside a notebook
            return
        self.handle.update(figure)


@dataclass
class Sections:
    """Shows the section of a variant. `runs`: "recorded" trains nothing and shows the recorded run of `seed`, "short"
    trains two epochs, "full" by the whole recipe. Raises ValueError for anything else.
    """

    data: MnistData
    recorded: list[dict]  # trials of the validation split
    runs: str = "recorded"
    seed: int = 100
    device: str | torch.device = "auto"
    histories: dict[str, list[dict]] = field(default_factory=dict)

    def __post_init__(self):
        if self.runs not in RUNS:
            raise ValueError(f"RUNS must be one of {', '.join(RUNS)}, not {self.runs!r}")

    def __call__(self, name: str) -> None:
        """Display the section of a variant. Raises KeyError if there is none of this name."""
        self.network(name)
        self.train(name)
        self.result(name)

    def network(self, name: str) -> None:
        """Its place on the map, its network, and what is long, folded."""
        model = build(VARIANTS[name].build, self.seed)
        display(Markdown(place_in_words(name)))
        network = VARIANTS[name].network
        line = network if isinstance(network, str) else network.name
        cost = f"{inspection.count_parameters(model):,} parameters, {inspection.count_macs(model):,} multiply-adds"
        display(plot_network(model, f"{line}: {cost}"))
        display(Folded("Network, layers and recipe", code(name), str(inspection.summary(model)), recipe_change(name)))

    def train(self, name: str) -> None:
        """Train it, or take the recorded run of the seed, and draw the curves beside the parent's and other seeds'."""
        variant, trials = VARIANTS[name], select(self.recorded, variant=name)
        parent = {
            trial["variant"]: trial["curve"] for trial in select(self.recorded, variant=variant.parent, seed=self.seed)
        }
        band = [trial["curve"] for trial in trials] if len(trials) > 1 else None

        def draw(history: list[dict], title: str) -> Picture:
            run = "recorded run" if self.runs == "recorded" else "this run"
            end = f"{run}, seed {self.seed}: {history[-1]['eval_accuracy']:.2f}% in epoch {history[-1]['epoch']}"
            band_text = f"; band: {len(trials)} recorded seeds" if band else ""
            return plots.plot_curves(history, title or f"{name}, {end}{band_text}", None, "validation", parent, band)

        if self.runs == "recorded":
            (trial,) = select(trials, seed=self.seed)
            self.histories[name] = trial["curve"]
            display(draw(trial["curve"], ""))
        else:
            recipe = planned_recipe(name, {"epochs": SHORT} if self.runs == "short" else {})
            live = LiveFigure(name, recipe.epochs, draw)
            model = build(variant.build, self.seed)
            self.histories[name] = fit(model, self.data, recipe, seed=self.seed, device=self.device, progress=live)
        history = self.histories[name]
        seconds = sum(epoch["seconds"] for epoch in history)
        display(Folded(f"All {len(history)} epochs, {seconds / 60:.1f} minutes", epoch_table(history)))

    def result(self, name: str) -> None:
        """One row: accuracy over the recorded seeds, and the difference from the parent."""
        display(Table(result_table(self.recorded, name)))


def epoch_table(history: list[dict], split: str = "validation") -> pd.DataFrame:
    """The epochs of a history, one row each, losses per image and accuracies in percent."""
    formats = {
        "Epoch": ("epoch", "d"),
        "Learning rate": ("learning_rate", ".5f"),
        "Train loss": ("train_loss", ".4f"),
        "accuracy": ("train_accuracy", ".2f"),
        f"{split.capitalize()} loss": ("eval_loss", ".4f"),
        "accuracy ": ("eval_accuracy", ".2f"),  # a column's name is used once
        "Seconds": ("seconds", ".1f"),
    }
    rows = [
        {title: "–" if epoch[key] is None else f"{epoch[key]:{form}}" for title, (key, form) in formats.items()}
        for epoch in history
    ]
    return pd.DataFrame(rows)


def result_table(trials: list[dict], name: str) -> pd.DataFrame:
    """A variant's recorded accuracy, in percent, and the change of its errors against its parent, as one row."""
    accuracies = pd.Series([trial["accuracy"] for trial in select(trials, variant=name)])
    spread = f" ± {accuracies.std():.3f}" if len(accuracies) > 1 else ""
    row = {"Recorded runs": name, "Seeds": len(accuracies), "Accuracy": f"{accuracies.mean():.3f}{spread}%"}
    compared = compared_variants(trials)
    for change in compared[compared["variant"] == name].itertuples():
        row["Against"] = change.against
        row["Points"] = f"{change.points:+.3f}"
        row["Errors"] = f"{change.errors:+.0f}%"
        row["95%"] = interval_text(change.errors_low, change.errors_high, "{:+.0f}%")
        row["Beyond seed noise"] = change.beyond_noise
    return pd.DataFrame([row])
