"""Check the judge, and test what else may explain the rates.

Other explanations are the threshold, the length of the responses, and responses that run on into a
human turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from posttrain import metrics
from posttrain.behaviour import add_properties
from posttrain.comparisons import RATE_ON, compare_cas, compare_rates
from posttrain.judge_validity import list_judge_cautions
from posttrain.metrics import KINDS, kinds_of, models_of, pivot, pivot_passed, pivot_rewards
from posttrain.other_thresholds import passes

FIXED_ANSWERS = {  # reference: what it is called at the beginning of a sentence
    "Refusal": "One fixed refusal",
    "Empty": "An empty answer",
    "Not understood": "The fixed answer “I'm sorry, I don't understand.”",
}
THRESHOLDS = 200  # number of thresholds at which `sweep` computes the rates

Record = dict[str, Any]


# ---- what limits the rates


def cautions(
    answers: pd.DataFrame, judge: Sequence[Mapping[str, Any]], lengths: pd.DataFrame
) -> list[str]:
    """Say in sentences which problems limit what the rates mean.

    Args:
        answers: The table of answers with its labels.
        judge: The records of `judge_validity.check_judge`.
        lengths: The table of `length_correlation`.

    Returns:
        A sentence for each of these problems that occurs: a kind of prompts is missing; the judge's
        agreement with humans is unknown or not above chance, or its threshold does not tell their
        replies apart or favours the rejected ones; a fixed answer rates as high as a model or
        higher than the human replies; the reward increases with the length of a response.
    """
    return [
        *_list_unknown_measures(answers),
        *list_judge_cautions(judge, kinds_of(answers)),
        *_reference_cautions(answers),
        *_length_cautions(lengths),
    ]


def _list_unknown_measures(answers: pd.DataFrame) -> list[str]:
    """Say which rates cannot be computed where all prompts are of one kind."""
    kinds = kinds_of(answers)
    unknown = [rate for kind, rate in RATE_ON.items() if kind not in kinds]
    if not unknown:
        return []
    return [
        f"All prompts are {kinds[0]} ones, so {unknown[0]} and CAS cannot be computed: nothing is "
        "known here of the models' answers to other prompts."
    ]


def _reference_cautions(answers: pd.DataFrame) -> list[str]:
    """Say which models and humans a fixed answer, which no model wrote, reaches or surpasses."""
    passed = {kind: pivot_passed(answers, kind) for kind in kinds_of(answers)}
    # Of answers to one kind of prompts, their rate stands in for CAS.
    measure = "a CAS" if len(passed) == len(KINDS) else f"an {RATE_ON[next(iter(passed))]}"
    means = 100 / len(passed) * sum(table.mean() for table in passed.values())
    sentences = []
    for name, noun in FIXED_ANSWERS.items():
        if name not in means:
            continue
        below, near = [], []
        for model in models_of(answers):
            difference = _compare_over_kinds(passed, name, model)
            if difference["high"] < 0:
                below.append(model)
            elif difference["low"] <= 0:
                near.append(model)
        clauses = []
        if below:
            clauses.append(f"{', '.join(below)} {_be(below)} clearly below it")
        if near:
            clauses.append(f"{', '.join(near)} {_be(near)} not clearly above it")
        if "Human chosen" in means and means[name] > means["Human chosen"]:
            clauses.append(f"the human-chosen replies are below it ({means['Human chosen']:.0f})")
        if clauses:
            sentences.append(
                f"{noun} to every prompt has {measure} of {means[name]:.0f}: "
                f"{', and '.join(clauses)}."
            )
    return sentences


def _compare_over_kinds(passed: Mapping[str, pd.DataFrame], first: str, second: str) -> Record:
    """Compare two models in CAS, or in the one rate that there is."""
    if len(passed) == len(KINDS):
        return compare_cas(passed, first, second, level=None)
    return compare_rates(*passed.values(), first, second, level=None)


def _be(names: Sequence[str]) -> str:
    """Choose the verb for one name or several."""
    return "is" if len(names) == 1 else "are"


def _length_cautions(lengths: pd.DataFrame) -> list[str]:
    """Say for which models the reward increases with the length of the response."""
    sentences = []
    for kind in lengths:
        strong = lengths[kind][lengths[kind] > 0.5]
        if len(strong):
            values = ", ".join(f"{model} {value:.2f}" for model, value in strong.items())
            sentences.append(
                f"On {kind} prompts the reward follows the length of the answer (Spearman's "
                f"correlation: {values})."
            )
    return sentences


# ---- running on into a human turn


def running_on(answers: pd.DataFrame, draws: int, seed: int) -> list[Record]:
    """Compare the responses that opened a human turn with those of the same model that did not.

    Args:
        answers: The table of answers with its labels.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        One record for each kind, model and group of responses that is not empty: kind, model,
        human_turn (True or False), the number of prompts, the mean reward and the rate in percent,
        with the ends of the 95% intervals of both. The interval of a mean reward is the bootstrap
        over all prompts of the kind, in which the size of the group varies. The list is empty if no
        response opened a human turn.
    """
    answers = add_properties(answers)
    if not answers["human_turn"].any():
        return []
    records = []
    for kind in kinds_of(answers):
        rewards = pivot_rewards(answers, kind)
        passed = pivot_passed(answers, kind)
        turned = pivot(answers, kind, "human_turn")
        n = len(rewards)
        weights = metrics.redraw_prompts(n, draws, [seed, KINDS.index(kind)]) / n
        for model in rewards.columns:
            ran_on = turned[model].to_numpy(dtype=float)
            _, *means = _weigh_groups(weights, ran_on, rewards[model].to_numpy())
            for group, redrawn in zip((True, False), means):
                chosen = turned[model] == group
                if chosen.any():
                    values, labels = rewards[model][chosen], passed[model][chosen]
                    record = {"kind": kind, "model": model, "human_turn": group}
                    records.append(record | _describe_group(values, labels, redrawn))
    return records


def _describe_group(rewards: pd.Series, passed: pd.Series, redrawn: np.ndarray) -> Record:
    """Compute the mean reward and the rate of a group of responses, with 95% intervals.

    Args:
        rewards: The rewards of the group.
        passed: Which of its answers pass.
        redrawn: Bootstrap draws of its mean reward, NaN where no response was of the group.
    """
    n = len(rewards)
    record = {"prompts": n}
    values = rewards.to_numpy()
    interval = metrics.percentiles(values, redrawn[np.isfinite(redrawn)])
    metrics.add_estimate(record, "reward", float(values.mean()), interval)
    successes = int(passed.sum())
    rate_interval = metrics.wilson(successes, n)
    metrics.add_estimate(record, "rate", 100 * successes / n, rate_interval)
    return record


def gain_by_not_running_on(answers: pd.DataFrame, draws: int, seed: int) -> list[Record]:
    """Split each model's gain in mean reward over the baseline by whether responses run on.

    The responses form two groups, those that opened a human turn and those that did not. Following
    Kitagawa 1955, the difference of two mean rewards is split into two parts. The first comes from
    the changed shares of the groups, with each group's reward averaged over both models. The rest
    comes from changed rewards within the groups. The split describes an association and not an
    effect, since no response was observed both running on and stopped.

    Args:
        answers: The table of answers.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        One record for each kind and each model except the baseline: kind, model, gain and by_share
        (the first part), with the ends of their 95% bootstrap intervals over prompts. A model is
        left out if it or the baseline has no response in one of the groups.
    """
    answers = add_properties(answers)
    if not answers["human_turn"].any():
        return []
    baseline, *trained = models_of(answers)
    records = []
    for kind in kinds_of(answers):
        rewards = pivot_rewards(answers, kind)
        turned = pivot(answers, kind, "human_turn")
        n = len(rewards)
        # The first row has every prompt once and gives the estimate. The others are redrawn.
        redrawn = metrics.redraw_prompts(n, draws, [seed, KINDS.index(kind)])
        weights = np.vstack([np.ones((1, n)), redrawn]) / n
        groups = {}
        for model in rewards.columns:
            ran_on = turned[model].to_numpy(dtype=float)
            groups[model] = _weigh_groups(weights, ran_on, rewards[model].to_numpy())
        for model in trained:
            gain = weights @ (rewards[model] - rewards[baseline]).to_numpy()
            share_0, with_0, without_0 = groups[baseline]
            share_1, with_1, without_1 = groups[model]
            contrast = (with_0 + with_1) / 2 - (without_0 + without_1) / 2
            by_share = (share_1 - share_0) * contrast
            if np.isfinite(by_share[0]):
                record = {"kind": kind, "model": model}
                _add_bootstrap(record, "gain", gain[0], gain[1:])
                _add_bootstrap(record, "by_share", by_share[0], by_share[1:])
                records.append(record)
    return records


def _weigh_groups(
    weights: np.ndarray, ran_on: np.ndarray, rewards: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the share of responses that ran on, and the mean rewards of both groups.

    Args:
        weights: Weights of shape (draws, prompts); each row adds up to 1.
        ran_on: 1 for a response that ran on and 0 for others, of shape (prompts,).
        rewards: Rewards of shape (prompts,).

    Returns:
        The share of responses that ran on, their mean reward, and the mean reward of the others,
        each of shape (draws,). A mean over no response is NaN.
    """
    share = weights @ ran_on
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_with = weights @ (ran_on * rewards) / share
        # Not divided by 1 - share, which rounding may keep from 0 where no response is left.
        mean_without = weights @ ((1 - ran_on) * rewards) / (weights @ (1 - ran_on))
    return share, mean_with, mean_without


def _add_bootstrap(record: Record, name: str, value: float, redrawn: np.ndarray) -> None:
    """Write an estimate and its 95% percentile interval into a record, ignoring undefined draws."""
    low, high = np.percentile(redrawn[np.isfinite(redrawn)], [2.5, 97.5]).tolist()
    metrics.add_estimate(record, name, float(value), {"low": low, "high": high})


# ---- thresholds and length


def sweep(answers: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Compute the models' rates at 200 thresholds that span the range of their rewards.

    Args:
        answers: The table of answers.
        kind: The kind of prompts.

    Returns:
        A table of rates in percent, with the thresholds as index and the models as columns.
    """
    rewards = pivot_rewards(answers, kind)[models_of(answers)]
    thresholds = np.linspace(rewards.min(axis=None), rewards.max(axis=None), THRESHOLDS)
    rates = [100 * passes(rewards, kind, threshold).mean() for threshold in thresholds]
    return pd.DataFrame(rates, index=thresholds)


def length_correlation(answers: pd.DataFrame) -> pd.DataFrame:
    """Compute Spearman's correlation between the reward and the length of a response.

    Args:
        answers: The table of answers.

    Returns:
        A table with a row for each model whose responses are known and a column for each kind. The
        length is in tokens if they are known and otherwise in words. A correlation is NaN if the
        rewards or the lengths are constant.
    """
    answers = add_properties(answers)
    models = models_of(answers)
    answers["length"] = answers["tokens"]
    if answers["tokens"].isna().any():
        answers["length"] = answers["response"].str.split().str.len()
    correlations = pd.DataFrame(index=models, columns=kinds_of(answers), dtype=float)
    for kind in correlations:
        for model in models:
            part = answers[(answers["kind"] == kind) & (answers["model"] == model)]
            ranks = part[["reward", "length"]].rank()
            correlations.loc[model, kind] = ranks.corr().loc["reward", "length"]
    return correlations
