"""The settings of both notebooks as markdown: what the presets change, and what may be set."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from docs.benchmark_tables import write_table
from posttrain.settings import PRESETS, Evaluation, Settings, Training, choose

DEFAULT = "full"  # the preset whose values are the defaults


def list_parts() -> dict[str, Callable[[], str]]:
    """List the generated parts of docs/settings.md by name, each with the function that writes it.

    docs/build.py adds them to its own.
    """
    return {
        "training presets": partial(write_presets, Training),
        "training settings": partial(write_settings, Training),
        "evaluation presets": partial(write_presets, Evaluation),
        "evaluation settings": partial(write_settings, Evaluation),
    }


def write_presets(kind: type[Settings]) -> str:
    """Write the settings in which presets differ: the defaults, then what each preset changes.

    A cell is empty where a preset takes the default.

    Args:
        kind: the settings of a notebook.
    """
    defaults = choose(kind, DEFAULT)
    others = [preset for preset in PRESETS if preset != DEFAULT]
    chosen = [choose(kind, preset) for preset in others]
    rows = []
    for name in _names_of(kind):
        default = getattr(defaults, name)
        cells = []
        for settings in chosen:
            value = getattr(settings, name)
            cells.append("" if value == default else _write_value(value))
        if any(cells):
            rows.append([f"`{name}`", _write_value(default), *cells])
    headings = [f"`{DEFAULT}` (the defaults)", *(f"`{preset}`" for preset in others)]
    return write_table(["setting", *headings], rows)


def write_settings(kind: type[Settings]) -> str:
    """Write every setting with its default, the values that it may take, and its reason.

    Args:
        kind: the settings of a notebook.
    """
    defaults = choose(kind, DEFAULT)
    schemas = kind.model_json_schema()["properties"]
    rows = []
    for name in _names_of(kind):
        row = [
            f"`{name}`",
            _write_value(getattr(defaults, name)),
            _write_allowed(schemas[name]),
            kind.model_fields[name].description or "",
        ]
        rows.append(row)
    return write_table(["setting", "default", "allowed values", "what it is, and why"], rows)


def _names_of(kind: type[Settings]) -> list[str]:
    """List the names of a notebook's settings, without that of the preset itself."""
    return [name for name in kind.model_fields if name != "preset"]


def _write_value(value: Any) -> str:
    """Write a setting's value; a list of names as one text."""
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value)


def _write_allowed(schema: Mapping[str, Any]) -> str:
    """Write which values a setting may take.

    Args:
        schema: the setting's own part of its class's JSON schema.
    """
    if "anyOf" in schema:
        first, *others = [_write_allowed(option) for option in schema["anyOf"]]
        if ", or " in first:  # it lists two things already
            return ", or ".join([first.replace(", or ", ", "), *others])
        return " or ".join([first, *others])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    items = schema.get("items", {}).get("type")
    nouns = {
        "null": "`None`",
        "string": "a name on the hub, or a folder",
        "array": "a list of numbers" if items == "number" else "a list of names",
        "boolean": "`True` or `False`",
        "integer": "a whole number",
        "number": "a number",
    }
    bounds = []
    for key, words in {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }.items():
        if key in schema:
            bounds.append(f"{words} {schema[key]:,}")
    return " ".join([nouns[schema["type"]], " and ".join(bounds)]).strip()
