"""Rewards: what the judge reads, the same in batches as alone, in fp32; what is no reward is refused."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import MODELS
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from posttrain import judging, models

QUESTION = " ".join(f"Turn {i}: how do I grow grapes on a balcony?" for i in range(9))
ANSWER = "Give it six hours of sun.\n\nThen cut it back each winter."


@pytest.mark.parametrize("budget", [1, 50, 200, 10_000])
def test_batches_by_tokens(budget):
    """Every input is in exactly one batch, and a padded batch keeps the budget unless one input alone exceeds it."""
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    batches = judging.batches_by_tokens(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    assert len(batches) == {1: 200, 10_000: 2}.get(budget, len(batches))
    assert judging.batches_by_tokens([], 100) == []


@pytest.fixture(scope="module")
def judge(hub):
    """The demo's judge and its tokenizer, as the evaluation loads them."""
    return models.load_judge(hub / "reward-model")


@pytest.fixture
def judge_input(evaluation, monkeypatch):
    """The notebook's own input of the judge, with the length that it may have."""
    def limited(question, answer, length):
        monkeypatch.setitem(evaluation.globals, "s", evaluation.s.model_copy(update={"judge_length": length}))
        return evaluation.judge_input(question, answer)
    return limited


def text_of(tokenizer, inputs):
    """Return the tokens of question and answer that a judge's input holds."""
    ids = inputs["input_ids"]
    border = ids.index(tokenizer.sep_token_id)
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    return ids[1:border], ids[border + 1 : -1]


def test_short_input_is_whole(judge, judge_input):
    """What fits is not cut."""
    question, answer = (judge[1](text, add_special_tokens=False)["input_ids"] for text in (QUESTION, ANSWER))
    assert text_of(judge[1], judge_input(QUESTION, ANSWER, 512)) == (question, answer)


def test_question_is_cut_from_the_left(judge, judge_input):
    """A long question keeps its end, the answer is whole, and the limit is used to the last token."""
    whole, answer = (judge[1](text, add_special_tokens=False)["input_ids"] for text in (QUESTION, ANSWER))
    inputs = judge_input(QUESTION, ANSWER, 60)
    question, kept = text_of(judge[1], inputs)
    assert kept == answer
    assert 0 < len(question) < len(whole)
    assert question == whole[-len(question) :]
    assert len(inputs["input_ids"]) == 60


@pytest.mark.parametrize("spare", [-20, -3, 0, 1, 2, 3, 4, 5])
def test_answer_is_never_cut(judge, judge_input, spare):
    """The answer stays whole where it fills the limit or exceeds it, and some of the question always stays."""
    answer = judge[1](ANSWER, add_special_tokens=False)["input_ids"]
    question, kept = text_of(judge[1], judge_input(QUESTION, ANSWER, len(answer) + spare))
    assert kept == answer
    assert len(question) == max(1, spare - 3)


def test_empty_answer_is_the_question_alone(judge, judge_input):
    """As in the study: transformers 4 took an empty second text for none, one question at a time."""
    question = "How do I kill weeds?"
    assert judge_input(question, "", 512)["input_ids"] == judge[1](question)["input_ids"]
    assert judge_input(question, "Pull.", 512)["input_ids"].count(judge[1].sep_token_id) == 2


TEXT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(
    ["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "\n", "\x00", "é", "🧀", "a", "word "]), max_size=14).map("".join))


@examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, answer=TEXT)
def test_judge_reads_control_tokens_as_text(judge, judge_input, question, answer):
    """Nothing in a question or an answer is read as control: one [CLS], two [SEP], put by the tokenizer, no more."""
    encoded = judge_input(question + "[SEP]", "[CLS]" + answer + "[MASK]", 512)
    found = Counter(judge[1].convert_ids_to_tokens(encoded["input_ids"]))
    assert (found["[CLS]"], found["[SEP]"], found["[MASK]"], found["[PAD]"]) == (1, 2, 0, 0)


def test_batches_score_what_one_at_a_time_scores(judge, judge_input):
    """Padding and batching change no reward by more than 1e-4, and the order of the answers is kept."""
    questions = [QUESTION[-n:] for n in (10, 200, 40, 300, 80, 15, 120)]
    answers = [ANSWER[:n] for n in (25, 57, 1, 10, 0, 40, 30)]
    inputs = [judge_input(*pair, 64) for pair in zip(questions, answers)]
    together, alone = judging.rewards(*judge, inputs, 200), []
    for one in inputs:
        with torch.no_grad():
            alone.append(judge[0](**{name: torch.tensor([ids]) for name, ids in one.items()}).logits.item())
    assert together == pytest.approx(alone, abs=1e-4)
    assert min(abs(a - b) for a, b in combinations(alone, 2)) > 1e-3  # else the order is not put to the test


def test_judge_is_loaded_in_fp32(judge):
    """A small difference of the reward can change a label: no half precision."""
    assert {weight.dtype for weight in judge[0].parameters()} == {torch.float32}
    assert not judge[0].training


def test_references_are_judged_on_every_prompt():
    """Each prompt gets the human-chosen, the human-rejected, an empty and a refusing answer."""
    answers = judging.reference_answers([{"id": "harmful-00", "prompt": "P", "chosen": "C", "rejected": "R"}])
    assert answers == {"Human chosen": ["C"], "Human rejected": ["R"], "Empty": [""], "Refusal": [judging.REFUSAL]}


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_reward_that_is_no_number(reward):
    """A judge that gives NaN or infinity is named with the model and the prompt it gave it to."""
    prompts = [{"id": "harmful-00"}, {"id": "harmful-01"}]
    assert judging.scores([1.0, 2.0], "SFT", prompts)[1] == {"id": "harmful-01", "model": "SFT", "reward": 2.0}
    with pytest.raises(ValueError, match=f"gives SFT's answer to harmful-01 the reward {reward}. .* checkpoint whole"):
        judging.scores([1.0, reward], "SFT", prompts)


def test_rewards_are_those_of_the_answers(evaluation, judge):
    """Every model's and reference's reward in the notebook is the judge's for question and answer, alone."""
    for name in [*MODELS, "Human rejected", "Empty"]:
        for prompt in evaluation.prompts[:2]:
            answer = {"Human rejected": prompt["rejected"], "Empty": ""}.get(name) if name not in MODELS else next(
                one["response"] for one in evaluation.responses if (one["id"], one["model"]) == (prompt["id"], name))
            inputs = evaluation.judge_input(prompt["prompt"].removesuffix("\n\nAssistant:").strip(), answer)
            with torch.no_grad():
                reward = judge[0](**{key: torch.tensor([ids]) for key, ids in inputs.items()}).logits.item()
            assert evaluation.rewards.loc[("harmful", prompt["id"]), name] == pytest.approx(reward, abs=1e-4)
