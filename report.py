"""What is said about runs: statistics over the ledger, tables, and the README's tables and figures.

python report.py            rewrite the README's tables from the ledger, between their markers
python report.py --check    only say whether they are up to date; exit code 1 when not
python report.py --figures  draw the README's figures too (needs the full MNIST)
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd
from scipy import stats

from files import atomic_path
from ledger import LEDGER, read_ledger, select

REPO = Path(__file__).parent
README = REPO / "README.md"
FIGURES = REPO / "figures"
WEIGHTS = REPO / "results" / "s5_seed0.safetensors"  # of the first seed, not the best
GOAL = 99.4  # percent, what the project promises


# --- Statistics -------------------------------------------------------------------------------------------------------


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an accuracy, in percent (Wilson, JASA 1927). ValueError unless 0 <= correct <= total."""
    if not 0 <= correct <= total:
        raise ValueError(f"correct answers must be from 0 to {total}, not {correct}")
    interval = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return 100 * interval.low, 100 * interval.high


def p_mean_above(accuracies: list[float], threshold: float) -> float:
    """p-value of the one-sided t-test that the mean over seeds lies above `threshold`; NaN for fewer than two."""
    if len(accuracies) < 2:
        return float("nan")
    return float(stats.ttest_1samp(accuracies, threshold, alternative="greater").pvalue)


def mcnemar(mistakes: dict, other_mistakes: dict) -> float:
    """Exact McNemar test between two models on the same images: two-sided p-value (McNemar, Psychometrika 1947).

    Takes the ledger's `mistakes`; only the images that one model gets right and the other wrong decide.
    """
    ours_alone = len(mistakes.keys() - other_mistakes.keys())
    theirs_alone = len(other_mistakes.keys() - mistakes.keys())
    if ours_alone + theirs_alone == 0:
        return 1.0
    return float(stats.binomtest(ours_alone, ours_alone + theirs_alone).pvalue)


def paired_difference(trials: list[dict], other_trials: list[dict]) -> dict:
    """Accuracy of `trials` minus that of `other_trials`, seed by seed, in points.

    Returns n (seeds in common), mean, low and high (95% t-interval) and p (two-sided paired t-test); the
    last three are NaN for fewer than two seeds. ValueError where no seed is in common.
    """
    ours = {trial["seed"]: trial["accuracy"] for trial in trials}
    theirs = {trial["seed"]: trial["accuracy"] for trial in other_trials}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(ours)} and {sorted(theirs)}")
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    result = {"n": len(seeds), "mean": sum(differences) / len(seeds), "low": float("nan"), "high": float("nan")}
    if len(seeds) < 2:
        return result | {"p": float("nan")}
    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    return result | {"low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}


def current_trials(split: str, trials: list[dict] | None = None) -> list[dict]:
    """The ledger's trials on the full MNIST, made by the recipes that `variants.py` has today."""
    from variants import VARIANTS

    trials = read_ledger() if trials is None else trials
    recipes = {name: variant.recipe.as_dict() for name, variant in VARIANTS.items()}
    return [
        trial for trial in select(trials, split=split, data="mnist") if trial["recipe"] == recipes.get(trial["variant"])
    ]


def summary_table(trials: list[dict]) -> pd.DataFrame:
    """One row a variant, in the order of `variants.py`: size, cost, and accuracy over seeds in percent."""
    from variants import VARIANTS

    rows = []
    for name in VARIANTS:
        if not (group := select(trials, variant=name)):
            continue
        accuracies = pd.Series([trial["accuracy"] for trial in group])
        flattered = pd.Series([trial["best_accuracy"] for trial in group]) - accuracies
        rows.append(
            {
                "Variant": name,
                "Parameters": f"{group[0]['parameters']:,}",
                "Multiply-adds": f"{group[0]['macs']:,}",
                "Epochs": group[0]["epochs"],
                "Seeds": len(group),
                "Mean": f"{accuracies.mean():.3f}",
                "Std": f"{accuracies.std():.3f}" if len(group) > 1 else "–",
                "Minimum": f"{accuracies.min():.2f}",
                "Best epoch would add": f"{flattered.mean():.3f}",
                "Seconds an epoch": f"{pd.Series([t['seconds'] / t['epochs'] for t in group]).median():.1f}",
            }
        )
    return pd.DataFrame(rows)


def describe_result(correct: int, data) -> str:
    """E.g. "99.42% on the test images (9942/10000, 95% interval 99.25–99.55%)"; says so when they are a sample's."""
    total = len(data.test_labels)
    low, high = wilson_interval(correct, total)
    held_out = f"{data.split} images" if data.source == "mnist" else f"SAMPLE's {data.split} images"
    return f"{100 * correct / total:.2f}% on the {held_out} ({correct}/{total}, 95% interval {low:.2f}–{high:.2f}%)"


def describe_seeds(trials: list[dict]) -> str:
    """Mean, standard deviation, minimum and the test against `GOAL`, in words."""
    accuracies = pd.Series([trial["accuracy"] for trial in trials])
    if len(accuracies) < 2:
        return f"{accuracies.mean():.2f}% from one seed"
    above = p_mean_above(list(accuracies), GOAL)
    return (
        f"mean {accuracies.mean():.2f}% over {len(accuracies)} seeds (standard deviation {accuracies.std():.2f}, "
        f"minimum {accuracies.min():.2f}%, one-sided t-test for a mean above {GOAL}%: p = {above:.2g})"
    )


def describe_difference(difference: dict) -> str:
    """A `paired_difference` in words, e.g. "+0.05 points (95% interval +0.01 to +0.09, p = 0.02, 3 seeds)"."""
    if difference["n"] < 2:
        return f"{difference['mean']:+.2f} points (one seed in common: no interval)"
    noise = "" if difference["low"] > 0 or difference["high"] < 0 else ": inside the noise"
    return (
        f"{difference['mean']:+.2f} points (95% interval {difference['low']:+.2f} to {difference['high']:+.2f}, "
        f"p = {difference['p']:.2g}, {difference['n']} seeds){noise}"
    )


# --- README -----------------------------------------------------------------------------------------------------------


def shown_trial(trials: list[dict]) -> dict:
    """The run that the README and the notebook show: the final recipe, test set, seed 0, whatever it gave."""
    found = select(trials, variant="s5", seed=0)
    if not found:
        raise ValueError("the ledger lacks the run that is shown: python sweep.py --variants s5 --seeds 0 --split test")
    return found[0]


def readme_sections(trials: list[dict]) -> dict[str, str]:
    """The text between each pair of markers in the README, from the trials of the whole ledger."""
    from helpers import Net, count_layers, layer_table, summary
    from variants import VARIANTS

    tested, validated = current_trials("test", trials), current_trials("validation", trials)
    shown = shown_trial(tested)
    low, high = wilson_interval(shown["curve"][-1]["test_correct"], 10_000)
    last = f"**{shown['accuracy']:.2f}%** (95% interval {low:.2f}–{high:.2f}%)"
    seeds = select(tested, variant="s5")
    counts = count_layers(Net())
    log = pd.DataFrame(shown["curve"])
    log_columns = {
        "Epoch": log["epoch"],
        "Rate at its end": log["learning_rate"].map("{:.5f}".format),
        "Train loss": log["train_loss"].map("{:.4f}".format),
        "Train accuracy": log["train_accuracy"].map("{:.2f}%".format),
        "Test loss": log["test_loss"].map("{:.4f}".format),
        "Test accuracy": [f"{epoch['test_correct']}/10000 ({epoch['test_accuracy']:.2f}%)" for epoch in shown["curve"]],
        "Seconds": log["seconds"].map("{:.1f}".format),
    }
    log = pd.DataFrame(log_columns)
    layers = layer_table(Net())
    layers["Parameters"] = layers["Parameters"].map("{:,}".format)
    return {
        "result": (
            f"Seed 0, last epoch, 10,000 test images: {last}; {describe_seeds(seeds)}. "
            f"{shown['epochs']} epochs took {shown['seconds'] / 60:.1f} minutes ({shown['device']})."
        ),
        "layers": to_markdown(layers),
        "counts": "\n".join(
            [
                f"- **BatchNorm2d layers used:** {counts['BatchNorm2d']}",
                f"- **Dropout layers used:** {counts['Dropout']}",
                f"- **Fully connected (Linear) layers used:** {counts['Linear']}",
                f"- **Global average pooling layers used:** {counts['GAP']}",
            ]
        ),
        "summary": f"```\n{summary(Net())}\n```",
        "log": to_markdown(log[log["Epoch"].isin([5, 10, 15, 20])][["Epoch", "Train accuracy", "Test accuracy"]]),
        "full-log": to_markdown(log),
        "test-table": to_markdown(summary_table(tested)),
        "validation-table": to_markdown(summary_table(validated)),
        "comparison": (
            "Seed by seed on the validation split, `s5` against `seed_recipe`: "
            + describe_difference(
                paired_difference(select(validated, variant="s5"), select(validated, variant="seed_recipe"))
            )
            + "."
        ),
        "variants": "\n".join(
            f"- **{name}**: {VARIANTS[name].change} Expected: {VARIANTS[name].target}"
            for name in summary_table(validated)["Variant"]
        ),
    }


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table; columns of numbers to the right."""
    numeric = [bool(table[column].astype(str).str.match(r"[\d,.]+%?$").all()) for column in table]
    rows = [table.columns, ["---:" if right else "---" for right in numeric], *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def fill_markers(text: str, sections: dict[str, str]) -> str:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` of every section; ValueError where they lack."""
    for name, content in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the README has no markers <!-- {name} --> … <!-- /{name} -->")
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


def draw_figures(trials: list[dict]) -> None:
    """Draw the README's figures from the ledger and the committed weights. DataError without the full MNIST."""
    import helpers

    shown = shown_trial(current_trials("test", trials))
    title = f"Net, seed 0: {shown['accuracy']:.2f}% in the last epoch"
    helpers.save_figure(helpers.plot_curves(shown["curve"], title=title), FIGURES / "curves.png")
    data = helpers.load_mnist(allow_sample=False)
    probabilities = helpers.predict(helpers.load_weights(helpers.Net(), WEIGHTS), data.test_images)
    if helpers.mistakes(data.test_labels, probabilities) != shown["mistakes"]:
        raise ValueError(f"{WEIGHTS.name} does not make the mistakes that the ledger records: save that run's weights")
    figure = helpers.plot_mistakes(data.test_images, data.test_labels, probabilities)
    helpers.save_figure(figure, FIGURES / "mistakes.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the README is stale")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    options = parser.parse_args()

    try:
        trials = read_ledger(LEDGER)
        text = README.read_text(encoding="utf-8")
        fresh = fill_markers(text, readme_sections(trials))
        if options.figures:
            draw_figures(trials)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    if options.check:
        print("README.md is up to date" if text == fresh else "README.md is stale: run python report.py")
        return int(text != fresh)
    with atomic_path(README) as temporary:
        temporary.write_text(fresh, encoding="utf-8")
    print(f"README.md {'unchanged' if text == fresh else 'rewritten'} from {len(trials)} trials")
    return 0


if __name__ == "__main__":
    sys.exit(main())
