"""The record of a run, run.json: its settings, models and sources, and how each result was made.

The record lists every result with the inputs that it was made from. `list_differences` compares
them with the current inputs, so that a result is never used where the inputs have changed.
"""

import ast
import inspect
import json
import platform
import re
import subprocess
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from posttrain import processes
from posttrain.files import fingerprint, read_json

PACKAGES = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "numpy",
    "scipy",
)  # fmt: skip
# Inputs under these names are a library's arguments, which may differ between its versions.
OF_LIBRARIES = ("arguments", "model_config", "adapter_config")
ABSENT = "(absent)"
PLAIN = (type(None), bool, int, float, str, list, tuple, dict)  # values that a notebook may set


class Model(BaseModel):
    """One of a run's models: an adapter over a base, or a base itself.

    Attributes:
        name: the model's name, such as "SFT+DPO".
        base: the base, by its name or folder, or by its folder in the run if it was trained there.
        adapter: the adapter's folder in the run, None if there is no adapter.
        parent: the model of the run that its training started from, None if that was the base.
    """

    name: str
    base: str
    adapter: str | None
    parent: str | None = None

    @property
    def place(self) -> str | None:
        """The folder in the run of what was trained, None for a base."""
        if self.adapter is not None:
            return self.adapter
        in_models = self.base.startswith("models/")  # an imported name may have no slug
        return self.base if in_models and self.base == f"models/{slug(self.name)}" else None


class Artifact(BaseModel):
    """The record of a result.

    Attributes:
        inputs: everything that the result was made from.
        sha256: the sha256 of the result.
        seconds: how long it took to make, None if this is unknown or it was interrupted.
        environment: the versions, the device and the code that it was made with.
    """

    inputs: dict[str, Any]
    sha256: str
    seconds: float | None
    environment: dict[str, Any]


class Record(BaseModel):
    """The content of run.json.

    Attributes:
        run: the run's name.
        preset: the preset of its training.
        settings: {"training": {...}, "evaluation": {...}}.
        models: the run's models, the baseline first.
        sources: {role: {"name", "commit", "sha256"}} of the base model, datasets and judge.
        data: the report on the cleaning of the data, one record per subset.
        artifacts: {name: its record} of every result.
        imported: where imported results come from, empty for a run that was trained here.
        copied: where copied models come from, empty for a run whose models were trained in it.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    preset: str = ""
    settings: dict[str, dict[str, Any]] = {}
    models: list[Model] = []
    sources: dict[str, dict[str, str | None]] = {}
    data: list[dict[str, Any]] = []
    artifacts: dict[str, Artifact] = {}
    imported: dict[str, str] = {}
    copied: dict[str, str] = {}

    @field_validator("sources")
    @classmethod
    def _sources_are_known(cls, sources: dict[str, Any]) -> dict[str, Any]:
        """Refuse a source that lacks its name, commit or sha256."""
        for role, source in sources.items():
            if sorted(source) != ["commit", "name", "sha256"] or source["name"] is None:
                raise ValueError(f"{role} needs name, commit and sha256")
        return sources

    @model_validator(mode="after")
    def _models_lie_in_the_run(self) -> Self:
        """Refuse a model whose files would be loaded from outside the run's folder."""
        for row in self.models:
            if row.adapter is not None and row.adapter != f"adapters/{slug(row.name)}":
                raise ValueError(f"the adapter of {row.name} is said to be {row.adapter!r}")
            is_trained_here = re.fullmatch(r"models/[a-z0-9_]+", row.base)
            if row.base != self.models[0].base and not is_trained_here:
                raise ValueError(f"the base of {row.name} is {row.base!r}, not the run's base")
        return self


def read_record(path: Path) -> Record:
    """Read run.json.

    Raises:
        ValueError: if it is damaged, or was written by an earlier version of this repository.
    """
    fields = read_json(path, dict[str, Any])
    artifacts = fields.get("artifacts")
    if isinstance(artifacts, dict):
        for artifact in artifacts.values():
            if isinstance(artifact, dict) and "made_from" in artifact:
                raise ValueError(
                    f"{path} was written by an earlier version of this repository, whose runs "
                    "cannot be read any more. Choose another RUN, set FRESH = True, or check out "
                    "the version that made it."
                )
    return read_json(path, Record)


def slug(name: str) -> str:
    """Turn a model's name into a file name of lower-case letters, digits and `_` for all else.

    Raises:
        ValueError: if nothing would be left, or if files and tables could not have this name.
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not text or name != name.strip() or re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError(
            f"{name!r} cannot be a model's name: a name needs letters (a to z) or digits, and must "
            "not have a slash, a line break, or a blank at either end."
        )
    return text


class Difference(NamedTuple):
    """An input whose value in the record differs from its current value."""

    name: str
    then: Any
    now: Any


def list_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], of_library: bool = False
) -> list[Difference]:
    """List the inputs of a result that differ between the record and now.

    Args:
        then: the inputs in the record.
        now: the current inputs.
        of_library: whether these are a library's arguments. An argument that only one side has is
            then ignored, because only one version of the library knows it.

    Returns:
        The differences. For nested inputs, the name says which of them differs.
    """
    differences = []
    for name in sorted(then.keys() | now.keys()):
        if of_library and (name not in then or name not in now):
            continue
        before, after = then.get(name, ABSENT), now.get(name, ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = list_differences(before, after, of_library or name in OF_LIBRARIES)
            prefix = "" if name in OF_LIBRARIES else f"{name}."
            for difference in inner:
                differences.append(difference._replace(name=prefix + difference.name))
        elif before != after:
            differences.append(Difference(name, before, after))
    return differences


def as_json(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Convert inputs into the form that they have in the record, so that they can be compared."""
    return json.loads(json.dumps(inputs, sort_keys=True))


# ---- code and versions


def source_of(item: Any) -> str:
    """Return the source of a function or class in a normal form, without comments and layout.

    Args:
        item: a function or a class, such as one that is defined in a notebook.

    Returns:
        Its statements as `ast.unparse` writes them, or the parts of its compiled code if the source
        is not available.
    """
    if isinstance(item, partial):
        return f"{source_of(item.func)} {item.args} {item.keywords}"
    if inspect.isclass(item):
        return _source_of_class(item)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(item)))
    except (OSError, TypeError, SyntaxError):  # a lambda within a line, or code without a file
        tree = None
    if tree is not None and item.__name__ == "<lambda>":  # the tree is that of its whole line
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        tree = lambdas[0] if len(lambdas) == 1 else None
    if tree is None:
        return f"{_list_code(item.__code__)} {item.__defaults__} {item.__kwdefaults__}"
    return ast.unparse(tree)


def _source_of_class(item: type) -> str:
    """Return the source of a class: its functions, its plain values and the classes within it."""
    parts = [item.__name__, *(source_of(function) for function in functions_of(item))]
    for name, member in sorted(vars(item).items()):
        if _stands_within(member, item):
            parts.append(_source_of_class(member))
        elif not name.startswith("__") and isinstance(member, PLAIN):
            parts.append(f"{name} = {member!r}")
    return "\n".join(parts)


def _stands_within(member: Any, item: type) -> bool:
    """Tell whether a member of a class is a class that is defined in it."""
    return inspect.isclass(member) and member.__qualname__.startswith(f"{item.__qualname__}.")


def functions_of(item: Any) -> list[Any]:
    """List the functions of a class, including those of its properties and of classes within it.

    For a function, the list contains just this function.
    """
    if not inspect.isclass(item):
        return [item]
    functions = []
    for _, member in sorted(vars(item).items()):
        if isinstance(member, property):
            members = [member.fget, member.fset, member.fdel]
        else:
            members = [getattr(member, "__func__", getattr(member, "func", member))]
        for function in members:
            if inspect.isfunction(function):
                functions.append(function)
            elif _stands_within(function, item):
                functions += functions_of(function)
    return functions


def _list_code(code: CodeType) -> str:
    """Write compiled code as text: its instructions, names and constants."""
    constants = []
    for value in code.co_consts:
        if inspect.iscode(value):
            constants.append(_list_code(value))
        elif isinstance(value, frozenset):  # the order differs from process to process
            constants.append(sorted(map(repr, value)))
        else:
            constants.append(repr(value))
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _git_commit(folder: Path) -> str | None:
    """Find the commit that a folder is checked out at; None without git or a checkout."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=folder, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


@cache  # cached, since the code that runs is the code that was there at the start
def environment() -> dict[str, Any]:
    """Describe the versions, the device and the code that a result depends on.

    Returns:
        {"date", "python", "packages", "device", "processes", "git_commit", "code_sha256"}. The last
        is the sha256 of this package's modules.
    """
    import torch

    here = Path(__file__).parent
    device = f"CPU, {platform.machine()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    modules = [path.read_text(encoding="utf-8") for path in sorted(here.rglob("*.py"))]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": device,
        "processes": processes.count(),
        "git_commit": _git_commit(here),
        "code_sha256": fingerprint(modules),
    }


def list_changes(record: Record) -> list[str]:
    """Describe how versions, device and code differ between the time a run was made and now.

    Returns:
        A sentence for each difference, with the results that it concerns. The list is empty if
        nothing has changed.
    """
    now = _flatten(environment())
    names_by_change: dict[tuple[str, Any], list[str]] = {}
    for name, artifact in record.artifacts.items():
        then = _flatten(artifact.environment)
        for label, value in now.items():
            if artifact.environment and then.get(label) != value:
                names_by_change.setdefault((label, then.get(label)), []).append(name)
    sentences = []
    for (label, value), names in names_by_change.items():
        verb = "was" if len(names) == 1 else "were"
        sentences.append(
            f"{', '.join(names)} {verb} made with {label} {value}, but now it is {now[label]}."
        )
    return sentences


def _flatten(described: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten an environment into {label: version}."""
    code = str(described.get("code_sha256"))[:8]
    table = {"python": described.get("python"), "device": described.get("device"), "code": code}
    return table | described.get("packages", {})
