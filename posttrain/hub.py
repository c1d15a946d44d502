"""Names on the hub and folders: fetched once, at one commit, or a sentence that says what is wrong and what to do."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is wanted of a model


def fetch(setting: str, name: str, files: Sequence[str] | None = None, commit: str | None = None) -> Path:
    """Return the folder that `name` is, or that of its commit in the hub's cache, downloaded where it is not there.

    `setting`: the parameter that holds the name; `files`: those wanted of a dataset, None for a model; `commit`:
    None takes the newest, or the cache's where there is no network. A model's *.bin come only where it has no
    safetensors. The hub is asked at most once. Raises ValueError where it cannot be had, or is a model without weights.
    """
    folder, is_model = Path(name), files is None
    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(name, repo_type="model" if is_model else "dataset", revision=commit,
                                            allow_patterns=list(files or MODEL_FILES)))
            if is_model and not list(folder.glob("*.safetensors")):
                snapshot_download(name, revision=folder.name, allow_patterns=[*MODEL_FILES, "*.bin"])
    except (OSError, ValueError, errors.HTTPError) as error:
        hint = ""
        if Path(name).is_relative_to("demo/hub"):
            hint = (" `python demo/build.py` makes it." if Path("demo/build.py").exists() else
                    " The stand-ins come with the repository. In Colab choose Runtime > Change runtime type > GPU.")
        raise ValueError(f"{setting} = {name!r} cannot be had ({type(error).__name__}). {_explain(error)}{hint}") \
            from error
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if is_model and ("config.json" not in held or not any(re.search(r"\.(safetensors|bin)$", file) for file in held)):
        raise ValueError(f"{setting} = {name!r} is no model: a model's folder holds config.json and weights "
                         f"(*.safetensors or *.bin), {folder} holds {held}.")
    return folder


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder in the hub's cache, None of another folder."""
    is_cached = folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if is_cached else None


def _explain(error: Exception) -> str:
    """Return what to do about an error of huggingface_hub's."""
    if isinstance(error, errors.HFValidationError):
        return "It is no folder, and no name that the hub knows."
    if isinstance(error, errors.GatedRepoError):
        return "It is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return ("The hub knows none of this name, or it is private. Check the spelling; for a private one log in with "
                "`hf auth login` or set HF_TOKEN. A folder must be there.")
    if isinstance(error, errors.RevisionNotFoundError):
        return "The commit that this run began with is gone from the hub: set FRESH = True to begin with today's."
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"Only a part of it is in {error.snapshot_path}: run once with a network to fetch the rest."
    if constants.is_offline_mode():
        return (f"It is not in the cache, {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to ask the hub: run "
                "once without HF_HUB_OFFLINE, or name a folder.")
    return (f"It is not in the cache, {constants.HF_HUB_CACHE}, and the hub did not give it: is there a network, and "
            "room on the disk?")
