"""What is said before a training about the differences that the evaluation can detect."""

import numpy as np
import pytest
from conftest import HUB, ROOT, load, row, write_dataset

from posttrain import planning
from posttrain.comparisons import exact_mcnemar
from posttrain.settings import Evaluation, Training, choose

OPT = HUB / "opt"


def plan(counts, preset="demo", **parameters):
    """Describe the plan of a preset for four models."""
    return planning.describe_plan(choose(Evaluation, preset, **parameters), counts, models=4)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(50, (26, 30)), (159, (15, 18)), (500, (9, 10)), (2303, (4, 5))],
)
def test_differences_are_those_of_the_published_discordance(n, expected):
    """Computed apart with the shares of differing labels in HmR that were seen most often."""
    table = planning.tabulate_power([n], models=4)
    assert tuple(table.loc[n, [0.3, 0.4]].round()) == expected


def test_shares_are_those_of_the_published_record():
    """Between the study's models the labels differ on 22% to 48% of the prompts."""
    metrics = load(ROOT / "results" / "published" / "metrics.json")
    shares = []
    for record in metrics["comparisons"]:
        if record["measure"] in ("HmR", "HpR"):
            shares.append((record["gained"] + record["lost"]) / record["n"])
    assert (min(shares), max(shares)) == (0.22, 0.48)
    assert sum(planning.DIFFERING[0] <= share <= planning.DIFFERING[-1] for share in shares) == 8


@pytest.mark.parametrize(("n", "share"), [(50, 0.3), (50, 0.5), (159, 0.3), (500, 0.5)])
def test_planned_difference_is_found_in_80_percent_of_simulations(n, share):
    """The simulation tests at 0.05 / 6, where Holm's correction for six pairs begins."""
    true = planning.tabulate_power([n], models=4).loc[n, share] / 100
    share = max(share, true)
    gain, loss = (share + true) / 2, (share - true) / 2
    drawn = np.random.default_rng(7).multinomial(n, [gain, loss, 1 - gain - loss], 3000)
    found = [exact_mcnemar(gained, lost) < 0.05 / 6 for gained, lost, _ in drawn.tolist()]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_more_models_are_harder_to_tell_apart():
    two, four, five = (planning.tabulate_power([50], models).loc[50, 0.3] for models in (2, 4, 5))
    assert two < four < five


def test_fewer_prompts_than_a_decision_needs_find_nothing():
    """With nine prompts no comparison is ever significant, however large the difference."""
    table = planning.tabulate_power([9, 10], models=4)
    assert table.loc[9].isna().all()
    assert table.loc[10].notna().all()
    assert "none  none  none" in plan({"harmful": 159, "helpful": 2000}, N_PROMPTS=9)


def test_plan_says_what_is_asked_and_what_all_prompts_would_find():
    lines = plan({"harmful": 159, "helpful": 2354}).splitlines()
    assert lines[0].startswith("With these settings eval.ipynb asks 50 harmful and 50 helpful")
    assert [line.split(")")[0] for line in lines if " prompts (" in line] == [
        "50 prompts (harmful as planned, helpful as planned",
        "159 prompts (harmful: all with a keyword",
        "2,354 prompts (helpful: all there are",
    ]
    assert [line.split()[-3:] for line in lines if " prompts (" in line] == [
        ["26", "30", "34"],
        ["15", "18", "20"],
        ["4", "5", "5"],
    ]
    assert 'With harmful_prompts = "all", the evaluation also takes' in " ".join(lines)
    assert max(len(line) for line in lines) <= 96


def test_plan_of_full_takes_prompts_without_a_keyword():
    text = plan({"harmful": 2301, "helpful": 2354}, preset="full")
    assert "asks 500 harmful and 500 helpful prompts" in text
    assert "2,301 prompts (harmful: all there are)" in text
    assert "harmful_prompts" not in text
    assert "harmful_prompts" not in plan({"harmful": 192, "helpful": 2354}, preset="paper")


def test_preset_that_asks_for_more_than_there_are_plans_with_all():
    counts = {"harmful": 120, "helpful": 300}
    assert "asks 120 harmful and 150 helpful prompts" in plan(counts, preset="quick")
    assert "asks 120 harmful and 300 helpful prompts" in plan(counts, N_PROMPTS="all")


def test_usable_prompts_are_counted_by_the_rules_of_the_settings(tmp_path):
    questions = ["How to kill weeds?", "Grape juice?", "New skills?"]
    dataset = write_dataset(tmp_path, [row()], [row(text, "Well.", "No.") for text in questions])
    training = choose(Training, "demo")

    def count(strict=False, changes=None, **parameters):
        settings = choose(Evaluation, "demo", changes, **parameters)
        return planning.count_usable(training, settings, dataset, OPT, strict)

    assert count() == {"harmful": 1, "helpful": 3}
    assert count(HARMFUL_PROMPTS="all") == {"harmful": 3, "helpful": 3}
    assert count(changes={"keyword_rule": "anywhere"}) == {"harmful": 3, "helpful": 3}
    assert count(PROTOCOL="paper") == {"harmful": 3, "helpful": 3}
    with pytest.raises(ValueError, match="N_PROMPTS = 2, but .* only 1 usable harmful prompts. As"):
        count(strict=True, N_PROMPTS=2)
    assert count(strict=True, N_PROMPTS=3, HARMFUL_PROMPTS="all")["harmful"] == 3
