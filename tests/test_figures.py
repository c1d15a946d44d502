"""Figures: one palette, labelled axes, intervals drawn."""

import matplotlib as mpl
import pytest
from conftest import MODELS
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from posttrain import figures, seeds


@pytest.fixture(scope="module")
def drawn(evaluation, notebook):
    """Every figure of the notebooks."""
    e = evaluation
    return {"training": figures.training(notebook.log),
            "measures": figures.measures(e.records, ["HmR", "CAS"], "rate (%)"),
            "distributions": figures.distributions(e.rewards, e.thresholds, e.records),
            "differences": figures.differences(e.compared), "win_rates": figures.win_rates(e.rewards),
            "thresholds": figures.thresholds(e.sweeps, e.thresholds),
            "judge": figures.judge(e.rewards, e.judge_check),
            "seeds": figures.seeds(seeds.differences([{"models": e.records, "comparisons": e.compared}] * 2))}


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
        assert [text.get_text() for text in drawn[name].legends[0].get_texts()] == MODELS
        lines = {line.get_label(): to_hex(line.get_color()).upper() for line in drawn[name].axes[0].lines}
        assert {model: lines[model] for model in MODELS} == figures.COLOURS


def test_models_stay_apart_without_colour(drawn):
    """Each has a mark and a kind of line of its own."""
    assert list(figures.MARKERS) == list(figures.LINES) == MODELS
    assert len(set(figures.MARKERS.values())) == len(set(figures.LINES.values())) == len(MODELS)
    lines = {line.get_label(): line for line in drawn["thresholds"].axes[0].lines}
    assert {name: lines[name].get_linestyle() for name in MODELS} == figures.LINES
    marks = {line.get_label(): line.get_marker() for line in drawn["measures"].axes[0].lines}
    assert {name: marks[name] for name in MODELS} == figures.MARKERS


def test_intervals_are_drawn(drawn, evaluation):
    """Each measure of each model has a line from low to high; each difference too."""
    ends = [path.vertices[:, 1].tolist() for part in drawn["measures"].axes[0].collections for path in part.get_paths()]
    expected = [[record[f"{name}_{end}"] for end in ("low", "high")]
                for record in evaluation.records if record["model"] in MODELS for name in ("HmR", "CAS")]
    assert ends == expected
    assert len(drawn["differences"].axes[0].collections) == 6
    varied = evaluation.rewards.loc["helpful"][MODELS].nunique() > 1  # equal rewards have no interval
    assert len(drawn["distributions"].axes[1].collections) == varied.sum()


def test_decisions_are_told_apart_without_colour(drawn, evaluation):
    """What is decided is darker than what is suggestive, and that than what is open, whose dots are hollow."""
    greys = [float(mpl.colors.to_rgb(style["color"])[0]) for style in figures.DECISIONS.values()]
    assert list(figures.DECISIONS) == ["decided", "suggestive", "open"]
    assert greys == sorted(greys)
    dots = [line for line in drawn["differences"].axes[0].lines if line.get_marker() == "o"]
    records = [record for record in evaluation.compared if record["measure"] == "HmR"]
    for dot, record in zip(dots, records, strict=True):
        assert dot.get_xdata()[0] == record["difference"]
        assert mpl.colors.same_color(dot.get_color(), figures.DECISIONS[record["decision"]]["color"])
        assert (dot.get_markerfacecolor() == "white") == (record["decision"] == "open")


def test_judges_agreement_is_what_lies_right_of_zero(drawn, evaluation):
    """The height of a curve at zero is the share of prompts on which the judge does not agree."""
    for line, record in zip(drawn["judge"].axes[0].lines, evaluation.judge_check):
        x, y = line.get_data()
        assert 100 * (1 - y[x <= 0].max(initial=0)) == pytest.approx(record["agreement"])
        assert f"{record['agreement']:.0f}%" in line.get_label()


def test_accuracy_begins_with_the_first_step(drawn):
    """Before it all margins are zero."""
    accuracy = drawn["training"].axes[3]
    steps = [step for line in accuracy.lines[:4] for step in line.get_xdata()]
    assert steps
    assert min(steps) > 1
    (legend,) = drawn["training"].legends
    assert [text.get_text() for text in legend.get_texts()] == MODELS[1:]


def test_style_is_fit_for_print():
    """Letters are embedded as letters, and no frame on the right or at the top."""
    assert mpl.rcParams["pdf.fonttype"] == 42
    assert not mpl.rcParams["axes.spines.top"]
