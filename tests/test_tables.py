"""Tables over hand-made ledgers."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from s5.analysis.statistics import mcnemar, paired_difference, pooled_difference, wilson_interval
from s5.experiments.claims import MILD
from s5.experiments.legacy import NETWORKS
from s5.experiments.variants import SGD
from s5.reports import pages, tables
from s5.training.files import PEERS
from s5.training.recipe import Recipe


def trial(seed, accuracy, variant="s5", split="test", data="mnist", **changes):
    return {
        "variant": variant,
        "network": NETWORKS.get(variant, variant),
        "recipe": Recipe().as_dict(),
        "precision": "float32",
        "seed": seed,
        "split": split,
        "epochs": 20,
        "parameters": 18_214,
        "macs": 1_947_866,
        "accuracy": accuracy,
        "best_accuracy": accuracy + 0.05,
        "curve": [{"eval_loss": 0.02}],
        "mistakes": {},
        "seconds": 300.0,
        "device": "cpu: x86_64, 1 thread",
        "time": "2026-11-21T00:00:00+00:00",
        "data": data,
    } | changes


def test_current_trials_leave_out_samples_other_splits_and_old_recipes():
    good = trial(0, 99.4)
    others = [
        trial(1, 99.4, data="sample"),
        trial(2, 99.4, split="validation"),
        trial(3, 99.4, recipe=Recipe(learning_rate=0.3).as_dict()),
        trial(4, 99.4, variant="forgotten"),
    ]
    assert tables.current_trials("test", [good, *others]) == [good]


def test_summary_table():
    table = tables.summary_table([trial(0, 99.40), trial(1, 99.44), trial(0, 99.1, variant="original")])
    assert list(table["Variant"]) == ["original", "s5"]
    row = table.iloc[1]
    assert (row["Seeds"], row["Mean"], row["Std"], row["Minimum"]) == ("2", "99.420", "0.028", "99.40")
    assert row["Best-epoch bias"] == "0.050"
    assert row["Seconds per epoch"] == "15.0"
    low, high = wilson_interval(9942, 10_000)
    assert row["Wilson 95%"] == f"{low:.2f}–{high:.2f}"
    assert table.iloc[0]["Std"] == "–"


def several(variant, *accuracies, **changes):
    return [trial(seed, accuracy, variant, **changes) for seed, accuracy in enumerate(accuracies)]


def test_comparison_table():
    trials = [
        *several("original", 99.20, 99.25, 99.22),
        *several("sgd", 99.40, 99.46, 99.41),
        *several("dropout", 99.40, 99.30, 99.45),
        *several("separable", 99.30),
    ]
    table = tables.comparison_table(trials).set_index("Variant")
    assert list(table.index) == ["sgd", "dropout", "separable"]  # without a parent in the ledger there is no row
    assert list(table["Against"]) == ["original", "sgd", "sgd"]
    assert list(table["Beyond seed noise"]) == ["yes", "no", "not tested"]  # a single seed is not tested
    paired = paired_difference(trials[3:6], trials[:3])
    assert table.loc["sgd", "Points"] == "+0.200"
    assert table.loc["sgd", "p, Holm"] == f"{2 * paired['p']:.2g}"  # two of the three could be tested
    assert table.loc["separable", "p, Holm"] == table.loc["separable", "Paired 95%"] == "–"


def test_pooled_noise_decides_where_three_seeds_alone_cannot():
    def near(variant, error):  # errors of `error` times 0.9, 1, 1 / 0.9: the same spread of their logarithm everywhere
        return several(variant, *(100 - error * factor for factor in (0.9, 1.0, 1 / 0.9)))

    trials = [*near("original", 0.8), *near("no_augmentation", 0.8), *near("sgd", 0.48), *several("dropout", 99.04)]
    deviation, freedom = tables.seed_noise(trials)
    assert (deviation, freedom) == (pytest.approx(-math.log(0.9)), 6)
    table = tables.comparison_table(trials).set_index("Variant")
    half = 2.446911851144969 * deviation * math.sqrt(2 / 3)
    low, high = (100 * (0.48 / 0.8 * math.exp(sign * half) - 1) for sign in (-1, 1))
    assert table.loc["sgd", "Errors"] == "-40%"
    assert table.loc["sgd", "Pooled 95%"] == f"{low:+.0f}% to {high:+.0f}%"
    assert table.loc["sgd", "Beyond seed noise"] == "yes"
    assert table.loc["no_augmentation", "Errors"] == "+67%"
    assert list(table.loc["dropout", ["Seeds", "Errors", "Pooled 95%", "p, pooled, Holm"]]) == [1, "+122%", "–", "–"]
    first, second = (
        pooled_difference(math.log(ratio), 3, deviation, freedom)["p"] for ratio in (0.48 / 0.8, 0.8 / 0.48)
    )
    assert table.loc["sgd", "p, pooled, Holm"] == f"{2 * max(first, second):.2g}"  # two rows are tested
    few = tables.comparison_table([trial(0, 99.1, "dropout"), trial(0, 99.4, "sgd")])
    assert list(few.iloc[0])[4:] == ["–", "–", "+50%", "–", "–", "not tested"]


def test_image_table():
    plain = trial(0, 99.4, "sgd", mistakes={str(index): 0 for index in range(10)})
    dropout = trial(0, 99.4, "dropout", mistakes={str(index): 1 for index in range(9, 40)})
    table = tables.image_table([plain, dropout, trial(1, 99.4, "separable")], 0)
    assert list(table["Variant"]) == ["dropout"]
    assert list(table.iloc[0][["Only this wrong", "Only parent wrong", "Both wrong"]]) == [30, 9, 1]
    assert table.iloc[0]["p"] == table.iloc[0]["p, Holm"] == f"{mcnemar(plain['mistakes'], dropout['mistakes']):.2g}"


def test_empty_ledgers():
    assert tables.comparison_table([]).empty
    assert tables.frontier_points([]).empty
    with pytest.raises(ValueError, match="no validation runs"):
        pages.sections([trial(0, 99.4)])


def test_noise_as_text():
    trials = [*several("s5", 99.3, 99.4), *several("budget_1k", 96.5, 97.0), *several("separable", 99.5)]
    text = tables.describe_noise(trials)
    assert "a standard deviation of 11% of their errors (2 variants, 4 runs): at 99.3%, 0.08 points" in text
    assert "is 99.12–99.45% at 99.3%" in text


def test_frontier_points():
    trials = [*several("s5", 99.3, 99.5), *several("s5", 99.4, split="validation")]
    tested, validated = tables.frontier_points(trials).itertuples(index=False)
    assert (tested.split, tested.seeds, tested.parameters, tested.deskewed) == ("test", 2, 18_214, False)
    assert tested.mean == pytest.approx(99.4)
    assert tested.low < 99.4 < tested.high
    assert (validated.split, validated.seeds) == ("validation", 1)
    assert validated.low != validated.low  # NaN: one seed has no interval


def test_minutes_are_those_of_a_cpu():
    trials = [*several("s5", 99.3, 99.5), trial(2, 99.4, seconds=9.0, device="cuda: NVIDIA H100")]
    (row,) = tables.frontier_points(trials).itertuples(index=False)
    assert (row.seeds, row.minutes) == (3, 5)
    (row,) = tables.frontier_points(trials[2:]).itertuples(index=False)
    assert row.minutes != row.minutes  # NaN


def test_peers_say_how_they_were_made():
    peers = pd.read_csv(PEERS)
    assert list(peers) == ["name", "repository", "parameters", "epochs", "best", "last", "made"]
    assert peers["made"].notna().all()
    assert (peers["last"].isna() <= peers["best"].notna()).all()
    assert (peers["best"] >= peers["last"]).sum() == peers[["best", "last"]].notna().all(axis=1).sum()


def test_markdown_tables_align_numbers_to_the_right():
    table = pd.DataFrame({"Name": ["a", "b"], "Count": ["1,000", "2"], "Share": ["99.4%", "1%"], "Mixed": ["1", "–"]})
    assert pages.to_markdown(table).splitlines() == [
        "| Name | Count | Share | Mixed |",
        "| --- | ---: | ---: | --- |",
        "| a | 1,000 | 99.4% | 1 |",
        "| b | 2 | 1% | – |",
    ]


def test_fill_replaces_text_between_markers():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- y -->\n<!-- /y -->"
    page = Path("page.md")
    filled = pages.fill({page: text}, {"x": r"new \1", "y": "z"})[page]
    assert filled == text.replace("old", r"new \1").replace("<!-- y -->\n", "<!-- y -->\nz\n")
    with pytest.raises(ValueError, match=r"markers of page.md do not match: y, z"):
        pages.fill({page: text}, {"x": "", "z": ""})


def test_a_missing_shown_run_names_the_command():
    with pytest.raises(ValueError, match="python -m s5.experiments.sweep --variants s5 --seeds 0 --split test"):
        pages.shown_trial([trial(1, 99.9)])


def test_tried_table_leaves_out_current_trials():
    usual = Recipe()
    quick = replace(usual, epochs=8)

    def tried(seed, accuracy, name="s5", loss=0.02, recipe=quick, **changes):
        curve = [{"eval_loss": loss}]
        changes = {"split": "validation", "recipe": recipe.as_dict(), "epochs": recipe.epochs, "curve": curve} | changes
        return trial(seed, accuracy, name, **changes)

    trials = [
        tried(0, 99.4, recipe=usual),
        tried(0, 99.2),
        tried(1, 99.3),
        tried(0, 99.5, "gdconv", 0.01, replace(SGD, rotation=8, teacher="wide")),
        tried(0, 99.0, "shared_24_5k", recipe=replace(MILD, epochs=15, scale=0.1), parameters=4490),
        tried(0, 99.6, "wide", recipe=MILD, parameters=141_946),
        tried(0, 99.9, data="sample"),
        tried(0, 99.9, split="test"),
    ]
    table = tables.tried_table(trials)
    assert list(table["Budget"]) == ["none", "< 20,000", "< 20,000", "< 5,000"]
    assert list(table["Network"]) == [f"`{NETWORKS[name]}`" for name in ("wide", "gdconv", "s5", "shared_24_5k")]
    assert list(table["Epochs"]) == [20, 20, 8, 15]
    assert list(table["Seeds"]) == [1, 1, 2, 1]
    assert list(table["Mean"]) == ["99.600", "99.500", "99.250", "99.000"]
    recipes = ["mild", "sgd, teacher none → wide, rotation 10.0 → 8.0", "s5", "mild, scale 0.06 → 0.1"]
    assert list(table["Recipe"]) == recipes
    assert tables.tried_table([]).empty


def test_precision_table_pairs_by_seed_within_a_recipe():
    trials = [
        *(trial(seed, 99.3 + seed / 100, precision="float32") for seed in (0, 1, 2)),
        *(trial(seed, 99.39 + seed / 50, precision="bfloat16") for seed in (1, 2, 3)),
        trial(1, 99.0, "sgd", precision="bfloat16"),
        *(trial(seed, 90.0, recipe=Recipe(epochs=1).as_dict(), precision="bfloat16") for seed in (0, 1)),
    ]
    table = tables.precision_table(trials)
    assert len(table) == 1
    row = table.iloc[0]
    assert list(row[["Variant", "Split", "Epochs", "Seeds"]]) == ["s5", "test", 20, 2]
    assert list(row[["Mean, float32", "Mean, bfloat16", "bfloat16 − float32"]]) == ["99.315", "99.420", "+0.105"]
    assert tables.precision_table([]).empty


def test_current_trials_are_of_one_precision_per_variant():
    trials = [trial(seed, 99.4) for seed in (0, 1)]
    others = [trial(2, 99.5, precision="bfloat16"), trial(3, 99.5, "sgd", precision="bfloat16")]
    others[1]["recipe"] = SGD.as_dict()
    assert tables.current_trials("test", [*trials, *others]) == [*trials, others[1]]


def test_a_collapsed_training_is_counted_and_in_no_mean():
    own = [trial(0, 99.0, "no_batchnorm"), trial(1, 99.1, "no_batchnorm"), trial(2, 11.17, "no_batchnorm")]
    others = [trial(seed, 99.4 + seed / 100, "sgd") for seed in range(3)]
    row = tables.summary_table([*own, *others]).set_index("Variant").loc["no_batchnorm"]
    assert list(row[["Seeds", "Mean", "Minimum"]]) == ["2 of 3", "99.050", "99.00"]
    assert tables.seed_noise([*own, *others]) == tables.seed_noise([*own[:2], *others])
    (compared,) = tables.compared_variants([*own, *others]).itertuples()
    assert (compared.variant, compared.seeds) == ("no_batchnorm", 2)
    assert tables.trained(own[2:]) == own[2:], "nothing else is known of it"


@pytest.mark.parametrize("newer", ["float32", "bfloat16"])
def test_of_as_many_trials_in_two_precisions_the_newer_are_current(newer):
    times = {precision: f"2026-11-2{precision == newer:d}T00:00:00+00:00" for precision in ("float32", "bfloat16")}
    trials = [trial(seed, 99.4, precision=each, time=time) for each, time in times.items() for seed in (0, 1)]
    assert {each["precision"] for each in tables.current_trials("test", trials)} == {newer}


def test_network_table_has_a_row_for_each_group():
    groups = [[trial(0, 99.3), trial(1, 99.5)], [trial(0, 98.0, "conv 4 gap", parameters=1_060, macs=30_000)]]
    table = tables.network_table(groups)
    assert list(table.loc[0]) == ["s5", "18,214", "1,947,866", 20, 2, "99.400", "0.141", "0.0200"]
    assert list(table.loc[1]) == ["conv 4 gap", "1,060", "30,000", 20, 1, "98.000", "–", "0.0200"]
