"""A folder of results that are complete, are recorded with their inputs, and are made only once.

`Store.stage` is the only way in which results are added to the folder. If a result exists and was
made from the same inputs, it is returned. If it was made from other inputs, it is refused. If it
does not exist, it is made.

Where several processes work on a run, all of them make a result, and the main one alone reads and
writes the folder: every method of a `Store` must be called in all processes, in the same order.
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
from posttrain.processes import decided_by_main, on_main
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
        folder: the path of the folder.
        begun: fields of the record that are written as soon as a model has been trained with them.
    """

    def __init__(self, folder: Path):
        """Open a folder. Nothing is written."""
        self.name = folder.name
        self.folder = folder
        self.begun: dict[str, Any] = {}
        self._locks_work = True

    @property
    @decided_by_main
    def record(self) -> Record:
        """The run's record, read from the disk, since another process may have written to it.

        Raises:
            ValueError: if run.json is damaged. `Run.start_over` moves a damaged one aside.
        """
        path = self.folder / "run.json"
        record = read_record(path) if path.exists() else Record(run=self.name)
        record.run = self.name  # a run that was copied takes the name of its new folder
        return record

    @decided_by_main
    def note(self, **fields: Any) -> None:
        """Write fields of the record. A dictionary is merged with the one in the record."""
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
        """Lock the folder, so that no other process writes into it.

        The operating system releases the lock when the process ends, however it ends. A process
        that has the lock may take it again. Of several processes of one run the main one has it.

        Raises:
            RuntimeError: if a process that is not of this run is working in the folder.
        """
        lock = FileLock(self.folder / ".lock", is_singleton=True, fallback_to_soft=False)
        on_main(self._acquire, lock)
        try:
            yield
        finally:
            if lock.is_locked:
                lock.release()

    def _acquire(self, lock: FileLock) -> None:
        """Lock the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"{self.folder} is in use by another process, which is writing results into it. "
                "Wait until that process ends, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            if self._locks_work:
                print(
                    f"The file system of {self.folder} does not support locks. Make sure that only "
                    "one process works in this folder."
                )
            self._locks_work = False

    # ---- results

    def stage(
        self,
        name: str,
        make: Callable[..., Any],
        inputs: Mapping[str, Any],
        parts: bool = False,
    ) -> Any:
        """Return the result of this name if it was made from these inputs, otherwise make it.

        Args:
            name: the name of a JSON file or a folder, relative to the run's folder.
            make: the function that makes a missing result. For a file, `make()` returns its data.
                For a folder, `make(folder)` fills it and returns whether an earlier process had
                begun the work. For a list in parts, `make(part)` returns the records of one part.
            inputs: everything that the result follows from; for a list in parts {part: inputs}.
            parts: whether the result is a list of records that is made and written part by part,
                so that an interruption costs at most one part.

        Returns:
            The data of a file, or the path of a folder.

        Raises:
            ValueError: if the result was made from other inputs, or was changed afterwards.
            RuntimeError: if another process is working in the folder.
        """
        if parts:
            return self._stage_parts(name, make, inputs)
        if not self.is_there(name):
            with self.hold():
                if not self.is_there(name):  # another run may have made it in the meantime
                    self._make(name, make, inputs)
        self.require_same(name, inputs)
        self.require_whole(name)
        path = self.path(name)
        return on_main(read_json, path) if name.endswith(".json") else path

    def _make(self, name: str, make: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        """Make a file or folder, completely or not at all."""
        path = self.path(name)
        start = time.perf_counter()
        was_interrupted = False
        with written_whole(path) as temporary:
            if name.endswith(".json"):
                on_main(write, temporary, make())
            else:
                was_interrupted = bool(make(temporary))
                self.note(**self.begun)  # the settings that a model was trained with
            # The entry is written first: an entry without its file does no harm, but a file without
            # its entry could not be used again.
            seconds = None if was_interrupted else round(time.perf_counter() - start, 1)
            self.enter(name, inputs, on_main(sha256_of, temporary), seconds)

    def _stage_parts(
        self, name: str, make: Callable[[str], list], inputs: Mapping[str, Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Make the missing parts of a list, and write each of them as soon as it is made."""
        parts = self._read_parts(name, inputs)
        missing = [part for part in parts if not parts[part]]
        if missing:
            with self.hold():
                for part in missing:
                    start = time.perf_counter()
                    parts[part] = make(part)
                    seconds = round(time.perf_counter() - start, 1)
                    sha256 = fingerprint(as_json_list(parts[part]))
                    self.enter(f"{name}/{part}", inputs[part], sha256, seconds)
                    on_main(write, self.path(name), list(chain.from_iterable(parts.values())))
        return list(chain.from_iterable(parts.values()))

    @decided_by_main
    def _read_parts(self, name: str, inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
        """Read the parts of a list, and check every one before any missing one is made.

        Returns:
            {part: its records}, which are empty for a part that is missing.
        """
        imported = self._imported_parts(name)
        if imported:  # an imported list is used as it is
            inputs = dict.fromkeys(imported, {})
        path = self.path(name)
        records = read_json(path, list[dict[str, Any]]) if path.exists() else []
        parts: dict[str, list] = {}
        for part in inputs:
            parts[part] = [record for record in records if record.get("model") == part]
            if parts[part]:
                self._require_part(name, part, parts[part], inputs[part])
        return parts

    def _require_part(
        self, name: str, part: str, records: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> None:
        """Refuse a part of a list that was made from other inputs, or was changed."""
        entry = f"{name}/{part}"
        self.require_same(entry, inputs)
        if fingerprint(records) != self.record.artifacts[entry].sha256:
            raise self._changed(f"The part {part} of {self.path(name)}")

    def _imported_parts(self, name: str) -> list[str]:
        """List the parts of a list that were imported."""
        parts = []
        for entry, artifact in self.record.artifacts.items():
            if entry.startswith(f"{name}/") and "imported" in artifact.inputs:
                parts.append(entry.removeprefix(f"{name}/"))
        return parts

    @decided_by_main
    def enter(
        self, name: str, inputs: Mapping[str, Any], sha256: str, seconds: float | None
    ) -> None:
        """Enter a result into the record.

        Args:
            name: the name of the result.
            inputs: everything that it was made from.
            sha256: the sha256 of the result.
            seconds: how long it took to make, None if it was interrupted.
        """
        artifact = Artifact(
            inputs=as_json(inputs), sha256=sha256, seconds=seconds, environment=environment()
        )
        self.note(artifacts={name: artifact})

    @decided_by_main
    def seal(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Enter a folder into the record that another library wrote, such as a checkpoint."""
        self.enter(name, inputs, sha256_of(self.path(name)), None)

    def path(self, name: str) -> Path:
        """Build the path of a result from its name."""
        return self.folder / name

    @decided_by_main
    def is_there(self, name: str) -> bool:
        """Tell whether a result exists or, for a part of a list, whether the list exists."""
        file, json, part = name.partition(".json/")
        return self.path(f"{file}.json" if json else name).exists()

    @decided_by_main
    def is_whole(self, name: str) -> bool:
        """Tell whether a file or folder exists and has not changed since it was made."""
        artifact = self.record.artifacts.get(name)
        path = self.path(name)
        return artifact is not None and path.exists() and artifact.sha256 == sha256_of(path)

    @decided_by_main
    def require_whole(self, name: str) -> None:
        """Refuse a file or folder that has changed since it was made.

        Raises:
            ValueError: if it has changed.
        """
        if not self.is_whole(name):
            raise self._changed(str(self.path(name)))

    @decided_by_main
    def require_same(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Refuse a result that was made from other inputs, or that the record does not list.

        Imported results are used as they are.

        Args:
            name: the name of the result.
            inputs: the inputs that it would be made from now.

        Raises:
            ValueError: if an input differs. The message gives its name and both values.
        """
        record = self.record
        if name not in record.artifacts:
            raise ValueError(
                f"{self.path(name)} exists, but run.json does not say what it was made from. "
                "Restore run.json, or set FRESH = True, which moves the old files aside."
            )
        then = record.artifacts[name].inputs
        if "imported" in then:
            return
        for difference in list_differences(then, as_json(inputs)):
            raise self.refusal(name, *difference)

    def refusal(self, name: str, difference: str, then: Any, now: Any) -> ValueError:
        """Build the error for a result that was made with another value of one input.

        Args:
            name: the name of the result.
            difference: the name of the input.
            then: its value in the record.
            now: its current value.
        """
        before, after = _shorten(then, now)
        another_name = ""
        if name.split("/")[0] in ("adapters", "models", "checkpoints"):
            another_name = "give the model another name in train(...), "
        return ValueError(
            f"{self.path(name)} was made with {difference} = {before}, but now it is {after}. Set "
            f"it back, {another_name}choose another RUN, or set FRESH = True, which moves the old "
            "files aside."
        )

    def _changed(self, subject: str) -> ValueError:
        """Build the error for a result that is not as it was when it was made."""
        return ValueError(
            f"{subject} was changed or truncated after it was made. Restore it, or remove it, "
            "and it will be made again."
        )

    @decided_by_main
    def forget(self, name: str) -> None:
        """Remove a file or folder with its content from the run's folder and from the record."""
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
    """Write two values for an error message. Long ones are shortened to where they differ.

    Args:
        then: the value in the record.
        now: the current value.

    Returns:
        Both values as text, each of about 200 characters at most.
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
    """Convert records into the form that they have in a JSON file."""
    return as_json({"records": records})["records"]
