"""The figures of compare.ipynb: every text within the figure, and what is drawn where."""

import numpy as np
import pytest
from five_models import MODELS, compare_models
from matplotlib.colors import same_color
from test_figures import HOSTILE_NAMES, texts_of

from posttrain import compare_figures

UNKNOWN = dict.fromkeys(["low", "high", "averaged_low", "averaged_high", "both_low", "both_high"])


def repeat_differences(are_sample=True):
    """Make the records of `compare.differences_across`, of three runs."""
    records = []
    for record in compare_models():
        difference = record["difference"]
        repeated = {
            "values": [difference - 1, difference, difference + 4],
            "mean": difference + 1,
            "prompts_low": [record["low"]] * 3,
            "prompts_high": [record["high"]] * 3,
            "decisions": ["significant"] * 3,
        }
        ends = {"low": difference - 5, "high": difference + 7}
        ends |= {"averaged_low": difference - 9, "averaged_high": difference + 8}
        ends |= {"both_low": difference - 11, "both_high": difference + 10}
        records.append(record | repeated | (ends if are_sample else UNKNOWN))
    return records


def move_models(setting="beta", values=(0.3, 0.03, 0.1)):
    """Make the records of `trade_off.measure_trade_off`: the smaller the value, the farther."""
    records = []
    for run, value in enumerate(values):
        for place, model in enumerate(MODELS):
            record = {"run": f"run {run}", "setting": setting, "value": value, "model": model}
            distance = place * (1 + run / 4)
            measures = {"log_ratio": distance, "harmful_reward": -3 + distance / 2}
            measures |= {"helpful_reward": -2 - distance / 4, "HmR": 40 + distance, "HpR": 20.0}
            for name, measured in measures.items():
                record |= {name: measured, f"{name}_low": measured - 0.3}
                record[f"{name}_high"] = measured + 0.4
            if place == 0:  # the baseline is nowhere apart from itself
                record |= {"log_ratio_low": None, "log_ratio_high": None}
            records.append(record)
    return records


def draw_all(differences, points):
    return [compare_figures.across_runs(differences), compare_figures.trade_off(points)]


def title_of(figure):
    return figure.legends[0].get_title().get_text().replace("\n", " ")


def test_differences_say_how_many_intervals_over_both_are_clear_of_zero():
    records = repeat_differences()
    rates = [record for record in records if record["measure"] in ("HmR", "HpR", "CAS")]
    clear = [record for record in rates if record["both_low"] > 0 or record["both_high"] < 0]
    assert 0 < len(clear) < 30
    figure = compare_figures.across_runs(records)
    assert title_of(figure) == (
        f"Over 3 runs, {len(clear)} of 30 intervals for other trainings and other prompts exclude "
        "zero"
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "one run, other prompts",
        "mean, other prompts",
        "mean, other trainings",
        "mean, both",
    ]
    shown = " | ".join(texts_of(figure))
    for model in MODELS:
        assert model in shown


def test_runs_that_are_no_sample_are_drawn_without_a_mean():
    figure = compare_figures.across_runs(repeat_differences(are_sample=False))
    assert title_of(figure) == (
        "Differences between models in each of 3 runs, with intervals over prompts"
    )
    assert len(figure.legends[0].get_texts()) == 1
    dots = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "o"]
    assert dots == []


def test_a_mean_is_drawn_where_all_runs_are_alike():
    unknown = dict.fromkeys(["low", "high", "both_low", "both_high"])
    records = [record | unknown for record in repeat_differences()]
    figure = compare_figures.across_runs(records)
    for axis in figure.axes:
        dots = [line for line in axis.lines if line.get_marker() == "o"]
        assert len(dots) == 10


def test_a_line_joins_a_models_runs_in_the_order_of_the_setting():
    figure = compare_figures.trade_off(move_models())
    assert title_of(figure) == (
        "From beta 0.03 to 0.3, the log-ratio of SimPO, β 2.5 goes from 5.00 to 4.00, and its mean "
        "reward from −0.50 to −1.00 on harmful and from −3.25 to −3.00 on helpful prompts"
    )
    for axis in figure.axes:
        paths = [line for line in axis.lines if line.get_linestyle() != "None"]
        assert len(paths) == len(MODELS)
        assert list(paths[4].get_xdata()) == [5.0, 6.0, 4.0]
        labels = [text.get_text() for text in axis.texts]
        assert labels == ["0.3", "0.03", "0.1"] * 4  # the baseline does not move
    assert figure.axes[0].get_ylabel() == "mean reward, harmful prompts"
    assert figure.axes[2].get_xlabel() == "log-ratio to Base (nats per token)"


@pytest.mark.parametrize(
    ("setting", "values", "labelled"),
    [("seed", (2, 0, 1), False), ("sft_method", ("lora", "full", "lora"), True)],
)
def test_runs_without_an_order_are_not_joined(setting, values, labelled):
    figure = compare_figures.trade_off(move_models(setting, values))
    start = f"Over 3 runs that differ in {setting}, the log-ratio of SimPO, β 2.5 lies between 4.00"
    assert title_of(figure).startswith(start + " and 6.00")
    for axis in figure.axes:
        assert {line.get_linestyle() for line in axis.lines} == {"None"}
        assert bool(axis.texts) == labelled


def test_points_stand_at_log_ratio_and_measure_with_intervals_in_both_directions():
    records = [record for record in move_models("seed", (0,)) if record["model"] == "DPO"]
    axis = compare_figures.trade_off(records).axes[1]
    (line,) = axis.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2.0], [-2.5])
    across, upright = (lines.get_segments()[0] for lines in axis.collections)
    assert np.allclose(across, [[1.7, -2.5], [2.4, -2.5]])
    assert np.allclose(upright, [[2.0, -2.8], [2.0, -2.1]])
    assert same_color(line.get_color(), axis.collections[0].get_color()[0][:3])


def test_hostile_names_are_short_texts_within_the_figure():
    names = dict(zip(MODELS, HOSTILE_NAMES, strict=True))
    differences = []
    for record in repeat_differences():
        renamed = {"first": names[record["first"]], "second": names[record["second"]]}
        differences.append(record | renamed)
    points = [record | {"model": names[record["model"]]} for record in move_models()]
    for figure in draw_all(differences, points):
        texts = " | ".join(texts_of(figure))
        assert "hidden" in texts
        assert "a" * 30 not in texts
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02
        assert box.x1 <= figure.get_figwidth() + 0.02
