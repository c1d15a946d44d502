"""Share a training among several processes, whose steps learn from the same pairs as in one.

With `split_batches` accelerate gives each process its part of every pass, and the numbers of pairs
in a trainer's arguments are those of all processes together. Two things are left to be done here:
the last pass of an epoch, which need not be divisible, and means over texts or tokens, which must
not depend on how the texts are dealt out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from math import gcd
from typing import Any

import torch
from transformers import Trainer
from trl import DPOTrainer, KTOTrainer

from posttrain import processes
from posttrain.record import list_differences

# Losses of TRL's DPO trainer that are no mean over a batch's pairs: the first two sort them, and
# the last one is a mean over their tokens.
OVER_BATCHES = {"aot", "aot_unpaired", "sft"}


def pairs_in_a_step(trainer: Trainer) -> int:
    """Count the pairs of a step, over all processes."""
    args = trainer.args
    pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return pairs if trainer.accelerator.split_batches else pairs * args.world_size


def require_sharable(trainer: Trainer, name: str) -> None:
    """Refuse a training that several processes cannot share equally.

    Args:
        trainer: a trainer that has been built and not yet trained.
        name: the model's name.

    Raises:
        ValueError: if the model is to be split, if the steps would depend on the number of
            processes, or if it does not divide the pairs of a step and the held-out pairs.
    """
    processes.require_replicas()
    number = processes.count()
    for argument in ("fsdp", "deepspeed"):
        value = getattr(trainer.args, argument)
        if value:
            raise ValueError(
                f"The trainer of {name} has {argument} = {value!r}, which splits "
                "a model over several processes. Here every process holds the whole model. Leave "
                f"{argument} out, or see docs/processes.md."
            )
    if number > 1:
        _require_same_steps(trainer, name)
        _require_divisible(trainer, name)


def _require_same_steps(trainer: Trainer, name: str) -> None:
    """Refuse arguments with which the steps would depend on the number of processes."""
    args, number = trainer.args, processes.count()
    if depends_on_passes(trainer):
        raise ValueError(
            f"The loss of {name} depends on which pairs a process reads at once, so {number} "
            "processes would train another model than one. Train it with one process."
        )
    if not trainer.accelerator.split_batches:
        raise ValueError(
            f"The trainer of {name} would take other steps in {number} processes than in one. Add "
            "**device.device_options(s.precision) to the arguments of its config."
        )
    if not args.average_tokens_across_devices:
        raise ValueError(
            f"The trainer of {name} has average_tokens_across_devices = False, so tokens would "
            "count differently in different processes. Leave it out."
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            f"The trainer of {name} has train_sampling_strategy = 'batch_rebalance', whose batches "
            "several processes cannot share. Choose 'group_by_length' or 'random'."
        )


def _require_divisible(trainer: Trainer, name: str) -> None:
    """Refuse a number of processes that does not divide the steps and the held-out pairs."""
    args, number = trainer.args, processes.count()
    step = pairs_in_a_step(trainer)
    numbers = {f"{step} pairs of a step (batch_size)": step}
    for dataset in _list_held_out(trainer):
        size = args.per_device_eval_batch_size
        at_once = "" if size == 1 else f", {size} at once,"
        numbers[f"{len(dataset)} held-out pairs (validation_pairs){at_once}"] = len(dataset) / size
    for what, batches in numbers.items():
        if batches % number:
            fitting = [n for n in range(1, step + 1) if _divides(n, numbers.values())]
            advice = f"With these numbers PROCESSES can be {', '.join(map(str, fitting))}."
            if not fitting:
                advice = "Hold out another number of pairs."
            raise ValueError(
                f"{number} processes cannot share the {what} of {name} equally. {advice}"
            )


def _divides(number: int, products: Iterable[float]) -> bool:
    """Tell whether a number divides all of some products."""
    return not any(product % number for product in products)


def _list_held_out(trainer: Trainer) -> list[Any]:
    """List the datasets of held-out pairs, which may have names."""
    if isinstance(trainer.eval_dataset, Mapping):
        return list(trainer.eval_dataset.values())
    return [] if trainer.eval_dataset is None else [trainer.eval_dataset]


def require_alike(what: str, value: Any) -> None:
    """Refuse to go on if a value is not the same in all processes.

    Args:
        what: what the value is, for the message.
        value: data that can be written as JSON.

    Raises:
        RuntimeError: if it differs. The message says in which process, and where.
    """
    values = processes.gather(value)
    for number, other in enumerate(values):
        if other != values[0]:
            first = list_differences(values[0], other)[0]
            raise RuntimeError(
                f"{what} differs between the processes: {first.name} is {first.then!r} in process "
                f"0 and {first.now!r} in process {number}. All processes must read the same files "
                "with the same versions and settings."
            )


def rows_at_once(trainer: Trainer, pairs: int) -> int:
    """Count the most rows that one process reads in a pass.

    Args:
        trainer: the trainer.
        pairs: the number of pairs in a pass, over all processes, which divides by their number.
    """
    number = processes.count()
    rest = len(trainer.train_dataset) % pairs
    return max(pairs // number, rest if rest % number else 0)


# ---- the same steps


def depends_on_passes(trainer: Trainer) -> bool:
    """Tell whether a step's loss would change if its pairs were read in other passes.

    It does where the loss of a pass compares its pairs with each other, as KTO's estimate of the KL
    divergence does, or is a mean over its tokens, as a part of ORPO's and CPO's losses is. (That of
    SFT is also a mean over tokens, but over those of the whole step.) TRL's experimental trainers
    other than SimPO are taken to be of this kind.

    Args:
        trainer: a trainer that has been built.
    """
    if isinstance(trainer, DPOTrainer):
        return bool(OVER_BATCHES & set(trainer.loss_types))
    if isinstance(trainer, KTOTrainer):
        return trainer.calculate_KL
    modules = [kind.__module__ for kind in type(trainer).__mro__]
    is_experimental = any(module.startswith("trl.experimental.") for module in modules)
    return is_experimental and getattr(trainer, "cpo_alpha", None) != 0  # SimPO sets it to 0


def held_out_at_once(trainer: Trainer, pairs: int) -> int:
    """Choose how many held-out pairs a process reads at once.

    A trainer averages its measures over batches. If all batches have the same number of pairs, and
    the measures of a batch are means over its pairs, the average is the same as with single pairs.
    So it is with DPO's losses, rewards and log-probabilities, but not with a loss per token.

    Args:
        trainer: a trainer that has not yet been trained.
        pairs: the number of pairs that a process trains on at once, which fit into memory.

    Returns:
        The largest number that does not change the averages, or the trainer's own if it is not 1.
    """
    own = trainer.args.per_device_eval_batch_size
    sizes = [len(dataset) for dataset in _list_held_out(trainer)]
    if own != 1 or not sizes or not _measures_pairs(trainer):
        return own
    in_process = gcd(*sizes) // processes.count()
    return max(size for size in range(1, max(1, pairs) + 1) if in_process % size == 0)


def _measures_pairs(trainer: Trainer) -> bool:
    """Tell whether the loss of a batch is a mean over its pairs, each by itself."""
    if not isinstance(trainer, DPOTrainer) or trainer.aux_loss_enabled:
        return False
    return not depends_on_passes(trainer)


def share_passes(trainer: Trainer) -> None:
    """Give all texts of a step the same weight, whatever their pass and their process.

    Args:
        trainer: a trainer that has not yet been trained, and whose passes are settled.
    """
    pairs = trainer.args.per_device_train_batch_size // processes.count()
    trainer.args.per_device_eval_batch_size = held_out_at_once(trainer, pairs)
    passes = _Passes(trainer)
    trainer.get_batch_samples = passes.read
    trainer.training_step = passes.learn
    if processes.count() > 1:
        trainer._get_num_items_in_batch = passes.count_tokens
        trainer.prediction_step = partial(_predict_alone, trainer, trainer.prediction_step)
        trainer.log = partial(_log_of_all, trainer, trainer.log)
        trainer.get_train_dataloader = partial(_deal_out, trainer.get_train_dataloader)
        trainer.args.per_device_eval_batch_size *= processes.count()


class _Passes:
    """The passes of a trainer's steps, and the weights of their losses.

    transformers divides the loss of a pass by the number of passes, so that the last pass of an
    epoch would count as much as a full one although it may have fewer texts. In SFT it divides by
    the number of tokens in the step.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.read_of_trainer = trainer.get_batch_samples
        self.learn_of_trainer = trainer.training_step
        self.count_of_trainer = trainer._get_num_items_in_batch
        self.rows: list[int] = []  # of each pass in the step, over all processes
        self.whole: Any = None  # a pass of the step that every process reads as a whole
        rest = len(trainer.train_dataset) % trainer.args.per_device_train_batch_size
        has_rest = rest % processes.count() > 0 and not trainer.args.dataloader_drop_last
        self.rest_is_whole = has_rest  # whether the last pass of an epoch is such a pass
        self.is_reading = False  # whether the passes of a step are being read

    def read(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Read the passes of a step, and count their rows."""
        self.is_reading = True
        passes, tokens = self.read_of_trainer(*args, **kwargs)
        self.is_reading = False
        self.whole = passes[-1] if passes and self._ends_whole() else None
        self.rows = [self._count_rows(batch) for batch in passes if _list_ids(batch)]
        return passes, tokens

    def learn(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Take a pass with the weight that its rows have in the step."""
        if self.rows:
            weight = sum(self.rows) / self._count_rows(inputs)
            self.trainer.current_gradient_accumulation_steps = weight
        if inputs is self.whole and num_items_in_batch is not None:
            # transformers multiplies the loss by the number of processes, as if each had its part.
            num_items_in_batch = num_items_in_batch * processes.count()
        return self.learn_of_trainer(model, inputs, num_items_in_batch, *args, **kwargs)

    def count_tokens(self, passes: list, device: torch.device) -> Any:
        """Count the tokens that the losses of some passes are divided by, as in one process."""
        number = processes.count()
        if not self.is_reading:  # held-out pairs, whose loss is a mean over pairs, not over tokens
            own = self._count_own_tokens(passes, device)
            return None if own is None else own * number
        tokens = self.count_of_trainer(passes, device)
        if tokens is not None and self._ends_whole():  # every process has counted the same tokens
            tokens = tokens - (number - 1) * self._count_own_tokens(passes[-1:], device)
        return tokens

    def _count_own_tokens(self, passes: list, device: torch.device) -> Any:
        """Count the tokens of passes in this process alone."""
        args = self.trainer.args
        args.average_tokens_across_devices = False
        try:
            return self.count_of_trainer(passes, device)
        finally:
            args.average_tokens_across_devices = True

    def _count_rows(self, batch: Any) -> int:
        """Count the rows of a pass over all processes."""
        parts = 1 if batch is self.whole else processes.count()
        return len(batch[_list_ids(batch)[0]]) * parts

    def _ends_whole(self) -> bool:
        """Tell whether the pass that was read last is one that every process reads as a whole."""
        return self.rest_is_whole and self.trainer.accelerator.gradient_state.end_of_dataloader


def _list_ids(batch: Any) -> list[str]:
    """List the names under which a batch has token ids; ORPO has chosen_input_ids among others."""
    return [name for name in batch if name.endswith("input_ids")]


@contextmanager
def alone(trainer: Trainer) -> Iterator[None]:
    """Let a trainer compute its measures from this process's rows, without the other processes.

    Args:
        trainer: a trainer, whose losses gather their measures over all processes.
    """
    accelerator = trainer.accelerator
    names = ("gather", "gather_for_metrics")
    for name in names:
        setattr(accelerator, name, lambda values, *args, **kwargs: values)
    try:
        yield
    finally:
        for name in names:
            delattr(accelerator, name)


def _predict_alone(trainer: Trainer, predict: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Measure held-out pairs one by one, where TRL would take means over those of all processes."""
    with alone(trainer):
        return predict(*args, **kwargs)


def _log_of_all(trainer: Trainer, log: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Log the means over the held-out pairs of all processes."""
    measures = getattr(trainer, "_metrics", {}).get("eval", {})
    if measures and not trainer.model.training:
        parts = processes.gather(dict(measures))
        for name in sorted(measures):
            measures[name] = list(chain.from_iterable(part[name] for part in parts))
    log(*args, **kwargs)


def _deal_out(build_loader: Callable[[], Any]) -> Any:
    """Build a trainer's data loader, and let it deal out also an epoch's last pass exactly.

    accelerate would fill that pass up with texts of the first one, which would count twice.
    """
    loader = build_loader()
    shard = loader.batch_sampler
    shard._iter_with_split = partial(_take_parts, shard.batch_sampler)
    return loader


def _take_parts(batches: Any) -> Iterator[list[int]]:
    """Take this process's part of every batch, or the whole one if it cannot be divided."""
    number = processes.count()
    for batch in batches:
        if len(batch) % number:
            yield batch
        else:
            part = len(batch) // number
            start = processes.rank() * part
            yield batch[start : start + part]
