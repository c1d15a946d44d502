"""Compare the spread and the median of two models' rewards on the same prompts."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from posttrain.comparisons import decide_family
from posttrain.metrics import KINDS, add_estimate, kinds_of, models_of, pivot_rewards

# {quantity that is compared: its value where two models are equal}
EQUALITY = {"ratio": 1.0, "median_difference": 0.0}

CHUNK = 100  # bootstrap draws of the prompts that are made at once, which limits the memory

Record = dict[str, Any]


def compare_spreads(answers: pd.DataFrame, draws: int, seed: int) -> list[Record]:
    """Compare the standard deviation and the median of two models' rewards on the same prompts.

    Both come with a percentile bootstrap interval over prompts and with a p-value from the same
    draws (see `bootstrap_p`), which is corrected by Holm's method over the pairs of a kind.

    Args:
        answers: The table of answers.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        One record for each kind and each pair of models whose rewards vary: kind, first, second,
        `ratio` (the second standard deviation divided by the first) and `median_difference` (second
        minus first). Each of the two has the fields `_low` and `_high` (the ends of its 95%
        interval), `_p`, `_p_holm` and `_decision`.
    """
    models = models_of(answers)
    records = []
    for kind in kinds_of(answers):
        values = pivot_rewards(answers, kind)[models].to_numpy()
        n = len(values)
        deviation, median = values.std(axis=0), np.median(values, axis=0)
        deviations, medians = _redraw(values, draws, [seed, KINDS.index(kind)])
        family = []
        for j, k in combinations(range(len(models)), 2):
            if deviation[j] == 0 or deviation[k] == 0:
                continue
            record = {"kind": kind, "first": models[j], "second": models[k]}
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = deviations[:, k] / deviations[:, j]
            _add(record, "ratio", deviation[k] / deviation[j], ratios)
            differences = medians[:, k] - medians[:, j]
            _add(record, "median_difference", median[k] - median[j], differences)
            family.append(record)
        for name in EQUALITY:
            _decide(family, name, n)
        records.extend(family)
    return records


def _redraw(values: np.ndarray, draws: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the standard deviations and the medians of all models on redrawn prompts.

    Args:
        values: Rewards of shape (prompts, models).
        draws: The number of draws.
        seed: The seed of the draws.

    Returns:
        Both, of shape (draws, models).
    """
    generator = np.random.default_rng(seed)
    n = len(values)
    # Models as rows, so that the rewards of one model lie side by side.
    rows = np.ascontiguousarray(values.T)
    deviations, medians = [], []
    for start in range(0, draws, CHUNK):
        chosen = generator.integers(n, size=(min(CHUNK, draws - start), n))
        redrawn = rows[:, chosen]
        deviations.append(redrawn.std(axis=2).T)
        medians.append(np.median(redrawn, axis=2, overwrite_input=True).T)
    return np.concatenate(deviations), np.concatenate(medians)


def bootstrap_p(redrawn: np.ndarray, equality: float) -> float:
    """Compute a two-sided p-value from bootstrap draws, as their percentile interval does.

    It is twice the smaller share of draws on one side of equality, counting a draw at equality on
    both sides and one draw more than there are, so that p is never 0 (Davison and Hinkley 1997,
    section 4.4). It is below 0.05 where the 95% percentile interval excludes equality.

    Args:
        redrawn: The draws, of shape (draws,).
        equality: The value where two models are equal.
    """
    below = 1 + int((redrawn <= equality).sum())
    above = 1 + int((redrawn >= equality).sum())
    return min(1.0, 2 * min(below, above) / (len(redrawn) + 1))


def _add(record: Record, name: str, value: float, redrawn: np.ndarray) -> None:
    """Write an estimate, its interval and its p-value into a record, without undefined draws."""
    redrawn = redrawn[np.isfinite(redrawn)]
    low, high = np.percentile(redrawn, [2.5, 97.5]).tolist()
    add_estimate(record, name, float(value), {"low": low, "high": high})
    record[f"{name}_p"] = bootstrap_p(redrawn, EQUALITY[name])


def _decide(family: list[Record], name: str, prompts: int) -> None:
    """Write the corrected p-values of a quantity and its decisions into records of one kind."""
    comparisons = []
    for record in family:
        comparison = {
            "low": record[f"{name}_low"] - EQUALITY[name],
            "high": record[f"{name}_high"] - EQUALITY[name],
            "p": record[f"{name}_p"],
        }
        comparisons.append(comparison)
    decide_family(comparisons, prompts)
    for record, comparison in zip(family, comparisons):
        record[f"{name}_p_holm"] = comparison["p_holm"]
        record[f"{name}_decision"] = comparison["decision"]
