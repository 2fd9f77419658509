"""Statistics, compared with values worked out by hand or by other functions."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from s5.analysis import statistics


def test_mcnemar_by_hand():
    first, second = set("0123456789"), {"8", "9", "10"}  # the first alone is wrong on 8, the second on 1
    by_hand = 2 * (math.comb(9, 0) + math.comb(9, 1)) / 2**9
    assert statistics.mcnemar(first, second) == pytest.approx(by_hand)
    assert statistics.mcnemar(first, first) == 1.0


def test_paired_difference_by_hand():
    values, others = {1: 99.4, 2: 99.5, 3: 99.6, 9: 50.0}, {3: 99.4, 2: 99.4, 1: 99.3}
    result = statistics.paired_difference(values, others)
    spread = math.sqrt(((0.1 - 0.4 / 3) ** 2 * 2 + (0.2 - 0.4 / 3) ** 2) / 2) / math.sqrt(3)
    expected = {"n": 3, "mean": 0.4 / 3}
    expected |= {"low": 0.4 / 3 - 4.302652729911275 * spread, "high": 0.4 / 3 + 4.302652729911275 * spread}
    expected |= {"p": stats.ttest_rel([99.4, 99.5, 99.6], [99.3, 99.4, 99.4]).pvalue}
    assert result == pytest.approx(expected)


@pytest.mark.parametrize("values", [[99.4], [99.4, 99.4], [99.33, 99.33, 99.33]])
def test_one_accuracy_or_equal_ones_prove_nothing(values):
    assert all(map(math.isnan, statistics.t_test(values)))
    assert statistics.interval_text(values) == "–"
    result = statistics.paired_difference(dict(enumerate(values)), dict.fromkeys(range(3), 99.0))
    assert all(math.isnan(result[key]) for key in ("low", "high", "p"))


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([0.02, math.nan, 0.04]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


def test_t_interval_by_hand_and_one_sided_test():
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert statistics.t_test([99.3, 99.4, 99.5])[:2] == pytest.approx((99.4 - half, 99.4 + half))
    assert statistics.p_mean_above([99.3, 99.4, 99.5], 99.4 - half) == pytest.approx(0.025)


def test_pooled_deviation_is_weighted_by_degrees_of_freedom():
    groups = [[99.0, 99.2], [99.0, 99.1, 99.2, 99.3], [50.0]]
    by_hand = math.sqrt((1 * stats.tvar(groups[0]) + 3 * stats.tvar(groups[1])) / 4)
    assert statistics.pooled_deviation(groups) == (pytest.approx(by_hand), 4)


def test_pooled_difference_of_two_groups_is_the_two_sample_t_test():
    first, second = [99.3, 99.4, 99.5], [99.1, 99.2, 99.35]
    mean = sum(first) / 3 - sum(second) / 3
    actual = statistics.pooled_difference(mean, 3, *statistics.pooled_deviation([first, second]))
    expected = stats.ttest_ind(first, second)
    low, high = expected.confidence_interval()
    assert actual == pytest.approx({"low": low, "high": high, "p": expected.pvalue})


def test_the_interval_over_seeds_and_images_has_the_spread_of_both():
    """Two seeds with the same mistakes: the images alone vary, as a binomial share does."""
    low, high = statistics.seeds_and_images_interval([{*range(100)}] * 2, 10_000)
    assert (low, high) == pytest.approx((98.80, 99.19), abs=0.015)
    disjoint = [{*range(100)}, {*range(100, 300)}]  # and two that differ
    low, high = statistics.seeds_and_images_interval(disjoint, 10_000)
    assert low < 97.9
    assert high > 99.1


def test_results_in_words(sample):
    text = statistics.describe_seeds([{*map(str, range(count))} for count in (60, 56, 52)], 10_000)
    assert text.startswith("99.44% of the test images on average over 3 seeds, from 99.40% to 99.48% (standard dev")
    assert "95% interval of the mean: 99.34–99.54% for other seeds, 99.28–99.58% for other seeds and other im" in text
    assert text.endswith("a mean above 99.4%: p = 0.11.")
    assert statistics.mean_text([99.4, 99.6], 2) == "99.50 ± 0.14"
    assert statistics.mean_text([99.4], 3) == "99.400"
    interval = "(990/1000, 95% interval 98.17–99.46%)"
    assert statistics.describe_result(990, sample) == f"99.00% on the sample test images {interval}"
    mnist = replace(sample, source="mnist")
    assert statistics.describe_result(990, mnist) == f"99.00% on the test images {interval}"
