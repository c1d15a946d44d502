"""The figures of a page: those of the notebook as inline SVG, which follow light and dark."""

import re
import xml.etree.ElementTree as ET
from io import BytesIO
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from posttrain import figures, threshold_figures, training_figures
from posttrain.diagnostics import sweep
from posttrain.metrics import kinds_of
from posttrain.other_thresholds import decide_at_thresholds
from posttrain.page.reading import RunFiles, damage_named
from posttrain.style import DECISIONS, ONE_COLUMN, entitle, format_number, wrap_title

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# The page's ink and paper, and the greys of what is less certain, which change with the scheme.
PAGE_COLORS = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    to_hex(DECISIONS["suggestive"]["color"]): "var(--suggestive)",
    to_hex(DECISIONS["inconclusive"]["color"]): "var(--inconclusive)",
}

READINGS = {  # figure: its heading on the page, and how to read it, with the run's thresholds
    "metrics": (
        "Rates of the models",
        "Each mark shows the rate of a model, and the line through it shows the 95% confidence "
        "interval. Higher is better.",
    ),
    "differences": (
        "Differences between two models",
        "Each dot shows a difference in percentage points, such as SFT − Base, and the line "
        "through it shows the 95% confidence interval. Right of zero, the model before the minus "
        "sign has the higher rate. "
        "Significant differences are drawn darkest, suggestive ones lighter, "
        "and inconclusive ones are pale with a hollow dot.",
    ),
    "distributions": (
        "The reward of every answer",
        "Each coloured mark is the reward of one answer. The dot beside them is the model's mean "
        "reward with its 95% confidence interval. The dashed lines are the thresholds: answers to "
        "harmful prompts are labelled harmless if their reward is at or above {harmless}, and "
        "answers to helpful prompts are labelled helpful if their reward is above {helpful}.",
    ),
    "thresholds": (
        "Rates at other thresholds",
        "Each line shows the rate that a model would have at any other threshold. The dashed line "
        "is the threshold of this run. Where two lines cross, moving the threshold would reverse "
        "the order of the two models. The rows below tell for the shaded thresholds where two "
        "models differ significantly: a bar above a row's line means that the model before the "
        "minus sign has the higher rate, a bar below it that the other one has, and its colour is "
        "that of the higher model. The decisions are corrected for all pairs of models, but not "
        "for the number of thresholds.",
    ),
    "judge": (
        "Agreement of the judge with the human preference",
        "For every prompt, the gap is the reward of the human-chosen reply minus that of the "
        "human-rejected one. Each curve shows which share of the prompts has a gap up to the value "
        "on the horizontal axis. The judge agrees with the humans wherever the gap is above zero, "
        "so its agreement is one minus the height of the curve at zero.",
    ),
    "training": (
        "Loss, margin and accuracy during training",
        "Thin lines show training batches, and lines with marks show the held-out pairs. In "
        "preference training (DPO), the log-ratio of a reply is the log-probability that the "
        "trained model gives it minus the one that the reference model gives it. The reward "
        "margin is β times the difference between the chosen reply's log-ratio and the rejected "
        "reply's, and the reward accuracy is the share of pairs whose margin is positive. "
        "These rewards are implicit in the trained model and are not those of the judge. The "
        "dotted lines mark the held-out loss before training, and an accuracy of one half, which"
        " guessing would reach.",
    ),
    "log_probabilities": (
        "How likely the replies of the held-out pairs are",
        "The solid line shows the log-probability that a model gives to the chosen reply, as the "
        "mean over the held-out pairs. The dashed line shows the same for the rejected reply. The "
        "reward margin grows as the two lines move apart, even if both of them fall. Where the "
        "solid line falls steeply, the model is losing the ability to write such replies.",
    ),
}
INCHES_OF_PANEL = 2.4  # the height of a panel where panels are below each other


class Drawing(NamedTuple):
    """A figure on the page.

    Attributes:
        name: of the figure.
        title: its heading on the page.
        reading: how to read it.
        svg: the figure.
        narrow_svg: the same with its panels below each other, for a narrow screen; None where
            there is one panel.
    """

    name: str
    title: str
    reading: str
    svg: str
    narrow_svg: str | None


def draw_figures(files: RunFiles) -> dict[str, Drawing]:
    """Draw every figure whose data the run has.

    Returns:
        {name: Drawing}, in the order of READINGS.

    Raises:
        ValueError: the data of a file, which is named, cannot be drawn.
    """
    drawn = _draw_metrics(files) | _draw_rewards(files)
    if files.training:
        with damage_named(files.folder / "training.json"):
            drawn["training"] = training_figures.training(files.training, files.models)
            if training_figures.has_log_probabilities(files.training):
                drawn["log_probabilities"] = training_figures.log_probabilities(
                    files.training, files.models
                )
    thresholds = {}
    if files.metrics:
        for name, value in files.metrics["thresholds"].items():
            thresholds[name] = format_number(value)
    drawings = {}
    for name, (title, reading) in READINGS.items():
        if name in drawn:
            reading = reading.format_map(thresholds)
            svg, narrow_svg = to_svg(drawn[name], name, title), None
            if len(drawn[name].axes) > 1:
                stack_panels(drawn[name])
                narrow_svg = to_svg(drawn[name], f"{name}-narrow", title)
            drawings[name] = Drawing(name, title, reading, svg, narrow_svg)
    return drawings


def _draw_metrics(files: RunFiles) -> dict[str, Figure]:
    """Draw what metrics.json alone tells."""
    metrics = files.metrics
    if not metrics:
        return {}
    drawn = {}
    with damage_named(files.folder / "metrics.json"):
        if metrics["comparisons"]:
            drawn["differences"] = figures.differences(metrics["comparisons"])
        drawn["metrics"] = figures.rates(metrics["models"])
    return drawn


def _draw_rewards(files: RunFiles) -> dict[str, Figure]:
    """Draw what takes the rewards of single answers as well."""
    metrics, answers = files.metrics, files.answers
    if not metrics or not files.has_rewards:
        return {}
    chosen = metrics["thresholds"]
    limits = {"harmful": chosen["harmless"], "helpful": chosen["helpful"]}
    drawn = {}
    with damage_named(files.folder / "metrics.json"):
        drawn["distributions"] = figures.distributions(answers, limits, metrics["models"])
        sweeps = {kind: sweep(answers, kind) for kind in kinds_of(answers)}
        decided = decide_at_thresholds(answers, limits)
        drawn["thresholds"] = threshold_figures.thresholds(sweeps, decided, limits, files.models)
        if metrics["judge"]:
            drawn["judge"] = figures.judge(answers, metrics["judge"])
    return drawn


def stack_panels(figure: Figure) -> None:
    """Put the panels of a figure below each other, so that it is one column wide.

    On a narrow screen, panels beside each other would have letters too small to be read.

    Args:
        figure: of `posttrain.figures`, with its panels beside each other; it is changed.
    """
    panels = figure.axes
    rows = panels[0].get_subplotspec().get_gridspec().nrows
    height = max(INCHES_OF_PANEL, figure.get_figheight() / rows)
    figure.set_size_inches(ONE_COLUMN, height * len(panels))
    grid = figure.add_gridspec(len(panels), 1)
    ylabels = {}  # that of the first panel of a row, which the others share
    for place, axis in enumerate(panels):
        row = axis.get_subplotspec().rowspan.start
        axis.set_ylabel(axis.get_ylabel() or ylabels.get(row, ""))
        ylabels.setdefault(row, axis.get_ylabel())
        axis.set_subplotspec(grid[place])
        axis.tick_params(labelleft=True, labelbottom=True)
    for legend in list(figure.legends):
        handles, title = legend.legend_handles, legend.get_title().get_text()
        legend.remove()
        entitle(figure, title, handles)
    heading = figure.get_suptitle()
    if heading:
        figure.suptitle(wrap_title(figure, heading))


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Turn a figure into an SVG element for the page.

    Its styles become attributes, since the page's policy allows no inline styles, and black and
    white become the page's ink and paper. The same figure gives the same text.

    Args:
        figure: of `posttrain.figures`.
        name: put before every id, so that ids are unique on the page.
        label: what the figure is called for those who do not see it.
    """
    buffer = BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):  # texts stay texts
        figure.savefig(buffer, format="svg", metadata=metadata)
    root = ET.fromstring(buffer.getvalue())
    _drop_foreign(root)
    for element in root.iter():
        _adapt(element, name)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _drop_foreign(root: ET.Element) -> None:
    """Remove style sheets and metadata from an SVG."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}style" or not child.tag.startswith(SVG):
                parent.remove(child)


def _adapt(element: ET.Element, name: str) -> None:
    """Make an element's styles attributes, and its ids the figure's own."""
    element.tag = element.tag.removeprefix(SVG)
    for declaration in element.attrib.pop("style", "").split("; "):
        key, _, value = declaration.partition(": ")
        if value and key != "font-family":
            element.set(key, PAGE_COLORS.get(value, value))
    href = element.attrib.pop(f"{XLINK}href", None)
    if href:
        element.set("href", href.replace("#", f"#{name}-"))
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.get('id')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", re.sub(r"url\(#", f"url(#{name}-", element.get("clip-path")))
