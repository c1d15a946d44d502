"""Statistical power: the difference that a number of prompts can detect, and the prompts needed.

Detecting means finding a true difference with 80% power, at an uncorrected level of 5%.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm
from statsmodels.stats.power import TTestPower

from posttrain.metrics import Z

ALPHA, POWER = 0.05, 0.8
MOST_PROMPTS = 20_000  # up to this number of prompts the power of the exact test is computed

Record = dict[str, Any]
Changes = tuple[int, int, int]  # prompts gained, prompts lost, all prompts


def power_of_mcnemar(n: int, gain: float, loss: float) -> float:
    """Compute the power of McNemar's exact test at the 5% level.

    The computation is exact: it sums over the number of prompts whose label differs, and over the
    number of gained prompts among them, which are both binomial.

    Args:
        n: How many prompts there are.
        gain: The probability that a prompt is gained.
        loss: The probability that a prompt is lost.
    """
    differing = np.arange(n + 1)
    fewest = binom.isf(ALPHA / 2, differing, 0.5) + 1  # changes of one sign needed to reject
    share = gain / (gain + loss)
    rejects_above = binom.sf(fewest - 1, differing, share)
    rejects_below = binom.cdf(differing - fewest, differing, share)
    return float(binom.pmf(differing, n, gain + loss) @ (rejects_above + rejects_below))


def power_of_rate(gained: int, lost: int, n: int) -> Record:
    """Compute what McNemar's test needs for 80% power, given the labels of two models.

    Args:
        gained: The number of prompts that only the second model passes.
        lost: The number of prompts that only the first model passes.
        n: The number of prompts.

    Returns:
        {"detectable", "prompts"}, each None where there is no such number. `detectable` is the
        smallest true difference, in points, that `n` prompts detect. It assumes that labels differ
        as often as observed, or as often as the difference requires. `prompts` is the number of
        prompts that would detect the observed difference, by the formula of Connor 1987 and then
        raised until the exact test has 80% power.
    """
    differing = (gained + lost) / n
    difference = abs(gained - lost) / n

    def surplus(true: float) -> float:
        share = max(differing, true)
        return power_of_mcnemar(n, (share + true) / 2, (share - true) / 2) - POWER

    detectable = None
    if surplus(1) > 0:
        detectable = 100 * brentq(surplus, 1e-6, 1)
    prompts = None
    if difference > 0:
        gain = max(gained, lost) / n
        loss = min(gained, lost) / n
        prompts = math.ceil(_connor_prompts(difference, differing))
        while prompts < MOST_PROMPTS and power_of_mcnemar(prompts, gain, loss) < POWER:
            prompts += math.ceil(prompts / 200)
    return {"detectable": detectable, "prompts": prompts}


def _connor_prompts(difference: float, differing: float) -> float:
    """Compute the number of prompts for 80% power by the normal approximation (Connor 1987).

    `difference` is the difference of two rates and `differing` the share of prompts whose label
    differs. Both are between 0 and 1.
    """
    null = math.sqrt(differing)
    alternative = math.sqrt(max(0.0, differing - difference**2))
    return ((Z * null + norm.ppf(POWER) * alternative) / difference) ** 2


def power_of_cas(changes: Sequence[Changes]) -> Record:
    """Compute what the test of a difference in CAS needs for 80% power.

    The detectable difference is computed for equal differences in both rates.

    Args:
        changes: (gained, lost, n) on each kind of prompts.

    Returns:
        {"detectable", "prompts"}, as in `power_of_rate`; `prompts` is the number of prompts of each
        kind, for equally many of both kinds.
    """
    n = min(n for _, _, n in changes)
    shares = [max(gained + lost, 1) / n for gained, lost, n in changes]
    differences = [(gained - lost) / n for gained, lost, n in changes]

    def surplus(true: float) -> float:
        return n - _cas_prompts(true, [true, true], [max(share, true) for share in shares])

    detectable = None
    if surplus(1) > 0 > surplus(1e-3):
        detectable = 100 * brentq(surplus, 1e-3, 1)
    prompts = None
    difference = abs(sum(differences)) / 2
    if difference > 0:
        prompts = math.ceil(_cas_prompts(difference, differences, shares))
    return {"detectable": detectable, "prompts": prompts}


def _cas_prompts(
    difference: float, differences: Sequence[float], shares: Sequence[float]
) -> float:
    """Compute the number of prompts of each kind for 80% power of a difference in CAS.

    This is Connor's normal approximation, applied to the mean of two independent differences, whose
    variance is a quarter of the sum of their variances. It is corrected for continuity, since the
    exact test counts whole prompts: the sum of the changes on both kinds moves in steps of two, and
    the correction is half a step. So n solves 2 n difference = sqrt(n) width + 1.

    Args:
        difference: The difference in CAS, between 0 and 1.
        differences: The difference in each rate, between -1 and 1.
        shares: The share of prompts whose label differs, on each kind.
    """
    alternative = 0.0
    for share, part in zip(shares, differences):
        alternative += max(0.0, share - part**2)
    width = Z * math.sqrt(sum(shares)) + norm.ppf(POWER) * math.sqrt(alternative)
    return ((width + math.sqrt(width**2 + 8 * difference)) / (4 * difference)) ** 2


def power_of_reward(differences: np.ndarray) -> Record:
    """Compute what a difference in mean reward needs for 80% power of the paired t test.

    Args:
        differences: The differences of two models' rewards on the same prompts, shape (prompts,).

    Returns:
        {"detectable", "prompts"}, as in `power_of_rate`, with `detectable` in units of reward.
    """
    if np.ptp(differences) == 0:
        return {"detectable": None, "prompts": None}
    test = TTestPower()
    deviation = float(np.std(differences, ddof=1))
    effect = abs(float(differences.mean())) / deviation
    prompts = None
    if effect > 1e-3:
        prompts = max(2, math.ceil(((Z + norm.ppf(POWER)) / effect) ** 2))
        while test.power(effect, prompts, ALPHA) < POWER:
            prompts += 1
    solved = test.solve_power(nobs=len(differences), alpha=ALPHA, power=POWER)
    smallest = deviation * float(np.squeeze(solved))
    detectable = smallest if math.isfinite(smallest) else None
    return {"detectable": detectable, "prompts": prompts}
