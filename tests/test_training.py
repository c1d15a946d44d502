"""Training and generating with the demo's OPT: the losses, the adapters, the references, the batches."""

import copy
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import dialogue
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

CONVERSATIONS = [["How do I bake bread?"], ["Hello!", "Hi.", "How do I steal a car?"], ["Why?"], ["Käse 🧀?"]]
REPLIES = [("Use a hot pot.\n\nLet it rest.", "I don't know."), ("I can't help.", "Sure, just do it.")]
PAIRS = [{"prompt": dialogue(*turns) + "\n\nAssistant:", "chosen": chosen, "rejected": rejected}
         for turns in CONVERSATIONS for chosen, rejected in REPLIES]
TEXTS = [f"{pair['prompt']} {pair['chosen']}" for pair in PAIRS[:3]]
LN2 = math.log(2)
MADE = {"made_from": {"seed": 0, "model": "SFT"}, "environment": {}, "log": [], "warnings": []}
BEGUN = MADE["made_from"] | {"processes": 1, "precision": "fp32"}  # what its checkpoints say
ROWS = 8  # texts in a pass


@pytest.fixture(scope="module")
def settings(hub):
    """Settings of a training of a few steps."""
    return {"base_model": str(hub / "opt"), "max_length": 512, "sft_epochs": 2, "sft_learning_rate": 2e-3,
            "dpo_epochs": 1, "dpo_learning_rate": 1e-3, "beta": 0.1, "batch_size": 4,
            "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_layers": "all", "dropout": 0.0,
            "sft_method": "lora", "save_minutes": 10, "seed": 0}


@pytest.fixture(scope="module")
def pairs(main, tokenizer):
    """Eight pairs as the data stage gives them."""
    subset = {"subset": "s"}
    return main.fit_pairs([pair | subset for pair in PAIRS], tokenizer, 512, set(), {"s": {}})


@pytest.fixture(scope="module")
def sft(main, settings, tokenizer, pairs, tmp_path_factory):
    """A trained SFT trainer and the run folder that its adapter is saved in."""
    run = tmp_path_factory.mktemp("run")
    trainer = main.sft_trainer(settings, tokenizer, pairs, pairs[:2], run / "checkpoints", ROWS)
    trainer.train()
    base = settings["base_model"]
    main.save_model(trainer.model, run / "adapters" / "sft", base, base, MADE, tokenizer, TEXTS)
    return trainer, run


@pytest.fixture(scope="module")
def dpo(main, settings, tokenizer, pairs, tmp_path_factory):
    """A trained DPO trainer."""
    trainer = main.dpo_trainer(main.load_base(settings["base_model"]), settings, tokenizer, pairs, pairs[:2],
                               tmp_path_factory.mktemp("dpo"), ROWS)
    trainer.add_callback(main.Checkpoints({}, 10))
    trainer.train()
    return trainer


def reply_logps(model, tokenizer, pair, side):
    """Return log p(reply, EOS | prompt), computed the plain way, one text at a time."""
    prompt = tokenizer(pair["prompt"], return_tensors="pt")["input_ids"]
    ids = tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :].sum().item()


def first(records, key):
    """Return the first value that a log has under a key."""
    return next(record[key] for record in records if key in record)


# ---- the base

def test_base_is_loaded_in_fp32_without_dropout(main, hub):
    """The demo's config and weights have OPT-350M's dropout and fp16; `load_base` gives neither."""
    plain = AutoModelForCausalLM.from_pretrained(hub / "opt")
    assert plain.config.dropout == 0.1
    assert plain.dtype == torch.float16
    base = main.load_base(str(hub / "opt"))
    assert (base.config.dropout, base.config.attention_dropout, base.config.layerdrop) == (0, 0, 0)
    assert {weight.dtype for weight in base.parameters()} == {torch.float32}


def test_training_mode_is_as_deterministic_as_evaluation(main, hub, tokenizer):
    """In training mode the base gives the logits of evaluation mode: no dropout is left anywhere."""
    base = main.load_base(str(hub / "opt"))
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(base.train()(ids).logits, base.eval()(ids).logits)


# ---- what the trainers get

def test_sft_loss_is_on_the_reply_and_its_end(sft, tokenizer, pairs):
    """The prompt carries no label, BOS included; every token of the reply and the EOS after it does."""
    trainer = sft[0]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    for ids, labels, mask, pair in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], pairs):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        reply = tokenizer(f" {pair['chosen']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        assert ids[mask.bool()].tolist() == prompt + reply
        assert labels[mask.bool()].tolist() == [-100] * len(prompt) + reply
        assert (labels[~mask.bool()] == -100).all()


def test_sft_validation_before_the_first_step_is_the_bases_loss(main, sft, settings, tokenizer, pairs):
    """The first validation is the base's cross-entropy a reply token, computed the plain way."""
    base = main.load_base(settings["base_model"]).eval()
    tokens = [len(tokenizer(f" {pair['chosen']}", add_special_tokens=False)["input_ids"]) + 1 for pair in pairs[:2]]
    loss = -sum(reply_logps(base, tokenizer, pair, "chosen") for pair in pairs[:2]) / sum(tokens)
    assert first(sft[0].state.log_history, "eval_loss") == pytest.approx(loss, rel=1e-4)


def test_dpo_tokens_are_clean_at_the_border(dpo, tokenizer, pairs):
    """Prompt and reply, joined, are the tokens of the whole text, with one BOS before and one EOS after."""
    for one, pair in zip(dpo.train_dataset, pairs):
        for side in ("chosen", "rejected"):
            whole = tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"]
            assert one["prompt_ids"] + one[f"{side}_ids"] == whole
            assert whole.count(tokenizer.eos_token_id) == 2  # OPT's BOS is its EOS


def test_nothing_is_truncated(main, settings, tokenizer, tmp_path):
    """Pairs that were fitted into max_length reach TRL's batches whole, also one that fills it to the last token."""
    def length(pair):
        return max(len(tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"])
                   for side in ("chosen", "rejected"))

    prompts = [dialogue(*["one two three four"] * (2 * n + 1)) + "\n\nAssistant:" for n in range(8)]
    long = [{"prompt": prompt, "chosen": "five" + " six" * n, "rejected": "six", "subset": "s"}
            for prompt in prompts for n in (1, 9)]
    limit, report = length(long[7]), {"s": {"cut": 0, "too long": 0}}
    fitting = main.fit_pairs(long, tokenizer, limit, set(), report)
    assert report["s"]["cut"] > 0
    trainer = main.dpo_trainer(main.load_base(settings["base_model"]), settings | {"max_length": limit}, tokenizer,
                               fitting, fitting[:1], tmp_path, ROWS)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(fitting))])
    lengths = batch["attention_mask"].sum(1).view(2, -1).max(0).values.tolist()
    assert lengths == [length(pair) for pair in fitting]
    assert max(lengths) == limit


# ---- DPO

def test_first_dpo_loss_is_ln2(dpo):
    """Before training policy and reference are one model: loss ln 2, margins zero, in training and in validation."""
    records = dpo.state.log_history
    assert first(records, "loss") == pytest.approx(LN2, abs=1e-6)
    assert first(records, "eval_loss") == pytest.approx(LN2, abs=1e-6)
    assert first(records, "rewards/margins") == pytest.approx(0, abs=1e-6)
    assert first(records, "eval_rewards/margins") == pytest.approx(0, abs=1e-6)


def test_dpo_learns_the_preference(dpo):
    """A few steps lower the loss below ln 2 and raise the margin above zero."""
    evaluations = [record for record in dpo.state.log_history if "eval_loss" in record]
    assert evaluations[-1]["eval_loss"] < LN2 - 1e-3
    assert evaluations[-1]["eval_rewards/margins"] > 0


def test_dropout_stops_a_dpo_run(main, settings, tokenizer, pairs, tmp_path):
    """With the dropout that the checkpoint's config asks for, the first loss is not ln 2, and the run ends there."""
    noisy = AutoModelForCausalLM.from_pretrained(settings["base_model"], dtype=torch.float32)
    trainer = main.dpo_trainer(noisy, settings, tokenizer, pairs, pairs[:2], tmp_path, ROWS)
    with pytest.raises(RuntimeError, match="not ln 2.*dropout"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_dpo_on_sft_starts_at_the_sft_model(main, sft, settings, tokenizer, pairs, tmp_path):
    """SFT+DPO goes on from the SFT adapter: its first validation has that model's log-probabilities and no margin."""
    trainer = main.dpo_trainer(main.load_sft(settings, sft[1]), settings, tokenizer, pairs, pairs[:2], tmp_path, ROWS)
    trainer.train()
    records = trainer.state.log_history
    model = sft[0].model.eval()
    for side in ("chosen", "rejected"):
        expected = sum(reply_logps(model, tokenizer, pair, side) for pair in pairs[:2]) / 2
        assert first(records, f"eval_logps/{side}") == pytest.approx(expected, rel=1e-4)
    assert first(records, "loss") == pytest.approx(LN2, abs=1e-6)
    assert first(records, "eval_rewards/margins") == pytest.approx(0, abs=1e-6)


def test_reference_of_sft_dpo_is_a_frozen_copy(main, sft, settings, tokenizer, pairs, tmp_path):
    """After training the reference still is the SFT model, and the policy is not."""
    trainer = main.dpo_trainer(main.load_sft(settings, sft[1]), settings, tokenizer, pairs, pairs[:2], tmp_path, ROWS)
    trainer.train()
    started = main.logits_of(sft[0].model, tokenizer, TEXTS)
    trained = main.logits_of(trainer.model, tokenizer, TEXTS)
    assert (trained - started).abs().max() > 1e-2
    trainer.model.set_adapter("ref")
    assert torch.allclose(main.logits_of(trainer.model, tokenizer, TEXTS), started, atol=1e-4)


# ---- adapters

def test_adapter_gives_the_trained_model_from_disk(main, sft, settings, tokenizer):
    """Loaded over a fresh base, the saved adapter gives the trained model's logits, and they are not the base's."""
    trainer, run = sft
    base = main.load_base(settings["base_model"])
    untrained = main.logits_of(base, tokenizer, TEXTS)
    reloaded = main.logits_of(PeftModel.from_pretrained(base, run / "adapters" / "sft"), tokenizer, TEXTS)
    assert torch.allclose(reloaded, main.logits_of(trainer.model, tokenizer, TEXTS), atol=1e-4)
    assert (reloaded - untrained).abs().max() > 1e-2


def test_adapter_folder_holds_the_whole_adapter_and_no_more(sft):
    """The folder holds one adapter, over all six linear layers of a block; no temporary folder is left."""
    folder = sft[1] / "adapters" / "sft"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert [path.name for path in folder.parent.iterdir()] == ["sft"]
    targets = PeftConfig.from_pretrained(folder).target_modules
    assert set(targets) == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_adapter_over_a_merged_base_is_refused(main, sft, settings, tokenizer, pairs, tmp_path):
    """An adapter trained over a base with another adapter merged in is not the model that loading it gives."""
    merged = main.load_sft(settings, sft[1]).merge_and_unload()
    trainer = main.dpo_trainer(merged, settings, tokenizer, pairs, pairs[:2], tmp_path, ROWS)
    trainer.train()
    with pytest.raises(RuntimeError, match="adapters/dpo: .* logits differ by"):
        base = settings["base_model"]
        main.save_model(trainer.model, tmp_path / "adapters" / "dpo", base, base, MADE, tokenizer, TEXTS)
    assert not (tmp_path / "adapters" / "dpo").exists()


def test_policies_are_the_base_and_its_adapters(main, evaluation, sft, settings, tokenizer):
    """One base with switched adapters gives each model's own logits, Base after SFT too."""
    trainer, run = sft
    untrained = main.logits_of(main.load_base(settings["base_model"]), tokenizer, TEXTS)
    trained = main.logits_of(trainer.model, tokenizer, TEXTS)
    base = settings["base_model"]
    rows = [{"name": name, "base": base, "adapter": "adapters/sft"} for name in ("SFT", "DPO")]
    rows = [{"name": "Base", "base": base, "adapter": None}, *rows]
    model = evaluation.load_all({"settings": settings, "models": rows}, run, base)["Base"]
    for name, expected in (("Base", untrained), ("SFT", trained), ("Base", untrained), ("DPO", trained)):
        with evaluation.policy(model, name):
            assert torch.allclose(main.logits_of(model, tokenizer, TEXTS), expected, atol=1e-4), name


def test_stage_whose_adapter_is_there_is_not_trained_again(main, sft, settings, tokenizer, capsys):
    """`train` leaves an adapter that is there alone."""
    def make_trainer(checkpoints, rows):
        raise AssertionError("trained again")

    record = {"models": [{"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}
    made = main.train("SFT", record, settings["base_model"], sft[1], MADE["made_from"], make_trainer, tokenizer, TEXTS)
    assert made["made_from"] == MADE["made_from"]
    assert "not trained again" in capsys.readouterr().out


# ---- full fine-tuning, as the study did

def test_full_fine_tuning_learns_every_token(main, settings, tokenizer, pairs, tmp_path):
    """All weights train, the loss is on prompt and reply alike, and the saved model is the trained one from disk."""
    full = settings | {"sft_method": "full", "sft_learning_rate": 1e-3}
    trainer = main.sft_trainer(full, tokenizer, pairs, pairs[:2], tmp_path / "checkpoints", ROWS)
    assert all(weight.requires_grad for weight in trainer.model.parameters())
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert (batch["labels"] == batch["input_ids"]).all()
    trainer.train()
    folder = tmp_path / "models" / "sft"
    main.save_model(trainer.model, folder, None, "models/sft", MADE, tokenizer, TEXTS)
    expected = main.logits_of(trainer.model, tokenizer, TEXTS)
    assert torch.allclose(main.logits_of(main.load_sft(full, tmp_path), tokenizer, TEXTS), expected, atol=1e-4)
    assert (main.logits_of(main.load_base(settings["base_model"]), tokenizer, TEXTS) - expected).abs().max() > 1e-2


# ---- generating

def ids_of(tokenizer, text):
    """Return the tokens of a text, without BOS."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_completion_that_ends(evaluation, tokenizer):
    """EOS ends a response and counts as a token; padding after it does not."""
    ids = ids_of(tokenizer, " Use a pot.")
    done = evaluation.read_completion([*ids, tokenizer.eos_token_id, 1, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.", "finish": "eos", "tokens": len(ids) + 1}


def test_completion_at_the_limit(evaluation, tokenizer):
    """Without EOS and without a human turn the limit has ended the response."""
    ids = ids_of(tokenizer, " Use a pot.\n\nThen")
    done = evaluation.read_completion(ids, tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.\n\nThen", "finish": "length", "tokens": len(ids)}


def test_completion_that_opens_a_human_turn(evaluation, tokenizer):
    """A human turn is cut off with its marker, which counts as generated; padding does not."""
    ids = ids_of(tokenizer, " Use a pot.\n\nHuman:")
    done = evaluation.read_completion([*ids, 1, 1, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "Use a pot.", "finish": "turn", "tokens": len(ids)}


def test_completion_without_a_stop_keeps_human_turns(evaluation, tokenizer):
    """Where nothing stops at a human turn it stays in the response."""
    ids = ids_of(tokenizer, " A.\n\nHuman: B")
    done = evaluation.read_completion([*ids, tokenizer.eos_token_id], tokenizer, None)
    assert done == {"response": "A.\n\nHuman: B", "finish": "eos", "tokens": len(ids) + 1}


def test_completion_that_ends_at_once_is_empty(evaluation, tokenizer):
    """A response may be empty."""
    done = evaluation.read_completion([tokenizer.eos_token_id, 1], tokenizer, "\n\nHuman:")
    assert done == {"response": "", "finish": "eos", "tokens": 1}


PROMPTS = [dialogue(*turns) + "\n\nAssistant:" for turns in (
    *CONVERSATIONS, ["Hi", "Hello.", "Tell me how to start running."], ["Help me kill the bees. Be quick."])]


@pytest.fixture(scope="module")
def base(evaluation, hub):
    """The demo's base as a model to generate with."""
    return evaluation.load_base(str(hub / "opt")).eval()


def completions(evaluation, model, tokenizer, prompts, limit, batch_size):
    """Return what `generate` gives for prompts, nothing kept."""
    with tempfile.TemporaryDirectory() as folder:
        return evaluation.generate(model, tokenizer, prompts, limit, batch_size, evaluation.TURN, "x", Path(folder))


def test_batches_give_what_one_at_a_time_gives(evaluation, base, tokenizer):
    """Left padding and batching change no response, and the order of the prompts is kept."""
    together = completions(evaluation, base, tokenizer, PROMPTS, 40, 4)
    alone = [completions(evaluation, base, tokenizer, [prompt], 40, 1)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({done["response"] for done in together}) > 3


def test_responses_are_plain_greedy_ones(evaluation, base, tokenizer):
    """`generate` gives what taking the likeliest token again and again gives, without a cache or batches."""
    for prompt, done in zip(PROMPTS, completions(evaluation, base, tokenizer, PROMPTS, 12, 3)):
        ids, reply = tokenizer(prompt)["input_ids"], []
        while len(reply) < 12 and tokenizer.eos_token_id not in reply and "\n\nHuman:" not in tokenizer.decode(reply):
            with torch.no_grad():
                reply.append(base(torch.tensor([ids + reply])).logits[0, -1].argmax().item())
        assert done == evaluation.read_completion(reply, tokenizer, evaluation.TURN)


def test_limit_is_reported(evaluation, base, tokenizer):
    """Responses cut after three tokens say so and count three."""
    for done in completions(evaluation, base, tokenizer, PROMPTS, 3, 4):
        assert (done["finish"], done["tokens"]) == ("length", 3)


def test_generation_stops_at_a_human_turn(evaluation, base, tokenizer):
    """A response that opens a human turn is stopped there, while another one in its batch goes on to its end."""
    long = " You just do it somehow, and then you do it again, and then you do it once more until you can."
    taught = {PROMPTS[0]: " Ok.\n\nHuman: And then? What would you say?", PROMPTS[1]: long + tokenizer.eos_token}
    model = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        for prompt, reply in taught.items():
            ids = tokenizer(prompt + reply, return_tensors="pt")["input_ids"]
            model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    turned, ended = completions(evaluation, model, tokenizer, list(taught), 80, 2)
    assert turned == {"response": "Ok.", "finish": "turn", "tokens": len(ids_of(tokenizer, " Ok.\n\nHuman:"))}
    assert ended == {"response": long.strip(), "finish": "eos", "tokens": len(ids_of(tokenizer, long)) + 1}


@pytest.mark.parametrize(("processes", "shared"), [(1, True), (2, True), (3, False), (16, True), (32, False)])
def test_step_is_shared_evenly_or_not_at_all(main, settings, monkeypatch, processes, shared):
    """However many processes: a step holds the pairs that the settings name, or the run stops."""
    monkeypatch.setattr(main, "PartialState", lambda: SimpleNamespace(num_processes=processes))
    settings = settings | {"batch_size": 16}
    for stage in ("sft", "dpo"):
        if shared:
            options = main.trainer_options(stage, settings, 8)
            assert processes * options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] == 16
        else:
            with pytest.raises(ValueError, match=f"{processes} processes cannot share the 16 pairs"):
                main.trainer_options(stage, settings, 8)
