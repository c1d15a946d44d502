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
}


@dataclass
class Source:
    """A base model, dataset or judge.

    Attributes:
        role: "base_model", "dataset", "test_dataset" or "reward_model".
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
    store: Store, role: str, name: str, files: Sequence[str] | None = None
) -> Source:
    """Pin a base model, dataset or judge to one version, and enter it into the run's record.

    A run keeps the commit that it began with. If a source is no longer available, the run can still
    be read: the source is needed only when something is made from it.

    Args:
        store: the run's folder, whose record contains the sources that the run began with.
        role: "base_model", "dataset", "test_dataset" (from which the prompts are drawn) or
            "reward_model".
        name: a name on the hub, or a folder, which may begin with ~.
        files: the files of a dataset that are used, None for a model.

    Returns:
        The source. Its folder is fetched when it is first used.

    Raises:
        ValueError: if the source is new to the run and cannot be fetched, if it was changed since
            the run began, or if a result of the run was made from another one.
    """
    name, record = os.path.expanduser(str(name)), store.record
    is_judge_to_ask = role == "reward_model" and (
        role in record.sources or not store.path("scores.json").exists()
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
            raise store.refusal(name, role, then, identity)
