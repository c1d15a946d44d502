"""Turn a question and an answer into a conversation, for judges that read by a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from posttrain.chat import OPTIONS, Turn, add_turn, read_turns
from posttrain.tokenizer_checks import JUDGED
from posttrain.transcripts import PROMPT_END, TURN

if TYPE_CHECKING:
    from transformers import BatchEncoding
    from transformers import PreTrainedTokenizerBase as Tokenizer

# What a judge's template must be able to render: one question, two questions, and an empty answer
TRIED = (
    *JUDGED,
    (f"{TURN} Hello!{PROMPT_END} Hi.{TURN} How are you?", "Well."),
    (f"{TURN} How are you?", ""),
)


def list_turns(question: str, answer: str) -> list[Turn]:
    """Split a question into the turns of its transcript, and add the answer as the last one.

    The roles alternate and the user begins, as most templates demand: two successive turns of one
    role become one with a blank line between them. If the question breaks off in a turn of the
    assistant, as in some prompts of the study, the answer continues that turn.

    Args:
        question: the transcript without its final `Assistant:`. A text without any marker is a
            single turn of the user.
        answer: what is to be judged; it may contain markers of turns.
    """
    turns = read_turns(question)
    add_turn(turns, "assistant", answer)
    return turns


def shorten_turns(turns: Sequence[Turn], tokenizer: Tokenizer, longest: int) -> list[Turn]:
    """Shorten a conversation from the left until its rendering fits; the answer is never cut.

    The oldest turns are left out, a question together with its answer. If that is not enough, the
    last question loses its beginning, but some of it always remains.

    Args:
        turns: the conversation, which ends with the answer.
        tokenizer: the judge's tokenizer, which has a chat template.
        longest: the largest number of tokens of the rendered conversation.
    """

    def count_excess() -> int:
        rendered = tokenizer.apply_chat_template(turns, **OPTIONS)
        return len(rendered["input_ids"]) - longest

    turns = list(turns)
    while count_excess() > 0 and len(turns) > 2:
        turns = turns[2:]
    ids = tokenizer(turns[0]["content"], add_special_tokens=False)["input_ids"]
    while (excess := count_excess()) > 0 and len(ids) > 1:
        ids = ids[min(excess, len(ids) - 1) :]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        turns[0] = {"role": "user", "content": text.strip(" \ufffd")}  # of a character cut in two
    return turns


def encode_whole(tokenizer: Tokenizer, question: str, answer: str) -> BatchEncoding:
    """Encode a short question and answer as the judge reads them: as a conversation or a pair."""
    if tokenizer.chat_template is None:
        return tokenizer(question, answer)
    return tokenizer.apply_chat_template(list_turns(question, answer), **OPTIONS)


def require_template(folder: Path, tokenizer: Tokenizer, parameter: str) -> None:
    """Refuse a judge whose chat template does not render conversations as they are.

    Args:
        folder: the judge's folder, for the message.
        tokenizer: its tokenizer. Without a chat template there is nothing to check.
        parameter: the parameter that names the judge, for the message.

    Raises:
        ValueError: if the template refuses a conversation, or leaves out or changes a turn.
    """
    if tokenizer.chat_template is None:
        return
    for question, answer in TRIED:
        turns = list_turns(question, answer)
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, **OPTIONS)
        except (TemplateError, ValueError, TypeError, LookupError) as error:
            raise ValueError(
                f"{parameter}: the chat template of the judge in {folder} refuses a conversation "
                f"of {len(turns)} turns by user and assistant ({type(error).__name__}: {error}), "
                "so the judge cannot read answers. Correct its chat_template, or choose another "
                "judge."
            ) from error
        if any(turn["content"] not in text for turn in turns):
            raise ValueError(
                f"{parameter}: the chat template of the judge in {folder} leaves out or changes a "
                f"turn of a conversation: of {turns} it makes {text!r}. Correct its "
                "chat_template, or choose another judge."
            )
