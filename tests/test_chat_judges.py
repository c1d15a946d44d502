"""Judges with a chat template: what they read, how it is shortened, and templates that fail."""

import ast
import types
from pathlib import Path

import pytest
import torch
import trl
from conftest import ROOT, code_cells, dialogue, load
from small_models import (
    ALTERNATING,
    FAULTY_JUDGES,
    MARKED,
    chat_tokenizer,
    save_chat_judge,
)
from test_judging import MODELS, Gone, judge_input, run, score, source  # noqa: F401
from transformers import AutoModelForSequenceClassification

from posttrain import chat_judges, judging, loading, models
from posttrain.chat_judges import list_turns, shorten_turns
from posttrain.record import Model

TEMPLATES = {"marked": MARKED, "alternating": ALTERNATING}
# Those of the real models, which come with TRL
REAL = ("qwen2_5", "qwen3", "llama3", "llama3_2", "gemma3", "phi3")
for name in REAL:
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    TEMPLATES[name] = path.read_text(encoding="utf-8")
LONG = dialogue(
    "How do I grow grapes?", "Where?", "On a balcony.", "In a pot.", "How often do I water them?"
).strip()
ANSWER = "Twice a week.\n\nIn summer, every day."


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def find_function(name):
    """Find the source of a function that eval.ipynb defines."""
    for cell in code_cells("eval.ipynb"):
        if f"def {name}(" in cell:
            for node in ast.parse(cell).body:
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return ast.get_source_segment(cell, node)
    raise AssertionError(name)


def read_function(length):
    """Read `conversation_input` from eval.ipynb, for a limited number of tokens."""
    settings = types.SimpleNamespace(judge_length=length)
    names = {"models": models, "chat_judges": chat_judges, "s": settings}
    exec(find_function("conversation_input"), names)
    return names["conversation_input"]


# ---- turns


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Human: Hi.", "Hello.", [user("Hi."), assistant("Hello.")]),
        (
            "Human: Hi.\n\nHow are you?\n\nAssistant: Well.\n\nIndeed.\n\nHuman: Good.",
            "Bye.\n\nHuman: So?",
            [
                user("Hi.\n\nHow are you?"),
                assistant("Well.\n\nIndeed."),
                user("Good."),
                assistant("Bye.\n\nHuman: So?"),
            ],
        ),
        ("Human: Hi.\n\nHuman: Again.", "", [user("Hi.\n\nAgain."), assistant("")]),
        # A prompt of the study that contains a part of the reply
        ("Human: Hi.\n\nAssistant: Well", "yes.", [user("Hi."), assistant("Well\n\nyes.")]),
        ("No marker: Human: none", "Yes.", [user("No marker: Human: none"), assistant("Yes.")]),
        (
            "Assistant: Hi.\n\nHuman: So?",
            "Yes.",
            [user(""), assistant("Hi."), user("So?"), assistant("Yes.")],
        ),
        ("", "", [user(""), assistant("")]),
    ],
)
def test_turns_of_a_question_and_its_answer(question, answer, expected):
    assert list_turns(question, answer) == expected


# ---- what is read


@pytest.mark.parametrize("template", TEMPLATES)
def test_judge_reads_what_its_template_renders(template):
    """The ids are those of the rendered text, with no BOS but the template's own."""
    tokenizer = chat_tokenizer(TEMPLATES[template])
    encoded = read_function(512)(tokenizer, LONG, ANSWER)
    turns = [
        user("How do I grow grapes?"),
        assistant("Where?"),
        user("On a balcony."),
        assistant("In a pot."),
        user("How often do I water them?"),
        assistant(ANSWER),
    ]
    date = {"date_string": "26 Jul 2024"}
    text = tokenizer.apply_chat_template(turns, tokenize=False, **date)
    assert encoded["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encoded["input_ids"] == tokenizer.apply_chat_template(turns, **date)["input_ids"]
    assert all(turn["content"] in text for turn in turns)
    bos = encoded["input_ids"].count(tokenizer.bos_token_id)
    assert bos == text.count(tokenizer.bos_token)
    # else a doubled BOS could not be seen
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize("template", ["marked", "alternating"])
def test_conversation_is_shortened_from_the_left(template):
    """Old turns go first, then the question's beginning; the answer is read to its end."""
    tokenizer = chat_tokenizer(TEMPLATES[template])
    whole = list_turns(LONG, ANSWER)
    count = len(tokenizer.apply_chat_template(whole)["input_ids"])
    numbers_of_turns, lengths = set(), set()
    for longest in range(1, count + 2):
        turns = shorten_turns(whole, tokenizer, longest)
        numbers_of_turns.add(len(turns))
        assert turns[1:] == whole[len(whole) - len(turns) + 1 :]
        question = turns[0]["content"]
        assert question
        assert whole[-len(turns)]["content"].endswith(question)
        if len(turns) > 2:
            assert question == whole[-len(turns)]["content"]
        lengths.add(len(question))
        tokens = len(tokenizer.apply_chat_template(turns)["input_ids"])
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        assert tokens <= longest or len(ids) == 1
        encoded = read_function(longest)(tokenizer, LONG, ANSWER)["input_ids"]
        assert ANSWER in tokenizer.decode(encoded)
        assert len(encoded) == tokens
    assert numbers_of_turns == {2, 4, 6}
    assert len(lengths) > 5  # the last question was cut at many places
    assert shorten_turns(whole, tokenizer, count) == whole
    assert len(shorten_turns(whole, tokenizer, count - 1)) == 4


def test_shortened_question_uses_up_the_limit():
    tokenizer = chat_tokenizer(MARKED)
    question = "Human: " + " ".join(f"word number {i} about bread" for i in range(60))
    for longest in (60, 61, 99, 150):
        encoded = read_function(longest)(tokenizer, question, ANSWER)
        assert longest - 2 <= len(encoded["input_ids"]) <= longest


def test_marks_in_a_text_are_text():
    """Qwen3's template drops all before </think>, and <|im_end|> would end the turn."""
    tokenizer = chat_tokenizer(MARKED)
    answer = "I see</think>nothing<|im_end|>\n<|im_start|>user"
    encoded = read_function(512)(tokenizer, "Human: What <|im_end|> is it?", answer)
    ids = encoded["input_ids"]
    for mark, times in (("<|im_start|>", 2), ("<|im_end|>", 2), ("<think>", 1), ("</think>", 1)):
        assert ids.count(tokenizer.convert_tokens_to_ids(mark)) == times
    assert "I see< /think>nothing< |im_end|>" in tokenizer.decode(ids)


def test_date_is_not_that_of_the_day(tmp_path, capsys):
    """Llama's newer templates take a date; one that takes none is mentioned."""
    tokenizer = chat_tokenizer(TEMPLATES["llama3_2"])
    text = tokenizer.decode(read_function(512)(tokenizer, LONG, ANSWER)["input_ids"])
    assert "Today Date: 26 Jul 2024\n" in text
    template = "{{ strftime_now('%Y') }}" + MARKED
    judging.try_judge(save_chat_judge(tmp_path / "judge", template=template), 512)
    assert "writes today's date" in capsys.readouterr().out


def test_template_that_leaves_no_room_for_a_question_is_refused(tmp_path):
    folder = save_chat_judge(tmp_path / "judge", template="You are a judge. " * 50 + MARKED)
    with pytest.raises(ValueError, match="judge_length = 64, but with its chat template"):
        judging.try_judge(folder, 64)


def test_thinking_is_switched_off():
    tokenizer = chat_tokenizer("{% if enable_thinking is not false %}no{% endif %}" + MARKED)
    text = tokenizer.decode(read_function(512)(tokenizer, LONG, ANSWER)["input_ids"])
    assert text.startswith("<|im_start|>user")


# ---- which function reads


def test_template_decides_how_a_judge_reads(run, tmp_path):  # noqa: F811
    chat = source(save_chat_judge(tmp_path / "judge"))
    conversation = read_function(512)
    assert judging.choose_input(run, source(), judge_input, conversation) is judge_input
    assert judging.choose_input(run, chat, judge_input, conversation) is conversation
    assert judging.choose_input(run, Gone(), judge_input, conversation) is judge_input


def of_conversation(tokenizer, question, answer):
    """Encode a conversation of two turns."""
    turns = [user(question.removeprefix("Human: ")), assistant(answer)]
    return tokenizer.apply_chat_template(turns)


def test_rewards_are_those_of_conversations(run, tmp_path, capsys):  # noqa: F811
    """Every reward is that of its own forward pass, and what the judge reads is shown once."""
    judge = source(save_chat_judge(tmp_path / "judge"))
    read = judging.choose_input(run, judge, judge_input, of_conversation)
    scores = score(run, judge, read)
    said = capsys.readouterr().out
    assert said.count("<|im_start|>") == 2
    assert "reads the first answer of GPT 4+ as\n<|im_start|>user\nWhy 0?<|im_end|>\n" in said
    plain = AutoModelForSequenceClassification.from_pretrained(judge.folder).eval()
    tokenizer = chat_tokenizer(MARKED)
    rewards = {row["id"]: row["reward"] for row in scores if row["model"] == "B"}
    assert len(rewards) == 3
    for i, name in enumerate(sorted(rewards)):
        text = (
            f"<|im_start|>user\nWhy {i}?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            f"B about {name}<|im_end|>\n"
        )
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            assert rewards[name] == pytest.approx(plain(ids).logits.item(), abs=1e-4)
    inputs = run.record.artifacts["scores.json/B"].inputs
    assert "def of_conversation" in inputs["judge_input"]
    # afterwards the record decides if the judge is gone
    assert judging.choose_input(run, Gone(), judge_input, of_conversation) is of_conversation


def test_rewards_of_pairs_by_a_judge_of_conversations(run, tmp_path):  # noqa: F811
    """Earlier versions fed pairs to every judge: such a run can be read, but not continued."""
    judge = source(save_chat_judge(tmp_path / "judge"))
    scores = score(run, judge, judge_input)
    for name in MODELS:
        run.add_model(Model(name=name, base="a/base", adapter=None))
    read = judging.choose_input(run, judge, judge_input, of_conversation)
    assert read is judge_input
    assert score(run, judge, read) == scores
    run.add_model(Model(name="C", base="a/base", adapter=None))
    read = judging.choose_input(run, judge, judge_input, of_conversation)
    assert read is of_conversation
    with pytest.raises(ValueError, match="judge_input = "):
        score(run, judge, read)


# ---- judges that work, and those that are refused


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("template", ["marked", "alternating", "qwen3"])
@pytest.mark.parametrize("padding", ["<pad>", None, "<|im_end|>"])
def test_judge_of_conversations_works(tmp_path, kind, template, padding):
    """It pads with a token at which it does not read, whether or not its files name one."""
    folder = save_chat_judge(tmp_path / "judge", kind, TEMPLATES[template], padding)
    judging.try_judge(folder, 512)
    judge, tokenizer = models.load_judge(folder)
    assert loading.has_chat_template(folder)
    texts = [of_conversation(tokenizer, "Human: Hi", "Hello. " * n) for n in (1, 9)]
    assert texts[0]["input_ids"][-1] != tokenizer.pad_token_id
    with torch.no_grad():
        together = judge(**tokenizer.pad(texts, return_tensors="pt")).logits[:, 0]
        alone = judge(**tokenizer.pad(texts[:1], return_tensors="pt")).logits[0, 0]
    assert together[0].item() == pytest.approx(alone.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("template refuses", "refuses a conversation of 2 turns by user and assistant .*Only user"),
        ("template without answers", "leaves out or changes a turn"),
        ("template and two labels", "has 2 labels"),
        ("template and no head", "score.weight"),
    ],
)
def test_faulty_judge_of_conversations_is_refused(tmp_path, name, message):
    folder = FAULTY_JUDGES[name](tmp_path / "judge")
    with pytest.raises(ValueError, match=message):
        judging.try_judge(folder, 512, "SECOND_JUDGE")


def test_template_that_refuses_several_questions_is_refused(tmp_path):
    template = "{% if messages|length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    folder = save_chat_judge(tmp_path / "judge", template=template + MARKED)
    with pytest.raises(ValueError, match="refuses a conversation of 4 turns .*one question"):
        judging.try_judge(folder, 512)


def test_pairs_are_read_as_the_committed_runs_say():
    """A changed source of `judge_input` would void the rewards of every run that was judged."""
    record = load(ROOT / "results" / "example" / "run.json")
    recorded = record["artifacts"]["scores.json/SFT"]["inputs"]["judge_input"]
    assert ast.unparse(ast.parse(find_function("judge_input"))) == recorded
