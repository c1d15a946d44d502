"""Groups many texts into batches of similar length, and halves a batch if memory runs out."""

import math
from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import release_memory, should_reduce_batch_size
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from posttrain import processes
from posttrain.architecture import read_size

ON_CPU = 16  # texts read at once on a CPU, where more take longer for each
ON_GPU = (16, 256)  # the fewest and the most on a GPU


def texts_at_once(model: PreTrainedModel | PeftModel, tokens: int) -> int:
    """Choose how many texts a model reads at once: on a GPU, as many as its free memory holds.

    A text takes the keys and values of its tokens in every layer, twice, since the cache is copied
    when it grows. A batch that does not fit all the same is halved later. Several processes take
    the number that fits on all their GPUs, since they share the same batches.

    Args:
        model: a causal language model.
        tokens: the most tokens of a text, the generated ones included.
    """
    if model.device.type != "cuda":
        return ON_CPU
    size = read_size(model.config)
    keys_and_values = 2 * size.layers * size.width * tokens * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = min(processes.gather(0.8 * free / (2 * keys_and_values)))
    fewest, most = ON_GPU
    return min(most, max(fewest, 2 ** int(math.log2(max(1, fitting)))))


def batches_of_like_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Group indices into batches, short texts first.

    Args:
        lengths: the length of each text, in tokens.
        size: how many texts a batch may hold.

    Returns:
        Lists of indices into `lengths`.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices into batches of limited size once padded, long texts first.

    Args:
        lengths: the length of each text, in tokens.
        budget: how many tokens a batch may hold, padding included. A text that is longer than
            that is a batch of its own.

    Returns:
        Lists of indices into `lengths`.
    """
    batches = []
    longest = 0  # of the texts in the batch that is being filled
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
            longest = lengths[i]
    return batches


def in_batches(
    function: Callable[[Sequence[int]], list], batches: Sequence[Sequence[int]], label: str
) -> list:
    """Apply a function to batches of indices; a batch that runs out of memory is halved.

    Of several processes each takes every n-th batch, whole, so that the values are the same as in
    one process. All of them get all values.

    Args:
        function: takes a batch of indices and returns a list with one value for each index.
        batches: the batches, in which every index occurs once.
        label: the text beside the progress bar.

    Returns:
        The values in the order of the indices.
    """
    values = {}
    own = batches[processes.rank() :: processes.count()]
    for batch in tqdm(own, desc=label, leave=False):
        values.update(zip(batch, _in_halves(function, batch)))
    for part in processes.gather(values):
        values.update(part)
    if len(values) != sum(len(batch) for batch in batches):
        raise RuntimeError(f"{label}: the processes have dealt out different batches.")
    return [values[i] for i in sorted(values)]


def _in_halves(function: Callable[[Sequence[int]], list], batch: Sequence[int]) -> list:
    """Apply a function to a batch, or to one half after the other if memory runs out."""
    try:
        return function(batch)
    except RuntimeError as error:
        if len(batch) == 1 or not should_reduce_batch_size(error):
            raise
    # Not within `except`, because the error keeps the tensors of the batch in memory.
    release_memory()
    print(f"Out of memory with {len(batch)} texts at once, so they are processed in two halves.")
    half = len(batch) // 2
    return [*_in_halves(function, batch[:half]), *_in_halves(function, batch[half:])]
