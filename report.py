"""What is said about runs: statistics over the ledger, tables, and the README's result tables."""

from __future__ import annotations

from scipy import stats


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an accuracy, in percent (Wilson, JASA 1927)."""
    interval = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return 100 * interval.low, 100 * interval.high


def describe_result(correct: int, data) -> str:
    """E.g. "99.42% on the test images (9942/10000, 95% interval 99.25–99.55%)"; says so when they are a sample's."""
    total = len(data.test_labels)
    low, high = wilson_interval(correct, total)
    held_out = f"{data.split} images" if data.source == "mnist" else f"SAMPLE's {data.split} images"
    return f"{100 * correct / total:.2f}% on the {held_out} ({correct}/{total}, 95% interval {low:.2f}–{high:.2f}%)"
