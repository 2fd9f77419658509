"""What a difference between trained networks means: intervals and tests, and how they are put into words.

Accuracies are in percent, their differences in points. scipy does the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import pandas as pd
from scipy import stats

GOAL = 99.4  # percent, what the project promises


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


def mcnemar(mistakes: Collection[str], other_mistakes: Collection[str]) -> float:
    """Exact McNemar test between two models on the same images: two-sided p-value (McNemar, Psychometrika 1947).

    Takes the numbers of the images that each gets wrong, e.g. the ledger's `mistakes`; only those that one model
    gets right and the other wrong decide.
    """
    ours_alone = len(set(mistakes) - set(other_mistakes))
    theirs_alone = len(set(other_mistakes) - set(mistakes))
    if ours_alone + theirs_alone == 0:
        return 1.0
    return float(stats.binomtest(ours_alone, ours_alone + theirs_alone).pvalue)


def paired_difference(trials: list[dict], other_trials: list[dict], key: str = "accuracy") -> dict:
    """Accuracy (or what `key` names) of `trials` minus that of `other_trials`, seed by seed, in its unit.

    Returns n (seeds in common), mean, low and high (95% t-interval) and p (two-sided paired t-test); the
    last three are NaN for fewer than two seeds. ValueError where no seed is in common.
    """
    ours = {trial["seed"]: trial[key] for trial in trials}
    theirs = {trial["seed"]: trial[key] for trial in other_trials}
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


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for having been tested together, in their order (Holm, Scand. J. Statist. 1979).

    NaN marks a comparison that could not be tested: it stays NaN, and does not count.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [float("nan")] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = largest
    return corrected


def mean_interval(accuracies: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """t-interval of the mean over seeds, in percent; NaN for fewer than two."""
    if len(accuracies) < 2:
        return float("nan"), float("nan")
    interval = stats.ttest_1samp(accuracies, 0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)


def pooled_deviation(groups: list[list[float]]) -> tuple[float, int]:
    """Standard deviation between seeds of one recipe, pooled over `groups` of one value a seed.

    Returns it with its degrees of freedom; NaN and 0 where no group has two seeds.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((len(group) - 1) * stats.tvar(group) for group in groups)
    return (math.sqrt(squares / freedom), freedom) if freedom else (float("nan"), 0)


def pooled_difference(mean: float, n: int, deviation: float, freedom: int) -> dict:
    """Whether a difference between two means of `n` seeds each is noise, by a `pooled_deviation`: low, high, p.

    Three seeds alone say little of how far seeds lie apart; a dozen recipes that scatter alike say it together.
    This assumes that they do, and treats the two means as independent. The interval is a 95% t-interval, p two-sided.
    """
    error = deviation * math.sqrt(2 / n)
    half = float(stats.t.ppf(0.975, freedom)) * error
    ratio = abs(mean) / error if error else math.inf if mean else 0.0
    return {"low": mean - half, "high": mean + half, "p": 2 * float(stats.t.sf(ratio, freedom))}


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


def describe_result(correct: int, data) -> str:
    """E.g. "99.42% on the test images (9942/10000, 95% interval 99.25–99.55%)"; says so when they are a sample's."""
    total = len(data.eval_labels)
    low, high = wilson_interval(correct, total)
    held_out = f"{data.split} images" if data.source == "mnist" else f"SAMPLE's {data.split} images"
    return f"{100 * correct / total:.2f}% on the {held_out} ({correct}/{total}, 95% interval {low:.2f}–{high:.2f}%)"
