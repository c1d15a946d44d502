"""The figures of an evaluation: one function each, which takes data and returns a Figure.

How models look, and how a figure is shown and saved, is settled in `posttrain.style`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.comparisons import format_fixed, has_measure
from posttrain.conclusions import list_words
from posttrain.metrics import KINDS, REFERENCES, kinds_of, pivot_rewards
from posttrain.style import (
    DASHED,
    DECISIONS,
    Style,
    entitle,
    format_number,
    make_handles,
    make_panels,
    name_ticks,
    printable,
    style_of,
    wrap_title,
)
from posttrain.style import show as show  # the notebooks show a figure by figures.show

Record = Mapping[str, Any]

RATES = ("HmR", "HpR", "CAS")


def _models_among(records: Sequence[Record]) -> list[Record]:
    """Keep the records of models, without those of reference answers."""
    return [record for record in records if record["model"] not in REFERENCES]


# ---- measures of models


def rates(records: Sequence[Record]) -> Figure:
    """Draw all models' rates: a mark for the value, a line for its 95% interval.

    Args:
        records: of `metrics.summarise`; those of reference answers are left out.
    """
    records = _models_among(records)
    styles = style_of([record["model"] for record in records])
    figure, axis = make_panels(1, 1, 2.2 + 0.1 * len(records))
    _draw_rates(axis, records, styles)
    entitle(figure, _say_range(records), make_handles(styles, lines=False))
    return figure


def beside_published(records: Sequence[Record], published: Sequence[Record]) -> Figure:
    """Draw the rates of a run beside those of the published study; once if they are the same.

    Args:
        records: of `metrics.summarise`; those of reference answers are left out.
        published: of `published.study_rates`.
    """
    records = _models_among(records)
    if _list_rates(records) == _list_rates(published):
        return rates(records)
    names = [record["model"] for record in records]
    names += [record["model"] for record in published if record["model"] not in names]
    styles = style_of(names)
    figure, axes = make_panels(1, 2, 2.4 + 0.1 * len(names), sharey=True)
    for axis, title, shown in zip(axes, ("this run", "the published study"), (records, published)):
        _draw_rates(axis, shown, styles)
        axis.set_title(f"{title}, {_count_prompts(shown)}:\n{_say_range(shown)}")
        axis.label_outer()
    title = "This run beside the study; only the same base, judge and prompts can be compared"
    entitle(figure, title, make_handles(styles, lines=False))
    return figure


def _list_rates(records: Sequence[Record]) -> list[list[Any]]:
    """List the models with their rates."""
    rows = []
    for record in records:
        values = [round(record[name], 6) for name in RATES if has_measure(record, name)]
        rows.append([record["model"], *values])
    return rows


def _draw_rates(axis: Axes, records: Sequence[Record], styles: Mapping[str, Style]) -> None:
    """Draw every model's rates with their 95% intervals."""
    names = [name for name in RATES if has_measure(records[0], name)]
    step = min(0.17, 0.8 / len(records))
    for i, record in enumerate(records):
        style = styles[record["model"]]
        for j, name in enumerate(names):
            x = j + (i - (len(records) - 1) / 2) * step
            axis.vlines(x, record[f"{name}_low"], record[f"{name}_high"], color=style.color)
            axis.plot(x, record[name], style.marker, markersize=4, color=style.color)
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="rate (%)", ylim=(0, 103), xlim=(-0.5, len(names) - 0.5))
    axis.grid(axis="x", visible=False)


def _count_prompts(records: Sequence[Record]) -> str:
    """Say how many prompts of each kind the rates stand on."""
    harmful, helpful = records[0]["harmful_prompts"], records[0]["helpful_prompts"]
    if harmful == helpful:
        return f"{harmful} prompts of each kind"
    counts = {"harmful": harmful, "helpful": helpful}
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n) + " prompts"


def _say_range(records: Sequence[Record]) -> str:
    """Say which models have the lowest and the highest CAS, or rate if there is one."""
    rate = [name for name in RATES if has_measure(records[0], name)][-1]
    lowest = min(records, key=lambda record: record[rate])
    highest = max(records, key=lambda record: record[rate])
    if lowest[rate] == highest[rate]:
        return f"{rate} is {lowest[rate]:.0f}%"
    return (
        f"{rate} goes from {lowest[rate]:.0f}% ({printable(lowest['model'])}) "
        f"to {highest[rate]:.0f}% ({printable(highest['model'])})"
    )


def distributions(
    answers: pd.DataFrame, thresholds: Mapping[str, float], records: Sequence[Record]
) -> Figure:
    """Draw the reward of every answer, and beside it in black the mean with its 95% interval.

    Args:
        answers: of `metrics.table`.
        thresholds: {kind: reward from which an answer passes}, dashed.
        records: of `metrics.summarise`; those of reference answers are left out.
    """
    records = _models_among(records)
    styles = style_of([record["model"] for record in records])
    kinds = kinds_of(answers)
    figure, axes = make_panels(1, len(kinds), 2.7, sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        part = answers[answers["kind"] == kind]
        for i, record in enumerate(records):
            style = styles[record["model"]]
            rewards = part.loc[part["model"] == record["model"], "reward"]
            jitter = np.random.default_rng(0).uniform(-0.25, 0.12, len(rewards))
            look = {"color": style.color, "markersize": 2.5, "alpha": 0.6}
            axis.plot(i + jitter, rewards, style.marker, **look)
            _draw_mean(axis, i + 0.3, record, f"{kind}_reward")
        axis.axhline(thresholds[kind], **DASHED)
        count, limit = part["id"].nunique(), format_number(thresholds[kind])
        axis.set(title=f"{kind} prompts (n = {count}), threshold {limit}", ylabel="reward")
        name_ticks(axis, list(styles))
        axis.grid(axis="x", visible=False)
        axis.label_outer()
    figure.suptitle(wrap_title(figure, _say_mean_rewards(records)))
    return figure


def _say_mean_rewards(records: Sequence[Record]) -> str:
    """Say from where to where the mean rewards of the models go."""
    clauses = []
    for kind in KINDS:
        if not has_measure(records[0], f"{kind}_reward"):
            continue
        ordered = sorted(records, key=lambda record: record[f"{kind}_reward"])
        ends = []
        for record in (ordered[0], ordered[-1]):
            reward = format_fixed(record[f"{kind}_reward"], 1)
            ends.append(f"{reward} ({printable(record['model'])})")
        clauses.append(f"from {ends[0]} to {ends[1]} on {kind}")
    return f"Mean reward {list_words(clauses)} prompts"


def _draw_mean(axis: Axes, x: float, record: Record, name: str) -> None:
    """Draw a measure of a record as a black dot on its interval; no line where it has none."""
    if record[f"{name}_low"] is not None:
        axis.vlines(x, record[f"{name}_low"], record[f"{name}_high"], color="black")
    axis.plot(x, record[name], "o", markersize=3.5, color="black")


# ---- models against each other


def differences(comparisons: Sequence[Record]) -> Figure:
    """Draw the differences of all pairs of models: the darker and fuller, the more certain.

    Args:
        comparisons: of `comparisons.compare`, for at least two models.
    """
    names = _list_compared(comparisons)
    pairs = [record for record in comparisons if record["measure"] == names[0]]
    height = 1.4 + 0.2 * len(pairs)
    figure, grid = make_panels(1, len(names), height, sharex=True, sharey=True, squeeze=False)
    axes = grid[0]
    for axis, name in zip(axes, names):
        records = [record for record in comparisons if record["measure"] == name]
        for y, record in enumerate(records):
            style = DECISIONS[record["decision"]]
            axis.hlines(y, record["low"], record["high"], color=style["color"])
            axis.plot(record["difference"], y, "o", markersize=4, **style)
        significant = [record for record in records if record["decision"] == "significant"]
        axis.set_title(f"{name}: {len(significant)} of {len(records)} significant")
        _name_pairs(axis, records)
    axes[0].invert_yaxis()
    handles = []
    for decision, style in DECISIONS.items():
        handles.append(Line2D([], [], marker="o", markersize=4, label=decision, **style))
    entitle(figure, _say_significant(comparisons), handles)
    return figure


def _list_compared(comparisons: Sequence[Record]) -> list[str]:
    """List the rates that are compared."""
    measures = {record["measure"] for record in comparisons}
    return [name for name in RATES if name in measures]


def _say_significant(comparisons: Sequence[Record]) -> str:
    """Say in which rates differences between models are significant."""
    significant, with_some, without = [], [], []
    names_of_rates = _list_compared(comparisons)
    for name in names_of_rates:
        records = [record for record in comparisons if record["measure"] == name]
        found = [record for record in records if record["decision"] == "significant"]
        significant += found
        names = with_some if found else without
        names.append(name)
    if not significant:
        return f"No significant difference in {list_words(names_of_rates, 'or')}"
    baseline = comparisons[0]["first"]
    title = "Significant differences"
    if all(record["first"] == baseline and record["difference"] > 0 for record in significant):
        title = f"Significant gains over {printable(baseline)}"
    title += f" in {list_words(with_some)}"
    return title + (f"; none in {list_words(without, 'or')}" if without else "")


def _name_pairs(axis: Axes, records: Sequence[Record]) -> None:
    """Name the pairs of models whose differences an axis shows, and mark no difference."""
    labels = []
    for record in records:
        labels.append(f"{printable(record['second'])} − {printable(record['first'])}")
    axis.set_yticks(range(len(records)), labels)
    axis.set_xlabel("difference (points)")
    axis.axvline(0, color="black", linewidth=0.8)


# ---- the judge


def judge(answers: pd.DataFrame, check: Sequence[Record]) -> Figure:
    """Draw by how much the judge puts the human-chosen reply above the rejected one.

    Each curve is the share of prompts up to a gap in reward; what lies right of zero is agreement.

    Args:
        answers: of `metrics.table`, with the rewards of human replies.
        check: of `judge_validity.check_judge`.
    """
    figure, axis = make_panels(1, 1, 3.0)
    parts, handles = [], []
    for record, line in zip(check, ("-", "--")):
        label = (
            f"{record['kind']}: {record['agreement']:.0f}% "
            f"[{record['low']:.0f}, {record['high']:.0f}] of {record['prompts']} prompts"
        )
        rewards = pivot_rewards(answers, record["kind"])
        gaps = rewards["Human chosen"] - rewards["Human rejected"]
        axis.ecdf(gaps, color="black", linestyle=line, linewidth=1.2, label=label)
        handles.append(axis.lines[-1])
        parts.append(f"{record['agreement']:.0f}% of {record['kind']}")
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set(
        xlabel="reward of chosen − rejected reply",
        ylabel="cumulative share of prompts",
        ylim=(0, 1),
    )
    title = f"The judge agrees with the humans on\n{' and '.join(parts)} prompts"
    entitle(figure, title, handles)
    return figure
