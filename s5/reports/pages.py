"""The text between the markers of README.md and RESULTS.md, and the figures on these pages."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from helpers import Net, mistakes, predict
from s5.analysis import inspection, plots
from s5.analysis.notebook import epoch_table
from s5.analysis.statistics import describe_seeds, wilson_interval
from s5.analysis.style import Picture, save_figure
from s5.experiments.claims import BASELINE, KNOWN
from s5.experiments.ledger import select
from s5.experiments.trial import IMAGES, Trial
from s5.experiments.variants import VARIANTS
from s5.reports import speed_tables
from s5.reports.cards import cards
from s5.reports.goals import SIGNIFICANCE, claims_table, goals_table
from s5.reports.plots import plot_frontier, plot_training_time
from s5.reports.tables import (
    comparison_table,
    current_trials,
    describe_noise,
    earlier_claims_table,
    frontier_points,
    precision_table,
    summary_table,
    tried_table,
)
from s5.training.checkpoint import load_weights
from s5.training.files import EXPORT, PEERS, README, RESULTS_PAGE, ROOT, WEIGHTS, atomic_path
from s5.training.mnist import load_mnist

FIGURES = ROOT / "figures"
SHORT_LOG = ["5", "10", "15", "20"]  # epochs
MARKER = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def texts(trials: list[Trial]) -> dict[Path, str]:
    """The paths of both pages and of the cards, each with the text that it should have. Raises ValueError."""
    current = {page: page.read_text(encoding="utf-8") for page in (README, RESULTS_PAGE)}
    return fill(current, sections(trials)) | cards(trials)


def update(trials: list[Trial]) -> str:
    """Write the pages and cards that are stale; return what was written, as text. Raises ValueError and OSError."""
    stale = {path: text for path, text in texts(trials).items() if not has_text(path, text)}
    for path, text in stale.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    return f"updated from {len(trials)} trials: {names}" if names else "pages and cards are up to date"


def has_text(path: Path, text: str) -> bool:
    """Whether a file is there and has this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def sections(trials: list[Trial]) -> dict[str, str]:
    """The text of every section, by the name of its markers, from all trials of the ledger.

    Raises ValueError if the ledger or a file of measurements does not have what a section shows.
    """
    tested, validated = current_trials("test", trials), current_trials("validation", trials)
    if not validated:
        raise ValueError("the ledger has no validation runs of the current variants: run python -m s5 sweep")
    shown = shown_trial(tested)
    speed = speed_tables.read_measurements()
    export = speed_tables.read_measurements(EXPORT)
    log = epoch_table(shown.curve, "test")
    short = log.set_index("Epoch").loc[SHORT_LOG, ["Train accuracy", "Test accuracy"]].add("%").reset_index()
    layers = inspection.layer_table(Net())
    layers["Parameters"] = layers["Parameters"].map("{:,}".format)
    figures = {f"figure-{name}": f"![{text}](figures/{name}.png)" for name, text in alternatives(trials).items()}
    return figures | {
        "claims": to_markdown(claims_table(trials)),
        "layers": to_markdown(layers),
        "counts": describe_counts(),
        "log": to_markdown(short),
        "goals": to_markdown(goals_table(trials)),
        "earlier": to_markdown(earlier_claims_table(trials)),
        "seeds": f"`Net`, test set, last epoch: {describe_seeds([t.accuracy for t in select(tested, variant='s5')])}.",
        "shown": describe_shown(shown),
        "full-log": to_markdown(log),
        "summary": f"```\n{inspection.summary(Net())}\n```",
        "test-table": to_markdown(summary_table(tested)),
        "validation-table": to_markdown(summary_table(validated)),
        "comparison": to_markdown(comparison_table(validated)),
        "noise": describe_noise(validated).replace("\n", " "),
        "variants": "\n".join(
            f"- **{name}**: {VARIANTS[name].change} Expected: {VARIANTS[name].target}"
            for name in summary_table(validated)["Variant"]
        ),
        "tried": to_markdown(tried_table(trials)),
        "precision": to_markdown(precision_table(trials)),
        "machines": speed_tables.describe_machines(speed),
        "speed": to_markdown(speed_tables.speed_table(speed)),
        "gpu": to_markdown(speed_tables.gpu_table(speed)),
        "accuracy-runs": to_markdown(speed_tables.accuracy_runs_table(speed)),
        "two-epochs": describe_shortest_run(speed, trials),
        "export": to_markdown(speed_tables.export_table(export)),
    }


def shown_trial(trials: list[Trial]) -> Trial:
    """The run that the pages and the final model's notebook show: the final recipe, test set, seed 0."""
    found = select(trials, variant="s5", seed=0)
    if not found:
        command = "python -m s5 sweep --variants s5 --seeds 0 --split test"
        raise ValueError(f"the ledger has no test run of s5 from seed 0: run {command}")
    return found[0]


def describe_shortest_run(speed: dict, trials: list[Trial]) -> str:
    """Where the shortest schedule to 99.4% misses what the project asks of a claim, as a sentence."""
    variant = KNOWN["to_99_4"]
    runs = [record["to 99.4%"] for record in speed.values() if "to 99.4%" in record]
    p_values = [run["p of a mean above the target"] for run in runs if run["recipe"]["epochs"] == variant.recipe.epochs]
    p_values = [f"p = {p:.2g}" for p in p_values if p >= SIGNIFICANCE]
    validated = select(trials, network=variant.network, recipe=variant.recipe, split="validation", data="mnist")
    accuracies = pd.Series([trial.accuracy for trial in validated])
    return (
        f"By the project's own rule, p < {SIGNIFICANCE}, {variant.recipe.epochs} epochs do not show a mean above 99.4% "
        f"({' and '.join(p_values)}); on the validation split, from 50,000 training images, the mean of this recipe is "
        f"{accuracies.mean():.2f}% ({len(accuracies)} seeds)."
    )


def describe_shown(trial: Trial) -> str:
    """The accuracy, its interval and the duration of one run, as text."""
    low, high = wilson_interval(trial.curve[-1]["eval_correct"], IMAGES)
    return (
        f"Seed {trial.seed}, last epoch, 10,000 test images: {trial.accuracy:.2f}% "
        f"(95% interval {low:.2f}–{high:.2f}%), {trial.seconds / 60:.1f} minutes ({trial.device})."
    )


def describe_counts() -> str:
    """The number of layers of each kind in `Net`, as a list."""
    names = {"Linear": "Fully connected (Linear)", "GAP": "Global average pooling"}
    counts = inspection.count_layers(Net())
    return "\n".join(f"- **{names.get(kind, kind)} layers used:** {count}" for kind, count in counts.items())


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table, with columns of numbers aligned to the right."""
    numeric = [bool(table[column].astype(str).str.match(r"[-+]?[\d,.]+%?$").all()) for column in table]
    rows = [table.columns, ["---:" if right else "---" for right in numeric], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def fill(pages: dict[Path, str], sections: dict[str, str]) -> dict[Path, str]:
    """The pages with every section between its markers, `<!-- NAME -->` and `<!-- /NAME -->`.

    Raises ValueError for markers without a section and for a section without markers on any page.
    """
    used = {name for text in pages.values() for _, name, _ in MARKER.findall(text)}
    if used != sections.keys():
        wrong = ", ".join(sorted(used ^ sections.keys()))
        raise ValueError(f"sections and markers of {', '.join(page.name for page in pages)} do not match: {wrong}")
    return {
        page: MARKER.sub(lambda match: f"{match[1]}{sections[match[2]]}\n{match[3]}", text)
        for page, text in pages.items()
    }


def pictures(trials: list[Trial]) -> dict[str, Picture]:
    """The figures of the pages that the ledger gives, by the name of their file."""
    shown, points = shown_trial(current_trials("test", trials)), frontier_points(trials)
    title = f"Net, seed {shown.seed}: {shown.accuracy:.2f}% in the last epoch"
    return {
        "curves": plots.plot_curves(shown.curve, title=title),
        "frontier": plot_frontier(points, pd.read_csv(PEERS)),
        "training_time": plot_training_time(points[points["name"] != BASELINE.name]),
    }


def alternatives(trials: list[Trial]) -> dict[str, str]:
    """The figures' texts for those who cannot see them, by the name of their file."""
    wrong = len(shown_trial(current_trials("test", trials)).mistakes)
    texts = {name: picture.text_alternative() for name, picture in pictures(trials).items()}
    return texts | {"mistakes": f"Mistakes: {wrong} of {IMAGES:,} digits (label → prediction, confidence)"}


def draw_figures(trials: list[Trial]) -> None:
    """Draw the pages' figures; each file also has its text. Raises DataError without the full MNIST, and ValueError."""
    shown = shown_trial(current_trials("test", trials))
    for name, picture in (pictures(trials) | {"mistakes": _draw_mistakes(shown)}).items():
        save_figure(picture, FIGURES / f"{name}.png")


def _draw_mistakes(shown: Trial) -> Picture:
    data = load_mnist(allow_sample=False)
    probabilities = predict(load_weights(Net(), WEIGHTS), data.eval_images)
    if mistakes(data.eval_labels, probabilities) != shown.mistakes:
        raise ValueError(f"the mistakes of {WEIGHTS.name} are not those in the ledger: save that run's weights")
    return plots.plot_mistakes(data.eval_images, data.eval_labels, probabilities)
