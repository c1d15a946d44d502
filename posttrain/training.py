"""What TRL's trainers need around them: precision, batches that fit, resumable checkpoints, the check of ln 2."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import psutil
import torch
import trl.trainer.utils
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.utils.notebook import NotebookProgressCallback

from posttrain.files import read_json, write
from posttrain.ledger import FULL_SFT
from posttrain.models import load_config, save_trained
from posttrain.runs import Run, Source

MakeTrainer = Callable[[Path, int], Trainer]  # of the folder of checkpoints and the pairs in a forward pass


# Where Triton runs, TRL sends only positions with a label through the vocabulary; elsewhere it sends all, prompt and
# padding too, since some accelerators like a fixed shape. On a CPU that is up to a third of the time and most of the
# memory. The loss is the same. There is no option for it.
trl.trainer.utils._use_triton = lambda device: True


def precision(wanted: str) -> str:
    """Return what the trainers compute in: fp32 where that is `wanted`, else what the device is fast in.

    That is bf16 on GPUs from compute capability 8.0 on and on CPUs that multiply it in hardware, fp16 on older GPUs,
    and fp32 on other CPUs. A T4 (7.5) only emulates bf16, slowly, and torch says that it can.
    """
    if wanted == "fp32":
        return "fp32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def device_options(wanted: str) -> dict[str, bool]:
    """Return the trainers' options for the device and its precision; a CPU computes in what the base's weights are."""
    gpu = torch.cuda.is_available()
    return {"bf16": gpu and precision(wanted) == "bf16", "fp16": precision(wanted) == "fp16", "use_cpu": not gpu}


def base_dtype(wanted: str, frozen: bool) -> torch.dtype:
    """Return the type of the base's weights, and say so: bf16 where the base is frozen and bf16 is computed in."""
    dtype = torch.bfloat16 if frozen and precision(wanted) == "bf16" else torch.float32
    print(f"Computed in {precision(wanted)}, the base's weights in {str(dtype).removeprefix('torch.')}, the adapters "
          "in float32.")
    return dtype


def device_memory() -> int:
    """Return the bytes of memory of the device; where there is none, of the machine or of the container."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    limit = Path("/sys/fs/cgroup/memory.max").read_text() if Path("/sys/fs/cgroup/memory.max").exists() else "max"
    total = psutil.virtual_memory().total
    return total if limit.strip() == "max" else min(total, int(limit))


def rows_that_fit(config: PreTrainedConfig, max_length: int, all_weights: bool, memory: int, fp32: bool,
                  on_cpu: bool) -> int:
    """Return how many texts of `max_length` tokens a training step's pass may hold in `memory` bytes, a power of two.

    Weights take 4 bytes a parameter, 16 where all are trained (gradients, two moments). Activations were measured on
    OPT-350M's architecture under autocast: 34 bytes a token, layer and unit of width; 42 leave room for the kernels,
    and fp32 takes twice as much. A tenth and 1 GiB stay free for fragments and for the device itself. On a CPU a pass
    holds at most 2.5 GiB: of OPT-350M's architecture four or eight texts at a time were hardly faster than two.
    """
    size = config.num_hidden_layers * config.hidden_size
    parameters = 12 * size * config.hidden_size + config.vocab_size * config.hidden_size
    free = 0.9 * memory - 2**30 - parameters * (16 if all_weights else 4)
    token = 84 * size if fp32 or on_cpu else 42 * size
    return 2 ** int(math.log2(max(1, min(free, 2.5 * 2**30 if on_cpu else free) / (token * max_length))))


def pairs_at_once(config: PreTrainedConfig, settings: Mapping[str, Any], name: str) -> int:
    """Return how many pairs a pass of the training of model `name` may hold on this device."""
    rows = rows_that_fit(config, settings["max_length"], settings["sft_method"] == "full", device_memory(),
                         precision(settings["precision"]) == "fp32", not torch.cuda.is_available())
    texts = 1 if name == "SFT" else 2  # of a pair: DPO reads both replies
    return max(1, min(settings["batch_size"], rows // texts))


def batches(batch_size: int, at_once: int) -> dict[str, int]:
    """Return the trainers' options that put `batch_size` pairs into a step, and at most `at_once` into a pass."""
    pairs = max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= at_once)
    return {"per_device_train_batch_size": pairs, "gradient_accumulation_steps": batch_size // pairs}


class FirstLossIsLn2(TrainerCallback):
    """Stop a DPO run whose first training loss is not ln 2: policy and reference are not the same model."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        # on a GPU the kernels with and without gradients may differ by some 2e-3; dropout makes 0.60 or 0.70
        tolerance = 1e-2 if args.device.type == "cuda" else 1e-3
        if state.global_step == 1 and "loss" in logs and not abs(logs["loss"] - math.log(2)) < tolerance:
            raise RuntimeError(f"The first DPO loss is {logs['loss']:.4f}, not ln 2 = 0.6931: policy and reference "
                               "differ before any training. Is dropout on, or the reference another model?")


class Progress(TrainerCallback):
    """A bar, and a line for every validation, in place of a table that runs off the page."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, leave=False, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        names = {"eval_loss": "loss", "eval_rewards/accuracies": "accuracy", "eval_rewards/margins": "margin"}
        values = ", ".join(f"{name} {metrics[key]:.3f}" for key, name in names.items() if key in metrics)
        print(f"step {state.global_step} of {state.max_steps}, held-out pairs: {values}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Checkpoints(TrainerCallback):
    """Make training resumable, to the bit on a CPU; lost are at most so many minutes of work and the next ten steps.

    Checkpoints are written by time, so that a slow drive is not filled, and sealed in the run's ledger; the two newest
    are kept.
    """

    def __init__(self, run: Run, name: str, made_from: dict[str, Any], minutes: float):
        self.run, self.name, self.made_from, self.minutes = run, name, made_from, minutes
        self.saved = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch_steps = state.max_steps // args.num_train_epochs

    def on_epoch_begin(self, args, state, control, **kwargs):
        # an epoch's order of pairs hangs on the state of the random numbers, and that on what was done before
        set_seed(args.seed + int(state.global_step // self.epoch_steps))

    on_evaluate = on_epoch_begin  # and the state at an epoch's end is saved after its validation

    def on_step_end(self, args, state, control, **kwargs):
        # with the step, not after it, so that a checkpoint of this step holds the validation
        control.should_evaluate = state.global_step % self.epoch_steps == 0
        if state.global_step % args.logging_steps == 0:  # between, a checkpoint would lose a part of the logged means
            control.should_save |= time.monotonic() - self.saved > 60 * self.minutes

    def on_save(self, args, state, control, **kwargs):
        self.run.seal(f"{self.name}/checkpoint-{state.global_step}", self.made_from)
        for old in _checkpoints(Path(args.output_dir))[2:]:
            self.run.forget(f"{self.name}/{old.name}")
        self.saved = time.monotonic()


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    return sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: -int(path.name.split("-")[1]))


def last_checkpoint(run: Run, name: str, made_from: dict[str, Any]) -> Path | None:
    """Return the newest whole checkpoint under `name` in the run's folder, None without one.

    Names and removes those that are not whole; raises ValueError for one that was made from something else.
    """
    for path in _checkpoints(run.folder / name):
        if not run.is_whole(f"{name}/{path.name}"):
            print(f"{path} is not whole. Training goes on without it.")
            run.forget(f"{name}/{path.name}")
            continue
        made = run.ledger.artifacts[f"{name}/{path.name}"]
        then, now = (one.get("precision") for one in (made.made_from, made_from))
        if then != now:
            raise ValueError(f"{path} was trained in {then} on {made.environment['device']}, and this device trains in "
                             f"{now}. Go on with this stage on a device like it, or remove {path.parent}: the stage "
                             "then begins anew.")
        run.require_same(f"{name}/{path.name}", made_from)
        return path
    return None


def clean_log(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a trainer's log records without what differs when the same training is done again, or was interrupted.

    Left out: times, TRL's count of tokens, which begins anew with a resumed run, and the record of totals at the end.
    What is not finite is None: in fp16 a first gradient may overflow, and JSON knows no infinity. The names are sorted,
    as they are in a checkpoint.
    """
    unlike = ("runtime", "per_second", "num_tokens")
    return [{name: record[name] if math.isfinite(record[name]) else None
             for name in sorted(record) if not name.endswith(unlike)}
            for record in records if "train_runtime" not in record]


def halve_until_it_fits(attempt: Callable[[int], Any], at_once: int) -> Any:
    """Return attempt(at_once), the number of pairs in a pass halved as often as it runs out of memory."""
    while True:
        try:
            return attempt(at_once)
        except RuntimeError as error:
            if at_once == 1 or not should_reduce_batch_size(error):
                raise
        at_once //= 2
        release_memory()
        print(f"Out of memory. Once more, with {at_once} pairs in a pass and as many in a step as before.")


def resume(trainer: Trainer, run: Run, name: str, made_from: dict[str, Any], minutes: float) -> None:
    """Train to the end, from the last checkpoint on that is whole and was made from the same."""
    checkpoint = last_checkpoint(run, name, made_from)
    trainer.args.eval_on_start = checkpoint is None
    for bar in (NotebookProgressCallback, ProgressCallback, PrinterCallback):
        trainer.remove_callback(bar)
    trainer.add_callback(Progress())
    trainer.add_callback(Checkpoints(run, name, made_from, minutes))
    try:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    except UnpicklingError as error:  # torch reads numbers only, and refuses what would run code
        raise ValueError(f"{checkpoint} holds more than a checkpoint does. Move it away. {error}") from error


def once(run: Run, name: str, make_trainer: MakeTrainer, base: Source, made_from: dict[str, Any]) -> list[dict]:
    """Return the training log of the run's model `name`; where it is not there, train and save it first.

    Raises ValueError where what is there was made from something else or is not whole, and what `save_trained` raises.
    """
    settings = run.ledger.settings["training"]
    model = next(model for model in run.ledger.models if model.name == name)
    artifact, over = model.adapter or model.base, run.folder / FULL_SFT if model.base == FULL_SFT else base.folder
    made_from = made_from | {"model": name}

    computed = {"precision": precision(settings["precision"])}

    def attempt(at_once: int) -> Trainer:
        trainer = make_trainer(run.folder / "unfinished" / artifact, at_once)
        _say_what_is_adapted(trainer.model)
        resume(trainer, run, f"unfinished/{artifact}", made_from | computed, settings["save_minutes"])
        return trainer

    def train(folder: Path) -> None:
        trainer = halve_until_it_fits(attempt, pairs_at_once(load_config(base.folder), settings, name))
        trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        called, commit = (str(over), None) if model.base == FULL_SFT else (base.name, base.commit)
        save_trained(trained, folder, over, called, commit, trainer.processing_class)
        write(folder / "log.json", clean_log(trainer.state.log_history))
        trainer.accelerator.free_memory()
        trainer = trained = None
        release_memory()  # or the model stays in memory until some later garbage collection

    return read_json(run.once(artifact, train, made_from) / "log.json", list[dict])


def _say_what_is_adapted(model: torch.nn.Module) -> None:
    """Say which of the layers that LoRA is to adapt a base does not have: another architecture names them otherwise."""
    if isinstance(model, PeftModel):
        wanted = {name.rsplit(".", 1)[-1] for name in model.peft_config["default"].target_modules}
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        if missing := sorted(wanted - names):
            there = ", ".join(sorted(wanted & names))
            print(f"This base has no layers {', '.join(missing)}: LoRA adapts only {there}.")
