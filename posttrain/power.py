"""What 80% power needs: the smallest difference that so many prompts find, and the prompts for a difference."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, norm
from statsmodels.stats.power import TTestPower

from posttrain.stats import Z

ALPHA, POWER = 0.05, 0.8

Record = dict[str, Any]


def power_of_mcnemar(n: int, gain: float, loss: float) -> float:
    """Return how often exact McNemar rejects at 5% where a prompt is gained and lost with these probabilities.

    Over the binomial number of differing prompts, and that of the gained among them: no approximation.
    """
    differing = np.arange(n + 1)
    most = binom.isf(ALPHA / 2, differing, 0.5) + 1  # so many of one sign reject
    share = gain / (gain + loss)
    rejects = binom.sf(most - 1, differing, share) + binom.cdf(differing - most, differing, share)
    return float(binom.pmf(differing, n, gain + loss) @ rejects)


def _normal_prompts(difference: float, differing: float) -> float:
    """Return the number of prompts for 80% power (Connor 1987), of a difference with this share of differing labels."""
    null, real = math.sqrt(differing), math.sqrt(max(0.0, differing - difference**2))
    return ((Z * null + norm.ppf(POWER) * real) / difference) ** 2


def power_of_rate(gained: int, lost: int, n: int) -> Record:
    """Return what 80% power needs in McNemar's test: {"detectable", "prompts"}; None where there is none.

    detectable: the smallest true difference (points) that so many prompts find, if labels differ as often as they did,
    or as often as that difference needs. prompts: how many would find a difference like the one seen: Connor's number,
    raised until the exact test has it.
    """
    differing, difference = (gained + lost) / n, abs(gained - lost) / n

    def surplus(true: float) -> float:
        share = max(differing, true)
        return power_of_mcnemar(n, (share + true) / 2, (share - true) / 2) - POWER

    detectable = 100 * brentq(surplus, 1e-6, 1) if surplus(1) > 0 else None
    prompts = None
    if difference:
        prompts = math.ceil(_normal_prompts(difference, differing))
        while prompts < 20_000 and power_of_mcnemar(prompts, max(gained, lost) / n, min(gained, lost) / n) < POWER:
            prompts += math.ceil(prompts / 200)
    return {"detectable": detectable, "prompts": prompts}


def power_of_cas(changes: Sequence[tuple[int, int, int]]) -> Record:
    """Return what 80% power needs for CAS, as `power_of_rate`; `prompts`: of each kind, if both have as many.

    Connor's normal approximation for the mean of two independent differences, whose variance is a quarter of their sum,
    with a correction for continuity, since the exact test counts whole prompts: the changes of both kinds add up in
    steps of two, and half a step is lost. A detectable difference is one of that size in both rates.
    """
    n = min(n for *_, n in changes)
    differing = [max(gained + lost, 1) / n for gained, lost, n in changes]
    seen = [(gained - lost) / n for gained, lost, n in changes]

    def needed(true: float, parts: Sequence[float], shares: Sequence[float]) -> float:
        real = sum(max(0.0, share - part**2) for share, part in zip(shares, parts))
        width = Z * math.sqrt(sum(shares)) + norm.ppf(POWER) * math.sqrt(real)
        return ((width + math.sqrt(width**2 + 8 * true)) / (4 * true)) ** 2  # solves 2 n true = sqrt(n) width + 1

    def surplus(true: float) -> float:
        return n - needed(true, [true, true], [max(share, true) for share in differing])

    difference = abs(sum(seen)) / 2
    return {"detectable": 100 * brentq(surplus, 1e-3, 1) if surplus(1) > 0 > surplus(1e-3) else None,
            "prompts": math.ceil(needed(difference, seen, differing)) if difference else None}


def power_of_reward(differences: np.ndarray) -> Record:
    """Return what 80% power needs for a mean reward, as `power_of_rate`, in rewards: by the paired t test's power."""
    n, mean = len(differences), abs(float(differences.mean()))
    if np.ptp(differences) == 0:
        return {"detectable": None, "prompts": None}
    spread, test = float(np.std(differences, ddof=1)), TTestPower()
    effect, prompts = mean / spread, None
    if effect > 1e-3:
        prompts = max(2, math.ceil(((Z + norm.ppf(POWER)) / effect) ** 2))
        while test.power(effect, prompts, ALPHA) < POWER:
            prompts += 1
    smallest = spread * float(np.squeeze(test.solve_power(nobs=n, alpha=ALPHA, power=POWER)))
    return {"detectable": smallest if math.isfinite(smallest) else None, "prompts": prompts}
