"""What all figures share: how models are told apart, panels, titles, legends, and saving.

A model's colour, marker and line follow from its place among the run's models, so that it looks
the same in every figure, and models stay apart without colour too.
"""

import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posttrain.files import written_whole
from posttrain.processes import is_main

if TYPE_CHECKING:
    from posttrain.run import Run


class Style(NamedTuple):
    """How a model is drawn: a colour, a marker and a kind of line, all as matplotlib names them."""

    color: str
    marker: str
    line: Any


# Colours that stay apart under colour blindness: Okabe and Ito 2008, grey in place of black.
PALETTE = (
    "#7F7F7F",  # grey, the baseline
    "#0072B2",  # blue
    "#E69F00",  # orange
    "#009E73",  # green
    "#D55E00",  # vermillion
    "#CC79A7",  # purple
    "#56B4E9",  # sky blue
    "#B8A500",  # yellow, darkened for white paper
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = (
    ":",
    "-",
    "--",
    "-.",
    (0, (1, 2.5)),
    (0, (8, 2)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (2, 2, 6, 2)),
)
# The more certain, the darker; what is inconclusive is hollow, so that greyscale tells them apart.
DECISIONS = {
    "significant": {"color": "black", "markerfacecolor": "black"},
    "suggestive": {"color": "0.45", "markerfacecolor": "0.45"},
    "inconclusive": {"color": "0.65", "markerfacecolor": "white"},
}
ONE_COLUMN, TWO_COLUMNS = 3.4, 6.8  # inches, of a paper
LONGEST_NAME = 18  # letters of a model's name that a figure shows
DASHED = {"color": "black", "linestyle": "--", "linewidth": 0.8}
DOTTED = {"color": "0.4", "linestyle": ":", "linewidth": 0.8}

mpl.rcdefaults()  # figures do not depend on a matplotlibrc of this machine
mpl.rcParams.update(
    {
        "font.size": 8,
        "figure.titlesize": 9,
        "axes.titlesize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,
        "figure.constrained_layout.use": True,
    }
)


def style_of(models: Sequence[str]) -> dict[str, Style]:
    """Give each model its colour, marker and line, by its place among the run's models.

    Colours repeat after eight models; markers and lines then go on with the next ones, so that no
    two of 64 models look alike.

    Args:
        models: names in the run's order, the baseline first.

    Returns:
        {name: Style} in that order.
    """
    styles = {}
    for place, name in enumerate(models):
        round_, color = divmod(place, len(PALETTE))
        other = (color + round_) % len(MARKERS)
        styles[name] = Style(PALETTE[color], MARKERS[other], LINES[other])
    return styles


def printable(name: str) -> str:
    """Make a model's name fit for a figure: one short line in which nothing is a formula."""
    letters = []
    for letter in name:
        letters.append(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}")
    text = "".join(letters)
    if len(text) > LONGEST_NAME:
        text = text[: LONGEST_NAME - 1] + "…"
    if text.startswith("_"):  # matplotlib leaves such labels out of legends
        text = " " + text
    return text.replace("$", r"\$")


def format_number(value: float) -> str:
    """Write a number with a true minus sign."""
    return f"{value:g}".replace("-", "−")


def make_panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, Any]:
    """Make a figure of a height in inches and its axes; one column wide if it has one panel."""
    width = ONE_COLUMN if rows * columns == 1 else TWO_COLUMNS
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, **options)


def entitle(figure: Figure, title: str, handles: Sequence[Line2D]) -> None:
    """Put a title above the panels, and below it a legend in as many columns as have room."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = int(15 * figure.get_figwidth() / (longest + 5))  # 15 letters fill an inch
    # As the legend's own title, since a figure's title would be drawn across the legend.
    legend = figure.legend(
        handles=handles,
        title=wrap_title(figure, title),
        title_fontsize=9,
        loc="outside upper center",
        ncols=min(max(columns, 1), len(handles)),
        columnspacing=1.2,
        handletextpad=0.5,
    )
    legend.get_title().set_multialignment("center")


def wrap_title(figure: Figure, title: str) -> str:
    """Break a title into lines that fit into a figure's width."""
    letters = int(14 * figure.get_figwidth())
    return textwrap.fill(title, letters, break_on_hyphens=False)


def make_handles(styles: Mapping[str, Style], lines: bool = True) -> list[Line2D]:
    """Make the legend's entries of models, with or without their lines."""
    handles = []
    for name, style in styles.items():
        line = style.line if lines else ""
        handle = Line2D(
            [],
            [],
            color=style.color,
            linestyle=line,
            marker=style.marker,
            markersize=4,
            label=printable(name),
        )
        handles.append(handle)
    return handles


def name_ticks(axis: Axes, names: Sequence[str]) -> None:
    """Write names below an axis, slanted where they would run into each other."""
    labels = [printable(name) for name in names]
    crowded = sum(len(label) + 2 for label in labels) > 42
    slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axis.set_xticks(range(len(labels)), labels, **slant)


# ---- in a notebook


def show(figure: Figure, run: "Run", name: str) -> None:
    """Write a figure into the run's folder of figures as PNG and PDF, and display it.

    The run's label stands below it, unless `run.labelled` is False.

    Args:
        figure: of `posttrain.figures`.
        run: whose figure it is.
        name: of the files, without suffix.
    """
    from IPython.display import Image, display

    label = run.label if run.labelled else ""
    if not is_main():
        return
    if label:
        letters = int(20 * figure.get_figwidth())  # of size 6 beside each other
        figure.supxlabel(
            textwrap.fill(label, letters, break_on_hyphens=False),
            x=0.99,
            ha="right",
            multialignment="right",
            fontsize=6,
            color="0.4",
            parse_math=False,
        )
    # Without a date the same run gives the same file.
    metadata = {"png": {}, "pdf": {"CreationDate": None}}
    for suffix, fields in metadata.items():
        with written_whole(run.figures / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, metadata=fields)
    image = BytesIO()
    figure.savefig(image, format="png", dpi=110)
    display(Image(image.getvalue()))
