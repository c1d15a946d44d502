"""Where a run's base, data and judge come from, each pinned to what the run began with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from posttrain import hub
from posttrain.files import fingerprint, sha256_of
from posttrain.store import Store

# The parameter of the notebooks that names what has a role.
PARAMETERS = {
    "base_model": "BASE_MODEL",
    "dataset": "DATASET",
    "test_dataset": "DATASET",
    "reward_model": "REWARD_MODEL",
}


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
        return hub.fetch(PARAMETERS[self.role], self.name, self.files, self.commit)


def pin_source(
    store: Store, role: str, name: str, files: Sequence[str] | None = None
) -> Source:
    """Pin down a base model, dataset or judge.

    Of a name on the hub the run keeps to the commit that it began with. Where what the run
    began with is not at hand any more, its name is enough as long as nothing is made from it.

    Args:
        store: the run's folder, whose record holds what it began with.
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
    name, record = str(name), store.record
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
        before, identity = identity, commit or _identity_of(folder, files)
        if before not in (None, identity) and record.artifacts:
            others = "" if files is None else ", or other files of it are wanted,"
            raise ValueError(
                f"{name} was changed{others} since the run {store.name} began. Set it back, "
                "choose another RUN, or set FRESH = True, which moves the old files aside."
            )
    _refuse_another(store, role, identity)
    entry = {"name": name, "commit": commit, "sha256": None if commit else identity}
    if record.sources.get(role) != entry:
        store.note(sources={role: entry})
    return Source(role, name, identity, commit, files)


def _refuse_another(store: Store, role: str, identity: str | None) -> None:
    """Refuse a source where something in the folder was made from another one in its role.

    What was made from a result of the run itself, an adapter over its fully fine-tuned model,
    is no such thing.
    """
    artifacts = store.record.artifacts
    identities = [identity, *(artifact.sha256 for artifact in artifacts.values())]
    for name, artifact in artifacts.items():
        then = artifact.inputs.get(role, identity)
        if then not in identities and store.is_there(name):
            raise store.refusal(name, role, then, identity)


def _identity_of(folder: Path, files: Sequence[str] | None) -> str:
    """Compute what a folder is known by: the sha256 of all of it, or of some files in it."""
    if files is None:
        return sha256_of(folder)
    there = [name for name in files if (folder / name).exists()]
    return fingerprint({name: sha256_of(folder / name) for name in there})
