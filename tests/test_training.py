"""The notebook's own trainers: tokens, losses, references; and what surrounds them: precision, memory, checkpoints."""

import json
import math
import os
import shutil
import subprocess
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl.trainer.utils
from conftest import dialogue, load
from peft import PeftModel
from test_models import out_of_memory, write_pickle
from transformers import AutoModelForCausalLM, OPTConfig, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from posttrain import hh, models, training
from posttrain.ledger import ADAPTERS
from posttrain.models import PROBES, logits_of
from posttrain.presets import Training, choose
from posttrain.runs import Run
from posttrain.training import Checkpoints

LN2 = math.log(2)
ROWS = 32  # texts in a pass: a step of the demo's sixteen pairs in one
SFT = "unfinished/adapters/sft"
STATE = ["optimizer.pt", "scheduler.pt", "rng_state.pth"]


def first(records, key):
    """Return the first value that a log has under a key."""
    return next(record[key] for record in records if key in record)


def dpo_trainer(notebook, folder, model=None, rows=ROWS):
    """Return the notebook's DPO trainer, of its base unless told otherwise."""
    model = model or models.load_base(notebook.base.folder)
    return notebook.dpo(model, notebook.lora, folder, rows)


@pytest.fixture(scope="module")
def sft(notebook, tmp_path_factory):
    """The notebook's SFT trainer, trained."""
    trainer = notebook.sft(tmp_path_factory.mktemp("sft"), ROWS)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def dpo(notebook, tmp_path_factory):
    """The notebook's DPO trainer, trained."""
    trainer = dpo_trainer(notebook, tmp_path_factory.mktemp("dpo"))
    trainer.train()
    return trainer


def reply_logps(model, tokenizer, pair, side):
    """Return log p(reply, EOS | prompt), computed the plain way, one text at a time."""
    prompt = tokenizer(pair["prompt"], return_tensors="pt")["input_ids"]
    ids = tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :].sum().item()


# ---- what the trainers get

def test_sft_loss_is_on_the_reply_and_its_end(notebook, sft, tokenizer):
    """The prompt carries no label, BOS included; every token of the reply and the EOS after it does."""
    pairs = notebook.pairs.train[:8]
    batch = sft.data_collator([sft.train_dataset[i] for i in range(8)])
    for ids, labels, mask, pair in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], pairs):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        reply = tokenizer(f" {pair['chosen']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        assert ids[mask.bool()].tolist() == prompt + reply
        assert labels[mask.bool()].tolist() == [-100] * len(prompt) + reply
        assert (labels[~mask.bool()] == -100).all()


def test_sft_validation_before_the_first_step_is_the_bases_loss(notebook, sft, tokenizer):
    """The first validation is the mean over pairs of the base's cross-entropy a reply token, computed the plain way."""
    base, pairs = models.load_base(notebook.base.folder).eval(), notebook.pairs.validation
    tokens = [len(tokenizer(f" {pair['chosen']}", add_special_tokens=False)["input_ids"]) + 1 for pair in pairs]
    losses = [-reply_logps(base, tokenizer, pair, "chosen") / n for pair, n in zip(pairs, tokens)]
    assert first(sft.state.log_history, "eval_loss") == pytest.approx(sum(losses) / len(pairs), rel=1e-4)


def test_dpo_tokens_are_clean_at_the_border(notebook, dpo, tokenizer):
    """Prompt and reply, joined, are the tokens of the whole text, with one BOS before and one EOS after."""
    for one, pair in zip(dpo.train_dataset, notebook.pairs.train):
        for side in ("chosen", "rejected"):
            whole = tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"]
            assert one["prompt_ids"] + one[f"{side}_ids"] == whole
            assert whole.count(tokenizer.eos_token_id) == 2  # OPT's BOS is its EOS


def test_nothing_is_truncated(notebook, tokenizer, tmp_path, monkeypatch):
    """Pairs that were fitted into max_length reach TRL's batches whole, also one that fills it to the last token."""
    def length(pair):
        return max(len(tokenizer(f"{pair['prompt']} {pair[side]}{tokenizer.eos_token}")["input_ids"])
                   for side in ("chosen", "rejected"))

    prompts = [dialogue(*["one two three four"] * (2 * n + 1)) + "\n\nAssistant:" for n in range(8)]
    long = [{"prompt": prompt, "chosen": "five" + " six" * n, "rejected": "six", "subset": "s"}
            for prompt in prompts for n in (1, 9)]
    limit, report = length(long[7]), {"s": {"cut": 0, "too long": 0}}
    fitting = hh.fit_pairs(long, tokenizer, limit, set(), report)
    assert report["s"]["cut"] > 0
    monkeypatch.setitem(notebook.common, "max_length", limit)
    monkeypatch.setitem(notebook.globals, "pairs", hh.Pairs(fitting, fitting[:1], None))
    trainer = dpo_trainer(notebook, tmp_path)
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
    assert first(records, "eval_rewards/accuracies") == 0


def test_dpo_learns_the_preference(dpo, notebook, tokenizer):
    """A few steps raise the mean margin of the training pairs above zero."""
    model, base = dpo.model.eval(), models.load_base(notebook.base.folder)
    margins = []
    for pair in notebook.pairs.train[:20]:
        moved = [reply_logps(model, tokenizer, pair, side) - reply_logps(base, tokenizer, pair, side)
                 for side in ("chosen", "rejected")]
        margins.append(notebook.s.beta * (moved[0] - moved[1]))
    assert sum(margins) / len(margins) > 0


def test_dropout_stops_a_dpo_run(notebook, tmp_path):
    """With the dropout that the checkpoint's config asks for, the first loss is not ln 2, and the run ends there."""
    noisy = AutoModelForCausalLM.from_pretrained(notebook.base.folder, dtype=torch.float32)
    trainer = dpo_trainer(notebook, tmp_path, noisy)
    with pytest.raises(RuntimeError, match="not ln 2.*dropout"):
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(("device", "loss", "holds"), [
    ("cpu", 0.6931, True), ("cpu", 0.6961, False), ("cuda", 0.6961, True), ("cuda", 0.6891, True),
    ("cuda", 0.604, False), ("cuda", 0.704, False), ("cpu", math.nan, False), ("cuda", math.nan, False)])
def test_first_loss_has_room_for_a_gpus_kernels_alone(device, loss, holds):
    """Kernels that differ by 2e-3 pass on a GPU, dropout passes nowhere."""
    arguments = SimpleNamespace(device=SimpleNamespace(type=device)), SimpleNamespace(global_step=1), None
    if holds:
        training.FirstLossIsLn2().on_log(*arguments, logs={"loss": loss})
    else:
        with pytest.raises(RuntimeError, match="not ln 2"):
            training.FirstLossIsLn2().on_log(*arguments, logs={"loss": loss})


def test_dpo_on_sft_starts_at_the_sft_model_and_keeps_it_as_reference(notebook, tokenizer, tmp_path):
    """SFT+DPO goes on from the SFT adapter: no margin at first; its reference still is the SFT model at the end."""
    trainer = notebook.sft_dpo(tmp_path, ROWS)
    base = models.load_base(notebook.base.folder)
    started = PeftModel.from_pretrained(base, notebook.run.folder / ADAPTERS["SFT"])
    trainer.train()
    records = trainer.state.log_history
    pairs = notebook.pairs.validation
    for side in ("chosen", "rejected"):
        expected = sum(reply_logps(started, tokenizer, pair, side) for pair in pairs) / len(pairs)
        assert first(records, f"eval_logps/{side}") == pytest.approx(expected, rel=1e-4)
    assert first(records, "loss") == pytest.approx(LN2, abs=1e-6)
    expected = logits_of(started, tokenizer, PROBES)
    assert (logits_of(trainer.model, tokenizer, PROBES) - expected).abs().max() > 1e-2
    trainer.model.set_adapter("ref")
    assert torch.allclose(logits_of(trainer.model, tokenizer, PROBES), expected, atol=1e-4)


# ---- precision and memory, with stand-ins of a GPU's answers

OPT_350M = OPTConfig(num_hidden_layers=24, hidden_size=1024, ffn_dim=4096, vocab_size=50272, word_embed_proj_dim=512)
GIB = 2**30


@pytest.fixture
def cuda(monkeypatch):
    """Return a function that lets torch say that there is a card of a compute capability and a memory (GiB)."""
    def card(capability=(8, 0), memory=40):
        properties = SimpleNamespace(total_memory=int(memory * GIB))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return card


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16")])
def test_precision_follows_the_card(cuda, capability, name):
    """A T4 only emulates bf16, so it trains in fp16; fp32 where that is asked for."""
    cuda(capability)
    assert training.precision("auto") == name
    assert {option for option, value in training.device_options("auto").items() if value} == {name}
    assert training.precision("fp32") == "fp32"
    assert not any(training.device_options("fp32").values())


@pytest.mark.parametrize(("able", "name"), [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"),
                                            ({"avx512_bf16": False}, "fp32"), ({}, "fp32")])
def test_precision_follows_the_processor(monkeypatch, able, name):
    """bf16 where the processor multiplies it in hardware, by the weights' type alone, without autocast."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert training.precision("auto") == name
    assert training.device_options("auto") == {"bf16": False, "fp16": False, "use_cpu": True}


@pytest.mark.parametrize(("preset", "settings", "dtype"), [
    ("small", {}, torch.bfloat16), ("small", {"precision": "fp32"}, torch.float32), ("demo", {}, torch.float32),
    ("paper", {}, torch.float32)])
def test_only_a_frozen_base_is_bf16(monkeypatch, capsys, preset, settings, dtype):
    """What is trained stays fp32, so the weights of full fine-tuning do; the notebook says what was taken."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    s = choose(Training, preset, settings)
    assert training.base_dtype(s.precision, s.sft_method == "lora") == dtype
    assert f"the base's weights in {str(dtype)[6:]}" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["SFT", "DPO"])
def test_only_labels_go_through_the_vocabulary(notebook, tmp_path, monkeypatch, stage):
    """Prompt and padding never do; loss and gradients are those of all positions."""
    head, rows = trl.trainer.utils._ChunkedLogProbFunction, []
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", SimpleNamespace(
        apply=lambda hidden, *more: rows.append(len(hidden)) or head.apply(hidden, *more)))
    found = {}
    for way in ("labels", "all"):
        if way == "all":
            monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device: False)
        torch.manual_seed(0)
        trainer = notebook.sft(tmp_path / way, 4) if stage == "SFT" else dpo_trainer(notebook, tmp_path / way, rows=8)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        labels = (batch["labels"] != -100) if stage == "SFT" else batch["completion_mask"].bool()
        rows.clear()
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        found[way] = rows[0], labels[:, 1:].sum().item(), labels[:, 1:].numel(), loss.item(), gradients
    assert found["labels"][0] == found["labels"][1] < found["all"][2] == found["all"][0]
    assert found["labels"][3] == pytest.approx(found["all"][3], rel=1e-5)
    torch.testing.assert_close(found["labels"][4], found["all"][4], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("memory", "rows"), [(7.6, 8), (11.75, 16), (14.56, 16), (22.0, 32), (39.4, 64), (79.1, 128)])
def test_rows_follow_from_the_cards_memory(cuda, memory, rows):
    """OPT-350M: what the formula allows leaves a tenth of the card free by the measured 34 bytes, and is not timid."""
    cuda((8, 0), memory)
    assert training.device_memory() == int(memory * GIB)
    assert training.rows_that_fit(OPT_350M, 512, False, training.device_memory(), fp32=False, on_cpu=False) == rows
    peak = (331e6 * 4 + rows * 512 * 34 * 24 * 1024) / GIB + 1
    assert 0.3 * memory < peak < 0.9 * memory


def test_rows_of_full_fine_tuning_and_of_cpus():
    """Trained weights cost sixteen bytes each; a CPU is fastest with few; one text always goes."""
    on_cpu = training.rows_that_fit(OPT_350M, 512, False, 24 * GIB, fp32=True, on_cpu=True)
    lora, full = (training.rows_that_fit(OPT_350M, 512, everything, 11.75 * GIB, fp32=False, on_cpu=False)
                  for everything in (False, True))
    assert (on_cpu, lora, full) == (2, 16, 8)
    assert training.rows_that_fit(OPT_350M, 512, False, GIB, fp32=False, on_cpu=False) == 1


@pytest.mark.parametrize(("batch_size", "at_once", "pairs"),
                         [(16, 1, 1), (16, 2, 2), (16, 8, 8), (16, 1024, 16), (6, 4, 3), (7, 4, 1)])
def test_step_has_as_many_pairs_however_many_fit(batch_size, at_once, pairs):
    """The effective batch is the setting's; an odd one is shared out evenly too."""
    options = training.batches(batch_size, at_once)
    assert options["per_device_train_batch_size"] == pairs
    assert options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] == batch_size


@pytest.mark.parametrize(("name", "rows", "at_once"), [("SFT", 128, 16), ("SFT", 8, 8), ("DPO", 8, 4), ("DPO", 1, 1)])
def test_pass_is_no_larger_than_a_step(notebook, tmp_path, monkeypatch, name, rows, at_once):
    """SFT reads one text of a pair, DPO two; more than a step holds would be halved in vain where memory runs out."""
    asked, run = [], begin(notebook, tmp_path)
    monkeypatch.setattr(training, "rows_that_fit", lambda *arguments: rows)

    def make_trainer(folder, fitting):
        asked.append(fitting)
        raise RuntimeError("asked")

    with pytest.raises(RuntimeError, match="asked"):
        training.once(run, name, make_trainer, notebook.base, {})
    assert asked == [at_once]
    run.release()


def test_layers_that_a_base_does_not_have_are_said(dpo, capsys):
    """Another architecture names its layers otherwise, and LoRA would leave them alone silently."""
    training._say_what_is_adapted(dpo.model)
    assert capsys.readouterr().out == ""
    config = dpo.model.peft_config["default"]
    config.target_modules.add("gate_proj")
    training._say_what_is_adapted(dpo.model)
    config.target_modules.remove("gate_proj")
    assert "This base has no layers gate_proj: LoRA adapts only" in capsys.readouterr().out


# ---- a stage

class EveryStep(TrainerCallback):
    """Keeps a copy of every checkpoint, one a step, in a folder."""

    def __init__(self, run, kept):
        self.run, self.kept = run, kept

    def on_save(self, args, state, control, **kwargs):
        name = f"checkpoint-{state.global_step}"
        entry = self.run.ledger.artifacts[f"{SFT}/{name}"].model_dump()
        shutil.copytree(Path(args.output_dir) / name, self.kept / name)
        (self.kept / f"{name}.json").write_text(json.dumps(entry))


def save_every_step(trainer):
    """Let a trainer write a checkpoint after every step, beside those that are due by time."""
    trainer.args.save_strategy, trainer.args.save_steps, trainer.state.save_steps = SaveStrategy.STEPS, 1, 1
    return trainer


def begin(notebook, folder):
    """Return a run in a new folder that holds what the notebook's run was begun with."""
    run = Run(folder, "demo", begin=True)
    run.save(**{name: getattr(notebook.run.ledger, name) for name in ("preset", "settings", "models", "data")})
    return run


def train(notebook, run, make_trainer=None):
    """Train the SFT stage into a run's folder; return its log."""
    return training.once(run, "SFT", make_trainer or notebook.sft, notebook.base, {"seed": 0})


@pytest.fixture(scope="module")
def steps(notebook, tmp_path_factory):
    """An SFT stage with a checkpoint of every step kept: their folder, the log, the weights."""
    folder, trained = tmp_path_factory.mktemp("steps"), {}
    run = begin(notebook, folder)

    def make_trainer(place, rows):
        trained["trainer"] = save_every_step(notebook.sft(place, rows))
        return trained["trainer"]

    resume = training.resume

    def watched(trainer, *arguments):
        add = trainer.add_callback

        def add_both(callback):
            add(callback)
            if isinstance(callback, Checkpoints):
                add(EveryStep(run, folder / "kept"))

        trainer.add_callback = add_both
        resume(trainer, *arguments)
        trained["weights"] = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}

    training.resume = watched
    try:
        log = train(notebook, run, make_trainer)
    finally:
        training.resume = resume
    run.release()
    return SimpleNamespace(kept=folder / "kept", log=log, weights=trained["weights"])


def interrupted(notebook, folder, steps, *numbers):
    """Return a run that was interrupted: with the checkpoints of these steps."""
    run = begin(notebook, folder)
    for number in numbers:
        name = f"{SFT}/checkpoint-{number}"
        shutil.copytree(steps.kept / f"checkpoint-{number}", run.folder / name)
        entry = load(steps.kept / f"checkpoint-{number}.json")
        run.seal(name, entry["made_from"])
        assert run.ledger.artifacts[name].sha256 == entry["sha256"]
    return run


@pytest.mark.parametrize("number", [1, 4, 6])
def test_every_checkpoint_leads_to_the_same_weights(notebook, steps, tmp_path, number):
    """Gone on with from any step, the first and the last among them, training ends with the same bits and log."""
    assert len(list(steps.kept.glob("checkpoint-*/"))) == 6
    run = interrupted(notebook, tmp_path, steps, number)
    assert train(notebook, run) == steps.log
    again = PeftModel.from_pretrained(models.load_base(notebook.base.folder), run.folder / ADAPTERS["SFT"]).state_dict()
    lora = {name: weight for name, weight in steps.weights.items() if "lora" in name}
    assert len(lora) > 10
    assert [name for name, weight in lora.items() if not torch.equal(weight, again[name])] == []
    assert [record["step"] for record in steps.log if "eval_loss" in record] == [0, 6]
    assert not (run.folder / "unfinished").exists()
    assert list(run.ledger.artifacts) == ["adapters/sft"]
    assert run.ledger.artifacts["adapters/sft"].seconds is None
    run.release()


@pytest.mark.parametrize("sft_first", [False, True])
def test_dpo_goes_on_under_dropout(notebook, tmp_path, monkeypatch, sft_first):
    """With the paper's dropout too, and on an SFT adapter, DPO of two epochs ends with the same bits from any step."""
    noisy = notebook.s.model_copy(update={"dropout": 0.1, "dpo_epochs": 2})
    monkeypatch.setitem(notebook.globals, "s", noisy)
    monkeypatch.setattr(notebook.lora, "lora_dropout", 0.05)

    def go(folder, checkpoint=None):
        run = begin(notebook, folder)
        model = None if sft_first else models.load_base(notebook.base.folder, 0.1)
        place = run.folder / "x"
        trainer = save_every_step(notebook.sft_dpo(place, ROWS) if sft_first else dpo_trainer(notebook, place, model))
        trainer.args.eval_on_start = checkpoint is None
        trainer.add_callback(Checkpoints(run, "x", {}, 10))
        monkeypatch.setattr(run, "forget", lambda name: None)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        run.release()
        return trainer.model.state_dict(), training.clean_log(trainer.state.log_history), place

    weights, log, place = go(tmp_path / "whole")
    for number in (1, 6, 11):
        again, log_again, _ = go(tmp_path / str(number), place / f"checkpoint-{number}")
        assert [name for name, weight in weights.items() if not torch.equal(weight, again[name])] == []
        assert [one for one in log_again if "eval_loss" in one] == [one for one in log if "eval_loss" in one]


def test_stage_that_is_there_is_not_trained_again(notebook, steps, tmp_path):
    """Its log comes from its folder."""
    def make_trainer(folder, rows):
        raise AssertionError("trained again")

    run = interrupted(notebook, tmp_path, steps)
    log = train(notebook, run)
    assert train(notebook, run, make_trainer) == log == steps.log
    run.release()


@pytest.mark.parametrize("name", [*STATE, "adapter_model.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_checkpoint_that_is_not_whole_is_named_and_not_used(notebook, steps, tmp_path, capsys, name, damage):
    """Whatever is missing, empty, cut or changed: the one before is taken, and the message names the folder."""
    run = interrupted(notebook, tmp_path, steps, 2, 3)
    path = run.folder / SFT / "checkpoint-3" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2],
                          "changed": content.replace(content[50:52], b"\x00\x01")}[damage])
    begun = {"seed": 0, "model": "SFT", "precision": "fp32"}
    assert training.last_checkpoint(run, SFT, begun) == run.folder / SFT / "checkpoint-2"
    assert "checkpoint-3 is not whole. Training goes on without it." in capsys.readouterr().out
    assert not path.parent.exists()
    run.release()


def test_checkpoint_that_was_not_sealed_is_not_used(notebook, steps, tmp_path):
    """One that was being written when the process was killed; hidden files of file managers do no harm."""
    run = interrupted(notebook, tmp_path, steps, 2)
    shutil.copytree(steps.kept / "checkpoint-3", run.folder / SFT / "checkpoint-3")
    (run.folder / SFT / "checkpoint-2" / ".DS_Store").write_bytes(b"x")
    begun = {"seed": 0, "model": "SFT", "precision": "fp32"}
    assert training.last_checkpoint(run, SFT, begun) == run.folder / SFT / "checkpoint-2"
    assert training.last_checkpoint(run, "unfinished/none", begun) is None
    run.release()


@pytest.mark.parametrize(("changed", "message"), [
    ({"seed": 1}, "checkpoint-3 was made with seed = 0, now it is 1"),
    ({"precision": "fp16"}, r"checkpoint-3 was trained in fp32 on CPU.* in fp16\. .* remove .*adapters/sft"),
    ({"precision": "bf16"}, r"checkpoint-3 was trained in fp32 on CPU.* in bf16\. .* remove .*adapters/sft")])
def test_checkpoint_of_something_else_is_refused(notebook, steps, tmp_path, changed, message):
    """Other settings, or another precision, are not gone on from; the checkpoint stays."""
    run = interrupted(notebook, tmp_path, steps, 3)
    with pytest.raises(ValueError, match=message):
        training.last_checkpoint(run, SFT, {"seed": 0, "model": "SFT", "precision": "fp32"} | changed)
    assert (run.folder / SFT / "checkpoint-3").exists()
    run.release()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_pickle_in_a_checkpoint_does_not_run(notebook, steps, tmp_path, name):
    """A checkpoint of somebody else's, sealed, whose pickles hold more than numbers: named, or never read."""
    run = interrupted(notebook, tmp_path, steps, 3)
    write_pickle(run.folder / SFT / "checkpoint-3" / name, tmp_path / "ran")
    run.seal(f"{SFT}/checkpoint-3", {"seed": 0, "model": "SFT", "precision": "fp32"})
    if name == "training_args.bin":  # the trainer writes it and never reads it
        assert train(notebook, run) == steps.log
    else:
        with pytest.raises(ValueError, match="checkpoint-3 holds more than a checkpoint does. Move it away"):
            train(notebook, run)
    assert not (tmp_path / "ran").exists()
    run.release()


@pytest.mark.parametrize(("minutes", "expected"), [(0, [10, 20]), (10, [])])
def test_checkpoints_come_by_time(notebook, tmp_path, monkeypatch, minutes, expected):
    """They are written when they are due, with a log record, and at most the two newest are there."""
    seen, run = [], begin(notebook, tmp_path)

    class Seen(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(state.global_step)
            assert len(list((run.folder / "x").glob("checkpoint-*"))) <= 2

    monkeypatch.setitem(notebook.globals, "s", notebook.s.model_copy(update={"sft_epochs": 4}))
    trainer = notebook.sft(run.folder / "x", ROWS)
    trainer.add_callback(Checkpoints(run, "x", {}, minutes))
    trainer.add_callback(Seen())
    trainer.train()
    assert seen == expected
    assert list(run.ledger.artifacts) == [f"x/checkpoint-{step}" for step in expected[-2:]]
    run.release()


class Overflow(TrainerCallback):
    """Makes the first gradient norm infinite, as GradScaler's first step in fp16 may."""

    def on_log(self, args, state, control, **kwargs):
        if "grad_norm" in state.log_history[-1] and state.global_step == 1:
            state.log_history[-1]["grad_norm"] = math.inf


def test_overflow_in_the_log_does_not_stop_a_run(notebook, tmp_path):
    """A gradient norm that is no number is null in the records, and the stage ends."""
    def overflowing(folder, rows):
        trainer = notebook.sft(folder, rows)
        trainer.add_callback(Overflow())
        return trainer

    run = begin(notebook, tmp_path)
    log = train(notebook, run, overflowing)
    assert [record["grad_norm"] for record in log if "grad_norm" in record][0] is None
    assert training.clean_log([{"loss": math.nan, "step": 1}]) == [{"loss": None, "step": 1}]
    run.release()


@pytest.mark.parametrize("fits", [4, 8])
def test_stage_that_runs_out_of_memory_goes_on_with_less(notebook, steps, tmp_path, capsys, monkeypatch, fits):
    """Rows are halved until they fit, from the last checkpoint on; steps and pairs in a step stay the same."""
    tried = []
    monkeypatch.setattr(training, "rows_that_fit", lambda *arguments: 16)

    def small_card(folder, rows):
        trainer = save_every_step(notebook.sft(folder, rows))
        step = trainer.training_step
        tried.append((rows, trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps))

        def training_step(*inputs):
            return out_of_memory() if rows > fits and trainer.state.global_step > 1 else step(*inputs)

        trainer.training_step = training_step
        return trainer

    run = begin(notebook, tmp_path)
    log = train(notebook, run, small_card)
    assert tried == [(rows, 16) for rows in (16, 8, 4) if rows >= fits]
    assert max(record["step"] for record in log) == 6
    assert capsys.readouterr().out.count("Out of memory. Once more, with") == len(tried) - 1
    assert run.ledger.artifacts["adapters/sft"].made_from == {"seed": 0, "model": "SFT"}
    losses = [[record["eval_loss"] for record in one if "eval_loss" in record] for one in (log, steps.log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    run.release()


def test_memory_of_a_container_counts(tmp_path, monkeypatch):
    """Where a container has less than its machine, that is what there is; "max" is no limit."""
    total = training.psutil.virtual_memory().total
    for text, expected in (("max\n", total), ("1073741824\n", GIB), (f"{2 * total}\n", total)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(training, "Path", lambda path: tmp_path / "memory.max")
        assert training.device_memory() == expected


def test_one_text_too_many_is_said():
    """Where not even one text fits, torch's own error stays; other errors are not tried again."""
    tried = []
    with pytest.raises(torch.OutOfMemoryError):
        training.halve_until_it_fits(lambda rows: tried.append(rows) or out_of_memory(), 4)
    assert tried == [4, 2, 1]
    with pytest.raises(RuntimeError, match="something else"):
        training.halve_until_it_fits(lambda rows: (_ for _ in ()).throw(RuntimeError("something else")), 4)


def test_model_of_a_finished_stage_is_freed(notebook, tmp_path):
    """Once a stage is done nothing of its trainer, model or optimizer is left in memory."""
    left = []

    def watched(folder, rows):
        trainer = notebook.sft(folder, rows)
        left.extend((weakref.ref(trainer), weakref.ref(trainer.model), weakref.ref(trainer.model.base_model)))
        return trainer

    run = begin(notebook, tmp_path)
    train(notebook, run, watched)
    assert [one() for one in left] == [None] * 3
    run.release()


def test_progress_is_a_line_a_validation(notebook, tmp_path, capsys):
    """No table that runs off the page: a bar, and one line for every validation."""
    run = begin(notebook, tmp_path)
    train(notebook, run)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said if "held-out" in line] == ["step 0 of 6", "step 6 of 6"]
    assert not [line for line in said if "No Log" in line or line.startswith("{")]
    run.release()


# ---- a disk that gets full

@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("free", [40, 200, 400, 600])
def test_full_disk_at_a_checkpoint(notebook, steps, small_disk, tmp_path, free):
    """Training on a disk with so many KiB left stops with the message; where there is room it goes on to the end."""
    run = begin(notebook, small_disk)
    (run.folder / "ballast").write_bytes(bytes(shutil.disk_usage(run.folder).free - free * 1024))
    with pytest.raises(OSError, match="no room left to write into"):
        train(notebook, run, lambda folder, rows: save_every_step(notebook.sft(folder, rows)))
    run.release()
    assert not (run.folder / "adapters" / "sft").exists()
    shutil.copytree(run.folder, tmp_path / "larger" / "demo", ignore=shutil.ignore_patterns("ballast"))
    run = Run(tmp_path / "larger", "demo")
    assert train(notebook, run) == steps.log
    run.release()
