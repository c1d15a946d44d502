"""Build trainers that take a second: the demo's base on fifty pairs, with three steps an epoch."""

import functools
import gc
import linecache
import tempfile
import types
from pathlib import Path

from conftest import small_dataset
from peft import LoraConfig
from small_runs import OPT
from transformers import TrainerCallback
from trl import DPOConfig, SFTConfig, SFTTrainer

from posttrain import data, models
from posttrain.pair_trainer import PairTrainer
from posttrain.record import Model
from posttrain.run import Run

# `train` collects garbage; to look for it among the modules would take longer than a training.
gc.freeze()

BASE = "demo/hub/opt"
LORA = {
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": "all-linear",
    "exclude_modules": ["project_in", "project_out"],
}
COMMON = {
    "output_dir": tempfile.gettempdir(),
    "max_length": 128,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 1,
    "learning_rate": 1e-3,
    "num_train_epochs": 2,
    "lr_scheduler_type": "cosine",
    "train_sampling_strategy": "group_by_length",
    "activation_checkpointing": False,
    "eval_on_start": True,
    "eval_strategy": "epoch",
    "logging_steps": 1,
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "report_to": "none",
    "seed": 0,
    "use_cpu": True,
    "bf16": False,
}


@functools.cache
def tokenizer():
    """The tokenizer of the demo's base."""
    return models.load_tokenizer(OPT)


@functools.cache
def pairs():
    """46 pairs to train on and 4 held out."""
    settings = types.SimpleNamespace(
        subsets="base",
        max_pairs=50,
        validation_pairs=4,
        max_length=128,
        seed=0,
        format="transcript",
    )
    with tempfile.TemporaryDirectory() as folder:
        return data.load_pairs(small_dataset(Path(folder)), tokenizer(), settings)


def begin_run(folder, name="demo"):
    """Begin a run in a folder: pin its base and enter it as the first model."""
    run = Run(folder / "results", name)
    run.source("base_model", BASE)
    run.add_model(Model(name="Base", base=BASE, adapter=None))
    return run


def make_sft(kind=SFTTrainer, model=None, lora=LORA, constructor=None, reply_only=True, **changes):
    """Build an SFT trainer.

    Args:
        kind: its class.
        model: None loads the base.
        lora: the adapter's config, None for full fine-tuning.
        constructor: other arguments of the constructor.
        reply_only: as in `data.Pairs.for_sft`.
        changes: arguments of the config.
    """
    options = {"skip_prepare_dataset": True}
    arguments = {
        "train_dataset": pairs().for_sft("train", reply_only),
        "eval_dataset": pairs().for_sft("validation", reply_only),
        "peft_config": LoraConfig(**lora) if lora else None,
    }
    return kind(
        model=model or models.load_base(OPT),
        args=SFTConfig(**{**COMMON, "dataset_kwargs": options, **changes}),
        processing_class=tokenizer(),
        **{**arguments, **(constructor or {})},
    )


def make_dpo(kind=PairTrainer, model=None, lora=LORA, constructor=None, **changes):
    """Build a DPO trainer, with the same arguments as `make_sft`."""
    arguments = {
        "train_dataset": pairs().for_dpo("train"),
        "eval_dataset": pairs().for_dpo("validation"),
        "peft_config": LoraConfig(**lora) if lora else None,
        "share_prompts": True,
    }
    return kind(
        model=model or models.load_base(OPT),
        args=DPOConfig(**{**COMMON, "remove_unused_columns": False, **changes}),
        processing_class=tokenizer(),
        **{**arguments, **(constructor or {})},
    )


def make_sft_dpo(run, **changes):
    """Build a DPO trainer that starts from a run's SFT model."""
    return make_dpo(model=models.load_adapter(run, "SFT", OPT), lora=None, **changes)


# ---- what a notebook defines

_numbers = iter(range(10**6))


def define(source, with_source=True, **names):
    """Run a source like a cell of a notebook, and return its names.

    Args:
        source: the cell.
        with_source: whether Python can read it again, as in IPython; else only its code is known.
        names: what other cells have defined.
    """
    name = f"<cell {next(_numbers)}>"
    if with_source:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    cell = {"__name__": "__main__", **names}
    exec(compile(source, name, "exec"), cell)
    return cell


# ---- stopping


class Stopped(Exception):
    """The error that stands for the end of a process."""


class StopBefore(TrainerCallback):
    """Stop a training before a step, when everything in the step before it is done."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            raise Stopped


class StopWithin(StopBefore):
    """Stop a training within a step, before that step is logged or saved."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Do nothing, since this callback stops later."""

    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            raise Stopped
