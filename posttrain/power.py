"""Statistical power: the true difference that a number of prompts can detect.

Detecting means finding it in 80% of cases, at the level at which a decision is made: 5% divided by
the number of pairs of models, which is where Holm's correction begins.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm
from statsmodels.stats.power import TTestPower

ALPHA, POWER = 0.05, 0.8
Changes = tuple[int, int, int]  # prompts gained, prompts lost, all prompts


def level_of(pairs: int) -> float:
    """Compute the level at which the smallest of some p-values is significant after Holm's method.

    Args:
        pairs: how many pairs of models are compared in a measure.
    """
    return ALPHA / max(1, pairs)


def power_of_mcnemar(n: int, gain: float, loss: float, level: float = ALPHA) -> float:
    """Compute the power of McNemar's exact test.

    The computation is exact: it sums over the number of prompts whose label differs, and over the
    number of gained prompts among them, which are both binomial.

    Args:
        n: How many prompts there are.
        gain: The probability that a prompt is gained.
        loss: The probability that a prompt is lost.
        level: The level of the test.
    """
    differing = np.arange(n + 1)
    fewest = binom.isf(level / 2, differing, 0.5) + 1  # changes of one sign needed to reject
    share = gain / (gain + loss)
    rejects_above = binom.sf(fewest - 1, differing, share)
    rejects_below = binom.cdf(differing - fewest, differing, share)
    return float(binom.pmf(differing, n, gain + loss) @ (rejects_above + rejects_below))


def detectable_rate(differing: float, n: int, level: float = ALPHA) -> float | None:
    """Compute the smallest true difference of two rates that McNemar's test detects.

    Args:
        differing: The share of prompts whose label differs between two models. Where a difference
            requires a larger share, that one is assumed.
        n: How many prompts there are.
        level: The level of the test.

    Returns:
        The difference in percentage points, or None if so few prompts detect none.
    """

    def surplus(true: float) -> float:
        share = max(differing, true)
        return power_of_mcnemar(n, (share + true) / 2, (share - true) / 2, level) - POWER

    return 100 * brentq(surplus, 1e-6, 1) if surplus(1) > 0 else None


def detectable_cas(changes: Sequence[Changes], level: float = ALPHA) -> float | None:
    """Compute the smallest true difference in CAS that its test detects.

    It is computed for equal differences in both rates.

    Args:
        changes: (gained, lost, n) on each kind of prompts.
        level: The level of the test.

    Returns:
        The difference in percentage points, or None if so few prompts detect none.
    """
    n = min(n for _, _, n in changes)
    shares = [max(gained + lost, 1) / n for gained, lost, n in changes]

    def surplus(true: float) -> float:
        return n - _cas_prompts(true, [max(share, true) for share in shares], level)

    return 100 * brentq(surplus, 1e-3, 1) if surplus(1) > 0 > surplus(1e-3) else None


def _cas_prompts(difference: float, shares: Sequence[float], level: float) -> float:
    """Compute the number of prompts of each kind for 80% power of a difference in CAS.

    This is the normal approximation of Connor 1987, applied to the mean of two independent
    differences, whose variance is a quarter of the sum of their variances. It is corrected for
    continuity, since the exact test counts whole prompts: the sum of the changes on both kinds
    moves in steps of two, and the correction is half a step. So n solves
    2 n difference = sqrt(n) width + 1.

    Args:
        difference: The difference in each rate, between 0 and 1.
        shares: The share of prompts whose label differs, on each kind.
        level: The level of the test.
    """
    alternative = 0.0
    for share in shares:
        alternative += max(0.0, share - difference**2)
    width = norm.isf(level / 2) * math.sqrt(sum(shares)) + norm.ppf(POWER) * math.sqrt(alternative)
    return ((width + math.sqrt(width**2 + 8 * difference)) / (4 * difference)) ** 2


def detectable_reward(differences: np.ndarray, level: float = ALPHA) -> float | None:
    """Compute the smallest true difference in mean reward that the paired t test detects.

    Args:
        differences: The differences of two models' rewards on the same prompts, shape (prompts,).
        level: The level of the test.

    Returns:
        The difference in units of reward, or None if the differences do not vary or are too few.
    """
    if np.ptp(differences) == 0:
        return None
    deviation = float(np.std(differences, ddof=1))
    solved = TTestPower().solve_power(nobs=len(differences), alpha=level, power=POWER)
    smallest = deviation * float(np.squeeze(solved))
    return smallest if math.isfinite(smallest) else None
