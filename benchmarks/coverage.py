"""Simulate how often the intervals hold the truth, and how often a family of equal models is called different.

    python -m benchmarks.coverage

Writes benchmarks/coverage.md and coverage.json, about ten minutes on one core. Exits with 1 where coverage lies below
93% anywhere, or on average outside 94 to 97.5%, or where more than 5% of families of true nulls hold a decision.
"""

import gc
import json
import sys
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from posttrain import comparisons, stats

HERE = Path(__file__).resolve().parent
SIZES = (20, 50, 300)
# (probability that a label is gained, that it is lost): from no difference to a large one, few and many that differ
CHANGES = ((0.02, 0.02), (0.1, 0.1), (0.25, 0.25), (0.1, 0.02), (0.2, 0.1), (0.3, 0.2), (0.35, 0.05), (0.5, 0.1))
RATES = (0.05, 0.2, 0.5, 0.9)


@cache
def rate_interval(gained, lost, n):
    """Return the interval of a paired difference, computed once for each outcome."""
    return tuple(stats.paired_difference(gained, lost, n).values())


def coverage_of_differences(n, change, data_sets, rng):
    """Return how often the interval of a rate's paired difference holds it."""
    gain, loss = change
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets)
    ends = np.array([rate_interval(gained, lost, n) for gained, lost, _ in drawn.tolist()])
    return float(((ends[:, 0] <= 100 * (gain - loss)) & (100 * (gain - loss) <= ends[:, 1])).mean())


def coverage_of_cas_differences(n, both, data_sets, rng):
    """Return how often the interval of a difference of CAS holds it; `both`: the changes of either kind."""
    drawn = [rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets).tolist() for gain, loss in both]
    true = 50 * sum(gain - loss for gain, loss in both)
    held = 0
    for changes in zip(*drawn):
        estimates = [100 * (gained - lost) / n for gained, lost, _ in changes]
        intervals = [dict(zip(("low", "high"), rate_interval(gained, lost, n))) for gained, lost, _ in changes]
        ends = stats.mean_of_two(estimates, intervals)
        held += ends["low"] <= true <= ends["high"]
    return held / data_sets


def coverage_of_cas(n, rates, data_sets, rng):
    """Return how often the interval of a CAS holds it; `rates`: the true HmR and HpR."""
    drawn, held = [rng.binomial(n, rate, data_sets).tolist() for rate in rates], 0
    for counts in zip(*drawn):
        ends = stats.mean_of_two([100 * k / n for k in counts], [stats.wilson(k, n) for k in counts])
        held += ends["low"] <= 50 * sum(rates) <= ends["high"]
    return held / data_sets


def coverage_of_rewards(n, skewed, data_sets, rng):
    """Return how often the bootstrap interval of a mean reward difference holds it."""
    held = 0
    for i in range(data_sets):
        values = rng.exponential(1, n) - 1 if skewed else rng.normal(0, 1, n)
        ends = stats.percentiles(values, stats.bootstrap_means(values[:, None], 1000, i)[:, 0])
        held += ends["low"] <= 0 <= ends["high"]
    return held / data_sets


def wrong_decisions(n, rate, data_sets, rng):
    """Return {measure: share of families of six true nulls with a decision}: four models alike on the same prompts.

    A prompt is easier or harder for all models; given that, their labels and rewards are drawn apart.
    """
    wrong = dict.fromkeys(stats.MEASURES, 0)
    gc.freeze()  # statsmodels collects garbage at every correction: there is less to look through now
    for i in range(data_sets):
        scores = {}
        for kind in stats.KINDS:
            level = rng.normal(0, 1, (n, 1)) + np.quantile(rng.normal(0, 2**0.5, 2000), rate)
            scores[kind] = pd.DataFrame(level + rng.normal(0, 1, (n, 4)), columns=list(stats.MODELS))
        rewards = pd.concat(scores)
        found = comparisons.compare(rewards, scores["harmful"] >= 0, scores["helpful"] > 0, 200, i, power=False)
        for measure in {record["measure"] for record in found if record["decision"] == "decided"}:
            wrong[measure] += 1
    gc.unfreeze()
    return {measure: count / data_sets for measure, count in wrong.items()}


def simulate(data_sets, families, seed=0):
    """Return {what: [(setting, value), ...]}; the values are shares."""
    rng = np.random.default_rng(seed)
    pairs = [(CHANGES[i], CHANGES[-i - 1]) for i in range(len(CHANGES) // 2)] + [(one, one) for one in CHANGES[:4]]
    return {
        "difference of a rate": [(f"n = {n}, gained {change[0]}, lost {change[1]}",
                                  coverage_of_differences(n, change, data_sets, rng))
                                 for n, change in product(SIZES, CHANGES)],
        "difference of CAS": [(f"n = {n}, {both}", coverage_of_cas_differences(n, both, data_sets, rng))
                              for n, both in product(SIZES, pairs)],
        "CAS": [(f"n = {n}, {rates}", coverage_of_cas(n, rates, data_sets // 4, rng))
                for n, rates in product(SIZES, product(RATES, RATES))],
        "mean reward": [(f"n = {n}, {'skewed' if skewed else 'normal'}",
                         coverage_of_rewards(n, skewed, data_sets // 4, rng))
                        for n, skewed in product(SIZES, (False, True))],
        "wrong decisions": [(f"n = {n}, rate {rate}, {measure}", value)
                            for n, rate in ((20, 0.5), (50, 0.5), (50, 0.85))
                            for measure, value in wrong_decisions(n, rate, families, rng).items()]}


def report(found):
    """Return a markdown table: the mean and the extremes of every kind of interval, and the families."""
    lines = ["| 95% interval of | settings | coverage, mean (%) | lowest (%) | at | highest (%) |",
             "|---|---|---|---|---|---|"]
    for what, settings in found.items():
        values = {setting: 100 * value for setting, value in settings}
        if what != "wrong decisions":
            lowest = min(values, key=values.get)
            lines.append(f"| {what} | {len(values)} | {np.mean(list(values.values())):.1f} | {values[lowest]:.1f} | "
                         f"{lowest} | {max(values.values()):.1f} |")
    lines += ["", "| six true nulls | families with a wrong decision (%) |", "|---|---|"]
    lines += [f"| {setting} | {100 * value:.1f} |" for setting, value in found["wrong decisions"]]
    return "\n".join(lines) + "\n"


def faults(found):
    """Return what does not hold of what is promised of rates and CAS."""
    wrong = [f"{setting}: {100 * value:.1f}%" for setting, value in found["wrong decisions"] if value > 0.05]
    for what in ("difference of a rate", "difference of CAS", "CAS"):
        values = [value for _, value in found[what]]
        wrong += [f"{what}, {setting}: {100 * value:.1f}%" for setting, value in found[what] if value < 0.93]
        if not 0.94 <= np.mean(values) <= 0.975:
            wrong.append(f"{what} on average: {100 * np.mean(values):.1f}%")
    return wrong


if __name__ == "__main__":
    result = simulate(data_sets=4000, families=1000)
    (HERE / "coverage.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (HERE / "coverage.md").write_text(report(result), encoding="utf-8")
    print(report(result))
    sys.exit("\n".join(["What does not hold:", *faults(result)]) if faults(result) else 0)
