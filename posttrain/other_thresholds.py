"""What the rates and the decisions about them would be at other thresholds than the chosen ones."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import binom

from posttrain.comparisons import FEWEST_PROMPTS
from posttrain.metrics import Z, kinds_of, models_of, pivot_rewards
from posttrain.power import ALPHA

REACH = 1.0  # how far beyond the chosen thresholds others are tried, in units of reward
STEPS = 301  # how many thresholds are tried, evenly spaced

Record = dict[str, Any]
Rewards = TypeVar("Rewards", pd.Series, pd.DataFrame, np.ndarray)


def passes(rewards: Rewards, kind: str, threshold: float | np.ndarray) -> Rewards:
    """Tell which rewards pass: from the threshold on if harmful prompts were answered, else above.

    Args:
        rewards: The rewards of answers.
        kind: The kind of prompts that they answer.
        threshold: The threshold, or an array of thresholds to which the rewards are broadcast.
    """
    return rewards >= threshold if kind == "harmful" else rewards > threshold


def decide_at_thresholds(
    answers: pd.DataFrame, chosen: Mapping[str, float]
) -> dict[str, pd.DataFrame]:
    """Decide at many thresholds which pairs of models differ significantly in their rates.

    The thresholds go from one unit of reward below the lower of the two chosen ones to one unit
    above the higher one. A decision is made as in `comparisons.decide`: by McNemar's exact test
    with Holm's correction over the pairs at this threshold, and by the interval of the difference.
    The decisions are not corrected over the thresholds.

    Args:
        answers: The table of answers.
        chosen: {kind: threshold}.

    Returns:
        {kind: table} with the thresholds as index and the pairs (first, second) as columns. A cell
        is 1 if the second model's rate is significantly above the first one's, -1 if it is
        significantly below, and 0 otherwise.
    """
    low, high = min(chosen.values()) - REACH, max(chosen.values()) + REACH
    thresholds = np.linspace(low, high, STEPS)
    pairs = list(combinations(models_of(answers), 2))
    decided = {}
    for kind in kinds_of(answers):
        rewards = pivot_rewards(answers, kind)
        passed = {}
        for model in models_of(answers):
            column = rewards[model].to_numpy()
            passed[model] = passes(column[None, :], kind, thresholds[:, None])
        gained = np.zeros((STEPS, len(pairs)), dtype=int)
        lost = np.zeros_like(gained)
        for column, (first, second) in enumerate(pairs):
            gained[:, column] = (passed[second] & ~passed[first]).sum(axis=1)
            lost[:, column] = (passed[first] & ~passed[second]).sum(axis=1)
        significant = _find_significant(gained, lost, len(rewards))
        signs = np.where(significant, np.sign(gained - lost), 0)
        columns = pd.MultiIndex.from_tuples(pairs, names=["first", "second"]) if pairs else []
        decided[kind] = pd.DataFrame(signs, index=thresholds, columns=columns)
    return decided


def _find_significant(gained: np.ndarray, lost: np.ndarray, n: int) -> np.ndarray:
    """Find the significant differences, for thresholds as rows and pairs of models as columns."""
    if n < FEWEST_PROMPTS:
        return np.zeros_like(gained, dtype=bool)
    fewer = np.minimum(gained, lost)
    p_values = np.minimum(1, 2 * binom.cdf(fewer, gained + lost, 0.5))
    # The interval of `metrics.paired_difference` excludes zero.
    gain, loss = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * np.sqrt((gain + loss - (gain - loss) ** 2) / (n + 2))
    return (_adjust_rows(p_values) < ALPHA) & (np.abs(gain - loss) > half)


def _adjust_rows(p_values: np.ndarray) -> np.ndarray:
    """Correct the p-values of each row by Holm's method, as `comparisons.holm` does."""
    tests = p_values.shape[1]
    order = np.argsort(p_values, axis=1, kind="stable")
    ranked = np.take_along_axis(p_values, order, axis=1) * np.arange(tests, 0, -1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(ranked, axis=1), axis=1)
    return np.minimum(1, adjusted)


def list_threshold_decisions(decided: Mapping[str, pd.DataFrame]) -> list[Record]:
    """List for each pair of models at which of the thresholds it differs significantly.

    Args:
        decided: The tables of `decide_at_thresholds`.

    Returns:
        One record for each kind and pair: kind, first, second, `share` (the percentage of the
        thresholds at which the difference is significant, in either direction), and `lowest` and
        `highest` of these thresholds, None if there is none. Between these two there may be
        thresholds at which it is not significant.
    """
    records = []
    for kind, table in decided.items():
        for first, second in table.columns:
            significant = table.index[table[first, second] != 0]
            record = {
                "kind": kind,
                "first": first,
                "second": second,
                "share": 100 * len(significant) / len(table),
                "lowest": float(significant.min()) if len(significant) else None,
                "highest": float(significant.max()) if len(significant) else None,
            }
            records.append(record)
    return records
