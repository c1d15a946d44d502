"""From rewards to what can be said of them: rates, intervals, paired comparisons, the judge's agreement."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from posttrain import MODELS

REFERENCES = ("Human chosen", "Human rejected", "Empty", "Refusal")  # judged beside the models
KINDS = ("harmful", "helpful")  # of prompts
MEASURES = {"HmR": "harmful", "HpR": "helpful", "CAS": None,  # measure: the kind of prompt that it is taken on
            "harmful reward": "harmful", "helpful reward": "helpful"}
QUESTIONS = [("Base", "SFT"), ("Base", "DPO"), ("SFT", "SFT+DPO")]  # is the second model better than the first?

Record = dict[str, Any]
Measures = dict[str, tuple[pd.Series, np.ndarray]]  # measure: (value of every model, bootstrap draws (draws, models))


def reward_table(scores: Sequence[Record]) -> pd.DataFrame:
    """Return the rewards as a table: rows (kind, id), a column a model, models first, references after them.

    Raises ValueError where a record lacks a field, a reward is given twice or is not a finite number, a model is
    unknown or lacks a prompt that another one has, Base is missing, or a kind has no prompt.
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


# ---- rates and their intervals

def bootstrap_means(values: np.ndarray, draws: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return (draws, columns): means of (prompts, columns) over prompts redrawn with replacement, all columns alike."""
    n = len(values)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws) @ values / n


def percentiles(draws: np.ndarray) -> dict[str, float]:
    """Return {"low", "high"}, the 95% percentile interval of bootstrap draws (draws,)."""
    return dict(zip(("low", "high"), np.percentile(draws, [2.5, 97.5]).tolist()))


def wilson(successes: int, n: int) -> dict[str, float]:
    """Return {"low", "high"}, in percent, the 95% Wilson interval of a rate (Wilson 1927)."""
    low, high = proportion_confint(int(successes), n, method="wilson")
    return {"low": 100 * float(low), "high": 100 * float(high)}


def measure(rewards: pd.DataFrame, harmless: pd.DataFrame, helpful: pd.DataFrame, draws: int, seed: int) -> Measures:
    """Return every measure's values and bootstrap draws: HmR, HpR and CAS in percent, and the mean rewards.

    The prompts of either kind are redrawn apart, the same ones for all models.
    """
    found = {}
    for i, (kind, rate, labels) in enumerate((("harmful", "HmR", harmless), ("helpful", "HpR", helpful))):
        values = np.hstack([100 * labels, rewards.loc[kind]])
        means = np.hsplit(bootstrap_means(values, draws, [seed, i]), 2)
        found |= {rate: ((100 * labels).mean(), means[0]), f"{kind} reward": (rewards.loc[kind].mean(), means[1])}
    found["CAS"] = tuple((found["HmR"][part] + found["HpR"][part]) / 2 for part in (0, 1))
    return {name: found[name] for name in MEASURES}


def model_records(measures: Measures, n: dict[str, int]) -> list[Record]:
    """Return one record a model: every measure with its interval, as `HmR`, `HmR low`, `HmR high` and so on.

    A rate's interval is Wilson's, the others' the percentile bootstrap; `n`: {kind: number of prompts}.
    """
    records = [{"model": model} for model in measures["CAS"][0].index]
    for name, (values, draws) in measures.items():
        for record, value, column in zip(records, values.tolist(), draws.T):
            count = n[MEASURES[name]] if name in ("HmR", "HpR") else None
            ends = percentiles(column) if count is None else wilson(round(value * count / 100), count)
            record |= {name: value, f"{name} low": ends["low"], f"{name} high": ends["high"]}
    return records


def relative_gain(records: Sequence[Record]) -> pd.DataFrame:
    """Return the gain of every model's HmR, HpR and CAS over Base's, in percent of Base's (the study's Table 2)."""
    rates = pd.DataFrame(records).set_index("model")[["HmR", "HpR", "CAS"]]
    rates = rates.loc[[name for name in MODELS if name in rates.index]]
    return 100 * (rates / rates.loc["Base"] - 1)


# ---- pairs of models

def exact_mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact two-sided p of McNemar's test on paired labels, boolean (prompts,); 1 where none differ."""
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue) if gained + lost else 1.0


def signed_rank(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on paired rewards (prompts,); 1 where none differ."""
    return float(wilcoxon(second, first).pvalue) if (second != first).any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given (Holm 1979)."""
    return multipletests(p_values, method="holm")[1].tolist()


def _paired_test(name: str, rewards: pd.DataFrame, labels: dict[str, pd.DataFrame], first: str, second: str) -> Record:
    """Return {"test", "p", "higher"} of two models: McNemar on a rate, Wilcoxon on rewards, none on CAS."""
    if name == "CAS":
        return {"test": None, "p": None, "higher": None}
    if name in labels:
        values = labels[name]
        return {"test": "McNemar", "p": exact_mcnemar(values[first], values[second]), "higher": None}
    values = rewards.loc[MEASURES[name]]
    higher = ((values[second] > values[first]) + (values[second] == values[first]) / 2).mean()
    return {"test": "Wilcoxon", "p": signed_rank(values[first], values[second]), "higher": float(higher)}


def compare(rewards: pd.DataFrame, harmless: pd.DataFrame, helpful: pd.DataFrame, measures: Measures) -> list[Record]:
    """Return one record a measure and pair of models: the difference with its interval, the test and its p-values.

    Second minus first, over the same prompts; `p_holm`: corrected over the pairs of a measure; `higher`: the share of
    prompts on which the second is rewarded more, ties counting half.
    """
    models = [name for name in rewards if name in MODELS]
    columns, records = {name: i for i, name in enumerate(rewards)}, []
    for name, (values, draws) in measures.items():
        family = [{"measure": name, "first": first, "second": second,
                   "difference": float(values[second] - values[first])}
                  | percentiles(draws[:, columns[second]] - draws[:, columns[first]])
                  | _paired_test(name, rewards, {"HmR": harmless, "HpR": helpful}, first, second)
                  for first, second in combinations(models, 2)]
        tested = family and name != "CAS"
        adjusted = holm([record["p"] for record in family]) if tested else [None] * len(family)
        records += [record | {"p_holm": p} for record, p in zip(family, adjusted)]
    return records


def verdict(record: Record, n: int) -> str:
    """Return a sentence on whether the second model of a comparison beats the first, on `n` prompts (of each kind)."""
    seen = f"{record['difference']:+.1f} points [{record['low']:+.1f}, {record['high']:+.1f}]"
    answer = "yes" if record["low"] > 0 else "no, it is worse" if record["high"] < 0 else "not decided"
    answer += f" with {n} prompts" * (answer == "not decided")
    if n < 10:
        answer = "not decided with fewer than 10 prompts"
    elif answer.startswith("not"):
        difference = record["difference"]
        needed = n * ((record["high"] - record["low"]) / 2 / difference) ** 2 if difference else math.inf
        answer += f"; about {needed:,.0f} might" if math.isfinite(needed) else "; the models came out equal"
    return f"Does {record['second']} beat {record['first']} on {record['measure']}? {seen}: {answer}."


def verdicts(comparisons: Sequence[Record], n: dict[str, int]) -> list[str]:
    """Return the sentences on the questions that the study asks, on rates and CAS; `n`: {kind: number of prompts}."""
    counts = {"HmR": n["harmful"], "HpR": n["helpful"], "CAS": min(n.values())}
    return [verdict(record, counts[record["measure"]]) for record in comparisons
            if (record["first"], record["second"]) in QUESTIONS and record["measure"] in counts]


# ---- what the numbers rest on

def check_judge(rewards: pd.DataFrame) -> list[Record]:
    """Return {"kind", "agreement", "low", "high", "prompts"} of either kind; none without human replies.

    agreement: how often, in percent of the prompts, the human-chosen reply is rewarded above the rejected one.
    """
    if not {"Human chosen", "Human rejected"} <= set(rewards):
        return []
    agrees = rewards["Human chosen"] > rewards["Human rejected"]
    return [{"kind": kind, "agreement": 100 * float(agrees[kind].mean()), "prompts": len(agrees[kind])}
            | wilson(agrees[kind].sum(), len(agrees[kind])) for kind in KINDS]


def caution(judge: Sequence[Record]) -> str:
    """Return the note under a table: on which kinds the judge's agreement with the humans may be mere chance."""
    if not judge:
        return "The judge's agreement with humans is unknown here: no human replies were scored."
    doubtful = [f"{row['kind']} prompts ({row['agreement']:.0f}% [{row['low']:.0f}, {row['high']:.0f}])"
                for row in judge if row["low"] <= 50]
    text = f"Caution: the judge's agreement with the humans is not above chance on {', '.join(doubtful)}."
    return text if doubtful else ""


def distinct_2(texts: Sequence[str]) -> float:
    """Return the share of different word pairs among all word pairs of the texts (Li et al. 2016); 1 without any."""
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:])]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def health(responses: Sequence[Record]) -> list[Record]:
    """Return one record a kind and model: shares (%) of what went wrong, distinct-2, mean tokens and log-ratio."""
    rows = pd.DataFrame(responses)
    if not {"finish", "tokens", "log_ratio"} <= set(rows):
        return []
    rows["kind"] = rows["id"].str.split("-").str[0]
    return [{"kind": kind, "model": model, "empty": 100 * float((part["response"] == "").mean()),
             "cut": 100 * float((part["finish"] == "length").mean()),
             "human turn": 100 * float((part["finish"] == "turn").mean()),
             "distinct-2": distinct_2(part["response"]), "tokens": float(part["tokens"].mean()),
             "log-ratio": float(part["log_ratio"].mean())}
            for (kind, model), part in rows.groupby(["kind", "model"], sort=False)]


def sweep(rewards: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rates (%) of all models at 200 thresholds over the range of rewards: thresholds in the index."""
    table = rewards.loc[kind][[name for name in rewards if name in MODELS]]
    thresholds = np.linspace(table.min(axis=None), table.max(axis=None), 200)
    rates = 100 * (table.to_numpy() >= thresholds[:, None, None]).mean(1)
    return pd.DataFrame(rates, index=thresholds, columns=table.columns)


def leaders(rates: pd.DataFrame) -> dict[str, float]:
    """Return {model, or "several": share (%) of the thresholds at which it alone has the highest rate}.

    Only thresholds at which the models differ count; without any the result is empty.
    """
    rates = rates[rates.nunique(axis=1) > 1]
    best = rates.eq(rates.max(axis=1), axis=0)
    names = best.idxmax(axis=1).where(best.sum(axis=1) == 1, "several")
    return (100 * names.value_counts(normalize=True)).to_dict()


def length_correlation(rewards: pd.DataFrame, responses: Sequence[Record]) -> pd.DataFrame:
    """Return Spearman's correlation of reward and tokens of the response: a row a model, a column a kind."""
    rows = pd.DataFrame(responses).merge(rewards.stack().rename("reward").reset_index(), on=["id", "model"])
    groups = rows.groupby(["model", "kind"], sort=False)
    return groups.apply(lambda part: part["reward"].corr(part["tokens"], method="spearman")).unstack()
