"""Read a model's config, whatever names its architecture uses: its size, and its dropout rates."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn import Module


@dataclass(frozen=True)
class Size:
    """The size of a language model.

    Attributes:
        positions: the largest number of tokens in a text; None if there is no limit.
        layers: the number of blocks.
        width: the length of a hidden state.
        vocabulary: the number of token ids, which is that of the embeddings.
    """

    positions: int | None
    layers: int
    width: int
    vocabulary: int


def read_size(config: Any) -> Size:
    """Read the size of a language model from its config, whatever the names in it are.

    Raises:
        ValueError: if the config does not tell it, or is that of a model for images or sounds too.
    """
    if config.get_text_config() is not config:
        raise ValueError(
            f"{config.name_or_path}: a model of the type {config.model_type} reads more than text. "
            "Name a base for text alone."
        )
    positions = None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "context_length"):
        positions = positions or getattr(config, name, None)
    rope = getattr(config, "rope_parameters", None) or {}
    of_layers = [part for part in rope.values() if isinstance(part, dict)]  # by the kind of layer
    for part in (rope, *of_layers):
        if part.get("rope_type") == "longrope":
            # Beyond these the positions of all texts in a batch depend on the longest of them.
            positions = part.get("original_max_position_embeddings", positions)
    return Size(
        positions=positions if positions and positions > 0 else None,
        layers=_read_number(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers"),
        width=_read_number(config, "hidden_size", "d_model", "n_embd", "dim"),
        vocabulary=_read_number(config, "vocab_size"),
    )


def _read_number(config: Any, *names: str) -> int:
    """Read the first of some numbers that a config has."""
    for name in names:
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    raise ValueError(
        f"{config.name_or_path}: the config of this model ({config.model_type}) has no "
        f"{names[0]}, which is needed to train it. Choose another model."
    )


def require_length(folder: Path, size: Size, max_length: int) -> None:
    """Refuse training texts that are longer than the base's positions.

    Raises:
        ValueError: if `max_length` is larger than the number of positions.
    """
    if size.positions is not None and max_length > size.positions:
        raise ValueError(
            f"max_length = {max_length}, but the base in {folder} has positions for only "
            f"{size.positions} tokens. Write SETTINGS = {{'max_length': {size.positions}}}, or "
            "choose another BASE_MODEL."
        )


def read_dropout(config: Any) -> dict[str, float]:
    """Read {name: rate} of all dropout rates in the config of a model, whatever their names are."""
    rates = {}
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            rates[name] = float(value)
    return rates


def set_dropout(config: Any, rate: float) -> None:
    """Set the dropout rates in the config of a model.

    Args:
        config: the config, which is changed.
        rate: 0 switches every kind of dropout off. Another rate replaces those that are not 0.

    Raises:
        ValueError: if a rate above 0 is asked for and the model has no dropout.
    """
    rates = read_dropout(config)
    if not rate:
        for name in rates:
            setattr(config, name, 0.0)
        return
    active = [name for name, value in rates.items() if value and name != "layerdrop"]
    if not active and "dropout" in rates:
        active = ["dropout"]
    if not active:
        raise ValueError(
            f"dropout = {rate}, but this base ({config.model_type}) has no dropout that could be "
            "set. Set dropout to 0 in SETTINGS."
        )
    for name in active:
        setattr(config, name, rate)


def takes_positions(model: Module) -> bool:
    """Tell whether a model accepts the positions of its tokens as an argument."""
    return "position_ids" in inspect.signature(model.forward).parameters
