"""A folder of results: whole files, each known by what it was made from, one process at a time.

`Store.stage` is the one mechanism by which anything gets into the folder: what lies there is given
back if it is whole and was made from the same inputs, refused if it was made from others, and made
if it is not there.
"""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from os.path import commonprefix
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.files import fingerprint, read_json, remove, sha256_of, write, written_whole
from posttrain.record import (
    ABSENT,
    Artifact,
    Record,
    as_json,
    environment,
    list_differences,
    read_record,
)


class Store:
    """A folder of results and its record, run.json.

    Attributes:
        name: the folder's name.
        folder: where the results lie.
        begun: fields of the record that are written once something was trained with them.
    """

    def __init__(self, folder: Path):
        """Open a folder. Nothing is written."""
        self.name = folder.name
        self.folder = folder
        self.begun: dict[str, Any] = {}
        self._locks_work = True

    @property
    def record(self) -> Record:
        """The run's record as it is on the disk now; another process may have written to it.

        Raises:
            ValueError: run.json is damaged. `start_over` moves such a one aside.
        """
        path = self.folder / "run.json"
        record = read_record(path) if path.exists() else Record(run=self.name)
        record.run = self.name  # a copied run has its folder's name
        return record

    def note(self, **fields: Any) -> None:
        """Write fields of the record; tables are added to, not replaced."""
        with self.hold():
            record, path = self.record, self.folder / "run.json"
            for name, value in fields.items():
                known = getattr(record, name)
                setattr(record, name, known | value if isinstance(known, dict) else value)
            if not path.exists() or record != read_record(path):
                write(path, record.model_dump())

    # ---- one process at a time

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from writing into the folder.

        The system drops the lock with a process, however that ends. It may be taken again within.

        Raises:
            RuntimeError: another process works in the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", is_singleton=True, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"{self.folder} is in use by another process, which is making something in it. "
                "Wait until it ends, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            if self._locks_work:
                print(
                    f"The file system of {self.folder} knows no locks: make sure that only one "
                    "process works in it."
                )
            self._locks_work = False
        try:
            yield
        finally:
            if lock.is_locked:
                lock.release()

    # ---- results

    def stage(
        self,
        name: str,
        make: Callable[..., Any],
        inputs: Mapping[str, Any],
        parts: bool = False,
    ) -> Any:
        """Give back what lies under a name if it was made from these inputs, else make it.

        Args:
            name: a JSON file in the run's folder, or a folder in it.
            make: called where it is not there: `make()` returns the data of a file,
                `make(folder)` fills a folder and returns whether an earlier process had begun
                it, and of a list in parts `make(part)` returns the records of one part.
            inputs: all that the result follows from; of a list in parts {part: inputs}.
            parts: whether it is a list of records that is made and written part by part, so that
                an interruption costs at most one part.

        Returns:
            The data of a file, or the path of a folder.

        Raises:
            ValueError: what lies there was made from something else, or was changed since.
            RuntimeError: another process works in the folder.
        """
        if parts:
            return self._stage_parts(name, make, inputs)
        path = self.path(name)
        if not path.exists():
            with self.hold():
                if not path.exists():  # another process may have made it just now
                    self._make(name, make, inputs)
        self.require_same(name, inputs)
        self.require_whole(name)
        return read_json(path) if name.endswith(".json") else path

    def _make(self, name: str, make: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        """Make a file or folder, whole or not at all."""
        path = self.path(name)
        start = time.perf_counter()
        was_interrupted = False
        with written_whole(path) as temporary:
            if name.endswith(".json"):
                write(temporary, make())
            else:
                was_interrupted = bool(make(temporary))
                self.note(**self.begun)  # the settings that a model was trained with
            # Its entry first: an entry without its file does no harm, a file without its entry
            # could not be used again.
            seconds = None if was_interrupted else round(time.perf_counter() - start, 1)
            self.enter(name, inputs, sha256_of(temporary), seconds)

    def _stage_parts(
        self, name: str, make: Callable[[str], list], inputs: Mapping[str, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Make those parts of a list that are not there, each written when it is made."""
        imported = self._imported_parts(name)
        if imported:  # such a list is taken as it is
            inputs = dict.fromkeys(imported, {})
        path = self.path(name)
        records = read_json(path, list[dict[str, Any]]) if path.exists() else []
        parts: dict[str, list] = {}
        for part in inputs:  # all that is to be refused is refused before anything is made
            parts[part] = [record for record in records if record.get("model") == part]
            if parts[part]:
                self._require_part(name, part, parts[part], inputs[part])
        missing = [part for part in inputs if not parts[part]]
        if missing:
            with self.hold():
                for part in missing:
                    start = time.perf_counter()
                    parts[part] = make(part)
                    seconds = round(time.perf_counter() - start, 1)
                    sha256 = fingerprint(as_json_list(parts[part]))
                    self.enter(f"{name}/{part}", inputs[part], sha256, seconds)
                    write(path, list(chain.from_iterable(parts.values())))
        return list(chain.from_iterable(parts.values()))

    def _require_part(
        self, name: str, part: str, records: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> None:
        """Refuse a part of a list that was made from something else, or was changed."""
        entry = f"{name}/{part}"
        self.require_same(entry, inputs)
        if fingerprint(records) != self.record.artifacts[entry].sha256:
            raise self._changed(self.path(name), f"The part {part} of it")

    def _imported_parts(self, name: str) -> list[str]:
        """List the parts of a list that came from elsewhere."""
        parts = []
        for entry, artifact in self.record.artifacts.items():
            if entry.startswith(f"{name}/") and "imported" in artifact.inputs:
                parts.append(entry.removeprefix(f"{name}/"))
        return parts

    def enter(
        self, name: str, inputs: Mapping[str, Any], sha256: str, seconds: float | None
    ) -> None:
        """Enter into the record what a result was made from.

        Args:
            name: the result's name.
            inputs: all that it follows from.
            sha256: its own.
            seconds: how long it took, None where it was interrupted.
        """
        artifact = Artifact(
            inputs=as_json(inputs), sha256=sha256, seconds=seconds, environment=environment()
        )
        self.note(artifacts={name: artifact})

    def seal(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Enter into the record a folder that was written by others, such as a checkpoint."""
        self.enter(name, inputs, sha256_of(self.path(name)), None)

    def path(self, name: str) -> Path:
        """Give the path of a result."""
        return self.folder / name

    def is_there(self, name: str) -> bool:
        """Tell whether a result, or the list that it is a part of, is in the folder."""
        file, json, part = name.partition(".json/")
        return self.path(f"{file}.json" if json else name).exists()

    def is_whole(self, name: str) -> bool:
        """Tell whether a file or folder is there as it was when it was made."""
        artifact = self.record.artifacts.get(name)
        path = self.path(name)
        return artifact is not None and path.exists() and artifact.sha256 == sha256_of(path)

    def require_whole(self, name: str) -> None:
        """Refuse a file or folder that was changed since it was made.

        Raises:
            ValueError: it was.
        """
        if not self.is_whole(name):
            raise self._changed(self.path(name), "It")

    def require_same(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Refuse a result that was made from something else, or of which nothing is known.

        Results that were imported are taken as they are.

        Args:
            name: the result's name.
            inputs: what it would be made from now.

        Raises:
            ValueError: it was made from something else; the input and both values are named.
        """
        record = self.record
        if name not in record.artifacts:
            raise ValueError(
                f"{self.path(name)} is there, but run.json does not say what it was made from. "
                "Put run.json back, or set FRESH = True, which moves what is there aside."
            )
        then = record.artifacts[name].inputs
        if "imported" in then:
            return
        for difference in list_differences(then, as_json(inputs)):
            raise self.refusal(name, *difference)

    def refusal(self, name: str, difference: str, then: Any, now: Any) -> ValueError:
        """Word that a result was made from one thing, and would be made from another now."""
        before, after = _shorten(then, now)
        another_name = ""
        if name.split("/")[0] in ("adapters", "models", "checkpoints"):
            another_name = "give the model another name in train(...), "
        return ValueError(
            f"{self.path(name)} was made with {difference} = {before}, now it is {after}. Set it "
            f"back, {another_name}choose another RUN, or set FRESH = True, which moves the old "
            "files aside."
        )

    def _changed(self, path: Path, subject: str) -> ValueError:
        """Word that a result is not what was made."""
        return ValueError(
            f"{path} is not what was made. {subject} was changed since, or cut short. Put it back "
            "as it was, or remove the file, and it is made anew."
        )

    def forget(self, name: str) -> None:
        """Remove a file or folder, and what is in it, from the run's folder and its record."""
        remove(self.path(name))
        entries = self.record.artifacts
        names = [entry for entry in entries if entry == name or entry.startswith(f"{name}/")]
        if names:
            with self.hold():
                record = self.record  # as it is under the lock
                for entry in names:
                    record.artifacts.pop(entry, None)
                write(self.folder / "run.json", record.model_dump())
        parent = self.path(name).parent
        if parent != self.folder and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _shorten(then: Any, now: Any) -> list[str]:
    """Write two values for an error message; long ones, such as sources, around their difference.

    Args:
        then: the one in the record.
        now: the one of now.

    Returns:
        Both as text, at most some 200 characters each.
    """
    texts = [ABSENT if value == ABSENT else repr(value) for value in (then, now)]
    start = max(0, len(commonprefix(texts)) - 80)
    shortened = []
    for text in texts:
        if len(text) > 200:
            text = f"... {text[start : start + 160]} ... (of {len(text)} characters)"
        shortened.append(text)
    return shortened


def as_json_list(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bring records into the form in which a file holds them."""
    return as_json({"records": records})["records"]
