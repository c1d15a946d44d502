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
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.utils.notebook import NotebookProgressCallback
from trl import DPOTrainer

from posttrain.description import describe, fingerprint_weights
from posttrain.device import describe_computing, peak_memory, settle_pass
from posttrain.files import read_json, write
from posttrain.models import save_trained
from posttrain.record import Model, slug
from posttrain.run import Run

LONGEST_SILENCE = 60  # seconds between two lines of progress


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
        ValueError: the model that is there, or a checkpoint, was made from something else.
        RuntimeError: the first loss is wrong, a loss is not finite, the saved model is not the
            trained one, or another process works in the run.
    """
    inputs = getattr(trainer, "consumed", None) or describe(trainer, run)
    model = _row_of(trainer, run, name, inputs)
    place = model.adapter or model.base

    def make(folder: Path) -> None:
        _train_and_save(trainer, run, name, inputs, check_first_loss, folder)

    run.stage(place, make, inputs)
    run.add_model(model)
    run.forget(f"checkpoints/{slug(name)}")
    _spend(trainer, inputs)
    log = read_json(run.path(place) / "log.json", list[dict[str, Any]])
    path = run.path("training.json")
    logs = read_json(path, dict[str, Any]) if path.exists() else {}
    if logs.get(name) != log:
        write(path, logs | {name: log})
    return log


def _row_of(trainer: Trainer, run: Run, name: str, inputs: Mapping[str, Any]) -> Model:
    """Settle the model's row of run.json: its base, where it is saved, what it goes on from."""
    known = [row for row in run.models if row.name == name]
    if trainer.model is None:  # it is spent: the model is there
        return known[0]
    base_name = run.record.sources.get("base_model", {}).get("name")
    over, parent = base_name, None
    for row in run.models:
        artifact = run.record.artifacts.get(row.base)
        if artifact is not None and artifact.sha256 == inputs["base_model"]:
            over, parent = row.base, row.name
        if row.adapter and inputs["goes_on_from"] == _weights_of(run, row):
            parent = row.name
    if over is None:
        over = trainer.accelerator.unwrap_model(trainer.model).config._name_or_path
    if inputs["adapter_config"] is None:
        return Model(name=name, base=f"models/{slug(name)}", adapter=None, parent=parent)
    return Model(name=name, base=over, adapter=f"adapters/{slug(name)}", parent=parent)


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
) -> None:
    """Train from the beginning or the last checkpoint, and save what was trained into a folder."""
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
    _prepare(trainer, run, name, {**inputs, "computing": computing})
    if check_first_loss and checkpoint is None:
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
    save_trained(model, folder, _base_folder(model), *_base_name(run, model, inputs),
                 trainer.processing_class)  # fmt: skip
    write(folder / "log.json", clean_log(trainer.state.log_history))
    print(f"{name} is trained: {time.perf_counter() - start:.0f} s, {peak_memory()}.")


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
    args.logging_nan_inf_filter = False  # or a loss that is no number would be logged as the last
    evaluates = str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "epoch"
    if evaluates:
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
    trainer.add_callback(Checkpoints(run, f"checkpoints/{slug(name)}", inputs, evaluates))


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


def say_what_is_adapted(trainer: Trainer) -> None:
    """Say which of the layers that LoRA is to adapt a base does not have."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel):
        return
    wanted = {name.rsplit(".", 1)[-1] for name in model.peft_config["default"].target_modules}
    there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if wanted - there:
        print(
            f"This base has no layers {', '.join(sorted(wanted - there))}: LoRA adapts only "
            f"{', '.join(sorted(wanted & there))}."
        )


# ---- the first loss


def expected_first_loss(trainer: Trainer) -> float | None:
    """Give the loss of a DPO trainer whose policy still is its reference, so that margins are 0.

    Args:
        trainer: built, not yet trained.

    Returns:
        The loss, None where it is not known: another trainer, another reference, several losses.
    """
    is_dpo = isinstance(trainer, DPOTrainer)
    if not is_dpo or trainer.ref_model is not None or len(trainer.loss_types) != 1:
        return None
    beta = trainer.args.beta
    losses = {
        "sigmoid": math.log(2),
        "robust": math.log(2),
        "aot": math.log(2),
        "aot_unpaired": math.log(2),
        "sigmoid_norm": math.log(2),
        "hinge": 1.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "nca_pair": 2 * math.log(2),
        "bco_pair": 2 * math.log(2),
        "ipo": 1 / (2 * beta) ** 2,
        "sppo_hard": 1 / (2 * beta**2),
    }
    return losses.get(trainer.loss_types[0])


class FirstLoss(TrainerCallback):
    """Stop a training whose first loss shows that policy and reference are not the same model."""

    def __init__(self, expected: float | None):
        self.expected = expected

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Compare the loss of the first step."""
        if self.expected is None or state.global_step != 1 or "loss" not in logs:
            return
        # On a GPU the kernels with and without gradients may differ by some 2e-3 of ln 2; dropout
        # makes 0.60 or 0.70 of it.
        tolerance = 1e-2 if args.device.type == "cuda" else 1e-3
        if not abs(logs["loss"] - self.expected) < tolerance * max(1.0, self.expected):
            raise RuntimeError(
                f"The first loss is {logs['loss']:.4f}, not {self.expected:.4f}: policy and "
                "reference differ before any training. Is dropout on (load the model with dropout "
                "0), or is the reference another model?"
            )


class FiniteLoss(TrainerCallback):
    """Stop a training whose loss is no number any more: all later weights would be none either."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at every logged loss."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RuntimeError(
                f"At step {state.global_step} the loss is {logs['loss']}. Nothing was saved of "
                "this model. A lower learning rate, or precision fp32, may help."
            )


# ---- progress and checkpoints


class Progress(TrainerCallback):
    """A bar, and lines: at every validation, and at least once a minute."""

    def __init__(self, name: str):
        self.name = name
        self.loss = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to count."""
        self.first = state.global_step
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, leave=False, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        """Say how far it is before the next step would make the silence too long."""
        self.bar.update(state.global_step - self.bar.n)
        now = time.monotonic()
        seconds = (now - self.start) / (state.global_step - self.first)
        if now - self.last_line + seconds < LONGEST_SILENCE:
            return
        self.last_line = now
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        minutes = (state.max_steps - state.global_step) * seconds / 60
        tqdm.write(
            f"{self.name}: step {state.global_step} of {state.max_steps}, {loss}"
            f"{seconds:.1f} s a step, {minutes:.0f} minutes left"
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the newest loss."""
        self.loss = logs.get("loss", self.loss)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Say what the held-out pairs give."""
        names = {
            "eval_loss": "loss",
            "eval_rewards/accuracies": "accuracy",
            "eval_rewards/margins": "margin",
        }
        values = [f"{names[key]} {metrics[key]:.3f}" for key in names if key in metrics]
        tqdm.write(
            f"{self.name}: step {state.global_step} of {state.max_steps}, held-out pairs: "
            f"{', '.join(values)}"
        )

    def on_train_end(self, args, state, control, **kwargs):
        """Take the bar away."""
        self.bar.close()


class Checkpoints(TrainerCallback):
    """Make a training resumable, to the bit on a CPU.

    Checkpoints are transformers' own, written at steps that are multiples of `logging_steps`, since
    the sums behind a logged mean are not saved; each is entered into the run's record, and the two
    newest are kept.
    """

    def __init__(self, run: Run, place: str, inputs: Mapping[str, Any], evaluates: bool):
        """Take note of what belongs to all checkpoints.

        Args:
            run: the run that is trained.
            place: the checkpoints' folder in it.
            inputs: what they are made from.
            evaluates: whether every epoch ends with a validation.
        """
        self.run = run
        self.place = place
        self.inputs = inputs
        self.evaluates = evaluates

    def on_train_begin(self, args, state, control, **kwargs):
        """Settle the steps between two checkpoints."""
        self.epoch_steps = math.ceil(state.max_steps / args.num_train_epochs)
        state.save_steps = args.logging_steps * math.ceil(state.save_steps / args.logging_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the random state, on which an epoch's order hangs in the length-grouping sampler.

        It would hang on all that was drawn before, which a resumed training has not drawn.
        """
        set_seed(args.seed + state.global_step // self.epoch_steps)

    # The state that is saved with an epoch's last step is that after its validation.
    on_evaluate = on_epoch_begin

    def on_step_end(self, args, state, control, **kwargs):
        """Validate with an epoch's last step, not after it, so that its checkpoint holds that."""
        if self.evaluates:
            control.should_evaluate = state.global_step % self.epoch_steps == 0
        if state.global_step % args.logging_steps or state.global_step == state.max_steps:
            control.should_save = False  # the end is saved as a model

    def on_save(self, args, state, control, **kwargs):
        """Enter a checkpoint into the record, and remove those before the last two."""
        folder = Path(args.output_dir)
        name = f"checkpoint-{state.global_step}"
        self.run.seal(f"{self.place}/{name}", self.inputs)
        for old in list_checkpoints(folder)[2:]:
            self.run.forget(f"{self.place}/{old.name}")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the newest first."""
    return sorted(
        folder.glob("checkpoint-[0-9]*"), key=lambda path: -int(path.name.split("-")[1])
    )


def last_checkpoint(
    run: Run, place: str, inputs: Mapping[str, Any], computing: Mapping[str, Any]
) -> Path | None:
    """Find the newest checkpoint that is whole; name and remove those that are not.

    Args:
        run: the run that is trained.
        place: the folder of the model's checkpoints in it.
        inputs: what the training consumes.
        computing: precision, device and processes, which a checkpoint is bound to.

    Returns:
        The checkpoint's folder, None without one.

    Raises:
        ValueError: it was made from something else, or computed in another way.
    """
    for path in list_checkpoints(run.path(place)):
        name = f"{place}/{path.name}"
        if not run.is_whole(name):
            print(f"{path} is not whole. Training goes on without it.")
            run.forget(name)
            continue
        then = dict(run.record.artifacts[name].inputs["computing"])
        for key, value in computing.items():
            if then[key] != value:
                raise ValueError(
                    f"{path} was trained with {key} = {then[key]!r}, and here it is {value!r}. Go "
                    f"on with this model where it was begun, or remove {path.parent}: its training "
                    "then begins anew."
                )
        run.require_same(name, {**inputs, "computing": then})
        return path
    return None
