"""Tables over the ledger: accuracies per variant, comparisons, what was tried, and size against accuracy."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from functools import cache

import pandas as pd

from s5.analysis.statistics import (
    holm,
    interval_text,
    mcnemar,
    mean_interval,
    paired_difference,
    pooled_deviation,
    pooled_difference,
    wilson_interval,
)
from s5.experiments.claims import MILD
from s5.experiments.evidence import PRECISIONS
from s5.experiments.ledger import in_usual_precision, mean_loss, minutes_on_a_cpu, read_ledger, select
from s5.experiments.variants import FINAL, SGD, VARIANTS, changes_in_words
from s5.reports.goals import BUDGETS, GOALS, find_claims

IMAGES = 10_000  # in either evaluation split of the full MNIST
COLLAPSED = 50.0  # percent; training that ends below it has collapsed: it learnt nothing, or lost all of it
NOT_TESTED = dict.fromkeys(("low", "high", "p"), float("nan"))


def current_trials(split: str, trials: list[dict] | None = None) -> list[dict]:
    """The trials on the full MNIST of the networks and recipes that `variants.py` has now, `in_usual_precision`."""
    trials = read_ledger() if trials is None else trials
    current = {name: (variant.network_name, variant.recipe.as_dict()) for name, variant in VARIANTS.items()}
    found = select(trials, split=split, data="mnist")
    return in_usual_precision(
        trial for trial in found if (trial["network"], trial["recipe"]) == current.get(trial["variant"])
    )


def trained(trials: Iterable[dict]) -> list[dict]:
    """The trials whose training did not collapse, but all those of a variant of which every training did.

    A collapse says something about a variant, and the tables count it; but a mean with one in it describes no network,
    and in the noise of the seeds it would hide every difference between the other variants.
    """
    groups = by_variant(trials)
    kept = {name: [trial for trial in group if trial["accuracy"] >= COLLAPSED] for name, group in groups.items()}
    return [trial for name, group in groups.items() for trial in kept[name] or group]


def seeds_in_words(used: int, of: int) -> str:
    """The number of seeds in a mean, and if some training collapsed, of how many: "3" or "2 of 3"."""
    return f"{used}" if used == of else f"{used} of {of}"


def summary_table(trials: list[dict]) -> pd.DataFrame:
    """One row per variant, in the order of `variants.py`: size, cost, and accuracy over seeds in percent.

    Seeds whose training collapsed are only counted (`trained`). The Wilson interval is that of one network with the
    mean's accuracy on 10,000 images, excluding seed noise.
    """
    rows, groups, whole = [], by_variant(trained(trials)), by_variant(trials)
    for name in VARIANTS:
        if name not in groups:
            continue
        group = groups[name]
        accuracies = pd.Series([trial["accuracy"] for trial in group])
        low, high = wilson_interval(round(accuracies.mean() / 100 * IMAGES), IMAGES)
        best_epoch_bias = pd.Series([trial["best_accuracy"] for trial in group]) - accuracies
        rows.append(
            {
                "Variant": name,
                **_size_and_accuracy(group),
                "Seeds": seeds_in_words(len(group), len(whole[name])),
                "Minimum": f"{accuracies.min():.2f}",
                "Wilson 95%": f"{low:.2f}–{high:.2f}",
                "Best-epoch bias": f"{best_epoch_bias.mean():.3f}",
                "Seconds per epoch": f"{pd.Series([t['seconds'] / t['epochs'] for t in group]).median():.1f}",
            }
        )
    return pd.DataFrame(rows)


@cache  # many trials share a recipe
def recipe_in_words(fields: tuple[tuple[str, object], ...]) -> str:
    """A recipe, as items of its dict, in words: the closest of `s5`, `sgd` and `MILD`, with the changes to it.

    The number of epochs is left out: tables have a column for it.
    """
    recipe = dict(fields) | {"epochs": FINAL.epochs}
    bases = {"s5": FINAL.as_dict(), "sgd": SGD.as_dict(), "mild": MILD.as_dict()}
    changes = {name: changes_in_words(recipe, base | {"epochs": FINAL.epochs}) for name, base in bases.items()}
    nearest = min(changes, key=lambda name: changes[name].count("→"))
    return ", ".join(filter(None, (nearest, changes[nearest])))


def earlier_claims_table(trials: list[dict]) -> pd.DataFrame:
    """One row for each network, recipe and precision that was evaluated on the full test set and is not current.

    Current are the claims (`goals.find_claims`) and the variants (`current_trials`).
    """
    current = {id(trial) for goal in GOALS for trial in find_claims(goal, trials)}
    current |= {id(trial) for trial in current_trials("test", trials)}
    groups: dict[tuple, list[dict]] = {}
    for trial in select(trials, split="test", data="mnist"):
        if id(trial) not in current:
            recipe = recipe_in_words(tuple(trial["recipe"].items()))
            key = (trial["variant"], trial["network"], trial["epochs"], trial["precision"], recipe)
            groups.setdefault(key, []).append(trial)
    rows = []
    for (variant, network, _, precision, recipe), group in groups.items():
        row = {"Variant": variant, "Network": f"`{network}`", **_size_and_accuracy(group)}
        row["95% interval"] = interval_text([trial["accuracy"] for trial in group])
        row["Minimum"] = f"{min(trial['accuracy'] for trial in group):.2f}"
        rows.append(row | {"Precision": precision, "Recipe": recipe})
    return pd.DataFrame(rows).drop(columns="Multiply-adds", errors="ignore")


def tried_groups(trials: list[dict]) -> dict[tuple[str, int, str, str], list[dict]]:
    """The trials on the validation split that are not `current_trials`, by network, epochs, recipe and precision."""
    current = {id(trial) for trial in current_trials("validation", trials)}
    groups: dict[tuple, list[dict]] = {}
    for trial in select(trials, split="validation", data="mnist"):
        if id(trial) not in current:
            recipe = recipe_in_words(tuple(trial["recipe"].items()))
            groups.setdefault((trial["network"], trial["epochs"], recipe, trial["precision"]), []).append(trial)
    return groups


def tried_table(trials: list[dict]) -> pd.DataFrame:
    """One row for each network and recipe that was tried on the validation split (`tried_groups`).

    Grouped by parameter budget and sorted by loss (mean cross-entropy per image), which separates two good networks
    better than their few mistakes do. "Recipe" is that of `recipe_in_words`.
    """
    rows = []
    for (network, epochs, recipe, precision), group in tried_groups(trials).items():
        parameters = group[0]["parameters"]
        budget = next((budget for budget in BUDGETS if parameters < budget), math.inf)
        accuracies = pd.Series([trial["accuracy"] for trial in group])
        loss = mean_loss(group)
        row = {
            "Budget": f"< {budget:,}" if budget < math.inf else "none",
            "Network": f"`{network}`",
            "Parameters": f"{parameters:,}",
            "Epochs": epochs,
            "Seeds": len(group),
            "Mean": f"{accuracies.mean():.3f}",
            "Loss": f"{loss:.4f}",
            "Precision": precision,
            "Recipe": recipe,
        }
        rows.append((-budget, loss, row))
    return pd.DataFrame([row for *_, row in sorted(rows, key=lambda item: item[:2])])


def comparison_table(trials: list[dict]) -> pd.DataFrame:
    """`compared_variants` for reading: one row per change."""
    rows = [
        {
            "Variant": row.variant,
            "Against": row.against,
            "Seeds": row.seeds,
            "Points": f"{row.points:+.3f}",
            "Paired 95%": _interval(row.points_low, row.points_high, "{:+.2f}"),
            "p, Holm": _p_value(row.p),
            "Errors": f"{row.errors:+.0f}%",
            "Pooled 95%": _interval(row.errors_low, row.errors_high, "{:+.0f}%"),
            "p, pooled, Holm": _p_value(row.p_pooled),
            "Beyond seed noise": row.beyond_noise,
        }
        for row in compared_variants(trials).itertuples()
    ]
    return pd.DataFrame(rows)


def compared_variants(trials: list[dict]) -> pd.DataFrame:
    """One row per change, paired by seed: a variant's gain over its parent, and whether it is beyond seed noise.

    `trials` are of one split. Pairs without a common seed are left out.
    There are two tests: a t-test on the paired differences in points, and one on the logarithm of the errors with the
    seed noise pooled over all variants (`seed_noise`), which decides. A single common seed is not tested. p-values are
    corrected over the tested rows (Holm). Seeds whose training collapsed are left out (`trained`).

    Columns: variant, against, seeds; points, points_low, points_high, p; errors (the change in percent), errors_low,
    errors_high, p_pooled; beyond_noise ("yes", "no" or "not tested"). What is not known is NaN.
    """
    pairs = [(variant.name, variant.parent) for variant in VARIANTS.values() if variant.parent]
    deviation, freedom = seed_noise(trials)
    groups, compared, pooled = by_variant(map(in_errors, trained(trials))), {}, {}
    for pair in pairs:
        own, others = (groups.get(name, []) for name in pair)
        if {trial["seed"] for trial in own} & {trial["seed"] for trial in others}:
            compared[pair] = paired_difference(own, others)
            growth = paired_difference(own, others, "log_error")
            tested = freedom and growth["n"] > 1  # one seed may be a lucky one
            noise = pooled_difference(growth["mean"], growth["n"], deviation, freedom) if tested else NOT_TESTED
            pooled[pair] = growth | noise
    holms = {
        name: dict(zip(tests, holm([test["p"] for test in tests.values()]), strict=True))
        for name, tests in (("paired", compared), ("pooled", pooled))
    }
    rows = []
    for pair, paired in compared.items():
        p = holms["pooled"][pair]
        row = {"variant": pair[0], "against": pair[1], "seeds": paired["n"]}
        row |= {"points": paired["mean"], "points_low": paired["low"], "points_high": paired["high"]}
        row |= {"p": holms["paired"][pair], "p_pooled": p}
        growth = {"errors": "mean", "errors_low": "low", "errors_high": "high"}
        row |= {name: 100 * math.expm1(pooled[pair][key]) for name, key in growth.items()}
        rows.append(row | {"beyond_noise": "not tested" if math.isnan(p) else "yes" if p < 0.05 else "no"})
    return pd.DataFrame(rows)


def network_table(groups: list[list[dict]]) -> pd.DataFrame:
    """One row per group of trials of one network: size, cost, accuracy in percent and loss over seeds."""
    rows = [
        {"Network": group[0]["variant"], **_size_and_accuracy(group), "Loss": f"{mean_loss(group):.4f}"}
        for group in groups
    ]
    return pd.DataFrame(rows)


def _size_and_accuracy(group: list[dict]) -> dict:
    """The columns that describe the trials of one network, over seeds."""
    accuracies = pd.Series([trial["accuracy"] for trial in group])
    return {
        "Parameters": f"{group[0]['parameters']:,}",
        "Multiply-adds": f"{group[0]['macs']:,}",
        "Epochs": group[0]["epochs"],
        "Seeds": len(group),
        "Mean": f"{accuracies.mean():.3f}",
        "Std": f"{accuracies.std():.3f}" if len(group) > 1 else "–",
    }


def precision_table(trials: list[dict]) -> pd.DataFrame:
    """One row per variant, network and recipe trained in both precisions from at least two common seeds, in points.

    Means and differences are over the common seeds, without those whose training collapsed (`trained`).
    """
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for trial in select(trials, data="mnist"):
        key = (trial["variant"], trial["network"], trial["split"], frozenset(trial["recipe"].items()))
        groups.setdefault(key, {}).setdefault(trial["precision"], []).append(trial)
    rows = []
    for group in groups.values():
        both = {name: trained(group.get(name, [])) for name in PRECISIONS}
        seeds = set.intersection(*({trial["seed"] for trial in found} for found in both.values()))
        if len(seeds) < 2:
            continue
        both = {name: [trial for trial in found if trial["seed"] in seeds] for name, found in both.items()}
        full, half = both.values()
        difference = paired_difference(half, full)
        means = {f"Mean, {name}": f"{statistics.mean(trial['accuracy'] for trial in both[name]):.3f}" for name in both}
        row = {"Variant": full[0]["variant"], "Split": full[0]["split"], "Epochs": full[0]["epochs"]}
        row |= {"Seeds": difference["n"], **means}
        row |= {"bfloat16 − float32": f"{difference['mean']:+.3f}"}
        row |= {"95%": _interval(difference["low"], difference["high"], "{:+.2f}")}
        rows.append(row | {"p": _p_value(difference["p"])})
    return pd.DataFrame(rows)


def in_errors(trial: dict) -> dict:
    """The trial with `log_error`, the logarithm of its error rate in percent; no error counts as half an error.

    On this scale, unlike in points, the spread between seeds is about the same for good and poor variants.
    """
    return trial | {"log_error": math.log(max(100 - trial["accuracy"], 50 / IMAGES))}


def seed_noise(trials: list[dict]) -> tuple[float, int]:
    """Standard deviation of `log_error` between seeds, pooled over all variants, and its degrees of freedom.

    Without the seeds whose training collapsed (`trained`).
    """
    groups = by_variant(map(in_errors, trained(trials)))
    return pooled_deviation([[trial["log_error"] for trial in group] for group in groups.values()])


def by_variant(trials: Iterable[dict]) -> dict[str, list[dict]]:
    """The trials of each variant, in the order of the first ones."""
    groups: dict[str, list[dict]] = {}
    for trial in trials:
        groups.setdefault(trial["variant"], []).append(trial)
    return groups


def _interval(low: float, high: float, form: str) -> str:
    """Both ends, each written by `form`; a dash if they are not known."""
    return "–" if math.isnan(low) else f"{form.format(low)} to {form.format(high)}"


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}"


def image_table(trials: list[dict], seed: int) -> pd.DataFrame:
    """One row per change, for the networks of one seed: images that only one of them gets wrong, and McNemar's test.

    `trials` are of one split. p-values are corrected over the rows (Holm).
    """
    of_seed = {trial["variant"]: trial["mistakes"].keys() for trial in select(trials, seed=seed)}
    rows, p_values = [], []
    for name, variant in VARIANTS.items():
        if name not in of_seed or variant.parent not in of_seed:
            continue
        wrong, parent_wrong = of_seed[name], of_seed[variant.parent]
        p_values.append(mcnemar(wrong, parent_wrong))
        counts = {"Only this wrong": len(wrong - parent_wrong), "Only parent wrong": len(parent_wrong - wrong)}
        counts["Both wrong"] = len(wrong & parent_wrong)
        rows.append({"Variant": name, "Against": variant.parent, **counts, "p": f"{p_values[-1]:.2g}"})
    for row, p in zip(rows, holm(p_values), strict=True):
        row["p, Holm"] = f"{p:.2g}"
    return pd.DataFrame(rows)


def describe_noise(trials: list[dict], seeds: int = 3, accuracy: float = 99.3) -> str:
    """The noise between seeds (`seed_noise`) and between test sets at an `accuracy`, as text."""
    deviation, freedom = seed_noise(trials)
    half = pooled_difference(0.0, seeds, deviation, freedom)["high"]
    low, high = wilson_interval(round(accuracy / 100 * IMAGES), IMAGES)
    error = 100 - accuracy
    runs = Counter(trial["variant"] for trial in trained(trials))
    several = [count for count in runs.values() if count > 1]
    return (
        f"Seeds of one variant differ by a standard deviation of {100 * deviation:.0f}% of their errors "
        f"({len(several)} variants, {sum(several)} runs): at {accuracy:g}%, {error * deviation:.2f} points.\n"
        f"The 95% interval of a difference between two means of {seeds} seeds is then ±{100 * half:.0f}% of the "
        f"errors: at {accuracy:g}%, ±{error * half:.2f} points.\n"
        f"The 95% interval of one network's accuracy on {IMAGES:,} images is {low:.2f}–{high:.2f}% at {accuracy:g}%."
    )


def frontier_trials(trials: list[dict]) -> list[dict]:
    """The trials of the frontier figure: the current variants on both splits, and the claims on the test set."""
    claimed = [trial for goal in GOALS if goal.variant not in VARIANTS for trial in find_claims(goal, trials)]
    return [*current_trials("validation", trials), *current_trials("test", trials), *claimed]


def frontier_points(trials: list[dict]) -> pd.DataFrame:
    """Size and training time against accuracy, a row per variant and split.

    Columns: name, split, parameters, deskewed (whether the first layer deskews the images, which no parameter counts),
    minutes (of training on a CPU, the median), seeds, mean, low, high (95%).
    """
    columns, rows = ["name", "split", "parameters", "deskewed", "minutes", "seeds", "mean", "low", "high"], []
    if not trials:
        return pd.DataFrame(rows, columns=columns)
    for (name, split), group in pd.DataFrame(trials).groupby(["variant", "split"], sort=False):
        low, high = mean_interval(list(group["accuracy"]))
        size = {"name": name, "split": split, "parameters": group["parameters"].iloc[0]}
        size |= {"deskewed": "deskew" in group["network"].iloc[0]}
        size |= {"minutes": minutes_on_a_cpu(group.to_dict("records")), "seeds": len(group)}
        rows.append(size | {"mean": group["accuracy"].mean(), "low": low, "high": high})
    return pd.DataFrame(rows, columns=columns)
