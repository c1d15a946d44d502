"""Choose the precision of training, and the number of pairs in a pass that fits this device."""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.compute as compute
import torch
import trl.trainer.utils
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch.nn import Module
from transformers import Trainer

from posttrain import processes, sharing
from posttrain.architecture import read_size
from posttrain.loading import load_config
from posttrain.packing import packed_for_training

# Size of a pass on a CPU: tokens, times layers, times the length of a hidden state. With OPT-350M's
# architecture, passes of four or eight texts were hardly faster per text than passes of two.
CPU_PASS = 32_000_000
# Bytes for each unit of that size, for what is kept for the backward pass: more than any of the
# architectures takes that benchmarks/activations.md lists.
BYTES_OF_A_UNIT = 140

# Where Triton runs, TRL computes logits only at positions with a label. Elsewhere it computes them
# at all positions, prompt and padding included, because some accelerators need a fixed shape. On a
# CPU this takes up to a third of the time and most of the memory, and the loss is the same. TRL has
# no option for it.
trl.trainer.utils._use_triton = lambda device: True

# TRL computes logits for this many tokens of the vocabulary at once: 32,768, which suits a GPU. On
# a CPU that is more than its cache holds, and the head took a quarter longer in bf16.
if not torch.cuda.is_available():
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = 4096


def choose_precision(wanted: str) -> str:
    """Choose the precision in which the trainers compute.

    Args:
        wanted: "fp32", or "auto" for the precision in which the device is fast.

    Returns:
        "bf16" on GPUs from compute capability 8.0 on and on CPUs that multiply it in hardware,
        "fp16" on older GPUs, and "fp32" on other CPUs. A T4 (compute capability 7.5) emulates bf16
        slowly, although torch reports that it is supported.
    """
    if wanted == "fp32":
        return "fp32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return "bf16" if fast else "fp32"


def device_options(wanted: str) -> dict[str, Any]:
    """Build the precision and device arguments of a trainer's config.

    Several processes share each pass, so that the numbers of pairs in the config are those of all
    processes together.

    Args:
        wanted: the precision, as in `choose_precision`.
    """
    on_gpu = torch.cuda.is_available()
    precision = choose_precision(wanted)
    options: dict[str, Any] = {
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not on_gpu,
    }
    if processes.count() > 1:
        options["accelerator_config"] = {"split_batches": True}
        options["ddp_find_unused_parameters"] = False
    return options


def choose_dtype(base: Path, wanted: str, frozen: bool) -> torch.dtype:
    """Choose the type of the base's weights, and print it.

    Args:
        base: the folder of the base.
        wanted: the precision, as in `choose_precision`.
        frozen: whether the base's weights are frozen. Weights that are trained need float32.

    Returns:
        bfloat16 if the base is frozen and training computes in bf16. float16 if the base is frozen,
        training computes in fp16 and its files hold float16 too: other weights could be too large
        for it. Otherwise float32.
    """
    precision = choose_precision(wanted)
    dtype = torch.float32
    if frozen and precision == "bf16":
        dtype = torch.bfloat16
    elif frozen and precision == "fp16" and load_config(base).dtype == torch.float16:
        dtype = torch.float16
    print(
        f"Training computes in {precision}. The base's weights are stored as "
        f"{str(dtype).removeprefix('torch.')}, and the weights of the adapters as float32."
    )
    return dtype


@contextmanager
def leave_types_to_autocast() -> Iterator[None]:
    """Let LoRA layers take their input in the type that it has wherever autocast chooses the types.

    peft converts the input to the adapter's fp32, and autocast converts it back to bf16. Without
    both, loss and gradients are the same to the bit unless the adapter has dropout, which then
    draws other neurons. With OPT's architecture a third less memory is taken by what is kept for
    the backward pass. Variants of LoRA such as DoRA compute with the converted input and keep it.
    """
    convert = LoraLayer._cast_input_dtype

    def convert_without_autocast(
        layer: LoraLayer, values: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        if torch.is_autocast_enabled(values.device.type) and not layer.lora_variant:
            return values
        return convert(layer, values, dtype)

    LoraLayer._cast_input_dtype = convert_without_autocast
    try:
        yield
    finally:
        LoraLayer._cast_input_dtype = convert


@contextmanager
def computed_fast(trainer: Trainer) -> Iterator[None]:
    """Leave out conversions under autocast, and in fp32 on a CPU multiply with rearranged weights.

    The latter is done for the linear layers that a LoRA adapter changes, whose weights belong to
    the base and are in no checkpoint. The head is left out, because TRL's losses read its weight.
    The transposed weights, which the backward pass needs, take as much memory again. If that is
    more than a tenth of the machine's memory, nothing is rearranged. Nothing is rearranged either
    in a model that torch compiles, or where several processes train together, because they share
    the memory and the cores.

    Args:
        trainer: a trainer whose model is trained meanwhile.
    """
    with leave_types_to_autocast():
        model = trainer.model
        in_fp32 = describe_computing(trainer)["precision"] == "fp32"
        is_compiled = trainer.args.torch_compile
        layers = []
        if in_fp32 and not is_compiled and processes.count() == 1 and isinstance(model, PeftModel):
            for layer in model.modules():
                if type(layer) is LoraLinear and layer is not model.get_output_embeddings():
                    layers.append(layer.get_base_layer())
        with packed_for_training(model, layers, _learn_from_two_tokens, _machine_memory() / 10):
            yield


def _learn_from_two_tokens(model: Module) -> torch.Tensor:
    """Compute the logits of two tokens, and the norms of the gradients of a loss.

    Returns:
        A float32 tensor of shape (2 * vocabulary + number of trained tensors with a gradient).
    """
    training = model.training
    model.eval()  # without dropout nothing is drawn
    try:
        logits = model(input_ids=torch.tensor([[1, 2]])).logits
        logits.square().sum().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norms = [gradient.norm()[None] for gradient in gradients]
        return torch.cat([logits.detach().flatten(), *norms])
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


# ---- passes


def describe_computing(trainer: Trainer) -> dict[str, Any]:
    """Describe the precision and device, which a checkpoint depends on and a finished model not."""
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

    The number of pairs in a step stays the same: a step is made of more passes if they are smaller.
    Several processes share each pass, and take the largest one that fits on all their devices.
    A loss that depends on the passes keeps those of the trainer's config.

    Args:
        trainer: a trainer that has been built and not yet trained.
        pairs: the number of pairs in a pass, where a checkpoint prescribes it. None finds it.

    Returns:
        The number of pairs in a pass.

    Raises:
        RuntimeError: if not even one pair fits, or not the pass that the loss depends on.
    """
    args = trainer.args
    step = sharing.pairs_in_a_step(trainer)
    if sharing.depends_on_passes(trainer):
        pairs = args.per_device_train_batch_size
        if args.device.type != "cpu" and not fits(trainer, pairs):
            raise RuntimeError(
                f"A pass of {pairs} pairs does not fit into the device's memory, and it is not "
                "split here because the loss would change. Set a smaller "
                "per_device_train_batch_size in the trainer's config, and the number of passes as "
                "gradient_accumulation_steps."
            )
    elif pairs is None:
        number = processes.count()
        divisors = [n for n in range(step, 0, -1) if step % n == 0 and n % number == 0]
        find = _estimate_pass if args.device.type == "cpu" else _try_passes
        pairs = find(trainer, divisors)
    args.per_device_train_batch_size = pairs
    args.gradient_accumulation_steps = step // pairs
    # The trainer read the size of a pass when it was built. The argument alone would only change
    # the number of passes.
    trainer._train_batch_size = pairs
    sharing.share_passes(trainer)
    return pairs


def _estimate_pass(trainer: Trainer, sizes: list[int]) -> int:
    """Estimate from the lengths of the texts the largest pass that suits a CPU."""
    limit = min(processes.gather(_pairs_on_cpu(trainer)))
    fitting = [size for size in sizes if sharing.rows_at_once(trainer, size) <= limit]
    return max(fitting, default=min(sizes))


def _try_passes(trainer: Trainer, sizes: list[int]) -> int:
    """Find the largest pass that fits by trying the sizes, largest first."""
    for size in sizes:
        if all(processes.gather(fits(trainer, sharing.rows_at_once(trainer, size)))):
            return size
    raise RuntimeError(
        "Not even one pair fits into the device's memory. Set a lower max_length in SETTINGS, or "
        "choose a smaller BASE_MODEL."
    )


def fits(trainer: Trainer, pairs: int) -> bool:
    """Try a forward and backward pass over the longest pairs, and undo everything it changes.

    Args:
        trainer: a trainer that has been built and not yet trained.
        pairs: the number of pairs in the pass.

    Returns:
        Whether the pass fits into memory together with the optimizer's two moments.
    """
    rows = [trainer.train_dataset[index] for index in _longest(trainer, pairs)]
    trainable = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with _no_trace(trainer), sharing.alone(trainer):
        try:
            first_moments = [torch.zeros_like(weight) for weight in trainable]
            second_moments = [torch.zeros_like(weight) for weight in trainable]
            # Several processes exchange their gradients through a copy of them.
            copies = [torch.zeros_like(weight) for weight in trainable if processes.count() > 1]
            batch = trainer._prepare_inputs(trainer.data_collator(rows))
            trainer.model.train()
            with leave_types_to_autocast():
                with trainer.accelerator.autocast():
                    loss = trainer.compute_loss(trainer.model, batch)
                loss.backward()
            del first_moments, second_moments, copies, batch, loss
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            print(f"A pass of {pairs} pairs does not fit into the device's memory.")
            return False
    return True


@contextmanager
def _no_trace(trainer: Trainer) -> Iterator[None]:
    """Restore what a trial pass changes: the random state, the metrics and the gradients."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    kept = {}
    for name in ("_metrics", "_stored_metrics", "_total_train_tokens"):  # by trainer
        if hasattr(trainer, name):
            kept[name] = copy.deepcopy(getattr(trainer, name))
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
        for name, value in kept.items():
            setattr(trainer, name, value)
        release_memory()


def _longest(trainer: Trainer, pairs: int) -> list[int]:
    """List the indices of the rows with the most token ids, longest first."""
    order = np.argsort(-_lengths(trainer), kind="stable")
    return order[:pairs].tolist()


def _lengths(trainer: Trainer) -> np.ndarray:
    """Count the token ids of every row of the training dataset, over all columns of ids.

    The lengths are read from Arrow's tables, since making an array of every text takes much longer.

    Returns:
        An int64 array of shape (rows,).
    """
    dataset = trainer.train_dataset
    columns = []
    for field in dataset.data.schema:
        if field.name.endswith("_ids") and hasattr(field.type, "value_type"):  # it holds lists
            columns.append(field.name)
    lengths = np.zeros(len(dataset), np.int64)
    if not columns:
        return lengths
    start = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        for name in columns:
            of_rows = compute.fill_null(compute.list_value_length(table[name]), 0)
            lengths[start : start + len(table)] += of_rows.to_numpy()
        start += len(table)
    return lengths


def _pairs_on_cpu(trainer: Trainer) -> int:
    """Estimate how many pairs of the longest length suit a pass on a CPU, and fit its memory."""
    size = read_size(trainer.accelerator.unwrap_model(trainer.model).config)
    row = trainer.data_collator([trainer.train_dataset[_longest(trainer, 1)[0]]])
    ids = [tensor for name, tensor in row.items() if name.endswith("input_ids")]
    tokens = sum(tensor.numel() for tensor in ids)
    # A fifth is left to others and to transposed weights.
    memory = 0.8 * _machine_memory() / processes.count_on_this_machine()
    largest = min(CPU_PASS, (memory - 2**30) / BYTES_OF_A_UNIT)
    return 2 ** int(math.log2(max(1, largest / (max(1, tokens) * size.layers * size.width))))


def _machine_memory() -> int:
    """Read the memory of the machine, or the smaller limit of its container, in bytes."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


def peak_memory() -> str:
    """Report the peak memory of the GPU or, without a GPU, of this process, as text."""
    if torch.cuda.is_available():
        return f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"peak memory {process_peak():.1f} GiB"


def process_peak() -> float:
    """Measure the peak memory of this process, in GiB."""
    import resource
    import sys

    status = Path("/proc/self/status")
    if status.exists():
        # On Linux getrusage may include the peak of the process that started this one.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
