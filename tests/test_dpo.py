"""Pairs whose prompt is read once: exact packing, the same values and gradients, and bases that cannot be read so."""

import math
from contextlib import nullcontext

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from test_training import first
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig
from trl import DPOConfig, DPOTrainer

from posttrain import dpo, hh, models

SIZE = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
BASES = {
    "OPT-350M's kind": OPTConfig(**SIZE, ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False, dropout=0.0),
    "OPT-125M's kind": OPTConfig(**SIZE, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0),
    "Llama": LlamaConfig(**SIZE, intermediate_size=128, num_key_value_heads=2),
    "GPT-2": GPT2Config(vocab_size=200, n_embd=64, n_layer=3, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                        bos_token_id=0, eos_token_id=0),
    "GPT-NeoX": GPTNeoXConfig(**SIZE, intermediate_size=128)}


def causal_model(config, **options):
    """Return a causal language model with random weights."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, **options)


def rows_of(pairs):
    """Return (input ids, attention mask) of pairs of lists of ids as TRL makes them: chosen texts, then rejected."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows))
    return (torch.tensor([row + [1] * (width - len(row)) for row in rows]),
            torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]))


@pytest.fixture
def batch():
    """Three pairs with prompts and replies of unlike lengths; the second's replies begin alike."""
    torch.manual_seed(1)
    pairs = []
    for lengths in ((30, 5, 17), (7, 20, 3), (19, 1, 1)):
        prompt, chosen, rejected = (torch.randint(5, 200, (n,)).tolist() for n in lengths)
        pairs.append((prompt + chosen, prompt + chosen[: len(pairs)] + rejected))
    return rows_of(pairs)


def test_packed_row_by_hand():
    """The prompt and the chosen reply, then what the rejected text does not share, at its own positions."""
    ids, mask = rows_of([([7, 8, 9, 4], [7, 8, 5, 6, 3]), ([7, 2], [7, 3])])
    packed, places = dpo.packed_pairs(ids, mask)
    assert packed["input_ids"].tolist() == [[7, 8, 9, 4, 5, 6, 3], [7, 2, 1, 1, 3, 1, 1]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 3, 1, 2, 3]]
    sees = [[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 1, 1]]
    assert packed["attention_mask"].int().tolist()[0] == [sees]
    assert packed["attention_mask"].shape == (2, 1, 7, 7)
    assert places[0].tolist()[:4] == [0, 1, 2, 3]
    assert places[2].tolist() == [0, 1, 4, 5, 6]
    assert places[[1, 3], :2].tolist() == [[0, 1], [0, 4]]


@pytest.mark.parametrize("kind", BASES)
def test_values_and_gradients_are_the_same(kind, batch):
    """Hidden states of all tokens, and the gradient of every weight, are those of two rows a pair."""
    model, (ids, mask) = causal_model(BASES[kind]), batch
    width, found = [], {}
    model.base_model.get_input_embeddings().register_forward_hook(lambda *call: width.append(call[2].shape[:2]))
    for way in (nullcontext(), dpo.shared_prompts(model.base_model)):
        model.zero_grad()
        with way:
            output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = output.last_hidden_state[mask.bool()]
        (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
        found[len(found)] = hidden, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()
    assert width == [(6, 47), (3, 35 + 17)]  # the longest chosen text, and the longest rest of a rejected one


def test_nothing_stays_on_the_model():
    """Afterwards the model reads rows as they are, also when a pass has failed."""
    model = causal_model(BASES["Llama"])
    with pytest.raises(ZeroDivisionError), dpo.shared_prompts(model.base_model):
        raise ZeroDivisionError
    assert not model.base_model._forward_hooks
    assert not model.base_model._forward_pre_hooks


def trainer_of(folder, config, tokenizer, pairs, lora, **options):
    """Return a trainer of random weights on pairs."""
    return dpo.PairTrainer(
        causal_model(config, **options), train_dataset=Dataset.from_list(hh.dpo_rows(pairs)), share_prompts=True,
        args=DPOConfig(folder, use_cpu=True, bf16=False, report_to="none", max_steps=2, learning_rate=1e-2,
                       logging_steps=1, per_device_train_batch_size=4, activation_checkpointing=False,
                       remove_unused_columns=False),
        processing_class=tokenizer, peft_config=lora)


@pytest.fixture
def parts(notebook, tokenizer):
    """A base's config that fits the tokenizer, eight pairs, and LoRA as the notebook has it."""
    config = LlamaConfig(**SIZE | {"vocab_size": len(tokenizer)}, intermediate_size=128)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    return config, tokenizer, notebook.pairs.train[:8], lora


def test_losses_are_those_of_trl(parts, tmp_path):
    """Over two steps with a high learning rate: losses, margins and log-probabilities as TRL's own trainer has them."""
    config, tokenizer, pairs, lora = parts
    texts = [{"prompt": pair["prompt"], "chosen": f" {pair['chosen']}", "rejected": f" {pair['rejected']}"}
             for pair in pairs]
    torch.manual_seed(0)
    ours = trainer_of(tmp_path, *parts)
    usual = DPOTrainer(causal_model(config), args=ours.args, train_dataset=Dataset.from_list(texts),
                       processing_class=tokenizer, peft_config=lora)
    assert ours.share_prompts
    logs = []
    for trainer in (usual, ours):
        torch.manual_seed(0)
        for name, weight in trainer.model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(weight, std=0.1)
        trainer.train()
        logs.append([record for record in trainer.state.log_history if "loss" in record])
    for theirs, own in zip(*logs, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "logps/rejected", "grad_norm"):
            assert own[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert logs[0][1]["loss"] != pytest.approx(logs[0][0]["loss"], abs=1e-3)  # something was learned in between


SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}
OTHERS = {
    "a window": (transformers.MistralConfig, SMALL | {"sliding_window": 500}, {}),
    "convolutions": (transformers.Lfm2Config, SMALL | {"layer_types": ["conv", "full_attention"]}, {}),
    "experts": (transformers.MixtralConfig, SMALL | {"num_local_experts": 2, "output_router_logits": True}, {}),
    "ALiBi": (transformers.FalconConfig, {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                                          "alibi": True}, {}),
    "eager": (LlamaConfig, SMALL, {"attn_implementation": "eager"})}


@pytest.mark.parametrize("kind", OTHERS)
def test_base_that_cannot_be_read_so_is_read_as_usual(parts, tmp_path, capsys, kind):
    """A window that is shorter than a text may be, layers that see otherwise: said, the prompt read twice, trained."""
    (make, size, options), (_, tokenizer, *others) = OTHERS[kind], parts
    trainer = trainer_of(tmp_path, make(vocab_size=len(tokenizer), **size), tokenizer, *others, **options)
    assert not trainer.share_prompts
    assert "It is read with each reply." in capsys.readouterr().out
    trainer.train()
    # experts add a small loss of their own
    assert first(trainer.state.log_history, "loss") == pytest.approx(math.log(2), abs=5e-3)


def test_window_that_no_text_reaches_does_no_harm(parts, tmp_path):
    """Then every token sees all before it."""
    _, tokenizer, *others = parts
    config = transformers.MistralConfig(vocab_size=len(tokenizer), **SMALL, sliding_window=4096)
    assert trainer_of(tmp_path, config, tokenizer, *others).share_prompts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["position_ids", "attention_mask"])
def test_wrong_packing_is_found(parts, tmp_path, monkeypatch, name, dtype):
    """Positions that are off by one, or a rest that sees the other reply: the longest pair tells, in bf16 too."""
    packed_pairs = dpo.packed_pairs

    def wrong(ids, mask):
        packed, places = packed_pairs(ids, mask)
        causal = torch.ones_like(packed["attention_mask"]).tril()
        return packed | {name: packed[name] + 1 if name == "position_ids" else causal}, places

    config = OPTConfig(**SIZE | {"vocab_size": len(parts[1])}, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0,
                       init_std=0.08)
    assert trainer_of(tmp_path, config, *parts[1:], dtype=dtype).share_prompts
    monkeypatch.setattr(dpo, "packed_pairs", wrong)
    assert not trainer_of(tmp_path, config, *parts[1:], dtype=dtype).share_prompts


def test_dropout_keeps_the_prompts_apart(notebook, tmp_path, monkeypatch):
    """Under the study's dropout both replies' prompts have noise of their own, as in the study."""
    noisy = notebook.s.model_copy(update={"dropout": 0.1})
    assert notebook.dpo(models.load_base(notebook.base.folder), notebook.lora, tmp_path, 8).share_prompts
    monkeypatch.setitem(notebook.globals, "s", noisy)
    assert not notebook.dpo(models.load_base(notebook.base.folder, 0.1), notebook.lora, tmp_path, 8).share_prompts
