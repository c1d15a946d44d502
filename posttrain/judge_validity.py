"""Check the judge against people, on the pairs of replies between which a person has chosen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from posttrain.comparisons import (
    count_changes,
    describe_wins,
    format_fixed,
    format_percentage,
    format_signed,
)
from posttrain.metrics import (
    HUMAN_REPLIES,
    KINDS,
    add_estimate,
    kinds_of,
    models_of,
    paired_difference,
    pivot_rewards,
    redraw_prompts,
    wilson,
)
from posttrain.other_thresholds import passes

CHOSEN, REJECTED = HUMAN_REPLIES

Record = dict[str, Any]


def pivot_kinds_with_humans(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Arrange the rewards of each kind of prompts on which both human replies were scored.

    Args:
        answers: The table of answers.

    Returns:
        {kind: a table with a row for each prompt and a column for each model and reference}.
    """
    by_kind = {}
    for kind in kinds_of(answers):
        rewards = pivot_rewards(answers, kind)
        if CHOSEN in rewards and REJECTED in rewards:
            by_kind[kind] = rewards
    return by_kind


def check_judge(
    answers: pd.DataFrame, thresholds: Mapping[str, float], draws: int, seed: int
) -> list[Record]:
    """Measure how well the judge's rewards tell human-chosen from human-rejected replies.

    Args:
        answers: The table of answers.
        thresholds: {kind: threshold}.
        draws: The number of bootstrap draws.
        seed: The seed of the draws.

    Returns:
        A record for each kind of prompts whose human replies were scored, with the ends of 95%
        intervals. `kind` and the number of `prompts` are followed by these estimates:

        `agreement`, with its ends `low` and `high`: the percentage of prompts whose chosen reply
        has the higher reward. A tie counts as no agreement.

        `youden`: Youden's J of the threshold (Youden 1950), which is `chosen_rate`, the percentage
        of the chosen replies that pass it, minus `rejected_rate`, that of the rejected ones.

        `auc`: the probability that a chosen reply has a higher reward than a rejected one to any of
        the prompts, ties counting half. Its interval is the percentile bootstrap over prompts; its
        ends are None if all draws give the same.
    """
    records = []
    for kind, rewards in pivot_kinds_with_humans(answers).items():
        n = len(rewards)
        agrees = int((rewards[CHOSEN] > rewards[REJECTED]).sum())
        record = {"kind": kind, "agreement": 100 * agrees / n, "prompts": n, **wilson(agrees, n)}
        passed = passes(rewards, kind, thresholds[kind])
        for name, reply in (("chosen_rate", CHOSEN), ("rejected_rate", REJECTED)):
            count = int(passed[reply].sum())
            add_estimate(record, name, 100 * count / n, wilson(count, n))
        gained, lost, _ = count_changes(passed, REJECTED, CHOSEN)
        interval = paired_difference(gained, lost, n)
        add_estimate(record, "youden", 100 * (gained - lost) / n, interval)
        record |= _estimate_auc(rewards, draws, [seed, KINDS.index(kind)])
        records.append(record)
    return records


def _estimate_auc(rewards: pd.DataFrame, draws: int, seed: Sequence[int]) -> Record:
    """Compute the AUC with its bootstrap interval, in which the replies of a pair stay together."""
    chosen = rewards[CHOSEN].to_numpy()[:, None]
    rejected = rewards[REJECTED].to_numpy()[None, :]
    n = len(rewards)
    # Of each chosen reply over each rejected one.
    wins = np.where(chosen == rejected, 0.5, chosen > rejected)
    counts = redraw_prompts(n, draws, seed).astype(float)
    redrawn = ((counts @ wins) * counts).sum(axis=1) / n**2
    ends = {"low": None, "high": None}
    if np.ptp(redrawn) > 0:
        ends = dict(zip(("low", "high"), np.percentile(redrawn, [2.5, 97.5]).tolist()))
    record: Record = {}
    add_estimate(record, "auc", float(wins.mean()), ends)
    return record


def compare_with_humans(answers: pd.DataFrame) -> list[Record]:
    """Measure how often each model's answer is rewarded above the human-chosen reply.

    Args:
        answers: The table of answers.

    Returns:
        One record for each kind of prompts whose human replies were scored, and each model: kind,
        model, the number of prompts `won`, `lost` and of all `prompts`, and `win_rate` with the
        ends of its 95% interval, in percent. Ties count half.
    """
    records = []
    for kind, rewards in pivot_kinds_with_humans(answers).items():
        for model in models_of(answers):
            won = int((rewards[model] > rewards[CHOSEN]).sum())
            lost = int((rewards[model] < rewards[CHOSEN]).sum())
            record = {"kind": kind, "model": model, "won": won, "lost": lost}
            record["prompts"] = len(rewards)
            records.append(record | describe_wins(won, lost, len(rewards)))
    return records


def list_judge_cautions(
    judge: Sequence[Mapping[str, Any]], kinds: Sequence[str] = KINDS
) -> list[str]:
    """Say on which prompts the judge may not agree with humans, or clearly does not.

    Args:
        judge: The records of `check_judge`.
        kinds: The kinds of prompts that were asked.
    """
    known = [record["kind"] for record in judge]
    unknown = [f"{kind} prompts" for kind in kinds if kind not in known]
    sentences = []
    if unknown:
        where = "here" if not known else f"on {' and '.join(unknown)}"
        sentences.append(
            f"Whether the judge agrees with humans is unknown {where}, since no human replies "
            f"{'' if not known else 'to them '}were scored."
        )
    where_found: dict[str, list[str]] = {}
    for record in judge:
        for problem, numbers in _list_problems(record):
            found = where_found.setdefault(problem, [])
            found.append(f"{record['kind']} prompts ({numbers})")
    for problem, found in where_found.items():
        sentences.append(f"{problem} on {' and '.join(found)}.")
    return sentences


def _list_problems(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the problems of the judge on one kind of prompts, each with the numbers that show it."""
    problems = []
    agreement = f"{record['agreement']:.0f}% [{record['low']:.0f}, {record['high']:.0f}]"
    if record["high"] < 50:
        problem = "The judge agrees with the humans significantly less often than a coin would"
        problems.append((problem, agreement))
    elif record["low"] <= 50:
        problem = "The judge's agreement with the humans cannot be told from chance"
        problems.append((problem, agreement))
    youden = f"{_format_youden(record)} points"
    if record["youden_high"] < 0:
        problem = (
            "Human-chosen replies pass the threshold significantly less often than human-rejected "
            "ones"
        )
        problems.append((problem, youden))
    elif record["youden_low"] <= 0:
        problem = (
            "Whether human-chosen replies pass the threshold more often than human-rejected ones "
            "cannot be told"
        )
        problems.append((problem, youden))
    return problems


def _format_youden(record: Mapping[str, Any]) -> str:
    """Format Youden's J with its interval, in points: +12 [−3, +26]."""
    low, high = (format_signed(record[f"youden_{end}"], 0) for end in ("low", "high"))
    return f"{format_signed(record['youden'], 0)} [{low}, {high}]"


def _format_auc(record: Mapping[str, Any]) -> str:
    """Format the AUC with its interval, if it has one: 0.62 [0.55, 0.69]."""
    text = format_fixed(record["auc"], 2)
    if record["auc_low"] is None:
        return text
    return f"{text} [{record['auc_low']:.2f}, {record['auc_high']:.2f}]"


def tabulate_judge(
    judge: Sequence[Mapping[str, Any]], human_wins: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """Make a table of texts, with a row for each measure and a column for each kind of prompts.

    Args:
        judge: The records of `check_judge`.
        human_wins: The records of `compare_with_humans`.
    """
    rows: dict[str, Record] = {}
    for record in judge:
        kind = record["kind"]
        cells = {
            "agreement: chosen above rejected reply": (
                f"{record['agreement']:.0f}% [{record['low']:.0f}, {record['high']:.0f}]"
            ),
            "chosen replies that pass the threshold": format_percentage(record, "chosen_rate"),
            "rejected replies that pass it": format_percentage(record, "rejected_rate"),
            "Youden's J, their difference in points": _format_youden(record),
            "AUC": _format_auc(record),
        }
        for wins in human_wins:
            if wins["kind"] == kind:
                name = f"win rate of {wins['model']} over the chosen reply"
                cells[name] = format_percentage(wins, "win_rate")
        for name, cell in cells.items():
            row = rows.setdefault(name, {"measure": name})
            row[f"{kind} prompts (n = {record['prompts']})"] = cell
    return pd.DataFrame(list(rows.values()))
