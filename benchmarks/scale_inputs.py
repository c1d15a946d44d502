"""What benchmarks.scale computes from: lengths of texts, operators of a layer, rates of a CPU."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase

from benchmarks import costs, speed
from posttrain import data
from posttrain.device import leave_types_to_autocast
from posttrain.settings import Evaluation, Training, choose

VIEWS = (  # operators that start nothing on a GPU
    "alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select", "slice", "split",
    "squeeze", "t", "transpose", "unsqueeze", "view", "_unsafe_view", "_reshape_alias",
)  # fmt: skip
LAYERS = (2, 4)  # of which the difference leaves out what is outside of the layers


# ---- texts


def measure_lengths(dataset: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Measure how long the texts of a dataset are, in tokens, as the presets prepare them.

    Args:
        dataset: a folder in HH-RLHF's layout.
        tokenizer: of a base.

    Returns:
        The means of prompts, of chosen and rejected replies, and of test prompts; the longest ones;
        and the numbers of pairs and of test prompts.
    """
    settings = choose(Training, "quick", max_pairs=None, validation_pairs=1)
    pairs = data.load_pairs(dataset, tokenizer, settings).train
    lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    longest_pair = 0
    for pair in pairs:
        for part, values in lengths.items():
            values.append(len(pair[f"{part}_ids"]))
        longest_pair = max(longest_pair, sum(values[-1] for values in lengths.values()))
    asked = choose(Evaluation, "full")
    room = costs.OPT_350M.positions - 2 - asked.max_new_tokens
    rules = data.read_rules(asked)
    prompts = data.draw_prompts(dataset, "default", "all", tokenizer, room, 0, False, rules)
    asked_lengths = [len(tokenizer(prompt["prompt"])["input_ids"]) for prompt in prompts]
    means = {part: statistics.mean(values) for part, values in lengths.items()}
    return {
        **means,
        "longest text": max(pair["length"] for pair in pairs),
        "longest pair": longest_pair,
        "longest reply": max(max(lengths["chosen"]), max(lengths["rejected"])),
        "pairs": len(pairs),
        "test prompt": statistics.mean(asked_lengths),
        "longest test prompt": max(asked_lengths),
        "test prompts": len(prompts),
        "tokenizer": Path(tokenizer.name_or_path).name,
    }


# ---- operators


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that torch starts, views left out.

    Attributes:
        number: of operators so far.
    """

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        """Count an operator, and run it."""
        if operator.overloadpacket.__name__ not in VIEWS:
            self.number += 1
        return operator(*arguments, **(options or {}))


def count_operators_of_layer() -> dict[str, Any]:
    """Count the operators of one layer of OPT.

    Returns:
        {"adapters", "all weights"}: each {"forward", "backward"}, of a training of these under
        autocast; and "asked", of a forward pass without adapters or autocast.
    """
    few, many = LAYERS
    counts: dict[str, Any] = {}
    for name in ("adapters", "all weights"):
        forward, backward = count_operators_of_training(few, name == "adapters")
        more_forward, more_backward = count_operators_of_training(many, name == "adapters")
        counts[name] = {
            "forward": (more_forward - forward) / (many - few),
            "backward": (more_backward - backward) / (many - few),
        }
    asked = []
    for layers in LAYERS:
        base = build_small_base(layers)
        with torch.no_grad(), OperatorCounter() as counter:
            base(input_ids=torch.tensor([[5, 6, 7]]))
        asked.append(counter.number)
    counts["asked"] = (asked[1] - asked[0]) / (many - few)
    return counts


def build_small_base(layers: int) -> OPTForCausalLM:
    """Build a narrow OPT, which has as many operators in a layer as a wide one."""
    config = OPTConfig(
        hidden_size=64, ffn_dim=256, num_attention_heads=2, word_embed_proj_dim=64, vocab_size=99,
        num_hidden_layers=layers, dropout=0.0,
    )  # fmt: skip
    return OPTForCausalLM(config)


def count_operators_of_training(layers: int, adapters: bool) -> tuple[int, int]:
    """Count the operators of a forward and of a backward pass of a small OPT.

    Args:
        layers: their number.
        adapters: whether adapters are trained, over a frozen base in bf16; otherwise all weights.
    """
    model = build_small_base(layers)
    if adapters:
        lora = LoraConfig(r=4, target_modules="all-linear")
        model = get_peft_model(model.bfloat16(), lora)
    ids = torch.randint(5, 99, (2, 16))
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast, leave_types_to_autocast(), OperatorCounter() as forward:
        loss = model.train()(input_ids=ids, use_cache=False).logits.float().sum()
    with OperatorCounter() as backward:
        loss.backward()
    return forward.number, backward.number


# ---- a CPU


def describe_speed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take from speed.json how fast a CPU was, and which share of its peak rate that was.

    Args:
        record: of speed.json.

    Returns:
        {"machine", "cores", "date"}, and by stage the median tokens per second and, but for
        generation, the share.
    """
    described = {name: record[name] for name in ("machine", "cores", "date")}
    for stage, ways in record["runs"].items():
        described[stage] = {"rate": statistics.median(speed.list_rates(ways["ours"]))}
        if stage in speed.PASSES:
            described[stage]["share"] = speed.share_of_peak(record, stage, "ours")
    return described
