"""What is said of a training follows from its log, and the study's rates from its rewards."""

import json
from pathlib import Path

import pytest

from posttrain import conclusions, published

ROOT = Path(__file__).resolve().parent.parent


def preferences(chosen, rejected, margin=1.5, accuracy=0.75):
    """Make the log of a model that learned preferences; both log p as (start, end)."""
    records = []
    for step, place in ((0, 0), (50, 1)):
        record = {
            "step": step,
            "eval_loss": 0.69 - 0.2 * place,
            "eval_logps/chosen": chosen[place],
            "eval_logps/rejected": rejected[place],
            "eval_rewards/margins": margin * place,
            "eval_rewards/accuracies": accuracy * place,
        }
        records += [record, {"step": step + 1, "loss": 0.5}]
    return records


def read(records):
    (paragraph,) = conclusions.read_training({"X": records})
    return paragraph


def test_numbers_are_those_of_the_first_and_the_last_validation():
    records = preferences((-8.0, -10.0), (-9.0, -20.0))
    records.insert(2, {"step": 20, "eval_loss": 9.0, "eval_logps/chosen": -99.0})
    text = read(records)
    assert text.startswith("X: The loss on the held-out pairs went from 0.690 to 0.490. 75% of")
    assert "mean margin is 1.500" in text
    assert "Log p(chosen) went from −8.0 to −10.0 nats and log p(rejected) went from −9.0" in text


def test_an_accuracy_has_an_interval_where_the_number_of_pairs_is_known():
    log = {"X": preferences((-8.0, -10.0), (-9.0, -20.0))}
    (paragraph,) = conclusions.read_training(log, 100)
    assert "75% (95% interval 66 to 82) of them have moved" in paragraph


def test_a_small_fall_is_no_warning():
    text = read(preferences((-8.0, -10.0), (-9.0, -20.0)))
    assert "rejected ones have lost more" in text
    assert "fallen by 2.0 nats per reply, 25.0% of its start" in text
    assert "This is within the limit of 50%" in text
    assert conclusions.REMEDY not in text


def test_a_large_fall_is_a_warning_with_what_to_do():
    text = read(preferences((-8.0, -12.1), (-9.0, -30.0)))
    assert "fallen by 4.1 nats per reply, 51.2% of its start" in text
    assert "fall apart" in text
    assert text.endswith(conclusions.REMEDY)


def test_half_of_the_start_is_the_border():
    assert conclusions.REMEDY not in read(preferences((-8.0, -12.0), (-9.0, -30.0)))


@pytest.mark.parametrize("end", [-7.0, -8.0, -8.05])
def test_a_chosen_reply_that_has_not_fallen_is_not_said_to_have(end):
    text = read(preferences((-8.0, end), (-9.0, -20.0)))
    assert "fallen" not in text
    assert "likelier" not in text


def test_a_loss_that_has_risen_is_said():
    records = preferences((-8.0, -10.0), (-9.0, -20.0))
    records[2]["eval_loss"] = 1.6
    text = read(records)
    assert "The loss has not fallen: on these pairs the model is no better" in text
    assert "lost more" not in text


def test_a_chosen_reply_that_loses_more_is_not_praised():
    assert "lost more" not in read(preferences((-8.0, -10.0), (-9.0, -10.0)))


def test_imitation():
    falling = [{"step": 0, "eval_loss": 2.5}, {"step": 9, "eval_loss": 2.25}]
    assert "from 2.500 to 2.250 nats per token, so the model predicts" in read(falling)
    rising = [{"step": 0, "eval_loss": 2.5}, {"step": 9, "eval_loss": 2.75}]
    assert "does not carry over" in read(rising)


def test_what_is_not_finite_is_said():
    records = preferences((-8.0, None), (-9.0, -20.0))
    assert read(records) == "X: A measure of the held-out pairs is not a finite number."
    assert "fallen by" in read(preferences((0.0, -2.0), (-9.0, -20.0)))


def test_models_without_held_out_pairs_are_left_out():
    assert conclusions.read_training({"X": [{"step": 1, "loss": 2.0}]}) == []
    once = read([{"step": 0, "eval_loss": 2.0}])
    assert once == "X: The held-out pairs were looked at only once, so that no change is known."


def test_the_studys_rates_are_those_of_its_rewards():
    measured = json.loads((ROOT / "results/published/metrics.json").read_text(encoding="utf-8"))
    for record, expected in zip(published.study_rates(), measured["models"], strict=True):
        assert record.pop("model") == expected["model"]
        for name, value in record.items():
            assert value == pytest.approx(expected[name]), name
