"""Figures: every one shows all models of a run, in their styles, with labels and intervals."""

import os
import subprocess
import sys
import types
from collections import Counter

import matplotlib as mpl
import pandas as pd
import pytest
from conftest import ROOT
from five_models import (
    MODELS,
    THRESHOLDS,
    compare_models,
    make_answers,
    make_log,
    summarise_models,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from posttrain import (
    behaviour,
    behaviour_figures,
    diagnostics,
    figures,
    judge_validity,
    metrics,
    other_thresholds,
    published,
    threshold_figures,
    training_figures,
)

HOSTILE_NAMES = ["$x^2$ and $\\bad", "_hidden", "two\nlines\x00", "a" * 300, "<b>&amp;</b>"]


def draw_all(answers, records, comparisons, log):
    """Draw every figure of a run, by the name of its function."""
    models = metrics.models_of(answers)
    sweeps = {kind: diagnostics.sweep(answers, kind) for kind in metrics.KINDS}
    decided = other_thresholds.decide_at_thresholds(answers, THRESHOLDS)
    return {
        "training": training_figures.training(log, models),
        "log_probabilities": training_figures.log_probabilities(log, models),
        "rates": figures.rates(records),
        "beside_published": figures.beside_published(records, published.study_rates()),
        "distributions": figures.distributions(answers, THRESHOLDS, records),
        "differences": figures.differences(comparisons),
        "thresholds": threshold_figures.thresholds(sweeps, decided, THRESHOLDS, models),
        "judge": figures.judge(answers, judge_validity.check_judge(answers, THRESHOLDS, 100, 0)),
        "behaviour": behaviour_figures.behaviour(
            behaviour.behaviour(answers, 200, 0), behaviour.compare_behaviour(answers)
        ),
        "lengths": training_figures.lengths([{"length": 10 * i} for i in range(50)], 512),
    }


@pytest.fixture(scope="module")
def drawn():
    """Every figure of a run of five models."""
    return draw_all(make_answers(), summarise_models(), compare_models(), make_log())


def texts_of(figure):
    """List all texts that a figure shows, once it is laid out."""
    FigureCanvasAgg(figure).draw()
    texts = [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_visible()]
    return [text for text in texts if text]


def test_every_figure_is_tried_and_has_a_papers_width(drawn):
    functions = []
    rooms = (figures, training_figures, behaviour_figures, threshold_figures)
    functions_by_name = {}
    for room in rooms:
        functions_by_name |= vars(room)
    for name, function in functions_by_name.items():
        returns = getattr(function, "__annotations__", {}).get("return")
        if returns is Figure and not name.startswith("_"):
            functions.append(name)
    assert sorted(functions) == sorted(drawn)
    for figure in drawn.values():
        assert figure.get_figwidth() in (3.4, 6.8)


@pytest.mark.parametrize(
    "name",
    [
        "training",
        "rates",
        "beside_published",
        "distributions",
        "differences",
        "thresholds",
        "behaviour",
    ],
)
def test_every_figure_shows_the_fifth_model(drawn, name):
    shown = " | ".join(texts_of(drawn[name]))
    expected = MODELS[1:] if name == "training" else MODELS
    for model in expected:
        assert model in shown


@pytest.mark.parametrize(
    "name, title",
    [
        ("training", "Held-out loss fell for 4 of 4 trained models"),
        ("log_probabilities", "The chosen replies became less likely for SFT+DPO and SimPO, β 2.5"),
        ("rates", "CAS goes from 10% (Base) to 90% (SimPO, β 2.5)"),
        ("beside_published", "This run beside the study"),
        ("distributions", "Mean reward from"),
        ("differences", "of 10 significant"),
        ("thresholds", "Which differences are significant depends on the threshold (HmR and HpR)"),
        ("judge", "The judge agrees with the humans on"),
        ("behaviour", "No significant difference in how the models answer"),
        ("lengths", "The median pair has 245 tokens; the limit is 512"),
    ],
)
def test_titles_and_axes(drawn, name, title):
    assert any(title in text.replace("\n", " ") for text in texts_of(drawn[name]))
    axes = [axis for axis in drawn[name].axes if axis.get_label() != "<colorbar>"]
    for axis in axes:
        assert axis.get_xlabel() or axis.get_xticklabels()
    assert any(axis.get_ylabel() or axis.get_yticklabels() for axis in axes)


def test_styles_follow_from_the_models_places():
    styles = figures.style_of(["a", "b", "c", "d"])
    assert [style.color for style in styles.values()] == [
        "#7F7F7F",
        "#0072B2",
        "#E69F00",
        "#009E73",
    ]
    assert [style.marker for style in styles.values()] == ["o", "s", "^", "D"]
    assert [style.line for style in styles.values()] == [":", "-", "--", "-."]


def test_models_stay_apart_without_colour():
    styles = list(figures.style_of([str(i) for i in range(64)]).values())
    assert len(set(styles)) == 64
    first = styles[:8]
    assert len({style.marker for style in first}) == len({style.line for style in first}) == 8


def test_a_model_looks_the_same_in_every_figure(drawn):
    styles = figures.style_of(MODELS)
    for name in ("training", "rates", "beside_published", "thresholds"):
        (legend,) = drawn[name].legends
        labels = [text.get_text() for text in legend.get_texts()]
        if name == "training":
            assert labels.pop() == "training (thin)"
        assert labels == [model for model in MODELS if name != "training" or model != "Base"]
        for label, handle in zip(labels, legend.legend_handles):
            assert same_color(handle.get_color(), styles[label].color)
            assert handle.get_marker() == styles[label].marker
    marks = Counter(line.get_marker() for line in drawn["distributions"].axes[0].lines)
    for style in styles.values():
        assert marks[style.marker] >= 1


def test_intervals_are_drawn(drawn):
    ends = []
    for part in drawn["rates"].axes[0].collections:
        for path in part.get_paths():
            ends.append(path.vertices[:, 1].tolist())
    expected = []
    for record in summarise_models()[: len(MODELS)]:
        for name in ("HmR", "HpR", "CAS"):
            expected.append([record[f"{name}_low"], record[f"{name}_high"]])
    assert ends == expected
    assert len(drawn["differences"].axes[0].collections) == 10
    assert len(drawn["distributions"].axes[1].collections) == len(MODELS)


def test_behaviour_is_drawn_with_its_intervals(drawn):
    """A group for each property that is known, in which the models are in their order."""
    records = behaviour.behaviour(make_answers(), 200, 0)
    for axis, kind in zip(drawn["behaviour"].axes, metrics.KINDS):
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == list(behaviour_figures.TICKS.values())
        lines = iter(axis.lines)
        parts = iter(axis.collections)
        for record in records:
            if record["kind"] != kind:
                continue
            for name in behaviour.PROPERTIES:
                assert next(lines).get_ydata()[0] == record[name]
                (path,) = next(parts).get_paths()
                ends = [record[f"{name}_low"], record[f"{name}_high"]]
                assert path.vertices[:, 1].tolist() == ends
        assert next(lines, None) is None


def test_behaviour_is_drawn_of_one_model_and_of_answers_whose_end_is_unknown():
    """Without comparisons the title claims nothing, and what is unknown is not drawn."""
    answers = make_answers()
    alone = answers[answers["model"] == MODELS[0]].assign(finish=None)
    figure = behaviour_figures.behaviour(
        behaviour.behaviour(alone, 200, 0), behaviour.compare_behaviour(alone)
    )
    assert "How the answers behave" in texts_of(figure)
    assert "cut" not in texts_of(figure)
    assert len(figure.axes[0].lines) == 4


def test_the_title_names_where_models_behave_differently():
    records = [
        {"kind": "harmful", "measure": "human_turn", "decision": "significant"},
        {"kind": "harmful", "measure": "human_turn", "decision": "significant"},
        {"kind": "harmful", "measure": "refuses", "decision": "suggestive"},
        {"kind": "harmful", "measure": "not_understood", "decision": "significant"},
        {"kind": "helpful", "measure": "refuses", "decision": "significant"},
    ]
    figure = behaviour_figures.behaviour(behaviour.behaviour(make_answers(), 200, 0), records)
    assert figure.legends[0].get_title().get_text().replace("\n", " ") == (
        "Significant differences in human turns and not understanding on harmful prompts, and in "
        "refusals on helpful prompts"
    )


def test_equal_rewards_have_no_interval():
    answers = make_answers().assign(reward=0.0)
    records = metrics.summarise(answers, 100, 0)
    figure = figures.distributions(answers, THRESHOLDS, records)
    assert len(figure.axes[0].collections) == 0


def test_decisions_are_told_apart_without_colour(drawn):
    greys = [to_rgb(style["color"])[0] for style in figures.DECISIONS.values()]
    assert list(figures.DECISIONS) == ["significant", "suggestive", "inconclusive"]
    assert greys == sorted(greys)
    dots = [line for line in drawn["differences"].axes[0].lines if line.get_marker() == "o"]
    records = [record for record in compare_models() if record["measure"] == "HmR"]
    for dot, record in zip(dots, records, strict=True):
        assert dot.get_xdata()[0] == record["difference"]
        assert same_color(dot.get_color(), figures.DECISIONS[record["decision"]]["color"])
        assert (dot.get_markerfacecolor() == "white") == (record["decision"] == "inconclusive")


def test_strip_shows_where_differences_are_significant(drawn):
    """A bar covers these thresholds, in the colour of the higher model, and on its side."""
    decided = other_thresholds.decide_at_thresholds(make_answers(), THRESHOLDS)
    styles = figures.style_of(MODELS)
    strips = drawn["thresholds"].axes[2:]
    labels = [text.get_text() for text in strips[0].get_yticklabels()]
    assert labels == [f"{second} − {first}" for first, second in decided["harmful"].columns]
    step = 3 / 300
    for axis, (kind, table) in zip(strips, decided.items(), strict=True):
        assert kind in axis.get_title()
        assert list(axis.get_yticks()) == list(range(len(table.columns)))
        bars = iter(axis.collections)
        for row, pair in enumerate(table.columns):
            for sign, higher, side in ((1, pair[1], -1), (-1, pair[0], 1)):
                bar = next(bars)
                covered = 0.0
                for path in bar.get_paths():
                    x, y = path.vertices.T
                    covered += x.max() - x.min()
                    assert (y.mean() - row) * side > 0
                assert covered == pytest.approx(step * (table[pair] == sign).sum())
                if covered:
                    assert same_color(bar.get_facecolor()[0], styles[higher].color)
        assert next(bars, None) is None
        assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first pair is at the top
    assert any((table == 1).any(axis=None) for table in decided.values())


def test_one_model_has_no_strip():
    answers = make_answers()
    alone = answers[answers["model"] == "Base"]
    sweeps = {kind: diagnostics.sweep(alone, kind) for kind in metrics.KINDS}
    decided = other_thresholds.decide_at_thresholds(alone, THRESHOLDS)
    figure = threshold_figures.thresholds(sweeps, decided, THRESHOLDS, ["Base"])
    assert len(figure.axes) == 2
    assert "The higher the threshold, the fewer answers pass" in texts_of(figure)


def test_agreement_lies_right_of_zero(drawn):
    check = judge_validity.check_judge(make_answers(), THRESHOLDS, 100, 0)
    for line, record in zip(drawn["judge"].axes[0].lines, check):
        x, y = line.get_data()
        assert 100 * (1 - y[x <= 0].max(initial=0)) == pytest.approx(record["agreement"])
        assert f"{record['agreement']:.0f}%" in line.get_label()


def test_stages_are_told_apart_by_their_logs():
    """Those with reward margins have three panels; names do not matter."""
    log = make_log()
    renamed = {"X": log["SFT"], "Y": log["DPO"]}
    models = ["Base", "X", "Y"]
    labels = [axis.get_ylabel() for axis in training_figures.training(renamed, models).axes]
    assert labels == [
        "loss (nats per token)",
        "preference loss",
        "reward margin",
        "reward accuracy (share)",
    ]
    assert len(training_figures.training({"X": log["SFT"]}, models).axes) == 1
    assert len(training_figures.training({"Y": log["DPO"]}, models).axes) == 3


def test_log_probabilities_are_those_of_the_held_out_pairs(drawn):
    """A panel for each model that learned preferences, the chosen reply before the rejected one."""
    figure = drawn["log_probabilities"]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["DPO", "SFT+DPO", "SimPO, β 2.5"]
    log = make_log()
    for axis, name in zip(figure.axes, titles):
        records = [record for record in log[name] if "eval_loss" in record]
        chosen, rejected = axis.lines
        assert list(chosen.get_xdata()) == [record["step"] for record in records]
        for line, key in ((chosen, "chosen"), (rejected, "rejected")):
            assert list(line.get_ydata()) == [record[f"eval_logps/{key}"] for record in records]
        assert rejected.get_markerfacecolor() == "white"


def test_the_studys_own_rates_are_drawn_once():
    records = published.study_rates()
    assert len(figures.beside_published(records, records).axes) == 1
    assert len(figures.beside_published(records[:3], records).axes) == 2


def test_titles_of_differences_say_what_is_significant():
    def title(*significant):
        records = []
        for name in figures.RATES:
            for second in ("SFT", "DPO"):
                record = {"measure": name, "first": "Base", "second": second, "difference": 9.0}
                is_so = f"{second} {name}" in significant
                record["decision"] = "significant" if is_so else "suggestive"
                records.append(record)
        return figures._say_significant(records)

    assert title() == "No significant difference in HmR, HpR or CAS"
    gains = title("SFT HpR", "DPO HpR", "SFT CAS")
    assert gains == "Significant gains over Base in HpR and CAS; none in HmR"
    lost = {"measure": "HmR", "first": "Base", "second": "SFT", "difference": -9.0}
    records = [lost | {"decision": "significant"}]
    # Of one kind of prompts the other rates were not compared, so nothing is said of them.
    assert figures._say_significant(records) == "Significant differences in HmR"
    records += [lost | {"measure": name, "decision": "suggestive"} for name in ("HpR", "CAS")]
    text = figures._say_significant(records)
    assert text == "Significant differences in HmR; none in HpR or CAS"


def test_title_says_whether_decisions_depend_on_the_threshold():
    """It speaks of the decisions at the shaded thresholds, and of nothing with a single model."""

    def title(harmful, helpful):
        pairs = [("Base", "SFT"), ("Base", "DPO")]
        tables = {}
        for kind, signs in (("harmful", harmful), ("helpful", helpful)):
            tables[kind] = pd.DataFrame(signs, index=[-3.0, -2.0], columns=pairs[: len(signs[0])])
        return threshold_figures._say_dependence(tables)

    never, always, once = [[0, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 1], [0, 0]]
    turned = [[-1, 0], [1, 0]]
    depends = "Which differences are significant depends on the threshold "
    assert title(never, once) == depends + "(HpR)"
    assert title(turned, always) == depends + "(HmR)"
    assert title(turned, once) == depends + "(HmR and HpR)"
    same = "The same differences are significant at all shaded thresholds"
    assert title(never, always) == same
    assert title(never, never) == "No difference is significant at any shaded threshold"
    assert title([[], []], [[], []]) == "The higher the threshold, the fewer answers pass"


def test_accuracy_begins_after_the_first_step():
    figure = training_figures.training(make_log(), MODELS)
    steps = []
    for line in figure.axes[3].lines:
        if len(line.get_xdata()) > 2:
            steps += list(line.get_xdata())
    assert steps
    assert min(steps) > 1


def test_a_log_without_held_out_pairs_is_drawn():
    log = {"X": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "Y": []}
    figure = training_figures.training(log, ["Base", "X", "Y"])
    assert "Training, without a validation at its end" in " ".join(texts_of(figure))
    assert not training_figures.has_log_probabilities(log)
    with pytest.raises(ValueError, match="run the cells with the trainers"):
        training_figures.training({"Y": []}, ["Base", "Y"])


def test_a_single_validation_shows_no_change():
    validation = {"step": 0, "eval_loss": 2.0}
    validation |= {"eval_logps/chosen": -3.0, "eval_logps/rejected": -4.0}
    log = {"X": [validation, {"step": 1, "loss": 2.0}]}
    shown = " ".join(texts_of(training_figures.training(log, ["Base", "X"])))
    assert "without a validation at its end" in shown
    shown = " ".join(texts_of(training_figures.log_probabilities(log, ["Base", "X"])))
    assert "less likely for no model" in shown.replace("\n", " ")


def test_hostile_names_are_short_texts_within_the_figure():
    """No formula, no line break, no name that a legend leaves out; nothing beyond the edges."""
    names = dict(zip(MODELS, HOSTILE_NAMES, strict=True))
    answers = make_answers()
    answers = answers.assign(model=answers["model"].replace(names))
    records = [record | {"model": name} for record, name in zip(summarise_models(), HOSTILE_NAMES)]
    comparisons = []
    for record in compare_models():
        renamed = {"first": names[record["first"]], "second": names[record["second"]]}
        comparisons.append(record | renamed)
    log = {names[name]: rows for name, rows in make_log().items()}
    for name, figure in draw_all(answers, records, comparisons, log).items():
        texts = " | ".join(texts_of(figure))
        if name not in ("judge", "lengths", "log_probabilities"):
            assert "hidden" in texts
            assert "two\nlines" not in texts
            assert "a" * 30 not in texts
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02, name
        assert box.x1 <= figure.get_figwidth() + 0.02, name


def test_show_writes_a_figure_with_its_run_below_it(tmp_path, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    for labelled in (True, False):
        folder = tmp_path / str(labelled)
        run = types.SimpleNamespace(figures=folder, label="$x$, preset demo", labelled=labelled)
        figure = Figure()
        figure.subplots().plot([1, 2])
        figures.show(figure, run, "line")
        assert sorted(path.name for path in folder.iterdir()) == ["line.pdf", "line.png"]
        assert ("$x$, preset demo" in texts_of(figure)) == labelled
        again = folder / "line.pdf"
        first = again.read_bytes()
        figures.show(figure, run, "line")
        assert again.read_bytes() == first
    assert len(displayed) == 4


def test_style_is_fit_for_print():
    assert mpl.rcParams["pdf.fonttype"] == 42
    assert not mpl.rcParams["axes.spines.top"]


ODD_STYLE = """
text.usetex: True
font.family: A Font That Nobody Has
font.size: 20
savefig.bbox: tight
savefig.facecolor: black
axes.facecolor: black
axes.grid: False
axes.prop_cycle: cycler(color=["white"])
lines.linewidth: 9
text.parse_math: False
axes.unicode_minus: False
"""
DRAW = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from types import SimpleNamespace
from five_models import compare_models
from posttrain import figures
run = SimpleNamespace(figures=Path(sys.argv[1]), label="$x$, preset demo", labelled=True)
figures.show(figures.differences(compare_models()), run, "differences")
"""


@pytest.mark.slow
def test_figures_are_the_same_whatever_matplotlibrc_says(tmp_path):
    (tmp_path / "matplotlibrc").write_text(ODD_STYLE)
    drawn = []
    for name, variables in {"plain": {}, "odd": {"MATPLOTLIBRC": str(tmp_path)}}.items():
        done = subprocess.run(
            [sys.executable, "-c", DRAW, tmp_path / name],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert set(drawn[0]) == {"differences.png", "differences.pdf"}
    assert drawn[0] == drawn[1]
