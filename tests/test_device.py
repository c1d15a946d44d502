"""Precision, and passes that fit: the search leaves no trace, and steps stay the same."""

import json
import random
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trl.trainer.utils
from peft import IA3Config, LoraConfig, get_peft_model
from small_runs import OPT
from small_trainers import LORA, make_dpo, make_sft, pairs

from posttrain import device, models, packing

GIB = 2**30


# ---- precision, with stand-ins of a device's answers


@pytest.mark.parametrize(
    ("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16")]
)
def test_precision_follows_the_card(monkeypatch, capability, name):
    """A T4 only emulates bf16, so it trains in fp16; fp32 is used if it is asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    assert device.choose_precision("auto") == name
    options = device.device_options("auto")
    assert [option for option, value in options.items() if value] == [name]
    assert device.choose_precision("fp32") == "fp32"
    assert not any(device.device_options("fp32").values())


@pytest.mark.parametrize(
    ("able", "name"),
    [
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_precision_follows_the_processor(monkeypatch, able, name):
    """It is bf16 if the processor multiplies bf16 in hardware."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert device.choose_precision("auto") == name
    expected = {"bf16": name == "bf16", "fp16": False, "use_cpu": True}
    assert device.device_options("auto") == expected


@pytest.mark.parametrize(
    ("wanted", "frozen", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
    ],
)
def test_only_a_frozen_base_is_bf16(monkeypatch, capsys, wanted, frozen, dtype):
    """Trained weights stay in fp32, and a line says which types are used."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert device.choose_dtype(OPT, wanted, frozen) == dtype
    assert f"The base's weights are stored as {str(dtype)[6:]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("frozen", "stored", "dtype"),
    [
        (True, "float16", torch.float16),
        (True, "float32", torch.float32),
        (True, "bfloat16", torch.float32),
        (True, None, torch.float32),
        (False, "float16", torch.float32),
    ],
)
def test_an_older_gpu_holds_in_fp16_what_is_stored_in_it(
    tmp_path, monkeypatch, frozen, stored, dtype
):
    """Weights that are stored in another type could be too large for float16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    shutil.copytree(OPT, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": stored}
    path.write_text(json.dumps(config), encoding="utf-8")
    assert device.choose_dtype(tmp_path / "base", "auto", frozen) == dtype


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_a_base_held_in_fp16_learns_more_exactly_than_in_bf16(make):
    """Newer GPUs hold the base in bf16, so an older one may hold it in fp16."""
    gradients = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        base = models.load_base(OPT, dtype=torch.float16).to(dtype)
        trainer = make(model=base, lora={**LORA, "lora_dropout": 0.0})
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = trainer.compute_loss(trainer.model.train(), batch)
        (1024 * loss).backward()  # scaled, as in training, since small gradients would vanish
        learning = [p for p in trainer.model.parameters() if p.requires_grad]
        assert {p.dtype for p in learning} == {torch.float32}
        flat = [p.grad.flatten() / 1024 for p in learning if p.grad is not None]
        gradients[dtype] = torch.cat(flat)
    exact = gradients[torch.float32]
    errors = {dtype: (gradients[dtype] - exact).norm() / exact.norm() for dtype in gradients}
    assert errors[torch.float16] < errors[torch.bfloat16]


def test_what_a_checkpoint_is_bound_to():
    expected = {"precision": "fp32", "weights": "float32", "device": "cpu", "processes": 1}
    assert device.describe_computing(make_sft()) == expected
    in_bf16 = make_sft(model=models.load_base(OPT, dtype=torch.bfloat16))
    assert device.describe_computing(in_bf16)["weights"] == "bfloat16"
    assert device.describe_computing(make_sft(bf16=True))["precision"] == "bf16"


# ---- only labels go through the vocabulary


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_only_labels_go_through_the_vocabulary(monkeypatch, make):
    """Prompt and padding are left out, with the same loss and gradients as with them."""
    head = trl.trainer.utils._ChunkedLogProbFunction
    rows = []

    def apply(hidden, *others):
        rows.append(len(hidden))
        return head.apply(hidden, *others)

    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=apply))
    losses, gradients, numbers = [], [], []
    for uses_triton in (True, False):
        monkeypatch.setattr(trl.trainer.utils, "_use_triton", lambda device, it=uses_triton: it)
        trainer = make(lora={**LORA, "lora_dropout": 0.0})
        rows.clear()  # PairTrainer has read a pair to try its packing
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        is_label = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
        loss = trainer.compute_loss(trainer.model.train(), dict(batch))
        loss.backward()
        losses.append(loss.item())
        numbers.append(rows[0])
        with_gradient = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(with_gradient))
    labels, positions = is_label[:, 1:].sum().item(), is_label[:, 1:].numel()
    assert numbers == [labels, positions]
    assert labels < positions
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_adapters_input_keeps_its_type_under_autocast(make):
    """Without dropout no bit of loss and gradients changes; in bf16 memory is saved."""
    for in_bf16 in (True, False):
        results = []
        for context in (device.leave_types_to_autocast, nullcontext):
            dtype = torch.bfloat16 if in_bf16 else torch.float32
            lora = {**LORA, "lora_dropout": 0.0}
            trainer = make(model=models.load_base(OPT, dtype=dtype), lora=lora, bf16=in_bf16)
            batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
            kept = {}  # for the backward pass

            def keep(tensor, kept=kept):
                kept[tensor.untyped_storage().data_ptr()] = tensor
                return tensor

            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            model = trainer.model.train()
            with context():
                with trainer.accelerator.autocast(), hooks:
                    loss = trainer.compute_loss(model, batch)
                loss.backward()
            memory = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            results.append((loss, gradients, memory))
            types = {tensor.dtype for tensor in gradients}
            assert gradients and types == {torch.float32}
        ours, other = results
        assert torch.equal(ours[0], other[0])
        assert all(torch.equal(one, two) for one, two in zip(ours[1], other[1], strict=True))
        assert (ours[2] < 0.9 * other[2]) == in_bf16


def test_types_are_left_to_autocast_alone():
    """A model that answers without autocast during a training, IA3 and DoRA work as before."""
    ids = torch.arange(5, 20)[None]
    kinds = {
        "LoRA": LoraConfig(**LORA),
        "IA3": IA3Config(target_modules=["q_proj", "fc2"], feedforward_modules=["fc2"]),
        "DoRA": LoraConfig(**{**LORA, "lora_dropout": 0.0}, use_dora=True),
    }
    for kind, config in kinds.items():
        model = get_peft_model(models.load_base(OPT, dtype=torch.bfloat16), config).eval()
        logits = []
        for context in (device.leave_types_to_autocast, nullcontext):
            with context(), torch.no_grad():
                alone = model(ids).logits
                with torch.autocast("cpu", torch.bfloat16):
                    logits.append([alone, model(ids).logits])
        (alone, under), expected = logits
        assert torch.equal(alone, expected[0]), kind
        assert torch.equal(under, expected[1]), kind


UNDROPPED = {"lora_dropout": 0.0}


@pytest.mark.parametrize("make", [make_sft, make_dpo])
@pytest.mark.parametrize(
    ("changes", "rearranged"),
    [
        ({}, True),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"use_dora": True, **UNDROPPED}, False),
        ({"target_modules": ["q_proj"], "target_parameters": ["fc1.weight"], **UNDROPPED}, False),
    ],
    ids=["LoRA", "trained head", "DoRA", "parameters"],
)
def test_training_in_fp32_multiplies_from_rearranged_weights(
    monkeypatch, make, changes, rearranged
):
    """Loss and gradients are the same, and nothing is drawn.

    DoRA reads the weights itself, and an adapter of a parameter changes them.
    """
    monkeypatch.setattr(packing, "LARGE", 1)
    base = models.load_base(OPT)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())  # not shared
    trainer = make(model=base, lora={**LORA, **changes})
    model = trainer.model.train()
    layer = model.get_base_model().model.decoder.layers[0].fc1
    layer = getattr(layer, "base_layer", layer)
    results = []
    for context in (nullcontext(), device.computed_fast(trainer)):
        torch.manual_seed(0)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        with context:
            loss = trainer.compute_loss(model, batch)
            loss.backward()
            was_rearranged = "forward" in vars(layer)
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        results.append((loss, torch.cat([gradient.flatten() for gradient in gradients])))
        model.zero_grad()
    assert was_rearranged == rearranged
    assert "forward" not in vars(layer)
    assert model.training
    for values, expected in zip(*results):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    assert results[0][1].norm() > 0.01
    in_bf16 = make(model=models.load_base(OPT), lora=LORA, bf16=True)
    with device.computed_fast(in_bf16):
        linear = [module for module in in_bf16.model.modules() if type(module) is torch.nn.Linear]
        assert not any("forward" in vars(layer) for layer in linear)


# ---- passes


@pytest.mark.parametrize(
    ("pairs_in_a_step", "that_fit", "pairs_in_a_pass"),
    [(16, 1, 1), (16, 2, 2), (16, 9, 8), (16, 1024, 16), (6, 4, 3), (7, 4, 1)],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_step_has_as_many_pairs_however_many_fit(
    monkeypatch, pairs_in_a_step, that_fit, pairs_in_a_pass, accumulation
):
    """The trainer reads the size of the pass, so the number of steps stays the same."""
    monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer: that_fit)
    if pairs_in_a_step % accumulation:
        accumulation = 1
    trainer = make_sft(
        per_device_train_batch_size=pairs_in_a_step // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    assert device.settle_pass(trainer) == pairs_in_a_pass
    args = trainer.args
    assert args.per_device_train_batch_size == pairs_in_a_pass
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == pairs_in_a_step
    assert trainer._train_batch_size == pairs_in_a_pass
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape[0] == pairs_in_a_pass


def test_pass_that_is_settled_is_taken_untried(monkeypatch):
    """This is the case for the pass of a checkpoint."""
    monkeypatch.setattr(device, "_estimate_pass", None)
    trainer = make_dpo()
    assert device.settle_pass(trainer, 4) == 4
    assert (trainer._train_batch_size, trainer.args.gradient_accumulation_steps) == (4, 4)


def let_fit(monkeypatch, trainer, pairs_at_most):
    """Let larger passes run out of memory, and let passes be tried as on a GPU."""
    monkeypatch.setattr(device, "_estimate_pass", device._try_passes)
    monkeypatch.setattr(device, "release_memory", lambda: None)  # a second a call, and no GPU here
    compute_loss = trainer.compute_loss
    tried = []

    def limited(model, inputs, *args, **kwargs):
        texts = len(inputs["input_ids"])
        tried.append(texts // 2 if "completion_mask" in inputs else texts)
        if tried[-1] > pairs_at_most:
            # the forward pass has left something behind when the memory ends
            compute_loss(model, inputs, *args, **kwargs)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", limited)
    return tried


@pytest.mark.parametrize("make", [make_sft, make_dpo])
@pytest.mark.parametrize(
    ("that_fit", "tries"), [(16, [16]), (5, [16, 8, 4]), (1, [16, 8, 4, 2, 1])]
)
def test_largest_pass_that_fits_is_found_by_trying(monkeypatch, capsys, make, that_fit, tries):
    trainer = make()
    tried = let_fit(monkeypatch, trainer, that_fit)
    assert device.settle_pass(trainer) == tries[-1]
    assert tried == tries
    lines = capsys.readouterr().out.splitlines()
    sentences = [f"A pass of {n} pairs does not fit into the device's memory." for n in tries[:-1]]
    assert [line for line in lines if line.startswith("A pass")] == sentences


def test_not_even_one_pair_is_refused_with_what_to_do(monkeypatch):
    trainer = make_sft()
    let_fit(monkeypatch, trainer, 0)
    with pytest.raises(RuntimeError, match="Not even one pair fits .*max_length"):
        device.settle_pass(trainer)


def test_other_errors_of_a_trial_are_not_hidden(monkeypatch):
    trainer = make_sft()

    def fail(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="something else"):
        device.fits(trainer, 2)


@pytest.mark.parametrize("make", [make_sft, make_dpo])
@pytest.mark.parametrize("that_fit", [16, 4])
def test_trial_leaves_no_trace(monkeypatch, make, that_fit):
    """Random states, gradients, mode, TRL's metrics and token counts are as before."""
    trainer = make()
    let_fit(monkeypatch, trainer, that_fit)
    trainer.model.eval()
    before = states_of(trainer)
    assert device.fits(trainer, 8) == (that_fit == 16)
    assert states_of(trainer) == before
    assert all(weight.grad is None for weight in trainer.model.parameters())
    assert not any(module.training for module in trainer.model.modules())


def states_of(trainer):
    """Collect everything that a pass outside of training may change."""
    return (
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
        {mode: dict(metrics) for mode, metrics in trainer._metrics.items()},
        getattr(trainer, "_total_train_tokens", None),
        [weight.detach().sum().item() for weight in trainer.model.parameters()],
    )


@pytest.mark.parametrize("make", [make_sft, make_dpo])
def test_longest_texts_are_tried(monkeypatch, make):
    """A trial of one pair takes the pair with the most tokens."""
    trainer = make()
    batches = []
    compute_loss = trainer.compute_loss
    monkeypatch.setattr(
        trainer, "compute_loss", lambda *args: batches.append(args[1]) or compute_loss(*args)
    )
    assert device.fits(trainer, 1)
    longest = 0
    for pair in pairs().train:
        replies = [len(pair["chosen_ids"])]
        if make is make_dpo:
            replies.append(len(pair["rejected_ids"]))
        longest = max(longest, len(pair["prompt_ids"]) + sum(replies))
    if make is make_sft:
        assert batches[0]["input_ids"].shape == (1, longest)
    else:
        (prompt,) = {int(mask.sum()) for mask in prompt_masks(batches[0])}
        assert int(batches[0]["attention_mask"].sum()) - prompt == longest


def prompt_masks(batch):
    """Find for each text of a DPO batch the tokens that belong to the prompt."""
    return batch["attention_mask"] * (1 - batch["completion_mask"])


def test_memory_of_a_container_counts(tmp_path, monkeypatch):
    """The smaller limit of a container counts; "max" means that there is no limit."""
    total = device.psutil.virtual_memory().total
    for text, expected in (("max\n", total), ("1073741824\n", GIB), (f"{2 * total}\n", total)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(device, "Path", lambda path: tmp_path / "memory.max")
        assert device._machine_memory() == expected


def test_passes_on_a_cpu_follow_from_its_memory(monkeypatch):
    """With less memory fewer pairs fit, but at least one is always used."""
    trainer = make_sft()
    limits = []
    for memory in (64, 1.5, 1):
        monkeypatch.setattr(device, "_machine_memory", lambda it=memory: it * GIB)
        limits.append(device._pairs_on_cpu(trainer))
    assert limits[0] > limits[1] > limits[2] == 1


def test_peak_memory_is_this_processes():
    peak = device.process_peak()
    assert 0.1 < peak < 64
    assert device.peak_memory() == f"peak memory {peak:.1f} GiB"
