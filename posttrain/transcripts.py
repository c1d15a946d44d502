"""Reading HH-RLHF: from rows of two transcripts to a prompt and the two replies to it.

A row that cannot be used costs no other row: it is dropped, and counted under its reason.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PROMPT_END = "\n\nAssistant:"  # a prompt ends with this marker, and the reply follows
TURN = "\n\nHuman:"  # every turn of the human begins with this marker
MEASURED = {"harmful": "harmless-base", "helpful": "helpful-base"}  # kind of prompt: its subset
SUBSETS = {
    "base": tuple(MEASURED.values()),
    "all": (*MEASURED.values(), "helpful-online", "helpful-rejection-sampled"),
}
# No honest text holds these: control characters, characters that turn the direction of writing,
# and surrogates, which are halves of characters.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# {"prompt", "chosen", "rejected"}. Training adds "subset", "length" in tokens, and token ids.
Pair = dict[str, Any]
# The record that a line holds, or the reason why it holds none.
Row = dict[str, Any] | str


def list_files(subsets: str, splits: Sequence[str] = ("train", "test")) -> list[str]:
    """List the files of a dataset in HH-RLHF's layout that hold the subsets `base` or `all`."""
    names = []
    for subset in SUBSETS[subsets]:
        names += [f"{subset}/{split}.jsonl.gz" for split in splits]
    return names


def _parse_line(line: bytes) -> Row:
    """Parse a line of a JSON lines file into its record, or into the reason why it is none."""
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return data if isinstance(data, dict) else "not a record"


def read_split(folder: Path, subset: str, split: str) -> list[Row]:
    """Read one split of a dataset, a row for each line that is not blank.

    Args:
        folder: the dataset's folder, in the layout of Anthropic/hh-rlhf.
        subset: one of its folders, such as "harmless-base".
        split: "train" or "test".

    Returns:
        The rows in the file's order. Where the file is cut short or damaged, the rows before the
        damage are followed by one that names it.

    Raises:
        ValueError: the file is missing, or no row has the two columns of a preference pair.
    """
    path = Path(folder) / subset / f"{split}.jsonl.gz"
    if not path.exists():
        raise ValueError(
            f"DATASET: {folder} has no {subset}/{path.name}, as Anthropic/hh-rlhf has."
        )
    rows: list[Row] = []
    try:
        with gzip.open(path) as file:
            rows.extend(_parse_line(line) for line in file if line.strip())
    except (EOFError, gzip.BadGzipFile, zlib.error):
        rows.append("file cut short or damaged")
    _require_columns(rows, folder, f"{subset}/{split}")
    return rows


def _require_columns(rows: list[Row], folder: Path, split: str) -> None:
    """Refuse a split without the columns of preference pairs, naming the columns that it has."""
    columns = set()
    reasons = Counter()
    for row in rows:
        if isinstance(row, dict):
            columns.update(row)
        else:
            reasons[row] += 1
    if not {"chosen", "rejected"} <= columns:
        raise ValueError(
            f"DATASET: {folder}, {split} has the columns {sorted(columns)}, unusable lines: "
            f"{dict(reasons) or 'none'}; preference pairs need chosen and rejected."
        )


def split_transcript(text: str) -> tuple[str, str]:
    r"""Split a transcript into (prompt, reply) after its last `\n\nAssistant:`.

    The reply is stripped. Replies have paragraphs, so a blank line does not mark a turn.

    Raises:
        ValueError: there is no turn of the assistant.
    """
    prompt, marker, reply = text.rpartition(PROMPT_END)
    if not marker:
        raise ValueError("no assistant turn")
    return prompt + marker, reply.strip()


def _read_texts(row: Row, special_tokens: Iterable[str]) -> list[str]:
    """Take the chosen and the rejected transcript out of a row, or raise the reason against it."""
    if isinstance(row, str):
        raise ValueError(row)
    texts = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not text")
    if any(CONTROL.search(text) for text in texts):
        raise ValueError("control character")
    # A special token would be read as control: as an early end of the reply, for example.
    for token in special_tokens:
        if token in texts[0] or token in texts[1]:
            raise ValueError("special token in text")
    return texts


def split_pair(row: Row, special_tokens: Iterable[str]) -> Pair:
    """Split a row into the prompt that both transcripts share, and the two replies to it.

    Args:
        row: a record with the transcripts "chosen" and "rejected".
        special_tokens: the tokenizer's, which no text may hold.

    Returns:
        {"prompt", "chosen", "rejected"}.

    Raises:
        ValueError: the row cannot be used; the error's text is the reason, in a few words.
    """
    chosen_text, rejected_text = _read_texts(row, special_tokens)
    prompt, chosen = split_transcript(chosen_text)
    other_prompt, rejected = split_transcript(rejected_text)
    if prompt != other_prompt:
        raise ValueError("prompts differ")
    if not prompt.startswith(TURN):
        raise ValueError("no human turn first")
    if TURN in chosen or TURN in rejected:
        raise ValueError("reply opens a human turn")
    if not chosen or not rejected:
        raise ValueError("empty reply")
    if chosen == rejected:
        raise ValueError("identical replies")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def split_pairs(rows: Iterable[Row], special_tokens: Sequence[str]) -> tuple[list[Pair], Counter]:
    """Split rows into the usable pairs, in order, and count the other rows by their reasons."""
    pairs = []
    dropped = Counter()
    for row in rows:
        try:
            pairs.append(split_pair(row, special_tokens))
        except ValueError as reason:
            dropped[str(reason)] += 1
    return pairs, dropped


def read_test_prompts(folder: Path, subsets: Sequence[str]) -> list[str]:
    """Read all prompts of the test splits, those of defective rows too, sorted and each once."""
    prompts = set()
    for subset in subsets:
        for row in read_split(folder, subset, "test"):
            if isinstance(row, str):
                continue
            for text in (row.get("chosen"), row.get("rejected")):
                if isinstance(text, str) and PROMPT_END in text:
                    prompts.add(split_transcript(text)[0])
    return sorted(prompts)
