"""Convert preference data of other formats into a folder in HH-RLHF's layout.

The formats are TRL's preference formats, standard and conversational, with an explicit or an
implicit prompt, and HH-RLHF's own transcripts. `reading` reads the sources, and `conversations`
turns their rows into pairs of transcripts. A row that cannot be used is dropped and counted.
"""

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from posttrain.conversations import convert_row
from posttrain.files import require_new_folder, write, written_whole
from posttrain.reading import Source, read_source
from posttrain.transcripts import CONVERSION, MEASURED, Pair, Row

TEST_SHARE = 10  # of the prompts of a source with a single split, one in so many is for the test
MOST_TEST_PROMPTS = 2000  # more than an evaluation asks
GROUPS = ("read", "dropped", "kept", "of these")  # how the lines of the table begin, in order

Report = dict[str, Any]


def convert(sources: Mapping[str, str], out: Path) -> Report:
    """Convert sources of preference data into one folder, which is written whole or not at all.

    Args:
        sources: {"harmful" or "helpful": the source of the pairs with such prompts}, with a name on
            the hub, a folder or a file as `reading.read_source` takes it.
        out: the new folder.

    Returns:
        The report, which is also written into the folder, as conversion.json. For each kind it has
        the source with its version and splits, the numbers of rows `read` and `kept`, those
        `dropped` by their reason, and those `changed` in a way that is worth knowing.

    Raises:
        ValueError: if the folder is not empty, a source cannot be read, lacks the columns of
            preference pairs, or has no usable pair.
    """
    require_new_folder(out)
    if len(set(sources.values())) < len(sources):
        raise ValueError(
            "HARMFUL, HELPFUL: both name the same source, so the same prompts would be harmful and "
            "helpful. Name another one, or give one of the two alone."
        )
    pairs, kinds = {}, {}
    for kind, name in sources.items():
        source = read_source(kind.upper(), name)
        pairs[kind], kinds[kind] = _convert_source(kind.upper(), source)
    _separate(pairs, kinds)
    for kind, splits in pairs.items():
        for split in ("train", "test"):
            if not splits[split]:
                raise ValueError(
                    f"{kind.upper()} = {sources[kind]!r} leaves no pair for the {split} split. "
                    f"Its rows were counted as {_count(kinds[kind])}. At least two different "
                    "prompts are needed, one to train with and one to ask."
                )
        kinds[kind]["kept"] = {split: len(rows) for split, rows in splits.items()}
    packages = {name: version(name) for name in ("datasets", "trl")}
    report = {"kinds": kinds, "packages": packages}
    with written_whole(out) as folder:
        for kind, splits in pairs.items():
            for split, rows in splits.items():
                _write_split(folder / MEASURED[kind] / f"{split}.jsonl.gz", rows)
        write(folder / CONVERSION, report)
    return report


def _convert_source(parameter: str, source: Source) -> tuple[dict[str, list[Pair]], Report]:
    """Convert the rows of a source into pairs by their split, and report what became of them."""
    dropped, changed = Counter(), Counter()
    pairs = {split: _convert_rows(rows, dropped, changed) for split, rows in source.rows.items()}
    report = {
        "source": source.name,
        "version": source.version,
        "splits": dict(source.splits),
        "read": sum(len(rows) for rows in source.rows.values()),
        "kept": {},
        "dropped": dropped,
        "changed": changed,
    }
    if not any(pairs.values()):
        raise ValueError(
            f"{parameter} = {source.name!r} has no usable pair. Its rows were counted as "
            f"{_count(report)}."
        )
    if "test" not in pairs:
        pairs, prompts = _divide(pairs["train"])
        report["splits"]["test"] = (
            f"made from {source.splits['train']}: {prompts} prompts, those with the smallest "
            "sha256; no prompt is in both splits"
        )
    return pairs, report


def _count(report: Report) -> dict[str, int]:
    """Count the rows that were read, and those that were dropped by their reason."""
    return {"read": report["read"], **report["dropped"]}


def _convert_rows(rows: list[Row], dropped: Counter, changed: Counter) -> list[Pair]:
    """Convert rows into pairs; count those that are dropped, and what was changed in the others."""
    pairs = []
    for row in rows:
        try:
            pair, changes = convert_row(row)
        except ValueError as reason:
            dropped[str(reason)] += 1
        else:
            pairs.append(pair)
            changed.update(changes)
    return pairs


def _divide(pairs: list[Pair]) -> tuple[dict[str, list[Pair]], int]:
    """Divide pairs into a training and a test split by the sha256 of their prompts.

    Returns:
        The splits, and the number of prompts in the test split.
    """
    prompts = {pair["prompt"] for pair in pairs}
    size = min(MOST_TEST_PROMPTS, -(-len(prompts) // TEST_SHARE))
    chosen = set(sorted(prompts, key=_hash)[:size])
    splits = {"train": [], "test": []}
    for pair in pairs:
        splits["test" if pair["prompt"] in chosen else "train"].append(pair)
    return splits, size


def _hash(text: str) -> bytes:
    """Compute the sha256 of a text."""
    return hashlib.sha256(text.encode()).digest()


def _separate(pairs: dict[str, dict[str, list[Pair]]], kinds: dict[str, Report]) -> None:
    """Drop training pairs whose prompt is in a test split of either kind, and count them."""
    asked = set()
    for splits in pairs.values():
        asked.update(pair["prompt"] for pair in splits["test"])
    for kind, splits in pairs.items():
        kept = [pair for pair in splits["train"] if pair["prompt"] not in asked]
        if len(kept) < len(splits["train"]):
            kinds[kind]["dropped"]["prompt in a test split"] = len(splits["train"]) - len(kept)
        splits["train"] = kept


def _write_split(path: Path, pairs: list[Pair]) -> None:
    """Write pairs as HH-RLHF's transcripts; the same pairs always give the same file."""
    lines = []
    for pair in pairs:
        texts = {name: f"{pair['prompt']} {pair[name]}" for name in ("chosen", "rejected")}
        lines.append(json.dumps(texts, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(lines).encode(), compresslevel=6, mtime=0))


def tabulate_report(report: Report) -> pd.DataFrame:
    """Make a table of what became of the rows, with a column for each kind of prompts.

    Args:
        report: the report of `convert`.
    """
    columns = {}
    for kind, part in report["kinds"].items():
        counts = {"read": part["read"]}
        counts |= {f"dropped: {reason}": n for reason, n in sorted(part["dropped"].items())}
        counts |= {f"kept for {split}": n for split, n in part["kept"].items()}
        counts |= {f"of these: {change}": n for change, n in sorted(part["changed"].items())}
        columns[kind] = counts
    table = pd.DataFrame(columns)
    order = sorted(table.index, key=lambda name: GROUPS.index(re.split(" for|:", name)[0]))
    return table.loc[order].fillna(0).astype(int)
