"""Statistics against values known from elsewhere, and tables against ledgers made by hand."""

import math

import pandas as pd
import pytest

import report
from recipe import Recipe


def trial(seed, accuracy, variant="s5", split="test", data="mnist", **changes):
    return {
        "variant": variant,
        "recipe": Recipe().as_dict(),
        "seed": seed,
        "split": split,
        "epochs": 20,
        "parameters": 18_214,
        "macs": 1_947_866,
        "accuracy": accuracy,
        "best_accuracy": accuracy + 0.05,
        "mistakes": {},
        "seconds": 300.0,
        "data": data,
    } | changes


def test_wilson_interval_by_hand():
    correct, total, z = 9940, 10_000, 1.959963984540054
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert report.wilson_interval(correct, total) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    low, high = report.wilson_interval(10_000, 10_000)
    assert 99.9 < low < high == pytest.approx(100)
    with pytest.raises(ValueError, match="from 0 to 10, not 11"):
        report.wilson_interval(11, 10)


def test_mcnemar_by_hand():
    ours = {str(index): 0 for index in range(10)}  # wrong on 0 to 9
    theirs = {str(index): 1 for index in range(8, 11)}  # wrong on 8 to 10: 8 against 1 alone
    by_hand = 2 * (math.comb(9, 0) + math.comb(9, 1)) / 2**9
    assert report.mcnemar(ours, theirs) == pytest.approx(by_hand)
    assert report.mcnemar(ours, dict(ours)) == 1.0


def test_paired_difference_by_hand():
    ours = [trial(seed, accuracy) for seed, accuracy in ((1, 99.4), (2, 99.5), (3, 99.6), (9, 50.0))]
    theirs = [trial(seed, accuracy) for seed, accuracy in ((3, 99.4), (2, 99.4), (1, 99.3))]
    result = report.paired_difference(ours, theirs)
    spread = math.sqrt(((0.1 - 0.4 / 3) ** 2 * 2 + (0.2 - 0.4 / 3) ** 2) / 2) / math.sqrt(3)
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(0.4 / 3)
    assert result["high"] == pytest.approx(0.4 / 3 + 4.302652729911275 * spread)
    assert result["low"] == pytest.approx(0.4 / 3 - 4.302652729911275 * spread)
    assert "3 seeds" in report.describe_difference(result)
    assert "inside the noise" not in report.describe_difference(result | {"low": 0.01})
    assert "inside the noise" in report.describe_difference(result | {"low": -0.01})


def test_paired_difference_needs_common_seeds():
    with pytest.raises(ValueError, match=r"\[1\] and \[2\]"):
        report.paired_difference([trial(1, 99.4)], [trial(2, 99.4)])
    single = report.paired_difference([trial(1, 99.5)], [trial(1, 99.4)])
    assert single["mean"] == pytest.approx(0.1)
    assert math.isnan(single["p"])
    assert "no interval" in report.describe_difference(single)


def test_one_sided_test_has_a_direction():
    accuracies = [99.45, 99.47, 99.44, 99.46]
    assert report.p_mean_above(accuracies, 99.4) < 0.01
    assert report.p_mean_above(accuracies, 99.5) > 0.99
    assert math.isnan(report.p_mean_above([99.5], 99.4))


def test_current_trials_leave_out_samples_other_splits_and_old_recipes():
    good = trial(0, 99.4)
    others = [
        trial(1, 99.4, data="sample"),
        trial(2, 99.4, split="validation"),
        trial(3, 99.4, recipe=Recipe(learning_rate=0.3).as_dict()),
        trial(4, 99.4, variant="forgotten"),
    ]
    assert report.current_trials("test", [good, *others]) == [good]


def test_summary_table():
    table = report.summary_table([trial(0, 99.40), trial(1, 99.44), trial(0, 99.1, variant="seed_recipe")])
    assert list(table["Variant"]) == ["seed_recipe", "s5"]
    row = table.iloc[1]
    assert (row["Seeds"], row["Mean"], row["Std"], row["Minimum"]) == (2, "99.420", "0.028", "99.40")
    assert row["Best epoch would add"] == "0.050"
    assert row["Seconds an epoch"] == "15.0"
    assert table.iloc[0]["Std"] == "–"


def test_seeds_in_words():
    text = report.describe_seeds([trial(0, 99.40), trial(1, 99.44), trial(2, 99.48)])
    assert text.startswith("mean 99.44% over 3 seeds (standard deviation 0.04, minimum 99.40%, ")
    assert text.endswith("a mean above 99.4%: p = 0.11)")
    assert report.describe_seeds([trial(0, 99.4)]) == "99.40% from one seed"


def test_markdown_tables_align_numbers_to_the_right():
    table = pd.DataFrame({"Name": ["a", "b"], "Count": ["1,000", "2"], "Share": ["99.4%", "1%"], "Mixed": ["1", "–"]})
    assert report.to_markdown(table).splitlines() == [
        "| Name | Count | Share | Mixed |",
        "| --- | ---: | ---: | --- |",
        "| a | 1,000 | 99.4% | 1 |",
        "| b | 2 | 1% | – |",
    ]


def test_fill_markers():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- y -->\n<!-- /y -->"
    assert report.fill_markers(text, {"x": r"new \1"}) == text.replace("old", r"new \1")
    with pytest.raises(ValueError, match="no markers <!-- z -->"):
        report.fill_markers(text, {"z": ""})


def test_the_shown_run_must_be_in_the_ledger():
    with pytest.raises(ValueError, match="python sweep.py --variants s5 --seeds 0 --split test"):
        report.shown_trial([trial(1, 99.9)])
