"""Tables over the ledger: accuracies per variant, comparisons, what was tried, and size against accuracy."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from statistics import mean

import pandas as pd

from s5.analysis import statistics
from s5.analysis.inspection import receptive_field
from s5.experiments.claims import BASELINE, BUDGETS, CLAIMS, KNOWN, MILD
from s5.experiments.compare import network_table
from s5.experiments.ledger import by_variant, mean_loss, minutes_on_a_cpu, read_ledger, select
from s5.experiments.trial import IMAGES, PRECISIONS, Trial
from s5.experiments.variants import FINAL, SGD, VARIANTS, Variant, changes_in_words
from s5.training.recipe import Recipe

COLLAPSED = 50.0  # percent; training that ends below it has collapsed: it learnt nothing, or lost all of it
UNKNOWN = dict.fromkeys(("low", "high", "p"), math.nan)


def current_trials(split: str, trials: list[Trial] | None = None, data: str = "mnist") -> list[Trial]:
    """The trials of a split that the tables show, on all of a data set.

    On MNIST's test set they are those of the claims and of the recipe that `s5` is compared with. On the validation
    split they are those of the networks and recipes of `variants.py`, under today's names, one for each seed: in
    float32 if it was trained so, else in bfloat16. So a variant and its parent have the same precision, seed by seed.
    """
    trials = read_ledger() if trials is None else trials
    if split == "test":
        return [trial for claim in (BASELINE, *CLAIMS.values()) for trial in claim.trials(trials)]
    found = []
    for variant in VARIANTS.values():
        group = select(trials, split=split, data=data, network=variant.network_name, recipe=variant.recipe)
        by_seed = {trial.seed: trial for name in reversed(PRECISIONS) for trial in select(group, precision=name)}
        found += [replace(trial, variant=variant.name) for trial in by_seed.values()]
    return found


def log_error(trial: Trial) -> float:
    """The logarithm of the error rate in percent; no error counts as half an error.

    On this scale, unlike in points, the spread between seeds is about the same for good and poor variants.
    """
    return math.log(max(100 - trial.accuracy, 50 / IMAGES))


def trained(trials: Iterable[Trial]) -> list[Trial]:
    """The trials whose training did not collapse.

    A collapse says something about a variant, and the tables count it; but a mean with one in it describes no network,
    and in the noise of the seeds it would hide every difference between the other variants.
    """
    return [trial for trial in trials if trial.accuracy >= COLLAPSED]


def seeds_text(trials: list[Trial]) -> str:
    """The number of seeds in a mean, and if some training collapsed, of how many: "3" or "2 of 3"."""
    used = len(trained(trials))
    return f"{used}" if used == len(trials) else f"{used} of {len(trials)}"


def summary_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per variant, in the order of `variants.py`: size, cost, and accuracy over seeds in percent.

    Seeds whose training collapsed are only counted (`trained`). The Wilson interval is that of one network with the
    mean's accuracy on 10,000 images, excluding seed noise.
    """
    groups = {name: select(trials, variant=name) for name in VARIANTS if select(trials, variant=name)}
    table = network_table({name: trained(group) for name, group in groups.items()})
    table = table.rename(columns={"Network": "Variant"}).drop(columns="Loss")
    table["Seeds"] = list(map(seeds_text, groups.values()))
    for row, group in enumerate(map(trained, groups.values())):
        accuracies = [trial.accuracy for trial in group]
        low, high = statistics.wilson_interval(round(mean(accuracies) / 100 * IMAGES), IMAGES)
        bias = mean(trial.best_accuracy - trial.accuracy for trial in group)
        columns = ["Minimum", "Wilson 95%", "Best-epoch bias"]
        table.loc[row, columns] = f"{min(accuracies):.2f}", f"{low:.2f}–{high:.2f}", f"{bias:.3f}"
    return table


@cache  # many trials share a recipe
def recipe_in_words(recipe: Recipe) -> str:
    """A recipe as the closest of `s5`, `sgd` (of `augmentation`) and `mild`, with the changes to it.

    The number of epochs is left out: tables have a column for it.
    """
    values = replace(recipe, epochs=FINAL.epochs).as_dict()
    bases = {"s5": FINAL, "sgd": SGD, "mild": replace(MILD, epochs=FINAL.epochs)}
    changes = {name: changes_in_words(values, base.as_dict()) for name, base in bases.items()}
    nearest = min(changes, key=lambda name: changes[name].count("→"))
    return ", ".join(filter(None, (nearest, changes[nearest])))


def tried_groups(trials: list[Trial], split: str = "validation") -> dict[tuple[str, int, str, str], list[Trial]]:
    """The trials on a split that are not `current_trials`, by network, epochs, recipe and precision."""
    current = {(trial.key, trial.precision) for trial in current_trials(split, trials)}
    groups: dict[tuple, list[Trial]] = {}
    for trial in select(trials, split=split, data="mnist"):
        if (trial.key, trial.precision) not in current:
            key = (trial.network, trial.epochs, recipe_in_words(trial.recipe), trial.precision)
            groups.setdefault(key, []).append(trial)
    return groups


def earlier_claims_table(trials: list[Trial]) -> pd.DataFrame:
    """One row for each network, recipe and precision that was evaluated on the full test set and is not current."""
    rows = []
    for (network, _, recipe, precision), group in tried_groups(trials, "test").items():
        accuracies = [trial.accuracy for trial in group]
        row = {"Variant": group[0].variant}
        row |= network_table({f"`{network}`": group}).iloc[0].drop(["Multiply-adds", "Loss"])
        row |= {"95% interval": statistics.interval_text(accuracies), "Minimum": f"{min(accuracies):.2f}"}
        rows.append(row | {"Precision": precision, "Recipe": recipe})
    return pd.DataFrame(rows)


def tried_table(trials: list[Trial]) -> pd.DataFrame:
    """One row for each network and recipe that was tried on the validation split (`tried_groups`).

    Grouped by parameter budget and sorted by loss (mean cross-entropy per image), which separates two good networks
    better than their few mistakes do. "Recipe" is that of `recipe_in_words`.
    """
    rows = []
    for (network, _, recipe, precision), group in tried_groups(trials).items():
        budget = next((budget for budget in BUDGETS if group[0].parameters < budget), math.inf)
        row = {"Budget": f"< {budget:,}" if budget < math.inf else "none"}
        row |= network_table({f"`{network}`": group}).iloc[0].drop(["Multiply-adds", "Std"])
        rows.append((-budget, mean_loss(group), row | {"Precision": precision, "Recipe": recipe}))
    return pd.DataFrame([row for *_, row in sorted(rows, key=lambda item: item[:2])])


@cache  # many variants share a network
def network_receptive_field(network: str) -> int:
    """The receptive field of a variant's network: see `inspection.receptive_field`."""
    return receptive_field(Variant("", network, FINAL).build())


def ladder_table(trials: list[Trial], names: Iterable[str] = VARIANTS) -> pd.DataFrame:
    """One row per variant that has trials: its network's size and cost, its accuracy, its errors against its parent.

    MACs are the multiply-adds for one image, in millions. A seed whose training collapsed is in no mean, but in the
    number of seeds ("2 of 3").
    """
    compared = compared_variants(trials).set_index("variant").to_dict("index")
    rows = []
    for name in names:
        group, change = select(trials, variant=name), compared.get(name)
        if not group:
            continue
        row = {"Variant": name, "Parameters": group[0].parameters, "MACs (M)": round(group[0].macs / 1e6, 2)}
        row |= {"Receptive field": network_receptive_field(VARIANTS[name].network), "Seeds": seeds_text(group)}
        accuracies = [trial.accuracy for trial in trained(group)]
        row["Accuracy (%)"] = statistics.mean_text(accuracies, 2) if accuracies else "–"
        row |= dict.fromkeys(("Against", "Errors", "95%", "Beyond noise"), "–")
        if change:
            row |= {"Against": change["against"], "Errors": f"{change['errors_mean']:+.0f}%"}
            row["95%"] = _interval(change["errors_low"], change["errors_high"], "{:+.0f}")
            row["Beyond noise"] = change["beyond_noise"]
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_table(trials: list[Trial]) -> pd.DataFrame:
    """`compared_variants` for reading: one row per change."""
    rows = [
        {
            "Variant": row.variant,
            "Against": row.against,
            "Seeds": row.seeds,
            "Points": f"{row.points_mean:+.3f}",
            "Paired 95%": _interval(row.points_low, row.points_high, "{:+.2f}"),
            "p, Holm": _p_value(row.points_p),
            "Errors": f"{row.errors_mean:+.0f}%",
            "Pooled 95%": _interval(row.errors_low, row.errors_high, "{:+.0f}%"),
            "p, pooled, Holm": _p_value(row.errors_p),
            "Beyond seed noise": row.beyond_noise,
        }
        for row in compared_variants(trials).itertuples()
    ]
    return pd.DataFrame(rows)


def compared_variants(trials: list[Trial]) -> pd.DataFrame:
    """One row per change: a variant's gain over its parent, and whether it is beyond seed noise.

    `trials` are of one split, paired by seed and precision. Pairs without a common seed are left out.
    There are two tests: a t-test on the paired differences in points, and one on the logarithm of the errors with the
    seed noise pooled over all variants (`seed_noise`), which decides. A single common seed is not tested. p-values are
    corrected over the tested rows (Holm). Seeds whose training collapsed are left out (`trained`).

    Columns: variant, against, seeds; points_mean, points_low, points_high, points_p; errors_mean (the change in
    percent), errors_low, errors_high, errors_p; beyond_noise ("yes", "no" or "not tested"). What is not known is NaN.
    """
    noise = seed_noise(trials)
    groups = by_variant(trained(trials))
    groups = {name: {(trial.seed, trial.precision): trial for trial in group} for name, group in groups.items()}
    rows = []
    for variant in VARIANTS.values():
        pair = groups.get(variant.name, {}), groups.get(variant.parent, {})
        if not (seeds := len(pair[0].keys() & pair[1].keys())):
            continue
        accuracies = [{key: trial.accuracy for key, trial in group.items()} for group in pair]
        logarithms = [{key: log_error(trial) for key, trial in group.items()} for group in pair]
        points, errors = statistics.paired_difference(*accuracies), statistics.paired_difference(*logarithms)
        pooled = statistics.pooled_difference(errors["mean"], seeds, *noise) if seeds > 1 else UNKNOWN
        errors |= pooled | {key: 100 * math.expm1((errors | pooled)[key]) for key in ("mean", "low", "high")}
        rows.append(
            {"variant": variant.name, "against": variant.parent, "seeds": seeds, "points": points, "errors": errors}
        )
    table = pd.json_normalize(rows, sep="_")
    p_values = statistics.holm(table["errors_p"])
    beyond = ["not tested" if math.isnan(p) else "yes" if p < 0.05 else "no" for p in p_values]
    return table.assign(points_p=statistics.holm(table["points_p"]), errors_p=p_values, beyond_noise=beyond)


def precision_table(trials: list[Trial]) -> pd.DataFrame:
    """One row per variant, network and recipe trained in both precisions from at least two common seeds, in points.

    Means and differences are over the common seeds, without those whose training collapsed.
    """
    groups: dict[tuple, dict[str, dict[int, float]]] = {}
    for trial in trained(select(trials, data="mnist")):
        group = groups.setdefault((trial.network, trial.split, trial.recipe), {})
        group.setdefault(trial.precision, {})[trial.seed] = trial.accuracy
    rows = []
    names = {(variant.network_name, variant.recipe): variant.name for variant in KNOWN.values()}
    for (network, split, recipe), group in groups.items():
        accuracies = pd.DataFrame(group, columns=PRECISIONS).dropna()
        if len(accuracies) < 2:
            continue
        difference = statistics.paired_difference(*(accuracies[name].to_dict() for name in reversed(PRECISIONS)))
        row = {"Variant": names.get((network, recipe), f"`{network}`"), "Split": split, "Epochs": recipe.epochs}
        row["Seeds"] = len(accuracies)
        row |= {f"Mean, {name}": f"{accuracies[name].mean():.3f}" for name in PRECISIONS}
        row |= {"bfloat16 − float32": f"{difference['mean']:+.3f}"}
        row |= {"95%": _interval(difference["low"], difference["high"], "{:+.2f}")}
        rows.append(row | {"p": _p_value(difference["p"])})
    return pd.DataFrame(rows)


def describe_precision(trials: list[Trial]) -> str:
    """How much bfloat16 differs from float32, over all pairs of validation trials that differ in nothing else."""
    accuracies: dict[str, dict[str, float]] = {name: {} for name in PRECISIONS}
    for trial in trained(select(trials, split="validation", data="mnist")):
        accuracies[trial.precision][str(trial.key)] = trial.accuracy
    difference = statistics.paired_difference(*(accuracies[name] for name in reversed(PRECISIONS)))
    return (
        f"In {difference['n']} pairs of runs of one network, recipe and seed, bfloat16 ends {difference['mean']:+.3f} "
        f"points from float32 (95% interval {difference['low']:+.3f} to {difference['high']:+.3f})."
    )


def seed_noise(trials: Iterable[Trial]) -> tuple[float, int]:
    """Standard deviation of `log_error` between seeds, pooled over all variants, and its degrees of freedom.

    Without the seeds whose training collapsed (`trained`).
    """
    groups = by_variant(trained(trials)).values()
    return statistics.pooled_deviation([[log_error(trial) for trial in group] for group in groups])


def _interval(low: float, high: float, form: str) -> str:
    """Both ends, each written by `form`; a dash if they are not known."""
    return "–" if math.isnan(low) else f"{form.format(low)} to {form.format(high)}"


def _p_value(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}"


def image_table(trials: list[Trial], seed: int) -> pd.DataFrame:
    """One row per change, for the networks of one seed: images that only one of them gets wrong, and McNemar's test.

    `trials` are of one split. p-values are corrected over the rows (Holm).
    """
    of_seed = {trial.variant: trial.mistakes.keys() for trial in select(trials, seed=seed)}
    rows = []
    for name, variant in VARIANTS.items():
        if name in of_seed and variant.parent in of_seed:
            wrong, parent_wrong = of_seed[name], of_seed[variant.parent]
            row = {"Variant": name, "Against": variant.parent, "Only this wrong": len(wrong - parent_wrong)}
            row |= {"Only parent wrong": len(parent_wrong - wrong), "Both wrong": len(wrong & parent_wrong)}
            rows.append(row | {"p": statistics.mcnemar(wrong, parent_wrong)})
    table = pd.DataFrame(rows)
    table["p, Holm"] = statistics.holm(table["p"])
    return table.assign(**{name: table[name].map("{:.2g}".format) for name in ("p", "p, Holm")})


def describe_noise(trials: list[Trial]) -> str:
    """The noise between seeds (`seed_noise`) and between test sets, at an accuracy of 99.3%, as text.

    It is also stated without the variant whose seeds differ most.
    """
    seeds, accuracy, error = 3, 99.3, 0.7
    deviation, freedom = seed_noise(trials)
    half = statistics.pooled_difference(0.0, seeds, deviation, freedom)["high"]
    low, high = statistics.wilson_interval(round(accuracy / 100 * IMAGES), IMAGES)
    groups = {name: group for name, group in by_variant(trained(trials)).items() if len(group) > 1}
    widest = max(groups, key=lambda name: seed_noise(groups[name]))
    others, _ = seed_noise(trial for trial in trials if trial.variant != widest)
    return (
        f"Seeds of one variant differ by a standard deviation of {100 * deviation:.0f}% of their errors "
        f"({len(groups)} variants, {sum(map(len, groups.values()))} runs): at {accuracy}%, "
        f"{error * deviation:.2f} points. Without {widest}, whose seeds differ most, it is {100 * others:.0f}%.\n"
        f"The 95% interval of a difference between two means of {seeds} seeds is then ±{100 * half:.0f}% of the "
        f"errors: at {accuracy}%, ±{error * half:.2f} points.\n"
        f"The 95% interval of one network's accuracy on {IMAGES:,} images is {low:.2f}–{high:.2f}% at {accuracy}%."
    )


def frontier_points(trials: list[Trial]) -> pd.DataFrame:
    """Size and training time against accuracy on the test set, a row per claim and one for the recipe before `s5`.

    Columns: name, parameters, deskewed (whether the first layer deskews the images, which no parameter counts),
    minutes (of training on a CPU, the median), seeds, mean, low, high (95%).
    """
    rows = []
    for claim in (BASELINE, *CLAIMS.values()):
        if found := claim.trials(trials):
            accuracies = [trial.accuracy for trial in found]
            row = {"name": claim.name, "parameters": found[0].parameters, "deskewed": "deskew" in claim.network}
            row |= {"minutes": minutes_on_a_cpu(found), "seeds": len(found), "mean": mean(accuracies)}
            low, high, _ = statistics.t_test(accuracies)
            rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)
