"""One palette, one style, one function a figure, which takes data and returns the figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from posttrain.stats import KINDS

# The models' colours stay apart under colour blindness (Okabe and Ito 2008).
COLOURS = {"Base": "#7F7F7F", "SFT": "#0072B2", "DPO": "#E69F00", "SFT+DPO": "#009E73"}
ONE_COLUMN, TWO_COLUMNS = 3.4, 6.8  # inches
mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 300,
                     "pdf.fonttype": 42, "figure.constrained_layout.use": True})

Record = Mapping[str, Any]


def _panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of so many inches and its axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **options)


def training(log: Mapping[str, Sequence[Record]]) -> Figure:
    """Return the curves of all stages, lines of training batches and dots of held-out pairs.

    `log`: training.json. Dotted: the loss of a model that prefers neither reply, and the accuracy of a coin.
    """
    panels = [("loss", "SFT loss (nats per token)", ["SFT"]), ("loss", "DPO loss", ["DPO", "SFT+DPO"]),
              ("rewards/margins", "reward margin", ["DPO", "SFT+DPO"]),
              ("rewards/accuracies", "reward accuracy", ["DPO", "SFT+DPO"])]
    figure, axes = _panels(2, 2, TWO_COLUMNS, 4.4)
    for axis, (key, label, names) in zip(axes.flat, panels):
        for name in names:
            records = pd.DataFrame(log[name]).set_index("step")
            axis.plot(records[key].dropna(), color=COLOURS[name], label=name)
            axis.plot(records[f"eval_{key}"].dropna(), "o", color=COLOURS[name], markersize=4)
        axis.set(xlabel="optimiser step", ylabel=label)
        axis.legend()
    axes[0, 1].axhline(math.log(2), color="0.4", linewidth=0.8, linestyle=":")
    axes[1, 1].axhline(0.5, color="0.4", linewidth=0.8, linestyle=":")
    return figure


def measures(models: Sequence[Record], names: Sequence[str], ylabel: str, ylim: tuple | None = None) -> Figure:
    """Return measures of the models, a dot for the value and a line for its 95% interval; `models`: model records."""
    models = [record for record in models if record["model"] in COLOURS]
    figure, axis = _panels(1, 1, ONE_COLUMN, 2.4)
    for i, record in enumerate(models):
        x, colour = np.arange(len(names)) + (i - (len(models) - 1) / 2) * 0.17, COLOURS[record["model"]]
        axis.vlines(x, *([record[f"{name} {end}"] for name in names] for end in ("low", "high")), color=colour)
        axis.plot(x, [record[name] for name in names], "o", markersize=4, color=colour, label=record["model"])
    axis.set(xticks=range(len(names)), xticklabels=names, ylabel=ylabel, ylim=ylim, xlim=(-0.5, len(names) - 0.5))
    axis.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=len(models), columnspacing=1, handletextpad=0.2)
    return figure


def distributions(rewards: pd.DataFrame, thresholds: Mapping[str, float]) -> Figure:
    """Return every model's rewards on either kind of prompt: dots, a box for the quartiles, the threshold dashed."""
    models = [name for name in rewards if name in COLOURS]
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.6, sharey=True)
    for axis, kind in zip(axes, KINDS):
        table = rewards.loc[kind][models]
        axis.boxplot(table, widths=0.6, showfliers=False, medianprops={"color": "black"}, tick_labels=models)
        for i, name in enumerate(models):
            spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(table))
            axis.plot(i + 1 + spread, table[name], ".", markersize=3, color=COLOURS[name])
        axis.axhline(thresholds[kind], color="black", linestyle="--", linewidth=0.8)
        axis.set(title=f"{kind} prompts", ylabel="reward")
        axis.label_outer()
    return figure


def differences(comparisons: Sequence[Record]) -> Figure:
    """Return a forest plot of all pairs of models: a pair is told apart where its line stays clear of zero."""
    figure, axes = _panels(1, 3, TWO_COLUMNS, 2.2, sharex=True, sharey=True)
    for axis, name in zip(axes, ("HmR", "HpR", "CAS")):
        records = [record for record in comparisons if record["measure"] == name]
        for y, record in enumerate(records):
            axis.hlines(y, record["low"], record["high"], color=COLOURS[record["second"]])
            axis.plot(record["difference"], y, "o", markersize=4, color=COLOURS[record["second"]])
        axis.axvline(0, color="black", linewidth=0.8)
        labels = [f"{record['second']} − {record['first']}" for record in records]
        axis.set(xlabel=f"difference in {name} (points)", yticks=range(len(records)), yticklabels=labels)
    axes[0].invert_yaxis()
    return figure


def win_rates(rewards: pd.DataFrame) -> Figure:
    """Return how often a row's model is rewarded above a column's, in percent of prompts, ties counting half."""
    models = [name for name in rewards if name in COLOURS]
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.8)
    for axis, kind in zip(axes, KINDS):
        table = rewards.loc[kind][models].to_numpy()
        ahead = np.sign(table[:, :, None] - table[:, None, :]).mean(0)  # 1: always, 0: as often as not, -1: never
        image = axis.imshow(50 + 50 * ahead, cmap="PuOr", vmin=0, vmax=100)
        for i, j in np.ndindex(ahead.shape):
            axis.text(j, i, "" if i == j else f"{50 + 50 * ahead[i, j]:.0f}", ha="center", va="center",
                      color="white" if abs(ahead[i, j]) > 0.6 else "black")
        ticks = range(len(models))
        axis.set(title=f"{kind} prompts", xticks=ticks, xticklabels=models, yticks=ticks, yticklabels=models)
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, label="rewarded higher (%)")
    return figure


def thresholds(sweeps: Mapping[str, pd.DataFrame], chosen: Mapping[str, float]) -> Figure:
    """Return both rates of all models over all thresholds, the chosen one dashed; `sweeps`: {kind: `stats.sweep`}."""
    figure, axes = _panels(1, 2, TWO_COLUMNS, 2.4, sharey=True)
    for axis, (kind, table) in zip(axes, sweeps.items()):
        for name, rates in table.items():
            axis.plot(rates.index, rates, color=COLOURS[name], label=name)
        axis.axvline(chosen[kind], color="black", linestyle="--", linewidth=0.8)
        axis.set(xlabel=f"threshold on the reward, {kind} prompts", ylabel="rate (%)")
        axis.label_outer()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS))
    return figure


def judge(rewards: pd.DataFrame) -> Figure:
    """Return by how much the judge puts the human-chosen reply above the rejected one, on either kind of prompt."""
    gaps = rewards["Human chosen"] - rewards["Human rejected"]
    figure, axis = _panels(1, 1, ONE_COLUMN, 2.2)
    for kind, line in zip(KINDS, ("-", "--")):
        axis.hist(gaps[kind], bins=np.histogram_bin_edges(gaps, 25), histtype="step", color="black", linestyle=line,
                  label=f"{kind} prompts")
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set(xlabel="reward of chosen − rejected reply", ylabel="prompts")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
