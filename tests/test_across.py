"""Intervals of a mean difference over several runs that answer the same prompts."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as formula
from scipy import stats
from statsmodels.stats.anova import anova_lm

from posttrain import across, metrics


def mean_squares(differences):
    """Compute the mean squares of runs, prompts and the rest with statsmodels."""
    runs, prompts = np.indices(differences.shape)
    columns = {"y": differences.ravel(), "run": runs.ravel(), "prompt": prompts.ravel()}
    fit = formula.ols("y ~ C(run) + C(prompt)", pd.DataFrame(columns)).fit()
    return anova_lm(fit)["mean_sq"].tolist()


def test_half_widths_are_those_of_the_mean_squares():
    differences = np.random.default_rng(0).normal(1, 2, (3, 12))
    of_runs, of_prompts, _ = mean_squares(differences)
    count = differences.size
    halves = {
        "runs": stats.t.ppf(0.975, 2) * (of_runs / count) ** 0.5,
        "prompts": stats.t.ppf(0.975, 11) * (of_prompts / count) ** 0.5,
    }
    halves["both"] = (halves["runs"] ** 2 + halves["prompts"] ** 2) ** 0.5
    intervals = across.combine_kinds([differences], is_rate=False)
    assert list(intervals) == ["runs", "prompts", "both"]
    for name, half in halves.items():
        ends = intervals[name]["low"], intervals[name]["high"]
        assert ends == pytest.approx((differences.mean() - half, differences.mean() + half))


def test_variance_of_the_mean_is_at_most_the_sum_of_both_squared_standard_errors():
    """What the interval over both rests on: expected mean squares, by simulation."""
    rng = np.random.default_rng(1)
    means, sums = [], []
    for _ in range(20_000):
        part = 0.5 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 6)) + rng.normal(size=(3, 6))
        errors = part.mean(axis=1).var(ddof=1) / 3, part.mean(axis=0).var(ddof=1) / 6
        means.append(part.mean())
        sums.append(sum(errors))
    surplus = 1 / (3 * 6)  # the variance of what remains, which both standard errors contain
    assert np.var(means) == pytest.approx(np.mean(sums) - surplus, rel=0.05)


def test_one_run_has_nearly_the_interval_of_bonett_and_price():
    differences = np.zeros((1, 50))
    differences[0, :9] = 100
    differences[0, 9:12] = -100
    interval = across.interval_over_prompts(differences, is_rate=True)
    known = metrics.paired_difference(9, 3, 50)
    middle = (known["low"] + known["high"]) / 2
    # Student's t in place of the normal distribution, and n - 1 in place of n
    half = (
        (known["high"] - known["low"]) / 2 * stats.t.ppf(0.975, 51) / metrics.Z * (52 / 51) ** 0.5
    )
    assert interval["low"] == pytest.approx(middle - half)
    assert interval["high"] == pytest.approx(middle + half)


def test_labels_that_nowhere_differ_leave_room_over_prompts():
    interval = across.interval_over_prompts(np.zeros((3, 50)), is_rate=True)
    assert interval["low"] < -3
    assert interval["high"] > 3
    always = across.combine_kinds([np.full((3, 50), 100.0)], is_rate=True)
    assert always["prompts"]["high"] == 100
    assert always["both"] == {"low": None, "high": None}  # how runs vary is unknown
    assert across.interval_over_prompts(np.zeros((3, 50)), is_rate=False)["low"] is None


@pytest.mark.parametrize("kinds", [1, 2])
def test_interval_over_both_contains_each_alone_and_no_impossible_difference(kinds):
    rng = np.random.default_rng(2)
    for _ in range(300):
        parts = []
        for _ in range(kinds):
            rates = rng.uniform(0, 1, (2, 1, 1))
            first, second = rng.uniform(size=(2, 3, 12)) < rates
            parts.append(100.0 * second - 100.0 * first)
        intervals = across.combine_kinds(parts, is_rate=True)
        both = intervals["both"]
        if both["low"] is None:
            continue
        assert both["low"] >= -100
        assert both["high"] <= 100
        for name in ("runs", "prompts"):
            assert both["low"] <= max(-100, intervals[name]["low"]) + 1e-9
            assert both["high"] >= min(100, intervals[name]["high"]) - 1e-9


def count_covered(runs, prompts, spread, kinds, data_sets=1500):
    """Count how often the three intervals hold a true mean of zero."""
    rng = np.random.default_rng(3)
    held = dict.fromkeys(("runs", "prompts", "both"), 0)
    for _ in range(data_sets):
        of_runs = spread * rng.normal(size=(runs, 1))
        parts = []
        for _ in range(kinds):
            rest = rng.normal(size=(runs, prompts))
            parts.append(of_runs + rng.normal(size=(1, prompts)) + rest)
        for name, interval in across.combine_kinds(parts, is_rate=False).items():
            held[name] += interval["low"] <= 0 <= interval["high"]
    return {name: count / data_sets for name, count in held.items()}


@pytest.mark.parametrize("kinds", [1, 2])
def test_interval_over_both_holds_the_truth_where_others_fail(kinds):
    """A short form of benchmarks/seeds_and_prompts.py."""
    for spread in (0.0, 0.2, 0.8):
        assert count_covered(3, 20, spread, kinds)["both"] >= 0.945
    assert count_covered(5, 20, 0.0, kinds)["runs"] < 0.8  # it knows nothing of prompts
    assert count_covered(5, 20, 0.8, kinds)["prompts"] < 0.8  # it knows nothing of runs
