"""Compute the rewards of many texts, of equal ones once, and save them in parts meanwhile."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from posttrain import processes
from posttrain.batches import batches_by_tokens, in_batches
from posttrain.files import fingerprint, full_disk_explained
from posttrain.packing import packed
from posttrain.positions import positions_projected_once

TEXTS_IN_A_PART = 200  # after so many texts their rewards are kept
BATCHES_IN_A_PART = 4  # for each process, so that all of them have work in every part


@torch.inference_mode()
def compute_rewards(
    judge: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[BatchEncoding],
    tokens_at_once: int,
    label: str = "judge",
) -> list[float]:
    """Let the judge rate answers in batches.

    Args:
        judge: a reward model.
        tokenizer: its tokenizer.
        inputs: the encoded questions and answers.
        tokens_at_once: limit of a batch in tokens, padding included.
        label: the text beside the progress bar.

    Returns:
        The rewards, in the order of the inputs.
    """

    def judge_batch(batch: Sequence[int]) -> list[float]:
        padded = tokenizer.pad([inputs[i] for i in batch], return_tensors="pt").to(judge.device)
        return judge(**padded).logits[:, 0].tolist()

    lengths = [len(encoded["input_ids"]) for encoded in inputs]
    return in_batches(judge_batch, batches_by_tokens(lengths, tokens_at_once), label)


def rate_texts(
    judge: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[BatchEncoding],
    tokens_at_once: int,
    kept: Path | None = None,
    identity: Any = None,
) -> list[float]:
    """Rate many texts as fast as the device can, and keep rewards against an interruption.

    Equal texts are read once. The others are sorted by length before they are divided into batches,
    so the more there are, the less padding is read. On a CPU the judge's weights are rearranged
    meanwhile, as `packing` describes.

    Args:
        judge: a reward model in evaluation mode.
        tokenizer: its tokenizer.
        inputs: the encoded questions and answers.
        tokens_at_once: limit of a batch in tokens, padding included.
        kept: a file to which rewards are added after at least two hundred texts each. Those that
            it has are not computed again.
        identity: what the judge is recognised by in that file.

    Returns:
        The rewards, in the order of the inputs.

    Raises:
        ValueError: if a reward is not finite.
    """
    keys = [_fingerprint(identity, encoded) for encoded in inputs]
    rewards = processes.on_main(_read_kept, kept)
    texts = dict(zip(keys, inputs))  # equal texts have one entry
    missing = [key for key in texts if key not in rewards]
    if not missing:
        return [rewards[key] for key in keys]
    left = len(missing)
    shortest = min(missing, key=lambda key: len(texts[key]["input_ids"]))

    @torch.inference_mode()
    def read(judge: Module) -> torch.Tensor:
        padded = tokenizer.pad([texts[shortest]], return_tensors="pt")
        return judge(**padded.to(judge.device)).logits

    with packed(judge, read), positions_projected_once(judge):
        for part in _in_parts(missing, texts, tokens_at_once):
            label = f"rewards ({len(texts) - left} of {len(texts)} texts are done)"
            part_inputs = [texts[key] for key in part]
            computed = compute_rewards(judge, tokenizer, part_inputs, tokens_at_once, label)
            rewards.update(zip(part, computed))
            processes.on_main(_keep, kept, dict(zip(part, computed)))
            for key, reward in zip(part, computed):
                if not math.isfinite(reward):
                    text = tokenizer.decode(texts[key]["input_ids"])
                    raise ValueError(
                        f"The judge gives the reward {reward}, which is not a finite number, to "
                        f"the text {text[:300]!r}. Check that its checkpoint is complete."
                    )
            left -= len(part)
    return [rewards[key] for key in keys]


def _fingerprint(identity: Any, encoded: Mapping[str, Sequence[int]]) -> str:
    """Compute the key under which the reward of a text is kept."""
    numbers = {}
    for name, values in encoded.items():
        numbers[name] = [int(number) for number in values]
    return fingerprint([identity, numbers])


def _in_parts(
    keys: Sequence[str], texts: Mapping[str, BatchEncoding], tokens_at_once: int
) -> Iterator[list[str]]:
    """Divide texts into parts of whole batches, the longest texts first."""
    lengths = [len(texts[key]["input_ids"]) for key in keys]
    part: list[str] = []
    batches = 0
    for batch in batches_by_tokens(lengths, tokens_at_once):
        part += [keys[i] for i in batch]
        batches += 1
        if len(part) >= TEXTS_IN_A_PART and batches >= BATCHES_IN_A_PART * processes.count():
            yield part
            part, batches = [], 0
    if part:
        yield part


def _read_kept(kept: Path | None) -> dict[str, float]:
    """Read the rewards that a file keeps, without a line that was not written to its end."""
    rewards: dict[str, float] = {}
    if kept is None or not kept.is_file():
        return rewards
    for line in kept.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, reward = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str) and isinstance(reward, float):
            rewards[key] = reward
    return rewards


def _keep(kept: Path | None, rewards: Mapping[str, float]) -> None:
    """Append rewards to the file that keeps them. One that is not finite is left out."""
    if kept is None:
        return
    lines = [json.dumps([key, reward]) for key, reward in rewards.items() if math.isfinite(reward)]
    with full_disk_explained(kept.parent), kept.open("a", encoding="utf-8") as file:
        # A line that an interruption has cut short ends here, and not in the next one.
        file.write("\n" + "\n".join(lines) + "\n")
