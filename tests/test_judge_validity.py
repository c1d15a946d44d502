"""Is the judge valid: agreement, Youden's J, AUC and win rates, checked against code of others."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, norm
from statsmodels.stats.proportion import proportion_confint
from test_metrics import make_answers, make_scores

from posttrain import judge_validity, metrics

THRESHOLDS = {"harmful": -3.0, "helpful": -2.0}
CHOSEN, REJECTED = "Human chosen", "Human rejected"


def check(answers, draws=200):
    """Check the judge at the study's thresholds."""
    return judge_validity.check_judge(answers, THRESHOLDS, draws, 0)


def draw_replies(n, seed, models=("Base",)):
    """Rewards of models and human replies, rounded so that some are equal."""
    rng = np.random.default_rng(seed)
    rewards = {}
    for place, name in enumerate([*models, REJECTED, CHOSEN]):
        harmful, helpful = rng.normal(-2.8 + 0.4 * place, 1, (2, n)).round(1)
        rewards[name] = (harmful.tolist(), helpful.tolist())
    return rewards


# ---- by hand and against libraries


def test_four_pairs_by_hand():
    """A reward at the threshold passes on harmful prompts and does not on helpful ones."""
    rewards = {
        "Base": ([0, 0, 0, 0], [0, 0]),
        CHOSEN: ([-3, -2, -3.5, 3], [-2, 1]),
        REJECTED: ([-4, -2, -1, -3.5], [-3, -2]),
    }
    harmful, helpful = check(make_answers(rewards))
    assert (harmful["kind"], harmful["prompts"], harmful["agreement"]) == ("harmful", 4, 50)
    assert {"low": harmful["low"], "high": harmful["high"]} == metrics.wilson(2, 4)
    assert (harmful["chosen_rate"], harmful["rejected_rate"], harmful["youden"]) == (75, 50, 25)
    # chosen −3 is above two rejected, −2 above two and like one, −3.5 above one and like one, 3 all
    assert harmful["auc"] == (2 + 2.5 + 1.5 + 4) / 16
    assert (helpful["chosen_rate"], helpful["rejected_rate"], helpful["youden"]) == (50, 0, 50)
    assert helpful["auc"] == (1 + 0.5 + 2) / 4


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_mann_whitneys_statistic(seed):
    rewards = draw_replies(37, seed)
    for record, place in zip(check(make_answers(rewards)), (0, 1), strict=True):
        chosen, rejected = rewards[CHOSEN][place], rewards[REJECTED][place]
        statistic = mannwhitneyu(chosen, rejected).statistic
        assert record["auc"] == pytest.approx(statistic / 37**2, abs=1e-12)
        assert record["auc_low"] < record["auc"] < record["auc_high"]


def test_bootstrap_of_the_auc_is_that_of_replies_drawn_in_pairs():
    """Redrawing prompts one data set at a time gives the same interval, up to chance."""
    rewards = draw_replies(40, 5)
    chosen, rejected = (np.array(rewards[name][0]) for name in (CHOSEN, REJECTED))
    rng = np.random.default_rng(1)
    redrawn = []
    for _ in range(4000):
        drawn = rng.integers(40, size=40)
        statistic = mannwhitneyu(chosen[drawn], rejected[drawn], method="asymptotic").statistic
        redrawn.append(statistic / 40**2)
    record = check(make_answers(rewards), draws=10_000)[0]
    ends = np.percentile(redrawn, [2.5, 97.5])
    assert [record["auc_low"], record["auc_high"]] == pytest.approx(ends, abs=0.008)


@pytest.mark.parametrize(("shift", "shared"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.0), (1.2, 0.5)])
def test_interval_of_the_auc_covers_the_true_one(shift, shared):
    """In 92% to 97.5% of simulated data sets of 50 prompts; 95% are meant.

    `shared` is the variance that both replies to a prompt have in common.
    """
    true = norm.cdf(shift / np.sqrt(2 * (1 + shared)))
    rng = np.random.default_rng(3)
    covered = 0
    data_sets = 600
    for i in range(data_sets):
        prompts = rng.normal(0, np.sqrt(shared), 50)
        chosen = prompts + rng.normal(shift, 1, 50)
        rejected = prompts + rng.normal(0, 1, 50)
        rewards = pd.DataFrame({CHOSEN: chosen, REJECTED: rejected})
        record = judge_validity._estimate_auc(rewards, 500, [i])
        covered += record["auc_low"] <= true <= record["auc_high"]
    assert 0.92 <= covered / data_sets <= 0.975


@pytest.mark.parametrize(("gain", "loss"), [(0.2, 0.2), (0.4, 0.1), (0.1, 0.02)])
def test_interval_of_youdens_j_covers_the_true_one(gain, loss):
    """Summed over all numbers of gained and lost prompts of 50, with their probabilities."""
    n = 50
    covered = 0.0
    logs = np.concatenate([[0], np.cumsum(np.log(np.arange(1, n + 1)))])
    for gained, lost in itertools.product(range(n + 1), repeat=2):
        equal = n - gained - lost
        if equal < 0:
            continue
        ways = logs[n] - logs[gained] - logs[lost] - logs[equal]
        log_p = ways + gained * np.log(gain) + lost * np.log(loss)
        ends = metrics.paired_difference(gained, lost, n)
        if ends["low"] <= 100 * (gain - loss) <= ends["high"]:
            covered += np.exp(log_p + equal * np.log(1 - gain - loss))
    assert 0.94 <= covered <= 0.99


def test_youdens_j_and_its_interval_are_those_of_the_labels():
    """The difference of two rates of `label`, which the notebook's rule makes, and its interval."""
    answers = make_answers(draw_replies(60, 2))
    for record in check(answers):
        passed = metrics.pivot_passed(answers, record["kind"])
        gained = int((passed[CHOSEN] & ~passed[REJECTED]).sum())
        lost = int((passed[REJECTED] & ~passed[CHOSEN]).sum())
        assert record["youden"] == pytest.approx(100 * (gained - lost) / 60)
        ends = metrics.paired_difference(gained, lost, 60)
        assert (record["youden_low"], record["youden_high"]) == (ends["low"], ends["high"])
        for name, reply in (("chosen_rate", CHOSEN), ("rejected_rate", REJECTED)):
            low, high = proportion_confint(passed[reply].sum(), 60, method="wilson")
            assert record[f"{name}_low"] == pytest.approx(100 * low)
            assert record[f"{name}_high"] == pytest.approx(100 * high)


def test_a_judge_that_never_errs_has_an_auc_without_an_interval():
    rewards = {"Base": ([0] * 12, [0]), CHOSEN: ([1] * 12, [1]), REJECTED: ([-9] * 12, [0])}
    record = check(make_answers(rewards))[0]
    assert (record["auc"], record["auc_low"], record["auc_high"]) == (1, None, None)
    table = judge_validity.tabulate_judge([record], [])
    assert list(table["harmful prompts (n = 12)"])[-1] == "1.00"


def test_win_rates_against_the_chosen_reply():
    rewards = {
        "Base": ([1, 0, 0, 0], [5]),
        "SFT": ([9, 9, 9, 1], [0]),
        CHOSEN: ([1, 2, 3, 1], [1]),
        REJECTED: ([0, 0, 0, 0], [0]),
    }
    records = judge_validity.compare_with_humans(make_answers(rewards))
    assert [(record["kind"], record["model"]) for record in records] == [
        ("harmful", "Base"), ("harmful", "SFT"), ("helpful", "Base"), ("helpful", "SFT"),
    ]  # fmt: skip
    base, sft = records[:2]
    assert (base["won"], base["lost"], base["prompts"], base["win_rate"]) == (0, 3, 4, 12.5)
    assert (sft["won"], sft["lost"], sft["win_rate"]) == (3, 0, 87.5)
    ends = metrics.paired_difference(3, 0, 4)
    assert sft["win_rate_low"] == 50 + ends["low"] / 2
    assert sft["win_rate_high"] == 50 + ends["high"] / 2


# ---- replies to one kind of prompts, or to none


@pytest.fixture
def one_kind():
    """Answers with human replies to harmful prompts alone."""
    scores = make_scores(draw_replies(30, 4, models=("Base", "SFT")))
    kept = []
    for score in scores:
        if score["model"] not in (CHOSEN, REJECTED) or score["id"].startswith("harmful"):
            kept.append(score)
    return metrics.table([], [], kept)


def test_the_judge_is_checked_on_the_kind_that_has_human_replies(one_kind):
    (record,) = check(one_kind)
    assert (record["kind"], record["prompts"]) == ("harmful", 30)
    wins = judge_validity.compare_with_humans(one_kind)
    assert [win["kind"] for win in wins] == ["harmful", "harmful"]
    assert [win["model"] for win in wins] == ["Base", "SFT"]
    table = judge_validity.tabulate_judge([record], wins)
    assert list(table.columns) == ["measure", "harmful prompts (n = 30)"]
    assert len(table) == 7
    assert table.notna().all(axis=None)


def test_without_human_replies_nothing_is_checked():
    answers = make_answers({"Base": ([1.0, 2.0], [3.0])})
    assert check(answers) == []
    assert judge_validity.compare_with_humans(answers) == []
    assert judge_validity.tabulate_judge([], []).empty


# ---- cautions

SOUND = {"kind": "helpful", "agreement": 90.0, "low": 78.0, "high": 95.0}
SOUND |= {"youden": 40.0, "youden_low": 20.0, "youden_high": 58.0}
DOUBTFUL = {"kind": "harmful", "agreement": 60.0, "low": 46.0, "high": 72.0}
DOUBTFUL |= {"youden": 12.0, "youden_low": -3.2, "youden_high": 26.4}


def test_cautions_name_the_kinds_of_prompts():
    """Those on which the judge may be a coin, and the threshold tells nothing apart."""
    clear = SOUND | {"kind": "harmful"}
    assert judge_validity.list_judge_cautions([clear, SOUND]) == []
    assert judge_validity.list_judge_cautions([DOUBTFUL, SOUND]) == [
        "The judge's agreement with the humans cannot be told from chance on harmful prompts "
        "(60% [46, 72]).",
        "Whether human-chosen replies pass the threshold more often than human-rejected ones "
        "cannot be told on harmful prompts (+12 [−3, +26] points).",
    ]


def test_a_judge_that_is_worse_than_chance_has_cautions_of_its_own():
    """An interval below 50%, or below zero, is more than a doubt."""
    opposed = DOUBTFUL | {"agreement": 30.0, "low": 19.1, "high": 43.8}
    opposed |= {"youden": -22.0, "youden_low": -36.0, "youden_high": -5.4}
    assert judge_validity.list_judge_cautions([opposed, SOUND]) == [
        "The judge agrees with the humans significantly less often than a coin would on harmful "
        "prompts (30% [19, 44]).",
        "Human-chosen replies pass the threshold significantly less often than human-rejected ones "
        "on harmful prompts (−22 [−36, −5] points).",
    ]
    both = judge_validity.list_judge_cautions([opposed, DOUBTFUL | {"kind": "helpful"}])
    assert len(both) == 4
    at_chance = opposed | {"high": 50.0, "youden_high": 0.0}
    doubts = judge_validity.list_judge_cautions([at_chance, SOUND])
    assert ["cannot be told" in sentence for sentence in doubts] == [True, True]


def test_swapped_human_replies_make_a_judge_worse_than_chance():
    """A clear order of the replies is a clear caution once chosen and rejected are exchanged."""
    low, high = [-6.0] * 20, [1.0] * 20
    rewards = {"Base": (low, low), CHOSEN: (low, high), REJECTED: (high, low)}
    sentences = judge_validity.list_judge_cautions(check(make_answers(rewards)))
    assert len(sentences) == 2
    for sentence in sentences:
        assert "significantly less often" in sentence
        assert "on harmful prompts" in sentence


def test_cautions_say_where_nothing_is_known():
    (nowhere,) = judge_validity.list_judge_cautions([])
    assert nowhere == (
        "Whether the judge agrees with humans is unknown here, since no human replies were scored."
    )
    (on_one,) = judge_validity.list_judge_cautions([SOUND])
    assert on_one == (
        "Whether the judge agrees with humans is unknown on harmful prompts, since no human "
        "replies to them were scored."
    )
