"""One palette, one style, one function a figure, which takes data and returns the figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.stats import KINDS

# The models' colours stay apart under colour blindness (Okabe and Ito 2008).
COLOURS = {"Base": "#7F7F7F", "SFT": "#0072B2", "DPO": "#E69F00", "SFT+DPO": "#009E73"}
MARKERS = {"Base": "o", "SFT": "s", "DPO": "^", "SFT+DPO": "D"}  # and apart without colour
LINES = {"Base": ":", "SFT": "-", "DPO": "--", "SFT+DPO": "-."}
# What is decided is dark and filled, what is open light and hollow: they stay apart in greyscale.
DECISIONS = {"decided": {"color": "black"}, "suggestive": {"color": "0.45"}, "open": {"color": "0.65"}}
LABELS = {"HmR": "HmR", "HpR": "HpR", "CAS": "CAS", "harmful_reward": "reward on\nharmful prompts",
          "helpful_reward": "reward on\nhelpful prompts"}
ONE_COLUMN, TWO_COLUMNS = 3.4, 6.8  # inches, of a paper
mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 300,
                     "pdf.fonttype": 42, "figure.constrained_layout.use": True})

Record = Mapping[str, Any]


def _panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of so many inches and its axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **options)


def training(log: Mapping[str, Sequence[Record]]) -> Figure:
    """Return the curves of all stages, lines of training batches and marks of held-out pairs.

    `log`: training.json. Dotted: the loss of a model that has not moved, and the accuracy of a coin. Before the first
    step every margin is zero and the accuracy means nothing, so it begins with the first step.
    """
    panels = [("loss", "SFT loss (nats per token)", ["SFT"]), ("loss", "DPO loss", ["DPO", "SFT+DPO"]),
              ("rewards/margins", "reward margin", ["DPO", "SFT+DPO"]),
              ("rewards/accuracies", "reward accuracy", ["DPO", "SFT+DPO"])]
    figure, axes = _panels(2, 2, TWO_COLUMNS, 4.4)
    for axis, (key, label, names) in zip(axes.flat, panels):
        for name in names:
            records = pd.DataFrame(log[name]).set_index("step")
            batches, held_out = records[key].dropna(), records[f"eval_{key}"].dropna()
            if key == "rewards/accuracies":  # the first step's batch is still the untrained model's
                batches, held_out = batches[batches.index > 1], held_out[held_out.index > 0]
            axis.plot(batches, LINES[name], color=COLOURS[name], linewidth=1.2)
            axis.plot(held_out, MARKERS[name], color=COLOURS[name], markersize=4)
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0, 1].axhline(math.log(2), color="0.4", linewidth=0.8, linestyle=":")
    axes[1, 1].axhline(0.5, color="0.4", linewidth=0.8, linestyle=":")
    handles = [Line2D([], [], color=COLOURS[name], linestyle=LINES[name], marker=MARKERS[name], markersize=4,
                      label=name) for name in ("SFT", "DPO", "SFT+DPO")]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def measures(models: Sequence[Record], names: Sequence[str], ylabel: str, ylim: tuple | None = None) -> Figure:
    """Return measures of the models, a dot for the value and a line for its 95% interval; `models`: model records."""
    models = [record for record in models if record["model"] in COLOURS]
    figure, axis = _panels(1, 1, ONE_COLUMN, 2.4)
    for i, record in enumerate(models):
        for j, name in enumerate(names):
            x = j + (i - (len(models) - 1) / 2) * 0.17
            if record[f"{name}_low"] is not None:
                axis.vlines(x, record[f"{name}_low"], record[f"{name}_high"], color=COLOURS[record["model"]])
            axis.plot(x, record[name], MARKERS[record["model"]], markersize=4, color=COLOURS[record["model"]],
                      label=record["model"] if j == 0 else None)
    axis.set(xticks=range(len(names)), xticklabels=[LABELS[name] for name in names], ylabel=ylabel, ylim=ylim,
             xlim=(-0.5, len(names) - 0.5))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=len(models), columnspacing=1, handletextpad=0.2)
    return figure


def distributions(rewards: pd.DataFrame, thresholds: Mapping[str, float], models: Sequence[Record]) -> Figure:
    """Return every model's rewards, a dot a response, beside their mean and its interval; the threshold dashed."""
    models = [record for record in models if record["model"] in COLOURS]
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.6, sharey=True)
    for axis, kind in zip(axes, KINDS):
        for i, record in enumerate(models):
            values = rewards.loc[kind][record["model"]]
            spread = np.random.default_rng(0).uniform(-0.22, 0.12, len(values))
            axis.plot(i + spread, values, ".", markersize=3, color=COLOURS[record["model"]])
            mean, low, high = (record[f"{kind}_reward{end}"] for end in ("", "_low", "_high"))
            if low is not None:
                axis.vlines(i + 0.28, low, high, color="black")
            axis.plot(i + 0.28, mean, "o", markersize=3.5, color="black")
        axis.axhline(thresholds[kind], color="black", linestyle="--", linewidth=0.8)
        axis.set(title=f"{kind} prompts", ylabel="reward", xticks=range(len(models)),
                 xticklabels=[record["model"] for record in models])
        axis.grid(axis="x", visible=False)
        axis.label_outer()
    return figure


def differences(comparisons: Sequence[Record]) -> Figure:
    """Return a forest plot of all pairs of models: the darker and fuller, the more is decided."""
    figure, axes = _panels(1, 3, TWO_COLUMNS, 2.4, sharex=True, sharey=True)
    for axis, name in zip(axes, ("HmR", "HpR", "CAS")):
        records = [record for record in comparisons if record["measure"] == name]
        for y, record in enumerate(records):
            style = DECISIONS[record["decision"]]
            axis.hlines(y, record["low"], record["high"], **style)
            axis.plot(record["difference"], y, "o", markersize=4,
                      markerfacecolor="white" if record["decision"] == "open" else style["color"], **style)
        axis.axvline(0, color="black", linewidth=0.8)
        labels = [f"{record['second']} − {record['first']}" for record in records]
        axis.set(xlabel=f"difference in {name} (points)", yticks=range(len(records)), yticklabels=labels)
    axes[0].invert_yaxis()
    handles = [Line2D([], [], marker="o", markersize=4, label=name,
                      markerfacecolor="white" if name == "open" else style["color"], **style)
               for name, style in DECISIONS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def seeds(differences: Sequence[Record]) -> Figure:
    """Return the six pairs' differences of every training seed, their t interval, and the first run's over prompts.

    `differences`: of `seeds.differences`.
    """
    figure, axes = _panels(1, 3, TWO_COLUMNS, 2.6, sharex=True, sharey=True)
    for axis, name in zip(axes, ("HmR", "HpR", "CAS")):
        records = [record for record in differences if record["measure"] == name]
        for y, record in enumerate(records):
            if record["low"] is not None:
                axis.hlines(y - 0.15, record["low"], record["high"], color="black")
            axis.plot(record["mean"], y - 0.15, "o", markersize=4, color="black")
            axis.plot(record["values"], [y - 0.15] * len(record["values"]), "|", markersize=7, color="0.4")
            axis.hlines(y + 0.2, record["prompts_low"], record["prompts_high"], color="0.65")
            axis.plot(record["difference"], y + 0.2, "o", markersize=4, color="0.65", markerfacecolor="white")
        axis.axvline(0, color="black", linewidth=0.8)
        labels = [f"{record['second']} − {record['first']}" for record in records]
        axis.set(xlabel=f"difference in {name} (points)", yticks=range(len(records)), yticklabels=labels)
    axes[0].invert_yaxis()
    handles = [Line2D([], [], color="black", marker="o", markersize=4, label="mean over seeds, t interval"),
               Line2D([], [], color="0.4", marker="|", linestyle="", label="one seed"),
               Line2D([], [], color="0.65", marker="o", markersize=4, markerfacecolor="white",
                      label="first run, interval over prompts")]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def win_rates(rewards: pd.DataFrame) -> Figure:
    """Return how often a row's model is rewarded above a column's, in percent of prompts, ties counting half."""
    models = [name for name in rewards if name in COLOURS]
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.6)
    image = None
    for axis, kind in zip(axes, KINDS):
        table = rewards.loc[kind][models].to_numpy()
        ahead = np.sign(table[:, :, None] - table[:, None, :]).mean(0)  # 1: always, 0: as often as not, -1: never
        shown = np.ma.masked_where(np.triu(np.ones_like(ahead, dtype=bool)), 50 + 50 * ahead)[1:, :-1]
        image = axis.imshow(shown, cmap="PuOr", vmin=0, vmax=100)
        for (i, j), value in np.ma.ndenumerate(shown):
            axis.text(j, i, f"{value:.0f}", ha="center", va="center",
                      color="white" if abs(value - 50) > 30 else "black")
        axis.set(title=f"{kind} prompts (n = {len(table)})", xticks=range(len(models) - 1), xticklabels=models[:-1],
                 yticks=range(len(models) - 1), yticklabels=models[1:], ylabel="this model ...", xlabel="... over this")
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, label="rewarded higher (%)")
    return figure


def thresholds(sweeps: Mapping[str, pd.DataFrame], chosen: Mapping[str, float]) -> Figure:
    """Return both rates of all models over all thresholds, the chosen one dashed; `sweeps`: {kind: `stats.sweep`}."""
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.4, sharey=True)
    for axis, (kind, table) in zip(axes, sweeps.items()):
        for name, rates in table.items():
            axis.plot(rates.index, rates, LINES[name], color=COLOURS[name], label=name)
        axis.axvline(chosen[kind], color="black", linestyle="--", linewidth=0.8)
        axis.set(xlabel=f"threshold on the reward, {kind} prompts", ylabel="rate (%)")
        axis.label_outer()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS))
    return figure


def judge(rewards: pd.DataFrame, check: Sequence[Record]) -> Figure:
    """Return by how much the judge puts the human-chosen reply above the rejected one: shares of prompts up to a gap.

    `check`: of `checks.check_judge`, whose agreement is the share to the right of zero.
    """
    gaps = rewards["Human chosen"] - rewards["Human rejected"]
    figure, axis = _panels(1, 1, ONE_COLUMN, 2.4)
    for record, line in zip(check, ("-", "--")):
        axis.ecdf(gaps[record["kind"]], color="black", linestyle=line, linewidth=1.2,
                  label=f"{record['kind']}: agrees on {record['agreement']:.0f}% "
                        f"[{record['low']:.0f}, {record['high']:.0f}] of {record['prompts']}")
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set(xlabel="reward of chosen − rejected reply", ylabel="share of prompts", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=1)
    return figure
