"""The figure of other thresholds: the rates at each, and where models differ significantly."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posttrain.comparisons import RATE_ON
from posttrain.conclusions import list_words
from posttrain.style import (
    DASHED,
    Style,
    entitle,
    format_number,
    make_handles,
    make_panels,
    printable,
    style_of,
)

BAR = 0.38  # height of a bar in the strip, in rows


def thresholds(
    sweeps: Mapping[str, pd.DataFrame],
    decided: Mapping[str, pd.DataFrame],
    chosen: Mapping[str, float],
    models: Sequence[str],
) -> Figure:
    """Draw both rates of all models at every threshold, the chosen one dashed.

    The strip below has a row for each pair of models. A bar above the row's line covers the
    thresholds at which the first-named model is significantly higher, and a bar below the line
    those at which the other one is. Its colour is that of the higher model.

    Args:
        sweeps: {kind: of `diagnostics.sweep`}.
        decided: of `other_thresholds.decide_at_thresholds`; without pairs there is no strip.
        chosen: {kind: threshold}.
        models: names of the run's models in order, for their styles.
    """
    styles = style_of(models)
    pairs = len(next(iter(decided.values())).columns)
    if pairs:
        strip = 0.5 + 0.14 * pairs
        ratios = {"height_ratios": [2.2, strip]}
        figure, panels = make_panels(
            2, len(sweeps), 3.0 + strip, sharey="row", gridspec_kw=ratios, squeeze=False
        )
        for axis, (kind, table) in zip(panels[1], decided.items()):
            _draw_strip(axis, table, chosen[kind], styles)
            axis.set_title(f"significant on {kind} prompts")
            axis.label_outer()
        axes = panels[0]
    else:
        figure, panels = make_panels(1, len(sweeps), 2.7, sharey=True, squeeze=False)
        axes = panels[0]
    for axis, (kind, table) in zip(axes, sweeps.items()):
        _draw_rates(axis, table, styles)
        if pairs:
            tried = decided[kind].index
            axis.axvspan(tried[0], tried[-1], color="0.5", alpha=0.15, linewidth=0, zorder=0)
        axis.axvline(chosen[kind], **DASHED)
        title = f"{kind} prompts, threshold {format_number(chosen[kind])}"
        axis.set(title=title, xlabel="threshold on the reward", ylabel="rate (%)")
        axis.yaxis.set_tick_params(labelleft=axis is axes[0])
    for axis in axes[1:]:
        axis.set_ylabel("")
    entitle(figure, _say_dependence(decided), make_handles(styles))
    return figure


def _say_dependence(decided: Mapping[str, pd.DataFrame]) -> str:
    """Say whether it depends on the shaded threshold which differences are significant."""
    tables = decided.values()
    if all(table.empty for table in tables):
        return "The higher the threshold, the fewer answers pass"
    changing = []
    for kind, table in decided.items():
        if (table != table.iloc[0]).any(axis=None):
            changing.append(RATE_ON[kind])
    if changing:
        return (
            f"Which differences are significant depends on the threshold ({list_words(changing)})"
        )
    if not any(table.any(axis=None) for table in tables):
        return "No difference is significant at any shaded threshold"
    return "The same differences are significant at all shaded thresholds"


def _draw_rates(axis: Axes, rates: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    """Draw the rate of every model as a line over the thresholds."""
    for name in rates.columns:
        style = styles[name]
        axis.plot(rates.index, rates[name], linestyle=style.line, color=style.color)
        # A few marks tell the lines apart where they cross.
        axis.plot(rates[name].iloc[10::45], style.marker, color=style.color, markersize=3.5)


def _draw_strip(
    axis: Axes, decided: pd.DataFrame, chosen: float, styles: Mapping[str, Style]
) -> None:
    """Draw for each pair of models the thresholds at which they differ significantly."""
    labels = []
    for row, (first, second) in enumerate(decided.columns):
        labels.append(f"{printable(second)} − {printable(first)}")
        axis.axhline(row, color="0.6", linewidth=0.6, zorder=0)
        # The axis is turned round: what is drawn from row - BAR on is above the row's line.
        for sign, higher, edge in ((1, second, row - BAR), (-1, first, row)):
            spans = _list_spans(decided[first, second] == sign)
            axis.broken_barh(spans, (edge, BAR), color=styles[higher].color)
    axis.axvline(chosen, **DASHED)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.6)
    axis.set_xlim(decided.index[0], decided.index[-1])
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="threshold on the reward")


def _list_spans(holds: pd.Series) -> list[tuple[float, float]]:
    """List where something holds on an even grid of thresholds, as (beginning, width)."""
    step = holds.index[1] - holds.index[0]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], holds.to_numpy(dtype=int), [0]])))
    spans = []
    for begin, end in zip(edges[::2], edges[1::2]):
        spans.append((float(holds.index[begin] - step / 2), float(step * (end - begin))))
    return spans
