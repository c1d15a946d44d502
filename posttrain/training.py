"""Train a model with any trainer of TRL: reuse a finished one, resume, check and save."""

import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate.utils.memory import release_memory
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import Module
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.utils.notebook import NotebookProgressCallback

from posttrain import processes, trackers
from posttrain.callbacks import (
    FiniteLoss,
    FirstLoss,
    NotFiniteError,
    Progress,
    expected_first_loss,
    require_equal_reference,
)
from posttrain.cards import CARD, build_card
from posttrain.checkpoints import Checkpoints, last_checkpoint
from posttrain.description import describe, fingerprint_adapter
from posttrain.device import (
    computed_fast,
    describe_computing,
    peak_memory,
    settle_pass,
)
from posttrain.files import read_json, write
from posttrain.models import save_trained
from posttrain.record import Artifact, Model, as_json, environment, slug
from posttrain.run import Run
from posttrain.sharing import require_alike, require_sharable
from posttrain.values import fingerprint_weights

# Measures of held-out pairs that TRL averages over tokens and not over pairs
PER_TOKEN = ("eval_entropy", "eval_logits/", "eval_mean_token_accuracy")


def train(
    trainer: Trainer, run: Run, name: str, check_first_loss: bool = True
) -> list[dict[str, Any]]:
    """Train a model of a run and save it, or return the log of a model that is finished.

    A finished model is identified by everything that its trainer learned from, as
    `description.describe` lists it. A trainer that would train a different model under the same
    name is refused. An interrupted training continues from its last complete checkpoint; on a CPU
    the result is the same to the bit. The saved model is loaded again to check its logits.

    Several processes train one model together: every step has the same pairs as in one process.

    Args:
        trainer: any trainer of TRL or transformers. Its memory is freed at the end.
        run: the run that the model belongs to.
        name: the model's name, such as "SFT+DPO".
        check_first_loss: whether a DPO trainer must begin at the loss of a policy that equals its
            reference. A model trained with dropout does not begin there.

    Returns:
        The records of the trainer's log, as in training.json.

    Raises:
        ValueError: if the model or a checkpoint exists and was made from other inputs, or if the
            trainer has another base than the run or has been trained before, or if the processes
            cannot share its steps equally.
        RuntimeError: if the first loss is wrong, a loss is not finite, the saved model is not equal
            to the trained one, or another process is working in the run.
    """
    _require_trainable(trainer, run, name)
    require_sharable(trainer, name)
    inputs = getattr(trainer, "consumed", None) or describe(trainer, run)
    require_alike(f"What {name} is trained on", inputs)
    model = processes.on_main(_row_of, trainer, run, name, inputs)
    run.require_name(model)
    place = model.place

    def make(folder: Path) -> bool:
        # The card is made first, so that nothing in it can cost a training.
        card = processes.on_main(_make_card, run, model, inputs)
        was_interrupted = _train_and_save(trainer, run, name, inputs, check_first_loss, folder)
        processes.on_main(write, folder / CARD, card)
        return was_interrupted

    run.stage(place, make, inputs)
    if model not in run.models:  # otherwise nothing is written, and no lock is needed
        run.add_model(model)
    run.forget(f"checkpoints/{slug(name)}")
    _spend(trainer, inputs)
    return processes.on_main(_publish_log, run, name, place)


def _make_card(run: Run, model: Model, inputs: Mapping[str, Any]) -> str:
    """Make the card of a model that is about to be trained."""
    training = Artifact(inputs=as_json(inputs), sha256="", seconds=None, environment=environment())
    return str(build_card(run, model, str(run.path(model.place)), training=training))


def _publish_log(run: Run, name: str, place: str) -> list[dict[str, Any]]:
    """Read a trained model's log, and write it into training.json if it is not there."""
    log = read_json(run.path(place) / "log.json", list[dict[str, Any]])
    path = run.path("training.json")
    logs = read_json(path, dict[str, Any]) if path.exists() else {}
    if logs.get(name) != log:
        write(path, logs | {name: log})
    return log


def _require_trainable(trainer: Trainer, run: Run, name: str) -> None:
    """Refuse a trainer that has been trained before, or whose settings rule out resuming."""
    places = [row.adapter or row.base for row in run.models if row.name == name]
    if trainer.model is None:
        is_used = not places or not run.is_there(places[0])
    else:
        callbacks = trainer.callback_handler.callbacks
        has_begun = any(isinstance(callback, Checkpoints) for callback in callbacks)
        is_used = has_begun or trainer.state.global_step > 0
    if is_used:
        raise ValueError(
            f"This trainer has been trained before. Build a new one for {name} by running the "
            "whole cell again. An interrupted training then continues from its last checkpoint."
        )
    if trainer.args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end = True needs all checkpoints, but `train` keeps only the two "
            "newest. Set it to False."
        )


def _row_of(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> Model:
    """Build the model's entry in run.json: its base, its folder, and the model it started from."""
    known = [row for row in run.models if row.name == name]
    if trainer.model is None:  # the trainer has been used, so the model exists
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
    """Look up the name of the run's base, and refuse a trainer with another base."""
    source = run.record.sources.get("base_model")
    if source is None:
        return trainer.accelerator.unwrap_model(trainer.model).config._name_or_path
    if inputs["base_model"] not in (source["commit"], source["sha256"]):
        raise ValueError(
            f"The trainer of {name} has another base than the run, whose base is "
            f"{source['name']}. All models of a run share one base. Choose another RUN for this "
            "model."
        )
    return source["name"]


def _weights_of(run: Run, row: Model) -> str | None:
    """Compute the sha256 of an adapter's weights as `description` does; None without a file."""
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
    """Train from the beginning or from the last checkpoint, and save the model in a folder.

    Returns:
        Whether the training continued from a checkpoint.
    """
    start = time.perf_counter()
    checkpoints = f"checkpoints/{slug(name)}"
    computing = describe_computing(trainer)
    checkpoint = last_checkpoint(run, checkpoints, inputs, computing)
    pairs = None
    if checkpoint is not None:
        then = run.record.artifacts[f"{checkpoints}/{checkpoint.name}"].inputs["computing"]
        if then["processes"] == computing["processes"]:
            pairs = then["pairs_in_a_pass"]
    computing["pairs_in_a_pass"] = settle_pass(trainer, pairs)
    say_what_is_adapted(trainer)
    print(f"{name} trains {count_trainable(trainer.model)} parameters.")
    _prepare(trainer, run, name, {**inputs, "computing": computing})
    if check_first_loss:
        require_equal_reference(trainer.model)
    if check_first_loss and checkpoint is None:
        trainer.args.logging_first_step = True
        trainer.add_callback(FirstLoss(expected_first_loss(trainer)))
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    try:
        trackers.start(trainer, run.path(f"logs/{slug(name)}"))
        with computed_fast(trainer):
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except NotFiniteError:
        run.forget(checkpoints)  # with another learning rate they could not be continued
        raise
    except UnpicklingError as error:  # torch loads plain data and refuses to execute code
        raise ValueError(
            f"{checkpoint} contains objects that a checkpoint does not have, which could execute "
            f"code. Move this folder away. {error}"
        ) from error
    finally:
        trackers.finish(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    is_lora = any("lora_B" in weight for weight, _ in model.named_parameters())
    if is_lora and fingerprint_adapter(model) is None:
        raise RuntimeError(
            f"The training of {name} changed nothing, since all its {trainer.state.max_steps} "
            "steps were warm-up with a learning rate of 0. Use more pairs (MAX_PAIRS) or a "
            "smaller batch_size."
        )
    base_name, commit = _base_name(run, model, inputs)
    tokenizer = trainer.processing_class
    processes.on_main(
        save_trained, model, folder, _base_folder(model), base_name, commit, tokenizer
    )
    processes.on_main(write, folder / "log.json", clean_log(trainer.state.log_history))
    print(f"{name} was trained in {time.perf_counter() - start:.0f} s, {peak_memory()}.")
    return checkpoint is not None


def _base_folder(model: Any) -> Path:
    """Return the folder or name that a model's base was loaded from."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return Path(base.config._name_or_path)


def _base_name(run: Run, model: Any, inputs: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the name of an adapter's base for its config, and the base's commit on the hub."""
    for source in run.record.sources.values():
        if inputs["base_model"] in (source["commit"], source["sha256"]):
            return source["name"], source["commit"]
    return str(_base_folder(model)), None


def _prepare(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> None:
    """Set a trainer's folders and callbacks, which the trained model does not depend on."""
    args = trainer.args
    args.output_dir = str(run.path(f"checkpoints/{slug(name)}"))
    args.run_name = f"{run.name} {name}"
    args.save_total_limit = None  # transformers would delete old checkpoints without emptying them
    args.auto_find_batch_size = False  # it would reduce the number of pairs in a step
    args.logging_nan_inf_filter = False  # it would replace a loss of NaN by an earlier loss
    validation = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if validation == "epoch":
        args.eval_strategy = "no"  # `Checkpoints` evaluates, at the last step of an epoch
    for bar in (NotebookProgressCallback, ProgressCallback, PrinterCallback):
        trainer.remove_callback(bar)
    trainer.add_callback(Progress(name))
    trainer.add_callback(FiniteLoss())
    checkpoints = Checkpoints(run, f"checkpoints/{slug(name)}", inputs, validation)
    trainer.add_callback(checkpoints)
    trainer._load_rng_state = partial(checkpoints.restore, trainer, trainer._load_rng_state)


def _spend(trainer: Trainer, inputs: dict[str, Any]) -> None:
    """Free the memory of a trainer, since the notebook keeps a reference to it."""
    trainer.consumed = inputs
    trainer.accelerator.free_memory()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = None
    if hasattr(trainer, "ref_model"):
        trainer.ref_model = None
    release_memory()  # without it the model would stay until a later garbage collection


def clean_log(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove from a trainer's log what would differ if the same training were repeated.

    This removes times, the totals at the end, TRL's count of tokens, which starts over when a
    training is resumed, and means over the tokens of a batch of held-out pairs, which depend on how
    many pairs are read at once. Values that are not finite become None, since JSON has no infinity
    and in fp16 a first gradient may overflow. The names are sorted, as in a checkpoint.

    Args:
        records: the log of the trainer, `trainer.state.log_history`.

    Returns:
        The records of training.json.
    """
    cleaned = []
    for record in records:
        if "train_runtime" in record:
            continue
        kept = {}
        of_batches = PER_TOKEN if "eval_rewards/margins" in record else ()
        for name in sorted(record):
            is_time = name.endswith(("runtime", "per_second", "num_tokens"))
            if not is_time and not name.startswith(of_batches):
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
    """Print a line if LoRA leaves experts as they are, or if the base lacks layers to adapt."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = model.peft_config["default"] if isinstance(model, PeftModel) else None
    names = [name for name, _ in model.named_parameters()]
    # All experts of a block in one tensor. PEFT gives it another name where it adapts it.
    if adapter is not None and any(name.endswith(".experts.down_proj") for name in names):
        print("LoRA does not adapt the experts of this base, only its other linear layers.")
    layers = getattr(adapter, "target_modules", None)  # prompt tuning has no such layers
    if layers is None or isinstance(layers, str):  # a string is a pattern
        return
    wanted = {name.rsplit(".", 1)[-1] for name in layers}
    there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if wanted - there:
        print(
            f"This base has no layers named {', '.join(sorted(wanted - there))}, so LoRA adapts "
            f"only {', '.join(sorted(wanted & there))}."
        )
