"""The figures of a page: those of the notebook as inline SVG, which follow light and dark."""

import re
import xml.etree.ElementTree as ET
from io import BytesIO
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from posttrain import figures, training_figures
from posttrain.diagnostics import sweep
from posttrain.metrics import KINDS
from posttrain.page.reading import RunFiles, damage_named
from posttrain.style import DECISIONS

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# The page's ink and paper, and the greys of what is less certain, which change with the scheme.
PAGE_COLORS = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    to_hex(DECISIONS["suggestive"]["color"]): "var(--suggestive)",
    to_hex(DECISIONS["inconclusive"]["color"]): "var(--inconclusive)",
}

READINGS = {  # figure: its heading on the page, and how to read it
    "differences": (
        "Differences between two models",
        "Each line is the 95% confidence interval of a difference. It stands out most where the "
        "difference is significant, less where it is suggestive, and it is pale with a hollow dot "
        "where it is inconclusive.",
    ),
    "metrics": (
        "Rates",
        "A mark is a model's rate and its line the 95% confidence interval; higher is better.",
    ),
    "rewards": (
        "Mean rewards",
        "A mark is a model's mean reward and its line the 95% confidence interval; higher is "
        "better.",
    ),
    "distributions": (
        "Every reward",
        "A coloured mark is an answer, and the dot beside them the mean with its 95% confidence "
        "interval. An answer passes if it lies above the dashed line, the threshold.",
    ),
    "thresholds": (
        "Other thresholds",
        "These are the rates that any other threshold would give; the chosen one is dashed. Where "
        "two lines cross, another threshold would rank the models the other way round.",
    ),
    "judge": (
        "The judge and the humans",
        "Each curve is the share of prompts up to a gap in reward between the human-chosen and the "
        "human-rejected reply. The judge agrees with the humans on what lies right of zero.",
    ),
    "training": (
        "How training went",
        "Lines are training batches and marks the held-out pairs. The dotted lines are the "
        "held-out preference loss before training, and an accuracy of one half, which a coin "
        "would have.",
    ),
}


class Drawing(NamedTuple):
    """A figure on the page."""

    name: str
    title: str
    reading: str
    svg: str


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
    drawings = {}
    for name, (title, reading) in READINGS.items():
        if name in drawn:
            drawings[name] = Drawing(name, title, reading, to_svg(drawn[name], name, title))
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
        drawn["metrics"] = figures.measures(
            metrics["models"],
            ["HmR", "HpR", "CAS"],
            "Rates with 95% intervals",
            "rate (%)",
            (0, 103),
        )
        drawn["rewards"] = figures.measures(
            metrics["models"],
            ["harmful_reward", "helpful_reward"],
            "Mean rewards with 95% intervals",
            "mean reward",
        )
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
        sweeps = {kind: sweep(answers, kind) for kind in KINDS}
        drawn["thresholds"] = figures.thresholds(sweeps, limits, files.models)
        if metrics["judge"]:
            drawn["judge"] = figures.judge(answers, metrics["judge"])
    return drawn


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
