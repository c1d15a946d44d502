"""What a trainer is about to consume, read from the trainer itself.

Two trainers of equal descriptions train the same model. A description holds the trainer's class and
the other arguments of its constructor, the arguments of its config, the model's and the adapter's
config, the base's identity, the adapter that it goes on from, the token ids of both datasets, and
the source of whatever is defined in a notebook. It leaves out what only says where and how the
computing is done: paths, logging, saving, devices, precision.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from posttrain import hub
from posttrain.files import fingerprint, sha256_of
from posttrain.record import PLAIN, functions_of, source_of
from posttrain.run import Run

# Arguments of a config on which no result depends. How a step is split into passes is one of them:
# their product, the pairs in a step, is described instead.
INDIFFERENT = re.compile(
    "output_dir|run_name|project|debug|disable_tqdm|report_to|local_rank|deepspeed|use_cpu|tf32"
    "|(logging|log|save|hub|push|trackio|ddp|fsdp|bf16|fp16|do|torch_compile|dataloader)_.*"
    "|bf16|fp16|fsdp|torch_compile|torch_empty_cache_steps|auto_find_batch_size|use_cache"
    "|(activation|gradient)_checkpointing.*|activation_offloading|accelerator_config"
    "|parallelism_config|per_device_train_batch_size|gradient_accumulation_steps"
    "|dataset_num_proc|skip_memory_metrics|resume_from_checkpoint|enable_jit_checkpoint"
    "|ignore_data_skip|restore_callback_states_from_checkpoint|include_num_input_tokens_seen"
)
STILL_DECISIVE = ("dataloader_drop_last",)
OF_NO_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
OF_NO_ADAPTER = (
    "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
)  # fmt: skip
# Arguments of constructors that are described on their own.
ELSEWHERE = (
    "self", "args", "kwargs", "model", "train_dataset", "eval_dataset", "processing_class",
    "peft_config", "callbacks", "optimizers", "model_init", "quantization_config",
)  # fmt: skip
LONGEST_VALUE = 2000  # characters of a notebook's value; of a longer one the sha256 is kept


def describe(trainer: Trainer, run: Run) -> dict[str, Any]:
    """Describe what a trainer is about to consume.

    Args:
        trainer: built, not yet trained.
        run: whose models it may go on from.

    Returns:
        The description, as JSON can hold it.

    Raises:
        ValueError: a dataset is streamed, so that nobody can know what it will give.
    """
    notebook = Notebook()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "trainer": _describe_value(type(trainer), notebook),
        "constructor": _describe_constructor(trainer, notebook),
        "arguments": _describe_arguments(trainer, notebook),
        "model_config": _without(model.config.to_dict(), OF_NO_CONFIG),
        "adapter_config": _describe_adapter(model),
        "trained_weights": _describe_trained(model),
        "base_model": identify_base(model, run),
        "goes_on_from": fingerprint_adapter(model),
        "train_dataset": fingerprint_dataset(trainer.train_dataset),
        "eval_dataset": fingerprint_dataset(trainer.eval_dataset),
        "notebook": notebook.definitions,
    }


def _without(table: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Give a table of plain values without some of its names."""
    plain = {name: value for name, value in table.items() if name not in names}
    return _describe_value(plain, Notebook())


# ---- the config and the constructor


def _describe_arguments(trainer: Trainer, notebook: "Notebook") -> dict[str, Any]:
    """Describe the arguments of the config that can change the result."""
    args = trainer.args
    described = {
        "pairs_in_a_step": args.per_device_train_batch_size
        * args.gradient_accumulation_steps
        * args.world_size
    }
    for field in dataclasses.fields(args):
        decisive = field.name in STILL_DECISIVE or not INDIFFERENT.fullmatch(field.name)
        if decisive and not field.name.startswith("_"):
            described[field.name] = _describe_value(getattr(args, field.name), notebook)
    return described


def _describe_constructor(trainer: Trainer, notebook: "Notebook") -> dict[str, Any]:
    """Describe the other arguments of the constructor, as far as the trainer keeps them."""
    described = {}
    for kind in type(trainer).__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        for name in inspect.signature(kind.__init__).parameters:
            if name not in ELSEWHERE and hasattr(trainer, name):
                described[name] = _describe_value(getattr(trainer, name), notebook)
    described["optimizer"] = _describe_value(trainer.optimizer, notebook)
    described["lr_scheduler"] = _describe_value(trainer.lr_scheduler, notebook)
    described["callbacks"] = [
        _describe_value(callback, notebook)
        for callback in trainer.callback_handler.callbacks
        if not _is_transformers_own(callback)
    ]
    return described


def _is_transformers_own(callback: TrainerCallback) -> bool:
    """Tell whether a callback is one of those that every trainer of transformers has."""
    module = type(callback).__module__
    kind = type(callback).__name__
    is_common = kind in ("DefaultFlowCallback", "ProgressCallback", "PrinterCallback")
    return is_common or module.startswith(
        ("transformers.integrations", "transformers.utils.notebook")
    )


# ---- models


def _describe_adapter(model: PreTrainedModel | PeftModel) -> dict[str, Any] | None:
    """Describe the config of the adapter that is trained, None where all weights are."""
    if not isinstance(model, PeftModel):
        return None
    return _without(model.peft_config["default"].to_dict(), OF_NO_ADAPTER)


def _describe_trained(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Describe which weights learn; all others are frozen."""
    learning = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            learning[name] = list(weight.shape)
    return {"tensors": len(learning), "sha256_of_names": fingerprint(learning)}


def identify_base(model: PreTrainedModel | PeftModel, run: Run) -> str:
    """Find by what the base of a model is known: its commit on the hub, or its folder's sha256.

    Args:
        model: the model or the adapter over it.
        run: whose own fully fine-tuned models may be the base.

    Returns:
        The identity, the same as `Run.source` gives.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    folder = Path(base.config._name_or_path)
    if not folder.is_dir():
        return str(getattr(base.config, "_commit_hash", None) or folder)
    if folder.resolve().is_relative_to(run.folder.resolve()):
        name = folder.resolve().relative_to(run.folder.resolve()).as_posix()
        return run.record.artifacts[name].sha256
    return hub.commit_of(folder) or sha256_of(folder)


def fingerprint_adapter(model: PreTrainedModel | PeftModel) -> str | None:
    """Compute the sha256 of the adapter's weights that a training goes on from.

    Returns:
        None where the adapter is new: its second matrices are zero, and it changes nothing yet.
    """
    if not isinstance(model, PeftModel):
        return None
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    is_new = all(not tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    return None if is_new else fingerprint_weights(weights)


def fingerprint_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Compute the sha256 of tensors and their names, wherever they lie."""
    sums = {}
    for name in sorted(weights):
        numbers = weights[name].detach().to("cpu", torch.float32).contiguous().numpy()
        sums[name] = hashlib.sha256(numbers.tobytes()).hexdigest()
    return fingerprint(sums)


# ---- datasets


def fingerprint_dataset(dataset: Any) -> Any:
    """Compute the sha256 of all columns of a dataset; of several, {name: sha256}.

    Raises:
        ValueError: the dataset is streamed.
    """
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: fingerprint_dataset(part) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"A {type(dataset).__name__} gives its rows one after the other, so that a finished "
            "model could not be told from one that was trained on others. Give the trainer a "
            "datasets.Dataset."
        )
    if dataset._indices is not None:  # a selection or another order of the rows below it
        dataset = dataset.flatten_indices()
    table = dataset.data.table.combine_chunks().replace_schema_metadata(None)
    sink = _HashingSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
        stream.write_table(table)
    return sink.sum.hexdigest()


class _HashingSink:
    """A file that keeps of what is written only its sha256."""

    closed = False

    def __init__(self):
        self.sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing to flush."""


# ---- values


def _describe_value(value: Any, notebook: "Notebook") -> Any:
    """Describe a value as JSON; the source of what a notebook defines is collected."""
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return _describe_value(value.value, notebook)
    if isinstance(value, Mapping):
        return {str(name): _describe_value(item, notebook) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe_value(item, notebook) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if inspect.isclass(value) or inspect.isroutine(value):
        notebook.collect(value)
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    parts = {"class": type(value)} | _list_parts(value)
    return {name: _describe_value(part, notebook) for name, part in parts.items()}


def _list_parts(value: Any) -> dict[str, Any]:
    """List what makes an object what it is: its plain attributes, or a model's weights."""
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "weights": fingerprint_weights({"tensor": value})}
    if isinstance(value, torch.nn.Module):
        return {"weights": fingerprint_weights(value.state_dict())}
    if isinstance(value, torch.optim.Optimizer):
        groups = [group | {"params": len(group["params"])} for group in value.param_groups]
        return {"defaults": value.defaults, "groups": groups}
    if isinstance(value, PreTrainedTokenizerBase):
        return {"special_tokens": value.special_tokens_map}
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, Trainer):
        return {}
    parts = {}
    for name, item in sorted(getattr(value, "__dict__", {}).items()):
        if isinstance(item, (*PLAIN, torch.Tensor, np.ndarray)) or inspect.isroutine(item):
            parts[name] = item
    return parts


# ---- what a notebook defines


class Notebook:
    """What a notebook defines of a trainer's parts, and the values that these read from it.

    Attributes:
        definitions: {name: source or value}.
    """

    def __init__(self):
        self.definitions: dict[str, Any] = {}
        self._seen: list[Any] = []

    def collect(self, item: Any) -> None:
        """Enter a class or function, if a notebook defines it, and whatever it uses."""
        item = inspect.unwrap(getattr(item, "__func__", item))
        if inspect.isclass(item):
            for base in item.__bases__:
                self.collect(base)
        if getattr(item, "__module__", None) != "__main__" or item in self._seen:
            return
        self._seen.append(item)
        name = item.__qualname__
        namesakes = sum(seen.__qualname__ == name for seen in self._seen)
        if namesakes > 1:  # as all lambdas are
            name = f"{name} ({namesakes})"
        self.definitions[name] = source_of(item)
        for function in functions_of(item):
            self._collect_used(inspect.unwrap(function), name)

    def _collect_used(self, function: Any, name: str) -> None:
        """Enter what a function takes from around it: names of the notebook, closure, defaults."""
        for variable, attribute in _names_read(function.__code__):
            if variable in function.__globals__:
                self._enter(variable, function.__globals__[variable], attribute)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                self._enter(f"{name}.{variable}", cell.cell_contents)
            except ValueError:  # nothing is in the cell yet
                continue
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if defaults:
            self._enter(f"{function.__qualname__}, defaults", defaults)

    def _enter(self, name: str, value: Any, attribute: str | None = None) -> None:
        """Enter a value that a function reads, or that attribute of it that is read."""
        if attribute is not None and isinstance(getattr(value, attribute, value), PLAIN):
            name, value = f"{name}.{attribute}", getattr(value, attribute, value)
        if isinstance(value, ModuleType):
            return
        if inspect.isclass(value) or inspect.isroutine(value):
            self.collect(value)
            return
        described = _describe_value(value, self)
        if len(json.dumps(described)) > LONGEST_VALUE:
            described = fingerprint(described)
        self.definitions[name] = described


def _names_read(code: CodeType) -> Iterator[tuple[str, str | None]]:
    """Give the names that code takes from its module, with the attribute that it asks them for."""
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            following = instructions[place + 1]
            asks = following.opname in ("LOAD_ATTR", "LOAD_METHOD")
            yield instruction.argval, following.argval if asks else None
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_read(constant)
