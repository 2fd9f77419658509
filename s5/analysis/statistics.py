"""Confidence intervals and significance tests for accuracies, and sentences that report them.

Accuracies are in percent, their differences in percentage points. What is unknown is NaN.
"""

import math
import statistics
from collections.abc import Sequence, Set

import numpy as np
from scipy import stats

from s5.training.mnist import split_title

BOOTSTRAPS = 10_000
CLAIMED_ACCURACY = 99.4  # percent: the mean over seeds is claimed to be above it


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95% Wilson score interval of an accuracy, in percent (Wilson, JASA 1927)."""
    interval = stats.binomtest(correct, total).proportion_ci(method="wilson")
    return 100 * interval.low, 100 * interval.high


def t_test(values: Sequence[float], mean: float = 0.0, alternative: str = "two-sided") -> tuple[float, float, float]:
    """The 95% t-interval of the mean, low and high, and the p-value of a t-test against `mean`.

    All are NaN for fewer than two values, and if all are the same. Accuracies are counts of images, so two or three of
    them or of their differences may be the same: then the noise is unknown, not zero.
    """
    if len(values) < 2 or max(values) - min(values) < 1e-9:  # less than any count; rounding leaves more than 0
        return math.nan, math.nan, math.nan
    result = stats.ttest_1samp(values, mean, alternative=alternative)
    low, high = result.confidence_interval(0.95)
    return float(low), float(high), float(result.pvalue)


def p_mean_above(accuracies: list[float], threshold: float) -> float:
    """The p-value of a one-sided t-test that the mean over seeds is above `threshold`."""
    return t_test(accuracies, threshold, "greater")[2]


def seeds_and_images_interval(mistakes: Sequence[Set[str]], images: int) -> tuple[float, float]:
    """The 95% interval of the mean accuracy, in percent, if other seeds and other test images had been drawn.

    `mistakes` are the indices of the images that each seed's network misclassifies, of so many `images`. Both are drawn
    anew, with replacement. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    seeds, hard, draw = len(mistakes), sorted(set().union(*mistakes)), np.random.default_rng(0)
    wrong = np.array([[image in each for image in hard] for each in mistakes])
    seed_counts = draw.multinomial(seeds, np.full(seeds, 1 / seeds), BOOTSTRAPS)
    image_counts = draw.multinomial(images, [*np.full(len(hard), 1 / images), 1 - len(hard) / images], BOOTSTRAPS)
    errors = (seed_counts @ wrong * image_counts[:, :-1]).sum(1) / (seeds * images)
    low, high = np.percentile(100 * (1 - errors), (2.5, 97.5))
    return float(low), float(high)


def mcnemar(mistakes: Set[str], other_mistakes: Set[str]) -> float:
    """The two-sided p-value of the exact McNemar test of two models on the same images (Psychometrika 1947).

    The arguments are the indices of the images that each model misclassifies. Only images that one model alone
    misclassifies affect the result.
    """
    first_only, second_only = len(mistakes - other_mistakes), len(other_mistakes - mistakes)
    return float(stats.binomtest(first_only, first_only + second_only).pvalue) if first_only + second_only else 1.0


def paired_difference(values: dict, others: dict) -> dict:
    """The mean difference between two recipes' values, each given by seed or another key, over the keys that both have.

    Returns n (common keys), mean, low and high (95% t-interval) and p (two-sided paired t-test), as in `t_test`.
    """
    differences = [values[key] - others[key] for key in sorted(values.keys() & others.keys())]
    low, high, p = t_test(differences)
    return {"n": len(differences), "mean": sum(differences) / len(differences), "low": low, "high": high, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons, in the same order (Holm, Scand. J. Statist. 1979).

    NaN, for a comparison that was not tested, stays NaN and is not counted.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def pooled_deviation(groups: list[list[float]]) -> tuple[float, int]:
    """The standard deviation within groups, pooled over `groups`, and its degrees of freedom.

    Each group holds one value per seed of one recipe; at least one has two values.
    """
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(sum(len(group) * statistics.pvariance(group) for group in groups) / freedom), freedom


def pooled_difference(mean: float, n: int, deviation: float, freedom: int) -> dict:
    """The test of a difference `mean` between two means of `n` seeds each, with a `pooled_deviation`.

    Returns low and high (95% t-interval) and p (two-sided t-test). A few seeds give a poor estimate of their standard
    deviation; pooling many recipes gives a better one. This assumes that the deviation is the same in all recipes and
    that the two means are independent.
    """
    error = deviation * math.sqrt(2 / n)
    half = float(stats.t.ppf(0.975, freedom)) * error
    return {"low": mean - half, "high": mean + half, "p": 2 * float(stats.t.sf(abs(mean) / error, freedom))}


def interval_text(accuracies: list[float]) -> str:
    """The interval of the mean over seeds, e.g. "99.46–99.52"; "–" if it is unknown."""
    low, high, _ = t_test(accuracies)
    return "–" if math.isnan(low) else f"{low:.2f}–{high:.2f}"


def mean_text(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation, e.g. "99.48 ± 0.05"; the mean alone for a single value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def describe_seeds(mistakes: Sequence[Set[str]], images: int) -> str:
    """What the mistakes of several seeds' networks say of their mean accuracy, in three lines.

    `mistakes` are the indices of the images that each misclassifies, of so many `images`.
    """
    accuracies = [100 * (1 - len(each) / images) for each in mistakes]
    low, high = seeds_and_images_interval(mistakes, images)
    return (
        f"{statistics.mean(accuracies):.2f}% of the test images on average over {len(accuracies)} seeds, from "
        f"{min(accuracies):.2f}% to {max(accuracies):.2f}% (standard deviation {statistics.stdev(accuracies):.2f}).\n"
        f"95% interval of the mean: {interval_text(accuracies)}% for other seeds, {low:.2f}–{high:.2f}% for other "
        f"seeds and other images.\nOne-sided t-test over seeds for a mean above {CLAIMED_ACCURACY}%: "
        f"p = {p_mean_above(accuracies, CLAIMED_ACCURACY):.2g}."
    )


def describe_result(correct: int, data) -> str:
    """For example "99.42% on the test images (9942/10000, 95% interval 99.25–99.55%)"; names other data than MNIST."""
    total = len(data.eval_labels)
    low, high = wilson_interval(correct, total)
    images = f"{split_title(data.source, data.split)} images"
    return f"{100 * correct / total:.2f}% on the {images} ({correct}/{total}, 95% interval {low:.2f}–{high:.2f}%)"
