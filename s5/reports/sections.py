"""The sections of the experiments notebook: what was changed, the training, and the result."""

from dataclasses import dataclass

import pandas as pd
import torch
from IPython.display import Markdown, display

from helpers import build, fit
from s5.analysis import inspection, plots
from s5.analysis.drawing import plot_networks
from s5.analysis.notebook import Code, Folded, LiveFigure, Table, epoch_table
from s5.analysis.style import Picture
from s5.experiments.ledger import select
from s5.experiments.trial import Trial
from s5.experiments.variants import VARIANTS, code, recipe_change
from s5.reports.plots import plot_variants
from s5.reports.tables import ladder_table
from s5.training.augmentation import augment
from s5.training.mnist import MnistData
from s5.training.progress import Epoch

MODES = ("recorded", "short", "full")
SHORT = 2  # epochs of a short run
EXAMPLES = 12  # digits that are shown as a variant's augmentation changes them


@dataclass
class Sections:
    """Shows the section of one or several variants.

    `runs`: "recorded" trains nothing, "short" trains two epochs, "full" by the whole recipe; the recorded runs are
    shown in each. Raises ValueError for anything else.
    """

    data: MnistData
    recorded: list[Trial]  # of the validation split
    runs: str = "recorded"
    seed: int = 100
    device: str | torch.device = "auto"

    def __post_init__(self):
        if self.runs not in MODES:
            raise ValueError(f"RUNS must be one of {', '.join(MODES)}, not {self.runs!r}")

    def __call__(self, *names: str) -> None:
        """Display the section of these variants. Raises ValueError if one is unknown or has no recorded run."""
        for name in names or [""]:
            if name not in VARIANTS or not select(self.recorded, variant=name):
                known = [each for each in VARIANTS if select(self.recorded, variant=each)]
                raise ValueError(f"there is no recorded variant {name!r}; there are {', '.join(known)}")
        self.show_change(names)
        table = ladder_table(self.recorded, names)
        self.train(names, _finding(table))
        display(Table(table))

    def show_change(self, names: tuple[str, ...]) -> None:
        """What was changed, in words and drawn; folded: the networks and recipes."""
        drawn, recipes, details = {}, {}, []
        lines = [f"- **{name}**{_parent_text(name)}: {VARIANTS[name].change}" for name in names]
        display(Markdown("\n".join(lines)))
        for name in names:
            variant, parent = VARIANTS[name], VARIANTS.get(VARIANTS[name].parent)
            model = build(variant.build, self.seed)
            cost = f"{inspection.count_parameters(model):,} parameters, {inspection.count_macs(model):,} multiply-adds"
            if parent is None or parent.network != variant.network:
                drawn[f"{name}: {variant.network_name}, {cost}"] = (model, parent and build(parent.build, self.seed))
            if parent:
                recipes |= dict.fromkeys((parent.recipe, variant.recipe))
            details += [name, Code(code(name)), str(inspection.summary(model)), recipe_change(name)]
        if drawn:
            display(plot_networks(drawn))
        rates = {(recipe.optimizer, recipe.schedule, recipe.learning_rate) for recipe in recipes}
        if len(rates) > 1 and len({optimizer for optimizer, *_ in rates}) == 1:  # those of others do not compare
            first, *others = recipes
            display(plots.plot_learning_rate(first, len(self.data.train_images), *others))
        elif len({recipe.augments for recipe in recipes}) > 1:
            display(self._augmented({name: VARIANTS[name].recipe for name in names}))
        display(Folded("Networks, layers and recipes", *details))

    def _augmented(self, recipes: dict) -> Picture:
        """Some digits, and as each recipe changes them at random."""
        images = self.data.train_images[:EXAMPLES].cpu()
        generators = [torch.Generator().manual_seed(self.seed) for _ in recipes]
        rows = [augment(images, recipe, each)[:, 0] for recipe, each in zip(recipes.values(), generators, strict=True)]
        return plots.plot_augmentation(images, torch.stack(rows), list(recipes))

    def train(self, names: tuple[str, ...], finding: str) -> None:
        """Draw the recorded runs beside those of the parents, titled; but for "recorded", train them once more."""
        curves = {name: [trial.curve for trial in select(self.recorded, variant=name)] for name in VARIANTS}
        variants = {name: curves[name] for name in names}
        parents = dict.fromkeys(VARIANTS[name].parent for name in names)
        parents = {name: curves[name] for name in parents if curves.get(name) and name not in variants}
        own: dict[str, list[Epoch]] = {}

        def draw(history: list[Epoch], title: str) -> Picture:
            ran = {name: history} if history else {}
            return plot_variants(title or finding, variants, parents, own | ran)

        if self.runs == "recorded":
            display(draw([], ""))
            return
        for name in names:
            variant = VARIANTS[name]
            recipe = variant.recipe.changed(epochs=SHORT) if self.runs == "short" else variant.recipe
            model, live = build(variant.build, self.seed), LiveFigure(name, recipe.epochs, draw)
            history = fit(model, self.data, recipe, seed=self.seed, device=self.device, progress=live)
            if history:
                own[name] = history
                minutes = sum(epoch["seconds"] for epoch in history) / 60
                title = f"This run of {name}, seed {self.seed}: {len(history)} epochs, {minutes:.1f} minutes"
                display(Folded(title, epoch_table(history)))
            if len(history) < recipe.epochs:  # interrupted
                return


def _parent_text(name: str) -> str:
    """Where a variant comes from, in Markdown."""
    parent = VARIANTS[name].parent
    return f", from *{parent}*" if parent else ""


def _finding(table: pd.DataFrame) -> str:
    """The accuracies of the variants of a `ladder_table`, of a chain its ends; of one also the change of its errors."""
    rows = table.to_dict("records")
    first, last = rows[0], rows[-1]
    found = [f"{row['Variant']} {row['Accuracy (%)'].split()[0]}%" for row in rows]
    if len(rows) > 1:
        return "; ".join(found) if first["Against"] == last["Against"] else f"{found[0]} to {found[-1]}"
    noise = {"yes": "beyond seed noise", "no": "within seed noise"}.get(last["Beyond noise"], "not tested")
    return found[0] + (f": {last['Errors']} errors against {last['Against']}, {noise}" if last["Errors"] != "–" else "")
