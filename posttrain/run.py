"""A run's folder: whole files, each known by what it was made from, one process at a time.

`Run.stage` is the one mechanism by which anything gets into the folder: what lies there is given
back if it is whole and was made from the same inputs, refused if it was made from others, and made
if it is not there.
"""

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.files import fingerprint, read_json, remove, sha256_of, write, written_whole
from posttrain.record import (
    ABSENT,
    Artifact,
    Model,
    Record,
    as_json,
    environment,
    list_changes,
    list_differences,
    read_record,
    slug,
)

# What eval.ipynb makes of a run; FRESH in it moves these aside and keeps the training.
OF_EVALUATION = re.compile(
    r"(prompts|responses|scores|classification|metrics)\.json|summary\.\w+|report\.html|eval\.ipynb"
)
# The parameter of the notebooks that names what has a role.
PARAMETERS = {
    "base_model": "BASE_MODEL",
    "dataset": "DATASET",
    "test_dataset": "DATASET",
    "reward_model": "REWARD_MODEL",
}
OF_TRAINING = ("training.", "lengths.")  # the figures that main.ipynb makes
REFERENCES = ("human_chosen", "human_rejected", "empty", "refusal", "not_understood")


@dataclass
class Source:
    """A base model, dataset or judge, by a name on the hub or a folder.

    `identity` is what it is known by: its commit on the hub, or the sha256 of the folder.
    """

    role: str
    name: str
    identity: str | None
    commit: str | None
    files: Sequence[str] | None

    @cached_property
    def folder(self) -> Path:
        """The folder that holds its files; of a name on the hub fetched when it is first needed.

        Raises:
            ValueError: it cannot be had.
        """
        from posttrain import hub

        return hub.fetch(PARAMETERS[self.role], self.name, self.files, self.commit)


class Run:
    """A run's folder under RESULTS and its record, run.json.

    Attributes:
        name: the run's name, that of its folder.
        folder: where its results lie.
        figures: where its figures lie.
        labelled: whether figures say below whose they are.
    """

    def __init__(
        self,
        results: str | Path,
        name: str,
        figures: str | Path | None = None,
        labelled: bool = True,
        must_exist: bool = False,
    ):
        """Open a run's folder. Nothing is written.

        Args:
            results: the folder of all runs.
            name: the run's own.
            figures: the folder of all runs' figures; None takes `figures` beside `results`.
            labelled: whether figures say below whose they are.
            must_exist: whether a run that is not there is refused.

        Raises:
            ValueError: the name is a path.
            FileNotFoundError: the run must exist and does not.
        """
        name = str(name)
        if Path(name).name != name or name in ("", ".."):
            raise ValueError(f"RUN = {name!r}: it must be the plain name of a folder in RESULTS.")
        self.name = name
        self.folder = Path(results) / name
        self.figures = Path(figures or Path(results).parent / "figures") / name
        self.labelled = labelled
        self._locks_work = True
        self._begun: dict[str, Any] = {}
        if must_exist and not (self.folder / "run.json").exists():
            there = sorted(path.parent.name for path in Path(results).glob("*/run.json"))
            raise FileNotFoundError(
                f"{self.folder} holds no run.json: run main.ipynb with the same RUN and RESULTS "
                f"first. Runs that are there: {', '.join(there) or 'none'}. Results from elsewhere "
                "are taken in by `make import FROM=folder`."
            )

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
            record = self.record
            before = record.model_dump()
            for name, value in fields.items():
                known = getattr(record, name)
                setattr(record, name, known | value if isinstance(known, dict) else value)
            path, after = self.folder / "run.json", record.model_dump()
            if after != before or not path.exists():
                write(path, after)

    @property
    def models(self) -> list[Model]:
        """The run's models, in order; the first is the one that the others are compared with."""
        return self.record.models

    @property
    def label(self) -> str:
        """Whose numbers these are, for below every figure and table."""
        record = self.record
        if record.imported:
            origin = record.imported.get("what", "results from elsewhere")
            judge = record.sources.get("reward_model", {}).get("name")
            return f"{self.name} ({origin}{f', judged by {judge}' if judge else ''})"
        names = [
            record.sources[role]["name"]
            for role in ("base_model", "reward_model")
            if role in record.sources
        ]
        text = f"{self.name}, preset {record.preset}, {' judged by '.join(names)}"
        if record.preset == "demo":
            text += " (stand-ins, not OPT-350M)"
        return text

    def overview(self) -> str:
        """Word what differs between how the run was made and now, and what its folder holds."""
        changes = list_changes(self.record)
        lines = changes or ["All of it was made with these versions and this code."]
        names = sorted(path.name for path in self.folder.glob("[!.]*"))
        return "\n".join([*lines, f"{self.folder} holds: {', '.join(names)}"])

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

    # ---- where things come from

    def source(self, role: str, name: str, files: Sequence[str] | None = None) -> Source:
        """Pin down a base model, dataset or judge.

        Of a name on the hub the run keeps to the commit that it began with. Where what the run
        began with is not at hand any more, its name is enough as long as nothing is made from it.

        Args:
            role: "base_model", "dataset", "test_dataset" (what the prompts are drawn from) or
                "reward_model".
            name: a name on the hub or a folder.
            files: those that are wanted of a dataset, None for a model.

        Returns:
            The source; its folder is fetched when it is first used.

        Raises:
            ValueError: it cannot be had and the run does not know it, it was changed since the
                run began, or something in the run was made from another one.
        """
        from posttrain import hub

        name, record = str(name), self.record
        is_judge_to_ask = role == "reward_model" and (
            role in record.sources or not self.path("scores.json").exists()
        )
        if record.imported and not is_judge_to_ask:
            return Source(role, name, None, None, files)  # nothing is made from it here
        known = record.sources.get(role, {})
        if known.get("name") != name:
            known = {}
        commits = [entry["commit"] for entry in record.sources.values() if entry["name"] == name]
        commit = commits[0] if commits else None
        identity = known.get("commit") or known.get("sha256")
        if Path(name).is_dir() or not known:
            folder = hub.fetch(PARAMETERS[role], name, files, commit)
            commit = hub.commit_of(folder)
            before, identity = identity, commit or _identity_of(folder, files)
            if before not in (None, identity) and record.artifacts:
                others = "" if files is None else ", or other files of it are wanted,"
                raise ValueError(
                    f"{name} was changed{others} since the run {self.name} began. Set it back, "
                    "choose another RUN, or set FRESH = True, which moves the old files aside."
                )
        self._refuse_another(role, identity)
        entry = {"name": name, "commit": commit, "sha256": None if commit else identity}
        if record.sources.get(role) != entry:
            self.note(sources={role: entry})
        return Source(role, name, identity, commit, files)

    def _refuse_another(self, role: str, identity: str | None) -> None:
        """Refuse a source where something in the folder was made from another one in its role.

        What was made from a result of the run itself, an adapter over its fully fine-tuned model,
        is no such thing.
        """
        artifacts = self.record.artifacts
        identities = [identity, *(artifact.sha256 for artifact in artifacts.values())]
        for name, artifact in artifacts.items():
            then = artifact.inputs.get(role, identity)
            if then not in identities and self._is_there(name):
                raise self._refusal(name, role, then, identity)

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
                `make(folder)` fills a folder, and of a list in parts `make(part)` returns the
                records of one part.
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
        if path.exists():
            self.require_same(name, inputs)
            self.require_whole(name)
        else:
            self._make(name, make, inputs)
        return read_json(path) if name.endswith(".json") else path

    def _make(self, name: str, make: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        """Make a file or folder, whole or not at all."""
        path = self.path(name)
        start = time.perf_counter()
        with self.hold(), written_whole(path) as temporary:
            if name.endswith(".json"):
                write(temporary, make())
            else:
                make(temporary)
                self.note(**self._begun)  # the settings that a model was trained with
            # Its entry first: an entry without its file does no harm, a file without its entry
            # could not be used again.
            seconds = round(time.perf_counter() - start, 1)
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
        parts = {part: [row for row in records if row.get("model") == part] for part in inputs}
        for part in inputs:  # all that is to be refused is refused before anything is made
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
                    write(path, [row for rows in parts.values() for row in rows])
        return [row for rows in parts.values() for row in rows]

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

    def _is_there(self, name: str) -> bool:
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
            raise self._refusal(name, *difference)

    def _refusal(self, name: str, difference: str, then: Any, now: Any) -> ValueError:
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

    # ---- settings and models

    def begin(self, settings: Any, report: Any) -> None:
        """Enter the settings of a training, its cleaning report, and the base.

        Where models are there, the record keeps the settings that they were trained with, until
        another one is trained.

        Args:
            settings: those of main.ipynb.
            report: the table of `data.load_pairs`: a row a reason, a column a subset.

        Raises:
            ValueError: the run was imported, so that nothing can be trained in it.
        """
        if self.record.imported:
            raise ValueError(f"{self.folder} holds results from elsewhere. Choose another RUN.")
        rows = [{"subset": subset, **counts} for subset, counts in report.to_dict().items()]
        self._begun = {
            "preset": settings.preset,
            "settings": {"training": settings.model_dump(mode="json")},
            "data": rows,
        }
        if len(self.models) < 2:
            self.note(**self._begun)
        self.add_model(Model(name="Base", base=settings.base_model, adapter=None))

    def add_model(self, model: Model) -> None:
        """Enter a model into the record, behind those that are there, or in its own place.

        Raises:
            ValueError: its name is another model's, or a reference answer's.
        """
        self.require_name(model)
        rows = self.models
        names = [row.name for row in rows]
        before = rows[0].base if rows else model.base
        if model.name in names:
            rows[names.index(model.name)] = model
        else:
            rows.append(model)
        if model.base not in [f"models/{slug(row.name)}" for row in rows]:
            for row in rows:  # the run has one base beside, which may have moved
                if row.base == before:
                    row.base = model.base
        self.note(models=rows)

    def require_name(self, model: Model) -> None:
        """Refuse a model whose name it cannot have, which is better known before it is trained.

        Raises:
            ValueError: its files would be another model's, or its name is that of the baseline or
                of a reference answer.
        """
        if slug(model.name) in REFERENCES:
            raise ValueError(f"{model.name!r} is the name of a reference answer. Choose another.")
        names = [row.name for row in self.models]
        is_trained = model.adapter is not None or model.base == f"models/{slug(model.name)}"
        if is_trained and model.name in names[:1]:
            raise ValueError(f"{model.name!r} is the name of the untrained base. Choose another.")
        for name in names:
            if name != model.name and slug(name) == slug(model.name):
                raise ValueError(
                    f"The models {name!r} and {model.name!r} would share the folder "
                    f"{slug(name)}. Give one of them another name."
                )

    # ---- starting over

    def start_over(self, evaluation_alone: bool = False) -> None:
        """Move results and figures into new folders beside theirs, whose names hold the time.

        Args:
            evaluation_alone: whether what main.ipynb made stays, and what was imported.
        """
        with self.hold():
            record = self.record if evaluation_alone else Record(run=self.name)
            imported = []
            for name, artifact in record.artifacts.items():
                if "imported" in artifact.inputs:
                    imported.append(name.split("/")[0])
            for folder in (self.folder, self.figures):
                names = [path.name for path in folder.glob("[!.]*") if path.name not in imported]
                moving = [name for name in names if _moves(name, evaluation_alone)]
                aside = _name_aside(folder)
                # run.json last: until then the rest is known if this is interrupted
                for name in sorted(moving, key=lambda name: name == "run.json"):
                    aside.mkdir(parents=True, exist_ok=True)
                    shutil.move(folder / name, aside / name)
                if moving:
                    print(f"FRESH: what was in {folder} is in {aside} now.")
            if evaluation_alone:
                self._forget_evaluation(imported)

    def _forget_evaluation(self, imported: Sequence[str]) -> None:
        """Take out of the record what eval.ipynb made, and what its sources were known by."""
        record = self.record
        for name in list(record.artifacts):
            if OF_EVALUATION.match(name) and name.split("/")[0] not in imported:
                del record.artifacts[name]
        for role in ("test_dataset", "reward_model"):
            record.sources.pop(role, None)
        write(self.folder / "run.json", record.model_dump())

    def forget(self, name: str) -> None:
        """Remove a file or folder, and what is in it, from the run's folder and its record."""
        remove(self.path(name))
        record = self.record
        names = [
            entry for entry in record.artifacts if entry == name or entry.startswith(f"{name}/")
        ]
        if names:
            with self.hold():
                for entry in names:
                    del record.artifacts[entry]
                write(self.folder / "run.json", record.model_dump())
        parent = self.path(name).parent
        if parent != self.folder and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _moves(name: str, evaluation_alone: bool) -> bool:
    """Tell whether FRESH moves a file aside; a notebook that is being executed stays."""
    if name.endswith("-stopped.ipynb"):
        return False
    if not evaluation_alone:
        return True
    is_figure = name.endswith((".png", ".pdf")) and not name.startswith(OF_TRAINING)
    return is_figure or OF_EVALUATION.fullmatch(name) is not None


def _name_aside(folder: Path) -> Path:
    """Name a new folder beside one, with the time in it."""
    name = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    aside = folder.with_name(name)
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{name}-{number}")
    return aside


def _identity_of(folder: Path, files: Sequence[str] | None) -> str:
    """Compute what a folder is known by: the sha256 of all of it, or of some files in it."""
    if files is None:
        return sha256_of(folder)
    there = [name for name in files if (folder / name).exists()]
    return fingerprint({name: sha256_of(folder / name) for name in there})


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
