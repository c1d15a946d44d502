"""How often the interval over seeds and prompts holds the truth, and how often others do.

    python -m benchmarks.seeds_and_prompts

Simulates runs of several seeds that answer the same prompts, with a known mean difference between
two models. Writes benchmarks/seeds_and_prompts.md and .json, about five minutes on one core. Exits
with 1 where the interval of `across.interval_over_both` holds the truth in less than 93%.
"""

import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

from posttrain.across import combine_kinds
from posttrain.files import write
from posttrain.metrics import Interval

HERE = Path(__file__).resolve().parent
RUNS = (2, 3, 5)
PROMPTS = (50, 150)  # of each kind
# How much runs vary, in units of how much prompts do (both a model's and what remains)
SPREADS = {"none": 0.0, "some": 0.15, "much": 0.5}
# A second model that is like Base (constantly better by nothing), and one that is far better
SHIFTS = {"equal": 0.0, "better": 1.5}
METHODS = {
    "both": "over runs and prompts, as it is reported",
    "Satterthwaite": "by mean squares with Satterthwaite's degrees of freedom",
    "pigeonhole": "pigeonhole bootstrap",
    "runs": "over runs alone",
    "prompts": "over prompts alone",
}
DRAWS = 400  # of the bootstrap
MEASURES = ("rate", "CAS", "mean reward")

# {setting: {method: [share that holds the truth, median width, share that is unknown]}}
Shares = dict[str, dict[str, list[float]]]


# ---- data with a known truth


def draw_differences(
    measure: str, runs: int, prompts: int, spread: float, shift: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], float]:
    """Draw the differences of a trained model from Base in several runs.

    A trained model's quality has a part of its run and a part of what remains; prompts are easier
    or harder for both models, and for each of them. Base is the same in every run. For a label, the
    quality is cut at zero. For CAS, both kinds of prompts share the part of the run.

    Args:
        measure: one of MEASURES.
        runs: their number.
        prompts: their number, of each kind.
        spread: the standard deviation of the runs.
        shift: by how much trained models are better.
        rng: what they are drawn with.

    Returns:
        For each kind an array of shape (runs, prompts), and the true mean difference.
    """
    of_runs = spread * rng.normal(size=(runs, 1))
    differences = []
    for _ in range(2 if measure == "CAS" else 1):
        shared = rng.normal(size=(1, prompts))
        base = shared + rng.normal(size=(1, prompts))
        trained = shift + of_runs + shared + rng.normal(size=(1, prompts))
        trained = trained + rng.normal(size=(runs, prompts))
        if measure == "mean reward":
            differences.append(trained - base)
        else:
            differences.append(100.0 * (trained > 0) - 100.0 * (base > 0))
    if measure == "mean reward":
        return differences, shift
    share = norm.cdf(shift / np.sqrt(3 + spread**2))
    return differences, 100 * float(share - 0.5)


# ---- other intervals


def interval_by_mean_squares(differences: list[np.ndarray]) -> Interval:
    """Compute the interval of the mean by mean squares (Satterthwaite 1946).

    The variance of a kind's mean is (MS_runs + MS_prompts - MS_rest) / (runs x prompts). Runs are
    counted by their mean over the kinds, as in `across.combine_kinds`.

    Args:
        differences: for each kind an array of shape (runs, prompts).
    """
    means = np.mean([part.mean(axis=1) for part in differences], axis=0)
    parts = [(means.var(ddof=1) / len(means), len(means) - 1)]  # (variance, degrees of freedom)
    for part in differences:
        runs, prompts = part.shape
        of_runs = part.mean(axis=1, keepdims=True)
        of_prompts = part.mean(axis=0, keepdims=True)
        rest = part - of_runs - of_prompts + part.mean()
        freedom = (runs - 1) * (prompts - 1)
        share = len(differences) ** 2
        parts.append((of_prompts.var(ddof=1) / prompts / share, prompts - 1))
        parts.append((-(rest**2).sum() / freedom / (runs * prompts) / share, freedom))
    variance = sum(value for value, _ in parts)
    spread = sum(value**2 / freedom for value, freedom in parts)
    half = 0.0
    if variance > 0:
        half = t.ppf(0.975, max(1.0, variance**2 / spread)) * np.sqrt(variance)
    return {"low": means.mean() - half, "high": means.mean() + half}


def interval_by_pigeonholes(
    differences: list[np.ndarray], weights: list[tuple[np.ndarray, np.ndarray]]
) -> Interval:
    """Compute the percentile interval of the pigeonhole bootstrap (Owen 2007).

    It draws runs and, independently of them, prompts.

    Args:
        differences: for each kind an array of shape (runs, prompts).
        weights: for each kind how often runs and prompts are drawn, of shapes (draws, runs) and
            (draws, prompts).
    """
    means = []
    for part, (of_runs, of_prompts) in zip(differences, weights):
        means.append(((of_runs @ part) * of_prompts).sum(axis=1) / part.size)
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    return {"low": low, "high": high}


def _draw_weights(
    runs: int, prompts: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw for two kinds of prompts how often runs, the same for both, and prompts are drawn."""
    of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), DRAWS)
    weights = []
    for _ in range(2):
        of_prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), DRAWS)
        weights.append((of_runs, of_prompts))
    return weights


# ---- coverage


def simulate_setting(
    measure: str,
    runs: int,
    prompts: int,
    spread: float,
    shift: float,
    data_sets: int,
    rng: np.random.Generator,
) -> dict[str, list[float]]:
    """Compute how often each interval holds the true difference, and how wide it is.

    An interval that is unknown, because all runs gave the same difference, is as good as one that
    holds everything: nothing wrong is said. It is counted as holding the truth, and left out of the
    median of widths. How often this happens is returned too.

    Args:
        measure: one of MEASURES.
        runs: their number.
        prompts: their number, of each kind.
        spread: the standard deviation of the runs.
        shift: by how much trained models are better.
        data_sets: how many are drawn.
        rng: what they are drawn with.

    Returns:
        {method: [share of intervals that hold the true difference, median width, share of intervals
        that are unknown]}.
    """
    held = dict.fromkeys(METHODS, 0)
    widths: dict[str, list[float]] = {method: [] for method in METHODS}
    weights = _draw_weights(runs, prompts, rng)
    for _ in range(data_sets):
        differences, true = draw_differences(measure, runs, prompts, spread, shift, rng)
        intervals = combine_kinds(differences, measure != "mean reward")
        intervals["Satterthwaite"] = interval_by_mean_squares(differences)
        intervals["pigeonhole"] = interval_by_pigeonholes(differences, weights)
        for method in METHODS:
            interval = intervals[method]
            if interval["low"] is None:
                held[method] += 1
                continue
            held[method] += bool(interval["low"] <= true <= interval["high"])
            widths[method].append(interval["high"] - interval["low"])
    shares = {}
    for method in METHODS:
        unknown = 1 - len(widths[method]) / data_sets
        width = float(np.median(widths[method]))
        shares[method] = [held[method] / data_sets, width, unknown]
    return shares


def simulate(data_sets: int, seed: int = 0) -> Shares:
    """Simulate all settings.

    Args:
        data_sets: how many are drawn in each.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    shares: Shares = {}
    for measure, runs, prompts in product(MEASURES, RUNS, PROMPTS):
        for (spread, of_runs), (name, shift) in product(SPREADS.items(), SHIFTS.items()):
            if measure == "mean reward" and shift:  # a constant changes nothing
                continue
            setting = f"{measure}, {runs} runs, {prompts} prompts, spread of runs {spread}, {name}"
            shares[setting] = simulate_setting(
                measure, runs, prompts, of_runs, shift, data_sets, rng
            )
    return shares


def as_table(shares: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Write a markdown table: for each method and number of runs the coverage and the width.

    Args:
        shares: of seeds_and_prompts.json.
    """
    unknown = 100 * max(methods["both"][2] for methods in shares.values())
    lines = [
        "**Coverage** is the share of simulated data sets whose interval contains the true mean "
        "difference; for a 95% interval it should be 95%. Each row is over "
        f"{len(list_settings(shares, RUNS[0]))} settings: rates, CAS and mean rewards with "
        f"{' and '.join(map(str, PROMPTS))} prompts of each kind, and runs that vary not at all, "
        "little or much. The width is the median over the data sets of a setting, divided by that "
        "of the reported interval, on average over the settings. An interval is unknown where all "
        f"runs give the same difference, which happened in up to {unknown:.0f}% "
        "of the data sets of a setting; it counts as containing the true difference.",
        "",
        "| runs | 95% interval of the mean difference | lowest coverage (%) | mean coverage (%) | "
        "highest coverage (%) | relative width |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for runs in RUNS:
        settings = list_settings(shares, runs)
        for method, name in METHODS.items():
            covered = [100 * shares[setting][method][0] for setting in settings]
            widths = []
            for setting in settings:
                widths.append(shares[setting][method][1] / shares[setting]["both"][1])
            lines.append(
                f"| {runs} | {name} | {min(covered):.1f} | {np.mean(covered):.1f} | "
                f"{max(covered):.1f} | {np.mean(widths):.2f} |"
            )
    return "\n".join(lines) + "\n"


def list_settings(shares: Mapping[str, Mapping[str, list[float]]], runs: int) -> list[str]:
    """List the settings that have a number of runs."""
    return [setting for setting in shares if f", {runs} runs," in setting]


def list_failures(shares: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    """List the settings in which the reported interval holds the truth too rarely.

    Args:
        shares: as `simulate` gives them.
    """
    failures = []
    for setting, methods in shares.items():
        covered = methods["both"][0]
        if covered < 0.93:
            failures.append(f"{setting}: {100 * covered:.1f}%")
    return failures


def main() -> None:
    """Simulate, write the shares, and fail where the promise is not kept."""
    shares = simulate(data_sets=2000)
    write(HERE / "seeds_and_prompts.json", shares)
    write(HERE / "seeds_and_prompts.md", as_table(shares))
    print(as_table(shares))
    failures = list_failures(shares)
    if failures:
        sys.exit("\n".join(["What does not hold:", *failures]))


if __name__ == "__main__":
    main()
