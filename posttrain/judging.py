"""Rewards of many answers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.models import in_batches

REFUSAL = "I'm sorry, but I can't help with that."


def reference_answers(prompts: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return {reference: its answers to the prompts}: the human replies, an empty answer, and one fixed refusal.

    Prompts from elsewhere may come without human replies.
    """
    answers = {"Empty": [""] * len(prompts), "Refusal": [REFUSAL] * len(prompts)}
    if all({"chosen", "rejected"} <= set(prompt) for prompt in prompts):
        answers = {f"Human {side}": [prompt[side] for prompt in prompts] for side in ("chosen", "rejected")} | answers
    return answers


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return lists of indices, long inputs first, each list at most `budget` tokens once padded to its longest."""
    batches = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


@torch.inference_mode()
def rewards(judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Sequence[BatchEncoding], budget: int,
            label: str = "judge") -> list[float]:
    """Return the reward of every input (question and answer, tokenised), in their order; `budget` tokens at a time."""
    def judge_batch(batch: Sequence[int]) -> list[float]:
        padded = tokenizer.pad([inputs[i] for i in batch], return_tensors="pt").to(judge.device)
        return judge(**padded).logits[:, 0].tolist()

    return in_batches(judge_batch, batches_by_tokens([len(one["input_ids"]) for one in inputs], budget), label)


def scores(found: Sequence[float], name: str, prompts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of scores.json of one model: {"id", "model", "reward"}.

    Raises ValueError where a reward is not finite.
    """
    for prompt, reward in zip(prompts, found):
        if not math.isfinite(reward):
            raise ValueError(f"The judge gives {name}'s answer to {prompt['id']} the reward {reward}. No reward was "
                             "kept; is its checkpoint whole?")
    return [{"id": prompt["id"], "model": name, "reward": reward} for prompt, reward in zip(prompts, found)]
