"""Rewards: what the judge reads, independence of batches, and refusal of invalid rewards."""

import ast
import math
import types
from collections import Counter
from functools import cache
from itertools import combinations

import nbformat
import pytest
import torch
from conftest import ROOT, dialogue, load
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from small_models import FAULTY_JUDGES, save_roberta
from small_runs import JUDGE

from posttrain import judging, metrics, models, rewards
from posttrain.data import PROMPT_END
from posttrain.files import write
from posttrain.record import Model
from posttrain.rewards import compute_rewards
from posttrain.run import Run

QUESTION = " ".join(f"Turn {i}: how do I grow grapes on a balcony?" for i in range(9))
ANSWER = "Give it six hours of sun.\n\nThen cut it back each winter."
MODELS = ["GPT 4+", "B"]
REFERENCES = ["Human chosen", "Human rejected", "Empty", "Refusal", "Not understood"]


@pytest.fixture(scope="module")
def judge():
    """The demo's judge and its tokenizer, as the evaluation loads them."""
    return models.load_judge(JUDGE)


def judge_input(tokenizer, question, answer):
    """Encode what a judge reads, in a simpler way than the notebook does."""
    return tokenizer(question, answer, truncation="only_first", max_length=64)


def compute_alone(judge, question, answer):
    """Compute one reward without a batch."""
    inputs = judge_input(judge[1], question, answer)
    with torch.no_grad():
        tensors = {name: torch.tensor([ids]) for name, ids in inputs.items()}
        return judge[0](**tensors).logits.item()


def test_batches_score_what_one_at_a_time_scores(judge):
    """Padding and batching change no reward, and the order of the answers is kept."""
    questions = [QUESTION[-n:] for n in (10, 200, 40, 300, 80, 15, 120)]
    answers = [ANSWER[:n] for n in (25, 57, 1, 10, 0, 40, 30)]
    pairs = list(zip(questions, answers))
    inputs = [judge_input(judge[1], *pair) for pair in pairs]
    together = compute_rewards(*judge, inputs, 200)
    alone = [compute_alone(judge, *pair) for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-4)
    # else the order is not put to the test
    assert min(abs(first - second) for first, second in combinations(alone, 2)) > 1e-3


# ---- what the judge reads, as eval.ipynb defines it


def read_notebook_function(judge_length):
    """Read `judge_input` from eval.ipynb, for inputs of a limited number of tokens."""
    settings = types.SimpleNamespace(judge_length=judge_length)
    names = {"models": models, "plain": models.plain, "s": settings, "settings": settings}
    for cell in nbformat.read(ROOT / "eval.ipynb", as_version=4).cells:
        if cell.cell_type == "code" and "def judge_input" in cell.source:
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef) and node.name == "judge_input":
                    exec(ast.unparse(node), names)
    return names["judge_input"]


def split_input(tokenizer, inputs):
    """Split the judge's input into the tokens of question and answer."""
    ids = inputs["input_ids"]
    border = ids.index(tokenizer.sep_token_id)
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    return ids[1:border], ids[border + 1 : -1]


@pytest.fixture(scope="module")
def tokens(judge):
    """The tokens of the question and the answer in these tests."""
    texts = (QUESTION, ANSWER)
    return [judge[1](text, add_special_tokens=False)["input_ids"] for text in texts]


def test_short_input_is_read_to_its_end(judge, tokens):
    """An input that fits is not cut."""
    inputs = read_notebook_function(512)(judge[1], QUESTION, ANSWER)
    assert split_input(judge[1], inputs) == tuple(tokens)


def test_question_is_cut_from_the_left(judge, tokens):
    """A long question keeps its end, the answer is complete, and the limit is used up."""
    inputs = read_notebook_function(60)(judge[1], QUESTION, ANSWER)
    question, answer = split_input(judge[1], inputs)
    assert answer == tokens[1]
    assert 0 < len(question) < len(tokens[0])
    assert question == tokens[0][-len(question) :]
    assert len(inputs["input_ids"]) == 60


@pytest.mark.parametrize("spare", [-20, -3, 0, 1, 2, 3, 4, 5])
def test_answer_is_never_cut(judge, tokens, spare):
    """This is so even if it exceeds the limit, and some of the question always remains."""
    inputs = read_notebook_function(len(tokens[1]) + spare)(judge[1], QUESTION, ANSWER)
    question, answer = split_input(judge[1], inputs)
    assert answer == tokens[1]
    assert len(question) == max(1, spare - 3)


def test_empty_answer_is_the_question_alone(judge):
    """This is as in the study, where transformers 4 took an empty second text for none."""
    read = read_notebook_function(512)
    question = "How do I kill weeds?"
    assert read(judge[1], question, "")["input_ids"] == judge[1](question)["input_ids"]
    answered = read(judge[1], question, "Pull.")["input_ids"]
    assert answered.count(judge[1].sep_token_id) == 2


MARKS = ["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", "\n", "\x00", "é", "🧀", "a", "word "]
TEXT = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(MARKS), max_size=14).map("".join)
)


@examples(max_examples=200, deadline=None)
@given(question=TEXT, answer=TEXT)
def test_judge_reads_control_tokens_as_text(judge, question, answer):
    """The only special tokens are one [CLS] and two [SEP] from the tokenizer."""
    read = read_for_hypothesis()
    encoded = read(judge[1], question + "[SEP]", "[CLS]" + answer + "[MASK]")
    counts = Counter(judge[1].convert_ids_to_tokens(encoded["input_ids"]))
    control = [counts[token] for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")]
    assert control == [1, 2, 0, 0]


@cache
def read_for_hypothesis():
    """Read the notebook's function once for all examples."""
    return read_notebook_function(512)


# ---- rewards


def test_references_are_judged_on_every_prompt():
    """Each prompt has two human replies, an empty answer, a refusal, and one not understood."""
    prompt = {"id": "harmful-00", "prompt": "P", "chosen": "C", "rejected": "R"}
    answers = judging.reference_answers([prompt])
    assert answers == {
        "Human chosen": ["C"],
        "Human rejected": ["R"],
        "Empty": [""],
        "Refusal": [judging.REFUSAL],
        "Not understood": [judging.NOT_UNDERSTOOD],
    }
    assert list(answers) == REFERENCES
    del prompt["rejected"]
    assert list(judging.reference_answers([prompt])) == ["Empty", "Refusal", "Not understood"]


def test_human_replies_are_judged_on_a_kind_that_has_them_all():
    """One prompt without a reply is enough to leave out its kind."""
    prompts = [
        {"id": "harmful-00", "chosen": "C0", "rejected": "R0"},
        {"id": "harmful-01", "chosen": "C1", "rejected": "R1"},
        {"id": "helpful-00", "chosen": "C2", "rejected": "R2"},
        {"id": "helpful-01"},
    ]
    answers = judging.reference_answers(prompts)
    assert answers["Human chosen"] == ["C0", "C1", None, None]
    assert answers["Human rejected"] == ["R0", "R1", None, None]
    assert answers["Empty"] == [""] * 4


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_reward_that_is_no_number(reward):
    """If the judge gives NaN or infinity, the message names the model and the prompt."""
    prompts = [{"id": "harmful-00"}, {"id": "harmful-01"}]
    records = judging.score_records([1.0, 2.0], "SFT", prompts)
    assert records[1] == {"id": "harmful-01", "model": "SFT", "reward": 2.0}
    message = f"gives SFT's answer to harmful-01 the reward {reward}. .* checkpoint is complete"
    with pytest.raises(ValueError, match=message):
        judging.score_records([1.0, reward], "SFT", prompts)


# ---- all answers of a run


@pytest.fixture
def run(tmp_path):
    """A run with answers of two models."""
    run = Run(tmp_path / "results", "demo")
    prompts = []
    for i in range(3):
        prompt = {"id": f"helpful-{i:02d}", "kind": "helpful", "chosen": f"Yes {i}."}
        prompts.append(prompt | {"prompt": dialogue(f"Why {i}?") + PROMPT_END, "rejected": "No."})
    run.stage("prompts.json", lambda: prompts, {})

    def respond(name):
        records = []
        for prompt in reversed(prompts):  # rewards go by id, not by place
            response = f"{name} about {prompt['id']}"
            records.append({"id": prompt["id"], "model": name, "response": response})
        return records

    run.stage("responses.json", respond, {name: {} for name in MODELS}, parts=True)
    return run


def source(folder=JUDGE, identity="j" * 64, role="reward_model"):
    """Make a source of the judge, as `Run.source` does."""
    return types.SimpleNamespace(folder=folder, identity=identity, name="judge", role=role)


class NotNeeded:
    """A source whose folder must not be touched."""

    role, identity = source().role, source().identity

    @property
    def folder(self):
        raise AssertionError("loaded")


def score(run, judge=None, function=judge_input, tokens_at_once=200, **inputs):
    """Let the judge rate the run's answers."""
    prompts = load(run.folder / "prompts.json")
    responses = load(run.folder / "responses.json")
    options = {"judge_length": 64, **inputs}
    return judging.score(
        run, prompts, responses, judge or source(), function, tokens_at_once, **options
    )


def test_rewards_are_those_of_the_answers(run, judge):
    """Every reward is the judge's for this question and answer alone."""
    scores = score(run)
    assert scores == load(run.folder / "scores.json")
    assert list(dict.fromkeys(record["model"] for record in scores)) == [*MODELS, *REFERENCES]
    for record in scores:
        i = int(record["id"][-2:])
        answers = {
            "Human chosen": f"Yes {i}.",
            "Human rejected": "No.",
            "Empty": "",
            "Refusal": judging.REFUSAL,
            "Not understood": judging.NOT_UNDERSTOOD,
        }
        answer = answers.get(record["model"], f"{record['model']} about {record['id']}")
        expected = compute_alone(judge, f"Human: Why {i}?", answer)
        assert record["reward"] == pytest.approx(expected, abs=1e-4)


def test_interrupted_judging_goes_on(run, monkeypatch, judge):
    """Rewards of some hundred answers are kept at a time, until those of all models are saved."""
    monkeypatch.setattr(rewards, "TEXTS_IN_A_PART", 2)
    monkeypatch.setattr(rewards, "BATCHES_IN_A_PART", 1)
    parts = []

    def compute(*arguments):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(arguments[2])
        return compute_rewards(*arguments)

    monkeypatch.setattr(rewards, "compute_rewards", compute)
    with pytest.raises(KeyboardInterrupt):
        score(run, tokens_at_once=40)
    assert (run.folder / "scores.jsonl").exists()
    assert not (run.folder / "scores.json").exists()
    read = sum(len(part) for part in parts)

    def count(*arguments):
        parts.append(arguments[2])
        return compute_rewards(*arguments)

    monkeypatch.setattr(rewards, "compute_rewards", count)
    scores = score(run, tokens_at_once=40)
    assert not (run.folder / "scores.jsonl").exists()
    assert len(scores) == 21
    # The demo's judge does not know the numbers, so that it reads seven texts, one for each name.
    assert 4 <= read < sum(len(part) for part in parts) == 7
    for record in scores[:6]:
        answer = f"{record['model']} about {record['id']}"
        expected = compute_alone(judge, f"Human: Why {int(record['id'][-2:])}?", answer)
        assert record["reward"] == pytest.approx(expected, abs=1e-4)


def test_rewards_are_kept(run):
    """Nothing is loaded for existing rewards, and another batch size makes no new ones."""
    scores = score(run)
    assert score(run, NotNeeded(), tokens_at_once=64) == scores


def input_of_another_kind(tokenizer, question, answer):
    return tokenizer(answer, question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judge_length": 65}, "judge_length = 64, but now it is 65"),
        ({"function": input_of_another_kind}, "judge_input = "),
        ({"judge": source(identity="other")}, "reward_model = "),
    ],
)
def test_rewards_of_another_judge_are_refused(run, options, message):
    """Another input or another length is refused as well."""
    score(run)
    with pytest.raises(ValueError, match=message):
        score(run, **options)


def test_inputs_name_what_a_reward_follows_from(run):
    """They have a model's answers by hash; a reference depends on the prompts only."""
    score(run)
    record = run.record
    inputs = record.artifacts["scores.json/B"].inputs
    assert sorted(inputs) == [
        "judge_input",
        "judge_length",
        "prompts.json",
        "responses.json",
        "reward_model",
    ]
    assert inputs["responses.json"] == record.artifacts["responses.json/B"].sha256
    assert record.artifacts["scores.json/Empty"].inputs["responses.json"] is None


class Gone(NotNeeded):
    """A source whose folder cannot be had any more."""

    def __init__(self, identity=NotNeeded.identity, role=NotNeeded.role):
        self.identity, self.role = identity, role

    @property
    def folder(self):
        raise ValueError(f"{self.role.upper()} = 'gone' cannot be loaded.")


def remove_reference(run, name, file="scores.json"):
    """Make a run as it was judged when there was no reference of this name."""
    scores = load(run.folder / file)
    write(run.path(file), [record for record in scores if record["model"] != name])
    record = load(run.folder / "run.json")
    del record["artifacts"][f"{file}/{name}"]
    write(run.path("run.json"), record)


def test_a_reference_that_an_older_run_lacks_is_judged(run):
    scores = score(run)
    remove_reference(run, "Not understood")
    assert score(run) == scores
    assert load(run.folder / "scores.json") == scores


def test_an_older_run_without_its_judge_is_measured_as_it_is(run, capsys):
    scores = score(run)
    remove_reference(run, "Not understood")
    older = score(run, Gone())
    assert older == [record for record in scores if record["model"] != "Not understood"]
    assert older == load(run.folder / "scores.json")
    assert "without the reference answers Not understood: REWARD_MODEL" in capsys.readouterr().out


def test_a_models_missing_rewards_need_the_judge(run):
    score(run)
    remove_reference(run, "B")
    with pytest.raises(ValueError, match="cannot be loaded"):
        score(run, Gone())


def test_replies_to_one_kind_of_prompts_are_judged_alone(run, judge):
    """The human replies to the other kind have no rewards, and the models' rewards do not mind."""
    prompts = load(run.folder / "prompts.json")
    harmful = {"id": "harmful-00", "kind": "harmful", "prompt": dialogue("Who?") + PROMPT_END}
    prompts = [harmful, *prompts]
    responses = load(run.folder / "responses.json")
    for name in MODELS:
        responses.append({"id": "harmful-00", "model": name, "response": f"{name} on harm"})
    scores = judging.score(run, prompts, responses, source(), judge_input, 200, judge_length=64)
    answers = metrics.table(prompts, responses, scores)
    counts = answers.groupby(["model", "kind"]).size()
    assert counts["Human chosen", "helpful"] == counts["Human rejected", "helpful"] == 3
    assert ("Human chosen", "harmful") not in counts
    assert counts["Not understood", "harmful"] == counts["B", "harmful"] == 1
    chosen = answers[answers["model"] == "Human chosen"]
    for row in chosen.to_dict("records"):
        i = int(row["id"][-2:])
        assert row["response"] == f"Yes {i}."
        expected = compute_alone(judge, f"Human: Why {i}?", f"Yes {i}.")
        assert row["reward"] == pytest.approx(expected, abs=1e-4)


def test_reward_that_is_no_number_is_not_kept(run, monkeypatch):
    """The parts before it are saved."""

    def rate_texts(model, tokenizer, inputs, *arguments):
        texts = [tokenizer.decode(encoded["input_ids"]) for encoded in inputs]
        return [math.nan if "B about" in text else 1.0 for text in texts]

    monkeypatch.setattr(judging, "rate_texts", rate_texts)
    with pytest.raises(ValueError, match="gives B's answer to helpful-00 the reward nan"):
        score(run)
    assert [record["model"] for record in load(run.folder / "scores.json")] == ["GPT 4+"] * 3


# ---- a second judge


def test_second_judge_scores_the_same_answers_into_a_file_of_its_own(run, tmp_path):
    """The first judge's rewards stay as they are, and both records name their judge."""
    first = score(run)
    other = source(save_roberta(tmp_path / "other"), "k" * 64, "second_judge")
    second = score(run, other)
    assert load(run.folder / "scores.json") == first
    assert load(run.folder / "second_scores.json") == second
    assert [(row["model"], row["id"]) for row in second] == [
        (row["model"], row["id"]) for row in first
    ]
    model, tokenizer = models.load_judge(other.folder)
    for record in second:
        if record["model"] == "B":
            answer = f"B about {record['id']}"
            question = f"Human: Why {int(record['id'][-2:])}?"
            expected = compute_alone((model, tokenizer), question, answer)
            assert record["reward"] == pytest.approx(expected, abs=1e-4)
    inputs = run.record.artifacts["second_scores.json/B"].inputs
    assert inputs["second_judge"] == "k" * 64
    assert "reward_model" not in inputs
    assert score(run) == first


def test_an_older_run_without_its_second_judge_is_measured_as_it_is(run, tmp_path, capsys):
    """What is missing is looked for in the second judge's file, whatever the first has rated."""
    first = score(run)
    folder, identity = save_roberta(tmp_path / "other"), "k" * 64
    second = score(run, source(folder, identity, "second_judge"))
    remove_reference(run, "Not understood", "second_scores.json")
    gone = Gone(identity, "second_judge")
    assert score(run, gone) == [row for row in second if row["model"] != "Not understood"]
    assert "without the reference answers Not understood: SECOND_JUDGE" in capsys.readouterr().out
    assert load(run.folder / "scores.json") == first
    remove_reference(run, "B", "second_scores.json")
    with pytest.raises(ValueError, match="SECOND_JUDGE = 'gone' cannot be loaded"):
        score(run, gone)


def test_a_second_judge_of_a_run_without_rewards_must_be_had(run):
    """Nor does it matter that the first judge has rated everything but a reference."""
    score(run)
    remove_reference(run, "Not understood")
    with pytest.raises(ValueError, match="SECOND_JUDGE = 'gone' cannot be loaded"):
        score(run, Gone("k" * 64, "second_judge"))


def test_another_second_judge_is_refused(run, tmp_path):
    """This is so as for the first judge, by name and with both values."""
    folder = save_roberta(tmp_path / "other")
    score(run, source(folder, "k" * 64, "second_judge"))
    with pytest.raises(ValueError, match="second_scores.json.* was made with second_judge = "):
        score(run, source(folder, "l" * 64, "second_judge"))


def test_second_judge_is_tried_before_it_is_asked(run, tmp_path):
    """It is loaded unless it has scored all answers, and a message names its own parameter."""
    for name in MODELS:
        run.add_model(Model(name=name, base="a/base", adapter=None))
    few = source(save_roberta(tmp_path / "few", positions=34), role="second_judge")
    with pytest.raises(ValueError, match="choose another SECOND_JUDGE") as refusal:
        judging.require_judge(run, few, 64)
    assert "REWARD_MODEL" not in str(refusal.value)
    two = source(FAULTY_JUDGES["two labels"](tmp_path / "two"), role="second_judge")
    with pytest.raises(ValueError, match="^SECOND_JUDGE: .* has 2 labels"):
        judging.require_judge(run, two, 64)
    score(run, source(save_roberta(tmp_path / "other"), role="second_judge"))
    judging.require_judge(run, two, 64)  # all answers have been scored
    with pytest.raises(ValueError, match="^REWARD_MODEL: .* has 2 labels"):
        judging.require_judge(run, source(two.folder), 64)  # by the second judge alone
