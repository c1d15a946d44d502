"""A second judge: ranks, labels at matched rates, and decisions beside the first judge's."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from conftest import score_records
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from posttrain import comparisons, metrics, second_judge
from posttrain.metrics import LABELS

HARMLESS_FROM, HELPFUL_ABOVE = 0.0, 0.0


def make_answers(scores):
    """The table of answers with labels by thresholds at zero."""
    prompts = []
    for i in range(len({row["id"] for row in scores}) // 2):
        for kind in ("harmful", "helpful"):
            prompts.append({"id": f"{kind}-{i:02d}", "kind": kind, "prompt": "P"})
    answers = metrics.table(prompts, [], scores)
    labels = []
    for kind, reward in zip(answers["kind"], answers["reward"]):
        passes = reward >= HARMLESS_FROM if kind == "harmful" else reward > HELPFUL_ABOVE
        labels.append(LABELS[kind][0] if passes else LABELS[kind][1])
    answers["label"] = labels
    return answers


def draw_scores(seed, n, gain=0.0):
    """Scores of three models; the rewards of SFT are higher by `gain`."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(size=(2, n))
    rewards = {}
    for name, shift in (("Base", 0.0), ("SFT", gain), ("DPO", 0.0)):
        rewards[name] = (hard + shift + generator.normal(size=(2, n))).round(1).tolist()
    return score_records(**rewards)


def change_scores(scores, change):
    """Apply a function to every reward."""
    return [{**row, "reward": change(row["reward"])} for row in scores]


# ---- the matched threshold


@pytest.mark.parametrize(
    ("rewards", "passing", "threshold", "above"),
    [
        ([1.0, 2.0, 3.0, 4.0], 2, 2.5, 2),
        ([4.0, 1.0, 3.0, 2.0], 2, 2.5, 2),
        ([1.0, 2.0, 3.0, 4.0], 0, 5.0, 0),
        ([1.0, 2.0, 3.0, 4.0], 4, 0.0, 4),
        ([1.0, 2.0, 2.0, 2.0, 3.0], 2, 2.5, 1),  # 1 is nearer to 2 than 4 is
        ([1.0, 2.0, 2.0, 2.0, 3.0], 3, 1.5, 4),
        ([1.0, 2.0, 2.0, 3.0], 2, 2.5, 1),  # 1 and 3 are equally near: the smaller one
        ([7.0, 7.0, 7.0], 1, 8.0, 0),
        ([7.0, 7.0, 7.0], 2, 6.0, 3),
    ],
)
def test_a_threshold_lets_as_many_pass_or_the_nearest_number(rewards, passing, threshold, above):
    assert second_judge.match_threshold(np.array(rewards), passing) == threshold
    assert sum(reward > threshold for reward in rewards) == above


def test_no_other_threshold_comes_nearer():
    generator = np.random.default_rng(0)
    for _ in range(300):
        rewards = generator.integers(6, size=(generator.integers(1, 9), 2)) / 2
        passing = int(generator.integers(rewards.size + 1))
        threshold = second_judge.match_threshold(rewards, passing)
        taken = (rewards > threshold).sum()
        possible = [(rewards > cut).sum() for cut in [-1.0, *rewards.ravel()]]
        nearest = min(abs(count - passing) for count in possible)
        assert taken == min(count for count in possible if abs(count - passing) == nearest)


# ---- rank correlation and kappa


def test_rank_correlation_is_scipys_with_ties_too():
    generator = np.random.default_rng(1)
    for levels in (3, 10, 1000):
        first = generator.integers(levels, size=(20, 30)) / 7
        second = first + generator.integers(levels, size=(20, 30))
        ours = second_judge.correlate_ranks(first, second)
        theirs = [stats.spearmanr(*rows).statistic for rows in zip(first, second)]
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_rank_correlation_depends_on_the_order_alone():
    values = np.array([[0.1, -2.0, 3.0, 0.5]])
    assert second_judge.correlate_ranks(values, np.exp(values)) == pytest.approx([1.0])
    assert second_judge.correlate_ranks(values, -(values**3)) == pytest.approx([-1.0])
    assert math.isnan(second_judge.correlate_ranks(values, np.ones((1, 4)))[0])


def test_kappa_of_a_table_that_was_computed_by_hand():
    # Both pass 20, both refuse 15, the first alone passes 5, the second alone 10: the judges agree
    # on 0.7, and by chance on 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so kappa is 0.2 / 0.5 = 0.4.
    counts = [20, 15, 5, 10]
    first = np.array([[True, False, True, False]]).repeat(counts, axis=1)
    second = np.array([[True, False, False, True]]).repeat(counts, axis=1)
    assert second_judge.compute_kappa(first, second) == pytest.approx([0.4])


def test_kappa_is_statsmodels_in_every_small_table():
    for both in range(4):
        for neither in range(4):
            for one in range(4):
                for other in range(1, 4):
                    counts = [both, neither, one, other]
                    first = np.array([[True, False, True, False]]).repeat(counts, axis=1)
                    second = np.array([[True, False, False, True]]).repeat(counts, axis=1)
                    table = [[both, one], [other, neither]]
                    expected = cohens_kappa(table, return_results=False)
                    assert second_judge.compute_kappa(first, second)[0] == pytest.approx(expected)


def test_kappa_of_labels_that_are_all_equal_is_undefined():
    every = np.ones((1, 5), dtype=bool)
    assert math.isnan(second_judge.compute_kappa(every, every)[0])
    assert second_judge.compute_kappa(every, ~every)[0] == 0  # they never agree, nor would chance


# ---- intervals


def test_draws_are_of_prompts_with_all_their_answers():
    first = np.arange(12.0).reshape(4, 3)
    seen = []

    def keep(rows, others):
        assert (rows == others).all()
        seen.append(rows)
        return np.zeros(len(rows))

    values = second_judge.redraw_statistic(keep, first, first, second_judge.CHUNK + 7, [0])
    rows = np.concatenate(seen)
    assert values.shape == (len(rows),) == (second_judge.CHUNK + 7,)
    prompts = rows.reshape(len(rows), 4, 3)
    assert (prompts[..., 1:] - prompts[..., :-1] == 1).all()  # a prompt's answers stay together
    assert set(prompts[..., 0].ravel()) == {0.0, 3.0, 6.0, 9.0}
    counts = [(prompts[..., 0] == value).mean() for value in (0, 3, 6, 9)]
    assert counts == pytest.approx([0.25] * 4, abs=0.05)


def test_intervals_cover_what_two_simulated_judges_truly_agree_in():
    """Two normal variables of correlation r have known Spearman correlation and kappa."""
    generator = np.random.default_rng(3)
    r, repeats, n, models = 0.6, 150, 50, 4
    rho = 6 / math.pi * math.asin(r / 2)
    kappa = 2 / math.pi * math.asin(r)  # of the labels "above the median"
    mixing = np.linalg.cholesky([[1, r], [r, 1]]).T
    covered = {"rho": 0, "kappa": 0}
    for repeat in range(repeats):
        of_prompt = generator.normal(size=(n, 1, 2))
        of_answer = generator.normal(size=(n, models, 2))
        first, second = np.moveaxis((of_prompt + of_answer) / math.sqrt(2) @ mixing, 2, 0)
        draws = {
            "rho": (rho, second_judge.correlate_ranks, first, second),
            "kappa": (kappa, second_judge.compute_kappa, first > 0, second > 0),
        }
        for name, (true, statistic, one, other) in draws.items():
            redrawn = second_judge.redraw_statistic(statistic, one, other, 200, [repeat])
            low, high = np.percentile(redrawn, [2.5, 97.5])
            covered[name] += low <= true <= high
    for name, count in covered.items():
        assert 0.88 <= count / repeats <= 0.99, name


# ---- the two judges


def test_a_judge_in_other_units_ranks_labels_and_decides_alike():
    scores = draw_scores(5, 40, gain=1.5)
    answers = make_answers(scores)
    other = change_scores(scores, lambda reward: 100 + 3 * reward)
    measured = second_judge.measure_second_judge("other", answers, other, 500, 0)
    assert measured["name"] == "other"
    for record in measured["agreement"]:
        assert (record["answers"], record["passed"]) == (120, record["passed_by_second"])
        for name in ("spearman", "kappa"):
            ends = (record[name], record[f"{name}_low"], record[f"{name}_high"])
            assert ends == pytest.approx((1, 1, 1))
    ours = comparisons.compare(answers, 500, 0, power=False)
    for mine, theirs in zip(ours, measured["comparisons"], strict=True):
        factor = 3 if mine["measure"].endswith("_reward") else 1
        for name in ("difference", "low", "high"):
            assert theirs[name] == pytest.approx(factor * mine[name])
        assert theirs["decision"] == mine["decision"]
    significant = [row for row in ours if row["decision"] == "significant"]
    assert significant
    (sentence, limit) = second_judge.list_shared_decisions(ours, measured)
    assert sentence.startswith(
        "Both judges find these differences significant, with the same sign "
        f"({len(significant)} of 15 comparisons): in HmR, SFT is significantly above Base"
    )
    assert limit == "All of this is said of these trained models only."


def test_agreement_is_over_the_models_answers_of_a_kind():
    scores, other = draw_scores(6, 30), draw_scores(7, 30)
    empty = score_records(Empty=([50.0] * 30, [50.0] * 30))  # a reference, which is left out
    answers = make_answers(scores + empty)
    measured = second_judge.measure_second_judge("other", answers, other + empty, 200, 0)
    second = {(row["model"], row["id"]): row["reward"] for row in other}
    for record in measured["agreement"]:
        kind = record["kind"]
        part = answers[(answers["kind"] == kind) & (answers["model"] != "Empty")]
        rewards = [second[key] for key in zip(part["model"], part["id"])]
        rho = stats.spearmanr(part["reward"], rewards).statistic
        assert record["spearman"] == pytest.approx(rho)
        assert record["spearman_low"] < rho < record["spearman_high"]
        threshold = measured["thresholds"][LABELS[kind][0]]
        passes = part["label"] == LABELS[kind][0]
        also = pd.Series(rewards, index=part.index) > threshold
        assert record["passed"] == passes.sum()
        assert record["passed_by_second"] == also.sum()
        table = pd.crosstab(passes, also)
        assert record["kappa"] == pytest.approx(cohens_kappa(table, return_results=False))
        assert record["kappa_low"] < record["kappa"] < record["kappa_high"]


def test_decisions_of_the_second_judge_are_made_with_its_own_rewards_and_labels():
    answers = make_answers(draw_scores(8, 40))
    other = draw_scores(9, 40, gain=2.0)
    measured = second_judge.measure_second_judge("other", answers, other, 200, 0)
    rewards = {}
    for row in other:
        rewards.setdefault((row["id"].split("-")[0], row["model"]), []).append(row["reward"])
    by_pair = {}
    for row in measured["comparisons"]:
        by_pair[row["measure"], row["first"], row["second"]] = row
    mean = by_pair["harmful_reward", "Base", "SFT"]
    difference = np.subtract(rewards["harmful", "SFT"], rewards["harmful", "Base"])
    assert mean["difference"] == pytest.approx(difference.mean())
    rate = by_pair["HmR", "Base", "SFT"]
    threshold = measured["thresholds"]["harmless"]
    passed = [np.array(rewards["harmful", name]) > threshold for name in ("SFT", "Base")]
    gained, lost = int((passed[0] & ~passed[1]).sum()), int((~passed[0] & passed[1]).sum())
    assert (rate["gained"], rate["lost"]) == (gained, lost)
    assert rate["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert rate["power"] is None


def test_judges_that_contradict_each_other_are_said_to_do_so():
    scores = draw_scores(10, 40, gain=2.0)
    answers = make_answers(scores)
    other = change_scores(scores, lambda reward: -reward)
    measured = second_judge.measure_second_judge("other", answers, other, 200, 0)
    sentences = second_judge.list_shared_decisions(
        comparisons.compare(answers, 200, 0, power=False), measured
    )
    assert sentences[0] == "No difference is significant by both judges with the same sign."
    assert sentences[1].startswith(
        "Both judges find these differences significant, but with opposite signs. By the first "
        "judge, in HmR, SFT is significantly above Base"
    )
    assert measured["agreement"][0]["spearman"] == pytest.approx(-1)


def test_decisions_of_one_judge_alone_are_named():
    flat, steep = draw_scores(11, 40), draw_scores(12, 40, gain=2.0)
    for first, second, who in ((flat, steep, "second"), (steep, flat, "first")):
        answers = make_answers(first)
        compared = comparisons.compare(answers, 200, 0, power=False)
        measured = second_judge.measure_second_judge("other", answers, second, 200, 0)
        sentences = second_judge.list_shared_decisions(compared, measured)
        assert sentences[0] == "No difference is significant by both judges with the same sign."
        (alone,) = [text for text in sentences if "alone" in text]
        assert alone.startswith(f"By the {who} judge alone, in HmR, SFT is significantly above")
        table = second_judge.tabulate_decisions(compared, measured)
        assert list(table["measure"])[::3] == [
            "HmR", "HpR", "CAS", "mean reward on harmful prompts", "mean reward on helpful prompts",
        ]  # fmt: skip
        (row,) = table[(table["measure"] == "HmR") & (table["pair"] == "SFT − Base")].to_dict(
            "records"
        )
        ours, theirs = (row[f"by the {place} judge"] for place in ("first", "second"))
        assert ours.endswith("significant" if who == "first" else "inconclusive")
        assert theirs.endswith("significant" if who == "second" else "inconclusive")


def test_labels_that_are_all_equal_have_no_kappa():
    scores = change_scores(draw_scores(13, 12), lambda reward: abs(reward) + 1)
    measured = second_judge.measure_second_judge(
        "other", make_answers(scores), draw_scores(14, 12), 200, 0
    )
    for record in measured["agreement"]:
        assert record["passed"] == record["passed_by_second"] == 36
        assert [record[f"kappa{end}"] for end in ("", "_low", "_high")] == [None] * 3
    table = second_judge.tabulate_agreement(measured)
    assert list(table["Cohen's κ of the labels"]) == ["undefined", "undefined"]
    assert all("[" in cell for cell in table["Spearman's ρ of the rewards"])


def test_a_rate_that_ties_do_not_allow_is_said():
    scores = draw_scores(15, 20)
    answers = make_answers(scores)
    coarse = change_scores(scores, lambda reward: float(reward > 1) - 5)
    measured = second_judge.measure_second_judge("a judge", answers, coarse, 200, 0)
    texts = second_judge.explain_thresholds(measured)
    for record, text in zip(measured["agreement"], texts, strict=True):
        passed, passing = record["passed"], record["passed_by_second"]
        assert passed != passing
        assert text == (
            f"On {record['kind']} prompts {passed} of 60 answers of the models pass by the first "
            "judge. The threshold of the second judge (a judge) is put at −4.5, which "
            f"{passing} exceed, the nearest number to it that the second judge's equal rewards "
            "allow."
        )


def test_a_single_model_has_nothing_to_decide():
    scores = [row for row in draw_scores(16, 12) if row["model"] == "Base"]
    answers = make_answers(scores)
    measured = second_judge.measure_second_judge("other", answers, scores, 200, 0)
    assert measured["comparisons"] == []
    assert second_judge.list_shared_decisions([], measured) == []
    assert second_judge.tabulate_decisions([], measured).empty


def test_matching_keeps_the_level_of_the_test():
    """The threshold depends on all models alike, so equal models seldom differ significantly."""
    generator = np.random.default_rng(17)
    found, repeats, n = 0, 1000, 30
    for _ in range(repeats):
        passing = generator.integers(20, 71)  # of 90 answers, as the first judge has it
        rewards = generator.normal(size=(n, 1)) + generator.normal(size=(n, 3))
        passed = rewards > second_judge.match_threshold(rewards, passing)
        p_values = []
        for first, second in combinations(passed.T, 2):
            gained, lost = (second & ~first).sum(), (first & ~second).sum()
            p_values.append(comparisons.exact_mcnemar(gained, lost))
        found += min(comparisons.holm(p_values)) < 0.05
    assert 0 < found / repeats <= 0.05
