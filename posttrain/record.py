"""A run's record, run.json: its settings, models and sources, and how each result was made.

Every result stands in it with the inputs that it was made from. `list_differences` compares those
with the inputs of now, so that a result is never taken for one that it is not.
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

from posttrain.files import fingerprint, read_json

PACKAGES = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "numpy",
    "scipy",
)  # fmt: skip
# Inputs under these names are a library's, whose versions differ in which arguments they know.
OF_LIBRARIES = ("arguments", "model_config", "adapter_config")
ABSENT = "(absent)"
PLAIN = (type(None), bool, int, float, str, list, tuple, dict)  # what a notebook sets by hand


class Model(BaseModel):
    """One of a run's models: an adapter over `base`, or `base` itself.

    `parent`: the run's model that its training went on from, None where that was the base.
    """

    name: str
    base: str
    adapter: str | None
    parent: str | None = None


class Artifact(BaseModel):
    """What a result was made from, its sha256, and where it was made; `seconds` if in one go."""

    inputs: dict[str, Any]
    sha256: str
    seconds: float | None
    environment: dict[str, Any]


class Record(BaseModel):
    """run.json.

    `settings`: {"training": {...}, "evaluation": {...}}. `sources`: {role: {"name", "commit",
    "sha256"}} of base model, dataset and judge. `data`: the cleaning report, a record a subset.
    `imported`: where results from elsewhere come from, empty for a run of this repository's own.
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

    @field_validator("sources")
    @classmethod
    def _sources_are_known(cls, sources: dict[str, Any]) -> dict[str, Any]:
        """Refuse a source without a name, or without what it is known by."""
        for role, source in sources.items():
            if sorted(source) != ["commit", "name", "sha256"] or source["name"] is None:
                raise ValueError(f"{role} needs name, commit and sha256")
        return sources

    @model_validator(mode="after")
    def _models_lie_in_the_run(self) -> Self:
        """Refuse a model whose files would be loaded from elsewhere than the run's folder."""
        for row in self.models:
            if row.adapter is not None and row.adapter != f"adapters/{slug(row.name)}":
                raise ValueError(f"{row.name} has its adapter at {row.adapter!r}")
            is_trained_here = re.fullmatch(r"models/[a-z0-9_]+", row.base)
            if row.base != self.models[0].base and not is_trained_here:
                raise ValueError(f"{row.name} stands on {row.base!r}, not on the run's base")
        return self


def read_record(path: Path) -> Record:
    """Read run.json.

    Raises:
        ValueError: it is damaged, or was written by a version before this one.
    """
    fields = read_json(path, dict[str, Any])
    artifacts = fields.get("artifacts")
    if isinstance(artifacts, dict):
        for artifact in artifacts.values():
            if isinstance(artifact, dict) and "made_from" in artifact:
                raise ValueError(
                    f"{path} was written by an earlier version of this repository, whose runs "
                    "this one does not read. Choose another RUN, set FRESH = True, or check out "
                    "the version that made it."
                )
    return read_json(path, Record)


def slug(name: str) -> str:
    """Turn a model's name into the name of its files: small letters, digits, all else as `_`.

    Raises:
        ValueError: nothing is left, or the name is none that files and tables can carry.
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not text or name != name.strip() or re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError(
            f"{name!r} cannot be a model's name: it needs letters (a to z) or digits, and has no "
            "slash, no line break, and no blank at its ends."
        )
    return text


class Difference(NamedTuple):
    """An input that was one value then and is another one now."""

    name: str
    then: Any
    now: Any


def list_differences(
    then: Mapping[str, Any], now: Mapping[str, Any], of_library: bool = False
) -> list[Difference]:
    """List the inputs that differ between what was made and what would be made.

    Args:
        then: the inputs in the record.
        now: the inputs of now.
        of_library: whether these are a library's arguments: one that only one side knows, since
            only one version of the library has it, is passed over.

    Returns:
        The differences, nested ones by the name of what differs in them.
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
    """Bring inputs into the form in which the record holds them, so that both compare equal."""
    return json.loads(json.dumps(inputs, sort_keys=True))


# ---- code and versions


def source_of(item: Any) -> str:
    """Give the source of a function or class, without comments and layout.

    Args:
        item: a function or a class, such as one that is defined in a notebook.

    Returns:
        Its statements as Python writes them, or what its compiled code consists of where the
        source cannot be had.
    """
    if isinstance(item, partial):
        return f"{source_of(item.func)} {item.args} {item.keywords}"
    if inspect.isclass(item):
        return _source_of_class(item)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(item)))
    except (OSError, TypeError, SyntaxError):  # a lambda within a line, code without a file
        tree = None
    if tree is not None and item.__name__ == "<lambda>":  # this is all of the line that it is on
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        tree = lambdas[0] if len(lambdas) == 1 else None
    if tree is None:
        return f"{_list_code(item.__code__)} {item.__defaults__} {item.__kwdefaults__}"
    return ast.unparse(tree)


def _source_of_class(item: type) -> str:
    """Give the source of a class: of its functions, its values, and the classes within it."""
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
    """List the functions of a class, also those behind its properties and in classes within it.

    A function is its own.
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
    """Write down compiled code: what it does, to which names and constants."""
    constants = []
    for value in code.co_consts:
        if inspect.iscode(value):
            constants.append(_list_code(value))
        elif isinstance(value, frozenset):  # its order differs from process to process
            constants.append(sorted(map(repr, value)))
        else:
            constants.append(repr(value))
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _git_commit(folder: Path) -> str | None:
    """Name the commit that a folder's checkout is at, None where there is no git or no checkout."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=folder, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


@cache  # the code that runs is the one that was there at the start
def environment() -> dict[str, Any]:
    """Describe what a result depends on beside its inputs.

    Returns:
        {"date", "python", "packages", "device", "git_commit", "code_sha256"}; the last is that of
        this package's modules.
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
        "git_commit": _git_commit(here),
        "code_sha256": fingerprint(modules),
    }


def list_changes(record: Record) -> list[str]:
    """Word every difference of versions, device or code between what was made and now.

    Returns:
        A sentence for each, with all results that it concerns; none where all was made as it would
        be made now.
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
            f"{', '.join(names)} {verb} made with {label} {value}, now it is {now[label]}."
        )
    return sentences


def _flatten(described: Mapping[str, Any]) -> dict[str, Any]:
    """Bring an environment into one table of {label: version}."""
    code = str(described.get("code_sha256"))[:8]
    table = {"python": described.get("python"), "device": described.get("device"), "code": code}
    return table | described.get("packages", {})
