"""Conversations in a base's own chat template: what is encoded, trained on, and asked."""

from pathlib import Path

import pytest
import small_models
import torch
import trl
from conftest import load
from small_models import demo_tokenizer
from test_bases import (
    EVALUATION,
    TRAINING,
    Session,
    cells_on_models,
    places,
    small_rows,
    uneven_rows,
    write_dataset,
)
from transformers import AutoTokenizer

from posttrain import chat, data, generation, models, tokens
from posttrain.settings import Evaluation

TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # those of the models, which TRL ships
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
# {name: (a base of small_models, its template, the special tokens that the template writes, the
# token that ends a reply)}
CHATS = {
    "Qwen2.5": ("qwen2", "qwen2_5", CHATML_TOKENS, "<|im_end|>"),
    "Qwen3": ("qwen3", "qwen3", CHATML_TOKENS, "<|im_end|>"),
    "Llama 3": (
        "llama", "llama3", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>",
    ),
    "Gemma": ("gemma3", "gemma", ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "Phi-3": ("phi", "phi3", ["<|user|>", "<|assistant|>", "<|end|>"], "<|end|>"),
    "Mistral with a sliding window": ("mistral", MISTRAL, [], "</s>"),
    "GPT-NeoX": ("gpt-neox", ZEPHYR, [], "</s>"),
    "GPT-2": ("gpt2", ZEPHYR, [], "</s>"),
    "OPT": ("opt", ZEPHYR, [], "</s>"),
}  # fmt: skip
SHORT = "\n\nHuman: How do I bake bread?\n\nAssistant:"
LONG = (
    "\n\nHuman: Hello.\n\nAssistant: Good morning.\n\nWhat can I do?\n\nHuman: Tell me:\n\n1. What "
    "is bread?\n\nHuman: And rye?\n\nAssistant:"
)
REPLIES = ("Flour and water.", "1. Mix it.\n\n2. Let it rest.", "No")


def save_chat_base(folder, name, template=None):
    """Save a tiny base whose tokenizer has a chat template and its special tokens."""
    kind, own_template, special, _ = CHATS[name]
    template = template or own_template
    tokenizer = demo_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    path = TEMPLATES / f"{template}.jinja"
    tokenizer.chat_template = template
    if "{" not in template:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    # more embeddings than tokens, as many models have
    return small_models.save_base(folder, kind, tokenizer, vocab_size=len(tokenizer) + 5)


@pytest.mark.parametrize("prompt", [SHORT, LONG])
@pytest.mark.parametrize("name", CHATS)
def test_ids_are_those_of_the_template(tmp_path, name, prompt):
    """Prompt and reply are the template's own, up to the token that ends the reply."""
    tokenizer = models.load_tokenizer(save_chat_base(tmp_path, name))
    end = CHATS[name][3]
    assert chat.end_of_reply(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    (prompt_ids,) = tokens.encode_prompts([prompt], tokenizer, "prompts", chat=True)
    encoded = tokens.encode_replies(REPLIES, tokenizer, "replies", chat=True)
    turns = chat.read_turns(prompt.removesuffix("\n\nAssistant:"))
    for reply, reply_ids in zip(REPLIES, encoded, strict=True):
        whole = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": reply}],
            enable_thinking=False,
            return_dict=False,
        )
        expected = whole[: len(prompt_ids) + len(reply_ids)]
        assert [*prompt_ids.tolist(), *reply_ids.tolist()] == expected
        assert tokenizer.decode(reply_ids).strip() == reply + end
        after = tokenizer.decode(whole[len(expected) :])
        assert after.replace(tokenizer.eos_token, "").strip() == ""


def test_turns_of_a_transcript():
    """Paragraphs stay in their turn, and turns of one side that follow each other are joined."""
    assert chat.read_turns(LONG.removesuffix("\n\nAssistant:")) == [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Good morning.\n\nWhat can I do?"},
        {"role": "user", "content": "Tell me:\n\n1. What is bread?\n\nAnd rye?"},
    ]
    assert chat.read_turns(SHORT.removesuffix("\n\nAssistant:"))[-1]["role"] == "user"


def test_prompts_are_cut_at_a_human_turn_by_the_tokens_of_the_template(tmp_path):
    tokenizer = models.load_tokenizer(save_chat_base(tmp_path, "Llama 3"))
    last = "\n\nHuman: And rye?\n\nAssistant:"
    whole, ending = tokens.encode_prompts([LONG, last], tokenizer, "prompts", chat=True)
    rooms = [len(whole), len(ending), len(ending) - 1]
    cut = tokens.cut_prompts([LONG] * 3, rooms, tokenizer, chat=True)
    assert cut == [LONG, last, None]


REFUSED = {
    "no template": ("", "has no chat template"),
    "one turn alone": (
        "{% if messages|length > 1 %}{{ raise_exception('Only one turn') }}{% endif %}hello",
        r"does not write a conversation.*two turns: Only one turn",
    ),
    "no end": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "puts no special token after a reply, only '\\\\n', so no reply would have an end",
    ),
    "the last turn alone": (
        "{{ messages[-1]['content'] }}{{ eos_token }}",
        "the reply does not follow the prompt, or a turn is missing",
    ),
    "a mistake": ("{{ messages[0]['content'] + 1 }}", "does not write a conversation"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_template_that_cannot_be_used_is_refused(tmp_path, name):
    """It is refused with the base, before anything is trained."""
    template, message = REFUSED[name]
    base = save_chat_base(tmp_path, "OPT")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template or None
    (base / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(base)
    models.require_base(base, 128)  # as a base for transcripts it is fit
    with pytest.raises(ValueError, match=f"FORMAT = 'chat'.*{message}.*FORMAT = 'transcript'"):
        models.require_base(base, 128, chat=True)


@pytest.mark.parametrize("changes", [{"prompt_tail": "human"}, {"protocol": "paper"}])
def test_prompts_of_the_study_are_no_chat(changes):
    if "protocol" in changes:
        settings = Evaluation(preset="paper", **Evaluation.PRESET_VALUES["paper"])
    else:
        settings = Evaluation(preset="full", **changes)
    data.read_rules(settings)
    with pytest.raises(ValueError, match="with FORMAT = 'chat' the base's chat template ends them"):
        data.read_rules(settings, chat=True)


# ---- whole runs


def run_chat(folder, base, **changes):
    """Run both notebooks with FORMAT = "chat", as far as they depend on the models."""
    dataset = write_dataset(folder / "dataset", small_rows(50), uneven_rows(8))
    given = places(folder) | {"DATASET": dataset}
    training = Session("main.ipynb", **given, BASE_MODEL=base, FORMAT="chat", **TRAINING)
    judge = Path(__file__).resolve().parent.parent / "demo" / "hub" / "reward-model"
    evaluation = Session("eval.ipynb", **given, REWARD_MODEL=judge, **EVALUATION)
    for session in (training, evaluation):
        for cell in cells_on_models(session):
            session.run(cell)
    return training.names, evaluation.names


@torch.no_grad()
def decode_in_template(model, tokenizer, prompt, limit, ends):
    """Answer greedily from the template's own ids, with a forward pass over all for every token."""
    turns = chat.read_turns(prompt.removesuffix("\n\nAssistant:"))
    ids = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    written = []
    while len(written) < limit and not (written and written[-1] in ends):
        logits = model(torch.tensor([ids + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    return written


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATS)
def test_both_notebooks_in_the_template(tmp_path, name):
    """Labels are on the replies, the template's token ends an answer, and all see plain turns."""
    base = save_chat_base(tmp_path / "base", name)
    training, evaluation = run_chat(tmp_path, base)
    tokenizer = models.load_tokenizer(base)
    end = tokenizer.convert_tokens_to_ids(CHATS[name][3])
    rows = training.pairs.for_sft("train")
    assert len(rows) > 30
    for pair, row in zip(training.pairs.train, rows, strict=True):
        assert pair["prompt"].startswith("\n\nHuman:")
        learned = [label for label in row["labels"] if label != -100]
        assert learned == pair["chosen_ids"].tolist()
        assert learned[-1] == end
        assert learned.count(end) == 1
    with pytest.raises(ValueError, match="would learn them as transcripts"):
        training.pairs.as_texts("train")
    model = models.load_base(base).eval()
    ends = {*generation.list_ends(model, tokenizer), end}
    for record, prompt in zip(evaluation.responses, evaluation.prompts):
        assert prompt["prompt"].endswith("\n\nAssistant:")
        written = decode_in_template(model, tokenizer, prompt["prompt"], 8, ends)
        answer = tokenizer.decode(written, skip_special_tokens=True)
        assert record["response"] == answer.split("\n\nHuman:")[0].strip()
    folder = tmp_path / "results" / "demo"
    assert load(folder / "run.json")["settings"]["training"]["format"] == "chat"
    for name in ("DPO", "SFT+DPO"):
        log = load(folder / "training.json")[name]
        assert log[0]["eval_loss"] == pytest.approx(0.693147, abs=1e-4)
