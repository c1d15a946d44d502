"""What the trainers compute in, and how many pairs a pass may hold on this device."""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import trl.trainer.utils
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from peft import PeftModel
from transformers import Trainer

# A pass on a CPU: four or eight texts of OPT-350M's architecture were hardly faster than two.
CPU_PASS = 2.5 * 2**30  # bytes

# Where Triton runs, TRL sends only positions with a label through the vocabulary; elsewhere it
# sends all, prompt and padding too, since some accelerators like a fixed shape. On a CPU that is up
# to a third of the time and most of the memory. The loss is the same. There is no option for it.
trl.trainer.utils._use_triton = lambda device: True


def choose_precision(wanted: str) -> str:
    """Choose what the trainers compute in.

    Args:
        wanted: "fp32", or "auto" for what the device is fast in.

    Returns:
        "bf16" on GPUs from compute capability 8.0 on and on CPUs that multiply it in hardware,
        "fp16" on older GPUs, "fp32" on other CPUs. A T4 (7.5) only emulates bf16, slowly, though
        torch says that it can.
    """
    if wanted == "fp32":
        return "fp32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if fast else "fp32"


def device_options(wanted: str) -> dict[str, bool]:
    """Give the trainers' options for this device; on a CPU the base's weights set the precision."""
    on_gpu = torch.cuda.is_available()
    precision = choose_precision(wanted)
    return {
        "bf16": on_gpu and precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not on_gpu,
    }


def choose_dtype(wanted: str, frozen: bool) -> torch.dtype:
    """Choose the type of the base's weights, and say so.

    Args:
        wanted: as for `choose_precision`.
        frozen: whether the base stays as it is; weights that are trained are held in fp32.

    Returns:
        bfloat16 where the base is frozen and bf16 is computed in, else float32.
    """
    precision = choose_precision(wanted)
    dtype = torch.bfloat16 if frozen and precision == "bf16" else torch.float32
    print(
        f"Training computes in {precision}; the base's weights are held in "
        f"{str(dtype).removeprefix('torch.')}, those of the adapters in float32."
    )
    return dtype


# ---- passes


def describe_computing(trainer: Trainer) -> dict[str, Any]:
    """Describe what a checkpoint is bound to that a finished model is not."""
    precision = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32"
    model = trainer.accelerator.unwrap_model(trainer.model)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        "precision": precision,
        "weights": str(base.dtype).removeprefix("torch."),
        "device": trainer.args.device.type,
        "processes": trainer.args.world_size,
    }


def settle_pass(trainer: Trainer, pairs: int | None = None) -> int:
    """Split a trainer's steps into passes that fit the device's memory.

    The pairs of a step stay as they are: a smaller pass is repeated more often.

    Args:
        trainer: built, not yet trained; its passes may hold all pairs of a step.
        pairs: those of a pass where that is settled, as by a checkpoint; None tries.

    Returns:
        The pairs in a pass.

    Raises:
        RuntimeError: not even one pair fits.
    """
    args = trainer.args
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if pairs is None:
        divisors = [n for n in range(step, 0, -1) if step % n == 0]
        find = _estimate_pass if args.device.type == "cpu" else _try_passes
        pairs = find(trainer, divisors)
    args.per_device_train_batch_size = pairs
    args.gradient_accumulation_steps = step // pairs
    # The trainer has read the pass when it was built; the argument alone would only change how
    # often it is repeated.
    trainer._train_batch_size = pairs
    _weigh_passes_by_pairs(trainer)
    return pairs


def _weigh_passes_by_pairs(trainer: Trainer) -> None:
    """Let all pairs of a step count the same where an epoch's last pass holds fewer.

    transformers divides the loss of a pass by the number of passes, which weighs such a pass like
    the others. SFT is not concerned: there it divides by the number of tokens in the step.
    """
    get_batch_samples, training_step = trainer.get_batch_samples, trainer.training_step
    rows_in_step = []

    def get_counted_samples(*args: Any, **kwargs: Any) -> tuple[list, Any]:
        passes, tokens = get_batch_samples(*args, **kwargs)
        rows_in_step[:] = [len(batch["input_ids"]) for batch in passes if "input_ids" in batch]
        return passes, tokens

    def take_weighed_pass(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if rows_in_step:
            rows = len(inputs["input_ids"])
            trainer.current_gradient_accumulation_steps = sum(rows_in_step) / rows
        return training_step(model, inputs, *args, **kwargs)

    trainer.get_batch_samples = get_counted_samples
    trainer.training_step = take_weighed_pass


def _estimate_pass(trainer: Trainer, sizes: list[int]) -> int:
    """Estimate the largest pass that suits a CPU, by the texts' length."""
    limit = _pairs_on_cpu(trainer)
    return max((size for size in sizes if size <= limit), default=1)


def _try_passes(trainer: Trainer, sizes: list[int]) -> int:
    """Find the largest pass that fits by trying, the largest first."""
    for size in sizes:
        if fits(trainer, size):
            return size
    raise RuntimeError(
        "Not even one pair fits into the device's memory: set SETTINGS = {'max_length': ...} lower "
        "or take a smaller base."
    )


def fits(trainer: Trainer, pairs: int) -> bool:
    """Try a pass over the longest pairs, forward and backward, and leave no trace of it.

    Args:
        trainer: built, not yet trained.
        pairs: how many of them.

    Returns:
        Whether it went through with room for the optimizer's two moments.
    """
    rows = [trainer.train_dataset[index] for index in _longest(trainer, pairs)]
    trainable = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with _no_trace(trainer):
        try:
            first_moments = [torch.zeros_like(weight) for weight in trainable]
            second_moments = [torch.zeros_like(weight) for weight in trainable]
            batch = trainer._prepare_inputs(trainer.data_collator(rows))
            trainer.model.train()
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            del first_moments, second_moments, batch, loss
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            print(f"A pass of {pairs} pairs does not fit into the device's memory.")
            return False
    return True


@contextmanager
def _no_trace(trainer: Trainer) -> Iterator[None]:
    """Put back what a pass outside of training changes: random state, metrics, gradients."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    metrics = copy.deepcopy(getattr(trainer, "_metrics", None))
    tokens = getattr(trainer, "_total_train_tokens", None)
    training = trainer.model.training
    try:
        yield
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        if metrics is not None:
            trainer._metrics = metrics
        if tokens is not None:
            trainer._total_train_tokens = tokens
        release_memory()


def _longest(trainer: Trainer, pairs: int) -> list[int]:
    """Give the indices of the longest rows, by the number of all their token ids."""
    lengths = _lengths(trainer)
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return order[:pairs]


def _lengths(trainer: Trainer) -> list[int]:
    """Count the token ids of every row of the training's dataset, all columns of ids together."""
    columns = [name for name in trainer.train_dataset.column_names if name.endswith("_ids")]
    lengths = [0] * len(trainer.train_dataset)
    for name in columns:
        for index, ids in enumerate(trainer.train_dataset.with_format("numpy")[name]):
            lengths[index] += len(ids)
    return lengths


def _pairs_on_cpu(trainer: Trainer) -> int:
    """Estimate how many of the longest pairs a pass may hold on a CPU.

    Activations of OPT-350M's architecture took 34 bytes a token, layer and unit of width under
    autocast; in fp32 they take twice as much, and 84 leave room for the kernels. Other
    architectures take more (Llama 61 to 53, Qwen 74 to 66 of OPT's 40 to 26), within that room.
    """
    config = trainer.accelerator.unwrap_model(trainer.model).config
    row = trainer.data_collator([trainer.train_dataset[_longest(trainer, 1)[0]]])
    ids = [tensor for name, tensor in row.items() if name.endswith("input_ids")]
    tokens = sum(tensor.numel() for tensor in ids)
    activations = 84 * config.num_hidden_layers * config.hidden_size * max(1, tokens)
    free = min(CPU_PASS, 0.9 * _machine_memory() - 2**30)
    return 2 ** int(math.log2(max(1, free / activations)))


def _machine_memory() -> int:
    """Give the bytes of memory of the machine or of the container."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


def peak_memory() -> str:
    """Word the most memory that was used at once: on the GPU, or by this process without one."""
    if torch.cuda.is_available():
        return f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"peak memory {process_peak():.1f} GiB"


def process_peak() -> float:
    """Give the most memory that this process has had, in GiB."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.exists():
        # On Linux getrusage may hand down the peak of the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss counts bytes there, else KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
