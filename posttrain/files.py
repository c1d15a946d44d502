"""Files that are whole or not there, and the sha256 by which they are known."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Raise OSError, saying what to do, in place of the many errors that a full disk causes."""
    try:
        yield
    except Exception as error:
        numbers = rf"err(no|or) ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b"  # as Python and as Rust say it
        if not re.search(numbers, str(error), re.IGNORECASE) and shutil.disk_usage(folder).free > 2**16:
            raise
        raise OSError(f"[Errno {errno.ENOSPC}] There is no room left to write into {folder}. What was finished before "
                      "is whole: make room, or copy the folder to a larger disk, and run again.") from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file or folder under; it becomes `path` once that has worked, or vanishes."""
    temporary = path.with_name(path.name + ".tmp")
    remove(temporary)  # of a run that was killed while it wrote
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_explained(path.parent):
            yield temporary
            temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder. Files are emptied before: Google Drive keeps its trash and counts it.

    Not those that other names share: a link's target, a hard-linked backup.
    """
    for file in [path, *path.rglob("*")]:
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
            os.truncate(file, 0)
    path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def write(path: Path, content: str | list | dict) -> None:
    """Write a text, or data as indented JSON, whole or not at all. Raises ValueError for NaN and infinity."""
    if not isinstance(content, str):
        content = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Return what a JSON file holds, as `kind`. Raises ValueError, with the file's name, where it is not that."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        found = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": error}
        where = ".".join(map(str, found["loc"])) or "all of it"
        raise ValueError(f"{path} is damaged ({where}: {found['msg']}). Put it back as it was, or set FRESH = True to "
                         "start afresh.") from error


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file; of a folder, that of its files' names and sha256, hidden ones left out."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    return fingerprint({name: sha256_of(file) for name, file in files.items() if not re.search(r"(^|/)\.", name)})


def fingerprint(data: Any) -> str:
    """Return the sha256 of data as JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
