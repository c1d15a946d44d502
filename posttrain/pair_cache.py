"""Keep prepared pairs in a file, so that the next start of a run reads them instead of making them.

The file is used only if it was made from equal inputs: the dataset's files, the tokenizer, the
settings, the code that prepares pairs, and the versions of the libraries that it uses.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from posttrain.files import fingerprint, sha256_of, written_whole
from posttrain.transcripts import Pair, list_files

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase as Tokenizer

CODE = ("data", "tokens", "transcripts", "chat", "pair_cache")  # modules that prepare pairs
LIBRARIES = ("jinja2", "tokenizers", "transformers")
TEXTS = ("prompt", "chosen", "rejected", "subset")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # token ids of the prompt and of the replies
AT_ONCE = 10_000  # pairs that are written or read at once; all at once would take twice the memory

Prepared = tuple[list[Pair], list[Pair], pd.DataFrame]  # training, validation, and the report


class PairSettings(Protocol):
    """The settings that decide which pairs are used and how they are prepared."""

    subsets: str  # "base" or "all"
    max_pairs: int | None  # pairs for training and validation together; None takes all
    validation_pairs: int  # number of held-out pairs, limited to a tenth of all pairs
    max_length: int  # limit of the prompt and the longer reply together, in tokens
    format: str  # "transcript", or "chat" for the base's chat template
    seed: int  # seed of the choice of pairs and of their order


def describe_inputs(folder: Path, tokenizer: Tokenizer, settings: PairSettings) -> str:
    """Compute one sha256 of what prepared pairs are made from.

    Args:
        folder: the dataset's folder.
        tokenizer: the tokenizer of the base model.
        settings: the settings of the pairs.

    Returns:
        The sha256, as hexadecimal digits.
    """
    inputs: dict[str, Any] = {}
    for name in PairSettings.__annotations__:
        inputs[name] = getattr(settings, name)
    for name in list_files(settings.subsets):
        path = Path(folder) / name
        inputs[name] = sha256_of(path) if path.is_file() else None
    with tempfile.TemporaryDirectory() as saved:  # its saved files describe all of it
        tokenizer.save_pretrained(saved)
        inputs["tokenizer"] = sha256_of(Path(saved))
    for name in CODE:
        inputs[f"{name}.py"] = sha256_of(Path(__file__).with_name(f"{name}.py"))
    for name in LIBRARIES:
        inputs[name] = version(name)
    return fingerprint(inputs)


def keep_pairs(path: Path, inputs: str, prepared: Prepared) -> None:
    """Write prepared pairs, in place of those that the file holds.

    Args:
        path: the file.
        inputs: the sha256 that `describe_inputs` computes.
        prepared: the pairs for training and for validation, and the report on the cleaning.
    """
    from pyarrow import parquet

    training, validation, report = prepared
    metadata = {
        "inputs": inputs,
        "validation": json.dumps(len(validation)),
        "report": report.to_json(orient="split"),
    }
    pairs = [*validation, *training]
    schema = _tabulate(pairs[:1]).schema.with_metadata(metadata)
    options = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": ["subset"]}
    with written_whole(path) as temporary, parquet.ParquetWriter(temporary, schema, **options) as w:
        for start in range(0, len(pairs), AT_ONCE):
            w.write_table(_tabulate(pairs[start : start + AT_ONCE]))


def _tabulate(pairs: Sequence[Pair]) -> pyarrow.Table:
    """Turn pairs into a table of Arrow with a column for each field."""
    import pyarrow

    columns = {}
    for name in TEXTS:
        columns[name] = pyarrow.array([pair[name] for pair in pairs], pyarrow.large_string())
    columns["length"] = pyarrow.array([pair["length"] for pair in pairs], pyarrow.int32())
    for name in IDS:
        ids = [pair[name] for pair in pairs]
        ends = np.cumsum([0, *map(len, ids)], dtype=np.int32)
        values = pyarrow.array(np.concatenate(ids))
        columns[name] = pyarrow.ListArray.from_arrays(pyarrow.array(ends), values)
    return pyarrow.table(columns)


def read_kept_pairs(path: Path, inputs: str) -> Prepared | None:
    """Read pairs that were kept, if they were made from equal inputs.

    Args:
        path: the file.
        inputs: the sha256 that `describe_inputs` computes.

    Returns:
        The pairs for training and for validation, and the report on the cleaning. None if the file
        is missing or damaged, or was made from other inputs.
    """
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        return None
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        if metadata.get(b"inputs") != inputs.encode():
            return None
        pairs = []
        for table in file.iter_batches(AT_ONCE):
            pairs.extend(_list_pairs(table))
    except (OSError, pyarrow.ArrowException):  # damaged, so that the pairs are made again
        return None
    held_out = json.loads(metadata[b"validation"])
    report = pd.read_json(io.StringIO(metadata[b"report"].decode()), orient="split")
    return pairs[held_out:], pairs[:held_out], report


def _list_pairs(table: pyarrow.RecordBatch) -> Iterator[Pair]:
    """Turn a table of Arrow into pairs, whose token ids are views of the table's memory."""
    columns = {name: table[name].to_pylist() for name in (*TEXTS, "length")}
    for name in IDS:
        values = table[name].flatten().to_numpy()
        ends = np.cumsum(table[name].value_lengths().to_numpy())
        columns[name] = np.split(values, ends[:-1])
    for fields in zip(*columns.values()):
        yield dict(zip(columns, fields))
