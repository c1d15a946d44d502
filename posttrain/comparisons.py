"""Two models on the same prompts: the difference with its interval, the test, the decision, and it said in words."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, wilcoxon
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from posttrain import MODELS
from posttrain.power import ALPHA, power_of_cas, power_of_rate, power_of_reward
from posttrain.stats import MEASURES, mean_of_two, paired_difference, percentiles, redrawn_rewards

FEWEST = 10  # prompts: with fewer nothing is decided
RATES = {"HmR": "harmful_reward", "HpR": "helpful_reward"}  # rate: the reward that its labels are made of

Record = dict[str, Any]
Changes = tuple[int, int, int]  # prompts gained, lost, and all


# ---- tests

def exact_mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p of McNemar's test; 1 where no label differs."""
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue) if gained + lost else 1.0


def sign_flips(changes: Sequence[tuple[int, int, int]]) -> float:
    """Return the exact two-sided p of the mean of rate differences, under flips of the signs of all differing prompts.

    `changes`: (gained, lost, n) of every kind of prompt. The paired permutation test: without a difference between the
    models each differing prompt is gained or lost with equal chance, so the gains of a kind are binomial.
    """
    values, weights, observed = np.zeros(1), np.ones(1), 0.0
    for gained, lost, n in changes:
        differing = np.arange(gained + lost + 1)
        values = np.add.outer(values, (2 * differing - gained - lost) / n).ravel()
        weights = np.outer(weights, binom.pmf(differing, gained + lost, 0.5)).ravel()
        observed += (gained - lost) / n
    return min(1.0, float(weights[np.abs(values) > abs(observed) - 1e-9].sum()))


def signed_rank(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on paired differences (prompts,); 1 where all are zero."""
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given (Holm 1979)."""
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


# ---- pairs of models

def changes_of(labels: pd.DataFrame, first: str, second: str) -> Changes:
    """Return (gained, lost, n): the prompts whose label is True of the second model alone, of the first alone, all."""
    gained, lost = labels[second] & ~labels[first], labels[first] & ~labels[second]
    return int(gained.sum()), int(lost.sum()), len(labels)


def rate_difference(gained: int, lost: int, n: int) -> Record:
    """Return the comparison of two rates on the same prompts."""
    return {"difference": 100 * (gained - lost) / n} | paired_difference(gained, lost, n) | {
        "gained": gained, "lost": lost, "n": n, "test": "exact McNemar", "p": exact_mcnemar(gained, lost)}


def cas_difference(changes: Sequence[Changes]) -> Record:
    """Return the comparison of two models' CAS, from the changes on the prompts of either kind; `n`: all prompts."""
    parts = [100 * (gained - lost) / n for gained, lost, n in changes]
    gained, lost, n = (sum(column) for column in zip(*changes))
    return {"difference": sum(parts) / 2} | mean_of_two(parts, [paired_difference(*change) for change in changes]) | {
        "gained": gained, "lost": lost, "n": n, "test": "exact sign flips", "p": sign_flips(changes)}


def reward_difference(first: np.ndarray, second: np.ndarray, draws: np.ndarray) -> Record:
    """Return the comparison of two models' rewards on the same prompts; `draws`: of the mean difference."""
    differences = second - first
    return {"difference": float(differences.mean())} | percentiles(differences, draws) | {
        "gained": int((differences > 0).sum()), "lost": int((differences < 0).sum()), "n": len(differences),
        "test": "Wilcoxon", "p": signed_rank(differences)}


def decide(record: Record, fewest: int) -> str:
    """Return what is known of a difference: decided, suggestive or open; always open with fewer than ten prompts."""
    if fewest < FEWEST or record["low"] is None or record["p"] >= ALPHA:
        return "open"
    clear = record["low"] > 0 or record["high"] < 0
    return "decided" if record["p_holm"] < ALPHA and clear else "suggestive"


def compare(rewards: pd.DataFrame, harmless: pd.DataFrame, helpful: pd.DataFrame, draws: int, seed: int,
            power: bool = True) -> list[Record]:
    """Return one record a measure and pair of models: the second minus the first, over the same prompts.

    Its fields: measure, first, second, difference, low, high (95%), gained, lost, n, test, p, p_holm (over the pairs of
    the measure), decision, and power, which says what 80% power needs (None where it is not asked for).
    """
    models = [name for name in rewards if name in MODELS]
    columns, labels = {name: i for i, name in enumerate(rewards)}, {"HmR": harmless, "HpR": helpful}
    redrawn, records = redrawn_rewards(rewards, draws, seed), []
    for name, kind in MEASURES.items():
        family = []
        for first, second in combinations(models, 2):
            if name in labels:
                changes = changes_of(labels[name], first, second)
                found, needs = rate_difference(*changes), partial(power_of_rate, *changes)
            elif name == "CAS":
                changes = [changes_of(table, first, second) for table in labels.values()]
                found, needs = cas_difference(changes), partial(power_of_cas, changes)
            else:
                (a, b), (i, j) = (rewards.loc[kind][[first, second]].to_numpy().T, (columns[first], columns[second]))
                found = reward_difference(a, b, redrawn[kind][:, j] - redrawn[kind][:, i])
                needs = partial(power_of_reward, b - a)
            family.append({"measure": name, "first": first, "second": second} | found
                          | {"power": needs() if power else None})
        counts = {"harmful": len(harmless), "helpful": len(helpful)}
        fewest = counts[kind] if kind else min(counts.values())
        for record, p_holm in zip(family, holm([record["p"] for record in family])):
            record["p_holm"] = p_holm
            records.append(record | {"decision": decide(record, fewest)})
    return records


# ---- in words

def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def seen(record: Record) -> str:
    """Return the difference of a comparison with its interval, in points or in rewards."""
    digits, unit = (2, "") if "reward" in record["measure"] else (1, " points")
    if record["low"] is None:
        return f"{signed(record['difference'], digits)}{unit} on every prompt"
    ends = ", ".join(signed(record[end], digits) for end in ("low", "high"))
    return f"{signed(record['difference'], digits)}{unit} [{ends}]"


def verdict(record: Record) -> str:
    """Return a sentence on whether two models differ in a measure, and what it would take to know."""
    text = (f"{record['second']} against {record['first']}, {record['measure'].replace('_', ' ')}: {seen(record)}, "
            f"{record['gained']} gained and {record['lost']} lost of {record['n']} prompts, p = {record['p']:.2g}, "
            f"{record['p_holm']:.2g} after Holm: {record['decision']}")
    if record["decision"] == "decided":
        return f"{text}, {record['second']} is {'higher' if record['difference'] > 0 else 'lower'}."
    if record["decision"] == "suggestive":
        corrected = record["p_holm"] < ALPHA
        why = "since the interval includes no difference" if corrected else "once corrected for all pairs"
        return f"{text}, not decided {why}."
    power, unit = record["power"], "" if "reward" in record["measure"] else " points"
    parts = []
    if power["detectable"] is not None:
        parts.append(f"a true difference of {power['detectable']:.{0 if unit else 2}f}{unit} is found with 80% power")
    if power["prompts"] is not None:
        each = " of each kind" * (record["measure"] == "CAS")
        parts.append(f"one like that seen takes about {power['prompts']:,} prompts{each}")
    return f"{text}. " + ("; ".join(parts).capitalize() + "." if parts else "So few prompts find no difference.")


def verdicts(comparisons: Sequence[Record]) -> list[str]:
    """Return a sentence on every pair of models in HmR, HpR and CAS; on a rate with what its rewards say beyond it."""
    known = {(one["measure"], one["first"], one["second"]): one for one in comparisons}
    sentences = []
    for record in comparisons:
        if record["measure"] not in (*RATES, "CAS"):
            continue
        rewards = known.get((RATES.get(record["measure"]), record["first"], record["second"]))
        more = ""
        if rewards and rewards["decision"] == "decided" and (
                record["decision"] != "decided" or rewards["difference"] * record["difference"] < 0):
            more = (f" But the mean reward differs: {seen(rewards)}, p = {rewards['p_holm']:.2g} after Holm: "
                    f"{record['second']} is {'higher' if rewards['difference'] > 0 else 'lower'}.")
        sentences.append(verdict(record) + more)
    return sentences


def headlines(comparisons: Sequence[Record]) -> list[str]:
    """Return a sentence a measure: which pairs are decided, or how large a difference could still be."""
    sentences = []
    for measure in MEASURES:
        family = [record for record in comparisons if record["measure"] == measure]
        decided = [f"{record['second']} {'above' if record['difference'] > 0 else 'below'} {record['first']}"
                   for record in family if record["decision"] == "decided"]
        ends = [record[end] for record in family for end in ("low", "high") if record[end] is not None]
        name = measure.replace("_", " ")
        if decided:
            sentences.append(f"{name}: {len(decided)} of {len(family)} pairs are decided, namely {', '.join(decided)}.")
        elif ends:
            digits, unit = (2, "") if "reward" in measure else (0, " points")
            sentences.append(f"{name}: no difference is decided. The intervals leave room for differences from "
                             f"{signed(min(ends), digits)} to {signed(max(ends), digits)}{unit}.")
    return sentences
