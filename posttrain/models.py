"""The models of a run: load them safely, and save trained ones with a check of the result.

A notebook needs this module only. It builds on `loading`, which loads bases and judges.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.checks import PROBES
from posttrain.files import write
from posttrain.loading import (
    device,
    load_base,
    load_config,
    load_judge,
    load_tokenizer,
    loading_from,
    require_base,
    require_reward_model,
)
from posttrain.packing import packed
from posttrain.record import Model, slug
from posttrain.tokens import list_special_tokens

if TYPE_CHECKING:
    from posttrain.run import Run

__all__ = [
    "LARGEST_DIFFERENCE",
    "PROBES",
    "can_merge",
    "device",
    "load_adapter",
    "load_base",
    "load_config",
    "load_judge",
    "load_models",
    "load_tokenizer",
    "logits_of",
    "plain",
    "require_as_made",
    "require_base",
    "require_model",
    "require_reward_model",
    "save_trained",
    "switched_to",
]

# The garbage collector, which runs whenever a model is freed, would look through everything that
# was imported, a third of a second each time. All of it stays for good.
gc.freeze()

# Largest difference of the logits of a model as trained and as saved, on the probes: far above
# rounding errors, far below that of another model
LARGEST_DIFFERENCE = 1e-3


# ---- the models of a run


def load_adapter(
    run: Run,
    name: str,
    base_folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel | PeftModel:
    """Load a model of a run in order to train it further.

    Args:
        run: the run that the model belongs to.
        name: the model's name, such as "SFT".
        base_folder: the folder of the run's base model.
        dropout: the dropout rate, as in `load_base`.
        dtype: the type of the base's weights.

    Returns:
        The base with the model's trainable adapter or, if all weights were fine-tuned, the plain
        model.

    Raises:
        ValueError: if the run has no such model, or its files are not those that were trained.
    """
    model = require_model(run, name)
    base = _load_base_of(run, model, base_folder, dropout, dtype)
    if model.adapter is None:
        return base
    require_as_made(run, model.adapter)
    folder = _require_safetensors(run.folder / model.adapter)
    with loading_from(folder):
        adapted = PeftModel.from_pretrained(base, folder, is_trainable=True)
    # peft looks for the base's config there when it writes a checkpoint.
    adapted.peft_config["default"].base_model_name_or_path = str(base.config.name_or_path)
    return adapted


def load_models(
    run: Run, base_folder: Path, names: Sequence[str] | None = None
) -> dict[str, PreTrainedModel | PeftModel]:
    """Load models of a run for evaluation, in fp32.

    Models over the same base share one PeftModel, and `switched_to` selects one of them.

    Args:
        run: the run that the models belong to.
        base_folder: the folder of the run's base model.
        names: the names of the models; None loads all of the run's models.

    Returns:
        {name: model}.

    Raises:
        ValueError: if the run has no such model, or its files are not those that were trained.
    """
    if names is None:
        names = [model.name for model in run.models]
    wanted = [require_model(run, name) for name in names]
    models_by_base: dict[str, PreTrainedModel | PeftModel] = {}
    for model in wanted:
        if model.base not in models_by_base:
            base = _load_base_of(run, model, base_folder)
            base.config.output_router_logits = False  # the loss of a router is for training alone
            models_by_base[model.base] = base
        if model.adapter is not None:
            require_as_made(run, model.adapter)
            folder = _require_safetensors(run.folder / model.adapter)
            shared = models_by_base[model.base]
            models_by_base[model.base] = _add_adapter(shared, folder, _adapter_key(model.name))
    return {model.name: models_by_base[model.base].eval() for model in wanted}


@contextmanager
def switched_to(model: PreTrainedModel | PeftModel, name: str) -> Iterator[None]:
    """Activate the adapter of one of the models that share a PeftModel.

    The adapter is merged into the base's weights for as long as it is active, so that a layer
    computes one product in place of three. On a CPU the weights are also rearranged, as `packed`
    describes, so they cannot be read meanwhile. Afterwards they are the base's own again, to the
    bit.

    Args:
        model: the value of `load_models` for `name`.
        name: the model's name. If it has no adapter, all adapters are switched off.
    """
    with _active(model, _adapter_key(name)), packed(model, _read_two_tokens):
        yield


@contextmanager
def _active(model: PreTrainedModel | PeftModel, key: str) -> Iterator[None]:
    """Activate one of the adapters that share a PeftModel, merged if it can be."""
    if not isinstance(model, PeftModel):
        yield
    elif key not in model.peft_config:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(key)
        if can_merge(model):
            with _merged(model):
                yield
        else:
            yield


@torch.inference_mode()
def _read_two_tokens(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """Compute the logits of two tokens, of shape (1, 2, vocabulary)."""
    return model(input_ids=torch.tensor([[1, 2]])).logits


def can_merge(model: PeftModel) -> bool:
    """Tell whether merging changes the adapted layers alone.

    Prompt tuning, for example, has nothing to merge. An embedding whose weights are those of the
    head too would change the head with it.
    """
    if not isinstance(model.base_model, LoraModel):
        return False
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return all(owners[id(weight)] == 1 for weight in _list_adapted(model))


def _list_adapted(model: PeftModel) -> list[Parameter]:
    """List the weights of the base to which adapters add a change."""
    weights = []
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            weights += layer.get_base_layer().parameters()
    return weights


@contextmanager
def _merged(model: PeftModel) -> Iterator[None]:
    """Merge the active adapter into the base's weights, and restore these at the end.

    peft itself subtracts the adapter again, which leaves rounding errors in the base's weights.
    """
    originals = [(weight, weight.detach().clone()) for weight in _list_adapted(model)]
    try:
        model.merge_adapter(safe_merge=True)
        yield
    finally:
        model.unmerge_adapter()
        for parameter, values in originals:
            parameter.data.copy_(values)


def _adapter_key(name: str) -> str:
    """Turn a model's name into the name of its adapter in peft.

    The prefix prevents conflicts with attributes of torch's modules, such as "train", and with
    parts of "lora_", which peft does not allow as names.
    """
    return f"adapter_{slug(name)}"


def _add_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, key: str
) -> PreTrainedModel | PeftModel:
    """Add an adapter to a model, which may have adapters already."""
    with loading_from(folder):
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, adapter_name=key)
        model.load_adapter(folder, adapter_name=key)
        return model


def require_model(run: Run, name: str) -> Model:
    """Find a model of a run by its name.

    Raises:
        ValueError: if the run has no such model.
    """
    for model in run.models:
        if model.name == name:
            return model
    names = [model.name for model in run.models]
    raise ValueError(f"{run.folder} has no model {name!r}. Its models are {names}.")


def _load_base_of(
    run: Run,
    model: Model,
    base_folder: Path,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load the model below a model's adapter: the run's base model, or a fine-tuned one.

    A fine-tuned one was trained in the run and lies in its folder.
    """
    if model.base == run.models[0].base:
        return load_base(base_folder, dropout, dtype)
    require_as_made(run, model.base)
    return load_base(run.folder / model.base, dropout, dtype, safetensors=True)


def require_as_made(run: Run, name: str) -> None:
    """Raise ValueError if a folder of the run is not the one that run.json describes."""
    if not run.is_whole(name):
        raise ValueError(
            f"{run.folder / name} is missing, was changed, or is not the one that run.json "
            "describes. Restore it, or remove it and run main.ipynb again."
        )


def _require_safetensors(folder: Path) -> Path:
    """Raise ValueError for an adapter without safetensors, since peft would load a pickle."""
    if not (folder / "adapter_model.safetensors").exists():
        raise ValueError(
            f"{folder} has no adapter_model.safetensors. Weights stored as pickles are not loaded, "
            "since pickles can execute code."
        )
    return folder


# ---- saving


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> torch.Tensor:
    """Compute the logits of some texts, so that two models can be compared.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        texts: the texts, which are read in one batch.

    Returns:
        A float32 tensor of shape (texts, tokens, vocabulary) on the CPU, zero at padding.
    """
    batch = tokenizer(list(texts), padding=True, return_tensors="pt").to(model.device)
    logits = model.eval()(**batch).logits.float()
    return (logits * batch["attention_mask"].unsqueeze(-1)).cpu()


def save_trained(
    model: PreTrainedModel,
    folder: Path,
    base_folder: Path,
    base_name: str,
    commit: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Save a trained adapter or model, and check that loading it gives the same logits.

    The check finds an adapter over a base with another adapter merged into it, and one that names
    the wrong base. Without it, they would distort the evaluation silently.

    Args:
        model: the trained model.
        folder: the folder to save it in.
        base_folder: the folder of an adapter's base.
        base_name: the name of that base in the adapter's config.
        commit: the base's commit on the hub, None if it is a folder.
        tokenizer: the tokenizer of the base.

    Raises:
        RuntimeError: if the model gives other logits when it is loaded from disk over a fresh base.
    """
    if isinstance(model, PeftModel):
        # With embeddings peft would look for the base's config under the base's name.
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        _complete_adapter_config(model, folder, base_name, commit)
        (folder / "README.md").unlink()  # peft's empty template; `cards` writes one
        fresh_base = load_base(base_folder, dtype=model.get_base_model().dtype)
        reloaded = PeftModel.from_pretrained(fresh_base, folder)
    else:
        model.save_pretrained(folder)
        reloaded = load_base(folder, safetensors=True)
    distances = logits_of(model, tokenizer, PROBES) - logits_of(reloaded, tokenizer, PROBES)
    difference = distances.abs().max().item()
    if not difference < LARGEST_DIFFERENCE:  # written so that NaN fails too
        raise RuntimeError(
            f"{folder.name.removesuffix('.tmp')}: loaded from disk, the model's logits differ by "
            f"{difference:.3g} from those of the trained model, so it was not saved. Perhaps the "
            "base was changed in memory after it was loaded, for instance merged with an adapter. "
            "An adapter can only be saved over the base as it is in its files."
        )


def _complete_adapter_config(
    model: PeftModel, folder: Path, base_name: str, commit: str | None
) -> None:
    """Write the base's name and the kinds of adapted layers into the adapter's config.

    peft itself may list the layers of every block.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    layers = {layer.rsplit(".", 1)[-1] for layer in model.targeted_module_names}
    if any(layer.isdigit() for layer in layers):  # these would be the names of blocks too
        layers = set(model.targeted_module_names)
    config["base_model_name_or_path"] = base_name
    config["revision"] = commit
    config["target_modules"] = sorted(layers)
    config["exclude_modules"] = sorted(config["exclude_modules"] or [])
    write(path, config)


# ---- texts


def plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Make sure that the tokenizer reads special tokens spelled out in a text as plain text.

    The same goes for added tokens that its chat template uses as marks, such as </think>. A space
    is put after the first character of every such token.
    """
    template = str(tokenizer.chat_template or "")
    marks = [token for token in tokenizer.get_added_vocab() if token.strip() and token in template]
    for token in sorted({*list_special_tokens(tokenizer), *marks}):
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
