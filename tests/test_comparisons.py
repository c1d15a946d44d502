"""Two models on the same prompts: tests, decisions and sentences."""

import math
from itertools import combinations

import numpy as np
import pytest
from conftest import MODELS, score_records
from scipy import stats as scipy_stats
from test_stats import labels, random_scores  # noqa: F401

from benchmarks import coverage
from posttrain import comparisons, stats
from posttrain.comparisons import exact_mcnemar, signed_rank


def compare(scores, draws=2000):
    """Return what the notebook makes of score records."""
    rewards = stats.reward_table(scores)
    return comparisons.compare(rewards, *labels(rewards), draws, 0)


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1), (5, 0, 2 / 32), (1, 1, 1), (8, 2, 112 / 1024), (0, 1, 1)])
def test_mcnemar_by_hand(gained, lost, p):
    """Exact two-sided binomial test on the prompts whose label changes."""
    assert exact_mcnemar(gained, lost) == exact_mcnemar(lost, gained) == pytest.approx(p)


def test_wilcoxon_by_hand():
    """Five differences of one sign: 2 of the 2**5 sign patterns are as extreme."""
    assert signed_rank(np.array([1, 2, 3, 4, 5.5])) == pytest.approx(2 / 32)
    assert signed_rank(np.zeros(5)) == 1


def test_wilcoxon_with_ties():
    """Equal rewards are left out, equal differences share their rank."""
    rng = np.random.default_rng(0)
    differences = rng.integers(1, 5, 50).astype(float) - rng.integers(0, 4, 50)
    kept = differences[differences != 0]
    assert len(kept) < 50
    expected = scipy_stats.wilcoxon(kept, correction=False, method="approx").pvalue
    assert signed_rank(differences) == pytest.approx(expected)


def test_holm_by_hand():
    """The smallest p times six, the next times five and so on, never falling, never above one, in the order given."""
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005, 0.5, 0.9]) == pytest.approx([0.05, 0.12, 0.12, 0.03, 1, 1])
    assert comparisons.holm([0.02]) == [0.02]
    assert comparisons.holm([1, 1, 1]) == [1, 1, 1]


def test_sign_flips_of_one_kind_are_mcnemar():
    """With changes on one kind of prompt alone the permutation test is the exact binomial one."""
    for gained, lost in ((8, 2), (0, 5), (3, 3)):
        assert comparisons.sign_flips([(gained, lost, 50), (0, 0, 20)]) == pytest.approx(exact_mcnemar(gained, lost))


@pytest.mark.parametrize(("harmful", "helpful"), [
    ((3, 1, 6), (2, 0, 5)), ((4, 0, 5), (1, 3, 8)), ((2, 2, 6), (3, 0, 4))])
def test_sign_flips_are_scipys_permutation_test(harmful, helpful):
    """Exact over all flips of the signs of the paired differences, weighted by the number of prompts of their kind."""
    def changes(gained, lost, n):
        return np.array([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost)) / n

    differences = np.concatenate([changes(*harmful), changes(*helpful)])
    expected = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert comparisons.sign_flips([harmful, helpful]) == pytest.approx(expected.pvalue)


def test_comparisons_by_scipy(random_scores):  # noqa: F811
    """Six pairs a measure, second minus first; each measure's test, Holm over the six."""
    rows, rewards = compare(random_scores), stats.reward_table(random_scores)
    assert [(row["measure"], row["first"], row["second"]) for row in rows] == [
        (name, *pair) for name in stats.MEASURES for pair in combinations(MODELS, 2)]
    harmless, helpful = labels(rewards)
    for i in range(0, len(rows), 6):
        family = rows[i : i + 6]
        assert [row["p_holm"] for row in family] == comparisons.holm([row["p"] for row in family])
    for row in rows:
        assert row["low"] <= row["difference"] <= row["high"]
        first, second = row["first"], row["second"]
        if row["measure"] in ("HmR", "HpR"):
            table = harmless if row["measure"] == "HmR" else helpful
            b, c = (table[second] & ~table[first]).sum(), (table[first] & ~table[second]).sum()
            assert (row["gained"], row["lost"], row["n"]) == (b, c, len(table))
            assert row["p"] == pytest.approx(min(1, 2 * scipy_stats.binom.cdf(min(b, c), b + c, 0.5)))
        elif row["measure"] == "CAS":
            pairs = [one for one in rows if (one["first"], one["second"]) == (first, second)][:2]
            assert row["difference"] == pytest.approx(sum(one["difference"] for one in pairs) / 2)
            assert row["gained"] == sum(one["gained"] for one in pairs)
            assert row["n"] == 70
        else:
            table = rewards.loc[stats.MEASURES[row["measure"]]]
            assert row["p"] == pytest.approx(scipy_stats.wilcoxon(table[second] - table[first]).pvalue)
            assert row["difference"] == pytest.approx((table[second] - table[first]).mean())
            assert row["gained"] == (table[second] > table[first]).sum()


def test_differences_are_paired():
    """A constant difference under large spread: resampling takes the same prompts of both models."""
    values = np.random.default_rng(0).normal(0, 5, 30)
    shifted = values + np.tile([0.9, 1.1], 15)
    for row in compare(score_records(Base=(values, values), SFT=(shifted, shifted))):
        if "reward" in row["measure"]:
            assert row["difference"] == pytest.approx(1)
            assert 0.9 < row["low"] < 1 < row["high"] < 1.1


def test_equal_models_differ_by_an_unknown_little():
    """No difference, p = 1, open; the interval of a rate has a width, that of rewards is not known."""
    for rewards in ([0.5], [0.5, -4.0] * 10):
        for row in compare(score_records(Base=(rewards, rewards), SFT=(rewards, rewards))):
            assert (row["difference"], row["p"], row["decision"]) == (0, 1, "open")
            if "reward" in row["measure"]:
                assert (row["low"], row["high"]) == (None, None)
            else:
                assert row["low"] < -3 < 3 < row["high"]
            assert row["power"]["prompts"] is None
            assert comparisons.verdict(row).startswith("SFT against Base")


# ---- simulated data with known truth, a shorter benchmarks/coverage.py

@pytest.mark.parametrize("n", coverage.SIZES)
def test_intervals_hold_the_truth(n):
    """At least 93% of the intervals of rates and of CAS, with few and with many labels that differ."""
    rng = np.random.default_rng(n)
    found = [coverage.coverage_of_differences(n, change, 4000, rng) for change in coverage.CHANGES]
    found += [coverage.coverage_of_cas_differences(n, (one, coverage.CHANGES[0]), 2000, rng)
              for one in coverage.CHANGES[::3]]
    found += [coverage.coverage_of_cas(n, rates, 2000, rng) for rates in ((0.05, 0.5), (0.5, 0.5), (0.9, 0.2))]
    assert min(found) >= 0.93
    assert 0.94 <= np.mean(found) <= 0.98


def test_equal_models_are_seldom_told_apart():
    """Of 100 families of six true nulls at most 5% and two standard errors hold a decision, on 20 prompts of a kind."""
    wrong = coverage.wrong_decisions(20, 0.5, 100, np.random.default_rng(0))
    assert set(wrong) == set(stats.MEASURES)
    assert max(wrong.values()) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 100)


# ---- decisions

def record(**fields):
    """Return a comparison with some fields of its own."""
    return {"measure": "HmR", "first": "Base", "second": "SFT", "difference": 20.0, "low": 5.0, "high": 35.0,
            "gained": 12, "lost": 2, "n": 50, "p": 0.01, "p_holm": 0.04, "decision": "decided",
            "power": {"detectable": 20.4, "prompts": 1234}} | fields


@pytest.mark.parametrize(("fields", "prompts", "decision"), [
    ({}, 50, "decided"), ({"p_holm": 0.05}, 50, "suggestive"), ({"low": -0.1}, 50, "suggestive"),
    ({"low": -9.0, "high": -1.0}, 50, "decided"), ({"p": 0.05, "p_holm": 0.3}, 50, "open"), ({}, 9, "open"),
    ({}, 10, "decided"), ({"low": None, "high": None}, 50, "open")])
def test_decision(fields, prompts, decision):
    """Decided where test and interval agree after the correction; suggestive by the test alone; few prompts: open."""
    assert comparisons.decide(record(**fields), prompts) == decision


def test_four_gained_and_none_lost_is_open():
    """A percentile bootstrap has [2, 16] there and would decide; exact McNemar has p = 0.125."""
    base, sft = [-4.0] * 50, [-1.0] * 4 + [-4.0] * 46
    row = next(row for row in compare(score_records(Base=(base, base), SFT=(sft, base))) if row["measure"] == "HmR")
    assert (row["gained"], row["lost"], row["p"], row["decision"]) == (4, 0, 0.125, "open")
    assert row["low"] < 0


def test_few_prompts_of_one_kind_leave_cas_open():
    """CAS rests on both kinds."""
    up, down = [0.0] * 40, [-5.0] * 40
    rows = {row["measure"]: row for row in compare(score_records(Base=(down, down[:9]), SFT=(up, up[:9])))}
    assert [rows[name]["decision"] for name in ("HmR", "HpR", "CAS")] == ["decided", "open", "open"]


# ---- in words

def test_verdicts():
    """Numbers with a true minus; who is higher; what 80% power needs; what the rewards say beyond the rates."""
    assert comparisons.verdict(record()) == (
        "SFT against Base, HmR: +20.0 points [+5.0, +35.0], 12 gained and 2 lost of 50 prompts, p = 0.01, 0.04 after "
        "Holm: decided, SFT is higher.")
    suggestive = comparisons.verdict(record(difference=-20.0, low=-35.0, high=-5.0, p_holm=0.06, decision="suggestive"))
    assert "−20.0 points [−35.0, −5.0]" in suggestive
    assert suggestive.endswith("suggestive, not decided once corrected for all pairs.")
    assert comparisons.verdict(record(low=-1.0, decision="suggestive")).endswith(
        "suggestive, not decided since the interval includes no difference.")
    still_open = record(decision="open")
    assert comparisons.verdict(still_open).endswith(
        "open. A true difference of 20 points is found with 80% power; one like that seen takes about 1,234 prompts.")
    assert comparisons.verdict(record(decision="open", power={"detectable": None, "prompts": None})).endswith(
        "open. So few prompts find no difference.")
    rewards = record(measure="harmful_reward", difference=-0.35, low=-0.61, high=-0.09, p_holm=0.013)
    (sentence,) = comparisons.verdicts([still_open, rewards])
    assert sentence.endswith("But the mean reward differs: −0.35 [−0.61, −0.09], p = 0.013 after Holm: SFT is lower.")
    assert "But" not in comparisons.verdicts([record(), rewards | {"difference": 0.35}])[0]


def test_headlines(random_scores):  # noqa: F811
    """A measure without a decided pair says how large a difference could still be; the others name their pairs."""
    rows = compare(random_scores)
    sentences = comparisons.headlines(rows)
    assert [sentence.split(":")[0] for sentence in sentences] == [name.replace("_", " ") for name in stats.MEASURES]
    open_family = [row | {"decision": "open"} for row in rows if row["measure"] == "HmR"]
    (sentence,) = comparisons.headlines(open_family)
    ends = [row[end] for row in open_family for end in ("low", "high")]
    assert sentence == ("HmR: no difference is decided. The intervals leave room for differences from "
                        f"{comparisons.signed(min(ends), 0)} to {comparisons.signed(max(ends), 0)} points.")
    (sentence,) = comparisons.headlines([row | {"decision": "decided"} for row in open_family[:1]])
    assert sentence.startswith("HmR: 1 of 1 pairs are decided, namely SFT ")


def test_verdicts_on_all_pairs(random_scores):  # noqa: F811
    """Eighteen sentences: six pairs in two rates and CAS."""
    assert len(comparisons.verdicts(compare(random_scores))) == 18
    assert not any(math.isnan(row["difference"]) for row in compare(random_scores))
