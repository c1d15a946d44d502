"""The sources of a run (base model, datasets and judge), each pinned to one version."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from posttrain import hub
from posttrain.store import Store

# {role of a source: the notebooks' parameter that names it}
PARAMETERS = {
    "base_model": "BASE_MODEL",
    "dataset": "DATASET",
    "test_dataset": "DATASET",
    "reward_model": "REWARD_MODEL",
    "second_judge": "SECOND_JUDGE",
}


@dataclass
class Source:
    """A base model, dataset or judge.

    Attributes:
        role: "base_model", "dataset", "test_dataset", "reward_model" or "second_judge".
        name: its name on the hub, or its folder without ~.
        identity: its commit on the hub, or the sha256 of its files that are read.
        commit: its commit on the hub, None for a folder.
        files: the files of a dataset that are used, None for a model.
    """

    role: str
    name: str
    identity: str | None
    commit: str | None
    files: Sequence[str] | None

    @cached_property
    def folder(self) -> Path:
        """The folder of its files, which are downloaded from the hub when they are first needed.

        Raises:
            ValueError: if they cannot be downloaded.
        """
        return hub.fetch(PARAMETERS[self.role], self.name, self.files, self.commit)


def pin_source(
    store: Store,
    role: str,
    name: str,
    files: Sequence[str] | None = None,
    unlike: Source | None = None,
) -> Source:
    """Pin a base model, dataset or judge to one version, and enter it into the run's record.

    A run keeps the commit that it began with. If a source is no longer available, the run can still
    be read: the source is needed only when something is made from it.

    Args:
        store: the run's folder, whose record contains the sources that the run began with.
        role: "base_model", "dataset", "test_dataset" (from which the prompts are drawn),
            "reward_model" or "second_judge".
        name: a name on the hub, or a folder, which may begin with ~.
        files: the files of a dataset that are used, None for a model.
        unlike: the run's first judge, which a second judge must not be.

    Returns:
        The source. Its folder is fetched when it is first used.

    Raises:
        ValueError: if the source is new to the run and cannot be fetched, if it was changed since
            the run began, if a result of the run was made from another one, or if a second judge
            is the first one.
    """
    name, record = os.path.expanduser(str(name)), store.record
    is_judge_to_ask = role == "second_judge" or (
        role == "reward_model"
        and (role in record.sources or not store.path("scores.json").exists())
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
        before, identity = identity, hub.identify(folder, files)
        if before not in (None, identity) and record.artifacts:
            others = "" if files is None else ", or the run now uses other files of it"
            raise ValueError(
                f"{name} was changed since the run {store.name} began{others}. Restore it, choose "
                "another RUN, or set FRESH = True, which moves the old files aside."
            )
    if unlike is not None:
        first_name = unlike.name
        if unlike.identity is None:  # its rewards were imported, perhaps with the judge's name
            first_name = record.imported.get("judge", first_name)
        require_another_judge(name, identity, first_name, unlike.identity)
    _refuse_another(store, role, identity)
    entry = {"name": name, "commit": commit, "sha256": None if commit else identity}
    if record.sources.get(role) != entry:
        store.note(sources={role: entry})
    return Source(role, name, identity, commit, files)


def _refuse_another(store: Store, role: str, identity: str | None) -> None:
    """Refuse a source if a result of the run was made from another source in the same role.

    An adapter over a model that was fully fine-tuned in the run is allowed, although its base is
    not the run's base model.
    """
    artifacts = store.record.artifacts
    identities = [identity, *(artifact.sha256 for artifact in artifacts.values())]
    for name, artifact in artifacts.items():
        then = artifact.inputs.get(role, identity)
        if then not in identities and store.is_there(name):
            if role == "second_judge":
                file = store.path(name.split("/")[0])
                raise ValueError(
                    f"{file} has the rewards by the second judge "
                    f"{store.record.sources[role]['name']}. To name another one, move this file "
                    "away. Nothing else of the run depends on it."
                )
            raise store.refusal(name, role, then, identity)


def require_another_judge(
    second: str, second_identity: str | None, first: str, first_identity: str | None
) -> None:
    """Refuse a second judge that is the first one.

    Args:
        second: the name or folder of the second judge.
        second_identity: its commit on the hub, or the sha256 of its files.
        first: the name or folder of the first judge.
        first_identity: its commit or sha256, None if this is unknown.

    Raises:
        ValueError: if both have the same name, folder or identity.
    """
    names = [os.path.expanduser(name) for name in (second, first)]
    same_place = Path(names[0]).resolve() == Path(names[1]).resolve()
    if same_place or (first_identity is not None and first_identity == second_identity):
        raise ValueError(
            f"SECOND_JUDGE = {second!r} is the judge that REWARD_MODEL = {first!r} names, so it "
            "would give the same rewards again. Name another judge, or leave SECOND_JUDGE out."
        )
