"""Read HH-RLHF: split rows of two transcripts into a prompt and the two replies to it.

A row that cannot be used is dropped and counted with the reason. It does not affect other rows.
"""

import codecs
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
CONVERSION = "conversion.json"  # the report in a folder that `converting` has made
# Characters that do not occur in ordinary text: control characters, characters that change the
# direction of writing, and surrogates, which are halves of characters.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

GZIP = b"\x1f\x8b"  # how a file that gzip has compressed begins
# {how a file of another kind begins: what it is, and what to do}
OTHER_KINDS = {
    b"{": ("text that is not compressed", "Remove .gz from its name and compress it with `gzip`"),
    b"<": ("a web page, saved in the place of the file", "Download the file again"),
    b"PK": ("a zip archive", "Unpack it and compress what it contains with `gzip`"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Decompress it, then compress it with `gzip`"),
    b"BZh": ("compressed by bzip2", "Decompress it, then compress it with `gzip`"),
    b"\xfd7zXZ": ("compressed by xz", "Decompress it, then compress it with `gzip`"),
    b"PAR1": ("a Parquet file", "Write its rows as JSON Lines and compress them with `gzip`"),
    b"": ("of an unknown kind", "Download the file again"),
}

# {"prompt", "chosen", "rejected"}. Training adds "subset", "length" in tokens, and token ids.
Pair = dict[str, Any]
# The record of a line, or the reason for which the line has no record.
Row = dict[str, Any] | str


def list_files(subsets: str, splits: Sequence[str] = ("train", "test")) -> list[str]:
    """List the files of a dataset in HH-RLHF's layout that contain the subsets "base" or "all".

    The last one is the report on a conversion, which only a dataset of another origin has.
    """
    names = []
    for subset in SUBSETS[subsets]:
        names += [f"{subset}/{split}.jsonl.gz" for split in splits]
    return [*names, CONVERSION]


def list_subsets(folder: Path, subsets: str) -> tuple[str, ...]:
    """List the subsets to read of a dataset.

    HH-RLHF must have all of them; a folder that `converting` has made may have one.

    Args:
        folder: the dataset's folder.
        subsets: "base" or "all".
    """
    names = SUBSETS[subsets]
    if not (Path(folder) / CONVERSION).is_file():
        return names
    return tuple(name for name in names if (Path(folder) / name).is_dir())


def parse_line(line: bytes) -> Row:
    """Parse a line of a JSON Lines file into its record, or into the reason that it has none."""
    try:
        data = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return data if isinstance(data, dict) else "not a record"


def read_split(folder: Path, subset: str, split: str) -> list[Row]:
    """Read one split of a dataset, with a row for each line that is not blank.

    Args:
        folder: the dataset's folder, in the layout of Anthropic/hh-rlhf.
        subset: the name of a subset, such as "harmless-base".
        split: "train" or "test".

    Returns:
        The rows in the order of the file. If the file is truncated or damaged, the rows before the
        damage are followed by a row that names the damage.

    Raises:
        ValueError: if the file is missing, empty, of another kind than its name says or not UTF-8,
            or if no row has the two columns of a preference pair.
    """
    path = Path(folder) / subset / f"{split}.jsonl.gz"
    if not path.is_file():
        raise ValueError(
            f"DATASET: {folder} has no file {subset}/{path.name}. Its files must be laid out as in "
            "Anthropic/hh-rlhf."
        )
    _require_gzip(path)
    rows: list[Row] = []
    start = b""
    try:
        with gzip.open(path) as file:
            start = file.peek(4)[:4]
            rows.extend(parse_line(line) for line in file if line.strip())
    except (EOFError, gzip.BadGzipFile, zlib.error):
        rows.append("file cut short or damaged")
    if not any(isinstance(row, dict) for row in rows):
        _refuse_other_text(path, rows, start)
    _require_columns(rows, folder, f"{subset}/{split}")
    return rows


def _require_gzip(path: Path) -> None:
    """Refuse a file that is empty or of another kind, and say which kind it is."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"DATASET: {path} is empty. Download the file again.")
    if start.startswith(GZIP):
        return
    text = start.removeprefix(codecs.BOM_UTF8).lstrip()
    for beginning, (kind, remedy) in OTHER_KINDS.items():
        if text.startswith(beginning):
            raise ValueError(
                f"DATASET: {path} is not compressed by gzip, as its name says. It is {kind}. "
                f"{remedy}."
            )


def _refuse_other_text(path: Path, rows: list[Row], start: bytes) -> None:
    """Refuse a file without records if its content is empty, UTF-16, UTF-32 or compressed again."""
    if not rows:
        raise ValueError(f"DATASET: {path} contains no lines. Download the file again.")
    if start.startswith(GZIP):
        raise ValueError(f"DATASET: {path} was compressed twice. Decompress it once (`gzip -d`).")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise ValueError(
            f"DATASET: the text in {path} is UTF-16 or UTF-32, but it must be UTF-8. Convert it, "
            "for example with `iconv -f UTF-16 -t UTF-8`, and compress it with `gzip`."
        )


def _require_columns(rows: list[Row], folder: Path, split: str) -> None:
    """Refuse a split without the columns of preference pairs, and name the columns that it has."""
    columns = set()
    reasons = Counter()
    for row in rows:
        if isinstance(row, dict):
            columns.update(row)
        else:
            reasons[row] += 1
    if not {"chosen", "rejected"} <= columns:
        raise ValueError(
            f"DATASET: in {folder}, {split} has the columns {sorted(columns)}, but preference "
            "pairs need the columns chosen and rejected. Unusable lines: "
            f"{dict(reasons) or 'none'}."
        )


def split_transcript(text: str) -> tuple[str, str]:
    r"""Split a transcript into (prompt, reply) after its last `\n\nAssistant:`.

    Blanks at both ends of the reply are removed. A reply may have several paragraphs, so a blank
    line alone does not begin a turn.

    Raises:
        ValueError: if the transcript has no turn of the assistant.
    """
    prompt, marker, reply = text.rpartition(PROMPT_END)
    if not marker:
        raise ValueError("no assistant turn")
    return prompt + marker, reply.strip()


def _read_texts(row: Row, special_tokens: Iterable[str]) -> list[str]:
    """Read the chosen and the rejected transcript of a row, or raise the reason to drop it."""
    if isinstance(row, str):
        raise ValueError(row)
    texts = [row.get("chosen"), row.get("rejected")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("not text")
    if any(CONTROL.search(text) for text in texts):
        raise ValueError("control character")
    # A special token in a text would have its special effect, for example end the reply early.
    for token in special_tokens:
        if token in texts[0] or token in texts[1]:
            raise ValueError("special token in text")
    return texts


def split_pair(row: Row, special_tokens: Iterable[str]) -> Pair:
    """Split a row into the prompt that both transcripts share, and the two replies to it.

    Args:
        row: a record with the transcripts "chosen" and "rejected".
        special_tokens: the tokenizer's special tokens, which no text may contain.

    Returns:
        {"prompt", "chosen", "rejected"}.

    Raises:
        ValueError: if the row cannot be used. The message is the reason in a few words.
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
    """Split rows into pairs, and count the unusable rows by the reason for dropping them."""
    pairs = []
    dropped = Counter()
    for row in rows:
        try:
            pairs.append(split_pair(row, special_tokens))
        except ValueError as reason:
            dropped[str(reason)] += 1
    return pairs, dropped


def read_test_prompts(folder: Path, subsets: Sequence[str]) -> list[str]:
    """Read all prompts of the test splits, even of unusable rows, sorted and without duplicates."""
    prompts = set()
    for subset in subsets:
        for row in read_split(folder, subset, "test"):
            if isinstance(row, str):
                continue
            for text in (row.get("chosen"), row.get("rejected")):
                if isinstance(text, str) and PROMPT_END in text:
                    prompts.add(split_transcript(text)[0])
    return sorted(prompts)
