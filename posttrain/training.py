"""What goes around any TRL trainer: knowing a model that is there, resuming, checking, saving."""

import importlib
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate.utils.memory import release_memory
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import Module
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback
from transformers.utils.notebook import NotebookProgressCallback

from posttrain.callbacks import FiniteLoss, FirstLoss, Progress, expected_first_loss
from posttrain.checkpoints import Checkpoints, last_checkpoint
from posttrain.description import describe, fingerprint_adapter
from posttrain.device import describe_computing, peak_memory, settle_pass
from posttrain.files import read_json, write
from posttrain.models import save_trained
from posttrain.record import Model, slug
from posttrain.run import Run
from posttrain.values import fingerprint_weights


def train(
    trainer: Trainer, run: Run, name: str, check_first_loss: bool = True
) -> list[dict[str, Any]]:
    """Train a model of a run to the end, or give back how it was trained where it is there.

    A model is known by what its trainer consumed (`description.describe`): a trainer that would
    train another one is refused. An interrupted training goes on from its last whole checkpoint,
    to the bit on a CPU. The saved model is loaded again and gives the same logits.

    Args:
        trainer: any trainer of TRL's or transformers'; its memory is freed at the end.
        run: the run that the model belongs to.
        name: the model's name, such as "SFT+DPO".
        check_first_loss: whether a DPO trainer must begin at the loss that equal policy and
            reference have; only a model that is trained under dropout cannot.

    Returns:
        The records of the trainer's log, as training.json holds them.

    Raises:
        ValueError: the model that is there, or a checkpoint, was made from something else; the
            trainer stands on another base than the run, or has been trained before.
        RuntimeError: the first loss is wrong, a loss is not finite, the saved model is not the
            trained one, or another process works in the run.
    """
    _require_trainable(trainer, run, name)
    inputs = getattr(trainer, "consumed", None) or describe(trainer, run)
    model = _row_of(trainer, run, name, inputs)
    run.require_name(model)
    place = model.adapter or model.base

    def make(folder: Path) -> bool:
        return _train_and_save(trainer, run, name, inputs, check_first_loss, folder)

    run.stage(place, make, inputs)
    if model not in run.models:  # else nothing is written, which another process might be doing
        run.add_model(model)
    run.forget(f"checkpoints/{slug(name)}")
    _spend(trainer, inputs)
    log = read_json(run.path(place) / "log.json", list[dict[str, Any]])
    path = run.path("training.json")
    logs = read_json(path, dict[str, Any]) if path.exists() else {}
    if logs.get(name) != log:
        write(path, logs | {name: log})
    return log


def _require_trainable(trainer: Trainer, run: Run, name: str) -> None:
    """Refuse a trainer that cannot train a model of this name, or that has done so already."""
    places = [row.adapter or row.base for row in run.models if row.name == name]
    if trainer.model is None:
        is_used = not places or not run.path(places[0]).exists()
    else:
        callbacks = trainer.callback_handler.callbacks
        has_begun = any(isinstance(callback, Checkpoints) for callback in callbacks)
        is_used = has_begun or trainer.state.global_step > 0
    if is_used:
        raise ValueError(
            f"This trainer has been trained before. Build it anew for {name}, that is, run the "
            "cell that makes it: an interrupted training then goes on from its last checkpoint."
        )
    if trainer.args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end = True needs all checkpoints, and `train` keeps the two "
            "newest. Set it to False."
        )


def _row_of(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> Model:
    """Settle the model's row of run.json: its base, where it is saved, what it goes on from."""
    known = [row for row in run.models if row.name == name]
    if trainer.model is None:  # it is spent: the model is there
        return known[0]
    over, parent = None, None
    for row in run.models:
        artifact = run.record.artifacts.get(row.base)
        is_base = artifact is not None and artifact.sha256 == inputs["base_model"]
        if is_base and row.adapter is None:
            over, parent = row.base, row.name
        goes_on = row.adapter is not None and inputs["goes_on_from"] is not None
        if goes_on and inputs["goes_on_from"] == _weights_of(run, row):
            parent = row.name
    if over is None:
        over = _name_of_base(trainer, run, name, inputs)
    if inputs["adapter_config"] is None:
        return Model(name=name, base=f"models/{slug(name)}", adapter=None, parent=parent)
    return Model(name=name, base=over, adapter=f"adapters/{slug(name)}", parent=parent)


def _name_of_base(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> str:
    """Give the name of the run's base, on which a trainer must stand."""
    source = run.record.sources.get("base_model")
    if source is None:
        return trainer.accelerator.unwrap_model(trainer.model).config._name_or_path
    if inputs["base_model"] not in (source["commit"], source["sha256"]):
        raise ValueError(
            f"The trainer of {name} stands on another base than the run, which has "
            f"{source['name']}. A run's models share a base: choose another RUN for this one."
        )
    return source["name"]


def _weights_of(run: Run, row: Model) -> str | None:
    """Compute the sha256 of an adapter's weights as `description` does, None without them."""
    path = run.path(row.adapter) / "adapter_model.safetensors"
    return fingerprint_weights(load_file(path)) if path.exists() else None


def _train_and_save(
    trainer: Trainer,
    run: Run,
    name: str,
    inputs: Mapping[str, Any],
    check_first_loss: bool,
    folder: Path,
) -> bool:
    """Train from the beginning or the last checkpoint, and save what was trained into a folder.

    Returns:
        Whether it was gone on from a checkpoint.
    """
    start = time.perf_counter()
    checkpoints = f"checkpoints/{slug(name)}"
    computing = describe_computing(trainer)
    checkpoint = last_checkpoint(run, checkpoints, inputs, computing)
    pairs = None
    if checkpoint is not None:
        entry = run.record.artifacts[f"{checkpoints}/{checkpoint.name}"]
        pairs = entry.inputs["computing"]["pairs_in_a_pass"]
    computing["pairs_in_a_pass"] = settle_pass(trainer, pairs)
    say_what_is_adapted(trainer)
    print(f"{name} trains {count_trainable(trainer.model)} parameters.")
    _prepare(trainer, run, name, {**inputs, "computing": computing})
    if check_first_loss and checkpoint is None:
        trainer.args.logging_first_step = True
        trainer.add_callback(FirstLoss(expected_first_loss(trainer)))
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except UnpicklingError as error:  # torch reads numbers alone, and refuses what would run code
        raise ValueError(
            f"{checkpoint} holds more than a checkpoint does. Move it away. {error}"
        ) from error
    _finish_tracker(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    is_lora = any("lora_B" in weight for weight, _ in model.named_parameters())
    if is_lora and fingerprint_adapter(model) is None:
        raise RuntimeError(
            f"The training of {name} changed nothing: all its {trainer.state.max_steps} steps were "
            "warm-up with a learning rate of 0. Take more pairs, or fewer of them in a step."
        )
    save_trained(model, folder, _base_folder(model), *_base_name(run, model, inputs),
                 trainer.processing_class)  # fmt: skip
    write(folder / "log.json", clean_log(trainer.state.log_history))
    print(f"{name} is trained: {time.perf_counter() - start:.0f} s, {peak_memory()}.")
    return checkpoint is not None


def _base_folder(model: Any) -> Path:
    """Give the folder or name that the base of a model was loaded from."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return Path(base.config._name_or_path)


def _base_name(run: Run, model: Any, inputs: Mapping[str, Any]) -> tuple[str, str | None]:
    """Give what an adapter calls its base, and the base's commit on the hub."""
    for source in run.record.sources.values():
        if inputs["base_model"] in (source["commit"], source["sha256"]):
            return source["name"], source["commit"]
    return str(_base_folder(model)), None


def _prepare(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> None:
    """Give a trainer its folders and callbacks, which no result depends on."""
    args = trainer.args
    args.output_dir = str(run.path(f"checkpoints/{slug(name)}"))
    args.run_name = f"{run.name} {name}"
    args.save_total_limit = None  # transformers would delete old ones without emptying them
    args.auto_find_batch_size = False  # it would take fewer pairs in a step
    args.logging_nan_inf_filter = False  # or a loss that is no number would be logged as the last
    validation = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if validation == "epoch":
        args.eval_strategy = "no"  # `Checkpoints` does it, with an epoch's last step
    logs = run.path(f"logs/{slug(name)}")
    os.environ["WANDB_DIR"] = str(logs)
    if "wandb" in args.report_to:
        logs.mkdir(parents=True, exist_ok=True)  # or W&B takes a temporary folder
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(logs)
    for bar in (NotebookProgressCallback, ProgressCallback, PrinterCallback):
        trainer.remove_callback(bar)
    trainer.add_callback(Progress(name))
    trainer.add_callback(FiniteLoss())
    trainer.add_callback(Checkpoints(run, f"checkpoints/{slug(name)}", inputs, validation))


def _finish_tracker(trainer: Trainer) -> None:
    """End a tracker's run with the training, so that the next one begins its own."""
    for tracker in ("wandb", "trackio"):
        if tracker in trainer.args.report_to:
            importlib.import_module(tracker).finish()


def _spend(trainer: Trainer, inputs: dict[str, Any]) -> None:
    """Free the memory of a trainer; it stays in the notebook as a name."""
    trainer.consumed = inputs
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = None
    if hasattr(trainer, "ref_model"):
        trainer.ref_model = None
    release_memory()  # or the model would stay in memory until some later garbage collection


def clean_log(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take out of a trainer's log what differs when the same training is done again.

    Left out are times, TRL's count of tokens, which begins anew with a resumed training, and the
    totals at the end. What is not finite is None: in fp16 a first gradient may overflow, and JSON
    knows no infinity. The names are sorted, as they are in a checkpoint.

    Args:
        records: `trainer.state.log_history`.

    Returns:
        The records of training.json.
    """
    cleaned = []
    for record in records:
        if "train_runtime" in record:
            continue
        kept = {}
        for name in sorted(record):
            if not name.endswith(("runtime", "per_second", "num_tokens")):
                kept[name] = record[name] if math.isfinite(record[name]) else None
        cleaned.append(kept)
    return cleaned


def count_trainable(model: Module) -> str:
    """Say how many of a model's parameters are trained, such as `9,216 of 640,000 (1.4%)`."""
    trained, total = 0, 0
    for name, parameter in model.named_parameters():
        if ".ref." in name:  # TRL's frozen copy of an adapter, which is the reference
            continue
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    return f"{trained:,} of {total:,} ({trained / total:.1%})"


def say_what_is_adapted(trainer: Trainer) -> None:
    """Say which of the layers that LoRA is to adapt a base does not have."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = model.peft_config["default"] if isinstance(model, PeftModel) else None
    layers = getattr(adapter, "target_modules", None)  # prompt tuning has none
    if layers is None or isinstance(layers, str):  # a text is a pattern
        return
    wanted = {name.rsplit(".", 1)[-1] for name in layers}
    there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if wanted - there:
        print(
            f"This base has no layers {', '.join(sorted(wanted - there))}: LoRA adapts only "
            f"{', '.join(sorted(wanted & there))}."
        )
