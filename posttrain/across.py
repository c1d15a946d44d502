"""Differences between models over several runs: intervals for other trainings and other prompts.

The answers of several runs to the same prompts are a table with the runs as rows and the prompts as
columns. Its mean varies for two reasons: another training would have given other models, and other
prompts would have been answered differently.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from posttrain.comparisons import REWARD_OF_RATE
from posttrain.files import read_json, sha256_of
from posttrain.metrics import (
    KINDS,
    MEASURES,
    RAW,
    Interval,
    models_of,
    mover_mean,
    pivot_passed,
    pivot_rewards,
    table,
)

LABELLED = "classification.json"
UNKNOWN: Interval = {"low": None, "high": None}


# ---- the answers of a run


def read_labelled_answers(folder: Path, known: Mapping[str, str]) -> pd.DataFrame:
    """Read the answers of an evaluated run, with rewards and labels.

    Args:
        folder: the run's folder.
        known: the sha256 of the files from which its metrics.json was made, by name.

    Returns:
        The table of `metrics.table` with the column "label", without reference answers.

    Raises:
        ValueError: if a file is missing, or is not the one of which metrics.json speaks.
    """
    again = f"run eval.ipynb with RUN = {folder.name!r} again"
    for name in (*RAW, LABELLED):
        path = folder / name
        if name not in known:
            raise ValueError(
                f"RUNS: {folder / 'metrics.json'} does not say which {name} it was made with, so "
                f"it is from an older version of eval.ipynb. To compare this run, {again}, which "
                "keeps its answers and rewards."
            )
        if not path.exists():
            raise ValueError(f"RUNS: {path} is missing. Put it back, or {again}.")
        if sha256_of(path) != known[name]:
            raise ValueError(
                f"RUNS: {path} is not the one that metrics.json was made with. Put it back as it "
                f"was, or {again}."
            )
    raw = [read_json(folder / name, list[dict[str, Any]]) for name in RAW]
    answers = table(*raw)
    answers = answers[answers["model"].isin(models_of(answers))]
    labels = {}
    for record in read_json(folder / LABELLED, list[dict[str, Any]]):
        labels[record["model"], record["id"]] = record["label"]
    keys = zip(answers["model"], answers["id"])
    return answers.assign(label=[labels[key] for key in keys])


def subtract_answers(
    runs: Sequence[pd.DataFrame], kind: str, measure: str, first: str, second: str
) -> np.ndarray:
    """List the difference between two models on every prompt in every run.

    Args:
        runs: the answers of each run, from `read_labelled_answers`.
        kind: the kind of prompts.
        measure: one of MEASURES. Rates and CAS are made of labels, other measures of rewards.
        first: the first model.
        second: the second model.

    Returns:
        An array of shape (runs, prompts), second minus first. A difference of labels is 100 where
        only the second model's answer passes, and −100 where only the first model's does.
    """
    is_rate = measure == "CAS" or measure in REWARD_OF_RATE
    rows = []
    for answers in runs:
        values = 100.0 * pivot_passed(answers, kind) if is_rate else pivot_rewards(answers, kind)
        rows.append((values[second] - values[first]).to_numpy())
    return np.array(rows)


# ---- intervals


def t_interval(values: np.ndarray) -> Interval:
    """Compute the 95% confidence interval of a mean by Student's t distribution.

    Args:
        values: array of shape (n,), with two or more values.

    Returns:
        {"low", "high"}, both None if all values are equal, since their spread is then unknown.
    """
    if np.ptp(values) == 0:
        return dict(UNKNOWN)
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"low": float(values.mean() - half), "high": float(values.mean() + half)}


def interval_over_prompts(differences: np.ndarray, is_rate: bool) -> Interval:
    """Compute the 95% interval of a mean difference for other prompts and the same models.

    This is the t interval of the prompts' mean differences over the runs. For a rate, a prompt that
    is gained in all runs and one that is lost in all runs are added, as `paired_difference` does
    for a single run (Bonett and Price 2012), so that the interval has a width even if no label
    differs.

    Args:
        differences: of shape (runs, prompts), as `subtract_answers` gives them.
        is_rate: whether they are differences of labels.
    """
    means = differences.mean(axis=0)
    if not is_rate:
        return t_interval(means)
    interval = t_interval(np.append(means, [100.0, -100.0]))
    return {"low": max(-100.0, interval["low"]), "high": min(100.0, interval["high"])}


def interval_over_both(
    mean: float, over_runs: Interval, over_prompts: Interval, is_rate: bool
) -> Interval:
    """Compute the 95% interval of a mean difference for other trainings and other prompts.

    The distances from the mean to the ends of both intervals are combined as the sides of a right
    triangle. In the crossed random effects model, in which runs, prompts and what remains are
    independent and normal, the variance of the mean is (MS_runs + MS_prompts - MS_rest) / (runs x
    prompts) in terms of the expected mean squares. The squared half-widths are t^2 MS_runs / (runs
    x prompts) and t^2 MS_prompts / (runs x prompts), so their sum covers the mean in at least 95%
    of cases whatever the variances are (Banerjee 1961; docs/statistics.md has the proof).

    Args:
        mean: the mean difference.
        over_runs: the t interval over the runs.
        over_prompts: of `interval_over_prompts`, for CAS combined over both kinds of prompts.
        is_rate: whether the difference is one of rates, which lies between −100 and 100.

    Returns:
        {"low", "high"}, both None if one of the two intervals is unknown.
    """
    if over_runs["low"] is None or over_prompts["low"] is None:
        return dict(UNKNOWN)
    below = np.hypot(mean - over_runs["low"], mean - over_prompts["low"])
    above = np.hypot(over_runs["high"] - mean, over_prompts["high"] - mean)
    low, high = float(mean - below), float(mean + above)
    if is_rate:
        low, high = max(-100.0, low), min(100.0, high)
    return {"low": low, "high": high}


def intervals_of_mean(
    runs: Sequence[pd.DataFrame], measure: str, first: str, second: str
) -> dict[str, Interval]:
    """Compute the three 95% intervals of the mean difference between two models over runs.

    Args:
        runs: the answers of each run, from `read_labelled_answers`.
        measure: one of MEASURES.
        first: the first model.
        second: the second model.

    Returns:
        {"runs", "prompts", "both"}: what is allowed to vary, and the ends of the interval.
    """
    kinds = [MEASURES[measure]] if MEASURES[measure] else KINDS
    differences = [subtract_answers(runs, kind, measure, first, second) for kind in kinds]
    return combine_kinds(differences, measure == "CAS" or measure in REWARD_OF_RATE)


def combine_kinds(differences: Sequence[np.ndarray], is_rate: bool) -> dict[str, Interval]:
    """Compute the three intervals from differences on one kind of prompts, or on both for CAS.

    Both kinds of prompts are asked of the same models, so that a run's mean over both counts as one
    value. The prompts of both kinds are independent, and MOVER combines their intervals.

    Args:
        differences: for each kind an array of shape (runs, prompts).
        is_rate: whether they are differences of labels.

    Returns:
        As `intervals_of_mean`.
    """
    values = np.mean([part.mean(axis=1) for part in differences], axis=0)
    over_runs = t_interval(values)
    over_prompts = interval_over_prompts(differences[0], is_rate)
    if len(differences) > 1:
        of_kinds = [interval_over_prompts(part, is_rate) for part in differences]
        over_prompts = mover_mean([part.mean() for part in differences], of_kinds)
    both = interval_over_both(float(values.mean()), over_runs, over_prompts, is_rate)
    return {"runs": over_runs, "prompts": over_prompts, "both": both}
