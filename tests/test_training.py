"""Training: finished models are reused, stopped ones continue exactly, and results are checked."""

import math
import os
import shutil
import signal
import subprocess
import weakref
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest
import small_models
import torch
from conftest import load
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from small_runs import OPT, copy_run
from small_trainers import (
    BASE,
    LORA,
    StopBefore,
    Stopped,
    StopWithin,
    begin_run,
    define,
    make_dpo,
    make_sft,
    make_sft_dpo,
    pairs,
    tokenizer,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_models import write_pickle
from transformers import OPTConfig, TrainerCallback
from trl import DPOTrainer

from posttrain import callbacks, checkpoints, device, models, packing, sharing, training
from posttrain.checkpoints import Checkpoints, last_checkpoint
from posttrain.models import PROBES, logits_of
from posttrain.pair_trainer import PairTrainer
from posttrain.training import train

MAKERS = {
    "SFT": lambda run, **changes: make_sft(**changes),
    "DPO": lambda run, **changes: make_dpo(**changes),
    "SFT+DPO": make_sft_dpo,
}
ADAPTERS = {"SFT": "adapters/sft", "DPO": "adapters/dpo", "SFT+DPO": "adapters/sft_dpo"}
WEIGHTS = "adapter_model.safetensors"
LN2 = math.log(2)


def stopped(monkeypatch, stop, make, run, name, **changes):
    """Train until a callback stops it; without the callback the trainer is the same."""

    class Stopping(Checkpoints):
        def on_step_begin(self, *args, **kwargs):
            stop.on_step_begin(*args, **kwargs)

        def on_optimizer_step(self, *args, **kwargs):
            if hasattr(stop, "on_optimizer_step"):
                stop.on_optimizer_step(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(training, "Checkpoints", Stopping)
        train(make(run, **changes), run, name)


def results_of(run, name):
    """Collect everything that must be the same when a model is trained again."""
    artifact = run.record.artifacts[ADAPTERS[name]]
    return {
        "weights": (run.folder / ADAPTERS[name] / WEIGHTS).read_bytes(),
        "log": (run.folder / ADAPTERS[name] / "log.json").read_bytes(),
        "training": load(run.folder / "training.json")[name],
        "sha256": artifact.sha256,
        "inputs": artifact.inputs,
        "model": next(model for model in run.models if model.name == name),
    }


@pytest.fixture(scope="module")
def saved():
    """What each model was like when it was saved: {(run's folder, name): logits and more}."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def all_layers_are_large():
    """Let these small models be trained from rearranged weights, as large ones are in fp32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LARGE", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, saved):
    """A run whose three models were trained without interruption. Do not change it."""
    run = begin_run(tmp_path_factory.mktemp("whole"))
    logs = {}
    save_trained = training.save_trained

    def watched(model, folder, *arguments):
        saved[folder.name.removesuffix(".tmp")] = logits_of(model, tokenizer(), PROBES)
        if "ref" in model.peft_config:
            model.set_adapter("ref")
            saved["reference"] = logits_of(model, tokenizer(), PROBES)
            model.set_adapter("default")
        save_trained(model, folder, *arguments)

    training.save_trained = watched
    try:
        for name, make in MAKERS.items():
            logs[name] = train(make(run), run, name)
    finally:
        training.save_trained = save_trained
    return SimpleNamespace(run=run, logs=logs)


# ---- a model that is there


def forbid_training(monkeypatch):
    """Let every training fail."""

    def fail(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "_train_and_save", fail)


@pytest.mark.parametrize("name", MAKERS)
def test_model_that_is_there_is_not_trained_again(whole, monkeypatch, name):
    """An equal trainer returns the log, and its memory is freed."""
    forbid_training(monkeypatch)
    before = (whole.run.folder / "run.json").read_bytes()
    trainer = MAKERS[name](whole.run)
    assert train(trainer, whole.run, name) == whole.logs[name]
    assert trainer.model is None
    assert (whole.run.folder / "run.json").read_bytes() == before


def test_edited_trainer_is_refused_with_both_values_and_what_to_do(whole):
    """The message names the argument."""
    message = (
        "adapters/sft was made with learning_rate = 0.001, but now it is 0.002. Set it back, "
        r"give the model another name in train\(...\), choose another RUN, or set FRESH = True"
    )
    with pytest.raises(ValueError, match=message):
        train(make_sft(learning_rate=2e-3), whole.run, "SFT")
    with pytest.raises(ValueError, match="adapters/dpo was made with beta = 0.1, but now it"):
        train(make_dpo(beta=0.3), whole.run, "DPO")


def test_trainer_of_another_model_is_refused(whole):
    with pytest.raises(ValueError, match="adapters/dpo was made with loss_type = .'sigmoid'.*nll"):
        train(make_sft(), whole.run, "DPO")
    with pytest.raises(ValueError, match="adapters/sft_dpo was made with "):
        train(make_dpo(), whole.run, "SFT+DPO")


def test_another_name_trains_another_model(whole, tmp_path):
    """The first model stays as it is."""
    run = copy_run(whole.run, tmp_path)
    before = results_of(run, "SFT")
    log = train(make_sft(learning_rate=2e-3, max_steps=1), run, "SFT 2")
    assert [model.name for model in run.models] == ["Base", "SFT", "DPO", "SFT+DPO", "SFT 2"]
    assert run.models[-1].adapter == "adapters/sft_2"
    assert load(run.folder / "training.json")["SFT 2"] == log != whole.logs["SFT"]
    assert results_of(run, "SFT") == before


@pytest.mark.parametrize("name", ["Base", "sft", "Human chosen"])
def test_name_that_a_model_cannot_have_is_refused_before_it_is_trained(whole, monkeypatch, name):
    forbid_training(monkeypatch)
    with pytest.raises(ValueError, match="[Nn]ame"):
        train(make_sft(learning_rate=3e-3), whole.run, name)


def test_changed_files_of_a_model_are_refused(whole, tmp_path):
    run = copy_run(whole.run, tmp_path)
    path = run.folder / "adapters" / "dpo" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="adapters/dpo was changed or truncated"):
        train(make_dpo(), run, "DPO")


def test_base_other_than_the_runs_is_refused_before_training(whole, monkeypatch, tmp_path):
    forbid_training(monkeypatch)
    models.load_base(OPT).save_pretrained(tmp_path)
    trainer = make_sft(model=models.load_base(tmp_path))
    message = f"another base than the run, whose base is {BASE}.*another RUN"
    with pytest.raises(ValueError, match=message):
        train(trainer, whole.run, "Other")


# ---- a trainer that is spent


@pytest.fixture(scope="module")
def spent(tmp_path_factory):
    """A trainer after its only step, its run, its log, and what is left of its memory."""
    run = begin_run(tmp_path_factory.mktemp("spent"))
    trainer = make_dpo(max_steps=1, eval_on_start=False)
    held = [weakref.ref(trainer.model), weakref.ref(trainer.model.base_model)]
    held += [weakref.ref(weight) for weight in list(trainer.model.parameters())[:3]]
    log = train(trainer, run, "DPO")
    return SimpleNamespace(trainer=trainer, run=run, log=log, held=held)


def test_memory_of_a_spent_trainer_is_freed(spent):
    """Model and optimizer are gone, although the notebook still has the trainer."""
    trainer = spent.trainer
    assert (trainer.model, trainer.optimizer, trainer.lr_scheduler) == (None, None, None)
    assert [reference() for reference in spent.held] == [None] * len(spent.held)


def test_spent_trainer_gives_back_its_log(spent, monkeypatch):
    forbid_training(monkeypatch)
    assert train(spent.trainer, spent.run, "DPO") == spent.log


def test_spent_trainer_does_not_train_another_model(spent, tmp_path):
    message = "has been trained before. Build a new one for IPO by running the whole"
    with pytest.raises(ValueError, match=message):
        train(spent.trainer, spent.run, "IPO")
    run = copy_run(spent.run, tmp_path)
    shutil.rmtree(run.folder / "adapters")
    with pytest.raises(ValueError, match="Build a new one for DPO"):
        train(spent.trainer, run, "DPO")
    with pytest.raises(ValueError, match="Build a new one for DPO"):
        train(spent.trainer, begin_run(tmp_path, "fresh"), "DPO")


def test_trainer_that_was_stopped_is_not_trained_on(tmp_path, monkeypatch):
    """Its weights have changed, which nobody could notice with full fine-tuning."""
    run = begin_run(tmp_path)
    trainer = make_sft(lora=None)
    stopped(monkeypatch, StopBefore(2), lambda run: trainer, run, "SFT")
    with pytest.raises(ValueError, match="continues from its last checkpoint"):
        train(trainer, run, "SFT")
    trained_elsewhere = make_sft(max_steps=1, eval_on_start=False)
    trained_elsewhere.train()
    with pytest.raises(ValueError, match="trained before"):
        train(trained_elsewhere, run, "SFT")


def test_best_checkpoint_is_not_promised(whole):
    """Only the two newest checkpoints are kept."""
    trainer = make_sft()
    trainer.args.load_best_model_at_end = True
    with pytest.raises(ValueError, match="load_best_model_at_end .*Set it to False"):
        train(trainer, whole.run, "SFT")


# ---- gone on with, to the bit


@pytest.mark.parametrize("name", MAKERS)
def test_training_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    whole, tmp_path, monkeypatch, name
):
    """It stops in the first epoch, after its validation, and in the second epoch."""
    run = copy_run(whole.run, tmp_path) if name == "SFT+DPO" else begin_run(tmp_path)
    run.forget(ADAPTERS[name])
    for stop in (StopBefore(2), StopBefore(4), StopWithin(6)):
        stopped(monkeypatch, stop, MAKERS[name], run, name)
    steps = [path.name for path in checkpoints.list_checkpoints(run.path(place_of(name)))]
    assert steps == ["checkpoint-5", "checkpoint-4"]
    log = train(MAKERS[name](run), run, name)
    assert log == whole.logs[name]
    assert results_of(run, name) == results_of(whole.run, name)
    validated = [record["step"] for record in log if "eval_loss" in record]
    assert validated == [0, 3, 6]
    # how long all of it took is not known
    assert run.record.artifacts[ADAPTERS[name]].seconds is None
    assert whole.run.record.artifacts[ADAPTERS[name]].seconds > 0


def place_of(name):
    """Return the folder of a model's checkpoints."""
    return ADAPTERS[name].replace("adapters", "checkpoints")


OTHER_WAYS = {
    "means over two steps": ({"logging_steps": 2}, StopBefore(6), 4),
    "a share of steps": ({"save_steps": 0.3, "logging_steps": 0.3}, StopBefore(4), 2),
    "checkpoints at epochs": ({"save_strategy": "epoch"}, StopBefore(5), 3),
    "logs at epochs": ({"logging_strategy": "epoch"}, StopBefore(5), 4),
    "validation at steps": (
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},
        StopBefore(6),
        4,
    ),
    "an epoch and a half": ({"num_train_epochs": 1.5}, StopBefore(5), 4),
    "so many steps": ({"max_steps": 4}, StopBefore(4), 3),
    "dropout in the base": (
        {"model": 0.1, "train_sampling_strategy": "random"},
        StopBefore(5),
        4,
    ),
    "all weights": ({"lora": None}, StopBefore(5), 4),
    "dropout and validation at steps": (
        {"model": 0.1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2},
        StopBefore(6),
        4,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_of_training_are_gone_on_with_to_the_bit(tmp_path, monkeypatch, way):
    changes, stop, step = OTHER_WAYS[way]

    def make(run, model=None, **changes):
        model = models.load_base(OPT, dropout=model or 0.0)
        return make_sft(model=model, **changes)

    runs = [begin_run(tmp_path / part) for part in ("whole", "stopped")]
    logs = [train(make(runs[0], **changes), runs[0], "SFT")]
    stopped(monkeypatch, stop, make, runs[1], "SFT", **changes)
    newest = checkpoints.list_checkpoints(runs[1].path("checkpoints/sft"))[0]
    assert newest.name == f"checkpoint-{step}"
    logs.append(train(make(runs[1], **changes), runs[1], "SFT"))
    assert logs[0] == logs[1]
    artifacts = []
    for run in runs:
        artifacts += [entry.sha256 for entry in run.record.artifacts.values()]
    assert len(artifacts) == 2
    assert artifacts[0] == artifacts[1]


def test_validations_come_at_the_ends_of_epochs_and_of_the_training(tmp_path):
    """This is so even if the last epoch is not complete."""
    run = begin_run(tmp_path)
    log = train(make_sft(max_steps=4, eval_on_start=False), run, "SFT")
    assert [record["step"] for record in log if "eval_loss" in record] == [3, 4]


def test_validations_at_steps_include_the_last_step(tmp_path):
    """A share of the steps is rounded up, so the last validation would be missing."""
    run = begin_run(tmp_path)
    changes = {"eval_strategy": "steps", "eval_steps": 0.4, "eval_on_start": False}
    log = train(make_sft(max_steps=5, **changes), run, "SFT")
    assert [record["step"] for record in log if "eval_loss" in record] == [2, 4, 5]


def test_a_frozen_copy_of_an_adapter_is_not_counted():
    """The reference of SFT+DPO is a copy of SFT's adapter, which is no part of the model."""
    trainer = make_dpo()
    alone = training.count_trainable(trainer.model)
    assert alone.startswith("18,432 of 663,232 ")
    trainer.model.add_adapter("ref", trainer.model.peft_config["default"])
    assert training.count_trainable(trainer.model) == alone


@pytest.mark.slow
def test_dpo_under_dropout_is_gone_on_with_to_the_bit(tmp_path, monkeypatch):
    """The preset `paper` trains like this; its first loss is not ln 2 and is not checked."""

    def make(run):
        model = models.load_base(OPT, dropout=0.1)
        return make_dpo(model=model, constructor={"share_prompts": False})

    logs = []
    for steps in ((), (3, 5)):
        run = begin_run(tmp_path / str(len(steps)))
        monkeypatch.setattr(callbacks.FirstLoss, "on_log", lambda *arguments, **options: None)
        for step in steps:
            stopped(monkeypatch, StopBefore(step), make, run, "DPO")
        logs.append(train(make(run), run, "DPO", check_first_loss=False))
    assert logs[0] == logs[1]


# ---- killed, which no exception handler sees

MOMENTS = {
    "a checkpoint is begun": ("transformers.Trainer._save_optimizer_and_scheduler", 3),
    "a checkpoint is all but whole": ("transformers.TrainerState.save_to_json", 4),
    "a checkpoint is not yet in the record": ("posttrain.run.Run.seal", 2),
    "an old checkpoint is being removed": ("posttrain.run.shutil.rmtree", 1),
    "the model is being saved": ("posttrain.training.save_trained", 1),
    "the model's log is being written": ("posttrain.training.write", 1),
    "the model is in the record and has no folder yet": ("pathlib.Path.replace", -1),
    "the model is in no list yet": ("posttrain.run.Run.add_model", 1),
    "its checkpoints are being removed": ("posttrain.run.Run.forget", -1),
    "its log is being written": ("posttrain.training.write", 2),
}


def kill_when(patch, target, count, run):
    """Kill this process when a function is called for the n-th time.

    With -1 it is when the model has been entered into the record.
    """
    original = resolve_name(target)
    calls = []

    def deadly(*arguments, **options):
        calls.append(target)
        is_entered = "adapters/sft" in run.record.artifacts
        if len(calls) == count or count == -1 and is_entered:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    patch.setattr(target, deadly)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_training_ends_as_one_that_is_not(whole, tmp_path, monkeypatch, moment):
    """It is trained in a process of its own and killed by SIGKILL."""
    run = begin_run(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            kill_when(monkeypatch, *MOMENTS[moment], run)
            train(make_sft(), run, "SFT")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert train(make_sft(), run, "SFT") == whole.logs["SFT"]
    assert results_of(run, "SFT") == results_of(whole.run, "SFT")
    assert [model.name for model in run.models] == ["Base", "SFT"]
    left = [path.name for path in run.folder.iterdir() if not path.name.startswith(".")]
    assert sorted(left) == ["adapters", "run.json", "training.json"]
    assert list(run.record.artifacts) == ["adapters/sft"]
    assert not list(run.folder.rglob("*.tmp"))


# ---- checkpoints


@pytest.mark.parametrize(("save_steps", "expected"), [(0.1, [2, 4, 6, 8]), (3, [4, 8])])
def test_checkpoints_are_few_and_come_with_a_log(tmp_path, monkeypatch, save_steps, expected):
    """They are at multiples of `logging_steps`; two are kept, and none at the end."""
    run = begin_run(tmp_path)
    seen = []

    class Watched(Checkpoints):
        def on_save(self, args, state, control, **kwargs):
            super().on_save(args, state, control, **kwargs)
            entries = [name for name in self.run.record.artifacts if name.startswith(self.place)]
            folders = [path.name for path in self.run.path(self.place).glob("checkpoint-*")]
            assert sorted(folders) == sorted(name.rsplit("/", 1)[-1] for name in entries)
            assert all(self.run.is_whole(name) for name in entries)
            assert state.log_history[-1]["step"] == state.global_step
            seen.append([state.global_step, len(folders)])

    monkeypatch.setattr(training, "Checkpoints", Watched)
    changes = {"num_train_epochs": 3, "logging_steps": 2, "eval_strategy": "no"}
    log = train(make_sft(**changes, save_steps=save_steps, eval_on_start=False), run, "SFT")
    assert [record["step"] for record in log if "loss" in record] == [1, 2, 4, 6, 8]
    assert seen == [[step, min(2, place + 1)] for place, step in enumerate(expected)]
    assert not run.path("checkpoints").exists()
    assert list(run.record.artifacts) == ["adapters/sft"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run whose SFT was stopped with the checkpoints 2 and 3. Do not change it."""
    run = begin_run(tmp_path_factory.mktemp("interrupted"))
    with pytest.MonkeyPatch.context() as patch:
        stopped(patch, StopBefore(4), MAKERS["SFT"], run, "SFT")
    return run


@pytest.fixture
def stopped_run(interrupted, tmp_path):
    """A copy of the interrupted run."""
    return copy_run(interrupted, tmp_path)


PLACE = "checkpoints/sft"


def inputs_of(run, name=f"{PLACE}/checkpoint-3"):
    """Return the inputs of a checkpoint and how it was computed."""
    inputs = dict(run.record.artifacts[name].inputs)
    return inputs, inputs.pop("computing")


def find(run, **computing):
    """Find the newest complete checkpoint."""
    inputs, then = inputs_of(run)
    return last_checkpoint(run, PLACE, inputs, {**then, **computing})


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", WEIGHTS, "trainer_state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_checkpoint_that_is_not_whole_is_named_and_not_used(stopped_run, capsys, name, damage):
    """If anything is missing, empty, truncated or changed, the checkpoint before is used."""
    path = stopped_run.path(PLACE) / "checkpoint-3" / name
    content = path.read_bytes()
    path.unlink()
    changed = content.replace(content[50:52], b"\x00\x01")
    damaged = {"empty": b"", "cut": content[: len(content) // 2], "changed": changed}
    if damage != "missing":
        path.write_bytes(damaged[damage])
    assert find(stopped_run) == stopped_run.path(PLACE) / "checkpoint-2"
    assert "checkpoint-3 is incomplete or was changed. The training" in capsys.readouterr().out
    assert not path.parent.exists()
    assert f"{PLACE}/checkpoint-3" not in stopped_run.record.artifacts


def test_checkpoint_that_is_not_in_the_record_is_not_used(stopped_run):
    """It was being written when the process was killed; stray files do no harm."""
    folder = stopped_run.path(PLACE)
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-4")
    (folder / "checkpoint-3" / ".DS_Store").write_bytes(b"x")
    assert find(stopped_run) == folder / "checkpoint-3"
    assert not (folder / "checkpoint-4").exists()


def test_damaged_checkpoints_end_in_the_same_model(whole, stopped_run, capsys):
    (stopped_run.path(PLACE) / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    assert train(make_sft(), stopped_run, "SFT") == whole.logs["SFT"]
    assert "checkpoint-3 is incomplete" in capsys.readouterr().out
    assert results_of(stopped_run, "SFT") == results_of(whole.run, "SFT")


def test_none_is_found_where_there_is_none(stopped_run):
    inputs, computing = inputs_of(stopped_run)
    assert last_checkpoint(stopped_run, "checkpoints/dpo", inputs, computing) is None


def test_checkpoint_of_another_trainer_is_refused(stopped_run):
    """It is kept, and the message names the argument."""
    message = "checkpoint-3 was made with seed = 0, but now it is 1. Set it back, give the mod"
    with pytest.raises(ValueError, match=message):
        train(make_sft(seed=1), stopped_run, "SFT")
    assert stopped_run.is_whole(f"{PLACE}/checkpoint-3")


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [("precision", "fp32", "fp16"), ("device", "cpu", "cuda")],
)
def test_checkpoint_that_was_computed_otherwise_is_refused(stopped_run, name, then, now):
    message = f"checkpoint-3 was trained with {name} = {then!r}, but here {name} is {now!r}.*remove"
    with pytest.raises(ValueError, match=message):
        find(stopped_run, **{name: now})
    assert stopped_run.is_whole(f"{PLACE}/checkpoint-3")


def test_type_of_the_weights_binds_a_checkpoint_and_no_finished_model(whole, stopped_run):
    def make():
        return make_sft(model=models.load_base(OPT, dtype=torch.bfloat16))

    with pytest.raises(ValueError, match="weights = 'float32', but here weights is 'bfloat16'"):
        train(make(), stopped_run, "SFT")
    assert train(make(), whole.run, "SFT") == whole.logs["SFT"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickle_in_a_checkpoint_does_not_run(stopped_run, tmp_path, name):
    """A foreign checkpoint whose pickles contain more than data is refused by name."""
    seal_pickle(stopped_run, name, tmp_path)
    with pytest.raises(ValueError, match="checkpoint-3 contains objects .*Move this folder away"):
        train(make_sft(), stopped_run, "SFT")
    assert not (tmp_path / "ran").exists()


def test_pickled_arguments_are_never_read(whole, stopped_run, tmp_path):
    """The trainer writes them."""
    seal_pickle(stopped_run, "training_args.bin", tmp_path)
    assert train(make_sft(), stopped_run, "SFT") == whole.logs["SFT"]
    assert not (tmp_path / "ran").exists()


def seal_pickle(run, name, folder):
    """Put a pickle that executes code into a checkpoint, and enter it into the record."""
    inputs, computing = inputs_of(run)
    write_pickle(run.path(PLACE) / "checkpoint-3" / name, folder / "ran")
    run.seal(f"{PLACE}/checkpoint-3", {**inputs, "computing": computing})


# ---- passes


def test_training_after_a_trial_is_that_without_one(whole, tmp_path, monkeypatch):
    """Trying passes, even one that does not fit, leaves no trace."""
    run = begin_run(tmp_path)
    monkeypatch.setattr(device, "_estimate_pass", device._try_passes)
    tried = []
    fits = device.fits
    monkeypatch.setattr(device, "fits", lambda *args: tried.append(args[1]) or fits(*args))
    for name in ("SFT", "DPO"):
        assert train(MAKERS[name](run), run, name) == whole.logs[name]
        assert results_of(run, name) == results_of(whole.run, name)
    assert tried == [16, 16]


@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_pass_changes_neither_the_steps_nor_their_pairs(tmp_path, monkeypatch, name):
    """The weights agree up to rounding, even after a last step of fourteen pairs."""
    weights, logs = [], []
    for pairs_in_a_pass in (16, 4):
        run = begin_run(tmp_path / str(pairs_in_a_pass))
        monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer, it=pairs_in_a_pass: it)
        changes = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        changes |= {"lora": {**LORA, "lora_dropout": 0.0}, "num_train_epochs": 1}
        logs.append(train(MAKERS[name](run, **changes), run, name))
        path = run.folder / ADAPTERS[name]
        adapted = PeftModel.from_pretrained(models.load_base(OPT), path)
        weights.append({key: value for key, value in adapted.state_dict().items() if "lora" in key})
    assert len(weights[0]) > 10
    differences = [(weights[1][key] - value).abs().flatten() for key, value in weights[0].items()]
    differences = torch.cat(differences)
    # A rounding error that switches a unit of a ReLU on or off moves a few weights further.
    assert (differences > 1e-5).float().mean() < 0.01
    assert differences.max() < 1e-3
    steps = [[record["step"] for record in log] for log in logs]
    assert steps[0] == steps[1]
    losses = [[record["loss"] for record in log if "loss" in record] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_that_goes_on_takes_the_checkpoints_pass(tmp_path, monkeypatch):
    """This is so even if another pass would fit now."""
    results = []
    for is_stopped in (False, True):
        run = begin_run(tmp_path / str(is_stopped))
        monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer: 4)
        if is_stopped:
            stopped(monkeypatch, StopBefore(3), MAKERS["DPO"], run, "DPO")
            entry = run.record.artifacts["checkpoints/dpo/checkpoint-2"]
            assert entry.inputs["computing"]["pairs_in_a_pass"] == 4
            monkeypatch.setattr(device, "_pairs_on_cpu", lambda trainer: 16)
        train(make_dpo(), run, "DPO")
        results.append(results_of(run, "DPO"))
    assert results[0] == results[1]


def test_memory_that_ends_is_no_end(tmp_path, monkeypatch, capsys):
    """With a pass that fits, the training takes the same steps."""
    run = begin_run(tmp_path)
    monkeypatch.setattr(device, "_estimate_pass", device._try_passes)
    trainer = make_sft(max_steps=1)
    compute_loss = trainer.compute_loss
    rows = []

    def limited(model, inputs, *args, **kwargs):
        rows.append(len(inputs["input_ids"]))
        if rows[-1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", limited)
    log = train(trainer, run, "SFT")
    trial_and_step = [count for count in rows if count > 1]  # held-out pairs are read one by one
    assert trial_and_step == [16, 8, 4, 4, 4, 4, 4]
    assert max(record["step"] for record in log) == 1
    assert "A pass of 8 pairs does not fit" in capsys.readouterr().out


def test_memory_that_ends_after_all_ends_the_training(tmp_path, monkeypatch):
    """The trainer's own solution would take fewer pairs in a step."""
    run = begin_run(tmp_path)
    trainer = make_sft(auto_find_batch_size=True)
    steps = []

    def fail(*args, **kwargs):
        steps.append(trainer._train_batch_size)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer, "training_step", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train(trainer, run, "SFT")
    assert steps == [16]


# ---- the first loss, and losses that are no numbers


def first(records, key):
    """Return the first value of a log under a key."""
    return next(record[key] for record in records if key in record)


@pytest.mark.parametrize("name", ["DPO", "SFT+DPO"])
def test_first_dpo_loss_is_ln2(whole, name):
    """Policy and reference are equal at first, in training and in validation."""
    log = whole.logs[name]
    assert first(log, "loss") == pytest.approx(LN2, abs=1e-6)
    assert first(log, "eval_loss") == pytest.approx(LN2, abs=1e-6)
    assert first(log, "rewards/margins") == pytest.approx(0, abs=1e-6)


# At β = 0.1 and a label smoothing of 0.1
LOSSES = {
    "sigmoid": LN2,
    "exo_pair": math.log(0.5 / 0.3),
    "robust": LN2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "sigmoid_norm": LN2,
    "hinge": 1,
    "apo_zero": 1,
    "apo_down": 1,
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    "ipo": 25,
    "sppo_hard": 50,
    "discopop": 0.8466,
    "sft": None,
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_first_loss_of_every_kind_is_what_is_expected(loss_type):
    trainer = make_dpo(loss_type=loss_type, label_smoothing=0.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    expected = callbacks.expected_first_loss(trainer)
    if loss_type == "sft":  # the loss of the base on the chosen replies
        assert expected is None and loss > 1
    else:
        assert loss == pytest.approx(expected, rel=1e-5)
        assert expected == pytest.approx(LOSSES[loss_type], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss_type": "ipo", "beta": 0.5}, 1),
        ({"loss_type": "sppo_hard", "beta": 0.5}, 2),
        ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, 2.7612),
        ({"loss_type": "robust", "label_smoothing": 0.4}, LN2),
        ({"loss_type": "aot", "label_smoothing": 0.3}, LN2),
        ({"loss_weights": [0.5]}, LN2 / 2),
        ({"loss_type": ["hinge", "ipo", "sigmoid"], "loss_weights": [2, 0.1, 1]}, 4.5 + LN2),
        ({"loss_type": ["hinge", "apo_down"]}, 2),
    ],
)
def test_first_loss_follows_beta_smoothing_and_weights(changes, expected):
    trainer = make_dpo(**changes)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
    assert callbacks.expected_first_loss(trainer) == pytest.approx(expected, rel=1e-4)
    assert loss == pytest.approx(expected, rel=1e-4)


OWN_LOSS = """
class Mine(Trainer):
    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)
"""


def test_first_loss_that_is_not_known_is_not_checked():
    """This covers SFT, other references, losses of the model, weighted pairs, a notebook's loss."""
    own = define(OWN_LOSS, Trainer=PairTrainer)["Mine"]
    reference = {"ref_model": models.load_base(OPT)}
    for trainer in (
        make_sft(),
        make_dpo(lora=None, constructor=reference),
        make_dpo(loss_type=["sigmoid", "sft"]),
        make_dpo(use_weighting=True),
        make_dpo(own),
    ):
        assert callbacks.expected_first_loss(trainer) is None
    assert callbacks.expected_first_loss(make_dpo()) == LN2


@pytest.mark.parametrize("changes", [{"loss_type": "ipo"}, {"kind": DPOTrainer}])
def test_first_loss_that_is_right_passes(tmp_path, changes):
    run = begin_run(tmp_path)
    if "kind" in changes:
        changes = {**changes, "constructor": texts()}
    trainer = make_dpo_of(**changes, max_steps=1, eval_on_start=False, logging_first_step=False)
    log = train(trainer, run, "X")
    assert first(log, "loss") == pytest.approx(25 if "loss_type" in changes else LN2, rel=1e-5)


def make_dpo_of(kind=PairTrainer, **changes):
    """Build a DPO trainer of a class; TRL's own does not get this package's option."""
    if kind is PairTrainer:
        return make_dpo(**changes)
    return make_dpo(lambda share_prompts, **options: kind(**options), **changes)


def texts():
    """Make datasets of texts, which TRL's own trainer tokenizes."""
    from datasets import Dataset

    rows = []
    for pair in pairs().train:
        replies = {side: f" {pair[side]}" for side in ("chosen", "rejected")}
        rows.append({"prompt": pair["prompt"], **replies, "length": pair["length"]})
    return {"train_dataset": Dataset.from_list(rows), "eval_dataset": Dataset.from_list(rows[:4])}


def require_nothing_left(run):
    """Check that nothing of a failed model was saved."""
    assert not list(run.folder.glob("adapters/*"))
    assert [model.name for model in run.models] == ["Base"]
    assert not run.path("training.json").exists()
    assert not list(run.folder.rglob("*.tmp"))


@pytest.mark.parametrize("reason", ["dropout", "another reference"])
@pytest.mark.parametrize("logging_first_step", [True, False])
def test_wrong_first_loss_stops_a_training(tmp_path, reason, logging_first_step):
    """It stops at the first step, even if that step would not be logged."""
    run = begin_run(tmp_path)
    changes = {"logging_first_step": logging_first_step, "logging_steps": 5, "save_steps": 5}
    if reason == "dropout":
        model = models.load_base(OPT, dropout=0.1)
        changes |= {"model": model, "constructor": {"share_prompts": False}}
    else:  # the adapter changes the base at once, and the reference is the base
        changes["lora"] = {**LORA, "init_lora_weights": False}
    trainer = make_dpo(**changes)
    with pytest.raises(RuntimeError, match="first loss is .*, not 0.6931, .*check_first_loss=Fal"):
        train(trainer, run, "DPO")
    assert trainer.state.global_step == 1
    require_nothing_left(run)


def test_dropout_may_be_asked_for(tmp_path):
    run = begin_run(tmp_path)
    model = models.load_base(OPT, dropout=0.1)
    constructor = {"share_prompts": False}
    trainer = make_dpo(model=model, constructor=constructor, max_steps=1, eval_on_start=False)
    log = train(trainer, run, "DPO", check_first_loss=False)
    assert abs(first(log, "loss") - LN2) > 1e-3


@pytest.mark.parametrize(
    ("kind", "loss", "holds"),
    [
        ("cpu", 0.6931, True),
        ("cpu", 0.6961, False),
        ("cuda", 0.6961, True),
        ("cuda", 0.6891, True),
        ("cuda", 0.604, False),
        ("cuda", 0.704, False),
        ("cpu", math.nan, False),
        ("cuda", math.nan, False),
    ],
)
def test_first_loss_has_room_for_a_gpus_kernels_alone(kind, loss, holds):
    """Kernels that differ by 2e-3 pass on a GPU; dropout never passes."""
    args = SimpleNamespace(device=SimpleNamespace(type=kind))
    state = SimpleNamespace(global_step=1)
    callback = callbacks.FirstLoss(LN2)
    model = SimpleNamespace(config=OPTConfig(dropout=0.1))
    if holds:
        callback.on_log(args, state, None, logs={"loss": loss}, model=model)
    else:
        with pytest.raises(RuntimeError, match="first loss .* has dropout .*'dropout': 0.1"):
            callback.on_log(args, state, None, logs={"loss": loss}, model=model)


def test_dropout_is_not_blamed_where_there_is_none():
    args = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    model = SimpleNamespace(config=OPTConfig(dropout=0.0))
    with pytest.raises(RuntimeError, match="has no dropout, so the reference may be another"):
        callbacks.FirstLoss(LN2).on_log(
            args, SimpleNamespace(global_step=1), None, logs={"loss": 0.4}, model=model
        )


def test_adapter_that_the_reference_lacks_is_named(tmp_path):
    """TRL does not copy the adapter of an embedding, so DPO would begin elsewhere than at ln 2."""
    run = begin_run(tmp_path)
    lora = {**LORA, "target_modules": ["q_proj", "embed_tokens"]}
    train(make_sft(lora=lora), run, "SFT")
    with pytest.raises(ValueError, match="not copied the adapter of embed_tokens"):
        train(make_sft_dpo(run), run, "SFT+DPO")
    assert [model.name for model in run.models] == ["Base", "SFT"]


@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_loss_that_is_not_finite_stops_with_nothing_saved(tmp_path, name):
    """This is so even where the earlier loss would be logged in its place."""
    run = begin_run(tmp_path)
    trainer = MAKERS[name](run, learning_rate=1e30, max_grad_norm=0.0, weight_decay=0.0)
    with pytest.raises(RuntimeError, match=r"At step \d of 6 the .*Nothing was saved"):
        train(trainer, run, name)
    require_nothing_left(run)


class Spoil(TrainerCallback):
    """Make one gradient NaN in a step, as a loss of NaN does."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            weight = next(weight for weight in model.parameters() if weight.grad is not None)
            weight.grad[0] = float("nan")


def test_first_step_that_is_not_finite_is_named_and_leaves_no_checkpoint(tmp_path):
    """It stops at that step, although nothing is logged there; the next try starts over."""
    run = begin_run(tmp_path)
    trainer = make_sft(logging_steps=10, save_steps=2, logging_first_step=False)
    trainer.add_callback(Spoil(5))
    with pytest.raises(RuntimeError, match="At step 5 of 6 the trained weights are no finite"):
        train(trainer, run, "SFT")
    require_nothing_left(run)
    train(make_sft(learning_rate=5e-4), run, "SFT")  # another rate, which no checkpoint forbids


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sigmoid_norm", "exo_pair", "bco_pair"])
def test_held_out_pairs_read_together_give_the_same_means(tmp_path, monkeypatch, loss):
    """Four pairs in one batch give the loss, rewards and log-probabilities of four single ones."""
    smoothing = 0.001 if loss == "exo_pair" else 0.0
    logs, rows = [], []
    for at_once in (4, 1):
        if at_once == 1:
            monkeypatch.setattr(sharing, "held_out_at_once", lambda trainer, pairs: 1)
        run = begin_run(tmp_path / str(at_once))
        trainer = make_dpo(max_steps=1, loss_type=loss, label_smoothing=smoothing)
        predict = trainer.prediction_step

        def count(model, inputs, *args, predict=predict, **kwargs):
            rows.append(len(inputs["input_ids"]))
            return predict(model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer, "prediction_step", count)
        log = train(trainer, run, "DPO", check_first_loss=False)
        logs.append([record for record in log if "eval_loss" in record])
    assert rows == [8, 8] + [2] * 8
    assert len(logs[0]) == len(logs[1]) == 2
    of_pairs = [name for name in logs[0][1] if name.startswith(("eval_loss", "eval_rewards"))]
    of_pairs += [name for name in logs[0][1] if name.startswith("eval_logps")]
    assert len(of_pairs) == 7
    for together, single in zip(*logs):
        for name in of_pairs:
            assert together[name] == pytest.approx(single[name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    ("make", "changes", "at_once"),
    [
        (make_dpo, {}, 4),
        (make_dpo, {"per_device_eval_batch_size": 2}, 2),
        (make_dpo, {"loss_type": "aot"}, 1),
        (make_dpo, {"loss_type": ["sigmoid", "sft"]}, 1),
        (make_sft, {}, 1),
    ],
)
def test_held_out_pairs_are_read_together_where_it_changes_nothing(make, changes, at_once):
    """A loss over tokens or over a whole batch would change, and a number that is named stays."""
    trainer = make(**changes)
    assert sharing.held_out_at_once(trainer, 16) == at_once
    assert sharing.held_out_at_once(trainer, 3) == min(2, at_once)


def test_loss_of_the_held_out_pairs_must_be_finite_too(tmp_path):
    """It is computed before the first step, so that nothing is trained in vain."""
    run = begin_run(tmp_path)
    trainer = make_sft()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="At step 0 of 6 the loss of the held-out pairs is nan"):
        train(trainer, run, "SFT")
    require_nothing_left(run)


def test_gradient_that_overflows_is_null_in_the_log():
    """GradScaler's first gradient may overflow in fp16, and JSON has no infinity."""
    records = [
        {"step": 1, "loss": 1.0, "grad_norm": math.inf, "train_num_tokens": 3},
        {"step": 1, "eval_loss": 1.0, "eval_runtime": 2.0, "eval_samples_per_second": 2.0},
        {"step": 1, "train_runtime": 2.0, "train_loss": 1.0},
    ]
    expected = [{"grad_norm": None, "loss": 1.0, "step": 1}, {"eval_loss": 1.0, "step": 1}]
    cleaned = training.clean_log(records)
    assert cleaned == expected
    assert list(cleaned[0]) == sorted(cleaned[0])


# ---- what is learned


def log_probability(model, pair, side):
    """Compute log p(reply, EOS | prompt) of a single text in the simplest way."""
    prompt = tokenizer()(pair["prompt"])["input_ids"]
    text = f"{pair['prompt']} {pair[side]}{tokenizer().eos_token}"
    ids = tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        log_probabilities = model(ids).logits[0, :-1].float().log_softmax(-1)
    of_tokens = log_probabilities.gather(1, ids[0, 1:, None])
    return of_tokens[len(prompt) - 1 :].sum().item()


def test_sft_validation_before_the_first_step_is_the_bases_loss(whole):
    """It is the mean over pairs of the base's cross-entropy per reply token."""
    base = models.load_base(OPT).eval()
    losses = []
    for pair in pairs().validation:
        losses.append(-log_probability(base, pair, "chosen") / len(pair["chosen_ids"]))
    expected = sum(losses) / len(losses)
    assert first(whole.logs["SFT"], "eval_loss") == pytest.approx(expected, rel=1e-4)


def test_dpo_learns_the_preference(whole):
    """A few steps raise the mean margin of the training pairs above zero."""
    loaded = models.load_models(whole.run, OPT, ["DPO"])["DPO"]
    base = models.load_base(OPT)
    margins = []
    for pair in pairs().train[:10]:
        moved = []
        for side in ("chosen", "rejected"):
            moved.append(log_probability(loaded, pair, side) - log_probability(base, pair, side))
        margins.append(moved[0] - moved[1])
    assert sum(margins) > 0


def test_dpo_on_sft_starts_at_the_sft_model_and_keeps_it_as_reference(whole, saved):
    sft = models.load_models(whole.run, OPT, ["SFT"])["SFT"]
    for side in ("chosen", "rejected"):
        expected = sum(log_probability(sft, pair, side) for pair in pairs().validation) / 4
        value = first(whole.logs["SFT+DPO"], f"eval_logps/{side}")
        assert value == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(saved["reference"], saved["sft"], atol=1e-4)
    assert (saved["sft_dpo"] - saved["sft"]).abs().max() > 1e-2


# ---- what is saved


def test_saved_adapters_give_the_same_logits(whole, saved):
    """They are loaded by the evaluation, and by PEFT itself over the run's base."""
    loaded = models.load_models(whole.run, OPT)
    for name, adapter in ADAPTERS.items():
        expected = saved[adapter.removeprefix("adapters/")]
        with models.switched_to(loaded[name], name):
            assert torch.allclose(logits_of(loaded[name], tokenizer(), PROBES), expected, atol=1e-4)
        folder = whole.run.folder / adapter
        over_base = PeftModel.from_pretrained(models.load_base(OPT), folder)
        assert torch.allclose(logits_of(over_base, tokenizer(), PROBES), expected, atol=1e-4)
        by_name = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert torch.allclose(logits_of(by_name, tokenizer(), PROBES), expected, atol=1e-4)
        assert load(folder / "adapter_config.json")["base_model_name_or_path"] == BASE


def test_rows_of_the_record_say_base_and_parent(whole):
    rows = [tuple(model.model_dump().values()) for model in whole.run.models]
    assert rows == [
        ("Base", BASE, None, None),
        ("SFT", BASE, "adapters/sft", None),
        ("DPO", BASE, "adapters/dpo", None),
        ("SFT+DPO", BASE, "adapters/sft_dpo", "SFT"),
    ]
    assert load(whole.run.folder / "training.json") == whole.logs
    assert list(load(whole.run.folder / "training.json")) == list(MAKERS)
    names = [path.name for path in whole.run.folder.iterdir() if not path.name.startswith(".")]
    assert sorted(names) == ["adapters", "run.json", "training.json"]


def test_full_fine_tuning_and_dpo_over_it(tmp_path, monkeypatch):
    """The fine-tuned model lies under models/ and is the base of the adapter over it."""
    run = begin_run(tmp_path)
    few = {"max_steps": 2, "eval_on_start": False, "eval_strategy": "no"}

    def make():
        return make_sft(lora=None, reply_only=False, **few)

    def make_over_it(name="SFT"):
        return make_dpo(model=models.load_adapter(run, name, OPT), **few)

    logits = []
    monkeypatch.setattr(training, "_spend", lambda trainer, inputs: logits.append(trainer.model))
    logs = {"SFT": train(make(), run, "SFT"), "SFT+DPO": train(make_over_it(), run, "SFT+DPO")}
    expected = [
        ("Base", BASE, None, None),
        ("SFT", "models/sft", None, None),
        ("SFT+DPO", "models/sft", "adapters/sft_dpo", "SFT"),
    ]
    assert [tuple(model.model_dump().values()) for model in run.models] == expected
    loaded = models.load_models(run, OPT)
    for model, name in zip(logits, logs):
        with models.switched_to(loaded[name], name):
            same = logits_of(loaded[name], tokenizer(), PROBES)
        assert torch.allclose(logits_of(model, tokenizer(), PROBES), same, atol=1e-4)
    base = logits_of(models.load_base(OPT), tokenizer(), PROBES)
    assert (logits_of(loaded["SFT"], tokenizer(), PROBES) - base).abs().max() > 1e-3
    # found again, in the same rows, and known by the weights that they stand on
    forbid_training(monkeypatch)
    assert train(make(), run, "SFT") == logs["SFT"]
    assert train(make_over_it(), run, "SFT+DPO") == logs["SFT+DPO"]
    assert [tuple(model.model_dump().values()) for model in run.models] == expected
    with pytest.raises(ValueError, match="sft_dpo was made with base_model = "):
        train(make_dpo(**few), run, "SFT+DPO")


def test_model_that_reloads_otherwise_is_not_saved(tmp_path):
    """Its base was changed in memory, which its files do not show."""
    run = begin_run(tmp_path)
    base = models.load_base(OPT)
    with torch.no_grad():
        base.model.decoder.embed_tokens.weight.mul_(1.5)
    trainer = make_sft(model=base, max_steps=1, eval_on_start=False)
    with pytest.raises(RuntimeError, match="logits differ .* so it was not saved"):
        train(trainer, run, "SFT")
    require_nothing_left(run)


def test_layers_that_a_base_does_not_have_are_said(capsys):
    """Other architectures have other names, and LoRA would ignore missing layers silently."""
    trainer = make_sft(lora={**LORA, "target_modules": ["q_proj", "gate_proj"]})
    training.say_what_is_adapted(trainer)
    expected = "This base has no layers named gate_proj, so LoRA adapts only q_proj."
    assert expected in capsys.readouterr().out
    for lora in (LORA, {**LORA, "target_modules": r".*\.fc1"}, None):
        training.say_what_is_adapted(make_sft(lora=lora))
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("name", "is_said"), [("qwen2-moe", True), ("mixtral", False)])
def test_experts_that_lora_leaves_as_they_are_are_said(tmp_path, capsys, name, is_said):
    """PEFT adapts the experts of some mixtures and not those of others."""
    model = models.load_base(small_models.save_base(tmp_path / "base", name))
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = SimpleNamespace(
        model=get_peft_model(model, lora),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
    )
    training.say_what_is_adapted(trainer)
    assert ("does not adapt the experts" in capsys.readouterr().out) == is_said


def test_another_process_in_the_run_is_refused(whole, tmp_path):
    """A finished model is returned all the same, since nothing is made."""
    from filelock import FileLock

    run = copy_run(whole.run, tmp_path)
    with FileLock(run.folder / ".lock", is_singleton=False):
        assert train(make_sft(), run, "SFT") == whole.logs["SFT"]
        with pytest.raises(RuntimeError, match="demo is in use by another process"):
            train(make_sft(max_steps=1), run, "SFT 2")


# ---- trackers and progress


def test_each_trainings_events_lie_in_its_own_folder(tmp_path):
    """They remain when the checkpoints are removed."""
    run = begin_run(tmp_path)
    few = {"max_steps": 2, "report_to": "tensorboard", "eval_on_start": False}
    train(make_sft(**few), run, "SFT")
    train(make_dpo(**few), run, "DPO")
    for name, tag in (("sft", "train/entropy"), ("dpo", "train/rewards/margins")):
        (events,) = [path for path in run.path(f"logs/{name}").rglob("*") if path.is_file()]
        assert events.name.startswith("events.out.tfevents.")
        accumulated = EventAccumulator(str(events)).Reload()
        assert [event.step for event in accumulated.Scalars(tag)] == [1, 2]
        assert "eval/loss" in accumulated.Tags()["scalars"]
    assert not run.path("checkpoints").exists()
    assert len(list(run.path("logs").iterdir())) == 2


@pytest.mark.parametrize("seconds", [0.5, 25, 45, 100])
def test_progress_is_a_line_at_least_once_a_minute(monkeypatch, capsys, seconds):
    """Lines are as rare as possible, and a long step has a line of its own."""
    now = [1000.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    progress = callbacks.Progress("SFT")
    state = SimpleNamespace(global_step=0, max_steps=400)
    progress.on_train_begin(None, state, None)
    moments = [now[0]]
    for _ in range(400):
        state.global_step += 1
        now[0] += seconds
        progress.on_log(None, state, None, logs={"loss": 0.5})
        progress.on_step_end(None, state, None)
        if capsys.readouterr().out:
            moments.append(now[0])
    progress.on_train_end(None, state, None)
    gaps = [after - before for before, after in zip(moments, moments[1:])]
    assert max(gaps) <= max(60, seconds)
    assert min(gaps) > 60 - 2 * seconds
    assert now[0] - moments[-1] < max(60, seconds)


def test_progress_says_how_far_it_is(monkeypatch, capsys):
    """After resuming, the time per step is that of the steps since then."""
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    progress = callbacks.Progress("SFT+DPO")
    state = SimpleNamespace(global_step=10, max_steps=100)
    progress.on_train_begin(None, state, None)
    state.global_step, now[0] = 12, 120.0
    progress.on_log(None, state, None, logs={"loss": 0.51234})
    progress.on_step_end(None, state, None)
    expected = "SFT+DPO: step 12 of 100, loss 0.512, 60.0 s per step, 88 minutes left\n"
    assert capsys.readouterr().out == expected


def test_output_of_a_training_is_a_line_a_validation(tmp_path, capsys):
    """No table is printed that would be wider than the page."""
    run = begin_run(tmp_path)
    capsys.readouterr()
    train(make_dpo(num_train_epochs=1), run, "DPO")
    lines = capsys.readouterr().out.splitlines()
    validations = [line for line in lines if "held-out pairs" in line]
    assert len(validations) == 2
    assert validations[0] == (
        "DPO: step 0 of 3, held-out pairs: loss 0.693, accuracy 0.000, margin 0.000"
    )
    assert validations[1].startswith("DPO: step 3 of 3, held-out pairs: loss 0.")
    assert lines[0] == "DPO trains 18,432 of 663,232 (2.8%) parameters."
    assert lines[-1].startswith("DPO was trained in ")
    assert len(lines) == 4


# ---- a disk that gets full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; tests are skipped if it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    try:
        is_mounted = not subprocess.run(mount, capture_output=True).returncode
    except OSError:
        is_mounted = False
    if not is_mounted:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("free", [40, 200, 400, 600])
def test_full_disk_stops_a_training_which_goes_on_where_there_is_room(
    whole, small_disk, tmp_path, free
):
    """It stops with a message, and on another disk it ends as usual."""
    run = begin_run(small_disk)
    ballast = run.folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(run.folder).free - free * 1024))
    with pytest.raises(OSError, match="no room left to write into"):
        train(make_sft(), run, "SFT")
    assert not (run.folder / "adapters" / "sft").exists()
    ballast.unlink()
    larger = copy_run(run, tmp_path / "larger")
    assert train(make_sft(), larger, "SFT") == whole.logs["SFT"]
    assert results_of(larger, "SFT") == results_of(whole.run, "SFT")
