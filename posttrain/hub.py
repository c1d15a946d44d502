"""Names on the hub and folders: fetched once, at one commit, or refused with what to do."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # the files of a model that are used
STAND_INS = "demo/hub"  # where the demo's dataset and models are


def fetch(
    setting: str, name: str, files: Sequence[str] | None = None, commit: str | None = None
) -> Path:
    """Fetch a model or a dataset, and say in which folder it is.

    The hub is asked at most once; what is in its cache is not downloaded again. A model's *.bin
    files are downloaded only where it has no safetensors.

    Args:
        setting: the parameter that holds the name, for the messages.
        name: a folder, which is used as it is, or a name on the hub.
        files: the files of a dataset that are used; None for a model.
        commit: of a name on the hub; None takes the newest, or the cache's without a network.

    Returns:
        The folder, in the hub's cache for a name on the hub.

    Raises:
        ValueError: it cannot be had, or it is a model without a config or weights.
    """
    folder = Path(name)
    try:
        if not folder.is_dir():
            folder = _download(name, files, commit)
    except (OSError, ValueError, errors.HTTPError) as error:
        raise ValueError(
            f"{setting} = {name!r} cannot be had ({type(error).__name__}). "
            f"{_explain(error)}{_hint_at_stand_ins(name)}"
        ) from error
    if files is None:
        _require_model(setting, name, folder)
    return folder


def _download(name: str, files: Sequence[str] | None, commit: str | None) -> Path:
    """Download what is missing in the cache, and return the commit's folder there."""
    if files is not None:
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=commit, allow_patterns=list(files)
            )
        )
    folder = Path(snapshot_download(name, revision=commit, allow_patterns=list(MODEL_FILES)))
    if not list(folder.glob("*.safetensors")):
        patterns = [*MODEL_FILES, "*.bin"]
        snapshot_download(name, revision=folder.name, allow_patterns=patterns)
    return folder


def _require_model(setting: str, name: str, folder: Path) -> None:
    """Refuse a folder without a model's config or without weights, listing what it holds."""
    # The cache has no folder for a commit without any file that is used.
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    weights = [file for file in files if file.endswith((".safetensors", ".bin"))]
    if "config.json" not in files or not weights:
        raise ValueError(
            f"{setting} = {name!r} is no model: a model's folder holds config.json and weights "
            f"(*.safetensors or *.bin), {folder} holds {files}."
        )


def commit_of(folder: Path) -> str | None:
    """Read the commit off a folder in the hub's cache; another folder has none."""
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    return None


def _hint_at_stand_ins(name: str) -> str:
    """Say how the demo's stand-ins come back, where a name is one of theirs."""
    if not Path(name).is_relative_to(STAND_INS):
        return ""
    if Path("demo/build.py").exists():
        return " `python demo/build.py` makes it."
    return (
        " The stand-ins come with the repository. In Colab choose Runtime > Change runtime type > "
        "GPU."
    )


def _explain(error: Exception) -> str:
    """Explain an error of the hub's client, and what to do about it."""
    if isinstance(error, errors.HFValidationError):
        return "It is no folder, and no name that the hub knows."
    if isinstance(error, errors.GatedRepoError):
        return (
            "It is gated: ask for access on its page, then log in with `hf auth login` or set "
            "HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "The hub knows none of this name, or it is private. Check the spelling; for a private "
            "one log in with `hf auth login` or set HF_TOKEN. A folder must be there."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            "The commit that this run began with is gone from the hub: set FRESH = True to begin "
            "with today's."
        )
    if isinstance(error, errors.IncompleteSnapshotError):
        return (
            f"Only a part of it is in {error.snapshot_path}: run once with a network to fetch the "
            "rest."
        )
    if constants.is_offline_mode():
        return (
            f"It is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to ask "
            "the hub: run once without HF_HUB_OFFLINE, or name a folder."
        )
    return (
        f"It is not in the cache, {constants.HF_HUB_CACHE}, and the hub did not give it: is there "
        "a network, and room on the disk?"
    )
