"""The difference that is found with 80% power, checked by simulations."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from posttrain import comparisons, power

exact_mcnemar = cache(comparisons.exact_mcnemar)
sign_flips = cache(comparisons.sign_flips)
SIX_PAIRS = 0.05 / 6


def simulate_mcnemar(n, gain, loss, level, data_sets=4000):
    """The share of simulated data sets in which McNemar's exact test rejects at a level."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets)
    return np.mean([exact_mcnemar(gained, lost) < level for gained, lost, _ in drawn.tolist()])


@pytest.mark.parametrize("level", [0.05, SIX_PAIRS])
@pytest.mark.parametrize(
    ("n", "gain", "loss"), [(50, 0.3, 0.04), (50, 0.12, 0.0), (300, 0.16, 0.07), (20, 0.5, 0.05)]
)
def test_power_of_mcnemar_is_that_of_simulated_data(n, gain, loss, level):
    """They agree within two and a half standard errors of the simulation."""
    expected = power.power_of_mcnemar(n, gain, loss, level)
    assert simulate_mcnemar(n, gain, loss, level) == pytest.approx(expected, abs=0.02)


def test_power_of_mcnemar_by_hand():
    """Six gained prompts are the fewest that reject, with p = 2 / 2**6 = 0.031."""
    assert power.power_of_mcnemar(5, 0.9, 0.0) == 0
    assert power.power_of_mcnemar(6, 0.9, 0.0) == pytest.approx(0.9**6)
    assert power.power_of_mcnemar(6, 0.5, 0.5) == pytest.approx(2 / 2**6)
    assert power.power_of_mcnemar(6, 0.9, 0.0, SIX_PAIRS) == 0  # eight are needed there
    assert power.power_of_mcnemar(8, 0.9, 0.0, SIX_PAIRS) == pytest.approx(0.9**8)


def test_level_is_where_holm_begins():
    """A single p-value of six is significant after Holm's correction below 0.05 / 6."""
    level = power.level_of(6)
    assert comparisons.holm([level * 0.999] + [1.0] * 5)[0] < 0.05
    assert comparisons.holm([level * 1.001] + [1.0] * 5)[0] > 0.05
    assert power.level_of(1) == 0.05


@pytest.mark.parametrize("level", [0.05, SIX_PAIRS])
@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(9, 6, 50), (1, 1, 50), (0, 0, 50), (40, 25, 300), (3, 3, 20)]
)
def test_detectable_difference_has_the_power(gained, lost, n, level):
    """A true difference of this size is found in 80% of simulations, within 3 points."""
    true = power.detectable_rate((gained + lost) / n, n, level) / 100
    differing = max((gained + lost) / n, true)
    gain, loss = (differing + true) / 2, (differing - true) / 2
    assert simulate_mcnemar(n, gain, loss, level) == pytest.approx(0.8, abs=0.03)


def test_so_few_prompts_find_nothing():
    """Five prompts never reach 5%, and seven never the level of six pairs."""
    assert power.detectable_rate(3 / 5, 5) is None
    assert power.detectable_rate(3 / 7, 7) is not None
    assert power.detectable_rate(3 / 7, 7, SIX_PAIRS) is None


@pytest.mark.parametrize("level", [0.05, SIX_PAIRS])
@pytest.mark.parametrize(
    "changes",
    [[(9, 6, 50), (12, 4, 50)], [(5, 2, 50), (9, 3, 50)], [(30, 20, 200), (40, 28, 200)]],
)
def test_detectable_difference_in_cas_has_the_power(changes, level):
    """The sign-flip test finds it in 77% to 90% of simulations.

    The approximation is cautious where few labels differ.
    """
    true = power.detectable_cas(changes, level) / 100
    rng = np.random.default_rng(1)
    drawn = []
    for gained, lost, n in changes:
        differing = max((gained + lost) / n, true)
        gain, loss = (differing + true) / 2, (differing - true) / 2
        drawn.append(rng.multinomial(n, [gain, loss, 1 - gain - loss], 3000).tolist())
    rejected = 0
    for harmful, helpful in zip(*drawn):
        rejected += sign_flips(((*harmful[:2], n), (*helpful[:2], n))) < level
    assert 0.77 < rejected / 3000 < 0.9


def test_few_prompts_detect_no_difference_in_cas():
    assert power.detectable_cas([(1, 1, 2), (1, 1, 2)]) is None


@pytest.mark.parametrize("level", [0.05, SIX_PAIRS])
def test_detectable_reward_has_the_power(level):
    """On normal differences the paired t test has 80% power, within 3 points."""
    differences = np.random.default_rng(3).normal(0.3, 1, 50)
    true = power.detectable_reward(differences, level)
    drawn = np.random.default_rng(4).normal(true, differences.std(ddof=1), (4000, 50))
    rejected = stats.ttest_1samp(drawn, 0, axis=1).pvalue < level
    assert rejected.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "few", [[-0.506, -0.518], [0.1, 0.2], [5.0, -5.0], [1.0, 1.0, 1.0001], [1e-9, -1e-9, 0.0]]
)
def test_detectable_reward_on_few_prompts(few):
    """For effects of any size on two or three prompts there is a number or None."""
    value = power.detectable_reward(np.array(few))
    assert value is None or 0 < value < np.inf


def test_detectable_reward_without_a_spread():
    assert power.detectable_reward(np.zeros(5)) is None
    assert power.detectable_reward(np.ones(1)) is None
