"""Send a finished run to the Hugging Face hub. No other module sends anything there."""

import html
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelInfo,
    constants,
    errors,
    get_token,
)
from huggingface_hub.utils import validate_repo_id

from posttrain import processes
from posttrain.cards import CARD, build_card
from posttrain.formats import LATEX, escape_markdown
from posttrain.hub import STAND_INS
from posttrain.hub_errors import explain
from posttrain.run import Run

# What may name a folder of this computer is sent with such names shortened.
DESCRIPTIONS = ("run.json", "metrics.json", "summary.md", "summary.tex", "summary.csv")
PAGE = "report.html"
RAW = ("prompts.json", "responses.json", "scores.json", "classification.json")
NEEDED = (*DESCRIPTIONS, PAGE, "training.json", *RAW)
OPTIONAL = ("second_scores.json",)
FOLDERS = ("adapters/", "models/")
OF_MODELS = (".json", ".safetensors", ".jinja", ".model", ".txt")  # the ends of their files' names

Files = dict[str, bytes | Path]


def push(run: Run, to: str, public: bool = False, force: bool = False) -> str:
    """Send a finished run's models, cards, metrics and page to a repository on the hub.

    The files of the run are not changed. All files are sent in one commit.

    Args:
        run: the run.
        to: the repository, as user/name.
        public: whether everybody may see a new repository.
        force: whether a repository that exists gets one more commit, which replaces the run in it.

    Returns:
        The address of the repository.

    Raises:
        ValueError: if the run, the name, the repository or the login is not fit for it.
        RuntimeError: if the hub did not take the run. The message says what is there now.
    """
    if processes.count() > 1:
        raise ValueError("PROCESSES: a run is sent by one process. Leave PROCESSES out.")
    _require_name(to)
    _require_shareable(run)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE forbids asking the hub. Unset it to send a run.")
    if get_token() is None:
        raise ValueError(
            "There is no access token of the hub on this computer. Make one with the right to "
            "write in the settings of your account there, and log in with `hf auth login`."
        )
    with run.hold():  # nothing is written into the run while it is sent
        files = collect(run, to)
        return _send(run, files, to, public, force)


def _require_name(to: str) -> None:
    """Refuse a name that is not user/name."""
    try:
        validate_repo_id(to)
        is_name = to.count("/") == 1
    except errors.HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(
            f"TO = {to!r} is not the name of a repository. Write user/name, where user is your "
            "account or organisation on the hub, with letters, digits, -, _ and . in both."
        )


# ---- what is sent


def collect(run: Run, to: str) -> Files:
    """Collect what is sent of a run, and refuse a run that is not fit to be shared.

    Args:
        run: the run.
        to: the repository that the cards load the models from.

    Returns:
        {path in the repository: its content, or the file that has it}.

    Raises:
        ValueError: if the run is the demo's, is not finished, is not whole, or names folders of
            this computer that others do not have.
    """
    cards = _build_cards(run, to)
    if not cards:
        raise _not_finished(run, "no model has been trained.")
    files: Files = {}
    for place, card in cards.items():
        for path in sorted(run.path(place).iterdir()):
            if path.name.endswith(OF_MODELS) and not path.name.startswith("."):
                files[f"{place}/{path.name}"] = path
        files[f"{place}/{CARD}"] = str(card).encode()
    for name in (*NEEDED, *OPTIONAL):
        if run.path(name).exists():
            files[name] = run.path(name)
        elif name in NEEDED:
            raise _not_finished(run, f"it has no {name}.")
    files[CARD] = _write_front_page(run, to, cards).encode()
    return _without_local_places(run, files)


def _build_cards(run: Run, to: str) -> dict[str, ModelCard]:
    """Build {folder: card} of the trained models, which must be whole and evaluated as they are."""
    cards = {}
    for model in run.models:
        if model.place is None:
            continue
        if not run.is_whole(model.place):
            raise ValueError(
                f"{run.path(model.place)} is missing, or was changed after it was made. Restore "
                "it, or train the model again. Nothing was sent."
            )
        try:
            card = build_card(run, model, to, subfolder=model.place)
        except (KeyError, TypeError):
            raise _not_finished(run, "metrics.json was written by another version.") from None
        if not card.data.eval_results:
            raise _not_finished(run, f"{model.name} has not been evaluated as it is now.")
        cards[model.place] = card
    return cards


def _require_shareable(run: Run) -> None:
    """Refuse a run that says nothing of real models, or that others could not use."""
    record = run.record
    if record.preset == "demo":
        raise ValueError(
            f"{run.folder} is a run of the demo, whose models are small stand-ins and no "
            "OPT-350M. Send a run of another preset, such as make run PRESET=quick."
        )
    if record.imported:
        raise ValueError(
            f"{run.folder} contains imported results and no model that could be sent. Name a run "
            "that was trained."
        )
    # A trainer that is only built, as by running main.ipynb again, leaves an empty folder there.
    if any(path.is_file() for path in run.path("checkpoints").rglob("*")):
        raise _not_finished(run, "a model is still being trained.")
    base = record.sources.get("base_model", {"name": "not recorded", "commit": None})
    if base["commit"] is None or Path(base["name"]).is_absolute():
        raise ValueError(
            f"The base of {run.folder} is a folder of this computer ({base['name']}), so others "
            "could not load the run's models. Train with a base that has a name on the hub."
        )


def _not_finished(run: Run, reason: str) -> ValueError:
    """Build the error for a run that is not finished."""
    return ValueError(
        f"{run.folder} is not a finished run: {reason} Repeat make run with its PRESET and RUN, "
        "which makes what is missing. Nothing was sent."
    )


def _write_front_page(run: Run, to: str, cards: Mapping[str, ModelCard]) -> str:
    """Write the card of the repository: the rates, and where each model lies in it."""
    first = next(iter(cards.values())).data.to_dict()
    shared = ("language", "base_model", "datasets", "license", "license_name", "license_link")
    metadata = {name: first[name] for name in shared if first.get(name)}
    tags, libraries = [], []
    for card in cards.values():
        tags += [tag for tag in card.data.tags if tag not in tags]
        libraries.append(card.data.library_name)
    library = "peft" if "peft" in libraries else "transformers"
    metadata |= {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    lines = []
    for model in run.models:
        if model.place is not None:
            link = f"[how it is loaded and what was measured]({model.place}/{CARD})"
            lines.append(f'- {escape_markdown(model.name)}: `subfolder="{model.place}"`, {link}')
    summary = run.path("summary.md").read_text(encoding="utf-8").strip()
    return "\n".join([
        # JSON is YAML too, and quotes every name.
        "---", json.dumps(metadata, ensure_ascii=False, indent=1), "---",
        f"# The run {escape_markdown(run.name)}", "",
        "Language models that were fine-tuned from the base "
        f"`{run.record.sources['base_model']['name']}` for research alone. Each model lies in a "
        f"folder of `{to}`, whose card contains its cautions, its intended use and its licences:",
        "", *lines, "", summary, "",
        "Download `report.html` to read every answer. `run.json` records what each file was made "
        "from.", "",
    ])  # fmt: skip


def _without_local_places(run: Run, files: Files) -> Files:
    """Shorten the folders of this computer that the run's record names to their last part."""
    folders = _list_folders(run)
    cleaned: Files = {}
    for name, content in files.items():
        is_config = name.startswith(FOLDERS) and name.endswith((".json", CARD))
        if name not in (*DESCRIPTIONS, PAGE, CARD) and not is_config:
            cleaned[name] = content
            continue
        text = (content if isinstance(content, bytes) else content.read_bytes()).decode()
        shortened = text
        for folder in sorted(folders, key=len, reverse=True):
            for spelling in _spell(folder):
                shortened = shortened.replace(spelling, Path(folder).name)
        for place in (Path.cwd(), Path.home()):
            is_named = any(spelling in shortened for spelling in _spell(f"{place}/"))
            if name != PAGE and len(place.parts) > 1 and is_named:
                raise ValueError(
                    f"{name} would name the folder {place} of this computer, which others should "
                    "not see. Remove it from the run's files. Nothing was sent."
                )
        cleaned[name] = content if shortened == text else shortened.encode()
    return cleaned


def _list_folders(run: Run) -> set[str]:
    """List the folders of this computer that a run's record names, and the run's own."""
    folders = set()
    for folder in (run.folder.resolve(), run.folder.absolute()):  # they differ behind a link
        folders |= {str(folder), str(folder.parent)}
    for text in _list_texts(run.record.model_dump()):
        is_absolute = Path(text).is_absolute() and len(Path(text).parts) > 2
        if (is_absolute or text.startswith(("~/", "../"))) and "\n" not in text:
            folders.add(text)
    for source in run.record.sources.values():
        place = Path(source["name"])
        is_public = source["commit"] is not None or place.is_relative_to(STAND_INS)
        if not is_public and len(place.parts) > 1:
            folders.add(source["name"])
    return folders


def _spell(folder: str) -> set[str]:
    """Write a folder as it is written in JSON, HTML, markdown and LaTeX."""
    as_json = json.dumps(folder)[1:-1]
    as_latex = folder.translate(LATEX)
    return {folder, as_json, html.escape(folder), escape_markdown(folder), as_latex}


def _list_texts(data: Any) -> Iterator[str]:
    """List the texts in nested dictionaries and lists."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, (Mapping, list)):
        for part in data.values() if isinstance(data, Mapping) else data:
            yield from _list_texts(part)


# ---- the hub


def _send(run: Run, files: Files, to: str, public: bool, force: bool) -> str:
    """Create the repository if there is none, and send the files in one commit."""
    api = HfApi()
    with _explained(to, "Nothing was sent."):
        known = _find(api, to)
    if known is not None:
        _require_permission(known, to, public, force)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    size = sum(operation.upload_info.size for operation in operations)
    print(
        f"Sending {len(files)} files ({size / 1e6:.1f} MB) of {run.folder} to {to} at "
        f"{api.endpoint}, which is {'public' if public else 'private'}."
    )
    left = "Look at the repository before you repeat the command, since the commit may be there."
    if known is None:
        with _explained(to, "Nothing was sent."):
            api.create_repo(to, private=not public, exist_ok=False)
        # It is not removed: if the answer to the commit was lost, it may hold the run already.
        left = (
            f"The repository {to} was created, and no commit is known to have arrived. Repeat the "
            f"command with FORCE=True, or remove it at {api.endpoint}/{to}/settings."
        )
    for name in _list_files(known):
        is_of_run = name in (*NEEDED, *OPTIONAL) or name.startswith(FOLDERS)
        if is_of_run and name not in files:
            operations.append(CommitOperationDelete(name, is_folder=False))
    with _explained(to, left):
        api.create_commit(
            to,
            operations,
            commit_message=f"The run {run.name}",
            parent_commit=known.sha if known else None,
        )
    return f"{api.endpoint}/{to}"


@contextmanager
def _explained(to: str, left: str) -> Iterator[None]:
    """Explain an error of the hub's client, and say what is on the hub now."""
    try:
        yield
    except KeyboardInterrupt:
        raise RuntimeError(f"TO = {to!r}: interrupted. {left}") from None
    except (OSError, RuntimeError, ValueError, errors.HTTPError) as error:
        raise RuntimeError(
            f"TO = {to!r}: the run could not be sent ({type(error).__name__}). "
            f"{explain(error, uploading=True)} {left}"
        ) from error


def _find(api: HfApi, to: str) -> ModelInfo | None:
    """Ask the hub for a repository; None if there is none that this login may see."""
    try:
        return api.model_info(to)
    except errors.RepositoryNotFoundError:
        return None


def _require_permission(known: ModelInfo, to: str, public: bool, force: bool) -> None:
    """Refuse a repository that exists, unless FORCE is set and it is as public as PUBLIC says."""
    if not force:
        raise ValueError(
            f"TO = {to!r} exists on the hub. Choose another name, or set FORCE=True, which adds a "
            "commit that replaces the run in it: files of the same names are overwritten, and "
            "whatever else is below adapters/ and models/ is removed. Nothing was sent."
        )
    if known.private == public:
        now, remedy = ("private", "Leave PUBLIC out") if public else ("public", "Set PUBLIC=True")
        raise ValueError(
            f"TO = {to!r} is {now} on the hub, and this command does not change that. {remedy}, "
            "choose another name, or change it in the settings of the repository. Nothing was sent."
        )


def _list_files(known: ModelInfo | None) -> list[str]:
    """List the files of a repository."""
    return [file.rfilename for file in known.siblings or ()] if known else []
