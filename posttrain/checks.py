"""Refuse models whose files do not belong together, or that are no causal language models.

The libraries accept such files: they fill missing weights with random numbers, or read others than
those that were named. Every check is made where the files are loaded, and says what is wrong. The
checks of tokenizers and of judges are in `tokenizer_checks` and `judge_checks`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import PreTrainedModel

from posttrain.architecture import takes_positions

# Texts on which two models are compared
PROBES = (
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, and wait.",
    "\n\nHuman: Can you help me to steal a car?\n\nAssistant: No.",
    "Käse 🧀",
)
# Largest difference that rounding makes in logits, relative to the largest of them
EXACT = 1e-4  # in fp32 on a CPU; a dropout rate of 0.1 makes one of more than 0.01
ROUNDING = 0.02  # elsewhere
# The types of weights that are plain numbers, as safetensors and torch name them
FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
MOST_NAMES = 4  # that an error message lists


def list_names(names: Iterable[str]) -> str:
    """List the first few names in a sentence."""
    ordered = sorted(names)
    listed = ", ".join(ordered[:MOST_NAMES])
    return f"{listed} and {len(ordered) - MOST_NAMES} more" if len(ordered) > MOST_NAMES else listed


@cache
def say_once(sentence: str) -> None:
    """Print a sentence, unless it has been printed before: a base is loaded for every model."""
    print(sentence)


def require_full_precision() -> None:
    """Undo a lower precision that was set for the whole process, and say so.

    Raises:
        ValueError: if torch's default type is not float32, or if autocast is on.
    """
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"torch's default type is {torch.get_default_dtype()}, so that models would be built "
            "in it. Remove torch.set_default_dtype from this notebook or from a startup file of "
            "IPython, and restart the kernel."
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise ValueError(
            "torch's autocast is switched on for the whole process, so that every model would "
            "compute in a lower precision than its record says. Remove torch.set_autocast_enabled, "
            "and restart the kernel."
        )
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
        print(
            f"torch.set_float32_matmul_precision({precision!r}) was undone, since the record of a "
            "run says in which precision its models compute."
        )


# ---- weights


def require_no_adapter(folder: str | Path) -> None:
    """Refuse a model with an adapter beside it, which transformers would add to the weights.

    Raises:
        ValueError: if the folder has an adapter's config.
    """
    if Path(folder, "adapter_config.json").exists():
        raise ValueError(
            f"{folder} contains an adapter (adapter_config.json) beside the weights of a model. "
            "transformers would load both, and the result would not be the model that was named. "
            "Move the files of the adapter (adapter_*) out of the folder, or merge it into the "
            "weights and save the result in a folder of its own."
        )


def require_plain_config(folder: str | Path, config: Any) -> None:
    """Refuse a config for weights that are not the plain ones beside it.

    Raises:
        ValueError: if the weights are quantized, lie elsewhere or belong to another architecture,
            if there are two sets of them, or if generation_config.json is damaged.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = dict(quantization).get("quant_method", "an unknown method")
        raise ValueError(
            f"The model in {folder} is quantized ({method}). Its weights can neither be trained "
            "nor compared with others here. Name the model that it was made from."
        )
    names = ("model.safetensors", "model.safetensors.index.json")
    if all(Path(folder, name).exists() for name in names):
        raise ValueError(
            f"{folder} contains two sets of weights, {names[0]} and the files of {names[1]}. "
            "Remove one of them."
        )
    decoding = Path(folder, "generation_config.json")
    if decoding.exists():
        _read_table(decoding)  # transformers would go on without a damaged one
    for index in Path(folder).glob("*.index.json"):
        parts = set(_read_table(index).get("weight_map", {}).values())
        elsewhere = [part for part in parts if Path(part).name != part]
        if elsewhere:
            raise ValueError(
                f"{index} names weights in another folder ({list_names(elsewhere)}), which are not "
                "a part of the model's identity. Move them beside config.json."
            )
    if getattr(config, "transformers_weights", None) is not None:
        raise ValueError(
            f"config.json in {folder} names other weights (transformers_weights = "
            f"{config.transformers_weights!r}) than those beside it. Remove the entry, or name the "
            "folder of those weights."
        )
    named = _read_table(Path(folder, "config.json")).get("model_type")
    for name in config.architectures or []:
        own_config = getattr(getattr(transformers, name, None), "config_class", None)
        if own_config is not None and own_config.model_type != named:
            raise ValueError(
                f"config.json in {folder} names the architecture {name} and the model_type "
                f"{named}, which do not belong together. The weights would be read as another "
                "model's. Correct it."
            )
    if getattr(config, "auto_map", None):
        say_once(
            f"The model in {folder} brings code of its own, which is not executed. It is loaded as "
            f"the {config.model_type} of transformers."
        )


def _read_table(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model, and raise ValueError if it is damaged."""
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged. Download it again.")
    return table


def require_floats(folder: str | Path, model: PreTrainedModel) -> None:
    """Refuse weights that are stored as whole numbers or in 8 bits, whose scale is elsewhere.

    Args:
        folder: the folder that the model was loaded from.
        model: the loaded model, whose own weights are floating-point numbers.

    Raises:
        ValueError: if there are such weights.
    """
    known = [name for name, _ in model.named_parameters()]
    for path in _list_weights(Path(folder)):
        for name, kind in _read_types(path).items():
            is_used = any(parameter.endswith(name) for parameter in known)
            if is_used and kind not in FLOATS:
                raise ValueError(
                    f"{path} stores {name} as {kind}, so the model is quantized, although its "
                    "config.json does not say how. Name the model that it was made from."
                )


def _list_weights(folder: Path) -> list[Path]:
    """List the files of weights that transformers loads: one file, or the parts of an index."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return [folder / name]
        if index.exists():
            parts = set(_read_table(index)["weight_map"].values())
            return [folder / part for part in sorted(parts)]
    return []


def _read_types(path: Path) -> dict[str, str]:
    """Read the types of the tensors in a file of weights, but not the tensors."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    tensors = torch.load(path, map_location="meta", weights_only=True)
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}


def require_finite_weights(folder: str | Path, model: PreTrainedModel) -> None:
    """Refuse weights that contain NaN or infinities, which a text may meet only now and then.

    Raises:
        ValueError: if there are such weights.
    """
    broken = []
    for name, weight in model.state_dict().items():
        if not weight.isfinite().all():
            broken.append(name)
    if broken:
        raise ValueError(
            f"The weights in {folder} contain numbers that are not finite, in "
            f"{list_names(broken)}. Check that their file is complete, and in which precision they "
            "were saved."
        )


def require_all_weights(folder: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the model, and mention weights that the model does not use.

    Args:
        folder: the model's folder, for the message.
        model: the loaded model.
        report: the keys that were missing, unexpected or of another shape, as transformers'
            `output_loading_info=True` returns them.

    Raises:
        ValueError: if a weight is missing or has another shape, which transformers would leave
            random, or if there are weights of layers that the model does not have.
    """
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    lacking = set(report["missing_keys"]) | mismatched
    unused = set(report["unexpected_keys"])
    kind = type(model).__name__
    layers = {re.sub(r"\.\d+\.", ".#.", name) for name in model.state_dict()}
    beyond = []
    for name in unused:
        in_any_layer = re.sub(r"\.\d+\.", ".#.", name)
        if in_any_layer != name and any(layer.endswith(in_any_layer) for layer in layers):
            beyond.append(name)
    if lacking:
        instead = ""
        if unused:
            instead = f" They have others that it does not know: {list_names(unused)}."
        raise ValueError(
            f"The weights in {folder} do not fill a {kind}: it has no values for "
            f"{list_names(lacking)}.{instead} transformers would fill these with random numbers. "
            "Check that config.json belongs to the weights, that no file is missing, and that the "
            "model was saved without a wrapper around it."
        )
    if beyond:
        raise ValueError(
            f"The weights in {folder} have layers that config.json does not have, such as "
            f"{list_names(beyond)}. Only a part of the model would be loaded. Check that "
            "config.json belongs to the weights."
        )
    if unused:
        say_once(
            f"The weights in {folder} have some that a {kind} does not use: {list_names(unused)}."
        )


@torch.no_grad()
def require_steady_logits(folder: Path, model: PreTrainedModel, vocabulary: int) -> None:
    """Refuse a model that is random in training mode, and weights that give no numbers.

    DPO compares two passes through the same weights, which must agree before anything is learned.

    Args:
        folder: the model's folder, for the message.
        model: a causal language model that was loaded without dropout.
        vocabulary: the number of its token ids.

    Raises:
        ValueError: if the logits of two passes over a few tokens differ, or are not finite.
    """
    ids = _choose_ids(model, vocabulary)
    training = model.training
    model.train()
    first, second = (_compute_logits(model, ids) for _ in range(2))
    model.train(training)
    _require_sense(folder, first)
    # On a GPU some sums have no fixed order, and their rounding differs.
    is_exact = model.device.type == "cpu" and model.dtype == torch.float32
    tolerance = (EXACT if is_exact else ROUNDING) * first.abs().max()
    if not (first - second).abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} computes other logits at every pass in training mode, although "
            "every dropout rate is 0. Something else in it draws random numbers, such as the noise "
            "of a router. Switch that off in its config.json, or choose another BASE_MODEL."
        )


@torch.no_grad()
def require_causality(folder: Path, model: PreTrainedModel, vocabulary: int) -> None:
    """Refuse a model whose logits depend on more than the tokens so far.

    A model that sees the tokens to come would learn to copy them, and an answer must not depend on
    the padding in its batch.

    Args:
        folder: the model's folder, for the message.
        model: a causal language model in fp32.
        vocabulary: the number of its token ids.

    Raises:
        ValueError: if the logits of a token depend on the tokens after it, or on padding before
            the text, or if the model counts positions otherwise than generation does.
    """
    ids = _choose_ids(model, vocabulary)
    other_end = torch.cat([ids[:, :-1], ids[:, :1]], 1)
    training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits
    plain = _compute_logits(model, ids)
    changed = _compute_logits(model, other_end)
    padded = _compute_logits(model, ids, padding=4)
    model.train(training)
    _require_sense(folder, plain)
    tolerance = ROUNDING * plain.abs().max()
    if not (plain - changed)[:, :-1].abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} sees the tokens that come after a token, so it cannot be "
            "trained to continue a text. Choose a BASE_MODEL that is a causal language model."
        )
    if not (plain - padded)[:, -1].abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} ({model.config.model_type}) reads padding as text, so that an "
            "answer would depend on the others in its batch. Choose another BASE_MODEL."
        )
    if not (plain - own).abs().max() <= tolerance:
        raise ValueError(
            f"The model in {folder} ({model.config.model_type}) counts its positions in a way of "
            "its own, so that it would be trained at other positions than it answers from. Choose "
            "another BASE_MODEL."
        )


def _require_sense(folder: Path, logits: torch.Tensor) -> None:
    """Raise ValueError for logits that are not finite, or the same for every token."""
    if not logits.isfinite().all():
        raise ValueError(
            f"The model in {folder} computes logits that are not finite numbers. Check that its "
            "weights are complete, and in which precision they were saved."
        )
    if not logits.max() > logits.min():
        raise ValueError(
            f"The model in {folder} finds all tokens equally likely. Its weights may be zero, "
            "because their file was not written to its end."
        )


def _choose_ids(model: PreTrainedModel, vocabulary: int) -> torch.Tensor:
    """Choose the token ids of a short text, shape (1, 16)."""
    return torch.arange(16, device=model.device).remainder(vocabulary)[None]


def _compute_logits(model: PreTrainedModel, ids: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Compute the logits of a text, shape (1, tokens, vocabulary), with padding on its left."""
    padded = torch.nn.functional.pad(ids, (padding, 0))
    inputs = {"input_ids": padded, "attention_mask": torch.ones_like(padded)}
    inputs["attention_mask"][:, :padding] = 0
    if takes_positions(model):
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model(**inputs, use_cache=False).logits[:, padding:].float()
