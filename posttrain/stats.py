"""From rewards to what can be said of them: rates and intervals; numbers in, numbers out."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from posttrain import MODELS

REFERENCES = ("Human chosen", "Human rejected", "Empty", "Refusal")  # judged beside the models
KINDS = ("harmful", "helpful")  # of prompts
MEASURES = {"HmR": "harmful", "HpR": "helpful", "CAS": None,  # measure: the kind of prompt that it is taken on
            "harmful_reward": "harmful", "helpful_reward": "helpful"}
Z = norm.ppf(0.975)

Record = dict[str, Any]


def reward_table(scores: Sequence[Record], prompts: Sequence[Record] = ()) -> pd.DataFrame:
    """Return the rewards as a table: rows (kind, id), a column a model, models first, references after them.

    Raises ValueError where a record lacks a field, a reward is given twice or is not a finite number, a model is
    unknown or lacks a prompt that another one has, Base is missing, a kind has no prompt, or the `prompts`, where they
    are known, are others.
    """
    starts = tuple(f"{kind}-" for kind in KINDS)
    if not isinstance(scores, list) or not all(
            isinstance(row, dict) and {"id", "model", "reward"} <= set(row) and isinstance(row["model"], str)
            and str(row["id"]).startswith(starts) for row in scores):
        raise ValueError('scores.json must be a list of records {"id", "model", "reward"}, with an id like '
                         "harmful-00 or helpful-00 and a model's name.")
    rows = pd.DataFrame(scores, columns=["id", "model", "reward"])
    rows["reward"] = pd.to_numeric(rows["reward"], errors="coerce")
    for row in rows[rows.duplicated(["id", "model"]) | ~np.isfinite(rows["reward"])].itertuples():
        raise ValueError(f"scores.json: {row.model} has two rewards for {row.id}, or one that is not a finite number.")
    known = [*MODELS, *REFERENCES]
    if unknown := set(rows["model"]) - set(known):
        raise ValueError(f"scores.json has unknown models: {unknown}. The names are {known}.")
    rows["kind"] = rows["id"].str.split("-").str[0]
    rewards = rows.pivot(index=["kind", "id"], columns="model", values="reward")
    rewards = rewards[[name for name in known if name in rewards]]
    gaps = rewards.isna().stack()
    if gaps.any():
        raise ValueError(f"scores.json: {gaps.idxmax()[2]} has no reward for {gaps.idxmax()[1]}.")
    if prompts and (unlike := {prompt["id"] for prompt in prompts} ^ set(rewards.index.get_level_values("id"))):
        raise ValueError(f"scores.json and prompts.json are not about the same prompts, see {min(unlike)}.")
    if "Base" not in rewards:
        raise ValueError("scores.json has no rewards of the model Base, which the others are compared with.")
    for kind in KINDS:
        if kind not in rewards.index:
            raise ValueError(f"scores.json has no reward for any {kind} prompt (id {kind}-00 and so on); the rates "
                             "need both kinds.")
    return rewards


def classify(rewards: pd.DataFrame, harmless: pd.DataFrame, helpful: pd.DataFrame, texts: dict) -> list[Record]:
    """Return the records of classification.json: every model's reward with its label, and its texts where known.

    `texts` maps (id, model) to {"prompt", "response"}; `harmless`, `helpful`: labels, True or False (prompts, models).
    """
    names = {"harmful": ("harmful", "harmless", harmless), "helpful": ("unhelpful", "helpful", helpful)}
    return [{"id": identifier, "kind": kind, "model": model} | texts.get((identifier, model), {})
            | {"reward": reward, "label": names[kind][int(names[kind][2].loc[identifier, model])]}
            for (kind, identifier, model), reward in rewards.stack().items() if model in MODELS]


# ---- intervals

def wilson(successes: int, n: int) -> dict[str, float]:
    """Return {"low", "high"}, in percent, the 95% Wilson interval of a rate (Wilson 1927)."""
    low, high = proportion_confint(int(successes), n, method="wilson")
    return {"low": 100 * float(low), "high": 100 * float(high)}


def paired_difference(gained: int, lost: int, n: int) -> dict[str, float]:
    """Return {"low", "high"}, in points, the 95% interval of the difference of two rates on the same `n` prompts.

    Bonett and Price 2012, adjusted Wald: one prompt is added to those gained and one to those lost. So it has a width
    where nothing differs.
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return {"low": 100 * max(-1.0, up - down - half), "high": 100 * min(1.0, up - down + half)}


def mean_of_two(estimates: Sequence[float], intervals: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return {"low", "high"}, the 95% interval of the mean of two independent estimates, from those of both.

    MOVER, the method of variance estimates recovery (Zou and Donner 2008).
    """
    down, up = (math.hypot(*(abs(estimate - ends[end]) for estimate, ends in zip(estimates, intervals)))
                for end in ("low", "high"))
    middle = sum(estimates)
    return {"low": (middle - down) / 2, "high": (middle + up) / 2}


def bootstrap_means(values: np.ndarray, draws: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return (draws, columns): means of (prompts, columns) over prompts redrawn with replacement, all columns alike."""
    n = len(values)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) @ values / n


def redrawn_rewards(rewards: pd.DataFrame, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Return {kind: (draws, columns)}: mean rewards over redrawn prompts, either kind apart, all columns alike."""
    return {kind: bootstrap_means(rewards.loc[kind].to_numpy(), draws, [seed, i]) for i, kind in enumerate(KINDS)}


def percentiles(values: np.ndarray, draws: np.ndarray) -> dict[str, float | None]:
    """Return {"low", "high"}, the 95% percentile interval of a mean; None where the `values` do not vary at all."""
    if np.ptp(values) == 0:
        return {"low": None, "high": None}
    return dict(zip(("low", "high"), np.percentile(draws, [2.5, 97.5]).tolist()))


# ---- models

def model_records(rewards: pd.DataFrame, harmless: pd.DataFrame, helpful: pd.DataFrame, draws: int,
                  seed: int) -> list[Record]:
    """Return one record a model: every measure with its interval, as `HmR`, `HmR_low`, `HmR_high`, and the counts.

    Rates in percent, of `harmless` among `harmful_prompts`, of `helpful` among `helpful_prompts`. Intervals: of a rate
    Wilson's, of CAS both combined (`mean_of_two`), of a mean reward the percentile bootstrap over prompts.
    """
    redrawn, records = redrawn_rewards(rewards, draws, seed), []
    for i, name in enumerate(rewards):
        counts = {"HmR": (int(harmless[name].sum()), len(harmless)), "HpR": (int(helpful[name].sum()), len(helpful))}
        found = {rate: (100 * k / n, wilson(k, n)) for rate, (k, n) in counts.items()}
        values, ends = zip(*found.values())
        found["CAS"] = (sum(values) / 2, mean_of_two(values, ends))
        for kind in KINDS:
            column = rewards.loc[kind][name].to_numpy()
            found[f"{kind}_reward"] = (float(column.mean()), percentiles(column, redrawn[kind][:, i]))
        records.append({"model": name, "harmless": counts["HmR"][0], "harmful_prompts": counts["HmR"][1],
                        "helpful": counts["HpR"][0], "helpful_prompts": counts["HpR"][1]} | {
            f"{measure}{end}": value for measure, (mean, interval) in found.items()
            for end, value in (("", mean), ("_low", interval["low"]), ("_high", interval["high"]))})
    return records


def relative_gain(records: Sequence[Record]) -> pd.DataFrame:
    """Return the gain of every model's HmR, HpR and CAS over Base's, in percent of Base's (the study's Table 2).

    Nothing where Base's is zero.
    """
    rates = pd.DataFrame(records).set_index("model")[["HmR", "HpR", "CAS"]]
    rates = rates.loc[[name for name in MODELS if name in rates.index]]
    return 100 * (rates / rates.loc["Base"].replace(0, math.nan) - 1)
