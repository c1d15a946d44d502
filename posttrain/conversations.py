"""Convert a row of preference data into the prompt and the two replies of an HH-RLHF pair.

A row is in one of TRL's preference formats, standard (texts) or conversational (lists of messages),
with an explicit prompt or with one that both replies begin with; or it has HH-RLHF's transcripts.
"""

import ast
import json
import os
import re
from typing import Any

from posttrain.transcripts import PROMPT_END, TURN, Pair, Row, split_pair

OF_TOOLS = ("tool", "function", "ipython")  # roles of what a tool says
ROLES = ("system", "user", "assistant")
MESSAGES = re.compile(r"""\s*\[\s*\{[^}]*['"]role['"]\s*:""")  # how messages begin as a text
FOLDED = "system turn put before the first human turn"
SHARED = "prompt taken from the words with which both texts begin"

Messages = list[dict[str, str]]


def convert_row(row: Row) -> tuple[Pair, list[str]]:
    """Convert a row into a pair.

    Args:
        row: the columns chosen and rejected, and prompt where the prompt is explicit; or the reason
            for which the row could not be read.

    Returns:
        {"prompt", "chosen", "rejected"} with the markers of HH-RLHF, and what was changed, as
        FOLDED and SHARED name it.

    Raises:
        ValueError: if the row cannot be used. The message is the reason in a few words.
    """
    if isinstance(row, str):
        raise ValueError(row)
    for column, reason in {"images": "images", "image": "images", "tools": "tools"}.items():
        if row.get(column):
            raise ValueError(reason)
    prompt, chosen, rejected = (
        _read_cell(row.get(name)) for name in ("prompt", "chosen", "rejected")
    )
    if not chosen or not rejected:
        raise ValueError("unpaired, or an empty reply")
    if chosen == rejected:
        raise ValueError("identical replies")
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str | None):
        start, texts, changes = _convert_texts(prompt, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        start, texts, changes = _convert_messages(prompt, chosen, rejected)
    else:
        raise ValueError("neither texts nor messages")
    transcripts = [f"{start} {text}" for text in texts]
    return split_pair(dict(zip(("chosen", "rejected"), transcripts)), ()), changes


def _read_cell(value: Any) -> str | Messages | None:
    """Read a cell: a text, or messages, which a CSV file contains as text too."""
    if isinstance(value, str) and MESSAGES.match(value):
        value = _parse_messages(value)
    if value is None or isinstance(value, str):
        return value
    from trl.data_utils import is_conversational  # takes seconds to import

    if not isinstance(value, list):
        raise ValueError("neither texts nor messages")
    if value and not is_conversational({"chosen": value}):
        raise ValueError("neither texts nor messages")
    return [_read_message(message) for message in value]


def _parse_messages(text: str) -> Any:
    """Parse messages in JSON's or Python's notation."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    raise ValueError("messages that cannot be read")


def _read_message(message: Any) -> dict[str, str]:
    """Read the role and the text of a message, or raise the reason to drop its row."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("neither texts nor messages")
    role, content = message["role"], message.get("content")
    if role in OF_TOOLS or message.get("tool_calls"):
        raise ValueError("tools")
    if role not in ROLES:
        raise ValueError("other role")
    if isinstance(content, list):
        content = _join_parts(content)
    if not isinstance(content, str):
        raise ValueError("neither texts nor messages")
    return {"role": role, "content": content.strip()}


def _join_parts(parts: list[Any]) -> str:
    """Join the parts of a message's content, all of which must be texts."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            is_image = str(kind).startswith("image")
            raise ValueError("images" if is_image else "content of another kind")
        texts.append(part["text"])
    return "\n".join(texts)


# ---- texts


def _convert_texts(
    prompt: str | None, chosen: str, rejected: str
) -> tuple[str, list[str], list[str]]:
    """Convert texts into a prompt that ends with `Assistant:`, the two replies, and the changes."""
    if _is_transcript(chosen) and _is_transcript(rejected):
        pair = split_pair({"chosen": _begin(chosen), "rejected": _begin(rejected)}, ())
        return pair["prompt"], [pair["chosen"], pair["rejected"]], []
    changes = []
    if prompt is None:
        # TRL would take the words that the replies share into the prompt, too, up to the letter at
        # which they differ. No more is known of such a row, but a word is left whole.
        shared = os.path.commonprefix([chosen, rejected])
        prompt = re.sub(r"\S+$", "", shared)
        if not prompt.strip():
            raise ValueError("no prompt")
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        changes.append(SHARED)
    _refuse_markers([chosen, rejected])
    if _is_transcript(prompt):
        start = _begin(prompt.strip().removesuffix(PROMPT_END).rstrip()) + PROMPT_END
        return start, [chosen.strip(), rejected.strip()], changes
    return _write_prompt([prompt]), [chosen.strip(), rejected.strip()], changes


def _is_transcript(text: str) -> bool:
    """Tell whether a text begins with a human turn of HH-RLHF."""
    return text.lstrip().startswith(TURN.strip())


def _begin(transcript: str) -> str:
    """Let a transcript begin with the marker of a human turn, line breaks included."""
    return TURN + transcript.lstrip().removeprefix(TURN.strip())


# ---- messages


def _convert_messages(
    prompt: str | Messages | None, chosen: Messages, rejected: Messages
) -> tuple[str, list[str], list[str]]:
    """Convert messages into a prompt that ends with `Assistant:`, two replies, and the changes."""
    from trl.data_utils import extract_prompt

    if chosen[0]["role"] != "assistant":  # they contain the prompt, even beside a column of it
        parts = extract_prompt({"chosen": chosen, "rejected": rejected})
        prompt, chosen, rejected = parts["prompt"], parts["chosen"], parts["rejected"]
    elif isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    for reply in (chosen, rejected):
        if [message["role"] for message in reply] != ["assistant"]:
            raise ValueError("prompts differ, or a reply is not one message of the assistant")
    replies = [chosen[0]["content"], rejected[0]["content"]]
    changes = []
    turns = list(prompt or [])
    if turns and turns[0]["role"] == "system":
        instruction = turns.pop(0)["content"]
        if turns and turns[0]["role"] == "user" and instruction:
            turns[0] = {"role": "user", "content": f"{instruction}\n\n{turns[0]['content']}"}
            changes.append(FOLDED)
    roles = [message["role"] for message in turns]
    alternating = ["user", "assistant"] * (len(turns) // 2) + ["user"]
    if roles != alternating:
        raise ValueError("turns do not alternate, or the last one is not the human's")
    _refuse_markers(replies)
    return _write_prompt([message["content"] for message in turns]), replies, changes


def _write_prompt(turns: list[str]) -> str:
    """Write turns, of which the human has the first and the last, as a prompt of HH-RLHF."""
    texts = [turn.strip() for turn in turns]
    if not all(texts):
        raise ValueError("empty turn")
    _refuse_markers(texts)
    prompt = ""
    for place, text in enumerate(texts):
        marker = PROMPT_END if place % 2 else TURN
        prompt += f"{marker} {text}"
    return prompt + PROMPT_END


def _refuse_markers(texts: list[str]) -> None:
    """Refuse texts that contain a marker, which would begin another turn."""
    if any(TURN in text or PROMPT_END in text for text in texts):
        raise ValueError("turn marker in a message")
