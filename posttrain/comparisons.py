"""Compare two models on the same prompts: their difference, its interval, a test, and a decision.

A difference is always that of the second model minus the first.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, permutation_test
from statsmodels.stats.contingency_tables import mcnemar

from posttrain.metrics import (
    KINDS,
    MEASURES,
    kinds_of,
    models_of,
    mover_mean,
    paired_difference,
    percentiles,
    pivot_passed,
    pivot_rewards,
    redraw_rewards,
)
from posttrain.power import (
    ALPHA,
    Changes,
    detectable_cas,
    detectable_rate,
    detectable_reward,
    level_of,
)

FLIPS = 20_000  # patterns of signs that are drawn for the test of a mean reward
FEWEST_PROMPTS = 10  # with fewer prompts every comparison is inconclusive
DECISIONS = ("significant", "suggestive", "inconclusive")
RATE_ON = {"harmful": "HmR", "helpful": "HpR"}  # the rate on each kind of prompts
REWARD_OF_RATE = {"HmR": "harmful_reward", "HpR": "helpful_reward"}  # the rewards behind a rate

Record = dict[str, Any]


# ---- measures that there are


def has_measure(record: Mapping[str, Any], measure: str) -> bool:
    """Tell whether a record of `summarise` has a measure, which needs prompts of its kind."""
    return record.get(measure) is not None


def list_measures(kinds: Sequence[str]) -> list[str]:
    """List those of MEASURES that can be computed on some kinds of prompts; CAS needs both."""
    measures = []
    for measure, kind in MEASURES.items():
        if kind in kinds or (kind is None and len(kinds) == len(KINDS)):
            measures.append(measure)
    return measures


# ---- tests


def exact_mcnemar(gained: int, lost: int) -> float:
    """Compute the two-sided p-value of McNemar's exact test; 1 if no label differs."""
    if gained + lost == 0:
        return 1.0
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def sign_flips(changes: Sequence[Changes]) -> float:
    """Compute the exact two-sided p-value of a difference in CAS by a paired permutation test.

    If two models do not differ, each prompt whose label differs is gained or lost with equal
    probability, so the number of gained prompts of each kind is binomial.

    Args:
        changes: (gained, lost, n) on each kind of prompts.
    """
    sums = np.zeros(1)
    probabilities = np.ones(1)
    observed = 0.0
    for gained, lost, n in changes:
        differing = gained + lost
        gains = np.arange(differing + 1)
        sums = np.add.outer(sums, (2 * gains - differing) / n).ravel()
        probabilities = np.outer(probabilities, binom.pmf(gains, differing, 0.5)).ravel()
        observed += (gained - lost) / n
    as_extreme = np.abs(sums) > abs(observed) - 1e-9
    return min(1.0, float(probabilities[as_extreme].sum()))


def flip_rewards(differences: np.ndarray, seed: int) -> float:
    """Compute the two-sided p-value of a mean difference by a paired permutation test.

    If two models do not differ, the sign of every difference is as likely as its opposite. With few
    prompts all patterns of signs are counted, otherwise `FLIPS` of them are drawn.

    Args:
        differences: The differences of two models' rewards on the same prompts, shape (prompts,).
        seed: The seed of the draws.

    Returns:
        The p-value; 1 if all differences are 0 or there is a single prompt, of which one sign is as
        extreme as the other.
    """
    if len(differences) < 2 or not differences.any():
        return 1.0
    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons by Holm's method (Holm 1979).

    The smallest of m p-values is multiplied by m, the next one by m - 1, and so on. An adjusted
    p-value is never smaller than the one before it, nor larger than 1. They are returned in the
    order of the arguments.
    """
    # Written out, since statsmodels' multipletests collects garbage at every call, which is slow.
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


# ---- pairs of models


def describe_power(
    detectable: Callable[..., float | None], *arguments: Any, level: float | None
) -> Record | None:
    """Compute the smallest difference that is detected at a level; None without a level.

    Args:
        detectable: A function of `power`.
        arguments: Its arguments but the level.
        level: The level at which the decision is made.
    """
    if level is None:
        return None
    return {"detectable": detectable(*arguments, level=level), "level": level}


def count_changes(passed: pd.DataFrame, first: str, second: str) -> Changes:
    """Count the prompts that only one of two models passes.

    Args:
        passed: The table of truth values from `metrics.pivot_passed`.
        first: The first model.
        second: The second model.

    Returns:
        (gained, lost, n): the number of prompts that only the second model passes, the number that
        only the first model passes, and the number of all prompts.
    """
    gained = int((passed[second] & ~passed[first]).sum())
    lost = int((passed[first] & ~passed[second]).sum())
    return gained, lost, len(passed)


def compare_rates(passed: pd.DataFrame, first: str, second: str, level: float | None) -> Record:
    """Compare the rates of two models on the same prompts.

    Args:
        passed: The table of truth values from `metrics.pivot_passed`.
        first: The first model.
        second: The second model.
        level: The level at which to compute the power; None computes none.

    Returns:
        The fields of a comparison: difference (second minus first, in percentage points), low and
        high (the ends of its 95% interval), gained, lost, n, test, p and power.
    """
    gained, lost, n = count_changes(passed, first, second)
    interval = paired_difference(gained, lost, n)
    return {
        "difference": 100 * (gained - lost) / n,
        "low": interval["low"],
        "high": interval["high"],
        "gained": gained,
        "lost": lost,
        "n": n,
        "test": "exact McNemar",
        "p": exact_mcnemar(gained, lost),
        "power": describe_power(detectable_rate, (gained + lost) / n, n, level=level),
    }


def compare_cas(
    passed: Mapping[str, pd.DataFrame], first: str, second: str, level: float | None
) -> Record:
    """Compare the CAS of two models on the same prompts.

    Args:
        passed: {kind: table of truth values from `metrics.pivot_passed`}.
        first: The first model.
        second: The second model.
        level: The level at which to compute the power; None computes none.

    Returns:
        The fields of a comparison, as in `compare_rates`, with counts over both kinds of prompts.
    """
    changes = [count_changes(passed[kind], first, second) for kind in KINDS]
    differences = [100 * (gained - lost) / n for gained, lost, n in changes]
    interval = mover_mean(differences, [paired_difference(*change) for change in changes])
    return {
        "difference": sum(differences) / 2,
        "low": interval["low"],
        "high": interval["high"],
        "gained": sum(gained for gained, _, _ in changes),
        "lost": sum(lost for _, lost, _ in changes),
        "n": sum(n for _, _, n in changes),
        "test": "exact sign flips",
        "p": sign_flips(changes),
        "power": describe_power(detectable_cas, changes, level=level),
    }


def compare_rewards(
    rewards: pd.DataFrame,
    redrawn: pd.DataFrame,
    first: str,
    second: str,
    seed: int,
    level: float | None,
) -> Record:
    """Compare the mean rewards of two models on the same prompts.

    Args:
        rewards: The table of rewards from `metrics.pivot_rewards`.
        redrawn: Bootstrap draws of the mean rewards, from `metrics.redraw_rewards`.
        first: The first model.
        second: The second model.
        seed: The seed of the test's draws.
        level: The level at which to compute the power; None computes none.

    Returns:
        The fields of a comparison, as in `compare_rates`, with differences in units of reward.
    """
    differences = (rewards[second] - rewards[first]).to_numpy()
    interval = percentiles(differences, (redrawn[second] - redrawn[first]).to_numpy())
    return {
        "difference": float(differences.mean()),
        "low": interval["low"],
        "high": interval["high"],
        "gained": int((differences > 0).sum()),
        "lost": int((differences < 0).sum()),
        "n": len(differences),
        "test": "sign flips",
        "p": flip_rewards(differences, seed),
        "power": describe_power(detectable_reward, differences, level=level),
    }


def describe_wins(won: int, lost: int, n: int) -> Record:
    """Compute how often one answer is rewarded above another one to the same prompt; ties half.

    The interval is that of the difference of the prompts won and lost (Bonett and Price 2012),
    halved and put around 50%.

    Args:
        won: On how many prompts the first answer has the higher reward.
        lost: On how many prompts it has the lower reward.
        n: The number of prompts.

    Returns:
        {"win_rate", "win_rate_low", "win_rate_high"}, in percent of the prompts.
    """
    ends = paired_difference(won, lost, n)
    return {
        "win_rate": 50 + 50 * (won - lost) / n,
        "win_rate_low": 50 + ends["low"] / 2,
        "win_rate_high": 50 + ends["high"] / 2,
    }


def decide(comparison: Mapping[str, Any], prompts: int) -> str:
    """Decide what a comparison shows.

    Args:
        comparison: A comparison with the fields low, high, p and p_holm.
        prompts: The number of prompts, of the kind that has fewer.

    Returns:
        "significant" if p is below 0.05 after Holm's correction and the interval excludes zero;
        "suggestive" if p is below 0.05 before the correction, but one of these conditions fails;
        "inconclusive" if p is 0.05 or more, if there are fewer than ten prompts, or if there is no
        interval because the difference is the same on every prompt.
    """
    too_few = prompts < FEWEST_PROMPTS or comparison["low"] is None
    if too_few or comparison["p"] >= ALPHA:
        return "inconclusive"
    clear_of_zero = comparison["low"] > 0 or comparison["high"] < 0
    if comparison["p_holm"] < ALPHA and clear_of_zero:
        return "significant"
    return "suggestive"


def decide_family(family: Sequence[Record], prompts: int) -> None:
    """Write the corrected p-values and the decisions into the comparisons of one family.

    Args:
        family: Comparisons with the fields low, high and p, over which Holm's method corrects. The
            fields `p_holm` and `decision` are added to each.
        prompts: The number of prompts, of the kind that has fewer.
    """
    adjusted = holm([comparison["p"] for comparison in family])
    for comparison, p_holm in zip(family, adjusted):
        comparison["p_holm"] = p_holm
        comparison["decision"] = decide(comparison, prompts)


def compare(answers: pd.DataFrame, draws: int, seed: int, power: bool = True) -> list[Record]:
    """Compare every pair of models in every measure, on the same prompts.

    Args:
        answers: The table of answers with its labels.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.
        power: Whether to compute which difference is found with 80% power, which takes most of the
            time.

    Returns:
        One record for each measure and pair of models, with the fields measure, first, second,
        difference (second minus first), low and high (the ends of its 95% interval), gained, lost,
        n, test, p, power, p_holm (corrected over the pairs of the measure) and decision.
    """
    pairs = list(combinations(models_of(answers), 2))
    there = kinds_of(answers)
    passed = {kind: pivot_passed(answers, kind) for kind in there}
    rewards = {kind: pivot_rewards(answers, kind) for kind in there}
    redrawn = redraw_rewards(rewards, draws, seed)
    level = level_of(len(pairs)) if power else None
    records = []
    for measure in list_measures(there):
        kind = MEASURES[measure]
        family = []
        for first, second in pairs:
            if measure == "CAS":
                comparison = compare_cas(passed, first, second, level)
            elif measure in REWARD_OF_RATE:
                comparison = compare_rates(passed[kind], first, second, level)
            else:
                comparison = compare_rewards(
                    rewards[kind], redrawn[kind], first, second, seed, level
                )
            family.append({"measure": measure, "first": first, "second": second, **comparison})
        kinds = [kind] if kind else KINDS
        decide_family(family, min(len(passed[kind]) for kind in kinds))
        records.extend(family)
    return records


# ---- in words


def format_fixed(value: float, digits: int, sign: str = "") -> str:
    """Format a number with some decimals, using the typographic minus.

    Args:
        value: The number.
        digits: How many decimals.
        sign: "+" writes a sign before positive numbers too.
    """
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def format_signed(value: float, digits: int) -> str:
    """Format a number with its sign, using the typographic minus."""
    return format_fixed(value, digits, "+")


def format_percentage(record: Mapping[str, Any], name: str) -> str:
    """Format a percentage of a record with its interval, in whole numbers: 62% [48, 74]."""
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    return f"{record[name]:.0f}% [{low:.0f}, {high:.0f}]"


def format_difference(comparison: Mapping[str, Any]) -> str:
    """Format a difference with its interval, to 0.1 points or to 0.01 units of reward."""
    digits, unit = (2, "") if "reward" in comparison["measure"] else (1, " points")
    difference = format_signed(comparison["difference"], digits) + unit
    if comparison["low"] is None:
        return f"{difference} on every prompt"
    low = format_signed(comparison["low"], digits)
    high = format_signed(comparison["high"], digits)
    return f"{difference} [{low}, {high}]"
