"""The text between the markers of README.md and RESULTS.md, and the figures on these pages."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers import Net, mistakes, predict
from s5.analysis import inspection, plots
from s5.analysis.statistics import describe_seeds, wilson_interval
from s5.analysis.style import Picture, save_figure
from s5.experiments.ledger import select
from s5.experiments.variants import VARIANTS
from s5.reports import speed_tables
from s5.reports.goals import GOALS, claims_table, goals_table
from s5.reports.plots import plot_frontier, plot_training_time
from s5.reports.tables import (
    IMAGES,
    comparison_table,
    current_trials,
    describe_noise,
    earlier_claims_table,
    frontier_points,
    frontier_trials,
    precision_table,
    summary_table,
    tried_table,
)
from s5.training.checkpoint import load_weights
from s5.training.files import EXPORT, FAULTS, PEERS, ROOT, SPEED, WEIGHTS
from s5.training.mnist import load_mnist

SHORT_LOG = (5, 10, 15, 20)  # epochs
MARKER = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def sections(trials: list[dict], folder: Path = ROOT) -> dict[str, str]:
    """The text of every section, by the name of its markers, from all trials of the ledger.

    `folder` is the project, whose results/ has the measurements. Raises ValueError if the ledger or a file of
    measurements does not have what a section shows.
    """
    tested, validated = current_trials("test", trials), current_trials("validation", trials)
    if not validated:
        raise ValueError("the ledger has no validation runs of the current variants: python -m s5.experiments.sweep")
    shown = shown_trial(tested)
    speed = speed_tables.read_measurements(_in(folder, SPEED), "python -m s5.benchmarks.bench")
    export = speed_tables.read_measurements(_in(folder, EXPORT), "python -m s5.deployment.export --record")
    faults = speed_tables.read_measurements(_in(folder, FAULTS), "python -m s5.benchmarks.faults")
    log = log_table(shown["curve"])
    layers = inspection.layer_table(Net())
    layers["Parameters"] = layers["Parameters"].map("{:,}".format)
    return {
        "claims": to_markdown(claims_table(trials)),
        "layers": to_markdown(layers),
        "counts": describe_counts(),
        "log": to_markdown(log[log["Epoch"].isin(SHORT_LOG)][["Epoch", "Train accuracy", "Test accuracy"]]),
        "goals": to_markdown(goals_table(trials)),
        "earlier": to_markdown(earlier_claims_table(trials)),
        "seeds": f"`Net`, test set, last epoch: {describe_seeds(select(tested, variant='s5'))}.",
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
        "profile": to_markdown(speed_tables.profile_table(speed)),
        "throughput": speed_tables.describe_throughput(speed),
        "sweeps": to_markdown(speed_tables.sweep_table(speed)),
        "export": to_markdown(speed_tables.export_table(export)),
        "faults": to_markdown(pd.DataFrame(faults).rename(columns=str.capitalize)),
    }


def shown_trial(trials: list[dict]) -> dict:
    """The run that the pages and the final model's notebook show: the final recipe, test set, seed 0."""
    found = select(trials, variant="s5", seed=0)
    if not found:
        command = "python -m s5.experiments.sweep --variants s5 --seeds 0 --split test"
        raise ValueError(f"the ledger has no test run of s5 from seed 0: {command}")
    return found[0]


def describe_shown(trial: dict) -> str:
    """The accuracy, its interval and the duration of one run, as text."""
    low, high = wilson_interval(trial["curve"][-1]["eval_correct"], IMAGES)
    return (
        f"Seed {trial['seed']}, last epoch, 10,000 test images: {trial['accuracy']:.2f}% "
        f"(95% interval {low:.2f}–{high:.2f}%), {trial['seconds'] / 60:.1f} minutes ({trial['device']})."
    )


def describe_counts() -> str:
    """The number of layers of each kind in `Net`, as a list."""
    counts = inspection.count_layers(Net())
    names = {
        "BatchNorm2d": "BatchNorm2d layers",
        "Dropout": "Dropout layers",
        "Linear": "Fully connected (Linear) layers",
        "GAP": "Global average pooling layers",
    }
    return "\n".join(f"- **{name} used:** {counts[kind]}" for kind, name in names.items())


def log_table(curve: list[dict]) -> pd.DataFrame:
    """The training log of a run on the test split, one row per epoch."""
    log = pd.DataFrame(curve)
    columns = {
        "Epoch": log["epoch"],
        "Learning rate": log["learning_rate"].map("{:.5f}".format),
        "Train loss": log["train_loss"].map("{:.4f}".format),
        "Train accuracy": log["train_accuracy"].map("{:.2f}%".format),
        "Test loss": log["eval_loss"].map("{:.4f}".format),
        "Test accuracy": [f"{epoch['eval_correct']}/{IMAGES} ({epoch['eval_accuracy']:.2f}%)" for epoch in curve],
        "Seconds": log["seconds"].map("{:.1f}".format),
    }
    return pd.DataFrame(columns)


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


def different_sections(text: str, other: str) -> list[str]:
    """The names of the sections in which two versions of a page differ."""
    own, others = ({match[2]: match[0] for match in MARKER.finditer(page)} for page in (text, other))
    return [name for name in own if own[name] != others.get(name)]


@dataclass(frozen=True)
class Drawing:
    """A figure of the pages: its file's name, what it shows, as JSON can hold it, and how it is drawn from that."""

    name: str
    data: object
    draw: Callable[[], Picture]


def drawings(trials: list[dict], folder: Path = ROOT) -> list[Drawing]:
    """The figures of the pages, from all trials of the ledger and the files of the project in `folder`."""
    shown = shown_trial(current_trials("test", trials))
    points, peers = frontier_points(frontier_trials(trials)), _in(folder, PEERS).read_text(encoding="utf-8")
    timed = points[(points["split"] == "test") & points["name"].isin({goal.variant for goal in GOALS})]
    weights = hashlib.sha256(_in(folder, WEIGHTS).read_bytes()).hexdigest()
    about = {key: shown[key] for key in ("seed", "accuracy")}
    title = f"Net, seed {shown['seed']}: {shown['accuracy']:.2f}% in the last epoch"
    return [
        Drawing(
            "curves.png",
            about | {"curve": shown["curve"]},
            lambda: plots.plot_curves(shown["curve"], title=title),
        ),
        Drawing(
            "mistakes.png",
            about | {"mistakes": shown["mistakes"], "weights": weights},
            lambda: _draw_mistakes(shown, _in(folder, WEIGHTS)),
        ),
        Drawing(
            "frontier.png",
            {"points": points.round(6).to_dict("list"), "peers": peers},
            lambda: plot_frontier(points, pd.read_csv(io.StringIO(peers))),
        ),
        Drawing(
            "training_time.png",
            {"points": timed.round(6).to_dict("list")},
            lambda: plot_training_time(timed),
        ),
    ]


def draw_figures(trials: list[dict], folder: Path = ROOT) -> None:
    """Draw the pages' figures. Raises DataError without the full MNIST, and ValueError for weights of another run."""
    for drawing in drawings(trials, folder):
        save_figure(drawing.draw(), folder / "figures" / drawing.name, drawing.data)


def _draw_mistakes(shown: dict, weights: Path) -> Picture:
    data = load_mnist(allow_sample=False)
    probabilities = predict(load_weights(Net(), weights), data.eval_images)
    if mistakes(data.eval_labels, probabilities) != shown["mistakes"]:
        raise ValueError(f"the mistakes of {weights.name} are not those in the ledger: save that run's weights")
    return plots.plot_mistakes(data.eval_images, data.eval_labels, probabilities)


def _in(folder: Path, path: Path) -> Path:
    """The same file of the project in another folder."""
    return folder / path.relative_to(ROOT)
