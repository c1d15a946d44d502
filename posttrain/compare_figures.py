"""The figures of several runs side by side, which compare.ipynb draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.comparisons import format_fixed, has_measure
from posttrain.metrics import KINDS
from posttrain.style import (
    Style,
    entitle,
    format_number,
    make_handles,
    make_panels,
    printable,
    style_of,
)
from posttrain.style import show as show  # the notebook shows a figure by compare_figures.show

Record = Mapping[str, Any]

RATES = ("HmR", "HpR", "CAS")
# The intervals of a mean over runs from the last to the first that is drawn: {beginning of the
# names of its ends: (what may vary, its look, how far below the middle it is drawn)}
INTERVALS = {
    "averaged_": ("mean, other prompts", {"color": "0.55", "linestyle": ":"}, -0.04),
    "": ("mean, other trainings", {"color": "0.55", "linestyle": "--"}, 0.1),
    "both_": ("mean, both", {"color": "black", "linestyle": "-", "linewidth": 1.8}, 0.24),
}
PANELS = {
    "harmful_reward": "mean reward, harmful prompts",
    "helpful_reward": "mean reward, helpful prompts",
    "HmR": "HmR (%)",
    "HpR": "HpR (%)",
}


# ---- differences between models


def across_runs(differences: Sequence[Record]) -> Figure:
    """Draw the differences of all pairs of models in several runs, and their means.

    Args:
        differences: of `compare.differences_across`.
    """
    drawn = [record for record in differences if record["measure"] in RATES]
    names = list(dict.fromkeys(record["measure"] for record in drawn))
    pairs = [record for record in drawn if record["measure"] == names[0]]
    height = 1.5 + 0.45 * len(pairs)
    figure, grid = make_panels(1, len(names), height, sharex=True, sharey=True, squeeze=False)
    axes = grid[0]
    for axis, name in zip(axes, names):
        records = [record for record in drawn if record["measure"] == name]
        labels = []
        for y, record in enumerate(records):
            _draw_runs(axis, y, record)
            _draw_mean(axis, y, record)
            labels.append(f"{printable(record['second'])} − {printable(record['first'])}")
        axis.set_yticks(range(len(records)), labels)
        axis.set(title=name, xlabel="difference (points)")
        axis.axvline(0, color="black", linewidth=0.8)
    axes[0].invert_yaxis()
    handles = [
        Line2D(
            [], [], color="0.8", marker="|", markeredgecolor="0.4", label="one run, other prompts"
        )
    ]
    if any(record["averaged_low"] is not None for record in drawn):
        for name, look, _ in INTERVALS.values():
            handles.append(Line2D([], [], label=name, **look))
    entitle(figure, _say_clear(drawn, len(pairs[0]["values"])), handles)
    return figure


def _draw_runs(axis: Axes, y: float, record: Record) -> None:
    """Draw the difference in each run, one below the other, with its interval over prompts."""
    ends = list(zip(record["prompts_low"], record["prompts_high"]))
    top = y - 0.15 if record["averaged_low"] is None else y - 0.4  # room for the mean below them
    for i, value in enumerate(record["values"]):
        height = top + 0.3 * (i + 0.5) / len(ends)
        axis.hlines(height, *ends[i], color="0.8", linewidth=1.0)
        axis.plot(value, height, "|", markersize=4, color="0.4")


def _draw_mean(axis: Axes, y: float, record: Record) -> None:
    """Draw the intervals of the mean over the runs, as far as they are known, and the mean."""
    for prefix, (_, look, below) in INTERVALS.items():
        if record[f"{prefix}low"] is not None:
            axis.hlines(y + below, record[f"{prefix}low"], record[f"{prefix}high"], **look)
    if record["averaged_low"] is not None:  # the runs are a sample
        axis.plot(record["mean"], y + INTERVALS["both_"][2], "o", markersize=4, color="black")


def _say_clear(records: Sequence[Record], runs: int) -> str:
    """Say for how many mean differences the interval over runs and prompts is clear of zero."""
    known = [record for record in records if record["both_low"] is not None]
    if not known:
        return f"Differences between models in each of {runs} runs, with intervals over prompts"
    clear = [record for record in known if record["both_low"] > 0 or record["both_high"] < 0]
    return (
        f"Over {runs} runs, {len(clear)} of {len(known)} intervals for other trainings and other "
        "prompts exclude zero"
    )


# ---- reward against distance


def trade_off(records: Sequence[Record]) -> Figure:
    """Draw reward and rates of every model in every run against its log-ratio to Base.

    Where the runs differ in a number, such as DPO's beta, a line joins a model's runs in its order,
    and the values stand at the points. Seeds have no order and are not joined.

    Args:
        records: of `trade_off.measure_trade_off`, at least one.
    """
    models = list(dict.fromkeys(record["model"] for record in records))
    styles = style_of(models)
    panels = {name: label for name, label in PANELS.items() if has_measure(records[0], name)}
    columns = len(panels) // 2  # one for each kind of prompts
    figure, axes = make_panels(2, columns, 5.4, sharex=True, squeeze=False)
    for axis, (measure, label) in zip(axes.flat, panels.items()):
        for model in models:
            of_model = [record for record in records if record["model"] == model]
            _draw_path(axis, measure, of_model, styles[model])
        axis.set_ylabel(label)
    for axis in axes[1]:
        axis.set_xlabel(f"log-ratio to {printable(models[0])} (nats per token)")
    entitle(figure, _say_farthest(records, models), make_handles(styles, lines=False))
    return figure


def _draw_path(axis: Axes, measure: str, records: Sequence[Record], style: Style) -> None:
    """Draw one model's runs as points with intervals in both directions, joined if in order."""
    in_order = _in_order(records)
    x = [record["log_ratio"] for record in in_order or records]
    y = [record[measure] for record in in_order or records]
    if in_order:
        axis.plot(x, y, color=style.color, linestyle=style.line, linewidth=0.9)
    axis.plot(x, y, style.marker, markersize=4, color=style.color)
    look = {"color": style.color, "linewidth": 0.7, "alpha": 0.45}
    for record in records:
        if record["log_ratio_low"] is not None:
            ends = record["log_ratio_low"], record["log_ratio_high"]
            axis.hlines(record[measure], *ends, **look)
        if record[f"{measure}_low"] is not None:
            ends = record[f"{measure}_low"], record[f"{measure}_high"]
            axis.vlines(record["log_ratio"], *ends, **look)
    distinct = dict.fromkeys(zip(x, y))
    if records[0]["setting"] == "seed" or len(distinct) == 1:  # nothing that a value would explain
        return
    for record in records:
        text = _write_value(record["value"])
        place = record["log_ratio"], record[measure]
        axis.annotate(text, place, (3, 3), textcoords="offset points", fontsize=6)


def _in_order(records: Sequence[Record]) -> list[Record]:
    """Sort a model's runs by the value of their setting; none if it is a seed or no number."""
    are_numbers = all(_is_number(record["value"]) for record in records)
    if records[0]["setting"] == "seed" or not are_numbers:
        return []
    return sorted(records, key=lambda record: record["value"])


def _is_number(value: Any) -> bool:
    """Tell whether the value of a setting is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write_value(value: Any) -> str:
    """Write the value of a setting in a figure."""
    return format_number(value) if _is_number(value) else printable(str(value))


def _say_farthest(records: Sequence[Record], models: Sequence[str]) -> str:
    """Say of the model whose log-ratio varies most from where to where it and its reward go."""

    def spread(model: str) -> float:
        values = [record["log_ratio"] for record in records if record["model"] == model]
        return max(values) - min(values)

    model = max(models, key=spread)
    of_model = [record for record in records if record["model"] == model]
    setting = of_model[0]["setting"]
    in_order = _in_order(of_model)
    kinds = [kind for kind in KINDS if has_measure(of_model[0], f"{kind}_reward")]
    parts = []
    for measure in ("log_ratio", *(f"{kind}_reward" for kind in kinds)):
        values = [record[measure] for record in in_order or of_model]
        if in_order:
            ends, words = (values[0], values[-1]), "from {} to {}"
        else:
            ends, words = (min(values), max(values)), "between {} and {}"
        parts.append(words.format(*(format_fixed(end, 2) for end in ends)))
    if in_order:
        first, last = (_write_value(record["value"]) for record in (in_order[0], in_order[-1]))
        beginning, verb = f"From {setting} {first} to {last}", "goes"
    else:
        beginning, verb = f"Over {len(of_model)} runs that differ in {setting}", "lies"
    rewards = " and ".join(f"{part} on {kind}" for part, kind in zip(parts[1:], kinds))
    return (
        f"{beginning}, the log-ratio of {printable(model)} {verb} {parts[0]}, and its mean reward "
        f"{rewards} prompts"
    )
