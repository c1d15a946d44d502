"""Write conversations with a base's own chat template in place of HH-RLHF's markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from posttrain.transcripts import PROMPT_END, TURN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ROLES = {TURN: "user", PROMPT_END: "assistant"}
MARKERS = re.compile(f"({re.escape(TURN)}|{re.escape(PROMPT_END)})")
# A template that can think before a reply is asked not to. The date, which the template of
# Llama 3.2 writes, is one that it has itself, so that a text does not depend on the day.
OPTIONS = {"enable_thinking": False, "date_string": "26 Jul 2024"}
Turn = dict[str, str]  # {"role": "user" or "assistant", "content"}
# A conversation and a reply on which a template is tried
PROBE = f"{TURN} Hello there{PROMPT_END} Good morning{TURN} What is bread{PROMPT_END}"
REPLY = "Flour and water"


def read_turns(text: str) -> list[Turn]:
    """Read the turns of a transcript.

    The roles alternate and the user begins, as most templates demand: successive turns of one role
    become one with a blank line between them.

    Args:
        text: a transcript in HH-RLHF's format. What is before the first marker is the user's.

    Returns:
        The turns.
    """
    parts = MARKERS.split(f"\n\n{text}")  # a text, then a marker and its text, and so on
    roles = ["user", *(ROLES[marker] for marker in parts[1::2])]
    turns = [{"role": "user", "content": ""}]
    for role, content in zip(roles, parts[::2], strict=True):
        add_turn(turns, role, content)
    return turns


def add_turn(turns: list[Turn], role: str, content: str) -> None:
    """Add a turn to a conversation, or go on with the last one if it has the same role."""
    content = content.strip()
    if role == turns[-1]["role"]:
        content = f"{turns.pop()['content']}\n\n{content}".strip()
    turns.append({"role": role, "content": content})


def render_prompt(prompt: str, tokenizer: Tokenizer) -> str:
    """Write a prompt with the chat template, up to where the assistant's reply begins.

    Args:
        prompt: the prompt in HH-RLHF's format.
        tokenizer: the tokenizer of the base, with a chat template.
    """
    turns = read_turns(prompt.removesuffix(PROMPT_END))
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, **OPTIONS
    )


@lru_cache(maxsize=2)  # a template is the same for all replies
def read_reply_frame(tokenizer: Tokenizer) -> tuple[str, str, str]:
    """Read what a chat template writes around a reply.

    Returns:
        (the text of a short prompt up to its reply, the text between the prompt and the reply's
        first word, the token that ends the reply). A reply in a conversation is the prompt, the
        text in between, the reply, and the end.

    Raises:
        ValueError: if the tokenizer has no template, the template refuses a conversation, writes a
            prompt otherwise once it is replied to, changes the texts, or does not end a reply by a
            token of its own.
    """
    place = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise ValueError(
            f"FORMAT = 'chat', but the tokenizer in {place} has no chat template. Choose a "
            "BASE_MODEL that was trained for conversations, or FORMAT = 'transcript'."
        )
    turns = read_turns(f"{PROBE} {REPLY}")
    try:
        prompt = render_prompt(PROBE, tokenizer)
        whole = tokenizer.apply_chat_template(turns, tokenize=False, **OPTIONS)
    except Exception as error:  # a template is a program, which may raise anything
        raise ValueError(
            f"FORMAT = 'chat', but the chat template in {place} does not write a conversation of "
            f"a user and an assistant with two turns: {error}. Choose another BASE_MODEL, or "
            "FORMAT = 'transcript'."
        ) from error
    between, reply, after = whole[len(prompt) :].partition(REPLY)
    texts = [turn["content"] for turn in turns[:-1]]
    if not whole.startswith(prompt) or not reply or not all(text in prompt for text in texts):
        raise ValueError(
            f"FORMAT = 'chat', but the chat template in {place} writes the prompt {prompt!r}, and "
            f"with a reply {whole!r}: the reply does not follow the prompt, or a turn is missing. "
            "Choose another BASE_MODEL, or FORMAT = 'transcript'."
        )
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    ends = [token for token in tokenizer.convert_ids_to_tokens(ids) if _is_end(token, tokenizer)]
    if not ends:
        raise ValueError(
            f"FORMAT = 'chat', but the chat template in {place} puts no special token after a "
            f"reply, only {after!r}, so no reply would have an end. Choose another BASE_MODEL, or "
            "FORMAT = 'transcript'."
        )
    return prompt, between, ends[0]


def _is_end(token: str, tokenizer: Tokenizer) -> bool:
    """Tell whether a token has a special effect, so that it can end a reply."""
    special = [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]
    return token in special or token == tokenizer.eos_token


def end_of_reply(tokenizer: Tokenizer) -> int:
    """Look up the id of the token that ends a reply in the chat template."""
    return tokenizer.convert_tokens_to_ids(read_reply_frame(tokenizer)[2])


def render_prompts(prompts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Write prompts with the chat template, as `render_prompt` does."""
    read_reply_frame(tokenizer)  # which refuses a template that cannot be used
    return [render_prompt(prompt, tokenizer) for prompt in prompts]
