"""What happens on a GPU, on a card too small for a step, and on a drive: with stand-ins of the device's answers."""

import errno
import importlib.metadata
import json
import math
import shutil
import subprocess
import sys
import types
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, code_cells, load
from test_interrupted import checkpoints, interrupted, save_every_step  # noqa: F401  (fixtures)
from test_training import BEGUN, MADE, PAIRS, TEXTS, pairs, settings  # noqa: F401  (fixtures)
from transformers import OPTConfig, TrainerCallback

OPT_350M = OPTConfig(num_hidden_layers=24, hidden_size=1024, ffn_dim=4096, vocab_size=50272, word_embed_proj_dim=512)
GIB = 2**30


@pytest.fixture
def cuda(main, monkeypatch):
    """Return a function that lets torch say that there is a card of a compute capability and a memory (GiB)."""
    def card(capability=(8, 0), memory=40):
        properties = SimpleNamespace(total_memory=int(memory * GIB))
        monkeypatch.setattr(main.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(main.torch.cuda, "get_device_capability", lambda *device: capability)
        monkeypatch.setattr(main.torch.cuda, "get_device_properties", lambda device: properties)
    return card


def train(main, settings, tokenizer, run, make_trainer):  # noqa: F811
    """Train SFT into a run's folder; return its made.json."""
    record = {"settings": settings, "models": [
        {"name": "SFT", "base": settings["base_model"], "adapter": "adapters/sft"}]}
    return main.train("SFT", record, settings["base_model"], run, MADE["made_from"], make_trainer, tokenizer, TEXTS)


@pytest.fixture
def make_trainer(main, settings, tokenizer, pairs):  # noqa: F811
    """Return what makes the trainer of an SFT of four steps."""
    return lambda folder, rows: main.sft_trainer(settings, tokenizer, pairs, pairs[:2], folder, rows)


# ---- precision

@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((8, 9), "bf16")])
def test_precision_follows_the_card(main, settings, cuda, capability, name):  # noqa: F811
    """A T4 only emulates bf16, so it trains in fp16; no card, fp32."""
    assert main.precision() == "fp32"
    cuda(capability)
    options = main.trainer_options("sft", settings, 8)
    assert main.precision() == name
    assert {flag for flag in ("bf16", "fp16", "use_cpu") if options[flag]} == {name}


class Overflow(TrainerCallback):
    """Makes the first gradient norm infinite, as GradScaler's first step in fp16 may."""

    def on_log(self, args, state, control, **kwargs):
        if state.log_history[-1].get("grad_norm") is not None and state.global_step == 1:
            state.log_history[-1]["grad_norm"] = math.inf


def test_overflow_in_the_log_does_not_stop_a_run(main, settings, tokenizer, tmp_path, make_trainer):  # noqa: F811
    """A gradient norm that is no number is null in the records, and the stage ends."""
    def overflowing(folder, rows):
        trainer = make_trainer(folder, rows)
        trainer.add_callback(Overflow())
        return trainer

    log = train(main, settings, tokenizer, tmp_path, overflowing)["log"]
    norms = [record["grad_norm"] for record in log if "grad_norm" in record]
    assert norms[0] is None
    assert all(math.isfinite(loss) for loss in (record["loss"] for record in log if "loss" in record))
    assert main.clean_log([{"loss": math.nan, "step": 1}]) == [{"loss": None, "step": 1}]


@pytest.mark.parametrize("now", ["fp16", "bf16"])
def test_checkpoint_of_another_precision_is_refused(main, checkpoints, now):  # noqa: F811
    """A stage that began in fp32 does not go on in fp16: the message says on what it can, and how to begin anew."""
    with pytest.raises(ValueError, match=rf"checkpoint-3 was trained in fp32 on CPU.* in {now}\..* remove .*sft"):
        main.last_checkpoint(checkpoints, BEGUN | {"precision": now})
    assert (checkpoints / "checkpoint-3" / "made.json").exists()


@pytest.mark.parametrize(("device", "loss", "holds"), [
    ("cpu", 0.6931, True), ("cpu", 0.6961, False), ("cuda", 0.6961, True), ("cuda", 0.6891, True),
    ("cuda", 0.604, False), ("cuda", 0.704, False), ("cpu", math.nan, False), ("cuda", math.nan, False)])
def test_first_loss_has_room_for_a_gpus_kernels_alone(main, device, loss, holds):
    """Kernels that differ by 2e-3 pass on a GPU, dropout passes nowhere."""
    arguments = SimpleNamespace(device=SimpleNamespace(type=device)), SimpleNamespace(global_step=1), None
    if holds:
        main.FirstLossIsLn2().on_log(*arguments, logs={"loss": loss})
    else:
        with pytest.raises(RuntimeError, match="not ln 2"):
            main.FirstLossIsLn2().on_log(*arguments, logs={"loss": loss})


# ---- memory

@pytest.mark.parametrize(("memory", "rows"), [(7.6, 8), (11.75, 16), (14.56, 16), (22.0, 32), (39.4, 64), (79.1, 128)])
def test_rows_follow_from_the_cards_memory(main, settings, cuda, memory, rows):  # noqa: F811
    """OPT-350M: what the formula allows leaves a tenth of the card free by the measured 34 bytes, and is not timid."""
    cuda((8, 0), memory)
    assert main.device_memory() == int(memory * GIB)
    assert main.rows_that_fit(OPT_350M, settings, main.device_memory()) == rows
    peak = (331e6 * 4 + rows * 512 * 34 * 24 * 1024) / GIB + 1
    assert 0.3 * memory < peak < 0.9 * memory


def test_rows_of_full_fine_tuning_and_of_cpus(main, settings, cuda, monkeypatch):  # noqa: F811
    """Trained weights cost sixteen bytes each; a CPU computes in fp32 and holds logits; one text always goes."""
    on_cpu = main.rows_that_fit(OPT_350M, settings, 24 * GIB)
    cuda()
    lora, full = (main.rows_that_fit(OPT_350M, settings | {"sft_method": method}, 11.75 * GIB)
                  for method in ("lora", "full"))
    assert (on_cpu, lora, full) == (8, 16, 8)
    assert main.rows_that_fit(OPT_350M, settings, GIB) == 1


@pytest.mark.parametrize(("rows", "passes"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 4)), (16, (16, 8)), (1024, (16, 16))])
def test_step_has_as_many_pairs_however_many_fit(main, settings, rows, passes):  # noqa: F811
    """The effective batch is the setting's; DPO's pairs are two texts each."""
    for stage, pairs_in_pass in zip(("sft", "dpo"), passes):
        options = main.trainer_options(stage, settings | {"batch_size": 16}, rows)
        assert options["per_device_train_batch_size"] == pairs_in_pass
        assert options["per_device_train_batch_size"] * options["gradient_accumulation_steps"] == 16


def out_of_memory():
    """Raise what torch raises on a GPU whose memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1.00 GiB in all.")


@pytest.mark.parametrize("fits", [1, 2])
def test_stage_that_runs_out_of_memory_goes_on_with_less(main, settings, tokenizer, tmp_path, make_trainer,  # noqa: F811
                                                         capsys, monkeypatch, fits):
    """Rows are halved until they fit, from the last checkpoint on; steps and pairs in a step stay the same."""
    tried = []
    monkeypatch.setattr(main, "rows_that_fit", lambda *arguments: 4)

    def small_card(folder, rows):
        trainer = make_trainer(folder, rows)
        save_every_step(trainer)
        step = trainer.training_step
        tried.append((rows, trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps))
        full = rows > fits
        trainer.training_step = lambda *inputs: out_of_memory() if full and trainer.state.global_step else step(*inputs)
        return trainer

    made = train(main, settings, tokenizer, tmp_path, small_card)
    assert tried == [(rows, 4) for rows in (4, 2, 1) if rows >= fits]
    assert max(record["step"] for record in made["log"]) == 4
    said = capsys.readouterr().out
    assert said.count("Out of memory. Once more, with") == len(tried) - 1
    assert load(tmp_path / "adapters" / "sft" / "made.json")["made_from"] == MADE["made_from"]


def test_one_text_too_many_is_said(main, monkeypatch):
    """Where not even one text fits, or several processes would no longer agree, torch's own error stays."""
    with pytest.raises(torch.OutOfMemoryError):
        main.halve_until_it_fits(lambda rows: out_of_memory(), 4)
    monkeypatch.setattr(main, "PartialState", lambda: SimpleNamespace(num_processes=2))
    tried = []
    with pytest.raises(torch.OutOfMemoryError):
        main.halve_until_it_fits(lambda rows: tried.append(rows) or out_of_memory(), 4)
    assert tried == [4]
    with pytest.raises(RuntimeError, match="something else"):
        main.halve_until_it_fits(lambda rows: (_ for _ in ()).throw(RuntimeError("something else")), 4)


def test_batch_that_runs_out_of_memory_is_done_in_halves(evaluation, tmp_path, capsys):
    """Generation and judging too: every index once, in the end in their order."""
    sizes = []

    def small_card(batch):
        sizes.append(len(batch))
        return [(i, i * 2) for i in batch] if len(batch) <= 2 else out_of_memory()

    assert evaluation.map_batches(small_card, [[3, 1, 0, 2, 4]], "x", tmp_path) == [0, 2, 4, 6, 8]
    assert sizes == [5, 2, 3, 1, 2]
    assert "Out of memory with 5 texts at once" in capsys.readouterr().out
    with pytest.raises(torch.OutOfMemoryError):
        evaluation.map_batches(lambda batch: out_of_memory(), [[0]], "y", tmp_path)


def test_model_of_a_finished_stage_is_freed(main, settings, tokenizer, tmp_path, make_trainer):  # noqa: F811
    """Once a stage is done nothing of its trainer, model or optimizer is left in memory."""
    left = []

    def watched(folder, rows):
        trainer = make_trainer(folder, rows)
        left.extend((weakref.ref(trainer), weakref.ref(trainer.model)))
        return trainer

    train(main, settings, tokenizer, tmp_path, watched)
    assert [one() for one in left] == [None, None]


def test_texts_are_tokenised_in_parts(main, tokenizer):
    """All texts at once would hold gigabytes of tokens; in parts the lengths are the same."""
    calls = []

    class Watched:
        eos_token = tokenizer.eos_token

        def __call__(self, texts, **options):
            calls.append(len(texts))
            return tokenizer(texts, **options)

    many = [pair | {"subset": "s"} for pair in PAIRS] * 300
    fitting = main.fit_pairs(many, Watched(), 512, set(), {"s": {}})
    assert max(calls) <= 1000
    assert fitting == main.fit_pairs(many, tokenizer, 512, set(), {"s": {}})
    assert len(fitting) == 2400


# ---- the device that torch does not see

@pytest.mark.parametrize("tool", [None, "/usr/bin/nvidia-smi"])
def test_auto_says_that_a_card_cannot_be_used(main, monkeypatch, capsys, tool):
    """An NVIDIA device with a driver too old for this torch: the demo runs, and says why."""
    monkeypatch.setattr(main.shutil, "which", lambda name: tool)
    assert main.choose_preset("auto") == "demo"
    assert ("has an NVIDIA device, but torch" in capsys.readouterr().out) == bool(tool)


# ---- a drive

@pytest.mark.parametrize(("minutes", "expected"), [(0, [0, 10, 20, 30]), (10, [])])
def test_checkpoints_come_by_time(main, settings, tokenizer, pairs, tmp_path, minutes, expected):  # noqa: F811
    """They are written when they are due, with a log record, and at most the two newest are there."""
    seen = []

    class Seen(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(state.global_step)
            assert len(list(tmp_path.glob("checkpoint-*"))) <= 2

    longer = settings | {"sft_epochs": 16}
    trainer = main.sft_trainer(longer, tokenizer, pairs, pairs[:2], tmp_path, 8)
    trainer.add_callback(main.Checkpoints(BEGUN, minutes))
    trainer.add_callback(Seen())
    trainer.train()
    assert seen == expected[1:]
    assert len(list(tmp_path.glob("checkpoint-*"))) == min(2, len(seen))


def test_files_are_emptied_before_they_are_removed(main, tmp_path, monkeypatch):
    """Google Drive keeps what is deleted in its trash, and counts it."""
    folder = tmp_path / "checkpoints" / "sft" / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(1000))
    remove, sizes = shutil.rmtree, []

    def watched(path, **options):
        sizes.extend(file.stat().st_size for file in path.rglob("*") if file.is_file())
        remove(path, **options)

    monkeypatch.setattr(main.shutil, "rmtree", watched)
    main.remove(tmp_path / "checkpoints")
    assert sizes == [0]
    assert not (tmp_path / "checkpoints").exists()
    main.remove(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS])
def test_file_system_without_locks(main, tmp_path, monkeypatch, capsys, number):
    """Some network drives know no locks: that is said, and the run goes on."""
    def flock(file, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr("fcntl.flock", flock)
    main.lock_run(tmp_path / "run").release(force=True)
    assert capsys.readouterr().out.count("knows no locks: make sure that only one process works in it") == 1


def test_figures_lie_beside_the_results(main):
    """On Drive too, where no other place is set."""
    assert main.place_figures(None, "results").as_posix() == "figures"
    assert main.place_figures(None, "/content/drive/MyDrive/results").as_posix() == "/content/drive/MyDrive/figures"
    assert main.place_figures("pictures", "results").as_posix() == "pictures"


@pytest.mark.parametrize(("results", "figures", "mounted"), [
    ("results", None, False), ("/content/drive/MyDrive/results", None, True), ("results", "/content/drive/x", True)])
def test_drive_is_mounted_where_a_folder_lies_there(monkeypatch, results, figures, mounted):
    """In Colab, and for either of the two folders."""
    places = []
    colab, drive = types.ModuleType("google.colab"), types.ModuleType("google.colab.drive")
    drive.mount = places.append
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    (cell,) = (source for source in code_cells(ROOT / "main.ipynb").values() if ".mount(" in source)
    exec(cell, {"sys": sys, "importlib": importlib, "RESULTS": results, "FIGURES": figures})
    assert places == ["/content/drive"] * mounted


@pytest.mark.parametrize("name", ["main.ipynb", "eval.ipynb"])
def test_install_cell_of_colab(name, monkeypatch):
    """What is missing or another version is installed, torch is held; a distribution without a name does no harm."""
    installed = {"torch": "2.99.0", "numpy": "2.0.0", "trl": "1.16.0", "transformers": "4.0.0", None: "1"}
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    for module in ("transformers", "peft", "datasets", "accelerate", "sentencepiece", "protobuf", "huggingface_hub",
                   "filelock"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [
        SimpleNamespace(name=name, version=version) for name, version in installed.items()])
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[2:]))
    exec(code_cells(ROOT / name)[1], {})
    (command,) = commands
    assert command[:2] == ["pip", "install"]
    assert {"transformers==5.23.0", "protobuf==7.36.2", "torch==2.99.0", "numpy==2.0.0"} <= set(command)
    assert "trl==1.16.0" not in command
    assert json.dumps(command)
