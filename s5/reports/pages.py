"""The text between the markers of README.md and RESULTS.md, and the figures on these pages."""

import re
from pathlib import Path

import pandas as pd

from helpers import Net, predict
from s5.analysis import inspection, plots
from s5.analysis.notebook import epoch_table
from s5.analysis.statistics import describe_seeds, wilson_interval
from s5.analysis.style import Picture, save_figure
from s5.experiments.claims import BASELINE, CLAIMS
from s5.experiments.trial import IMAGES, Trial
from s5.experiments.variants import VARIANTS
from s5.inference.trained import load_trained
from s5.reports import speed_tables, tables
from s5.reports.cards import cards, other_digits_table
from s5.reports.goals import claims_table, goals_table
from s5.reports.plots import plot_frontier, plot_training_time
from s5.reports.transfer import (
    describe_order,
    plot_transfer,
    transfer_changes,
    transfer_claims_table,
    transfer_table,
)
from s5.training.files import EXPORT, PEERS, README, RESULTS_PAGE, ROOT, write_file
from s5.training.mnist import load_data

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
        write_file(path, text)
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    return f"updated from {len(trials)} trials: {names}" if names else "pages and cards are up to date"


def has_text(path: Path, text: str) -> bool:
    """Whether a file is there and has this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def sections(trials: list[Trial]) -> dict[str, str]:
    """The text of every section, by the name of its markers, from all trials of the ledger."""
    tested, validated = tables.current_trials("test", trials), tables.current_trials("validation", trials)
    shown = shown_trial(trials)
    speed = speed_tables.read_measurements()
    log = epoch_table(shown.curve, "test")
    short = log.set_index("Epoch").loc[SHORT_LOG, ["Train accuracy", "Test accuracy"]].add("%").reset_index()
    layers = inspection.layer_table(Net())
    layers["Parameters"] = layers["Parameters"].map("{:,}".format)
    shown_tables = {
        "claims": claims_table(trials),
        "layers": layers,
        "log": short,
        "goals": goals_table(trials),
        "earlier": tables.earlier_claims_table(trials),
        "full-log": log,
        "test-table": tables.summary_table(tested),
        "validation-table": tables.summary_table(validated),
        "comparison": tables.comparison_table(validated),
        "tried": tables.tried_table(trials),
        "other-digits": other_digits_table(),
        "transfer": transfer_table(trials),
        "transfer-claims": transfer_claims_table(trials),
        "precision": tables.precision_table(trials),
        "speed": speed_tables.speed_table(speed),
        "gpu": speed_tables.gpu_table(speed),
        "accuracy-runs": speed_tables.accuracy_runs_table(speed),
        "export": speed_tables.export_table(speed_tables.read_measurements(EXPORT)),
    }
    names = {"Linear": "Fully connected (Linear)", "GAP": "Global average pooling"}
    counts = inspection.count_layers(Net()).items()
    claimed = [trial.mistakes.keys() for trial in CLAIMS["s5"].trials(trials)]
    low, high = wilson_interval(shown.curve[-1]["eval_correct"], IMAGES)
    return {
        **{f"figure-{name}": f"![{text}](figures/{name}.png)" for name, text in alternatives(trials).items()},
        **{name: to_markdown(table) for name, table in shown_tables.items()},
        "counts": "\n".join(f"- **{names.get(kind, kind)} layers used:** {count}" for kind, count in counts),
        "seeds": describe_seeds(claimed, IMAGES).replace("\n", " "),
        "shown": f"Seed {shown.seed}, last epoch, {IMAGES:,} test images: {shown.accuracy:.2f}% (95% interval "
        f"{low:.2f}–{high:.2f}%), {shown.seconds / 60:.1f} minutes ({shown.device}).",
        "summary": f"```\n{inspection.summary(Net())}\n```",
        "noise": tables.describe_noise(validated).replace("\n", " "),
        "precision-difference": tables.describe_precision(trials),
        "transfer-order": describe_order(trials),
        "variants": "\n".join(
            f"- **{variant.name}**: {variant.change} Expected: {variant.target}" for variant in VARIANTS.values()
        ),
        "machines": speed_tables.describe_machines(speed),
    }


def shown_trial(trials: list[Trial]) -> Trial:
    """The run that the pages and the final model's notebook show: the first seed of the claim of `Net`."""
    return CLAIMS["s5"].trials(trials)[0]


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
    shown, points = shown_trial(trials), tables.frontier_points(trials)
    title = f"Net, seed {shown.seed}: {shown.accuracy:.2f}% in the last epoch"
    return {
        "curves": plots.plot_curves(shown.curve, title=title),
        "frontier": plot_frontier(points, pd.read_csv(PEERS)),
        "training_time": plot_training_time(points[points["name"] != BASELINE.name]),
        "transfer": plot_transfer(transfer_changes(trials)),
    }


def alternatives(trials: list[Trial]) -> dict[str, str]:
    """The figures' texts for those who cannot see them, by the name of their file."""
    wrong = len(shown_trial(trials).mistakes)
    texts = {name: picture.text_alternative() for name, picture in pictures(trials).items()}
    return texts | {"mistakes": f"Mistakes: {wrong} of {IMAGES:,} images (label → prediction, confidence)"}


def draw_figures(trials: list[Trial]) -> None:
    """Draw the pages' figures; each file also has its text. Raises DataError without the full MNIST."""
    data = load_data(allow_sample=False)
    probabilities = predict(load_trained(), data.eval_images)
    wrong = plots.plot_mistakes(data.eval_images, data.eval_labels, probabilities)
    for name, picture in (pictures(trials) | {"mistakes": wrong}).items():
        save_figure(picture, FIGURES / f"{name}.png")
