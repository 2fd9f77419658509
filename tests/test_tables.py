"""Tables over hand-made ledgers."""

import math
from dataclasses import replace

import pytest

from s5.analysis.statistics import mcnemar, paired_difference, pooled_difference, wilson_interval
from s5.experiments.claims import BASELINE, CLAIMS, KNOWN, MILD
from s5.experiments.variants import FINAL, SGD
from s5.reports import tables
from tests.utils import make_trial

FIRST = CLAIMS["s5"].seeds[0]


def trial(seed, accuracy, variant="s5", recipe=None, **changes):
    """A trial of a variant on the full MNIST, by its own recipe."""
    recipe = recipe or (KNOWN[variant].recipe if variant in KNOWN else FINAL)
    changes = {"data": "mnist", "precision": "bfloat16"} | changes
    return make_trial(seed, accuracy, recipe=recipe.as_dict(), variant=variant, **changes)


def on_test(seed, accuracy, **changes):
    """A trial of `Net` on the test set, in the precision of its claim."""
    return trial(seed, accuracy, split="test", **{"precision": CLAIMS["s5"].precision} | changes)


def several(variant, *accuracies, **changes):
    return [trial(seed, accuracy, variant, **changes) for seed, accuracy in enumerate(accuracies)]


def test_current_trials_are_of_the_variants_as_they_are_and_of_the_claims():
    good, exact = trial(0, 99.4), trial(1, 99.4, precision="float32")
    claimed = on_test(FIRST, 99.5)
    before = trial(0, 99.3, "original", split="test", precision="float32")
    others = [
        trial(1, 99.4, data="sample"),
        trial(1, 99.3),  # in bfloat16
        trial(4, 99.4, recipe=replace(FINAL, learning_rate=0.3)),
        trial(1, 99.4, split="test", recipe=replace(FINAL, rotation=1.0)),
        trial(5, 99.4, variant="conv 4 gap"),
        on_test(10, 99.9),  # no seed of the claim
        trial(FIRST + 1, 99.4, split="test"),  # in bfloat16
    ]
    assert tables.current_trials("validation", [good, exact, claimed, before, *others]) == [good, exact]
    assert tables.current_trials("test", [good, claimed, before, *others]) == [before, claimed]


def test_summary_table():
    table = tables.summary_table([trial(0, 99.40), trial(1, 99.44), trial(0, 99.1, variant="original")])
    assert list(table["Variant"]) == ["original", "s5"]
    row = table.iloc[1]
    assert (row["Seeds"], row["Mean"], row["Std"], row["Minimum"]) == ("2", "99.420", "0.028", "99.40")
    assert row["Best-epoch bias"] == "0.000"
    assert row["Wilson 95%"] == "{:.2f}–{:.2f}".format(*wilson_interval(9942, 10_000))
    assert table.iloc[0]["Std"] == "–"


def test_comparison_table():
    trials = [
        *several("five_convolutions", 99.20, 99.25, 99.22),
        *several("augmentation", 99.40, 99.46, 99.41),
        *several("dropout", 99.40, 99.30, 99.45),
        *several("separable", 99.30),
    ]
    table = tables.comparison_table(trials).set_index("Variant")
    assert list(table.index) == ["augmentation", "dropout", "separable"]  # a row for each that has a parent
    assert list(table["Against"]) == ["five_convolutions", "augmentation", "augmentation"]
    assert list(table["Beyond seed noise"]) == ["yes", "no", "not tested"]  # a single seed is not tested
    own, others = ({each.seed: each.accuracy for each in part} for part in (trials[3:6], trials[:3]))
    assert table.loc["augmentation", "Points"] == "+0.200"
    assert table.loc["augmentation", "p, Holm"] == f"{2 * paired_difference(own, others)['p']:.2g}"  # two were tested
    untested = ["Paired 95%", "p, Holm", "Pooled 95%", "p, pooled, Holm"]
    assert list(table.loc["separable", untested]) == ["–"] * 4


def test_pooled_noise_decides_where_three_seeds_alone_cannot():
    def near(variant, error):  # nearly the same spread of the errors' logarithm everywhere
        return several(variant, *(100 - error * factor for factor in (0.9, 1.0, 1 / 0.9)))

    trials = [*near("five_convolutions", 1.8), *near("augmentation", 0.9), *near("original", 1.8)]
    deviation, freedom = tables.seed_noise(trials)
    assert (deviation, freedom) == (pytest.approx(-math.log(0.9), abs=2e-3), 6)
    table = tables.compared_variants(trials).set_index("variant")
    tests = {
        name: pooled_difference(math.log1p(table.loc[name, "errors_mean"] / 100), 3, deviation, freedom)
        for name in ("augmentation", "original")
    }
    row = table.loc["augmentation"]
    assert row["errors_low"] == pytest.approx(100 * math.expm1(tests["augmentation"]["low"]))
    assert row["errors_p"] == pytest.approx(2 * max(test["p"] for test in tests.values()), rel=1e-3)
    assert list(table["beyond_noise"]) == ["yes", "yes"]


def test_a_collapsed_training_is_counted_and_in_no_mean():
    own = several("no_batchnorm", 99.0, 99.1, 11.17)
    others = several("augmentation", 99.4, 99.41, 99.42)
    row = tables.summary_table([*own, *others]).set_index("Variant").loc["no_batchnorm"]
    assert list(row[["Seeds", "Mean", "Minimum"]]) == ["2 of 3", "99.050", "99.00"]
    assert tables.seed_noise([*own, *others]) == tables.seed_noise([*own[:2], *others])
    (compared,) = tables.compared_variants([*own, *others]).itertuples()
    assert (compared.variant, compared.seeds) == ("no_batchnorm", 2)


def test_image_table():
    plain, dropout = trial(0, 99.9, "augmentation"), trial(0, 99.7, "dropout")  # wrong are images 0–9 and 0–29
    (row,) = tables.image_table([plain, dropout, trial(1, 99.4, "separable")], 0).to_dict("records")
    p = f"{mcnemar(plain.mistakes.keys(), dropout.mistakes.keys()):.2g}"
    counts = {"Only this wrong": 20, "Only parent wrong": 0, "Both wrong": 10}
    assert row == {"Variant": "dropout", "Against": "augmentation", **counts, "p": p, "p, Holm": p}


def test_precision_table_pairs_by_seed_within_a_recipe():
    trials = [
        *(trial(seed, 99.3 + seed / 100, precision="float32") for seed in (0, 1, 2)),
        *(trial(seed, 99.39 + seed / 50, precision="bfloat16") for seed in (1, 2, 3)),
        trial(1, 99.0, "augmentation"),
        *(trial(seed, 90.0, recipe=replace(FINAL, epochs=1)) for seed in (0, 1)),
        *(trial(4, accuracy, precision=name) for name, accuracy in (("float32", 99.4), ("bfloat16", 11.0))),
    ]
    (row,) = tables.precision_table(trials).to_dict("records")
    assert [row[name] for name in ("Variant", "Split", "Epochs", "Seeds")] == ["s5", "validation", 20, 2]
    assert [row[f"Mean, {name}"] for name in ("float32", "bfloat16")] == ["99.315", "99.420"]
    assert row["bfloat16 − float32"] == "+0.105"


def test_tried_table_has_what_is_not_current_by_budget_and_loss():
    quick = replace(FINAL, epochs=8)
    trials = [
        trial(0, 99.4),
        trial(0, 99.2, recipe=quick),
        trial(1, 99.3, recipe=quick, loss=0.8),
        trial(0, 99.5, "to_99_0", replace(SGD, teacher="wide"), loss=0.5),
        trial(0, 99.0, "shared 20 ×1 / ×2 gdconv", replace(MILD, epochs=15, scale=0.1), parameters=4490),
        trial(0, 99.6, "wide", MILD, parameters=141_946),
        trial(0, 99.9, data="sample"),
        trial(0, 99.9, split="test"),
    ]
    table = tables.tried_table(trials)
    assert table[["Budget", "Seeds", "Epochs", "Mean", "Recipe"]].to_numpy().tolist() == [
        ["none", 1, 20, "99.600", "mild"],
        ["< 20,000", 1, 20, "99.500", "sgd, teacher none → wide"],
        ["< 20,000", 2, 8, "99.250", "s5"],
        ["< 5,000", 1, 15, "99.000", "mild, scale 0.06 → 0.1"],
    ]
    assert table.loc[1, "Network"] == f"`{KNOWN['to_99_0'].network}`"


def test_earlier_claims_are_what_was_tested_and_does_not_count():
    claimed = [on_test(seed, 99.5) for seed in CLAIMS["s5"].seeds]
    earlier = [trial(seed, 99.4, split="test") for seed in (0, 1)]
    before = [trial(0, 99.3, BASELINE.name, split="test", precision="float32"), on_test(10, 99.7)]
    table = tables.earlier_claims_table([*claimed, *earlier, *before])
    assert table[["Variant", "Seeds", "Mean", "Precision"]].to_numpy().tolist() == [
        ["s5", 2, "99.400", "bfloat16"],
        ["s5", 1, "99.700", "float32"],
    ]


def test_frontier_points_are_of_the_claims_seeds_and_a_cpu():
    trials = [on_test(FIRST + number, 99.4 + number / 100, seconds=300.0) for number in (0, 1)]
    trials += [on_test(FIRST + 2, 99.42, seconds=9.0, device="cuda: NVIDIA H100"), on_test(10, 90, seconds=300.0)]
    (point,) = tables.frontier_points(trials).itertuples(index=False)
    assert (point.name, point.seeds, point.parameters, point.deskewed, point.minutes) == ("s5", 3, 18_214, False, 5)
    assert point.low < point.mean < point.high
    assert point.mean == pytest.approx(99.41)
