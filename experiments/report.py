"""What is said about runs: statistics over the ledger, tables, and the README's tables and figures.

python report.py            rewrite the README's tables from the ledger, between their markers
python report.py --check    only say whether they are up to date; exit code 1 when not
python report.py --figures  draw the README's figures too (needs the full MNIST)
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

from analysis import plots
from analysis.statistics import (
    describe_result,
    describe_seeds,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    pooled_deviation,
    pooled_difference,
    wilson_interval,
)
from experiments.goals import BUDGETS, GOALS, claims, goals_table
from experiments.ledger import read_ledger, select
from experiments.plots import plot_frontier
from experiments.speed_tables import (
    EXPORT,
    describe_machine,
    describe_throughput,
    export_table,
    profile_table,
    projection_table,
    read_speed,
    speed_table,
    sweep_table,
)
from training.checkpoint import load_weights
from training.files import FIGURES, LEDGER, PEERS, README, WEIGHTS, atomic_path
from training.mnist import load_mnist

IMAGES = 10_000  # that an accuracy is measured on, in either split of the full MNIST
NOT_TESTED = dict.fromkeys(("low", "high", "p"), float("nan"))


# --- Tables -----------------------------------------------------------------------------------------------------------


def current_trials(split: str, trials: list[dict] | None = None) -> list[dict]:
    """The ledger's trials on the full MNIST, made by the recipes that `variants.py` has today."""
    from experiments.variants import VARIANTS

    trials = read_ledger() if trials is None else trials
    recipes = {name: variant.recipe.as_dict() for name, variant in VARIANTS.items()}
    return [
        trial for trial in select(trials, split=split, data="mnist") if trial["recipe"] == recipes.get(trial["variant"])
    ]


def summary_table(trials: list[dict]) -> pd.DataFrame:
    """One row a variant, in the order of `variants.py`: size, cost, and accuracy over seeds in percent.

    The Wilson interval is that of one network with the mean's accuracy: how far another 10,000 images might move it,
    the noise between seeds aside.
    """
    from experiments.variants import VARIANTS

    rows = []
    for name in VARIANTS:
        if not (group := select(trials, variant=name)):
            continue
        accuracies = pd.Series([trial["accuracy"] for trial in group])
        low, high = wilson_interval(round(accuracies.mean() / 100 * IMAGES), IMAGES)
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
                "Wilson 95%": f"{low:.2f}–{high:.2f}",
                "Best epoch would add": f"{flattered.mean():.3f}",
                "Seconds an epoch": f"{pd.Series([t['seconds'] / t['epochs'] for t in group]).median():.1f}",
            }
        )
    return pd.DataFrame(rows)


def tried_table(trials: list[dict]) -> pd.DataFrame:
    """One row for each network and recipe that was tried on the validation split beside `current_trials`.

    Grouped by the budget of parameters that a network keeps to, best first by the loss, the mean cross-entropy per
    image: it tells two good networks apart sooner than their few mistakes do. "Recipe" is today's `s5`, `sgd` or
    `candidates.FAST`, whichever is nearest, and what was changed.
    """
    from experiments.candidates import FAST
    from experiments.variants import FINAL, SGD, changes_in_words

    bases = {"s5": FINAL.as_dict(), "sgd": SGD.as_dict(), "FAST": FAST.as_dict()}
    told = {id(trial) for trial in current_trials("validation", trials)}
    groups: dict[tuple, list[dict]] = {}
    for trial in select(trials, split="validation", data="mnist"):
        if id(trial) not in told:
            recipe = trial["recipe"] | {"epochs": FINAL.epochs}  # they have a column of their own
            changes = {name: changes_in_words(recipe, base | {"epochs": FINAL.epochs}) for name, base in bases.items()}
            nearest = min(changes, key=lambda name: changes[name].count("→"))
            recipe = ", ".join(filter(None, (nearest, changes[nearest])))
            groups.setdefault((trial["variant"], trial["epochs"], recipe), []).append(trial)
    rows = []
    for (variant, epochs, recipe), group in groups.items():
        parameters = group[0]["parameters"]
        budget = next((budget for budget in BUDGETS if parameters < budget), math.inf)
        accuracies = pd.Series([trial["accuracy"] for trial in group])
        losses = pd.Series([trial["curve"][-1]["eval_loss"] for trial in group])
        row = {
            "Budget": f"< {budget:,}" if budget < math.inf else "none",
            "Network": variant,
            "Parameters": f"{parameters:,}",
            "Epochs": epochs,
            "Seeds": len(group),
            "Mean": f"{accuracies.mean():.3f}",
            "Loss": f"{losses.mean():.4f}",
            "Recipe": recipe,
        }
        rows.append((-budget, losses.mean(), row))
    return pd.DataFrame([row for *_, row in sorted(rows, key=lambda item: item[:2])])


def comparison_table(trials: list[dict], pairs: list[tuple[str, str]] | None = None) -> pd.DataFrame:
    """One row a change, seed by seed: what a variant gains over its parent, and whether that is noise between seeds.

    `trials` are of one split; `pairs` names other comparisons (variant, rival). One without a common seed is left out.
    Two tests: by the paired differences in points alone (t-test), and, on the errors' logarithm, by the noise between
    seeds pooled over all variants (`seed_noise`), which decides. One common seed is not tested. Holm's correction is
    over the tested rows.
    """
    from experiments.variants import VARIANTS

    pairs = pairs or [(variant.name, variant.parent) for variant in VARIANTS.values() if variant.parent]
    deviation, freedom = seed_noise(trials)
    compared, pooled = {}, {}
    for pair in pairs:
        ours, theirs = ([in_errors(trial) for trial in select(trials, variant=name)] for name in pair)
        if {trial["seed"] for trial in ours} & {trial["seed"] for trial in theirs}:
            compared[pair] = paired_difference(ours, theirs)
            growth = paired_difference(ours, theirs, "log_error")
            tested = freedom and growth["n"] > 1  # a single seed may be the lucky one, whatever others scatter like
            noise = pooled_difference(growth["mean"], growth["n"], deviation, freedom) if tested else NOT_TESTED
            pooled[pair] = growth | noise
    holms = {
        name: dict(zip(tests, holm([test["p"] for test in tests.values()]), strict=True))
        for name, tests in (("paired", compared), ("pooled", pooled))
    }
    rows = []
    for pair, paired in compared.items():
        p, p_pooled = holms["paired"][pair], holms["pooled"][pair]
        rows.append(
            {
                "Variant": pair[0],
                "Against": pair[1],
                "Seeds": paired["n"],
                "Points": f"{paired['mean']:+.3f}",
                "Paired 95%": _interval(paired, "{:+.2f}"),
                "p, Holm": _p_value(p),
                "Errors": f"{100 * math.expm1(pooled[pair]['mean']):+.0f}%",
                "Pooled 95%": _interval(
                    {key: 100 * math.expm1(pooled[pair][key]) for key in ("low", "high")}, "{:+.0f}%"
                ),
                "p, pooled, Holm": _p_value(p_pooled),
                "Beyond seed noise": "not tested" if math.isnan(p_pooled) else "yes" if p_pooled < 0.05 else "no",
            }
        )
    return pd.DataFrame(rows)


def in_errors(trial: dict) -> dict:
    """The trial with `log_error`, the logarithm of its error rate in percent; no error at all counts as half a one.

    On this scale seeds of a good variant and of a poor one scatter about alike, which in points they do not.
    """
    return trial | {"log_error": math.log(max(100 - trial["accuracy"], 50 / IMAGES))}


def seed_noise(trials: list[dict]) -> tuple[float, int]:
    """How far seeds of one variant lie apart in `log_error`, pooled over all variants, and its degrees of freedom."""
    groups = {}
    for trial in map(in_errors, trials):
        groups.setdefault(trial["variant"], []).append(trial["log_error"])
    return pooled_deviation(list(groups.values()))


def _interval(difference: dict, form: str) -> str:
    low, high = difference["low"], difference["high"]
    return "–" if math.isnan(low) else f"{form.format(low)} to {form.format(high)}"


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}"


def image_table(trials: list[dict], seed: int) -> pd.DataFrame:
    """One row a change, image by image: which of two networks of one seed alone is wrong, and McNemar's exact test.

    `trials` are of one split. Holm's correction is over the rows.
    """
    from experiments.variants import VARIANTS

    of_seed = {trial["variant"]: trial["mistakes"].keys() for trial in select(trials, seed=seed)}
    rows, p_values = [], []
    for name, variant in VARIANTS.items():
        if name not in of_seed or variant.parent not in of_seed:
            continue
        ours, theirs = of_seed[name], of_seed[variant.parent]
        p_values.append(mcnemar(ours, theirs))
        counts = {"Wrong alone": len(ours - theirs), "The other alone": len(theirs - ours), "Both": len(ours & theirs)}
        rows.append({"Variant": name, "Against": variant.parent, **counts, "p": f"{p_values[-1]:.2g}"})
    for row, p in zip(rows, holm(p_values), strict=True):
        row["p, Holm"] = f"{p:.2g}"
    return pd.DataFrame(rows)


def describe_noise(trials: list[dict], seeds: int = 3, accuracy: float = 99.3) -> str:
    """How far seeds of one recipe lie apart (`seed_noise`), and what that means at an `accuracy`, in words."""
    deviation, freedom = seed_noise(trials)
    half = pooled_difference(0.0, seeds, deviation, freedom)["high"]
    low, high = wilson_interval(round(accuracy / 100 * IMAGES), IMAGES)
    error = 100 - accuracy
    runs = Counter(trial["variant"] for trial in trials)
    several = [count for count in runs.values() if count > 1]
    return (
        f"Seeds of one variant differ by a standard deviation of {100 * deviation:.0f}% of their errors "
        f"({len(several)} variants, {sum(several)} runs): at {accuracy:g}%, {error * deviation:.2f} points.\n"
        f"The difference between two means of {seeds} seeds is then uncertain by ±{100 * half:.0f}% of the errors "
        f"(95%): at {accuracy:g}%, ±{error * half:.2f} points.\n"
        f"Another {IMAGES:,} images might move an accuracy of {accuracy:g}% to anywhere from {low:.2f}% to {high:.2f}%."
    )


def frontier_trials(trials: list[dict]) -> list[dict]:
    """What the README's frontier shows: today's variants on both splits, and what else is claimed on the test set."""
    from experiments.variants import VARIANTS

    claimed = [trial for goal in GOALS if goal.variant not in VARIANTS for trial in claims(goal, trials)]
    return [*current_trials("validation", trials), *current_trials("test", trials), *claimed]


def frontier_points(trials: list[dict]) -> pd.DataFrame:
    """Size against accuracy, a row a variant and split: name, split, parameters, seeds, mean, low and high (95%)."""
    columns, rows = ["name", "split", "parameters", "seeds", "mean", "low", "high"], []
    if not trials:
        return pd.DataFrame(rows, columns=columns)
    for (name, split), group in pd.DataFrame(trials).groupby(["variant", "split"], sort=False):
        low, high = mean_interval(list(group["accuracy"]))
        size = {"name": name, "split": split, "parameters": group["parameters"].iloc[0], "seeds": len(group)}
        rows.append(size | {"mean": group["accuracy"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows, columns=columns)


# --- README -----------------------------------------------------------------------------------------------------------


def shown_trial(trials: list[dict]) -> dict:
    """The run that the README and the notebook show: the final recipe, test set, seed 0, whatever it gave."""
    found = select(trials, variant="s5", seed=0)
    if not found:
        raise ValueError("the ledger lacks the run that is shown: python sweep.py --variants s5 --seeds 0 --split test")
    return found[0]


def readme_sections(trials: list[dict]) -> dict[str, str]:
    """The text between each pair of markers in the README, from the trials of the whole ledger."""
    from analysis.inspection import count_layers, layer_table, summary
    from experiments.variants import VARIANTS
    from helpers import Net

    tested, validated = current_trials("test", trials), current_trials("validation", trials)
    if not validated:
        raise ValueError("the ledger holds no validation runs of today's variants: python sweep.py")
    shown, timings = shown_trial(tested), read_speed()
    low, high = wilson_interval(shown["curve"][-1]["eval_correct"], IMAGES)
    last = f"**{shown['accuracy']:.2f}%** (95% interval {low:.2f}–{high:.2f}%)"
    seeds = select(tested, variant="s5")
    counts = count_layers(Net())
    log = pd.DataFrame(shown["curve"])
    log_columns = {
        "Epoch": log["epoch"],
        "Rate at its end": log["learning_rate"].map("{:.5f}".format),
        "Train loss": log["train_loss"].map("{:.4f}".format),
        "Train accuracy": log["train_accuracy"].map("{:.2f}%".format),
        "Test loss": log["eval_loss"].map("{:.4f}".format),
        "Test accuracy": [f"{epoch['eval_correct']}/10000 ({epoch['eval_accuracy']:.2f}%)" for epoch in shown["curve"]],
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
        "export": to_markdown(export_table(read_speed(EXPORT, "python export.py --record"))),
        "machine": describe_machine(timings),
        "speed": to_markdown(speed_table(timings)),
        "throughput": describe_throughput(timings),
        "sweeps": to_markdown(sweep_table(timings)),
        "projection": to_markdown(projection_table(timings)),
        "profile": to_markdown(profile_table(timings)),
        "goals": to_markdown(goals_table(trials)),
        "tried": to_markdown(tried_table(trials)),
        "test-table": to_markdown(summary_table(tested)),
        "validation-table": to_markdown(summary_table(validated)),
        "comparison": to_markdown(comparison_table(validated)),
        "noise": describe_noise(validated).replace("\n", " "),
        "variants": "\n".join(
            f"- **{name}**: {VARIANTS[name].change} Expected: {VARIANTS[name].target}"
            for name in summary_table(validated)["Variant"]
        ),
    }


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table; columns of numbers to the right."""
    numeric = [bool(table[column].astype(str).str.match(r"[-+]?[\d,.]+%?$").all()) for column in table]
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
    plots.save_figure(plots.plot_curves(shown["curve"], title=title), FIGURES / "curves.png")
    data = load_mnist(allow_sample=False)
    probabilities = helpers.predict(load_weights(helpers.Net(), WEIGHTS), data.eval_images)
    if helpers.mistakes(data.eval_labels, probabilities) != shown["mistakes"]:
        raise ValueError(f"{WEIGHTS.name} does not make the mistakes that the ledger records: save that run's weights")
    figure = plots.plot_mistakes(data.eval_images, data.eval_labels, probabilities)
    plots.save_figure(figure, FIGURES / "mistakes.png")
    points = frontier_points(frontier_trials(trials))
    plots.save_figure(plot_frontier(points, pd.read_csv(PEERS)), FIGURES / "frontier.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the README is stale")
    parser.add_argument("--figures", action="store_true", help="draw the figures too")
    options = parser.parse_args()

    try:
        trials = read_ledger(LEDGER)
        text = README.read_text(encoding="utf-8")
        fresh = fill_markers(text, readme_sections(trials))
        if options.figures and not options.check:
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
