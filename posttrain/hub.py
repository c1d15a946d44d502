"""Fetch models and datasets from the Hugging Face hub, or explain why this is not possible."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from posttrain.hub_errors import explain

MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is downloaded of a model
STAND_INS = "demo/hub"  # the folder of the demo's dataset and models


def fetch(
    setting: str, name: str, files: Sequence[str] | None = None, commit: str | None = None
) -> Path:
    """Fetch a model or a dataset, and find the folder that it is in.

    Files in the local cache are not downloaded again. A model's *.bin files are downloaded only if
    it has no safetensors.

    Args:
        setting: the parameter that the name comes from, for error messages.
        name: a folder, which is used as it is, or a name on the hub.
        files: the files of a dataset to download; None for a model.
        commit: the commit on the hub. None takes the newest one or, without a network, the one in
            the cache.

    Returns:
        The folder; for a name on the hub it lies in the cache.

    Raises:
        ValueError: if the model or dataset cannot be fetched, or if a model lacks its config or
            weights.
    """
    folder = Path(name)
    try:
        if not folder.is_dir():
            folder = _download(name, files, commit)
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        raise ValueError(
            f"{setting} = {name!r} cannot be loaded ({type(error).__name__}). "
            f"{explain(error)}{_hint_at_stand_ins(name)}"
        ) from error
    if files is None:
        _require_model(setting, name, folder)
    return folder


def _download(name: str, files: Sequence[str] | None, commit: str | None) -> Path:
    """Download the files that the cache lacks, and return the folder of the commit in it."""
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
    """Refuse a folder without a model's config or weights, and list the files that it has."""
    # If the hub's model has none of the files above, the cache has no folder for its commit.
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    weights = [file for file in files if file.endswith((".safetensors", ".bin"))]
    if "config.json" not in files or not weights:
        raise ValueError(
            f"{setting} = {name!r} is not a model. The folder of a model contains config.json and "
            f"weights (*.safetensors or *.bin), but {folder} contains {files}."
        )


def commit_of(folder: Path) -> str | None:
    """Read the commit from the path of a folder in the hub's cache; None for other folders."""
    if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    return None


def _hint_at_stand_ins(name: str) -> str:
    """Explain how to restore the demo's stand-ins, if the name is one of theirs."""
    if not Path(name).is_relative_to(STAND_INS):
        return ""
    if Path("demo/build.py").exists():
        return f" The demo's stand-ins in {STAND_INS} are made by `python demo/build.py`."
    return (
        f" The demo's stand-ins in {STAND_INS} are part of the repository: start in its folder. In "
        "Colab choose Runtime > Change runtime type > GPU, and a real model is trained instead."
    )
