"""How often intervals hold the truth, and how often equal models are called different.

    python -m benchmarks.coverage

Simulates data sets with a known truth. Writes benchmarks/coverage.md and coverage.json, about ten
minutes on one core. Exits with 1 where coverage lies below 93% anywhere, or on average outside 94
to 97.5%, or where more than 5% of families of true nulls hold a significant difference.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from posttrain import comparisons, metrics
from posttrain.files import write

HERE = Path(__file__).resolve().parent
SIZES = (20, 50, 300)  # prompts of each kind
# The probabilities that a label is gained and that it is lost: from no difference to a large one,
# few and many that differ
CHANGES = (
    (0.02, 0.02),
    (0.1, 0.1),
    (0.25, 0.25),
    (0.1, 0.02),
    (0.2, 0.1),
    (0.3, 0.2),
    (0.35, 0.05),
    (0.5, 0.1),
)
PAIRS_OF_CHANGES = [  # on harmful and on helpful prompts: unlike ones, then alike
    *zip(CHANGES[:4], reversed(CHANGES[4:])),
    *zip(CHANGES[:4], CHANGES[:4]),
]
RATES = (0.05, 0.2, 0.5, 0.9)
MODELS = ("A", "B", "C", "D")
MEASURE_NAMES = {
    "harmful_reward": "mean reward, harmful prompts",
    "helpful_reward": "mean reward, helpful prompts",
}
FAMILIES = ((20, 0.5), (50, 0.5), (50, 0.85))  # prompts of each kind, and the rate of all models

Settings = list[tuple[str, float]]  # of each setting its description and a share


# ---- intervals


@cache
def difference_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Compute the interval of a paired difference, once for each outcome."""
    interval = metrics.paired_difference(gained, lost, n)
    return interval["low"], interval["high"]


def cover_differences(
    n: int, change: tuple[float, float], data_sets: int, rng: np.random.Generator
) -> float:
    """Compute how often the interval of a rate's paired difference holds the true one.

    Args:
        n: prompts.
        change: the probabilities that a label is gained and that it is lost.
        data_sets: how many are drawn.
        rng: what they are drawn with.
    """
    gain, loss = change
    true = 100 * (gain - loss)
    held = 0
    for gained, lost, _ in _draw_changes(n, change, data_sets, rng):
        low, high = difference_interval(gained, lost, n)
        held += low <= true <= high
    return held / data_sets


def cover_cas_differences(
    n: int,
    changes: Sequence[tuple[float, float]],
    data_sets: int,
    rng: np.random.Generator,
) -> float:
    """Compute how often the interval of a difference of CAS holds the true one.

    Args:
        n: prompts of each kind.
        changes: as `change` above, on harmful and on helpful prompts.
        data_sets: how many are drawn.
        rng: what they are drawn with.
    """
    drawn = [_draw_changes(n, change, data_sets, rng) for change in changes]
    true = 50 * sum(gain - loss for gain, loss in changes)
    held = 0
    for of_both_kinds in zip(*drawn):
        estimates, intervals = [], []
        for gained, lost, _ in of_both_kinds:
            low, high = difference_interval(gained, lost, n)
            estimates.append(100 * (gained - lost) / n)
            intervals.append({"low": low, "high": high})
        interval = metrics.mover_mean(estimates, intervals)
        held += interval["low"] <= true <= interval["high"]
    return held / data_sets


def _draw_changes(
    n: int, change: tuple[float, float], data_sets: int, rng: np.random.Generator
) -> list[list[int]]:
    """Draw for each data set how many labels are gained, are lost and stay."""
    gain, loss = change
    return rng.multinomial(n, [gain, loss, 1 - gain - loss], data_sets).tolist()


def cover_cas(
    n: int, rates: tuple[float, float], data_sets: int, rng: np.random.Generator
) -> float:
    """Compute how often the interval of a CAS holds the true one.

    Args:
        n: prompts of each kind.
        rates: the true HmR and HpR.
        data_sets: how many are drawn.
        rng: what they are drawn with.
    """
    drawn = [rng.binomial(n, rate, data_sets).tolist() for rate in rates]
    true = 50 * sum(rates)
    held = 0
    for counts in zip(*drawn):
        estimates = [100 * count / n for count in counts]
        interval = metrics.mover_mean(estimates, [metrics.wilson(count, n) for count in counts])
        held += interval["low"] <= true <= interval["high"]
    return held / data_sets


def cover_rewards(n: int, skewed: bool, data_sets: int, rng: np.random.Generator) -> float:
    """Compute how often the bootstrap interval of a mean reward difference holds the true one.

    Args:
        n: prompts.
        skewed: whether differences are drawn from a skewed distribution.
        data_sets: how many are drawn.
        rng: what they are drawn with.
    """
    held = 0
    for seed in range(data_sets):
        values = rng.exponential(1, n) - 1 if skewed else rng.normal(0, 1, n)
        means = metrics.bootstrap_means(values[:, None], 1000, seed)[:, 0]
        interval = metrics.percentiles(values, means)
        held += interval["low"] <= 0 <= interval["high"]
    return held / data_sets


# ---- equal models


def call_equal_models_different(
    n: int, rate: float, families: int, rng: np.random.Generator
) -> dict[str, float]:
    """Compute how often equal models differ significantly somewhere, six true nulls a family.

    A prompt is easier or harder for all models; given that, their rewards are drawn apart.

    Args:
        n: prompts of each kind.
        rate: the true rate of all models.
        families: how many are drawn.
        rng: what they are drawn with.

    Returns:
        {measure: share of families}.
    """
    wrong = dict.fromkeys(metrics.MEASURES, 0)
    for seed in range(families):
        rewards = {}
        for kind in metrics.KINDS:
            levels = rng.normal(0, 1, (n, 1))
            quantile = np.quantile(rng.normal(0, 2**0.5, 2000), rate)
            rewards[kind] = levels + quantile + rng.normal(0, 1, (n, len(MODELS)))
        compared = comparisons.compare(label_rewards(rewards), 200, seed, power=False)
        significant = [row["measure"] for row in compared if row["decision"] == "significant"]
        for measure in dict.fromkeys(significant):
            wrong[measure] += 1
    return {measure: count / families for measure, count in wrong.items()}


def label_rewards(rewards: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Make a table of answers, which pass with a reward above zero.

    Args:
        rewards: by kind of prompts, (prompts, models).
    """
    parts = []
    for kind, of_models in rewards.items():
        ids = [f"{kind}-{i:03d}" for i in range(len(of_models))]
        for model, values in zip(MODELS, of_models.T):
            labels = np.where(values > 0, *metrics.LABELS[kind])
            columns = {"id": ids, "kind": kind, "model": model, "reward": values, "label": labels}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


# ---- all


def simulate(data_sets: int, families: int, seed: int = 0) -> dict[str, Settings]:
    """Simulate all settings.

    Args:
        data_sets: how many are drawn for a difference; a quarter for other intervals.
        families: how many are drawn of equal models.
        seed: of all draws.

    Returns:
        The settings and their shares, by kind of interval, and "wrong decisions".
    """
    rng = np.random.default_rng(seed)
    shares: dict[str, Settings] = {
        "difference of a rate": [],
        "difference of CAS": [],
        "CAS": [],
        "mean reward": [],
        "wrong decisions": [],
    }
    for n, change in product(SIZES, CHANGES):
        share = cover_differences(n, change, data_sets, rng)
        setting = f"n = {n}, gained {change[0]}, lost {change[1]}"
        shares["difference of a rate"].append((setting, share))
    for n, changes in product(SIZES, PAIRS_OF_CHANGES):
        share = cover_cas_differences(n, changes, data_sets, rng)
        shares["difference of CAS"].append((f"n = {n}, {changes}", share))
    for n, rates in product(SIZES, product(RATES, RATES)):
        shares["CAS"].append((f"n = {n}, {rates}", cover_cas(n, rates, data_sets // 4, rng)))
    for n, skewed in product(SIZES, (False, True)):
        share = cover_rewards(n, skewed, data_sets // 4, rng)
        shares["mean reward"].append((f"n = {n}, {'skewed' if skewed else 'normal'}", share))
    for n, rate in FAMILIES:
        for measure, share in call_equal_models_different(n, rate, families, rng).items():
            shares["wrong decisions"].append((f"n = {n}, rate {rate}, {measure}", share))
    return shares


def as_table(shares: Mapping[str, Settings]) -> str:
    """Write two markdown tables: the coverage of intervals, and how often equal models differ.

    Args:
        shares: of coverage.json.
    """
    lines = [
        "**Coverage** is the share of data sets whose interval contains the true value. For a 95% "
        "interval it should be 95%. In the settings, n is the number of prompts. For a difference "
        "of CAS, the two pairs of numbers are the probabilities that a label is gained and that it "
        "is lost, on harmful and on helpful prompts. For CAS, the two numbers are the true rates.",
        "",
        "| 95% confidence interval of | simulated settings | mean coverage (%) "
        "| lowest coverage (%) | setting of the lowest | highest coverage (%) |",
        "|---|---|---|---|---|---|",
    ]
    for name, settings in shares.items():
        if name == "wrong decisions":
            continue
        values = {setting: 100 * share for setting, share in settings}
        mean = np.mean(list(values.values()))
        lowest = min(values, key=values.get)
        lines.append(
            f"| {name} | {len(values)} | {mean:.1f} | {values[lowest]:.1f} | {lowest} | "
            f"{max(values.values()):.1f} |"
        )
    rows: dict[str, list[str]] = {}  # by setting of the equal models, a share for each measure
    measures = []
    for description, share in shares["wrong decisions"]:
        setting, measure = description.rsplit(", ", 1)
        rows.setdefault(setting, []).append(f"{100 * share:.1f}")
        if measure not in measures:
            measures.append(measure)
    headings = [MEASURE_NAMES.get(measure, measure) for measure in measures]
    lines += [
        "",
        "**False findings.** Four models with equal true rates were compared in all six pairs. The "
        "table gives the share of data sets in which at least one pair was called significantly "
        "different. It should not exceed 5%.",
        "",
        f"| four equal models | {' | '.join(f'{heading} (%)' for heading in headings)} |",
        f"|{'---|' * (1 + len(headings))}",
    ]
    for setting, cells in rows.items():
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def list_failures(shares: Mapping[str, Settings]) -> list[str]:
    """List what does not keep the promises about rates, CAS and decisions.

    Args:
        shares: as `simulate` gives them.
    """
    failures = []
    for setting, share in shares["wrong decisions"]:
        if share > 0.05:
            failures.append(f"{setting}: {100 * share:.1f}%")
    for name in ("difference of a rate", "difference of CAS", "CAS"):
        for setting, share in shares[name]:
            if share < 0.93:
                failures.append(f"{name}, {setting}: {100 * share:.1f}%")
        mean = np.mean([share for _, share in shares[name]])
        if not 0.94 <= mean <= 0.975:
            failures.append(f"{name} on average: {100 * mean:.1f}%")
    return failures


def main() -> None:
    """Simulate, write the shares, and fail where a promise is not kept."""
    shares = simulate(data_sets=4000, families=1000)
    write(HERE / "coverage.json", shares)
    write(HERE / "coverage.md", as_table(shares))
    print(as_table(shares))
    failures = list_failures(shares)
    if failures:
        sys.exit("\n".join(["What does not hold:", *failures]))


if __name__ == "__main__":
    main()
