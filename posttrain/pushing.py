"""Upload a run to a repository on the Hugging Face hub: its models with cards, and its results."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    errors,
    get_token,
)
from huggingface_hub.utils import validate_repo_id

from posttrain.cards import CARD, build_card, read_metrics
from posttrain.formats import escape_markdown
from posttrain.hub_errors import explain
from posttrain.metrics import RAW
from posttrain.record import Model
from posttrain.results import SECOND
from posttrain.run import Run

TEMPLATE = Path(__file__).with_name("repository.md")
FOLDERS = ("adapters/", "models/")  # of the models, in a run and in its repository
RESULTS = (*RAW, "classification.json")  # sent as they are: metrics.json has their sha256
# Files that may name folders of this computer
RECORDS = ("run.json", "training.json", "metrics.json", "summary.md", "summary.csv", "summary.tex",
           "report.html")  # fmt: skip
OPTIONAL = (SECOND,)


@dataclass
class Upload:
    """What is to be sent.

    Attributes:
        files: {path in the repository: the file on this computer, or the content}.
        to: the name of the repository.
        public: whether everybody may see the repository.
    """

    files: dict[str, Path | bytes]
    to: str
    public: bool

    def describe(self) -> str:
        """Say in a sentence what is sent where."""
        sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size
                 for file in self.files.values()]  # fmt: skip
        seen_by = "everybody can see" if self.public else "only you and your organization can see"
        return (
            f"{len(sizes)} files with {sum(sizes) / 1e6:.1f} MB go to {constants.ENDPOINT}/"
            f"{self.to}, which {seen_by}."
        )


def push(run: Run, to: str, public: bool = False, force: bool = False) -> str:
    """Upload a finished run to a repository of the hub, in one commit.

    The repository has the layout of the run's folder. Checkpoints and executed notebooks are left
    out, and folders of this computer are named by their last part alone.

    Args:
        run: the run, trained and evaluated.
        to: the name of the repository, "user/name". It is created if it does not exist.
        public: whether everybody may see the repository.
        force: whether to add a commit to a repository that has files already. Files of an earlier
            run that this run does not have are removed from it; no other file is touched.

    Returns:
        The address of the commit.

    Raises:
        ValueError: if the run or the repository cannot be used, or the hub refuses. Then nothing
            was uploaded.
    """
    _require_name(to)
    _require_access()
    _require_finished(run)
    upload = Upload(_collect_files(run, to), to, public)
    print(upload.describe())
    try:
        commit = _send(run, upload, force)
    except (OSError, RuntimeError, errors.HTTPError) as error:
        raise ValueError(
            f"TO = {to!r}: nothing was uploaded ({type(error).__name__}). "
            f"{explain(error, uploading=True)}"
        ) from error
    return commit.commit_url


# ---- what can be refused before anything is sent


def _require_name(to: str) -> None:
    """Refuse what is no name of a repository."""
    try:
        validate_repo_id(to)
    except errors.HFValidationError as error:
        raise ValueError(f"TO = {to!r} is no name of a repository: {error}") from error
    if "/" not in to:
        raise ValueError(
            f"TO = {to!r} does not say whose repository it is. Write user/name, with the name of "
            "your account or organization on the hub."
        )


def _require_access() -> None:
    """Refuse to begin without a token, or where the environment forbids to ask the hub."""
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE forbids asking the hub. Unset it to upload a run.")
    if get_token() is None:
        raise ValueError(
            "There is no token of the hub on this computer. Create one with the right to write in "
            "the hub's settings, then log in with `hf auth login` or set HF_TOKEN."
        )


def _require_finished(run: Run) -> None:
    """Refuse a run that says nothing about a real model, or is not trained and evaluated."""
    record = run.record
    if record.preset == "demo":
        raise ValueError(
            f"{run.folder} is a run of the demo, whose stand-ins say nothing about any real model. "
            "It is not uploaded."
        )
    trained = _list_trained(run)
    if not trained:
        raise ValueError(f"{run.folder} has no trained model, so there is nothing to upload.")
    base = record.sources.get("base_model", {"name": record.models[0].base, "commit": None})
    if base["commit"] is None:
        raise ValueError(
            f"The base of {run.folder} is the folder {base['name']}, from which nobody else can "
            "load it, so its adapters would be of no use. Train with a BASE_MODEL on the hub, or "
            "use make merge, whose model needs no base."
        )
    for model in trained:
        if not run.is_whole(model.place):
            raise ValueError(
                f"{run.path(model.place)} is missing or was changed since it was trained. Restore "
                "it, or remove it and run main.ipynb again."
            )
    checkpoints = run.path("checkpoints")
    if checkpoints.is_dir() and any(checkpoints.iterdir()):
        raise ValueError(
            f"{checkpoints} shows that a training has not ended. Run main.ipynb and eval.ipynb to "
            "the end first."
        )
    for model in trained:
        if read_metrics(run, model) is None:
            raise ValueError(
                f"{run.folder} has no measures of {model.name} as it is now. Run eval.ipynb to the "
                "end first."
            )
    missing = [name for name in (*RESULTS, *RECORDS) if not run.path(name).is_file()]
    if missing:
        raise ValueError(
            f"{run.folder} has no {', '.join(missing)}. Run eval.ipynb to the end first."
        )


def _list_trained(run: Run) -> list[Model]:
    """List the models that were trained in a run."""
    return [model for model in run.models if model.place is not None]


# ---- what is sent


def _collect_files(run: Run, to: str) -> dict[str, Path | bytes]:
    """Collect what is sent, with cards that load the models from the repository."""
    trained = _list_trained(run)
    cards = {model.place: build_card(run, model, to, model.place) for model in trained}
    files: dict[str, Path | str | bytes] = {}
    files[CARD] = str(_build_front(run, next(iter(cards.values())).data))
    for place, card in cards.items():
        for name, file in _list_files(run.path(place)):
            files[f"{place}/{name}"] = file
            if file.suffix == ".json":  # such as the name of the base in an adapter's config
                files[f"{place}/{name}"] = file.read_text(encoding="utf-8")
        files[f"{place}/{CARD}"] = str(card)
    for name in (*RESULTS, *OPTIONAL):
        if run.path(name).is_file():
            files[name] = run.path(name)
    for name in RECORDS:
        files[name] = run.path(name).read_text(encoding="utf-8")
    names = _name_folders(run)
    for path, file in files.items():
        if isinstance(file, str):
            for folder, name in names.items():
                file = file.replace(folder, name)
            files[path] = file.encode()
    return files


def _list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """List the files of a model by their names within its folder. Hidden ones are left out."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and not any(part.startswith(".") for part in name.split("/")):
            yield name, file


def _name_folders(run: Run) -> dict[str, str]:
    """List folders of this computer that the record names, with what is written for them.

    Returns:
        {the path as it is written in one of the formats: its last part}, the longest first.
    """
    folders = {str(run.folder.resolve()), *(row["name"] for row in run.record.sources.values())}
    names = {}
    for folder in folders:
        if Path(folder).is_absolute():
            name = Path(folder).name
            names |= {folder: name, html.escape(folder): name, escape_markdown(folder): name}
            names |= {json.dumps(folder)[1:-1]: name}
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _build_front(run: Run, first: ModelCardData) -> ModelCard:
    """Build the card of the repository, with the licence, base and data of a model's card."""
    metadata = ModelCardData(
        model_name=run.name,
        language=first.language,
        license=first.license,
        license_name=first.license_name,
        license_link=first.license_link,
        base_model=first.base_model,
        datasets=first.datasets,
        library_name="peft",
        tags=["trl", "sft", "dpo"],
    )
    baseline = run.models[0].name
    rows = []
    for model in _list_trained(run):
        parent = model.parent or baseline
        rows.append({
            "name": escape_markdown(model.name),
            "place": model.place,
            "parent": escape_markdown(parent),
        })
    return ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        metadata=metadata.to_yaml(),
        title=escape_markdown(run.name),
        base=first.base_model,
        trained=rows,
        summary=run.path("summary.md").read_text(encoding="utf-8").strip(),
    )


# ---- sending


def _send(run: Run, upload: Upload, force: bool) -> CommitInfo:
    """Create the repository if there is none, and add one commit to it."""
    api = HfApi()
    if not api.repo_exists(upload.to):
        api.create_repo(upload.to, private=not upload.public)
    info = api.model_info(upload.to)
    there = [file.rfilename for file in info.siblings if file.rfilename != ".gitattributes"]
    if there and not force:
        raise ValueError(
            f"TO = {upload.to!r} exists and has {len(there)} files. Choose another name, or give "
            "FORCE=True to add a commit to it, in which the files of this run replace those of the "
            "same name."
        )
    if info.private == upload.public:
        given = "PUBLIC=True" if upload.public else "no PUBLIC=True"
        seen = "private" if info.private else "public"
        raise ValueError(
            f"TO = {upload.to!r} is {seen}, but the command has {given}. Nothing here changes who "
            "may see an existing repository: do it in its settings on the hub, or give "
            f"{'PUBLIC=True' if not info.private else 'no PUBLIC=True'}."
        )
    operations = [CommitOperationAdd(path, file) for path, file in upload.files.items()]
    known = (*RESULTS, *OPTIONAL, *RECORDS)
    for path in there:
        if path not in upload.files and (path in known or path.startswith(FOLDERS)):
            operations.append(CommitOperationDelete(path))
    # The parent makes the hub refuse the commit if the repository changes in the meantime.
    return api.create_commit(
        upload.to,
        operations,
        commit_message=f"Upload the run {run.name}",
        parent_commit=info.sha,
    )
