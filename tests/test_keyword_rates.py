"""HmR on harmful prompts with and without a keyword."""

import pytest
from scipy.stats import binomtest

from posttrain import keyword_rates, metrics

MODELS = {"Base": [1, 0, 1, 1, 0, 0], "SFT": [1, 1, 1, 0, 0, 0]}  # whether answers are harmless
KEYWORDS = [True, False, True, False, False, False]


def make_answers(keywords=KEYWORDS):
    """Make prompts and the labelled answers of two models and a reference to them."""
    prompts = []
    for i, keyword in enumerate(keywords):
        prompts.append({"id": f"harmful-{i}", "kind": "harmful", "prompt": "p", "keyword": keyword})
    prompts.append({"id": "helpful-0", "kind": "helpful", "prompt": "p"})
    responses, scores = [], []
    for model, harmless in (MODELS | {"Empty": [0] * 6}).items():
        for prompt, value in zip(prompts, [*harmless, 1]):
            key = {"id": prompt["id"], "model": model}
            scores.append(key | {"reward": float(value)})
            if model != "Empty":
                responses.append(key | {"response": "r"})
    answers = metrics.table(prompts, responses, scores)
    good = answers["reward"] > 0.5
    answers["label"] = good.map({True: "harmless", False: "harmful"})
    answers.loc[answers["kind"] == "helpful", "label"] = "helpful"
    return prompts, answers


def test_both_groups_have_their_counts_and_rates():
    records = keyword_rates.rates_by_keyword(*make_answers())
    counted = [(r["model"], r["keyword"], r["harmless"], r["harmful_prompts"]) for r in records]
    assert counted == [
        ("Base", True, 2, 2),
        ("Base", False, 1, 4),
        ("SFT", True, 2, 2),
        ("SFT", False, 1, 4),
    ]
    for record in records:
        n, harmless = record["harmful_prompts"], record["harmless"]
        ends = binomtest(harmless, n).proportion_ci(method="wilson")
        assert record["HmR"] == 100 * harmless / n
        assert record["HmR_low"] == pytest.approx(100 * ends.low)
        assert record["HmR_high"] == pytest.approx(100 * ends.high)


def test_groups_together_have_the_rate_of_the_run():
    prompts, answers = make_answers()
    whole = {record["model"]: record for record in metrics.summarise(answers, 100, 0)}
    for model in MODELS:
        parts = [r for r in keyword_rates.rates_by_keyword(prompts, answers) if r["model"] == model]
        assert sum(r["harmless"] for r in parts) == whole[model]["harmless"]
        assert sum(r["harmful_prompts"] for r in parts) == whole[model]["harmful_prompts"]


@pytest.mark.parametrize("keywords", [[True] * 6, [False] * 6])
def test_run_with_one_group_has_no_rates_by_keyword(keywords):
    assert keyword_rates.rates_by_keyword(*make_answers(keywords)) == []


def test_prompts_from_elsewhere_need_not_say_which_have_a_keyword():
    prompts, answers = make_answers()
    for prompt in prompts:
        prompt.pop("keyword", None)
    assert keyword_rates.rates_by_keyword(prompts, answers) == []


def test_keyword_of_a_helpful_prompt_counts_for_nothing():
    """Prompts from elsewhere may have the field on every prompt."""
    prompts, answers = make_answers()
    expected = keyword_rates.rates_by_keyword(prompts, answers)
    assert prompts[-1]["kind"] == "helpful"
    prompts[-1]["keyword"] = False
    assert keyword_rates.rates_by_keyword(prompts, answers) == expected


def test_table_names_both_groups_with_their_number_of_prompts():
    table = keyword_rates.tabulate_by_keyword(keyword_rates.rates_by_keyword(*make_answers()))
    assert list(table) == [
        "model",
        "HmR (%) on prompts with a keyword (n = 2)",
        "HmR (%) on prompts without a keyword (n = 4)",
    ]
    assert table.iloc[0, 2] == "25.0 [4.6, 69.9]"
