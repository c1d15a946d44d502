"""Describe values as JSON, and collect the code that a notebook defines."""

import dis
import functools
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, Trainer

from posttrain.files import fingerprint
from posttrain.record import PLAIN, functions_of, source_of

LONGEST_VALUE = 2000  # characters; of a longer value only the sha256 is recorded


def fingerprint_weights(weights: Mapping[str, torch.Tensor]) -> str:
    """Compute the sha256 of tensors and their names, on whichever device they are."""
    sums = {}
    for name in sorted(weights):
        numbers = weights[name].detach().to("cpu", torch.float32).contiguous().numpy()
        sums[name] = hashlib.sha256(numbers.tobytes()).hexdigest()
    return fingerprint(sums)


def describe_value(value: Any, notebook: "Notebook") -> Any:
    """Describe a value as JSON, in a way that is the same in every process.

    Args:
        value: an argument of a trainer, or a part of one.
        notebook: collects the classes and functions that are defined in a notebook.

    Returns:
        A plain value itself, the name of a class or function, or the attributes of an object.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return describe_value(value.value, notebook)
    if isinstance(value, Mapping):
        return {str(name): describe_value(item, notebook) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe_value(item, notebook) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    if inspect.isclass(value) or inspect.isroutine(value):
        notebook.collect(value)
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    parts = {"class": type(value)} | _list_parts(value)
    return {name: describe_value(part, notebook) for name, part in parts.items()}


def _list_parts(value: Any) -> dict[str, Any]:
    """List the parts that describe an object: its plain attributes, or a model's weights."""
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "weights": fingerprint_weights({"tensor": value})}
    if isinstance(value, torch.nn.Module):
        return {"weights": fingerprint_weights(value.state_dict())}
    if isinstance(value, torch.optim.Optimizer):
        groups = [group | {"params": len(group["params"])} for group in value.param_groups]
        return {"defaults": value.defaults, "groups": groups}
    if isinstance(value, PreTrainedTokenizerBase):
        return {"special_tokens": value.special_tokens_map}
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, Trainer):
        return {}
    parts = {}
    kept = (*PLAIN, torch.Tensor, np.ndarray, SimpleNamespace)
    for name, item in sorted(getattr(value, "__dict__", {}).items()):
        of_notebook = type(item).__module__ == "__main__"
        if isinstance(item, kept) or of_notebook or inspect.isroutine(item):
            parts[name] = item
    return parts


# ---- what a notebook defines


class Notebook:
    """The code of a trainer that is defined in a notebook, and the variables that it reads.

    Attributes:
        definitions: {name: source of the code, or value of the variable}.
    """

    def __init__(self):
        self.definitions: dict[str, Any] = {}
        self._seen: list[Any] = []
        self._names: Counter[str] = Counter()

    def collect(self, item: Any) -> None:
        """Add a class or function if it is defined in a notebook, with everything that it uses."""
        item = getattr(item, "__func__", item)
        if item in self._seen:
            return
        self._seen.append(item)
        if inspect.isclass(item):
            for base in item.__bases__:
                self.collect(base)
        if hasattr(item, "__wrapped__"):
            self.collect(item.__wrapped__)
        if inspect.isfunction(item):
            item = _without_disguise(item)
        is_code = inspect.isclass(item) or inspect.isfunction(item)
        if not is_code or item.__module__ != "__main__":
            return
        name = item.__qualname__
        self._names[name] += 1
        if self._names[name] > 1:  # for example lambdas, which all have the same name
            name = f"{name} ({self._names[name]})"
        self.definitions[name] = source_of(item)
        for function in functions_of(item):
            if hasattr(function, "__wrapped__"):
                self.collect(function)
            else:
                self._collect_used(function, name)

    def _collect_used(self, function: Any, name: str) -> None:
        """Add the values that a function reads from the notebook, its closure and its defaults."""
        for variable, attribute in _names_read(function.__code__):
            if variable in function.__globals__:
                self._enter(variable, function.__globals__[variable], attribute)
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                self._enter(f"{name}.{variable}", cell.cell_contents)
            except ValueError:  # the cell is still empty
                continue
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if defaults:
            self._enter(f"{function.__qualname__}, defaults", defaults)

    def _enter(self, name: str, value: Any, attribute: str | None = None) -> None:
        """Add a value that a function reads, or only the attribute of it that is read."""
        if attribute is not None and isinstance(getattr(value, attribute, value), PLAIN):
            name, value = f"{name}.{attribute}", getattr(value, attribute, value)
        if isinstance(value, ModuleType):
            return
        if inspect.isclass(value) or inspect.isroutine(value):
            self.collect(value)
            return
        described = describe_value(value, self)
        if len(json.dumps(described)) > LONGEST_VALUE:
            described = fingerprint(described)
        self.definitions[name] = described


def _without_disguise(function: FunctionType) -> FunctionType:
    """Copy a function so that it has the name and module of its own code.

    The function that a decorator makes may carry the name of the decorated one.
    """
    copied = FunctionType(
        function.__code__,
        function.__globals__,
        argdefs=function.__defaults__,
        closure=function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _names_read(code: CodeType) -> Iterator[tuple[str, str | None]]:
    """Yield each global name that code reads, with the attribute that it reads from it, if any."""
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            following = instructions[place + 1]
            asks = following.opname in ("LOAD_ATTR", "LOAD_METHOD")
            yield instruction.argval, following.argval if asks else None
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_read(constant)
