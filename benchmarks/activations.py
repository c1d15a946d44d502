"""Memory that training keeps for the backward pass, for several architectures.

    python -m benchmarks.activations

It is counted in bytes for each token, layer and unit of width, with the LoRA adapter of main.ipynb.
That number does not depend on how many tokens or layers there are, so a few of both suffice, with
random weights and without the vocabulary. Writes benchmarks/activations.json and activations.md.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from benchmarks.common import BENCHMARKS
from posttrain.device import leave_types_to_autocast
from posttrain.files import write

# The differences leave out what is outside the layers, and copies of the adapters' weights.
TOKENS = (128, 256)
LAYERS = (2, 4)
RANK = 16  # as in main.ipynb's presets
VOCABULARY = 500
MODELS = {
    "OPT-350M": OPTConfig(
        hidden_size=1024,
        num_attention_heads=16,
        ffn_dim=4096,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
        dropout=0.0,
    ),
    "SmolLM2-135M": LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        hidden_size=896, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864
    ),
    "Gemma-3-1B": Gemma3TextConfig(
        hidden_size=1152,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=6912,
    ),
}
WAYS = ("fp32", "bf16, peft converts", "bf16")


def measure(config: PreTrainedConfig, way: str) -> float:
    """Measure the bytes for each token, layer and unit of width.

    Args:
        config: of an architecture, with any number of layers and tokens.
        way: "fp32"; "bf16" as main.ipynb trains where the device is fast in it; or "bf16, peft
            converts", in which peft converts the input of every adapter, as it does by default.
    """
    kept = {}
    for layers in LAYERS:
        config.num_hidden_layers = layers
        config.vocab_size = VOCABULARY
        if hasattr(config, "layer_types"):
            config.layer_types = ["full_attention"] * layers
        dtype = torch.float32 if way == "fp32" else torch.bfloat16
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
        outside = ["project_in", "project_out"]  # OPT-350M's, as in main.ipynb
        lora = LoraConfig(r=RANK, target_modules="all-linear", exclude_modules=outside)
        model = get_peft_model(base, lora).train()
        for tokens in TOKENS:
            kept[layers, tokens] = count_kept(model, way, tokens)
    few, many = (kept[layers, TOKENS[1]] - kept[layers, TOKENS[0]] for layers in LAYERS)
    return (many - few) / (LAYERS[1] - LAYERS[0]) / (TOKENS[1] - TOKENS[0]) / config.hidden_size


def count_kept(model: PeftModel, way: str, tokens: int) -> int:
    """Count the bytes that are kept for the backward pass, besides the weights.

    Args:
        model: reads random tokens, as two texts.
        way: as in `measure`.
        tokens: their number.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}  # keeping the tensors keeps their places from being given to others

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    ids = torch.randint(5, VOCABULARY, (2, tokens // 2))
    autocast = nullcontext() if way == "fp32" else torch.autocast("cpu", torch.bfloat16)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    conversions = leave_types_to_autocast() if way == "bf16" else nullcontext()
    with hooks, autocast, conversions:
        output = model.get_base_model().base_model(input_ids=ids, use_cache=False)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def as_table(record: Mapping[str, Any]) -> str:
    """Write the bytes as a markdown table.

    Args:
        record: of activations.json.
    """
    lines = [f"| architecture | {' | '.join(WAYS)} |", "|---|---|---|---|"]
    for name, bytes_by_way in record["bytes"].items():
        cells = [f"{bytes_by_way[way]:.0f}" for way in WAYS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all architectures, and write what was measured."""
    torch.manual_seed(0)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "bytes": {
            name: {way: measure(config, way) for way in WAYS} for name, config in MODELS.items()
        },
    }
    write(BENCHMARKS / "activations.json", record)
    write(BENCHMARKS / "activations.md", as_table(record))
    print(as_table(record))


if __name__ == "__main__":
    main()
