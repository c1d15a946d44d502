"""The figure of the models' behaviour: how many of their answers have which property."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posttrain.behaviour import PROPERTIES
from posttrain.conclusions import list_words
from posttrain.metrics import KINDS
from posttrain.style import Style, entitle, make_handles, make_panels, style_of

Record = Mapping[str, Any]

TICKS = {
    "empty": "empty",
    "human_turn": "opens a\nhuman turn",
    "cut": "cut",
    "refuses": "refuses",
    "not_understood": "does not\nunderstand",
}
NAMES = {
    "empty": "empty answers",
    "human_turn": "human turns",
    "cut": "cut answers",
    "refuses": "refusals",
    "not_understood": "not understanding",
}


def behaviour(records: Sequence[Record], comparisons: Sequence[Record]) -> Figure:
    """Draw how many answers of every model have which property, with 95% intervals.

    Args:
        records: of `behaviour.behaviour`.
        comparisons: of `behaviour.compare_behaviour`, for the title.
    """
    models = list(dict.fromkeys(record["model"] for record in records))
    styles = style_of(models)
    there = {record["kind"] for record in records}
    kinds = [kind for kind in KINDS if kind in there]
    height = 2.6 + 0.1 * len(models)
    figure, axes = make_panels(1, len(kinds), height, sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        of_kind = [record for record in records if record["kind"] == kind]
        _draw_properties(axis, of_kind, styles)
        axis.set_title(f"{kind} prompts (n = {of_kind[0]['prompts']})")
        axis.label_outer()
    entitle(figure, _say_significant(comparisons), make_handles(styles, lines=False))
    return figure


def _draw_properties(axis: Axes, records: Sequence[Record], styles: Mapping[str, Style]) -> None:
    """Draw the rates of all properties that are known, a group for each property."""
    known = [name for name in PROPERTIES if name != "cut"]
    if all("cut" in record for record in records):
        known = list(PROPERTIES)
    step = min(0.19, 0.8 / len(records))
    for i, record in enumerate(records):
        style = styles[record["model"]]
        for j, name in enumerate(known):
            x = j + (i - (len(records) - 1) / 2) * step
            axis.vlines(x, record[f"{name}_low"], record[f"{name}_high"], color=style.color)
            axis.plot(x, record[name], style.marker, markersize=4, color=style.color)
    axis.set_xticks(range(len(known)), [TICKS[name] for name in known])
    axis.set(ylabel="share of answers (%)", ylim=(-3, 103), xlim=(-0.5, len(known) - 0.5))
    axis.grid(axis="x", visible=False)


def _say_significant(comparisons: Sequence[Record]) -> str:
    """Say on which prompts the models differ significantly in which properties."""
    clauses = []
    for kind in KINDS:
        found = []
        for record in comparisons:
            if record["kind"] == kind and record["decision"] == "significant":
                found.append(NAMES[record["measure"]])
        if found:
            clauses.append(f"{list_words(list(dict.fromkeys(found)))} on {kind} prompts")
    if clauses:
        return f"Significant differences in {', and in '.join(clauses)}"
    if comparisons:
        return "No significant difference in how the models answer"
    return "How the answers behave"
