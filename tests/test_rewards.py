"""Many texts are rated once each, with little padding, and an interruption costs a part of them."""

import math
import random
from contextlib import ExitStack

import pytest
import torch
import transformers
from small_runs import JUDGE

from posttrain import models, rewards
from posttrain.packing import packed
from posttrain.positions import positions_projected_once
from posttrain.rewards import compute_rewards, rate_texts

WORDS = ["how", "do", "I", "grow", "grapes", "on", "a", "balcony", "in", "winter", "with", "sun"]


@pytest.fixture(scope="module")
def judge():
    """The demo's judge, which is a DeBERTa, and its tokenizer."""
    return models.load_judge(JUDGE)


@pytest.fixture(scope="module")
def inputs(judge):
    """Thirty texts of one to forty words, of which the last is equal to the first."""
    draw = random.Random(0)
    texts = []
    for _ in range(29):
        texts.append(" ".join(draw.choices(WORDS, k=draw.randrange(1, 40))))
    texts.append(texts[0])
    return [judge[1]("Why?", text) for text in texts]


@pytest.fixture
def read(monkeypatch):
    """The texts that the judge has read for their rewards, as lists of token ids."""
    seen = []

    def watch(judge, tokenizer, texts, *arguments):
        seen.extend(encoded["input_ids"] for encoded in texts)
        return compute_rewards(judge, tokenizer, texts, *arguments)

    monkeypatch.setattr(rewards, "compute_rewards", watch)
    return seen


def test_rewards_are_those_of_every_text_alone(judge, inputs, monkeypatch):
    """In several parts, with equal texts and in any order, the rewards are those of one by one."""
    monkeypatch.setattr(rewards, "TEXTS_IN_A_PART", 7)
    alone = [compute_rewards(*judge, [encoded], 1)[0] for encoded in inputs]
    assert rate_texts(*judge, inputs, 100) == pytest.approx(alone, abs=1e-4)
    assert max(alone) - min(alone) > 0.01  # else the order is not put to the test


def test_equal_texts_are_read_once(judge, inputs, read):
    """Equal texts have the same reward, for which one of them is read."""
    values = rate_texts(*judge, inputs, 100)
    assert len(read) == 29
    assert values[0] == values[-1]


def test_long_texts_come_first(judge, inputs, read, monkeypatch):
    """What may not fit into memory is read first, also across the parts."""
    monkeypatch.setattr(rewards, "TEXTS_IN_A_PART", 4)
    rate_texts(*judge, inputs, 100)
    lengths = [len(ids) for ids in read]
    assert lengths == sorted(lengths, reverse=True)


def interrupt_after(monkeypatch, parts):
    """Interrupt the judge before it reads another part than the first few."""
    done = []
    before = rewards.compute_rewards

    def compute(*arguments):
        if len(done) == parts:
            raise KeyboardInterrupt
        done.append(1)
        return before(*arguments)

    monkeypatch.setattr(rewards, "compute_rewards", compute)


def test_an_interruption_costs_at_most_a_part(judge, inputs, read, monkeypatch, tmp_path):
    """The rewards of the parts before it are kept and not computed again."""
    monkeypatch.setattr(rewards, "TEXTS_IN_A_PART", 5)
    monkeypatch.setattr(rewards, "BATCHES_IN_A_PART", 1)
    kept = tmp_path / "kept"
    whole = rate_texts(*judge, inputs, 100)
    read.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 2)
        rate_texts(*judge, inputs, 100, kept, "judge")
    before = len(read)
    assert 10 <= before < 29
    assert rate_texts(*judge, inputs, 100, kept, "judge") == pytest.approx(whole, abs=1e-5)
    assert len(read) == 29
    rate_texts(*judge, inputs, 100, kept, "judge")
    assert len(read) == 29


def test_rewards_of_another_judge_are_not_taken(judge, inputs, read, tmp_path):
    """A judge is recognised by its identity, and a text by its token ids."""
    kept = tmp_path / "kept"
    rate_texts(*judge, inputs[:5], 100, kept, "judge")
    rate_texts(*judge, inputs[:5], 100, kept, "another")
    assert len(read) == 10
    rate_texts(*judge, inputs[3:7], 100, kept, "judge")
    assert len(read) == 12


@pytest.mark.parametrize("harm", ["cut", "strange", "not text"])
def test_damaged_lines_are_passed_over(judge, inputs, read, tmp_path, harm):
    """A line that was cut short, or that nobody here has written, costs the reward of its text."""
    kept = tmp_path / "kept"
    values = rate_texts(*judge, inputs[:5], 100, kept, "judge")
    content = kept.read_bytes()
    if harm == "cut":
        kept.write_bytes(content[:-30])
    elif harm == "strange":
        kept.write_bytes(content.replace(b"[", b"{", 1) + b'[1]\n["a", "b"]\n3\n[]\n')
    else:
        kept.write_bytes(content.replace(b"[", b"\xff", 1))
    read.clear()
    assert rate_texts(*judge, inputs[:5], 100, kept, "judge") == pytest.approx(values, abs=1e-5)
    assert len(read) == 1
    rate_texts(*judge, inputs[:5], 100, kept, "judge")
    assert len(read) == 1


def test_a_reward_that_is_no_number_ends_the_judging(judge, inputs, monkeypatch, tmp_path):
    """The text is named, the rewards of its part are kept, and its own is computed again."""
    kept = tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr(rewards, "compute_rewards", lambda *arguments: [1.0, math.nan])
        with pytest.raises(ValueError, match=r"reward nan, .* the text '.*Why\?"):
            rate_texts(*judge, inputs[:2], 100, kept, "judge")
    values = rate_texts(*judge, inputs[:2], 100, kept, "judge")
    assert 1.0 in values and all(math.isfinite(value) for value in values)


def test_judges_of_other_architectures_are_read_as_before(judge, inputs):
    """A judge that needs an end of text in every text is tried out with a text that has it."""
    tokenizer = judge[1]
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_labels=1, eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id, max_position_embeddings=128,
    )
    model = transformers.BartForSequenceClassification(config).eval()
    texts = []
    for encoded in inputs:
        ids = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        texts.append(transformers.BatchEncoding(ids))
    alone = [compute_rewards(model, tokenizer, [text], 1)[0] for text in texts]
    assert rate_texts(model, tokenizer, texts, 100) == pytest.approx(alone, abs=1e-5)


# ---- positions


def make_deberta(**changes):
    """Make a small DeBERTa of version 2 with a head for rewards."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    options = {
        "num_attention_heads": 2,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "max_position_embeddings": 32,
        "num_labels": 1,
    }
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(**sizes, **options | changes)
    return transformers.DebertaV2ForSequenceClassification(config).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_att_key": False},
        {"norm_rel_ebd": "none"},
        {"pos_att_type": ["c2p"], "share_att_key": False},
        {"relative_attention": False},
    ],
)
def test_projected_positions_change_no_bit(changes):
    """Logits of several passes are equal to the bit, and the judge is as it was afterwards."""
    model = make_deberta(**changes)
    names = [sorted(vars(module)) for module in model.modules()]
    texts = [torch.randint(0, 50, (2, n), generator=torch.manual_seed(n)) for n in (5, 30, 12)]
    with torch.inference_mode():
        plain = [model(input_ids=ids).logits for ids in texts]
        with positions_projected_once(model):
            remembered = [model(input_ids=ids).logits for ids in texts]
        again = [model(input_ids=ids).logits for ids in texts]
    for one, two, three in zip(plain, remembered, again):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert [sorted(vars(module)) for module in model.modules()] == names


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rearranged", [True, False])
def test_positions_are_projected_once(share, rearranged):
    """A layer multiplies for the 16 positions in the first pass only, also with packed weights."""
    model = make_deberta(share_att_key=share)
    attention = model.deberta.encoder.layer[0].attention.self
    layer = attention.key_proj if share else attention.pos_key_proj
    rows = []
    ids = torch.zeros((1, 5), dtype=torch.long)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if rearranged:
            stack.enter_context(packed(model, lambda model: model(input_ids=ids).logits))
        project = layer.forward

        def watch(states):
            rows.append(states.shape[1])
            return project(states)

        layer.forward = watch
        stack.callback(setattr, layer, "forward", project)
        with positions_projected_once(model):
            for _ in range(3):
                model(input_ids=ids)
    assert sorted(rows) == ([5, 5, 5, 16] if share else [16])


def test_other_judges_are_left_alone():
    """A judge of another architecture has no such positions."""
    config = transformers.RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.RobertaForSequenceClassification(config)
    names = [sorted(vars(module)) for module in model.modules()]
    with positions_projected_once(model):
        assert [sorted(vars(module)) for module in model.modules()] == names
