"""Refuse judges whose rewards would not be those of the answers, and say how a judge reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.chat_judges import encode_whole
from posttrain.tokenizer_checks import JUDGED

# Largest difference of a reward alone and in a batch, relative to rewards above 1. Rounding causes
# 1e-5 in fp32, and a padding token that is read as text more than 0.1.
STEADY = 1e-3


def count_positions(judge: PreTrainedModel) -> int | None:
    """Count the tokens that a judge can read; None if its positions are relative.

    RoBERTa numbers its positions from the padding token's id on, so that some are never used.
    """
    if not getattr(judge.config, "position_biased_input", True):  # DeBERTa without absolute ones
        return None
    positions = getattr(judge.config, "max_position_embeddings", None)
    for name, module in judge.named_modules():
        is_table = isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return positions


def choose_padding(
    judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parameter: str = "REWARD_MODEL"
) -> None:
    """Let a judge pad on the right, with a token at which it does not read its reward.

    A decoder reads the reward at the last token before the padding, and finds it by the padding
    token's id in its config. The parameter that names the judge is for the message.

    Raises:
        ValueError: if the judge has no padding token and none can take its place.
    """
    tokenizer.padding_side = "right"
    last = encode_whole(tokenizer, *JUDGED[0])["input_ids"][-1]
    if tokenizer.pad_token_id in (None, last):
        named = judge.config.pad_token_id
        candidates = [tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token]
        if named is not None and 0 <= named < len(tokenizer):
            candidates.insert(0, tokenizer.convert_ids_to_tokens(named))
        for token in candidates:
            if token is not None and tokenizer.convert_tokens_to_ids(token) != last:
                tokenizer.pad_token = token
                break
        else:
            raise ValueError(
                f"{parameter}: the tokenizer in {judge.config.name_or_path} has no padding token, "
                "so answers of several lengths cannot be judged at once. Set "
                '"pad_token" in its tokenizer_config.json.'
            )
    judge.config.pad_token_id = tokenizer.pad_token_id


@torch.inference_mode()
def require_steady_rewards(
    folder: Path,
    judge: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    parameter: str = "REWARD_MODEL",
) -> None:
    """Refuse a judge whose reward depends on the other answers in a batch, or on no answer at all.

    The parameter that names the judge is for the messages.

    Raises:
        ValueError: if the judge has too few positions, or if a reward is not finite, differs
            between an answer alone and in a batch, or is the same for different answers.
    """
    encoded = [encode_whole(tokenizer, question, answer) for question, answer in JUDGED]
    positions = count_positions(judge)
    longest = max(len(text["input_ids"]) for text in encoded)
    if positions is not None and positions < longest:
        raise ValueError(
            f"{parameter}: the judge in {folder} has positions for only {positions} tokens, and a "
            f"short question with its answer has {longest} already. Choose another judge."
        )

    def read_rewards(texts: Sequence[Any]) -> list[float]:
        batch = tokenizer.pad(texts, return_tensors="pt").to(judge.device)
        return judge(**batch).logits[:, 0].tolist()

    together = read_rewards(encoded)
    if not all(map(math.isfinite, together)):
        raise ValueError(
            f"{parameter}: the judge in {folder} gives answers the rewards {together}, which are "
            "not finite numbers. Check that its checkpoint is complete."
        )
    if together[0] == together[1]:
        raise ValueError(
            f"{parameter}: the judge in {folder} gives different answers the same reward, "
            f"{together[0]:.4f}. Its head may be without weights, or it may not read the texts."
        )
    for text, reward in zip(encoded, together):
        (alone,) = read_rewards([text])
        if abs(alone - reward) > STEADY * max(1, abs(alone)):
            raise ValueError(
                f"{parameter}: the judge in {folder} gives an answer the reward {alone:.4f} alone "
                f"and {reward:.4f} beside a longer one, so its rewards would depend on the batch. "
                "Check the padding token in its config.json and tokenizer_config.json, or choose "
                "another judge."
            )


def say_how_judge_reads(
    folder: Path, judge: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Print a line where a judge was made to be used in another way than it is used here."""
    for name in ("function_to_apply", "sentence_transformers"):
        if getattr(judge.config, name, None) is not None:
            print(
                f"The judge in {folder} asks for a function of its output ({name} in its "
                "config.json), which is not applied: a reward is the number before it."
            )
    if tokenizer.chat_template is not None:
        template = str(tokenizer.chat_template)
        if "strftime_now" in template and "date_string" not in template:
            print(
                f"The chat template of the judge in {folder} writes today's date into every "
                "conversation, so the rewards may differ from day to day."
            )
        return
    ids = tokenizer(*JUDGED[0])["input_ids"]
    is_special = [token_id in tokenizer.all_special_ids for token_id in ids]
    first_word = is_special.index(False)
    last_word = len(ids) - 1 - is_special[::-1].index(False)
    if not any(is_special[first_word:last_word]):
        print(
            f"The tokenizer of the judge in {folder} puts nothing between question and answer, so "
            "the judge reads them as one text."
        )
