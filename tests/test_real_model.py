"""What is computed about the real model is right, and its tables follow from its records."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from conftest import DATA, ROOT, load

from benchmarks import (
    bag_of_words,
    real_model,
    real_model_answers,
    real_model_pairs,
    real_model_tables,
)
from posttrain import data, models, settings
from posttrain.run import Run

BENCHMARKS = ROOT / "benchmarks"


# ---- the bag of words


def make_pair(chosen, rejected):
    return {"prompt": "\n\nHuman: Well?\n\nAssistant:", "chosen": chosen, "rejected": rejected}


@pytest.fixture
def polite_pairs():
    """Pairs whose chosen reply has "please" in it, among words that say nothing."""
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(60):
        replies = []
        for polite in (True, False):
            words = generator.choice(["red", "green", "blue", "grey"], size=5).tolist()
            replies.append(" ".join(words + ["please"] * polite))
        pairs.append(make_pair(*replies))
    return pairs


def test_word_that_marks_chosen_replies_is_learned(polite_pairs):
    margins, _ = bag_of_words.predict(polite_pairs[:40], polite_pairs[40:50], polite_pairs[50:])
    assert len(margins) == 10
    assert (margins > 0).all()


def test_exchanged_replies_have_the_opposite_margin(polite_pairs):
    exchanged = [make_pair(pair["rejected"], pair["chosen"]) for pair in polite_pairs[50:]]
    split = polite_pairs[:40], polite_pairs[40:50]
    margins, _ = bag_of_words.predict(*split, polite_pairs[50:])
    opposite, _ = bag_of_words.predict(*split, exchanged)
    assert opposite == pytest.approx(-margins)


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_weights_are_those_of_statsmodels(penalty):
    """Its ridge regression minimises the same sum, by another method."""
    generator = np.random.default_rng(1)
    differences = generator.poisson(1.0, (80, 6)) - generator.poisson(0.8, (80, 6)).astype(float)
    model = sm.GLM(np.ones(80), differences, family=sm.families.Binomial())
    expected = model.fit_regularized(alpha=penalty, L1_wt=0).params
    assert bag_of_words.fit(differences, penalty) == pytest.approx(expected, abs=1e-4)


def test_penalty_has_the_smallest_loss_on_the_held_out_pairs(polite_pairs):
    """With labels exchanged in the held-out pairs, the strongest penalty does the least harm."""
    held_out = [make_pair(pair["rejected"], pair["chosen"]) for pair in polite_pairs[40:50]]
    _, harmless = bag_of_words.predict(polite_pairs[:40], held_out, polite_pairs[50:])
    _, fitting = bag_of_words.predict(polite_pairs[:40], polite_pairs[40:50], polite_pairs[50:])
    assert harmless == max(bag_of_words.PENALTIES)
    assert fitting == min(bag_of_words.PENALTIES)


# ---- the test pairs


def make_table(**columns):
    """Build a table as `real_model_pairs.measure` does, in which nothing is said of SFT."""
    n = len(columns["chosen_tokens"])
    table = pd.DataFrame({name.replace("_", " "): values for name, values in columns.items()})
    table["id"] = [f"harmless-base/{i}" for i in range(n)]
    for reply in ("chosen", "rejected"):
        for ours, other in (("SFT", "Base"), ("SFT+DPO", "DPO")):
            table[f"{ours} {reply}"] = table[f"{other} {reply}"]
    return table


@pytest.fixture
def table():
    """Six pairs, of which the model moves towards the chosen reply in the first four."""
    return make_table(
        chosen_tokens=[10, 20, 30, 40, 50, 60],
        rejected_tokens=[20, 25, 30, 30, 35, 10],
        Base_chosen=[-10.0, -20.0, -30.0, -40.0, -50.0, -60.0],
        Base_rejected=[-20.0, -25.0, -29.0, -30.0, -41.0, -15.0],
        DPO_chosen=[-11.0, -20.0, -29.0, -42.0, -52.0, -62.0],
        DPO_rejected=[-22.0, -26.0, -29.5, -33.0, -41.5, -15.0],
        words=[1.0, -1.0, 0.0, 1.0, -1.0, -1.0],
    )


def test_right_choices_are_counted(table):
    right = real_model_tables.choose_right(table)
    assert right["DPO"].tolist() == [True] * 4 + [False] * 2
    assert right["Bag of words"].tolist() == [True, False, False, True, False, False]
    assert right["The shorter reply"].tolist() == [True, True] + [False] * 4


def test_ways_of_choosing_are_compared_on_the_same_pairs(table):
    right = real_model_tables.choose_right(table)
    compared = real_model_tables.compare_right(right, "Bag of words", "DPO")
    assert compared["difference"] == pytest.approx(100 * 2 / 6)
    assert compared["p"] == pytest.approx(2 * 0.5**2)  # both pairs that differ, in one direction


def test_ranks_are_counted_before_and_after(table):
    assert real_model_tables.rank_before_and_after(table, "DPO", by_token=False) == [2, 3]
    assert real_model_tables.rank_before_and_after(table, "DPO", by_token=True) == [2, 5]


def test_each_third_has_a_third_of_the_pairs(table):
    thirds = real_model_tables.divide_by_length(table)
    assert thirds.value_counts().tolist() == [2, 2, 2]
    assert thirds[0] == "chosen shorter"
    assert thirds[5] == "chosen longer"


def fall(chosen, rejected):
    """Let the log-probabilities of the replies of 200 pairs fall by two shares."""
    generator = np.random.default_rng(2)
    before = -generator.gamma(4, 25, (200, 2)) * [1.0, 1.3]
    after = before * [1 + chosen, 1 + rejected]
    return make_table(
        chosen_tokens=[1] * 200,
        rejected_tokens=[1] * 200,
        Base_chosen=before[:, 0],
        Base_rejected=before[:, 1],
        DPO_chosen=after[:, 0],
        DPO_rejected=after[:, 1],
    )


def test_equal_falls_make_all_of_the_margin():
    falls = real_model_tables.fall_equally(fall(0.03, 0.03), "DPO")
    assert falls["margin"] > 0
    assert falls["share"] == pytest.approx(100)
    assert [falls["low"], falls["high"]] == pytest.approx([100, 100])


def test_rejected_replies_that_fall_alone_make_none_of_it():
    assert real_model_tables.fall_equally(fall(0.0, 0.03), "DPO")["share"] == pytest.approx(0)


def test_interval_of_the_share_is_that_of_the_jackknife():
    """Leaving out one pair at a time gives the same standard error as drawing pairs anew."""
    table = fall(0.02, 0.03)
    noise = np.random.default_rng(3).normal(0, 2, (len(table), 2))
    table["DPO chosen"] += noise[:, 0]
    table["DPO rejected"] += noise[:, 1]
    shares = []
    for i in table.index:
        rest = table.drop(index=i)
        fall_of_chosen = rest["DPO chosen"].sum() / rest["Base chosen"].sum()
        equal = rest["DPO chosen"].sum() + rest["Base rejected"].sum()
        equal -= rest["Base chosen"].sum() + fall_of_chosen * rest["Base rejected"].sum()
        shares.append(100 * equal / real_model_tables.margins_of(rest, "DPO").sum())
    n = len(shares)
    error = math.sqrt((n - 1) / n * ((np.array(shares) - np.mean(shares)) ** 2).sum())
    falls = real_model_tables.fall_equally(table, "DPO")
    assert falls["share"] == pytest.approx(np.mean(shares), abs=0.5)
    assert (falls["high"] - falls["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_test_pairs_are_found_again_by_their_ids(hub):
    tokenizer = models.load_tokenizer(hub / "opt")
    pairs = real_model_pairs.read_test_pairs(hub / "hh-rlhf", tokenizer, 512)
    assert len({pair["id"] for pair in pairs}) == len(pairs) > 100
    for pair in (pairs[0], pairs[-1]):
        subset, line = pair["id"].split("/")
        row = data.read_split(hub / "hh-rlhf", subset, "test")[int(line)]
        assert row["chosen"].endswith(pair["chosen"])
        assert row["rejected"].endswith(pair["rejected"])


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_trainer(hub, copied_run):
    """TRL logged the same for the held-out pairs, computed in the precision of the training."""
    run = Run(copied_run.folder / "results", "demo")
    base = hub / "opt"
    tokenizer = models.load_tokenizer(base)
    known = settings.Training(**run.record.settings["training"])
    held_out = data.load_pairs(hub / "hh-rlhf", tokenizer, known).validation
    measured = real_model_pairs.log_probabilities(run, base, tokenizer, held_out)
    for model, log in load(copied_run.run / "training.json").items():
        if model in real_model_tables.REFERENCE_OF:
            logged = real_model.read_validation(log)
            for reply in real_model_tables.REPLIES:
                last = logged[f"logps/{reply}"][1]
                assert np.mean(measured[f"{model} {reply}"]) == pytest.approx(last, rel=5e-3)


@pytest.mark.slow
def test_pairs_of_a_run_are_measured(hub, copied_run):
    run = Run(copied_run.folder / "results", "demo")
    table = real_model_pairs.measure(run, hub / "opt", hub / "hh-rlhf")
    right = real_model_tables.choose_right(table)
    assert right["DPO"].mean() > 0.6
    tables = real_model_tables.as_table(table, 0.1)
    assert tables.count("\n| SFT+DPO |") == 4


# ---- the answers


TRAINED = ["\n\nHuman: Two\n\nAssistant: 2\n\nHuman: Three\n\nAssistant:"]


@pytest.mark.parametrize(
    ("prompt", "trained"),
    [
        (TRAINED[0], True),
        ("\n\nHuman: Two\n\nAssistant:", True),  # its beginning
        (f"{TRAINED[0]} 3\n\nHuman: Four\n\nAssistant:", True),  # its continuation
        (f"\n\nHuman: One\n\nAssistant: 1{TRAINED[0]}", True),  # of which training lost the oldest
        ("\n\nHuman: Three\n\nAssistant:", False),
        ("\n\nHuman: Four\n\nAssistant:", False),
    ],
)
def test_conversations_that_were_trained_are_recognised(prompt, trained):
    assert real_model_answers.is_trained(prompt, TRAINED) == trained


@pytest.fixture
def answers():
    """Twenty answers of two models to the same prompts; the second refuses fifteen of them."""
    rows = []
    for model in ("Base", "DPO"):
        for i in range(20):
            row = dict.fromkeys(real_model_answers.PROPERTIES, False)
            row |= {"id": f"harmful-{i:04d}", "model": model, "trained": i >= 18}
            row |= {"finish": "eos", "tokens": 10 + i, "log_ratio": i * (model == "DPO") / 10}
            row["refuses"] = model == "DPO" and i < 15
            rows.append(row)
    return pd.DataFrame(rows)


def test_answers_are_described(answers):
    described = real_model_answers.describe(answers)
    assert [record["refuses"] for record in described] == [0, 15]
    assert described[1]["log_ratio"] == pytest.approx(0.95)
    assert described[0]["log_ratio_low"] is None


def test_only_what_differs_is_significant(answers):
    compared = {one["measure"]: one for one in real_model_answers.compare(answers)}
    assert compared["refuses"]["p"] == pytest.approx(2 * 0.5**15)
    assert compared["refuses"]["decision"] == "significant"
    assert compared["empty"]["decision"] == "inconclusive"


def test_trained_prompts_are_left_out_of_the_tables(answers):
    assert "answer 18 harmful prompts" in real_model_answers.as_table(answers)


def test_prompts_have_a_keyword_and_are_there_once(hub):
    tokenizer = models.load_tokenizer(hub / "opt")
    prompts = real_model_answers.read_prompts(hub / "hh-rlhf", tokenizer)
    texts = [prompt["prompt"] for prompt in prompts]
    assert 0 < len(texts) == len(set(texts))
    assert all(real_model_answers.KEYWORD.search(text) for text in texts)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_official_split_has_the_prompts_of_the_evaluation(hub):
    tokenizer = models.load_tokenizer(hub / "opt")
    assert len(real_model_answers.read_prompts(DATA / "hh-rlhf", tokenizer)) == 159


# ---- what is committed


def test_committed_tables_of_the_pairs_follow_from_their_numbers():
    table = real_model_pairs.read_record()
    again = load(BENCHMARKS / "real_model_pairs.json")
    expected = real_model_tables.as_table(table, again["beta"])
    assert (BENCHMARKS / "real_model_pairs.md").read_text(encoding="utf-8") == expected
    earlier = load(BENCHMARKS / "real_model.json")
    result = real_model_tables.write_result(table, again, earlier)
    assert real_model_pairs.RESULT.read_text(encoding="utf-8") == result + "\n"


def test_committed_tables_of_the_answers_follow_from_their_numbers():
    expected = real_model_answers.as_table(real_model_answers.read_record())
    assert (BENCHMARKS / "real_model_answers.md").read_text(encoding="utf-8") == expected


def test_committed_records_hold_numbers_and_names_alone():
    """No text of a prompt, a reply or an answer is committed."""
    pairs = real_model_pairs.read_record()
    assert pairs["id"].str.fullmatch(r"[a-z]+-base/\d+").all()
    assert all(pairs[name].dtype.kind in "if" for name in pairs.columns.drop("id"))
    answers = real_model_answers.read_record()
    assert tuple(answers.columns) == real_model_answers.COLUMNS
    assert answers["id"].str.fullmatch(r"harmful-\d{4}").all()
    assert set(answers["finish"]) <= {"eos", "turn", "length"}
    assert set(answers["model"]) <= {"Base", "SFT", "DPO", "SFT+DPO"}
    numbers = answers.columns.drop(["id", "model", "finish"])
    assert all(answers[name].dtype.kind in "bif" for name in numbers)
