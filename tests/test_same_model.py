"""The same model in two runs: differences, intervals and tests against code of another kind."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from conftest import Session, load
from scipy.stats import binomtest, ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep
from test_compare import MEASURES, MODELS, PROMPTS, RATES, write_evaluated

from posttrain import compare, compare_words, metrics, same_model, tables
from posttrain.files import sha256_of, write


def share_weights(results, *names):
    """Give runs the trained models of the first, as `make reask` does."""
    artifacts = load(results / names[0] / "run.json")["artifacts"]
    for name in names[1:]:
        path = results / name / "run.json"
        write(path, load(path) | {"artifacts": artifacts})


def share_texts(results, first, other, *models):
    """Give models of the second run the texts of the first, and bind its metrics to them."""
    texts = {(row["id"], row["model"]): row for row in load(results / first / "responses.json")}
    path = results / other / "responses.json"
    rows = load(path)
    for row in rows:
        if row["model"] in models:
            row["response"] = texts[row["id"], row["model"]]["response"]
    write(path, rows)
    measured = load(results / other / "metrics.json")
    measured["sha256"]["responses.json"] = sha256_of(path)
    write(results / other / "metrics.json", measured)


@pytest.fixture
def asked(tmp_path):
    """A run, and two in which the same models could write fewer tokens."""
    for tokens, name in ((128, "a"), (64, "b"), (32, "c")):
        write_evaluated(tmp_path, name, eval_max_new_tokens=tokens)
    share_weights(tmp_path, "a", "b", "c")
    return tmp_path


def select(records, measure):
    return [record for record in records if record["measure"] == measure]


def difference_by_hand(runs, measure, model, other):
    """The differences of a model's answers between the first run and another, by kind."""
    kinds = [metrics.MEASURES[measure]] if metrics.MEASURES[measure] else metrics.KINDS
    parts = []
    for kind in kinds:
        values = []
        for run in (runs[0], other):
            answers = run.answers[(run.answers["kind"] == kind) & (run.answers["model"] == model)]
            answers = answers.sort_values("id")
            if "reward" in measure:
                values.append(answers["reward"].to_numpy())
            else:
                values.append(100.0 * answers["label"].isin(["harmless", "helpful"]).to_numpy())
        parts.append(values[1] - values[0])
    return parts


def test_every_model_is_compared_with_itself_in_every_later_run(asked):
    runs = compare.load_runs(asked, ["a", "b", "c"])
    records = same_model.compare_same_model(runs)
    expected = [*product(MEASURES, MODELS, "bc")]
    assert [(row["measure"], row["model"], row["second"]) for row in records] == expected
    for row in records:
        assert (row["first"], row["one_training"], row["n"]) == (
            "a",
            True,
            2 * PROMPTS if row["measure"] == "CAS" else PROMPTS,
        )
    for row in select(records, "HmR") + select(records, "HpR") + select(records, "CAS"):
        place = MODELS.index(row["model"])
        change = RATES[row["second"]][place] - RATES["a"][place]
        assert row["difference"] == pytest.approx(change)


def test_differences_intervals_and_tests_by_other_code(asked):
    runs = compare.load_runs(asked, ["a", "b", "c"])
    many = runs[0].metrics | {"bootstrap": {"draws": 5000, "seed": 0}}
    runs[0] = replace(runs[0], metrics=many)
    for row in same_model.compare_same_model(runs):
        other = runs["abc".index(row["second"])]
        parts = difference_by_hand(runs, row["measure"], row["model"], other)
        mean = np.mean([part.mean() for part in parts])
        assert row["difference"] == pytest.approx(mean)
        gained = sum(int((part > 0).sum()) for part in parts)
        lost = sum(int((part < 0).sum()) for part in parts)
        assert (row["gained"], row["lost"]) == (gained, lost)
        if "reward" in row["measure"]:
            interval = ttest_1samp(parts[0], 0).confidence_interval()
            assert row["low"] == pytest.approx(interval.low, abs=0.05)
            assert row["high"] == pytest.approx(interval.high, abs=0.05)
            signs = np.random.default_rng(1).choice([-1, 1], size=(20_000, PROMPTS))
            extreme = np.abs(signs @ parts[0]) >= abs(parts[0].sum())
            assert row["p"] == pytest.approx(extreme.mean(), abs=0.02)
            continue
        # As many prompts of each kind, so that the sum of both kinds has a binomial distribution.
        assert row["p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
        # Bonett and Price: a prompt gained and one lost are added; MOVER of two equal weights.
        means, halves = [], []
        for part in parts:
            added = np.array([*part, 100, -100])
            means.append(added.mean() - part.mean())
            halves.append(metrics.Z * added.std() / len(added) ** 0.5)
        below = np.linalg.norm(np.array(halves) - means)
        above = np.linalg.norm(np.array(halves) + means)
        ends = mean - below / len(parts), mean + above / len(parts)
        assert (row["low"], row["high"]) == pytest.approx(ends)


def test_holm_is_over_the_models_and_runs_of_a_measure(asked):
    records = same_model.compare_same_model(compare.load_runs(asked, ["a", "b", "c"]))
    found = set()
    for measure in MEASURES:
        family = select(records, measure)
        assert len(family) == 6
        p_values = [row["p"] for row in family]
        rejected, adjusted, _, _ = multipletests(p_values, method="holm")
        assert [row["p_holm"] for row in family] == pytest.approx(list(adjusted))
        for row, reject in zip(family, rejected):
            clear = row["low"] > 0 or row["high"] < 0
            assert (row["decision"] == "significant") == bool(reject and clear)
            found.add(row["decision"])
    assert "inconclusive" in found


def test_a_model_that_lost_many_labels_is_significantly_worse(tmp_path):
    """Run a's SFT passes 60 of 100 prompts, of which 25 are lost in b."""
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", eval_max_new_tokens=64)
    share_weights(tmp_path, "a", "b")
    runs = compare.load_runs(tmp_path, ["a", "b"])
    answers, labels = runs[0].answers, []
    for row in answers.to_dict("records"):
        number = int(row["id"].split("-")[1])
        passes = row["label"] in ("harmless", "helpful")
        lost = row["model"] == "SFT" and passes and number < 42
        failed = metrics.LABELS[row["kind"]][1]
        labels.append(failed if lost else row["label"])
    texts = [f"{text} Cut." for text in answers["response"]]
    changed = answers.assign(label=labels, response=texts)
    cut = compare.Evaluated("b", runs[1].record, runs[1].metrics, changed)
    records = same_model.compare_same_model([runs[0], cut])
    assert {row["model"] for row in records} == {"SFT"}  # the results of the others are the same
    for row in select(records, "HmR"):
        assert (row["gained"], row["decision"]) == (0, "significant")
        assert row["high"] < 0
    (meaning, counts, left_out) = compare_words.describe_same_model(records, [runs[0], cut])
    assert "is the effect of the evaluation's setting max_new_tokens on this very model" in meaning
    assert counts.startswith("Of 5 differences 3 are significant: SFT in HmR, b − a: −")
    assert left_out.startswith("Left out between b and a: Base and SimPO, β 2.5, whose")


def test_with_two_values_of_a_training_setting_they_are_two_trainings(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", dropout=0.1)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    records = same_model.compare_same_model(runs)
    assert {(row["model"], row["one_training"]) for row in records} == {
        ("SFT", False),
        (MODELS[2], False),
    }
    meaning, _, left_out = compare_words.describe_same_model(records, runs)
    assert meaning.startswith("SFT and SimPO, β 2.5: the records show no weights that the runs")
    assert "what another seed alone would have changed" in meaning
    assert "does not show that the training's setting dropout is the cause" in meaning
    assert "Left out between b and a: Base, whose" in left_out
    assert "share" not in compare_words.describe_runs(runs)[0]


def test_a_model_that_the_setting_does_not_reach_is_left_out(tmp_path):
    """DPO from Base, for example, where a setting of SFT is varied."""
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", sft_loss="transcript")
    record = load(tmp_path / "b" / "run.json")
    ours = load(tmp_path / "a" / "run.json")["artifacts"]["adapters/simpo_2_5"]
    record["artifacts"]["adapters/simpo_2_5"]["sha256"] = ours["sha256"]
    write(tmp_path / "b" / "run.json", record)
    records = same_model.compare_same_model(compare.load_runs(tmp_path, ["a", "b"]))
    assert {row["model"] for row in records} == {"SFT"}


def test_base_is_left_out_only_where_it_answers_alike(asked):
    share_texts(asked, "a", "b", "Base")
    runs = compare.load_runs(asked, ["a", "b", "c"])
    records = same_model.compare_same_model(runs)
    pairs = {(row["model"], row["second"]) for row in records}
    assert pairs == {*product(MODELS, "bc")} - {("Base", "b")}
    said = compare_words.describe_same_model(records, runs)
    assert said[-1].startswith("Left out between b and a: Base, whose")
    assert len(said) == 3


def test_runs_that_share_their_models_are_said_to_do_so(asked):
    runs = compare.load_runs(asked, ["a", "b", "c"])
    (said,) = compare_words.describe_runs(runs)
    assert said == (
        "The 3 runs share their trained models and differ in the evaluation's setting "
        "max_new_tokens, so they are no sample of trainings, and there is no interval over them."
    )
    *_, last = compare_words.conclude(compare.differences_across(runs), runs)
    assert "one training for each" not in last
    write_evaluated(asked, "c", eval_max_new_tokens=32)  # now from a training of its own
    runs = compare.load_runs(asked, ["a", "b", "c"])
    assert "share" not in compare_words.describe_runs(runs)[0]
    kinds = {(row["second"], row["one_training"]) for row in same_model.compare_same_model(runs)}
    # Base is not trained, and the same in all runs
    assert kinds == {("b", True), ("c", False), ("c", True)}


@pytest.mark.parametrize("imported", [False, True])
def test_a_second_judge_of_the_same_answers(tmp_path, imported):
    """Its rewards have a scale of their own, so only rates are compared."""
    write_evaluated(tmp_path, "a")
    changes = {"eval_harmless_from": -2.5, "sources": {"reward_model": "r2"}}
    write_evaluated(tmp_path, "b", eval_reward_model="tiny/other", **changes)
    share_texts(tmp_path, "a", "b", *MODELS)
    for name in "ab":
        record = load(tmp_path / name / "run.json")
        if imported:
            record |= {"imported": {"from": "elsewhere"}, "artifacts": {}}
        write(tmp_path / name / "run.json", record)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    records = same_model.compare_same_model(runs)
    assert {row["measure"] for row in records} == {"HmR", "HpR", "CAS"}
    assert {row["model"] for row in records} == set(MODELS)
    assert all(row["one_training"] for row in records)
    said = compare_words.describe_same_model(records, runs)[0]
    assert "is the effect of the judge and its thresholds on this very model" in said
    assert said.endswith("Mean rewards of two judges have no common scale and are not compared.")
    assert compare_words.describe_runs(runs)[0].startswith(
        "The 2 runs contain the same answers and differ in the judge and its thresholds, so"
    )


def test_a_setting_of_the_judging_changes_rewards_of_the_same_answers(tmp_path):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", eval_judge_length=256)
    share_weights(tmp_path, "a", "b")
    share_texts(tmp_path, "a", "b", *MODELS)
    records = same_model.compare_same_model(compare.load_runs(tmp_path, ["a", "b"]))
    assert {row["measure"] for row in records} == set(MEASURES)
    assert {row["model"] for row in records} == set(MODELS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "they differ in the seed alone"),
        ({"eval_harmless_from": -2.5}, "they differ in a threshold alone"),
    ],
    ids=["seed", "threshold"],
)
def test_where_nothing_is_compared_the_reason_is_said(tmp_path, changes, reason):
    write_evaluated(tmp_path, "a")
    write_evaluated(tmp_path, "b", **changes)
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert same_model.compare_same_model(runs) == []
    (said,) = compare_words.describe_same_model([], runs)
    assert reason in said


def test_imported_runs_without_settings_are_not_compared(tmp_path):
    for name in "ab":
        write_evaluated(tmp_path, name)
        path = tmp_path / name / "run.json"
        write(path, load(path) | {"settings": {}, "imported": {"from": "elsewhere"}})
    runs = compare.load_runs(tmp_path, ["a", "b"])
    assert same_model.compare_same_model(runs) == []
    (said,) = compare_words.describe_same_model([], runs)
    assert "their records do not say in which setting they differ" in said
    assert compare_words.describe_runs(runs)[0].startswith("The 2 runs come from elsewhere, so")


def test_table_has_a_row_for_each_model_and_run(asked):
    records = same_model.compare_same_model(compare.load_runs(asked, ["a", "b"]))
    table = tables.decisions(compare_words.label_models(records)).data
    assert list(table.index) == [f"{model}: b − a" for model in MODELS]
    assert table.loc["SFT: b − a", "HmR (%)"].split("\n")[1] == "+4.0"


def test_compare_notebook_keeps_the_same_model(asked, capsys):
    session = Session("compare.ipynb", RUNS="a b", RESULTS=asked, RUN="cut")
    names = session.run_all().names
    assert "is the effect of the evaluation's setting max_new_tokens" in " ".join(
        capsys.readouterr().out.split()
    )
    kept = load(asked / "cut" / "compare.json")["same_model"]
    assert kept == names.changes
    assert {row["model"] for row in kept} == set(MODELS)


def test_interval_for_separate_prompts_that_the_page_on_faults_gives():
    """Newcombe's, from the intervals of two rates."""
    first = metrics.describe_counts("a", 30, 100, 0, 100)
    other = metrics.describe_counts("b", 45, 120, 0, 100)
    a, b = first["HmR"], other["HmR"]
    low = b - a - np.hypot(b - other["HmR_low"], first["HmR_high"] - a)
    high = b - a + np.hypot(other["HmR_high"] - b, a - first["HmR_low"])
    expected = confint_proportions_2indep(45, 120, 30, 100, method="newcomb")
    assert (low / 100, high / 100) == pytest.approx(expected)
