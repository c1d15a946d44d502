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

# How Python and Rust (the safetensors library) word that no room is left.
NO_ROOM = re.compile(
    rf"err(no|or) ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b", re.IGNORECASE
)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the many errors that a full disk causes into one that says what to do.

    Args:
        folder: where is being written.

    Raises:
        OSError: there is no room left in the folder.
    """
    try:
        yield
    except Exception as error:
        room_is_left = shutil.disk_usage(folder).free > 2**16
        if room_is_left and not NO_ROOM.search(str(error)):
            raise
        raise OSError(
            f"[Errno {errno.ENOSPC}] There is no room left to write into {folder}. What was "
            "finished before is whole: make room, or copy the folder to a larger disk, and run "
            "again."
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name to write under; it becomes `path` once that has worked, or vanishes.

    Args:
        path: the file or folder that is wanted.

    Yields:
        The temporary name beside it.
    """
    temporary = path.with_name(path.name + ".tmp")
    remove(temporary)  # left by a run that was killed while it wrote
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_explained(path.parent):
            yield temporary
            temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder, its files emptied before.

    Google Drive keeps what is deleted in its trash and counts it. Files that other names share (a
    link's target, a hard-linked backup) are not emptied.
    """
    if path.is_symlink():
        path.unlink()
        return
    for file in [path, *path.rglob("*")]:
        if file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
            os.truncate(file, 0)
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def write(path: Path, content: str | list | dict) -> None:
    """Write a text, or data as indented JSON, whole or not at all.

    Raises:
        ValueError: the data hold NaN or an infinity, which JSON does not know.
    """
    if not isinstance(content, str):
        content = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read what a JSON file holds and check it.

    Args:
        path: the file.
        kind: a type that pydantic can check the data against.

    Returns:
        The data as `kind`.

    Raises:
        ValueError: the file is not JSON, or does not hold such data; the file and the place are
            named.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])), first["msg"]
        cause = error
    except (ValueError, RecursionError) as error:
        place, reason, cause = "", error, error
    remedy = ""
    if path.name != "run.json":
        remedy = ", remove it where it can be made anew"
    raise ValueError(
        f"{path} is damaged ({place or 'all of it'}: {reason}). Put it back as it was{remedy}, or "
        "set FRESH = True to start afresh."
    ) from cause


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file, or of a folder: that of its files' names and sha256.

    Hidden files have no part in a folder's.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    sums = {}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not re.search(r"(^|/)\.", name):
            sums[name] = sha256_of(file)
    return fingerprint(sums)


def fingerprint(data: Any) -> str:
    """Compute the sha256 of data as JSON, the keys of tables sorted."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
