"""Encode many texts and replies into token ids, and shorten prompts until they fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from posttrain.chat import read_reply_frame, render_prompts
from posttrain.transcripts import PROMPT_END, TURN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

TEXTS_AT_ONCE = 1000  # all texts of a dataset at once would take gigabytes of memory


def list_special_tokens(tokenizer: Tokenizer) -> list[str]:
    """List all tokens that have a special effect, those without a role of their own included."""
    added = tokenizer.added_tokens_decoder.values()
    without_role = {token.content for token in added if token.special}
    return sorted({*tokenizer.all_special_tokens, *without_role})


def encode(
    texts: Sequence[str], tokenizer: Tokenizer, label: str, add_special_tokens: bool = True
) -> list[np.ndarray]:
    """Encode texts into their token ids.

    The tokenizer gets many texts at a time, since it uses only one core for a single text. A
    tokenizer of the tokenizers library is asked for ids alone: the places of the tokens in the
    texts, which transformers asks for too, take a third of the time. The ids are returned as
    arrays, because Python's garbage collector would visit the numbers of a list again and again.

    Args:
        texts: the texts.
        tokenizer: the tokenizer.
        label: the kind of texts, for the progress bar.
        add_special_tokens: whether the tokenizer adds the tokens at the ends of a text.

    Returns:
        An int32 array of shape (tokens,) for each text.
    """
    tokenizer("")  # after this the library's tokenizer neither cuts nor pads
    ids = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in tqdm(starts, desc=f"tokens of {label}", leave=False):
        part = texts[start : start + TEXTS_AT_ONCE]
        if tokenizer.is_fast:
            encoded = tokenizer.backend_tokenizer.encode_batch_fast(
                part, add_special_tokens=add_special_tokens
            )
            ids.extend(np.array(text.ids, np.int32) for text in encoded)
        else:
            encoded = tokenizer(part, add_special_tokens=add_special_tokens)["input_ids"]
            ids.extend(np.array(text_ids, np.int32) for text_ids in encoded)
    return ids


def encode_prompts(
    prompts: Sequence[str], tokenizer: Tokenizer, label: str, chat: bool = False
) -> list[np.ndarray]:
    """Encode prompts as transcripts, or with the base's chat template.

    Args:
        prompts: the prompts in HH-RLHF's format.
        tokenizer: the tokenizer of the base model.
        label: the kind of prompts, for the progress bar.
        chat: whether the chat template writes them.

    Returns:
        An int32 array of shape (tokens,) for each prompt.
    """
    if not chat:
        return encode(prompts, tokenizer, label)
    # The template writes the token at the beginning of a text itself.
    return encode(render_prompts(prompts, tokenizer), tokenizer, label, add_special_tokens=False)


def encode_replies(
    replies: Sequence[str], tokenizer: Tokenizer, label: str, chat: bool = False
) -> list[np.ndarray]:
    """Encode replies as they follow a prompt, with the token that ends them.

    In a transcript a reply begins with a space and ends with EOS. A chat template decides itself
    what is before a reply and which token ends it; what it writes after that token is left out.
    Replies are encoded together with the end of a prompt, since some tokenizers add a mark at the
    beginning of a text. The tokens of the prompt are then removed.

    Args:
        replies: the replies, without blanks at their ends.
        tokenizer: the tokenizer of the base model.
        label: the kind of replies, for the progress bar.
        chat: whether the chat template writes them.

    Returns:
        An int32 array of shape (tokens,) for each reply.

    Raises:
        ValueError: if a token spans the boundary between prompt and reply, or if the chat template
            cannot be used.
    """
    before, between, end = PROMPT_END, " ", tokenizer.eos_token
    if chat:
        before, between, end = read_reply_frame(tokenizer)
    marker = tokenizer(before, add_special_tokens=False)["input_ids"]
    texts = [f"{before}{between}{reply}{end}" for reply in replies]
    encoded = encode(texts, tokenizer, label, add_special_tokens=False)
    if any(ids[: len(marker)].tolist() != marker for ids in encoded):
        raise ValueError(
            "BASE_MODEL: the tokenizer of this base has tokens that span the boundary between a "
            "prompt and its reply, so prompts would look different in training and evaluation. "
            "Choose another base."
        )
    return [ids[len(marker) :].copy() for ids in encoded]  # a view would keep the marker in memory


def cut_prompts(
    prompts: Sequence[str], rooms: Sequence[int], tokenizer: Tokenizer, chat: bool = False
) -> list[str | None]:
    """Remove the oldest turns of each prompt until it fits into the given number of tokens.

    Args:
        prompts: the prompts, each of which begins with a human turn.
        rooms: the largest number of tokens of each prompt.
        tokenizer: the tokenizer of the base model. Tokens that it adds before a text are counted.
        chat: whether the chat template writes them.

    Returns:
        For each prompt the longest ending that begins with a human turn and fits, or None if even
        the last turn is too long.
    """
    turns = []
    for prompt in prompts:
        turns.append([match.start() for match in re.finditer(TURN, prompt)])
    # A binary search, in all prompts at once, for the first turn that is kept. It lies between the
    # prompt's `low` and `high`. If not even the last turn fits, it is the number of turns.
    low = [0] * len(prompts)
    high = [len(starts) for starts in turns]
    searched = [i for i in range(len(prompts)) if low[i] < high[i]]
    while searched:
        middle = [(low[i] + high[i]) // 2 for i in searched]
        ends = [prompts[i][turns[i][turn] :] for i, turn in zip(searched, middle)]
        encoded = encode_prompts(ends, tokenizer, "ends of prompts", chat)
        for i, turn, ids in zip(searched, middle, encoded):
            if len(ids) <= rooms[i]:
                high[i] = turn
            else:
                low[i] = turn + 1
        searched = [i for i in searched if low[i] < high[i]]
    cut = []
    for prompt, starts, turn in zip(prompts, turns, low):
        cut.append(prompt[starts[turn] :] if turn < len(starts) else None)
    return cut
