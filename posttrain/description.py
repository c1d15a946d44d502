"""Describe everything that a trainer is about to learn from, as read from the trainer itself.

Two trainers with equal descriptions train the same model. A description contains the trainer's
class and the other arguments of its constructor, the arguments of its config, the configs of the
model and the adapter, the identity of the base, the adapter that is trained further, hashes of both
datasets, and the source of whatever is defined in a notebook. It leaves out what only decides where
and how the computation is done: paths, logging, saving, devices and precision.
"""

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel, Trainer, TrainerCallback

from posttrain import hub, sharing
from posttrain.files import fingerprint
from posttrain.run import Run
from posttrain.values import Notebook, describe_value, fingerprint_weights

# Arguments of a config that no result depends on. The pairs in a pass and the passes in a step are
# among them: their product, the pairs in a step, is described instead, and the pairs in a pass only
# where the loss depends on them.
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
# Arguments of constructors that have entries of their own in the description.
ELSEWHERE = (
    "self", "args", "kwargs", "model", "train_dataset", "eval_dataset", "processing_class",
    "peft_config", "callbacks", "optimizers", "model_init", "quantization_config",
)  # fmt: skip


def describe(trainer: Trainer, run: Run) -> dict[str, Any]:
    """Describe everything that a trainer is about to learn from.

    Args:
        trainer: a trainer that has been built and not yet trained.
        run: the run whose models it may train further.

    Returns:
        The description, of values that JSON can represent.

    Raises:
        ValueError: if a dataset is streamed, because its rows are not known in advance.
    """
    notebook = Notebook()
    _collect_replaced_methods(trainer, notebook)
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "trainer": describe_value(type(trainer), notebook),
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


def _collect_replaced_methods(trainer: Trainer, notebook: Notebook) -> None:
    """Collect methods that a notebook assigned to a library's class or to the trainer itself."""
    members = list(vars(trainer).values())
    for kind in type(trainer).__mro__:
        if kind.__module__ != "__main__":
            members += vars(kind).values()
    for member in members:
        if inspect.isroutine(member):
            notebook.collect(member)


def _without(table: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Copy a table of plain values without some of its names."""
    plain = {name: value for name, value in table.items() if name not in names}
    return describe_value(plain, Notebook())


# ---- the config and the constructor


def _describe_arguments(trainer: Trainer, notebook: Notebook) -> dict[str, Any]:
    """Describe the arguments of the config that can change the result."""
    args = trainer.args
    described = {"pairs_in_a_step": sharing.pairs_in_a_step(trainer)}
    if sharing.depends_on_passes(trainer):
        described["pairs_in_a_pass"] = args.per_device_train_batch_size
    for field in dataclasses.fields(args):
        decisive = field.name in STILL_DECISIVE or not INDIFFERENT.fullmatch(field.name)
        if decisive and not field.name.startswith("_"):
            described[field.name] = describe_value(getattr(args, field.name), notebook)
    return described


def _describe_constructor(trainer: Trainer, notebook: Notebook) -> dict[str, Any]:
    """Describe the other arguments of the constructor that the trainer keeps as attributes."""
    described = {}
    for kind in type(trainer).__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        for name in inspect.signature(kind.__init__).parameters:
            if name not in ELSEWHERE and hasattr(trainer, name):
                described[name] = describe_value(getattr(trainer, name), notebook)
    described["optimizer"] = describe_value(trainer.optimizer, notebook)
    described["lr_scheduler"] = describe_value(trainer.lr_scheduler, notebook)
    described["callbacks"] = [
        describe_value(callback, notebook)
        for callback in trainer.callback_handler.callbacks
        if not _is_transformers_own(callback)
    ]
    return described


def _is_transformers_own(callback: TrainerCallback) -> bool:
    """Tell whether a callback is one that transformers adds to every trainer."""
    module = type(callback).__module__
    kind = type(callback).__name__
    is_common = kind in ("DefaultFlowCallback", "ProgressCallback", "PrinterCallback")
    return is_common or module.startswith(
        ("transformers.integrations", "transformers.utils.notebook")
    )


# ---- models


def _describe_adapter(model: PreTrainedModel | PeftModel) -> dict[str, Any] | None:
    """Describe the config of the trained adapter; None where all weights are trained."""
    if not isinstance(model, PeftModel):
        return None
    return _without(model.peft_config["default"].to_dict(), OF_NO_ADAPTER)


def _describe_trained(model: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Describe which weights are trained; all others are frozen."""
    learning = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            learning[name] = list(weight.shape)
    return {"tensors": len(learning), "sha256_of_names": fingerprint(learning)}


def identify_base(model: PreTrainedModel | PeftModel, run: Run) -> str:
    """Identify the base of a model by its commit on the hub, or else by its files' sha256.

    Args:
        model: the model, or the adapter over it.
        run: the run; one of its fully fine-tuned models may be the base.

    Returns:
        The identity, as in `Run.source`.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    folder = Path(base.config._name_or_path)
    if not folder.is_dir():
        return str(getattr(base.config, "_commit_hash", None) or folder)
    if folder.resolve().is_relative_to(run.folder.resolve()):
        name = folder.resolve().relative_to(run.folder.resolve()).as_posix()
        return run.record.artifacts[name].sha256
    return hub.identify(folder)


def fingerprint_adapter(model: PreTrainedModel | PeftModel) -> str | None:
    """Compute the sha256 of the adapter weights from which a training starts.

    Returns:
        The sha256, or None if there is no adapter or it is new. A new adapter's second matrices are
        zero, so that it does not change the model yet.
    """
    if not isinstance(model, PeftModel):
        return None
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    is_new = all(not tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    return None if is_new else fingerprint_weights(weights)


# ---- datasets


def fingerprint_dataset(dataset: Any) -> Any:
    """Compute the sha256 of a dataset with all its columns, or {name: sha256} of several.

    Raises:
        ValueError: if the dataset is streamed.
    """
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: fingerprint_dataset(part) for name, part in dataset.items()}
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"The rows of a {type(dataset).__name__} are not known in advance, so nobody could "
            "tell later which rows a model was trained on. Give the trainer a datasets.Dataset."
        )
    if dataset._indices is not None:  # the dataset is a selection or reordering of another table
        dataset = dataset.flatten_indices()
    table = dataset.data.table.combine_chunks().replace_schema_metadata(None)
    # A part of a larger table would be written with bytes of the rows behind it: copy its rows.
    table = table.take(pa.array(range(len(table))))
    sink = _HashingSink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
        stream.write_table(table)
    return sink.sum.hexdigest()


class _HashingSink:
    """A file that hashes what is written to it and keeps nothing else."""

    closed = False

    def __init__(self):
        self.sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing, since every write is hashed at once."""
