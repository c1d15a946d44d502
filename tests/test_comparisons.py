"""Two models on the same prompts: tests, decisions and sentences."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from test_metrics import FOUR, four_models, make_answers  # noqa: F401

from posttrain import comparisons, conclusions, metrics


def compare(rewards):
    """The comparisons of {model: (harmful rewards, helpful rewards)}."""
    return comparisons.compare(make_answers(rewards), 2000, 0)


# ---- tests


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1), (5, 0, 2 / 32), (1, 1, 1), (8, 2, 112 / 1024), (0, 1, 1)],
)
def test_mcnemar_by_hand(gained, lost, p):
    """Exact two-sided binomial test on the prompts whose label changes."""
    assert comparisons.exact_mcnemar(gained, lost) == pytest.approx(p)
    assert comparisons.exact_mcnemar(lost, gained) == pytest.approx(p)


def test_flips_of_rewards_by_hand():
    """Five differences of one sign: 2 of the 2**5 sign patterns are as extreme."""
    assert comparisons.flip_rewards(np.array([1, 2, 3, 4, 5.5]), 0) == pytest.approx(2 / 32)
    assert comparisons.flip_rewards(np.zeros(5), 0) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flips_of_rewards_by_enumeration(seed):
    """On few prompts all patterns of signs are counted: those with a mean at least as far off."""
    differences = np.random.default_rng(seed).normal(0.5, 1, 12).round(1)
    signs = np.array(list(product([-1, 1], repeat=12)))
    means = np.abs((signs * differences).mean(1))
    expected = (means >= abs(differences.mean()) - 1e-9).mean()
    assert comparisons.flip_rewards(differences, 0) == pytest.approx(expected)


def test_drawn_flips_of_rewards_are_near_the_t_test():
    """On many prompts with normal differences both tests agree, within the error of the draws."""
    differences = np.random.default_rng(0).normal(0.3, 1, 60)
    expected = scipy_stats.ttest_1samp(differences, 0).pvalue
    drawn = [comparisons.flip_rewards(differences, seed) for seed in range(5)]
    assert drawn == pytest.approx([expected] * 5, abs=0.006)
    assert comparisons.flip_rewards(differences, 0) == drawn[0]


@pytest.mark.parametrize(
    ("distribution", "mean", "flipped", "ranked"),
    [("exponential", 1, 0.065, 0.24), ("lognormal", np.exp(0.5), 0.11, 0.49)],
)
def test_level_of_flips_of_rewards_on_skewed_differences(distribution, mean, flipped, ranked):
    """With a mean of zero they reject in more than 5%, and a signed-rank test far more often.

    A signed-rank test asks about the median, and the interval beside it is that of the mean. The
    flips are drawn here by a matrix of signs, which is the same for all data sets of 50 prompts.
    """
    rng = np.random.default_rng(3)
    differences = getattr(rng, distribution)(size=(3000, 50)) - mean
    signs = rng.choice([-1.0, 1.0], (4000, 50))
    p_values = []
    for values in differences:
        p_values.append((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())
    assert (np.array(p_values) < 0.05).mean() == pytest.approx(flipped, abs=0.015)
    for i in range(10):
        assert comparisons.flip_rewards(differences[i], i) == pytest.approx(p_values[i], abs=0.03)
    ranks = [scipy_stats.wilcoxon(values).pvalue for values in differences[:1000]]
    assert (np.array(ranks) < 0.05).mean() == pytest.approx(ranked, abs=0.04)


def test_holm_by_hand():
    """The smallest p times six, the next times five, never falling nor above 1, in their order."""
    adjusted = comparisons.holm([0.01, 0.04, 0.03, 0.005, 0.5, 0.9])
    assert adjusted == pytest.approx([0.05, 0.12, 0.12, 0.03, 1, 1])
    assert comparisons.holm([0.02]) == [0.02]
    assert comparisons.holm([1, 1, 1]) == [1, 1, 1]
    assert comparisons.holm([]) == []
    p_values = np.random.default_rng(0).uniform(0, 0.3, 10).round(2).tolist()
    expected = multipletests(p_values, method="holm")[1]
    assert comparisons.holm(p_values) == pytest.approx(expected)


def test_a_family_is_corrected_and_decided_together():
    """Holm's method over all its comparisons; the number of prompts decides whether any counts."""
    shared = {"low": 1.0, "high": 9.0}
    family = [{"p": p, **shared} for p in (0.02, 0.01, 0.2)]
    comparisons.decide_family(family, 50)
    assert [record["p_holm"] for record in family] == pytest.approx([0.04, 0.03, 0.2])
    decisions = [record["decision"] for record in family]
    assert decisions == ["significant", "significant", "inconclusive"]
    comparisons.decide_family(family, 9)
    assert {record["decision"] for record in family} == {"inconclusive"}


@pytest.mark.parametrize(("gained", "lost"), [(8, 2), (0, 5), (3, 3)])
def test_sign_flips_of_one_kind_are_mcnemar(gained, lost):
    """With changes on one kind of prompt alone the permutation test is the exact binomial one."""
    p = comparisons.sign_flips([(gained, lost, 50), (0, 0, 20)])
    assert p == pytest.approx(comparisons.exact_mcnemar(gained, lost))


@pytest.mark.parametrize(
    ("harmful", "helpful"),
    [((3, 1, 6), (2, 0, 5)), ((4, 0, 5), (1, 3, 8)), ((2, 2, 6), (3, 0, 4))],
)
def test_sign_flips_are_scipys_permutation_test(harmful, helpful):
    """Exact over all flips of the paired differences, weighted by the prompts of their kind."""
    differences = []
    for gained, lost, n in (harmful, helpful):
        values = [1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)
        differences += [value / n for value in values]
    expected = scipy_stats.permutation_test(
        (np.array(differences),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert comparisons.sign_flips([harmful, helpful]) == pytest.approx(expected.pvalue)


# ---- pairs of models


def test_every_pair_in_every_measure(four_models):  # noqa: F811
    """Six pairs a measure, in order, with Holm's correction over the six."""
    records = comparisons.compare(four_models, 2000, 0)
    expected = []
    for measure in metrics.MEASURES:
        for first, second in combinations(FOUR, 2):
            expected.append((measure, first, second))
    keys = [(record["measure"], record["first"], record["second"]) for record in records]
    assert keys == expected
    for i in range(0, len(records), 6):
        family = records[i : i + 6]
        adjusted = comparisons.holm([record["p"] for record in family])
        assert [record["p_holm"] for record in family] == adjusted
    for record in records:
        assert record["low"] <= record["difference"] <= record["high"]


@pytest.mark.parametrize(("measure", "kind"), [("HmR", "harmful"), ("HpR", "helpful")])
def test_rates_by_scipy(four_models, measure, kind):  # noqa: F811
    """Prompts gained and lost, and the exact binomial test on them."""
    passed = metrics.pivot_passed(four_models, kind)
    for record in comparisons.compare(four_models, 200, 0):
        if record["measure"] == measure:
            first, second = passed[record["first"]], passed[record["second"]]
            gained, lost = (second & ~first).sum(), (first & ~second).sum()
            assert (record["gained"], record["lost"], record["n"]) == (gained, lost, len(passed))
            assert record["difference"] == pytest.approx(100 * (second.mean() - first.mean()))
            p = 2 * scipy_stats.binom.cdf(min(gained, lost), gained + lost, 0.5)
            assert record["p"] == pytest.approx(min(1, p))


def test_cas_is_the_mean_of_both_rates(four_models):  # noqa: F811
    """Difference and interval combine those of HmR and HpR; counts are over all prompts."""
    records = comparisons.compare(four_models, 200, 0)
    by_measure = {}
    for record in records:
        by_measure.setdefault(record["measure"], []).append(record)
    for harmful, helpful, cas in zip(*(by_measure[name] for name in ("HmR", "HpR", "CAS"))):
        differences = [harmful["difference"], helpful["difference"]]
        interval = metrics.mover_mean(differences, [harmful, helpful])
        assert cas["difference"] == pytest.approx(np.mean(differences))
        assert (cas["low"], cas["high"]) == pytest.approx((interval["low"], interval["high"]))
        assert cas["gained"] == harmful["gained"] + helpful["gained"]
        assert cas["n"] == 70


@pytest.mark.parametrize("kind", metrics.KINDS)
def test_rewards_by_scipy(four_models, kind):  # noqa: F811
    """Sign flips of the paired differences, drawn by the seed, and their mean."""
    rewards = metrics.pivot_rewards(four_models, kind)
    for record in comparisons.compare(four_models, 200, 0):
        if record["measure"] == f"{kind}_reward":
            differences = rewards[record["second"]] - rewards[record["first"]]
            signs = np.random.default_rng(7).choice([-1, 1], (200_000, len(differences)))
            as_far = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
            assert record["p"] == pytest.approx(as_far.mean(), abs=0.02)
            assert record["difference"] == pytest.approx(differences.mean())
            assert record["gained"] == (differences > 0).sum()


def test_references_are_not_compared():
    """Neither are they in Holm's families; a single model has no comparison."""
    assert compare({"Base": ([1.0], [1.0]), "Empty": ([0.0], [0.0])}) == []


def test_power_is_left_out_where_it_is_not_asked_for(four_models):  # noqa: F811
    """All else stays the same."""
    full = comparisons.compare(four_models, 200, 0)
    quick = comparisons.compare(four_models, 200, 0, power=False)
    assert quick == [record | {"power": None} for record in full]
    assert conclusions.verdict(quick[0]).endswith("found with 80% power was not computed.")


def test_differences_are_paired():
    """A constant difference under large spread: resampling takes the same prompts of both."""
    values = np.random.default_rng(0).normal(0, 5, 30)
    shifted = values + np.tile([0.9, 1.1], 15)
    for record in compare({"Base": (values, values), "SFT": (shifted, shifted)}):
        if "reward" in record["measure"]:
            assert record["difference"] == pytest.approx(1)
            assert 0.9 < record["low"] < 1 < record["high"] < 1.1


@pytest.mark.parametrize("rewards", [[0.5], [0.5, -4.0] * 10])
def test_equal_models_differ_by_an_unknown_little(rewards):
    """No difference, p = 1, inconclusive; a rate's interval has a width, a reward's is unknown."""
    for record in compare({"Base": (rewards, rewards), "SFT": (rewards, rewards)}):
        assert (record["difference"], record["p"]) == (0, 1)
        assert record["decision"] == "inconclusive"
        if "reward" in record["measure"]:
            assert record["low"] is record["high"] is None
        else:
            assert record["low"] < -3 < 3 < record["high"]
        assert record["power"]["level"] == 0.05
        assert "SFT − Base is +0.0" in conclusions.verdict(record)


# ---- simulated data with a known truth, a short form of benchmarks/coverage.py


@pytest.mark.parametrize("n", [20, 50, 300])
def test_intervals_hold_the_truth(n):
    """At least 93% of the intervals of differences in rates and in CAS, few and many changes."""
    rng = np.random.default_rng(n)
    for gain, loss in ((0.02, 0.02), (0.25, 0.25), (0.1, 0.02), (0.35, 0.05)):
        drawn = rng.multinomial(n, [gain, loss, 1 - gain - loss], (2000, 2)).tolist()
        true = 100 * (gain - loss)
        held_by_rate, held_by_cas = 0, 0
        for both in drawn:
            differences, intervals = [], []
            for gained, lost, _ in both:
                differences.append(100 * (gained - lost) / n)
                intervals.append(metrics.paired_difference(gained, lost, n))
            held_by_rate += intervals[0]["low"] <= true <= intervals[0]["high"]
            cas = metrics.mover_mean(differences, intervals)
            held_by_cas += cas["low"] <= true <= cas["high"]
        assert held_by_rate / 2000 >= 0.93
        assert held_by_cas / 2000 >= 0.93


@pytest.mark.slow
def test_equal_models_seldom_differ_significantly():
    """At most 5% of families of six true nulls, and two standard errors, hold a finding."""
    rng = np.random.default_rng(0)
    families = 100
    wrong = dict.fromkeys(metrics.MEASURES, 0)
    for i in range(families):
        levels = rng.normal(-2.5, 1, (2, 20))  # a prompt is easier or harder for all models
        rewards = {name: levels + rng.normal(0, 1, (2, 20)) for name in FOUR}
        records = comparisons.compare(make_answers(rewards), 200, i, power=False)
        significant = [row["measure"] for row in records if row["decision"] == "significant"]
        for measure in dict.fromkeys(significant):
            wrong[measure] += 1
    assert max(wrong.values()) / families <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / families)


# ---- decisions


def comparison(**fields):
    """A comparison with some fields of its own."""
    return {
        "measure": "HmR",
        "first": "Base",
        "second": "SFT",
        "difference": 20.0,
        "low": 5.0,
        "high": 35.0,
        "gained": 12,
        "lost": 2,
        "n": 50,
        "p": 0.01,
        "p_holm": 0.04,
        "decision": "significant",
        "power": {"detectable": 20.4, "level": 0.05 / 6},
    } | fields


@pytest.mark.parametrize(
    ("fields", "prompts", "decision"),
    [
        ({}, 50, "significant"),
        ({"p_holm": 0.05}, 50, "suggestive"),
        ({"low": -0.1}, 50, "suggestive"),
        ({"low": -9.0, "high": -1.0}, 50, "significant"),
        ({"p": 0.05, "p_holm": 0.3}, 50, "inconclusive"),
        ({}, 9, "inconclusive"),
        ({}, 10, "significant"),
        ({"low": None, "high": None}, 50, "inconclusive"),
    ],
)
def test_decision(fields, prompts, decision):
    """Significant where test and interval agree after the correction; few prompts never."""
    assert comparisons.decide(comparison(**fields), prompts) == decision
    assert decision in comparisons.DECISIONS


def test_four_gained_and_none_lost_is_inconclusive():
    """A percentile bootstrap has [2, 16] there; exact McNemar has p = 0.125."""
    base = [-4.0] * 50
    sft = [-1.0] * 4 + [-4.0] * 46
    record = compare({"Base": (base, base), "SFT": (sft, base)})[0]
    assert (record["measure"], record["gained"], record["lost"]) == ("HmR", 4, 0)
    assert (record["p"], record["decision"]) == (0.125, "inconclusive")
    assert record["low"] < 0


def test_few_prompts_of_one_kind_leave_cas_inconclusive():
    """CAS rests on both kinds."""
    up, down = [0.0] * 40, [-5.0] * 40
    records = compare({"Base": (down, down[:9]), "SFT": (up, up[:9])})
    decisions = {record["measure"]: record["decision"] for record in records}
    assert decisions["HmR"] == "significant"
    assert decisions["HpR"] == decisions["CAS"] == "inconclusive"


# ---- in words


def test_verdict_on_a_significant_difference():
    """Numbers with a true minus, and who is higher, for these trained models."""
    assert conclusions.verdict(comparison()) == (
        "In HmR, SFT − Base is +20.0 points [+5.0, +35.0]: of 50 prompts, SFT alone is better on "
        "12 and Base alone on 2 (p = 0.01, and 0.04 after Holm's correction). The difference is "
        "significant: SFT is higher than Base for these trained models."
    )
    lower = conclusions.verdict(comparison(difference=-20.0, low=-35.0, high=-5.0))
    assert "−20.0 points [−35.0, −5.0]" in lower
    assert lower.endswith("SFT is lower than Base for these trained models.")


def test_verdict_on_a_suggestive_difference():
    """It says what keeps it from being significant."""
    uncorrected = conclusions.verdict(comparison(p_holm=0.06, decision="suggestive"))
    assert uncorrected.endswith(
        "The difference is suggestive, not significant, since p does not stay below 0.05 once it "
        "is corrected for all pairs of models."
    )
    unclear = conclusions.verdict(comparison(low=-1.0, decision="suggestive"))
    assert unclear.endswith("not significant, since its interval includes zero.")


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        (
            {},
            "The comparison is inconclusive. A true difference of 20 points would be found with "
            "80% power by this many prompts.",
        ),
        (
            {"measure": "helpful_reward", "power": {"detectable": 0.456, "level": 0.05}},
            "A true difference of 0.46 would be found with 80% power by this many prompts.",
        ),
        (
            {"power": {"detectable": None, "level": 0.05}},
            "inconclusive. So few prompts find no difference with 80% power.",
        ),
    ],
)
def test_verdict_on_an_inconclusive_comparison(fields, ending):
    """It says which difference is found with 80% power."""
    text = conclusions.verdict(comparison(decision="inconclusive", **fields))
    assert text.endswith(ending)


def test_verdicts_say_what_the_rewards_say_beyond_the_rates():
    """Where mean rewards differ significantly and the rate does not, or the other way round."""
    rewards = comparison(
        measure="harmful_reward", difference=-0.35, low=-0.61, high=-0.09, p_holm=0.013
    )
    (text,) = conclusions.verdicts([comparison(decision="inconclusive"), rewards])
    assert text.endswith(
        "Their mean rewards, however, differ significantly, by −0.35 [−0.61, −0.09] (p = 0.013 "
        "after Holm's correction): by these, SFT is lower than Base for these trained models."
    )
    assert "however" in conclusions.verdicts([comparison(), rewards])[0]
    agreeing = rewards | {"difference": 0.35}
    assert "however" not in conclusions.verdicts([comparison(), agreeing])[0]
    unknown = rewards | {"decision": "suggestive"}
    assert "however" not in conclusions.verdicts([comparison(), unknown])[0]


def test_verdicts_on_all_pairs(four_models):  # noqa: F811
    """Eighteen texts: six pairs in two rates and CAS."""
    assert len(conclusions.verdicts(comparisons.compare(four_models, 200, 0))) == 18


def test_headlines(four_models):  # noqa: F811
    """A sentence for each measure, which says that it is about these trained models."""
    sentences = conclusions.headlines(comparisons.compare(four_models, 200, 0))
    names = [
        "HmR",
        "HpR",
        "CAS",
        "mean reward on harmful prompts",
        "mean reward on helpful prompts",
    ]
    for sentence, name in zip(sentences, names, strict=True):
        assert sentence.startswith(f"In {name}, ")
        assert "these trained models" in sentence
    assert conclusions.headlines([]) == []


def test_a_headline_shares_its_clauses():
    """Models above the same model share a clause, and so do models that are above one model."""
    family = [comparison(first="Base", second=name) for name in ("SFT", "DPO", "SFT+DPO")]
    family.append(comparison(first="SFT", second="SFT+DPO", difference=-9.0))
    family.append(comparison(first="DPO", second="SFT+DPO", difference=-9.0))
    family.append(comparison(first="SFT", second="DPO", decision="suggestive"))
    assert conclusions.headline(family) == (
        "In HmR, SFT, DPO and SFT+DPO are significantly above Base and SFT+DPO is significantly "
        "below SFT and DPO for these trained models (5 of 6 pairs)."
    )


def test_headline_by_hand():
    """It names the pairs that differ, or says how large a difference could still be."""
    family = [
        comparison(),
        comparison(second="B", difference=-9.0),
        comparison(second="C", low=-12.6, high=3.2, decision="inconclusive"),
    ]
    assert conclusions.headline(family) == (
        "In HmR, SFT is significantly above Base and B is significantly below Base for these "
        "trained models (2 of 3 pairs)."
    )
    assert conclusions.headline(family[2:]) == (
        "In HmR, no pair of these trained models differs significantly; the intervals leave room "
        "for differences of up to 13 points between two models."
    )
    constant = comparison(measure="helpful_reward", low=None, high=None, decision="inconclusive")
    assert conclusions.headline([constant]) == (
        "In mean reward on helpful prompts, no pair of these trained models differs significantly."
    )
    assert comparisons.format_difference(constant | {"difference": 0.0}) == "+0.00 on every prompt"


def test_one_prompt_decides_nothing():
    """With a single prompt the difference and its opposite are the only patterns of signs."""
    assert comparisons.flip_rewards(np.array([2.5]), 0) == 1.0
