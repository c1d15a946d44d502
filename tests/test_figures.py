"""Figures: one palette, labelled axes, intervals drawn."""

import matplotlib as mpl
import pytest
from conftest import MODELS
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from posttrain import figures


@pytest.fixture(scope="module")
def drawn(evaluation, notebook):
    """Every figure of the notebooks."""
    e = evaluation
    return {"training": figures.training(notebook.log),
            "measures": figures.measures(e.records, ["HmR", "CAS"], "rate (%)"),
            "distributions": figures.distributions(e.rewards, e.thresholds),
            "differences": figures.differences(e.comparisons), "win_rates": figures.win_rates(e.rewards),
            "thresholds": figures.thresholds(e.sweeps, e.thresholds), "judge": figures.judge(e.rewards)}


def test_every_figure_function_is_tried(drawn):
    """And each gives a figure of one or two columns' width."""
    functions = {name for name, one in vars(figures).items() if callable(one) and not name.startswith("_")
                 and getattr(one, "__module__", "") == "posttrain.figures"}
    assert functions == set(drawn)
    for figure in drawn.values():
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() in (3.4, 6.8)


@pytest.mark.parametrize("name", ["training", "measures", "distributions", "differences", "thresholds", "judge"])
def test_axes_are_labelled(drawn, name):
    """Every axis says what it shows; shared ones say it once a row or column."""
    axes = drawn[name].axes
    assert all(axis.get_xlabel() or axis.get_xticklabels() for axis in axes)
    assert any(axis.get_ylabel() or axis.get_yticklabels() for axis in axes)


def test_models_have_their_colours(drawn):
    """The same in every figure, in the models' order in the legend."""
    assert list(figures.COLOURS) == MODELS
    (legend,) = drawn["measures"].legends
    assert [text.get_text() for text in legend.get_texts()] == MODELS
    for name in ("measures", "thresholds"):
        lines = {line.get_label(): to_hex(line.get_color()).upper() for line in drawn[name].axes[0].lines}
        assert {model: lines[model] for model in MODELS} == figures.COLOURS


def test_intervals_are_drawn(drawn, evaluation):
    """Each measure of each model has a line from low to high; each difference too."""
    ends = [path.vertices[:, 1].tolist() for part in drawn["measures"].axes[0].collections for path in part.get_paths()]
    expected = [[record[f"{name} {end}"] for end in ("low", "high")]
                for record in evaluation.records if record["model"] in MODELS for name in ("HmR", "CAS")]
    assert ends == expected
    assert len(drawn["differences"].axes[0].collections) == 6


def test_style_is_fit_for_print():
    """Letters are embedded as letters, and no frame on the right or at the top."""
    assert mpl.rcParams["pdf.fonttype"] == 42
    assert not mpl.rcParams["axes.spines.top"]
