"""What 80% power needs, against simulations."""

import numpy as np
import pytest

from posttrain import comparisons, power


def simulated(n, gain, loss, data_sets=4000):
    """Return how often exact McNemar rejects at 5% on simulated labels."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets)
    p = {}
    return np.mean([p.setdefault((a, b), comparisons.exact_mcnemar(a, b)) < 0.05 for a, b, _ in drawn.tolist()])


@pytest.mark.parametrize(("n", "gain", "loss"), [(50, 0.3, 0.04), (50, 0.12, 0.0), (300, 0.16, 0.07), (20, 0.5, 0.05)])
def test_power_of_mcnemar_is_that_of_simulated_data(n, gain, loss):
    """Within two and a half standard errors of the simulation."""
    found = power.power_of_mcnemar(n, gain, loss)
    assert simulated(n, gain, loss) == pytest.approx(found, abs=0.02)


@pytest.mark.parametrize(("gained", "lost", "n"), [
    (9, 6, 50), (8, 3, 50), (11, 5, 50), (4, 0, 50), (5, 1, 20), (40, 25, 300)])
def test_number_of_prompts_gives_the_power(gained, lost, n):
    """So many prompts with the probabilities seen have 80%, within 3 points."""
    needed = power.power_of_rate(gained, lost, n)["prompts"]
    assert simulated(needed, gained / n, lost / n) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 6, 50), (1, 1, 50), (0, 0, 50), (40, 25, 300), (3, 3, 20)])
def test_detectable_difference_is_found(gained, lost, n):
    """A true difference of that size is found in 80% of simulated data sets, within 3 points."""
    true = power.power_of_rate(gained, lost, n)["detectable"] / 100
    differing = max((gained + lost) / n, true)
    assert simulated(n, (differing + true) / 2, (differing - true) / 2) == pytest.approx(0.8, abs=0.03)


def test_so_few_prompts_find_nothing():
    """Five prompts cannot reach 5% whatever their labels; without a difference no number of prompts is told."""
    assert power.power_of_rate(2, 1, 5)["detectable"] is None
    assert power.power_of_rate(3, 3, 50)["prompts"] is None


@pytest.mark.parametrize("changes", [
    [(9, 6, 50), (12, 4, 50)], [(5, 2, 50), (9, 3, 50)], [(30, 20, 200), (40, 28, 200)]])
def test_power_of_cas_is_that_of_simulated_data(changes):
    """The number of prompts of each kind gives the exact sign-flip test 80% power, within 3 points."""
    n = power.power_of_cas(changes)["prompts"]
    rng, p = np.random.default_rng(1), {}
    shares = [(gained / total, lost / total) for gained, lost, total in changes]
    drawn = [rng.multinomial(n, [gain, loss, 1 - gain - loss], 3000) for gain, loss in shares]
    found = np.mean([p.setdefault((*a[:2], *b[:2]), comparisons.sign_flips([(*a[:2], n), (*b[:2], n)])) < 0.05
                     for a, b in zip(*(part.tolist() for part in drawn))])
    assert found == pytest.approx(0.8, abs=0.03)


def test_power_of_reward_is_that_of_simulated_data():
    """The number of prompts gives Wilcoxon's test 80% power on normal differences, within 3 points."""
    differences = np.random.default_rng(3).normal(0.3, 1, 50)
    found = power.power_of_reward(differences)
    mean, spread = abs(differences.mean()), differences.std(ddof=1)
    rng = np.random.default_rng(4)
    for n, true in ((found["prompts"], mean), (50, found["detectable"])):
        hits = np.mean([comparisons.signed_rank(rng.normal(true, spread, n)) < 0.05 for _ in range(2000)])
        assert hits == pytest.approx(0.8, abs=0.03)
    for few in ([-0.506, -0.518], [0.1, 0.2], [5.0, -5.0], [1.0, 1.0, 1.0001], [1e-9, -1e-9, 0.0]):
        found = power.power_of_reward(np.array(few))  # effects of all sizes on two or three prompts
        assert all(value is None or 0 < value < np.inf for value in found.values())
    assert power.power_of_reward(np.zeros(5)) == power.power_of_reward(np.ones(1)) == {
        "detectable": None, "prompts": None}
