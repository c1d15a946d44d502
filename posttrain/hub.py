"""Fetch models and datasets from the Hugging Face hub, or explain why this is not possible."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from posttrain.files import fingerprint, sha256_of
from posttrain.hub_errors import explain

# The files at the top of a model's folder that are downloaded, loaded and identified
MODEL_FILES = (
    "*.json", "*.jinja", "*.model", "*.safetensors", "dict.txt", "merges.txt", "vocab.txt",
)  # fmt: skip
PICKLES = "*.bin"  # weights that are downloaded only if there are no safetensors
# Of the files with such names: adapters, and what a training leaves beside its model
NOT_OF_MODEL = (
    "adapter_*", "optimizer*", "scheduler*", "training_args*", "trainer_state*", "*_results.json",
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/"  # how a pointer of Git LFS begins
STAND_INS = "demo/hub"  # the folder of the demo's dataset and models


def fetch(
    setting: str, name: str, files: Sequence[str] | None = None, commit: str | None = None
) -> Path:
    """Fetch a model or a dataset, and find the folder that it is in.

    Files in the local cache are not downloaded again. A model's *.bin files are downloaded only if
    it has no safetensors, and an adapter beside its weights is not downloaded.

    Args:
        setting: the parameter that the name comes from, for error messages.
        name: a folder, which is used as it is and may begin with ~, or a name on the hub.
        files: the files of a dataset to download; None for a model.
        commit: the commit on the hub. None takes the newest one or, without a network, the one in
            the cache.

    Returns:
        The folder; for a name on the hub it lies in the cache.

    Raises:
        ValueError: if the model or dataset cannot be fetched, if a model lacks its config or
            weights, or if pointers of Git LFS stand in the place of files.
    """
    folder = Path(os.path.expanduser(name))
    if setting == "DATASET" and folder.is_file():
        raise ValueError(
            f"DATASET = {name!r} is a file. Write its pairs into a folder first, with make data "
            f"HELPFUL={name} OUT=folder (or HARMFUL), and then give that folder."
        )
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
    _refuse_pointers(setting, name, folder, files)
    return folder


def _download(name: str, files: Sequence[str] | None, commit: str | None) -> Path:
    """Download the files that the cache lacks, and return the folder of the commit in it."""
    if files is not None:
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=commit, allow_patterns=list(files)
            )
        )
    folder = _download_model(name, commit, MODEL_FILES)
    if not any(file.endswith(".safetensors") for file in _list_model_files(folder)):
        _download_model(name, folder.name, (*MODEL_FILES, PICKLES))
    if not _list_weights(folder):  # it may be an adapter, which is refused as such
        snapshot_download(name, revision=folder.name, allow_patterns="adapter_config.json")
    return folder


def _download_model(
    name: str, commit: str | None, patterns: Sequence[str], cache_alone: bool = False
) -> Path:
    """Download the files at the top of a model's repository that fit the patterns."""
    return Path(
        snapshot_download(
            name,
            revision=commit,
            allow_patterns=list(patterns),
            ignore_patterns=[*NOT_OF_MODEL, "*/*"],
            local_files_only=cache_alone,
        )
    )


def find_model(name: str, commit: str | None) -> Path | None:
    """Find a model that is here already, without asking the hub for anything.

    Args:
        name: a folder, or a name on the hub.
        commit: the commit on the hub; None takes the newest one in the cache.

    Returns:
        The folder, None if it is neither a folder nor in the cache.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return folder
    try:
        return _download_model(name, commit, MODEL_FILES, cache_alone=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def _list_model_files(folder: Path) -> list[str]:
    """List the files at the top of a folder that can be read when a model is loaded from it."""
    names = []
    for path in folder.glob("*"):
        fits = any(fnmatch(path.name, pattern) for pattern in (*MODEL_FILES, PICKLES))
        is_foreign = any(fnmatch(path.name, pattern) for pattern in NOT_OF_MODEL)
        if path.is_file() and fits and not is_foreign and not path.name.startswith("."):
            names.append(path.name)
    return sorted(names)


def _list_weights(folder: Path) -> list[str]:
    """List the files of a model's weights, among which an adapter's are not."""
    return [name for name in _list_model_files(folder) if name.endswith((".safetensors", ".bin"))]


def _require_model(setting: str, name: str, folder: Path) -> None:
    """Refuse a folder without a model's config or weights, and list the files that it has."""
    # If the hub's model has none of the files above, the cache has no folder for its commit.
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if "config.json" in files and _list_weights(folder):
        return
    if "adapter_config.json" in files:
        raise ValueError(
            f"{setting} = {name!r} is an adapter, which changes another model and is no model "
            "itself. Name the model that the adapter was trained on (base_model_name_or_path in "
            "adapter_config.json), or a folder that the two were merged into."
        )
    raise ValueError(
        f"{setting} = {name!r} is not a model. The folder of a model contains config.json and "
        f"weights (*.safetensors or *.bin), but {folder} contains {files}."
    )


def _refuse_pointers(setting: str, name: str, folder: Path, files: Sequence[str] | None) -> None:
    """Refuse a folder in which pointers of Git LFS stand in the place of files that are read."""
    pointers = []
    for file in _list_model_files(folder) if files is None else files:
        path = folder / file
        if path.is_file():
            with path.open("rb") as content:
                if content.read(len(POINTER)) == POINTER:
                    pointers.append(file)
    if pointers:
        raise ValueError(
            f"{setting} = {name!r} was cloned without its large files: in {folder}, "
            f"{', '.join(pointers)} only point to them. Install Git LFS and run `git lfs pull` in "
            "that folder."
        )


def identify(folder: Path, files: Sequence[str] | None = None) -> str:
    """Identify a model or a dataset by what is read of it.

    Args:
        folder: its folder.
        files: the files of a dataset that are used, None for a model.

    Returns:
        Its commit on the hub or, outside the hub's cache, the sha256 of the names and contents of
        the files that are read.
    """
    commit = commit_of(folder)
    if commit is not None:
        return commit
    names = _list_model_files(folder) if files is None else files
    there = [name for name in names if (folder / name).exists()]
    return fingerprint({name: sha256_of(folder / name) for name in there})


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
