"""Write files completely or not at all, and compute the sha256 by which they are recognised."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from posttrain.processes import is_main

# The words in which Python and Rust (in the safetensors library) report a full disk.
NO_ROOM = re.compile(
    rf"err(no|or) ({errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\b", re.IGNORECASE
)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the various errors of a full disk into one error that says what to do.

    Args:
        folder: the folder that is written to.

    Raises:
        OSError: if an error occurs and no room is left in the folder.
    """
    try:
        yield
    except Exception as error:
        room_is_left = shutil.disk_usage(folder).free > 2**16
        if room_is_left and not NO_ROOM.search(str(error)):
            raise
        raise OSError(
            f"[Errno {errno.ENOSPC}] There is no room left to write into {folder}. Everything that "
            "was finished before is intact. Free some space, or copy the folder to a larger disk, "
            "and run again."
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name that becomes `path` when all is written.

    If an error occurs, the temporary file or folder is removed. Of several processes only the main
    one may write.

    Args:
        path: the file or folder to be written.

    Yields:
        The temporary path, in the same folder.
    """
    temporary = path.with_name(path.name + ".tmp")
    if not is_main():
        yield temporary
        return
    remove(temporary)  # it may be left from a process that was killed while writing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_explained(path.parent):
            yield temporary
            temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder, after emptying its files.

    Google Drive moves deleted files to its trash, where they still use up space. A file that has
    another name too (a link's target, a hard-linked backup) is not emptied.
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
    """Write a text, or data as indented JSON, completely or not at all.

    Raises:
        ValueError: if the data contain NaN or an infinity, which JSON cannot represent.
        RuntimeError: if this is not the main process, which alone writes.
    """
    if not is_main():
        raise RuntimeError(f"Another process than the main one would write {path}.")
    if not isinstance(content, str):
        content = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file and check its content. A byte-order mark, as editors add it, is skipped.

    Args:
        path: the file.
        kind: the type of the data, which pydantic checks.

    Returns:
        The data, of the type `kind`.

    Raises:
        ValueError: if the file is not JSON or its data are not of this type. The message says where
            in the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])), first["msg"]
        cause = error
    except (ValueError, RecursionError) as error:
        place, reason, cause = "", error, error
    remedy = ""
    if path.name != "run.json":
        remedy = ", remove it if it can be made again"
    raise ValueError(
        f"{path} is damaged ({place or 'the whole file'}: {reason}). Restore it{remedy}, or set "
        "FRESH = True to start over."
    ) from cause


def require_new_folder(out: Path) -> None:
    """Refuse an OUT that has something in it, or cannot be written, before any work is done.

    Raises:
        ValueError: if that is so.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"OUT: {out} exists already and is not empty. Choose another folder.")
    unfinished = out.with_name(f"{out.name}.tmp")  # where `written_whole` writes
    if unfinished.exists():
        raise ValueError(f"OUT: {unfinished} exists and would be overwritten. Move it away.")
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(
            f"OUT: {out} cannot be written ({error.strerror}: {parent}). Choose a folder that you "
            "may write into."
        ) from error


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file, or of the names and contents of a folder's files.

    Hidden files in a folder are left out, and its README.md, which only describes the others and is
    written anew when more is known of them.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    sums = {}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not re.search(r"(^|/)\.|^README\.md$", name):
            sums[name] = sha256_of(file)
    return fingerprint(sums)


def fingerprint(data: Any) -> str:
    """Compute the sha256 of data, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
