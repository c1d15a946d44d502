"""Hold a second judge's rewards of the same answers against those of the first judge.

The rewards of two judges have different units, so they are compared by their ranks, by their labels
at thresholds that equally many answers pass, and by the decisions that follow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from posttrain.comparisons import compare, format_difference, format_fixed
from posttrain.conclusions import list_words, name_measure, name_relations
from posttrain.metrics import (
    KINDS,
    LABELS,
    MEASURES,
    add_estimate,
    kinds_of,
    models_of,
    pivot_passed,
    pivot_rewards,
)
from posttrain.preferences import kappas_of

CHUNK = 500  # bootstrap draws that are ranked at once, which limits the memory

Record = dict[str, Any]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


# ---- statistics


def match_threshold(rewards: np.ndarray, passing: int) -> float:
    """Choose the threshold that as many rewards exceed as pass by another judge.

    Equal rewards pass together or not at all, so that the number may be missed. The nearest one is
    taken then, and of two equally near ones the smaller.

    Args:
        rewards: Rewards of any shape.
        passing: How many of them should be above the threshold.

    Returns:
        A threshold midway between two rewards, or 1 beyond the lowest or the highest one.
    """
    ordered = np.sort(rewards, axis=None)
    values = np.unique(ordered)
    between = (values[:-1] + values[1:]) / 2
    thresholds = np.concatenate([[values[0] - 1], between, [values[-1] + 1]])[::-1]
    above = ordered.size - np.searchsorted(ordered, thresholds, side="right")
    return float(thresholds[np.argmin(np.abs(above - passing))])


def correlate_ranks(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute Spearman's rank correlation of each row of two arrays.

    Args:
        first: Values of shape (rows, answers). Equal ones share their mean rank.
        second: Values of the same shape.

    Returns:
        The correlations, shape (rows,); NaN where all values of a row are equal.
    """
    ranks, others = rankdata(first, axis=1), rankdata(second, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    others -= others.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1) * (others**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return (ranks * others).sum(axis=1) / scale


def compute_kappa(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute Cohen's kappa of each row of two arrays of labels (Cohen 1960).

    Args:
        first: Truth values of shape (rows, answers), whether an answer passes.
        second: Truth values of the same shape.

    Returns:
        The kappas, shape (rows,); NaN where both judges give all answers of a row the same label.
    """
    counts = np.empty((len(first), 2, 2))
    for i, by_first in enumerate((first, ~first)):
        for j, by_second in enumerate((second, ~second)):
            counts[:, i, j] = (by_first & by_second).sum(axis=1)
    return kappas_of(counts)


def redraw_statistic(
    statistic: Statistic, first: np.ndarray, second: np.ndarray, draws: int, seed: Sequence[int]
) -> np.ndarray:
    """Compute a statistic on bootstrap draws of the prompts, each with the answers of all models.

    Args:
        statistic: `correlate_ranks` or `compute_kappa`.
        first: What the first judge says, shape (prompts, models).
        second: What the second judge says, shape (prompts, models).
        draws: The number of draws.
        seed: The seed of the draws.

    Returns:
        The values of the statistic, shape (draws,).
    """
    generator = np.random.default_rng(seed)
    n = len(first)
    values = []
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        chosen = generator.integers(n, size=(size, n))
        rows = [judged[chosen].reshape(size, -1) for judged in (first, second)]
        values.append(statistic(*rows))
    return np.concatenate(values)


# ---- the two judges


def measure_second_judge(
    name: str,
    answers: pd.DataFrame,
    scores: Sequence[Mapping[str, Any]],
    draws: int,
    seed: int,
) -> Record:
    """Measure how far a second judge agrees with the first one, and what it decides.

    On each kind of prompts, the second judge's threshold is the one of `match_threshold`. The
    intervals of Spearman's correlation and of kappa are percentile bootstraps over prompts, during
    which the thresholds stay as they are.

    Args:
        name: The name of the second judge.
        answers: The table of answers with the first judge's rewards and labels.
        scores: The records of second_scores.json.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        A record with `name`; `thresholds`, {"harmless", "helpful"}, which passing answers exceed;
        `agreement`, for each kind of prompts a record with the number of models' `answers`, the
        number that the first (`passed`) and the second judge lets pass (`passed_by_second`), and
        `spearman` and `kappa` with the ends of their 95% intervals, None where they are undefined;
        and `comparisons`, as of `comparisons.compare` without power, by the second judge.
    """
    models = models_of(answers)
    judged = _replace_rewards(answers[answers["model"].isin(models)], scores)
    thresholds, agreement = {}, []
    for kind in kinds_of(answers):
        seeds = [seed, KINDS.index(kind)]
        passed = pivot_passed(answers, kind)[models].to_numpy()
        first = pivot_rewards(answers, kind)[models].to_numpy()
        second = pivot_rewards(judged, kind)[models].to_numpy()
        thresholds[kind] = match_threshold(second, passed.sum())
        passed_by_second = second > thresholds[kind]
        record = {
            "kind": kind,
            "answers": passed.size,
            "passed": int(passed.sum()),
            "passed_by_second": int(passed_by_second.sum()),
        }
        _add_agreement(record, "spearman", correlate_ranks, first, second, draws, seeds)
        _add_agreement(record, "kappa", compute_kappa, passed, passed_by_second, draws, seeds)
        agreement.append(record)
    judged["label"] = _label(judged, thresholds)
    return {
        "name": name,
        "thresholds": {LABELS[kind][0]: threshold for kind, threshold in thresholds.items()},
        "agreement": agreement,
        "comparisons": compare(judged, draws, seed, power=False),
    }


def _replace_rewards(answers: pd.DataFrame, scores: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Put a second judge's rewards in the place of the first one's."""
    rewards = {(score["model"], score["id"]): score["reward"] for score in scores}
    keys = zip(answers["model"], answers["id"])
    return answers.assign(reward=[rewards[key] for key in keys])


def _label(answers: pd.DataFrame, thresholds: Mapping[str, float]) -> list[str]:
    """Label every answer by the threshold of its kind of prompts."""
    labels = []
    for kind, reward in zip(answers["kind"], answers["reward"]):
        passes, fails = LABELS[kind]
        labels.append(passes if reward > thresholds[kind] else fails)
    return labels


def _add_agreement(
    record: Record,
    name: str,
    statistic: Statistic,
    first: np.ndarray,
    second: np.ndarray,
    draws: int,
    seed: Sequence[int],
) -> None:
    """Write a statistic of two judges with its 95% bootstrap interval into a record."""
    (value,) = statistic(first.reshape(1, -1), second.reshape(1, -1))
    interval = {"low": None, "high": None}
    if not np.isfinite(value):
        add_estimate(record, name, None, interval)
        return
    redrawn = redraw_statistic(statistic, first, second, draws, seed)
    ends = np.percentile(redrawn[np.isfinite(redrawn)], [2.5, 97.5])
    add_estimate(record, name, float(value), dict(zip(interval, ends.tolist())))


# ---- tables


def tabulate_agreement(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table of how far two judges agree, a row for each kind of prompts.

    Args:
        measured: The record of `measure_second_judge`.
    """
    rows = []
    for record in measured["agreement"]:
        row = {
            "prompts": record["kind"],
            "answers": record["answers"],
            "pass by the first judge": record["passed"],
            "pass by the second judge": record["passed_by_second"],
            "Spearman's ρ of the rewards": _format_estimate(record, "spearman"),
            "Cohen's κ of the labels": _format_estimate(record, "kappa"),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _format_estimate(record: Mapping[str, Any], name: str) -> str:
    """Write an estimate with its interval."""
    if record[name] is None:
        return "undefined"
    value, low, high = (format_fixed(record[f"{name}{end}"], 2) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def tabulate_decisions(
    compared: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]
) -> pd.DataFrame:
    """Make a table of both judges' decisions, a row for each measure and pair of models.

    Args:
        compared: The records of `comparisons.compare` by the first judge.
        measured: The record of `measure_second_judge`.
    """
    rows = []
    for ours, theirs in zip(compared, measured["comparisons"], strict=True):
        row = {
            "measure": name_measure(ours["measure"]),
            "pair": f"{ours['second']} − {ours['first']}",
            "by the first judge": f"{format_difference(ours)}, {ours['decision']}",
            "by the second judge": f"{format_difference(theirs)}, {theirs['decision']}",
        }
        rows.append(row)
    return pd.DataFrame(rows)


# ---- in words


def explain_thresholds(measured: Mapping[str, Any]) -> list[str]:
    """Say which thresholds were chosen for the second judge, and how many answers pass them.

    Args:
        measured: The record of `measure_second_judge`.
    """
    sentences = []
    for record in measured["agreement"]:
        threshold = measured["thresholds"][LABELS[record["kind"]][0]]
        passing = f"which {record['passed_by_second']} exceed"
        if record["passed_by_second"] != record["passed"]:
            passing += ", the nearest number to it that the second judge's equal rewards allow"
        number = f"{threshold:.4g}".replace("-", "−")
        sentences.append(
            f"On {record['kind']} prompts {record['passed']} of {record['answers']} answers of the "
            f"models pass by the first judge. The threshold of the second judge "
            f"({measured['name']}) is put at {number}, {passing}."
        )
    return sentences


def list_shared_decisions(
    compared: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]
) -> list[str]:
    """Say which significant differences both judges find, and which only one of them.

    Args:
        compared: The records of `comparisons.compare` by the first judge.
        measured: The record of `measure_second_judge`.

    Returns:
        The sentences; none where there is a single model.
    """
    if not compared:
        return []
    both, opposed, first_alone, second_alone = [], [], [], []
    for ours, theirs in zip(compared, measured["comparisons"], strict=True):
        by_first = ours["decision"] == "significant"
        by_second = theirs["decision"] == "significant"
        if by_first and by_second:
            agree = ours["difference"] * theirs["difference"] > 0
            (both if agree else opposed).append(ours)
        elif by_first:
            first_alone.append(ours)
        elif by_second:
            second_alone.append(theirs)
    of_all = f"{len(both)} of {len(compared)} comparisons"
    sentences = ["No difference is significant by both judges with the same sign."]
    if both:
        sentences = [
            "Both judges find these differences significant, with the same sign "
            f"({of_all}): {_relate(both)}."
        ]
    if opposed:
        sentences.append(
            "Both judges find these differences significant, but with opposite signs. By the first "
            f"judge, {_relate(opposed)}."
        )
    if first_alone:
        sentences.append(f"By the first judge alone, {_relate(first_alone)}.")
    if second_alone:
        sentences.append(f"By the second judge alone, {_relate(second_alone)}.")
    return [*sentences, "All of this is said of these trained models only."]


def _relate(significant: Sequence[Mapping[str, Any]]) -> str:
    """Say measure by measure which models are significantly above or below which others."""
    clauses = []
    for measure in MEASURES:
        family = [record for record in significant if record["measure"] == measure]
        if family:
            clauses.append(f"in {name_measure(measure)}, {list_words(name_relations(family))}")
    return "; ".join(clauses)
