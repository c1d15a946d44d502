"""The figures of a training: one function each, which takes data and returns a Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.conclusions import list_words
from posttrain.style import (
    DASHED,
    DOTTED,
    Style,
    entitle,
    make_handles,
    make_panels,
    printable,
    style_of,
)
from posttrain.style import show as show  # main.ipynb shows a figure by training_figures.show

Record = Mapping[str, Any]

# Lines and marks of a training: its noisy batches, and the replies of held-out pairs.
BATCHES = {"linewidth": 0.8, "alpha": 0.35}
CHOSEN = {"linestyle": "-", "markersize": 4}
REJECTED = {"linestyle": "--", "markersize": 4, "markerfacecolor": "white"}


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
    axis.set_title(f"The median pair has {np.median(counts):.0f} tokens; the limit is {max_length}")
    return figure


def training(log: Mapping[str, Sequence[Record]], models: Sequence[str]) -> Figure:
    """Draw how all stages of training went, on batches and on held-out pairs.

    Stages whose log has reward margins are trained on preferences and have three panels, the
    others one for their loss. The dotted lines show the held-out loss before the first step, and
    an accuracy of one half. Before the first step every margin is zero and the accuracy means
    nothing, so it begins after it.

    Args:
        log: training.json, {model: log records}.
        models: all names of the run's models in order, for their styles.
    """
    styles = style_of(models)
    tables = {name: _by_step(log[name]) for name in log if log[name]}
    if not tables:
        raise ValueError("Nothing has been trained yet: run the cells with the trainers first.")
    imitating = [name for name, table in tables.items() if "rewards/margins" not in table]
    preferring = [name for name, table in tables.items() if "rewards/margins" in table]
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
    handles = make_handles({name: styles[name] for name in tables})
    handles.append(Line2D([], [], color="0.4", **BATCHES, label="training (thin)"))
    entitle(figure, _say_fallen(tables), handles)
    return figure


def _say_fallen(tables: Mapping[str, pd.DataFrame]) -> str:
    """Say for how many of the models that were validated after a step the held-out loss fell."""
    losses = [_logged(table, "eval_loss") for table in tables.values()]
    validated = [values for values in losses if len(values) > 1]
    if not validated:
        return "Training, without a validation at its end"
    fallen = sum(_falls(values) for values in validated)
    stages = "model" if len(validated) == 1 else "models"
    return f"Held-out loss fell for {fallen} of {len(validated)} trained {stages}"


def _by_step(records: Sequence[Record]) -> pd.DataFrame:
    """Lay out the records of a log by their optimizer step."""
    return pd.DataFrame(records).set_index("step")


def _draw_stage(axis: Axes, table: pd.DataFrame, key: str, style: Style) -> None:
    """Draw one quantity of a stage's log, of training batches and of held-out pairs."""
    batches, held_out = _logged(table, key), _logged(table, f"eval_{key}")
    if key == "rewards/accuracies":
        # The first step's batch is still that of the untrained model, whose margins are all zero.
        margins = _logged(table, "eval_rewards/margins")
        moved = margins.reindex(held_out.index) != 0
        batches, held_out = batches[batches.index > 1], held_out[moved]
        axis.axhline(0.5, **DOTTED)
    if key == "loss" and "rewards/margins" in table and 0 in held_out.index:
        axis.axhline(held_out.loc[0], **DOTTED)
    axis.plot(batches, color=style.color, **BATCHES)
    axis.plot(held_out, linestyle=style.line, marker=style.marker, color=style.color, markersize=4)


def has_log_probabilities(log: Mapping[str, Sequence[Record]]) -> bool:
    """Tell whether any model of a log has learned preferences, with held-out pairs."""
    known = set()
    for records in log.values():
        known.update(*records)
    return "eval_logps/chosen" in known


def log_probabilities(log: Mapping[str, Sequence[Record]], models: Sequence[str]) -> Figure:
    """Draw how likely both replies of the held-out pairs are while models learn preferences.

    Args:
        log: training.json, {model: log records}; models without log-probabilities are left out.
            At least one has them, see `has_log_probabilities`.
        models: all names of the run's models in order, for their styles.
    """
    styles = style_of(models)
    tables = {}
    for name, records in log.items():
        if has_log_probabilities({name: records}):
            tables[name] = _by_step(records)
    columns = min(2, len(tables))
    rows = math.ceil(len(tables) / columns)
    figure, axes = make_panels(rows, columns, 2.0 * rows + 0.6, squeeze=False, sharey=True)
    fallen = []
    for axis, (name, table) in zip(axes.flat, tables.items()):
        style = styles[name]
        chosen = _logged(table, "eval_logps/chosen")
        rejected = _logged(table, "eval_logps/rejected")
        axis.plot(chosen, style.marker, color=style.color, **CHOSEN)
        axis.plot(rejected, style.marker, color=style.color, **REJECTED)
        axis.set(title=printable(name), xlabel="optimizer step")
        if _falls(chosen):
            fallen.append(name)
    for axis in axes.flat[len(tables) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("log p(reply) (nats)")
    handles = [
        Line2D([], [], color="0.3", marker="o", **CHOSEN, label="chosen reply"),
        Line2D([], [], color="0.3", marker="o", **REJECTED, label="rejected reply"),
    ]
    title = "The chosen replies became less likely for no model"
    if fallen:
        names = [printable(name) for name in fallen]
        title = f"The chosen replies became less likely for {list_words(names)}"
    entitle(figure, title, handles)
    return figure


def _logged(table: pd.DataFrame, key: str) -> pd.Series:
    """Take a quantity's values by step from a log; empty where it was never logged."""
    return table[key].dropna() if key in table else pd.Series(dtype=float)


def _falls(values: pd.Series) -> bool:
    """Tell whether the last value on held-out pairs is below the first."""
    return len(values) > 1 and values.iloc[-1] < values.iloc[0]
