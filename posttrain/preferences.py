"""Statistics of a person's votes: how often each model wins, and how often the judge agrees.

Votes on the same prompt are not independent of each other. All intervals but those of the win
rates, in which each prompt occurs once, take the prompts and not the votes as what was drawn.
"""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

# With fewer prompts than FEWEST_PROMPTS kappa has no interval.
from posttrain.comparisons import FEWEST_PROMPTS, describe_wins
from posttrain.metrics import KINDS, add_estimate, redraw_prompts

WINNERS = ("first", "tie", "second")
DRAWS = 10_000  # of the bootstrap over prompts
SEED = 0

Record = dict[str, Any]


def measure_votes(table: pd.DataFrame, models: Sequence[str]) -> Record:
    """Compute who wins, and how often the judge agrees with the person.

    Args:
        table: of `votes.tabulate_votes`.
        models: the run's, in order.

    Returns:
        {"votes", "ties", "same": numbers of votes, of ties among them, and of ties of equal
        answers; "first_chosen": how often the answer that stood first was chosen; "win_rates":
        of `compute_win_rates`; "judge": of `compare_with_judge`, empty without rewards}.
    """
    decided = table[table["winner"] != "tie"]
    record = {
        "votes": len(table),
        "ties": int((table["winner"] == "tie").sum()),
        "same": int(table["is_same"].sum()),
        "win_rates": compute_win_rates(table, models),
        "judge": compare_with_judge(table) if table["judged"].notna().all() else [],
        "bootstrap": {"draws": DRAWS, "seed": SEED},
    }
    if len(decided):
        _add_share(record, "first_chosen", decided["winner"] == "first", decided["id"])
    return record


def compute_win_rates(table: pd.DataFrame, models: Sequence[str]) -> list[Record]:
    """Compute for each pair of models how often the person finds the second one's answer better.

    Ties count half.

    Args:
        table: of `votes.tabulate_votes`.
        models: the run's, in order.

    Returns:
        For each kind of prompts and pair with a vote {"kind", "first", "second", "won", "lost",
        "tied", "n"}, the numbers of prompts that the second model has won and lost, and
        the fields of `comparisons.describe_wins`, of the second model over the first.
    """
    records = []
    for kind, (first, second) in product(KINDS, combinations(models, 2)):
        part = table[table["kind"] == kind]
        straight = part.loc[(part["first"] == first) & (part["second"] == second), "winner"]
        turned = part.loc[(part["first"] == second) & (part["second"] == first), "winner"]
        n = len(straight) + len(turned)
        if n == 0:
            continue
        won = int((straight == "second").sum() + (turned == "first").sum())
        lost = int((straight == "first").sum() + (turned == "second").sum())
        record = {"kind": kind, "first": first, "second": second}
        record |= {"won": won, "lost": lost, "tied": n - won - lost, "n": n}
        records.append(record | describe_wins(won, lost, n))
    return records


# ---- the judge and the person


def compare_with_judge(table: pd.DataFrame) -> list[Record]:
    """Compute how often the judge agrees with the person, on each kind of prompts and on all.

    Equal answers are left out, since nobody was asked about them.

    Args:
        table: of `votes.tabulate_votes`, with the judge's preferences.

    Returns:
        For each kind of prompts with votes, and for "both" if there are two, a record {"kind",
        "votes", "prompts", "decided", "agreement", "kappa"} with the ends of the two intervals.
        `agreement` is the percentage of the `decided` votes, those that are no ties, in which the
        judge gives the answer that the person prefers the higher reward; it is missing if all
        votes are ties. `kappa` is Cohen's, with ties, and may be None.
    """
    asked = table[~table["is_same"]]
    parts = {kind: asked[asked["kind"] == kind] for kind in KINDS}
    parts = {kind: part for kind, part in parts.items() if len(part)}
    if len(parts) > 1:
        parts["both"] = asked
    records = []
    for kind, part in parts.items():
        decided = part[part["winner"] != "tie"]
        record = {"kind": kind, "votes": len(part), "prompts": part["id"].nunique()}
        record["decided"] = len(decided)
        if len(decided):
            agrees = decided["winner"] == decided["judged"]
            _add_share(record, "agreement", agrees, decided["id"])
        add_estimate(record, "kappa", *_measure_kappa(part))
        records.append(record)
    return records


def _add_share(record: Record, name: str, values: pd.Series, prompts: pd.Series) -> None:
    """Add a percentage of votes to a record, with an interval that `clustered_wilson` gives."""
    groups = pd.DataFrame({"prompt": prompts, "yes": values}).groupby("prompt")["yes"]
    interval = clustered_wilson(groups.sum().to_numpy(), groups.count().to_numpy())
    add_estimate(record, name, 100 * float(values.mean()), interval)


def clustered_wilson(successes: np.ndarray, votes: np.ndarray) -> dict[str, float]:
    """Compute the 95% interval of a rate of votes, of which several are on the same prompt.

    This is Wilson's interval with the effective number of votes: their number divided by the
    design effect, the variance of the rate over prompts relative to that of independent votes
    (Kish 1965; Franco, Little, Louis and Slud 2019). If all votes are equal, their variance tells
    nothing, and each prompt counts as one vote.

    Args:
        successes: how many votes of each prompt are successes, of shape (prompts,).
        votes: how many votes each prompt has.

    Returns:
        {"low", "high"}, in percent.
    """
    prompts, n = len(votes), votes.sum()
    rate = successes.sum() / n
    effective = prompts
    if 0 < rate < 1 and prompts > 1:
        residuals = successes - rate * votes
        variance = prompts / (prompts - 1) * (residuals**2).sum() / n**2
        # Votes on one prompt that contradict each other are no more than independent ones.
        effective = min(n, rate * (1 - rate) / variance) if variance > 0 else n
    low, high = proportion_confint(rate * effective, effective, method="wilson")
    return {"low": 100 * float(low), "high": 100 * float(high)}


def _measure_kappa(part: pd.DataFrame) -> tuple[float | None, dict[str, float | None]]:
    """Compute Cohen's kappa of person and judge, and its bootstrap interval over prompts."""
    tables = []
    for _, votes in part.groupby("id"):
        tables.append(count_both_ways(votes["winner"], votes["judged"]).ravel())
    counts = np.array(tables)
    kappa = kappas_of(counts.sum(axis=0).reshape(1, 3, 3))[0]
    nothing = {"low": None, "high": None}
    if np.isnan(kappa):
        return None, nothing
    drawn = redraw_prompts(len(counts), DRAWS, SEED) @ counts
    kappas = kappas_of(drawn.reshape(-1, 3, 3))
    kappas = kappas[~np.isnan(kappas)]
    if len(counts) < FEWEST_PROMPTS or np.ptp(kappas) == 0:
        return float(kappa), nothing
    low, high = np.percentile(kappas, [2.5, 97.5]).tolist()
    return float(kappa), {"low": low, "high": high}


def count_both_ways(person: pd.Series, judge: pd.Series) -> np.ndarray:
    """Count the preferences of person and judge, each vote in both orders of its answers.

    Which answer stood first was drawn at random, so that kappa must not depend on it.

    Args:
        person: of WINNERS, a value a vote.
        judge: likewise.

    Returns:
        Counts of shape (3, 3), the person's preference by the judge's, in the order of WINNERS.
    """
    counts = np.zeros((3, 3), dtype=int)
    for one, other in zip(person, judge, strict=True):
        counts[WINNERS.index(one), WINNERS.index(other)] += 1
    return counts + counts[::-1, ::-1]


def kappas_of(counts: np.ndarray) -> np.ndarray:
    """Compute Cohen's kappa (1960) of tables of counts: agreement beyond that of chance.

    Args:
        counts: of shape (tables, categories, categories).

    Returns:
        Kappas of shape (tables,), NaN where both raters always give the same one category.
    """
    shares = counts / counts.sum(axis=(1, 2), keepdims=True)
    agreement = np.trace(shares, axis1=1, axis2=2)
    by_chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
    is_defined = by_chance < 1
    return np.where(is_defined, agreement - by_chance, np.nan) / np.where(
        is_defined, 1 - by_chance, 1
    )
