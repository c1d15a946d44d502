"""Token ids of many texts, of replies as they follow their prompts, and prompts cut to fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from posttrain.transcripts import PROMPT_END, TURN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TEXTS_AT_ONCE = 1000  # all texts of a dataset at once would hold gigabytes


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, label: str, **options: Any
) -> list[np.ndarray]:
    """Encode every text into its token ids.

    Args:
        texts: what is encoded.
        tokenizer: is called for many texts at a time, since for a single text it uses one core.
        label: what the texts are, for the progress bar.
        **options: go to the tokenizer.

    Returns:
        An array (tokens,) of int32 for each text: Python's garbage collector would go through
        lists of numbers again and again.
    """
    ids = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in tqdm(starts, desc=f"tokens of {label}", leave=False):
        part = tokenizer(texts[start : start + TEXTS_AT_ONCE], **options)["input_ids"]
        ids.extend(np.array(text_ids, np.int32) for text_ids in part)
    return ids


def encode_replies(replies: Sequence[str], tokenizer: Tokenizer, label: str) -> list[np.ndarray]:
    """Encode replies as they follow a prompt: with a space before and EOS after.

    They are read behind the marker that ends every prompt, since some tokenizers put a mark at the
    beginning of a text.

    Args:
        replies: stripped texts.
        tokenizer: the base model's.
        label: what the replies are, for the progress bar.

    Returns:
        An array (tokens,) of int32 for each reply, without the prompt's marker.

    Raises:
        ValueError: a token reaches across the border between prompt and reply.
    """
    marker = tokenizer(PROMPT_END, add_special_tokens=False)["input_ids"]
    texts = [f"{PROMPT_END} {reply}{tokenizer.eos_token}" for reply in replies]
    encoded = encode(texts, tokenizer, label, add_special_tokens=False)
    if any(ids[: len(marker)].tolist() != marker for ids in encoded):
        raise ValueError(
            "BASE_MODEL: its tokenizer has tokens that reach across the border between a prompt "
            "and its reply, so the model would be asked something else than it has learned. Take "
            "another base."
        )
    return [ids[len(marker) :].copy() for ids in encoded]  # a view would keep the marker in memory


def cut_prompts(
    prompts: Sequence[str], rooms: Sequence[int], tokenizer: Tokenizer
) -> list[str | None]:
    """Cut the oldest turns off each prompt until it takes no more tokens than it has room for.

    Args:
        prompts: each begins with a turn of the human.
        rooms: how many tokens each prompt may take.
        tokenizer: the base model's; the tokens that it puts before a text are counted.

    Returns:
        For each prompt its longest end that begins with a turn of the human and fits, or None
        where the last turn alone is too long.
    """
    turns = []
    for prompt in prompts:
        turns.append([match.start() for match in re.finditer(TURN, prompt)])
    # A binary search for the first turn that is kept, in all prompts at once: it is at least the
    # prompt's `low`, at most its `high`, and the number of turns where not even the last one fits.
    low = [0] * len(prompts)
    high = [len(starts) for starts in turns]
    searched = [i for i in range(len(prompts)) if low[i] < high[i]]
    while searched:
        middle = [(low[i] + high[i]) // 2 for i in searched]
        ends = [prompts[i][turns[i][turn] :] for i, turn in zip(searched, middle)]
        for i, turn, ids in zip(searched, middle, encode(ends, tokenizer, "ends of prompts")):
            if len(ids) <= rooms[i]:
                high[i] = turn
            else:
                low[i] = turn + 1
        searched = [i for i in searched if low[i] < high[i]]
    cut = []
    for prompt, starts, turn in zip(prompts, turns, low):
        cut.append(prompt[starts[turn] :] if turn < len(starts) else None)
    return cut
