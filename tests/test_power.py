"""What 80% power needs, checked by simulations."""

from functools import cache

import numpy as np
import pytest

from posttrain import comparisons, power

exact_mcnemar = cache(comparisons.exact_mcnemar)
sign_flips = cache(comparisons.sign_flips)


def simulate_mcnemar(n, gain, loss, data_sets=4000):
    """The share of simulated data sets in which McNemar's exact test rejects at 5%."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets)
    return np.mean([exact_mcnemar(gained, lost) < 0.05 for gained, lost, _ in drawn.tolist()])


@pytest.mark.parametrize(
    ("n", "gain", "loss"), [(50, 0.3, 0.04), (50, 0.12, 0.0), (300, 0.16, 0.07), (20, 0.5, 0.05)]
)
def test_power_of_mcnemar_is_that_of_simulated_data(n, gain, loss):
    """They agree within two and a half standard errors of the simulation."""
    expected = power.power_of_mcnemar(n, gain, loss)
    assert simulate_mcnemar(n, gain, loss) == pytest.approx(expected, abs=0.02)


def test_power_of_mcnemar_by_hand():
    """Six gained prompts are the fewest that reject, with p = 2 / 2**6 = 0.031."""
    assert power.power_of_mcnemar(5, 0.9, 0.0) == 0
    assert power.power_of_mcnemar(6, 0.9, 0.0) == pytest.approx(0.9**6)
    assert power.power_of_mcnemar(6, 0.5, 0.5) == pytest.approx(2 / 2**6)


@pytest.mark.parametrize(
    ("gained", "lost", "n"),
    [(9, 6, 50), (8, 3, 50), (11, 5, 50), (4, 0, 50), (5, 1, 20), (40, 25, 300)],
)
def test_number_of_prompts_gives_the_power(gained, lost, n):
    """With the observed probabilities this number gives 80%, within 3 points."""
    prompts = power.power_of_rate(gained, lost, n)["prompts"]
    assert simulate_mcnemar(prompts, gained / n, lost / n) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(9, 6, 50), (1, 1, 50), (0, 0, 50), (40, 25, 300), (3, 3, 20)]
)
def test_detectable_difference_has_the_power(gained, lost, n):
    """A true difference of this size is found in 80% of simulations, within 3 points."""
    true = power.power_of_rate(gained, lost, n)["detectable"] / 100
    differing = max((gained + lost) / n, true)
    gain, loss = (differing + true) / 2, (differing - true) / 2
    assert simulate_mcnemar(n, gain, loss) == pytest.approx(0.8, abs=0.03)


def test_so_few_prompts_find_nothing():
    """Five prompts never reach 5%, and without a difference there is no number of prompts."""
    assert power.power_of_rate(2, 1, 5)["detectable"] is None
    assert power.power_of_rate(3, 3, 50)["prompts"] is None


@pytest.mark.parametrize(
    "changes",
    [[(9, 6, 50), (12, 4, 50)], [(5, 2, 50), (9, 3, 50)], [(30, 20, 200), (40, 28, 200)]],
)
def test_power_of_cas_is_that_of_simulated_data(changes):
    """The number of prompts of each kind gives the sign-flip test 80% power, within 3 points."""
    n = power.power_of_cas(changes)["prompts"]
    rng = np.random.default_rng(1)
    drawn = []
    for gained, lost, total in changes:
        gain, loss = gained / total, lost / total
        drawn.append(rng.multinomial(n, [gain, loss, 1 - gain - loss], 3000).tolist())
    rejected = 0
    for harmful, helpful in zip(*drawn):
        rejected += sign_flips(((*harmful[:2], n), (*helpful[:2], n))) < 0.05
    assert rejected / 3000 == pytest.approx(0.8, abs=0.03)


def test_power_of_cas_without_a_difference():
    """There is no number of prompts without a difference, and no difference for five prompts."""
    needs = power.power_of_cas([(3, 1, 50), (1, 3, 50)])
    assert needs["prompts"] is None
    assert 0 < needs["detectable"] < 100
    assert power.power_of_cas([(1, 1, 2), (1, 1, 2)])["detectable"] is None


def test_power_of_reward_is_that_of_simulated_data():
    """On normal differences Wilcoxon's test has 80% power, within 3 points."""
    differences = np.random.default_rng(3).normal(0.3, 1, 50)
    needs = power.power_of_reward(differences)
    mean, deviation = abs(differences.mean()), differences.std(ddof=1)
    rng = np.random.default_rng(4)
    for n, true in ((needs["prompts"], mean), (50, needs["detectable"])):
        rejected = 0
        for _ in range(2000):
            rejected += comparisons.signed_rank(rng.normal(true, deviation, n)) < 0.05
        assert rejected / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "few", [[-0.506, -0.518], [0.1, 0.2], [5.0, -5.0], [1.0, 1.0, 1.0001], [1e-9, -1e-9, 0.0]]
)
def test_power_of_reward_on_few_prompts(few):
    """For effects of any size on two or three prompts there is a number or None."""
    for value in power.power_of_reward(np.array(few)).values():
        assert value is None or 0 < value < np.inf


def test_power_of_reward_without_a_spread():
    """If all differences are equal, there is neither number."""
    nothing = {"detectable": None, "prompts": None}
    assert power.power_of_reward(np.zeros(5)) == nothing
    assert power.power_of_reward(np.ones(1)) == nothing
