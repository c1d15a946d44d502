"""Reading a pair's prompt once: packing, equal values and gradients, and the exceptions."""

import math
import types
from contextlib import nullcontext

import pytest
import torch
import transformers
from conftest import ROOT
from datasets import Dataset
from peft import LoraConfig
from small_runs import OPT
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig
from trl import DPOConfig, DPOTrainer

from posttrain import data, models, pair_trainer

SIZE = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
OPT_SIZE = {**SIZE, "ffn_dim": 128, "dropout": 0.0}
NO_DROPOUT = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
BASES = {
    "OPT-350M's kind": OPTConfig(**OPT_SIZE, word_embed_proj_dim=32, do_layer_norm_before=False),
    "OPT-125M's kind": OPTConfig(**OPT_SIZE, word_embed_proj_dim=64),
    "Llama": LlamaConfig(**SIZE, intermediate_size=128, num_key_value_heads=2),
    "GPT-2": GPT2Config(**SIZE, **NO_DROPOUT, bos_token_id=0, eos_token_id=0),
    "GPT-NeoX": GPTNeoXConfig(**SIZE, intermediate_size=128),
}


def make_model(config, **options):
    """Make a causal language model with random weights."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, **options)


def pad(pairs):
    """Pad pairs of lists of ids as TRL does, chosen texts first, and return ids and mask."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows))
    ids = [row + [1] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.fixture
def batch():
    """Three pairs with prompts and replies of different lengths, some with a common beginning."""
    torch.manual_seed(1)
    pairs = []
    for lengths in ((30, 5, 17), (7, 20, 3), (19, 1, 1)):
        prompt, chosen, rejected = (torch.randint(5, 200, (n,)).tolist() for n in lengths)
        pairs.append((prompt + chosen, prompt + chosen[: len(pairs)] + rejected))
    return pad(pairs)


def test_packed_row_by_hand():
    """A row has prompt, chosen reply and the rest of the rejected text, at its own positions."""
    packed, places = pair_trainer.pack_pairs(
        *pad([([7, 8, 9, 4], [7, 8, 5, 6, 3]), ([7, 2], [7, 3])])
    )
    assert packed["input_ids"].tolist() == [[7, 8, 9, 4, 5, 6, 3], [7, 2, 1, 1, 3, 1, 1]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 3, 1, 2, 3]]
    attends = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 1],
    ]
    assert packed["attention_mask"].int().tolist()[0] == [attends]
    assert packed["attention_mask"].shape == (2, 1, 7, 7)
    assert places[0].tolist()[:4] == [0, 1, 2, 3]
    assert places[2].tolist() == [0, 1, 4, 5, 6]
    assert places[[1, 3], :2].tolist() == [[0, 1], [0, 4]]


@pytest.mark.parametrize("kind", BASES)
def test_values_and_gradients_are_the_same(kind, batch):
    """Hidden states and gradients are those of two rows per pair."""
    ids, mask = batch
    model = make_model(BASES[kind])
    shapes, values, gradients = [], [], []
    embeddings = model.base_model.get_input_embeddings()
    embeddings.register_forward_hook(lambda *call: shapes.append(call[2].shape[:2]))
    for reading in (nullcontext(), pair_trainer.shared_prompts(model.base_model)):
        model.zero_grad()
        with reading:
            output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state[mask.bool()]
        (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
        values.append(hidden)
        with_gradient = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(with_gradient))
    assert torch.allclose(values[0], values[1], atol=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()
    # the longest chosen text, and the longest rest of a rejected one
    assert shapes == [(6, 47), (3, 35 + 17)]


def test_nothing_stays_on_the_model():
    """Afterwards the model reads rows as usual, even if a pass has failed."""
    backbone = make_model(BASES["Llama"]).base_model
    with pytest.raises(ZeroDivisionError), pair_trainer.shared_prompts(backbone):
        raise ZeroDivisionError
    assert not backbone._forward_hooks
    assert not backbone._forward_pre_hooks


# ---- the trainer


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(OPT)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    """Eight pairs of the demo's data."""
    settings = types.SimpleNamespace(
        subsets="base",
        max_pairs=100,
        validation_pairs=10,
        max_length=512,
        seed=42,
        format="transcript",
    )
    loaded = data.load_pairs(ROOT / "demo" / "hub" / "hh-rlhf", tokenizer, settings)
    return data.Pairs(loaded.train[:8], [], loaded.report)


@pytest.fixture
def make_trainer(tokenizer, pairs, tmp_path):
    """A function that makes a trainer with random weights on the pairs."""

    def make(config, share_prompts=True, **options):
        return pair_trainer.PairTrainer(
            make_model(config, **options),
            args=DPOConfig(
                tmp_path,
                use_cpu=True,
                bf16=False,
                report_to="none",
                max_steps=2,
                learning_rate=1e-2,
                logging_steps=1,
                per_device_train_batch_size=4,
                activation_checkpointing=False,
                remove_unused_columns=False,
            ),
            train_dataset=pairs.for_dpo("train"),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
            share_prompts=share_prompts,
        )

    return make


@pytest.fixture
def llama(tokenizer):
    """A small Llama config that fits the tokenizer."""
    return LlamaConfig(**{**SIZE, "vocab_size": len(tokenizer)}, intermediate_size=128)


def train(trainer):
    """Train two steps from random adapters, and return the log records with a loss."""
    torch.manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.normal_(weight, std=0.1)
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


def test_losses_are_those_of_trl(make_trainer, llama, pairs, tokenizer):
    """Over two large steps TRL's own trainer on texts logs the same values."""
    texts = []
    for pair in pairs.train:
        replies = {"chosen": f" {pair['chosen']}", "rejected": f" {pair['rejected']}"}
        texts.append({"prompt": pair["prompt"], **replies})
    trainers = [make_trainer(llama), make_trainer(llama, share_prompts=False)]
    usual = DPOTrainer(
        make_model(llama),
        args=trainers[0].args,
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )
    assert trainers[0].reads_prompts_once
    assert not trainers[1].reads_prompts_once
    expected = train(usual)
    for trainer in trainers:
        for theirs, ours in zip(expected, train(trainer), strict=True):
            for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    # something was learned in between
    assert expected[1]["loss"] != pytest.approx(expected[0]["loss"], abs=1e-3)


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROUTED = {"num_local_experts": 2, "output_router_logits": True}
OTHERS = {
    "a window": (transformers.MistralConfig, {**SMALL, "sliding_window": 500}, {}),
    "convolutions": (
        transformers.Lfm2Config,
        {**SMALL, "layer_types": ["conv", "full_attention"]},
        {},
    ),
    "experts": (transformers.MixtralConfig, {**SMALL, **ROUTED}, {}),
    "ALiBi": (transformers.FalconConfig, {**WIDTHS, "alibi": True}, {}),
    "eager": (LlamaConfig, SMALL, {"attn_implementation": "eager"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_base_that_cannot_be_read_so_is_read_as_usual(make_trainer, tokenizer, capsys, kind):
    """This covers short windows and layers with other attention, with a message."""
    config_class, size, options = OTHERS[kind]
    trainer = make_trainer(config_class(vocab_size=len(tokenizer), **size), **options)
    assert trainer.share_prompts  # as it was asked for
    assert not trainer.reads_prompts_once
    assert "is read with each reply" in capsys.readouterr().out
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    # experts add a small loss of their own
    assert losses[0] == pytest.approx(math.log(2), abs=5e-3)


def test_window_that_no_text_reaches_does_no_harm(make_trainer, tokenizer):
    """Every token then attends to all tokens before it."""
    config = transformers.MistralConfig(vocab_size=len(tokenizer), **SMALL, sliding_window=4096)
    assert make_trainer(config).reads_prompts_once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_wrong_packing_is_noticed(make_trainer, tokenizer, monkeypatch, name, dtype):
    """Wrong positions, or attention to the other reply, are noticed even in bf16."""
    pack_pairs = pair_trainer.pack_pairs

    def pack_wrongly(ids, mask):
        packed, places = pack_pairs(ids, mask)
        wrong = {
            "position_ids": packed["position_ids"] + 1,
            "attention_mask": torch.ones_like(packed["attention_mask"]).tril(),
        }
        return packed | {name: wrong[name]}, places

    size = {**OPT_SIZE, "vocab_size": len(tokenizer)}
    config = OPTConfig(**size, word_embed_proj_dim=64, init_std=0.08)
    assert make_trainer(config, dtype=dtype).reads_prompts_once
    monkeypatch.setattr(pair_trainer, "pack_pairs", pack_wrongly)
    assert not make_trainer(config, dtype=dtype).reads_prompts_once


def test_prompts_are_kept_apart_where_that_is_asked_for(make_trainer, llama, capsys):
    """Under dropout both readings of a prompt have their own noise."""
    trainer = make_trainer(llama, share_prompts=False)
    assert not trainer.share_prompts
    assert not trainer.reads_prompts_once
    assert "prompt once" not in capsys.readouterr().out
