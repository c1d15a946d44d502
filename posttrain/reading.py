"""Read preference data by `datasets`: a name on the hub, a folder, or a file."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain import hub
from posttrain.files import sha256_of
from posttrain.transcripts import CONVERSION, MEASURED, Row, parse_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

COLUMNS = ("prompt", "chosen", "rejected", "images", "image", "tools")  # that are read
TEST_NAMES = ("test", "validation", "valid", "dev", "eval")  # of splits; the first one there is
ACCEPTED = """\
prompt, chosen, rejected: texts, or lists of messages {"role", "content"} (TRL's explicit prompt);
chosen, rejected: lists of messages that begin with the prompt, transcripts as in HH-RLHF, or texts
that begin with the same words (TRL's implicit prompt)."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are not UTF-8 are read as


@dataclass(frozen=True)
class Source:
    """The rows of a source.

    Attributes:
        name: the source as it was named.
        version: the commit on the hub, or the sha256 of the file or folder.
        splits: {"train", and "test" where there is one: the split's name in the source}.
        rows: {"train" or "test": the rows}.
    """

    name: str
    version: str
    splits: dict[str, str]
    rows: dict[str, list[Row]]


def read_source(parameter: str, name: str) -> Source:
    """Read a source with all its rows.

    Args:
        parameter: HARMFUL or HELPFUL, for error messages.
        name: a file or folder of Parquet, JSON Lines, CSV or Arrow, compressed or not, or a name on
            the hub. A configuration, and a split or two with a comma between them (for training and
            test), may follow after colons, as in name:config:split.

    Returns:
        The source. Its split "test" is missing if the source has a single split.

    Raises:
        ValueError: if it cannot be read, or has no columns of preference pairs. The message says
            why.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    place, config, split = _take_apart(name)
    options: dict[str, Any] = {"path": place, "name": config}
    path = Path(place)
    _refuse_both_kinds(parameter, name, path)
    if path.exists():
        version = f"sha256 {sha256_of(path)}"
        if path.is_file():
            options |= {"path": str(path.resolve().parent), "data_files": path.name}
    else:
        options["revision"] = hub.commit_of(hub.fetch(parameter, place, ["README.md"]))
        version = f"commit {options['revision']}"
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails is explained here
    with tempfile.TemporaryDirectory() as cache:  # the hub's files are kept in its own cache
        try:
            tables = _load(options | {"cache_dir": cache})
        except (
            OSError, ValueError, RuntimeError, StopIteration, csv.Error, DatasetsError,
        ) as error:  # fmt: skip
            raise ValueError(f"{parameter} = {name!r} cannot be read. {_explain(error)}") from error
        splits = _choose_splits(parameter, name, split, list(tables))
        rows = {part: _list_rows(tables[chosen]) for part, chosen in splits.items()}
    _require_columns(parameter, name, rows)
    return Source(name, version, splits, rows)


def _refuse_both_kinds(parameter: str, name: str, path: Path) -> None:
    """Refuse a folder with prompts of both kinds, which would all be read as of one kind."""
    subsets = [subset for subset in MEASURED.values() if (path / subset).is_dir()]
    below = [folder.parent for folder in path.glob(f"*/{CONVERSION}")] if path.is_dir() else []
    if len(subsets) > 1 or below:
        parts = [path / subset for subset in subsets] or below
        raise ValueError(
            f"{parameter} = {name!r} contains several datasets, {', '.join(map(str, parts))}. Name "
            "one of them."
        )


def _take_apart(name: str) -> tuple[str, str | None, str | None]:
    """Take name:config:split apart; what is a file or folder as it is has neither."""
    if Path(name).exists():
        return name, None, None
    place, config, split = (*name.rsplit(":", 2), "", "")[:3]
    return place, config or None, split or None


def _load(options: dict[str, Any]) -> dict[str, Any]:
    """Load all splits; of a file with broken lines, the lines that are whole.

    `datasets` refuses a file with a single broken line, and where the types of a JSON file's values
    differ it reads a text such as "5" as a number.

    Args:
        options: the arguments of `load_dataset`.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    folder = Path(options["path"])
    if (folder / "dataset_dict.json").exists():  # written by DatasetDict.save_to_disk
        return datasets.load_from_disk(str(folder))
    if (folder / "state.json").exists():  # written by Dataset.save_to_disk
        return {"train": datasets.load_from_disk(str(folder))}
    builder = datasets.load_dataset_builder(**options)
    if isinstance(builder, Csv):
        return _load_csv(options)
    try:
        tables = datasets.load_dataset(**options)
        if not isinstance(builder, Json) or not _has_mixed_types(tables):
            return tables
    except (datasets.exceptions.DatasetGenerationError, ValueError):
        if not isinstance(builder, Json):
            raise
    lines = datasets.load_dataset(
        "text",
        data_files=builder.config.data_files,
        encoding_errors="replace",
        cache_dir=options["cache_dir"],
    )
    return {split: _parse_lines(part["text"]) for split, part in lines.items()}


def _has_mixed_types(tables: "DatasetDict") -> bool:
    """Tell whether values of a column have several types, which datasets keeps as JSON."""
    return any("Json(" in str(table.features) for table in tables.values())


def _parse_lines(lines: Sequence[str]) -> list[Row]:
    """Parse lines of JSON, each of which becomes its record or the reason that it has none."""
    rows = []
    for line in lines:
        if line.strip():
            rows.append("not UTF-8" if REPLACEMENT in line else parse_line(line.encode()))
    return rows


def _load_csv(options: dict[str, Any]) -> "DatasetDict":
    """Load CSV files, in which every cell is a text; a line with too many cells becomes empty."""
    import datasets

    csv.field_size_limit(2**31 - 1)  # a cell may be longer than the 131,072 characters of Python
    tolerant = {"engine": "python", "on_bad_lines": _empty_line}
    streamed = datasets.load_dataset(**options, **tolerant, streaming=True)
    names = list(next(iter(next(iter(streamed.values())))))
    texts = datasets.Features({name: datasets.Value("string") for name in names})
    options = options | {"features": texts, "keep_default_na": False}
    try:
        return datasets.load_dataset(**options)
    except datasets.exceptions.DatasetGenerationError:
        return datasets.load_dataset(**options, **tolerant)


def _empty_line(cells: list[str]) -> list[str]:
    """Replace the cells of a line that has too many, so that the line is counted as unusable."""
    return []


def _choose_splits(
    parameter: str, name: str, split: str | None, there: list[str]
) -> dict[str, str]:
    """Choose the splits for training and test among those that there are."""
    if split is not None:
        names = split.split(",")
    elif len(there) == 1:
        names = there
    else:
        names = ["train", *[other for other in TEST_NAMES if other in there][:1]]
    if len(names) > 2 or len(set(names)) < len(names) or not set(names) <= set(there):
        raise ValueError(
            f"{parameter} = {name!r}: the splits are {', '.join(there)}. Name the one to take as "
            "name:config:split, or two of them, for training and test, with a comma between them. "
            "Without a configuration write name::split."
        )
    return dict(zip(("train", "test"), names))


def _list_rows(part: "Dataset | list[Row]") -> list[Row]:
    """List the rows of a split with the columns that are read, without decoding images."""
    if isinstance(part, list):
        return part
    chosen = [name for name in part.column_names if name in COLUMNS]
    if not {"chosen", "rejected"} <= set(chosen):  # it will be refused with all its columns
        return [dict.fromkeys(part.column_names)]
    rows = []
    for table in part.select_columns(chosen).with_format("arrow").iter(1000):
        rows.extend(table.to_pylist())
    return rows


def _require_columns(parameter: str, name: str, rows: dict[str, list[Row]]) -> None:
    """Refuse a source without rows, or without the columns of preference pairs."""
    for part in rows.values():
        columns = set()
        for row in part:
            columns.update(row if isinstance(row, dict) else ())
        if not part:
            raise ValueError(f"{parameter} = {name!r} is empty: it has no rows.")
        if not {"chosen", "rejected"} <= columns:
            there = f"the columns {', '.join(sorted(columns))}" if columns else "no readable row"
            raise ValueError(
                f"{parameter} = {name!r} has {there}, but preference pairs are needed. Accepted "
                f"are these columns:\n{ACCEPTED}\nRename other columns with `datasets` first."
            )


def _explain(error: Exception) -> str:
    """Explain in sentences why a source cannot be read."""
    text = str(error.__cause__ or error).strip() or "there is no row in it"
    if "Dataset scripts" in text:
        return (
            "It is a dataset script, a program that `datasets` no longer runs. Name its Parquet "
            "files instead, or a copy of the dataset that consists of files."
        )
    if type(error).__name__ == "EmptyDatasetError":
        return "There is no file with data in it."
    if "codec can't decode" in text:
        return f"It is not UTF-8 ({text}). Save it as UTF-8."
    if "BuilderConfig" in text:
        return f"{text.rstrip('.')}. To name a split without a configuration, write name::split."
    if isinstance(error, csv.Error):
        return (
            f"Its quotes or separators are not those of a CSV file ({text}). Save it as JSON Lines "
            "or Parquet."
        )
    return f"{type(error).__name__}: {text}"
