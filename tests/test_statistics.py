"""Statistics, compared with values worked out by hand or by other functions."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from s5.analysis import statistics


def test_wilson_interval_by_hand():
    correct, total, z = 9940, 10_000, 1.959963984540054
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert statistics.wilson_interval(correct, total) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    low, high = statistics.wilson_interval(10_000, 10_000)
    assert 99.9 < low < high == pytest.approx(100)
    with pytest.raises(ValueError, match="from 0 to 10, not 11"):
        statistics.wilson_interval(11, 10)


def test_mcnemar_by_hand():
    first = {str(index): 0 for index in range(10)}  # wrong on 0 to 9
    second = {str(index): 1 for index in range(8, 11)}  # wrong on 8 to 10: the first alone on 8, the second on 1
    by_hand = 2 * (math.comb(9, 0) + math.comb(9, 1)) / 2**9
    assert statistics.mcnemar(first, second) == pytest.approx(by_hand)
    assert statistics.mcnemar(first, dict(first)) == 1.0


def test_paired_difference_by_hand():
    values, others = {1: 99.4, 2: 99.5, 3: 99.6, 9: 50.0}, {3: 99.4, 2: 99.4, 1: 99.3}
    result = statistics.paired_difference(values, others)
    spread = math.sqrt(((0.1 - 0.4 / 3) ** 2 * 2 + (0.2 - 0.4 / 3) ** 2) / 2) / math.sqrt(3)
    assert result["n"] == 3
    assert result["mean"] == pytest.approx(0.4 / 3)
    assert result["high"] == pytest.approx(0.4 / 3 + 4.302652729911275 * spread)
    assert result["low"] == pytest.approx(0.4 / 3 - 4.302652729911275 * spread)
    assert result["p"] == pytest.approx(stats.ttest_rel([99.4, 99.5, 99.6], [99.3, 99.4, 99.4]).pvalue)
    with pytest.raises(ValueError, match=r"\[1\] and \[2\]"):
        statistics.paired_difference({1: 99.4}, {2: 99.4})


@pytest.mark.parametrize(
    "others", [{0: 99.4}, {0: 99.4, 1: 99.45}, {0: 99.5, 1: 99.55}], ids=["one", "better", "equal"]
)
def test_one_difference_or_equal_ones_prove_nothing(others):
    result = statistics.paired_difference({0: 99.5, 1: 99.55}, others)
    assert (result["n"], result["mean"]) == (len(others), pytest.approx(99.5 - others[0]))
    assert all(math.isnan(result[key]) for key in ("low", "high", "p"))


def test_t_test_is_one_sided():
    accuracies = [99.45, 99.47, 99.44, 99.46]
    assert statistics.p_mean_above(accuracies, 99.4) < 0.01
    assert statistics.p_mean_above(accuracies, 99.5) > 0.99
    assert math.isnan(statistics.p_mean_above([99.5], 99.4))


def test_description_of_seeds():
    text = statistics.describe_seeds([99.40, 99.44, 99.48])
    assert text.startswith("mean 99.44% over 3 seeds (standard deviation 0.04, minimum 99.40%, ")
    assert text.endswith("a mean above 99.4%: p = 0.11)")
    assert statistics.describe_seeds([99.4]) == "99.40% from one seed"
    assert statistics.describe_seeds([99.4, 99.4]) == "99.40% from each of 2 seeds"


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
    assert statistics.holm([0.02, math.nan, 0.04]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)


def test_mean_interval_by_hand():
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert statistics.mean_interval([99.3, 99.4, 99.5]) == pytest.approx((99.4 - half, 99.4 + half))
    assert statistics.interval_text([99.3, 99.4, 99.5]) == "99.15–99.65"


@pytest.mark.parametrize("accuracies", [[99.4], [99.4, 99.4], [99.33, 99.33, 99.33]])
def test_equal_accuracies_are_no_certainty(accuracies):
    assert all(map(math.isnan, statistics.mean_interval(accuracies)))
    assert math.isnan(statistics.p_mean_above(accuracies, 99.0))
    assert statistics.interval_text(accuracies) == "–"


def test_pooled_deviation_is_weighted_by_degrees_of_freedom():
    groups = [[99.0, 99.2], [99.0, 99.1, 99.2, 99.3], [50.0]]
    by_hand = math.sqrt((1 * stats.tvar(groups[0]) + 3 * stats.tvar(groups[1])) / 4)
    assert statistics.pooled_deviation(groups) == (pytest.approx(by_hand), 4)
    assert statistics.pooled_deviation([[99.0]]) == (pytest.approx(math.nan, nan_ok=True), 0)


def test_pooled_difference_of_two_groups_is_the_two_sample_t_test():
    first, second = [99.3, 99.4, 99.5], [99.1, 99.2, 99.35]
    mean = sum(first) / 3 - sum(second) / 3
    actual = statistics.pooled_difference(mean, 3, *statistics.pooled_deviation([first, second]))
    expected = stats.ttest_ind(first, second)
    interval = expected.confidence_interval()
    assert [actual[key] for key in ("p", "low", "high")] == pytest.approx(
        [expected.pvalue, interval.low, interval.high]
    )


def test_mean_as_text():
    assert statistics.mean_text([99.4, 99.6], 2) == "99.50 ± 0.14"
    assert statistics.mean_text([99.4], 3) == "99.400"


def test_a_result_is_described_with_its_interval_and_names_the_sample(sample):
    assert statistics.describe_result(990, sample) == (
        "99.00% on the SAMPLE's test images (990/1000, 95% interval 98.17–99.46%)"
    )
    assert statistics.describe_result(990, replace(sample, source="mnist")).startswith("99.00% on the test images")
