"""Decisions at other thresholds: the same as those that `comparisons` makes one at a time."""

from itertools import combinations

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from test_metrics import FOUR, four_models, make_answers  # noqa: F401

from posttrain import comparisons, metrics, other_thresholds

CHOSEN = {"harmful": -3.0, "helpful": -2.0}


@pytest.fixture(scope="module")
def answers():
    """Answers of four models that differ more than those of `four_models`."""
    rng = np.random.default_rng(11)
    rewards = {}
    for place, name in enumerate(FOUR):
        shifts = (-3.5 + 0.6 * place, -1 - 0.7 * place)  # up on harmful and down on helpful prompts
        rewards[name] = tuple(rng.normal(shift, 1.2, 60).round(2).tolist() for shift in shifts)
    return make_answers(rewards)


def decide_with_statsmodels(rewards, kind, threshold):
    """Decide for all pairs with statsmodels' test and correction, {pair: sign}."""
    passed = rewards >= threshold if kind == "harmful" else rewards > threshold
    pairs = list(combinations(passed.columns, 2))
    p_values, changes = [], []
    for first, second in pairs:
        gained = int((passed[second] & ~passed[first]).sum())
        lost = int((passed[first] & ~passed[second]).sum())
        changes.append((gained, lost))
        p_values.append(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
    adjusted = multipletests(p_values, method="holm")[1]
    signs = {}
    for pair, (gained, lost), p_holm in zip(pairs, changes, adjusted):
        ends = metrics.paired_difference(gained, lost, len(passed))
        is_clear = ends["low"] > 0 or ends["high"] < 0
        signs[pair] = int(np.sign(gained - lost)) if p_holm < 0.05 and is_clear else 0
    return signs


def test_decisions_are_those_of_statsmodels(answers):
    decided = other_thresholds.decide_at_thresholds(answers, CHOSEN)
    seen = set()
    for kind, table in decided.items():
        rewards = metrics.pivot_rewards(answers, kind)
        for threshold in table.index[::60]:
            expected = decide_with_statsmodels(rewards, kind, threshold)
            assert table.loc[threshold].to_dict() == expected
            seen |= set(expected.values())
    assert seen == {-1, 0, 1}


def test_thresholds_go_one_unit_beyond_the_chosen_ones(answers):
    decided = other_thresholds.decide_at_thresholds(answers, CHOSEN)
    assert list(decided) == ["harmful", "helpful"]
    for table in decided.values():
        assert len(table) == other_thresholds.STEPS
        assert (table.index[0], table.index[-1]) == (-4, -1)
        assert {-3.0, -2.0} <= set(table.index)
        assert list(table.columns) == list(combinations(FOUR, 2))


def test_at_the_chosen_threshold_the_decision_is_the_usual_one(answers):
    decided = other_thresholds.decide_at_thresholds(answers, CHOSEN)
    compared = 0
    for record in comparisons.compare(answers, 100, 0, power=False):
        kind = metrics.MEASURES[record["measure"]]
        if record["measure"] in ("HmR", "HpR"):
            sign = decided[kind].loc[CHOSEN[kind], (record["first"], record["second"])]
            significant = record["decision"] == "significant"
            assert sign == (np.sign(record["difference"]) if significant else 0)
            compared += 1
    assert compared == 12


def test_a_reward_at_the_threshold_passes_on_harmful_prompts_alone():
    rewards = np.array([-2.0, -1.9, -2.1])
    assert other_thresholds.passes(rewards, "harmful", -2.0).tolist() == [True, True, False]
    assert other_thresholds.passes(rewards, "helpful", -2.0).tolist() == [False, True, False]


def test_few_prompts_decide_nothing():
    rewards = {"A": ([-9.0] * 9, [-9.0] * 10), "B": ([9.0] * 9, [9.0] * 10)}
    decided = other_thresholds.decide_at_thresholds(make_answers(rewards), CHOSEN)
    assert (decided["harmful"] == 0).all(axis=None)
    assert (decided["helpful"] == 1).all(axis=None)


def test_one_model_has_no_pairs():
    decided = other_thresholds.decide_at_thresholds(make_answers({"A": ([1.0], [1.0])}), CHOSEN)
    assert decided["harmful"].shape == (other_thresholds.STEPS, 0)
    assert other_thresholds.list_threshold_decisions(decided) == []


def test_shares_are_counted_over_both_directions():
    """Of 301 thresholds from −4 to −1, those between the models' rewards and no others."""
    low, high = [-3.5] * 20, [-2.5] * 20
    rewards = {"A": (low, high), "B": (high, low), "C": (low, high)}
    answers = make_answers(rewards)
    decided = other_thresholds.decide_at_thresholds(answers, CHOSEN)
    records = other_thresholds.list_threshold_decisions(decided)
    assert [(r["kind"], r["first"], r["second"]) for r in records] == [
        (kind, *pair) for kind in metrics.KINDS for pair in combinations("ABC", 2)
    ]
    harmful, same, _, helpful, _, _ = records
    # ≥ −3.5 is passed by both, and the next threshold by the higher one alone, up to −2.5
    assert harmful["share"] == pytest.approx(100 * 100 / 301)
    assert (harmful["lowest"], harmful["highest"]) == pytest.approx((-3.49, -2.5))
    assert same == {
        "kind": "harmful", "first": "A", "second": "C", "share": 0, "lowest": None, "highest": None,
    }  # fmt: skip
    assert (helpful["lowest"], helpful["highest"]) == pytest.approx((-3.5, -2.51))
    assert set(decided["harmful"]["A", "B"]) == {0, 1}
    assert set(decided["helpful"]["A", "B"]) == {0, -1}
