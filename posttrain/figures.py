"""The figures: one function a figure, which takes data and returns a Figure.

How models look, and how a figure is shown and saved, is settled in `posttrain.style`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.metrics import KINDS, REFERENCES, models_of, pivot_rewards
from posttrain.style import (
    DASHED,
    DECISIONS,
    DOTTED,
    Style,
    entitle,
    format_number,
    make_handles,
    make_panels,
    name_ticks,
    printable,
    style_of,
)
from posttrain.style import show as show  # the notebooks show a figure by figures.show

Record = Mapping[str, Any]

RATES = ("HmR", "HpR", "CAS")
MEASURE_LABELS = {
    "harmful_reward": "reward on\nharmful prompts",
    "helpful_reward": "reward on\nhelpful prompts",
}


def _models_among(records: Sequence[Record]) -> list[Record]:
    """Keep the records of models, without those of reference answers."""
    return [record for record in records if record["model"] not in REFERENCES]


# ---- training


def lengths(pairs: Sequence[Record], max_length: int) -> Figure:
    """Draw how many tokens the training's pairs have: prompt, longer reply and end.

    Args:
        pairs: of `data.load_pairs`, each with its "length".
        max_length: the tokens that a pair may have, dashed.
    """
    counts = [pair["length"] for pair in pairs]
    figure, axis = make_panels(1, 1, 2.2)
    axis.hist(counts, bins=40, color="0.45")
    axis.axvline(max_length, **DASHED)
    axis.set(xlabel="length of a pair (tokens)", ylabel="pairs")
    axis.set_title(f"Half of the pairs have at most {np.median(counts):.0f} of {max_length} tokens")
    return figure


def training(log: Mapping[str, Sequence[Record]], models: Sequence[str]) -> Figure:
    """Draw how all stages of training went: lines of training batches, marks of held-out pairs.

    Stages whose log has reward margins are trained on preferences and have three panels, the
    others one for their loss. Dotted: the held-out loss before the first step, and an accuracy of
    one half. Before the first step every margin is zero and the accuracy means nothing, so it
    begins after it.

    Args:
        log: training.json, {model: log records}.
        models: all names of the run's models in order, for their styles.
    """
    styles = style_of(models)
    tables = {name: pd.DataFrame(log[name]).set_index("step") for name in log}
    imitating, preferring = [], []
    for name, table in tables.items():
        names = preferring if "rewards/margins" in table else imitating
        names.append(name)
    panels = []
    if imitating:
        panels.append(("loss", "loss (nats per token)", imitating))
    if preferring:
        panels.append(("loss", "preference loss", preferring))
        panels.append(("rewards/margins", "reward margin", preferring))
        panels.append(("rewards/accuracies", "reward accuracy (share)", preferring))
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = make_panels(rows, columns, 2.2 * rows + 0.6, squeeze=False)
    for axis, (key, label, names) in zip(axes.flat, panels):
        for name in names:
            _draw_stage(axis, tables[name], key, styles[name])
        axis.set(xlabel="optimizer step", ylabel=label)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    fallen = [name for name, table in tables.items() if _falls(_logged(table, "eval_loss"))]
    stages = "model" if len(tables) == 1 else "models"
    title = f"Held-out loss fell in {len(fallen)} of {len(tables)} trained {stages}"
    entitle(figure, title, make_handles({name: styles[name] for name in log}))
    return figure


def _draw_stage(axis: Axes, table: pd.DataFrame, key: str, style: Style) -> None:
    """Draw one quantity of a stage's log, of training batches and of held-out pairs."""
    batches, held_out = _logged(table, key), _logged(table, f"eval_{key}")
    if key == "rewards/accuracies":
        # The first step's batch is still that of the untrained model.
        batches, held_out = batches[batches.index > 1], held_out[held_out.index > 0]
        axis.axhline(0.5, **DOTTED)
    if key == "loss" and "rewards/margins" in table and 0 in held_out.index:
        axis.axhline(held_out.loc[0], **DOTTED)
    axis.plot(batches, linestyle=style.line, color=style.color, linewidth=1.2)
    axis.plot(held_out, style.marker, color=style.color, markersize=4)


def _logged(table: pd.DataFrame, key: str) -> pd.Series:
    """Take a quantity's values by step from a log; empty where it was never logged."""
    return table[key].dropna() if key in table else pd.Series(dtype=float)


def _falls(losses: pd.Series) -> bool:
    """Tell whether the last held-out loss is below the first."""
    return len(losses) > 1 and losses.iloc[-1] < losses.iloc[0]


# ---- measures of models


def measures(
    records: Sequence[Record],
    names: Sequence[str],
    title: str,
    ylabel: str,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Draw measures of all models: a mark for the value and a line for its 95% interval.

    Args:
        records: of `metrics.summarise`; those of reference answers are left out.
        names: the measures, such as HmR.
        title: the figure's.
        ylabel: of the values' axis, with their unit.
        ylim: its ends; None takes those of the data.
    """
    records = _models_among(records)
    styles = style_of([record["model"] for record in records])
    figure, axis = make_panels(1, 1, 2.2 + 0.1 * len(records))
    step = min(0.17, 0.8 / len(records))
    for i, record in enumerate(records):
        style = styles[record["model"]]
        for j, name in enumerate(names):
            x = j + (i - (len(records) - 1) / 2) * step
            if record[f"{name}_low"] is not None:
                axis.vlines(x, record[f"{name}_low"], record[f"{name}_high"], color=style.color)
            axis.plot(x, record[name], style.marker, markersize=4, color=style.color)
    labels = [MEASURE_LABELS.get(name, name) for name in names]
    axis.set_xticks(range(len(names)), labels)
    axis.set(ylabel=ylabel, ylim=ylim, xlim=(-0.5, len(names) - 0.5))
    axis.grid(axis="x", visible=False)
    entitle(figure, title, make_handles(styles, lines=False))
    return figure


def distributions(
    answers: pd.DataFrame, thresholds: Mapping[str, float], records: Sequence[Record]
) -> Figure:
    """Draw the reward of every answer, and beside it the mean with its 95% interval.

    Args:
        answers: of `metrics.table`.
        thresholds: {kind: reward from which an answer passes}, dashed.
        records: of `metrics.summarise`; those of reference answers are left out.
    """
    records = _models_among(records)
    styles = style_of([record["model"] for record in records])
    figure, axes = make_panels(1, 2, 2.7, sharey=True)
    for axis, kind in zip(axes, KINDS):
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
    figure.suptitle("Reward of every answer, and the mean with its 95% interval")
    return figure


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
    pairs = [record for record in comparisons if record["measure"] == RATES[0]]
    figure, axes = make_panels(1, 3, 1.4 + 0.2 * len(pairs), sharex=True, sharey=True)
    for axis, name in zip(axes, RATES):
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
    entitle(figure, "Differences between models, with 95% intervals", handles)
    return figure


def _name_pairs(axis: Axes, records: Sequence[Record]) -> None:
    """Name the pairs of models whose differences an axis shows, and mark no difference."""
    labels = []
    for record in records:
        labels.append(f"{printable(record['second'])} − {printable(record['first'])}")
    axis.set_yticks(range(len(records)), labels)
    axis.set_xlabel("difference (points)")
    axis.axvline(0, color="black", linewidth=0.8)


def across_runs(differences: Sequence[Record]) -> Figure:
    """Draw the differences of all pairs of models over several runs.

    Args:
        differences: of `compare.differences_across`.
    """
    pairs = [record for record in differences if record["measure"] == RATES[0]]
    figure, axes = make_panels(1, 3, 1.4 + 0.3 * len(pairs), sharex=True, sharey=True)
    for axis, name in zip(axes, RATES):
        records = [record for record in differences if record["measure"] == name]
        for y, record in enumerate(records):
            for value, low, high in zip(
                record["values"], record["prompts_low"], record["prompts_high"]
            ):
                axis.hlines(y + 0.2, low, high, color="0.8")
                axis.plot(value, y + 0.2, "|", markersize=6, color="0.4")
            if record["low"] is not None:
                axis.hlines(y - 0.15, record["low"], record["high"], color="black")
            axis.plot(record["mean"], y - 0.15, "o", markersize=4, color="black")
        axis.set_title(name)
        _name_pairs(axis, records)
    axes[0].invert_yaxis()
    handles = [
        Line2D([], [], color="black", marker="o", markersize=4, label="mean, interval over runs"),
        Line2D([], [], color="0.4", marker="|", linestyle="", label="one run"),
        Line2D([], [], color="0.8", label="its interval over prompts"),
    ]
    entitle(figure, "Differences between models over several runs", handles)
    return figure


def win_rates(answers: pd.DataFrame) -> Figure:
    """Draw how often a row's model is rewarded above a column's, in percent of prompts.

    Ties count half.

    Args:
        answers: of `metrics.table`, for at least two models.
    """
    models = models_of(answers)
    figure, axes = make_panels(1, 2, 1.7 + 0.25 * len(models), sharey=True)
    image = None
    for axis, kind in zip(axes, KINDS):
        rewards = pivot_rewards(answers, kind)[models].to_numpy()
        # 1: the row's model always has more, 0: as often as not, -1: never.
        ahead = np.sign(rewards[:, :, None] - rewards[:, None, :]).mean(0)
        above_diagonal = np.triu(np.ones_like(ahead, dtype=bool))
        percent = np.ma.masked_where(above_diagonal, 50 + 50 * ahead)[1:, :-1]
        image = axis.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (i, j), value in np.ma.ndenumerate(percent):
            color = "white" if value > 60 else "black"
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", color=color)
        name_ticks(axis, models[:-1])
        axis.set_yticks(range(len(models) - 1), [printable(name) for name in models[1:]])
        axis.set(
            title=f"{kind} prompts (n = {len(rewards)})",
            ylabel="this model ...",
            xlabel="... above this one",
        )
        axis.label_outer()
        axis.grid(visible=False)
    figure.suptitle("How often one model is rewarded above another")
    figure.colorbar(image, ax=axes, label="rewarded higher (% of prompts)")
    return figure


# ---- the judge


def thresholds(
    sweeps: Mapping[str, pd.DataFrame], chosen: Mapping[str, float], models: Sequence[str]
) -> Figure:
    """Draw both rates of all models at every threshold, the chosen one dashed.

    Args:
        sweeps: {kind: of `diagnostics.sweep`}.
        chosen: {kind: threshold}.
        models: names of the run's models in order, for their styles.
    """
    styles = style_of(models)
    figure, axes = make_panels(1, 2, 2.7, sharey=True)
    for axis, (kind, table) in zip(axes, sweeps.items()):
        for name in table.columns:
            style = styles[name]
            axis.plot(table.index, table[name], linestyle=style.line, color=style.color)
            # A few marks tell the lines apart where they cross.
            some = table[name].iloc[10::45]
            axis.plot(some, style.marker, color=style.color, markersize=3.5)
        axis.axvline(chosen[kind], **DASHED)
        axis.set(
            title=f"{kind} prompts, threshold {format_number(chosen[kind])}",
            xlabel="threshold on the reward",
            ylabel="rate (%)",
        )
        axis.label_outer()
    entitle(figure, "Rates at every other threshold", make_handles(styles))
    return figure


def judge(answers: pd.DataFrame, check: Sequence[Record]) -> Figure:
    """Draw by how much the judge puts the human-chosen reply above the rejected one.

    Each curve is the share of prompts up to a gap in reward; what lies right of zero is agreement.

    Args:
        answers: of `metrics.table`, with the rewards of human replies.
        check: of `diagnostics.check_judge`.
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
        ylabel="share of prompts",
        ylim=(0, 1),
    )
    title = f"The judge agrees with the humans on\n{' and '.join(parts)} prompts"
    entitle(figure, title, handles)
    return figure
