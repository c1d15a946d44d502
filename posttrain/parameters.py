"""The parameters of the notebooks and of the commands: their types, and how they are read.

The command line gives texts, which are read as the types below. A notebook has values, which must
have these types already: papermill's `-p FRESH false`, for example, gives the text "false", which
Python takes for true.
"""

import ast
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError


def _read_table(text: Any) -> Any:
    """Read a dictionary in Python's or JSON's notation; pydantic refuses anything else later."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
            continue
    return text


def _write_number(name: Any) -> Any:
    """Write a whole number as text: papermill's `-p RUN 2024` gives one."""
    is_number = isinstance(name, int) and not isinstance(name, bool)
    return str(name) if is_number else name


def _write_path(place: Any) -> Any:
    """Write a path as text."""
    return str(place) if isinstance(place, Path) else place


Text = Annotated[str, Field(min_length=1)]
Name = Annotated[Text, BeforeValidator(_write_number)]
# A shell need not replace the ~ of RESULTS=~/results, and a notebook does not.
Place = Annotated[Text, BeforeValidator(_write_path), AfterValidator(os.path.expanduser)]


class Parameters(BaseModel):
    """The parameters of the notebooks and of the commands; None leaves the notebook's default."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    PRESET: Text = "auto"
    RUN: Name | None = None
    RESULTS: Place = "results"
    FIGURES: Place | None = None
    LABEL: bool | None = None
    FRESH: bool | None = None
    SETTINGS: Annotated[dict[str, Any], BeforeValidator(_read_table)] = {}
    DATASET: Place | None = None
    BASE_MODEL: Place | None = None
    FORMAT: Text | None = None
    MAX_PAIRS: int | None = None
    SEED: int | None = None
    REPORT_TO: Text | None = None
    REWARD_MODEL: Place | None = None
    HARMLESS_FROM: float | None = None
    HELPFUL_ABOVE: float | None = None
    SECOND_JUDGE: Place | None = None
    PROTOCOL: Text | None = None
    HARMFUL_PROMPTS: Text | None = None
    N_PROMPTS: int | Literal["all"] | None = None
    MAX_NEW_TOKENS: int | None = None
    HARMFUL: Place | None = None
    HELPFUL: Place | None = None
    OUT: Place | None = None
    MODEL: Text | None = None
    TO: Text | None = None
    PUBLIC: bool | None = None
    FORCE: bool | None = None
    FROM: Place | None = None
    RUNS: Text | None = None
    SEEDS: Text | None = None
    SETTING: Text | None = None
    VALUES: Text | None = None
    VOTES: Place | None = None
    PROCESSES: Annotated[int, Field(ge=1)] | None = None
    PROCESS_TIMEOUT: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def given(self) -> dict[str, Any]:
        """Collect {name: value} of the parameters that have a value."""
        return {name: value for name, value in self if value is not None}


class _OfNotebook(Parameters):
    """The parameters of a notebook, whose values must have their types already."""

    model_config = ConfigDict(strict=True)

    LABEL: bool = True
    FRESH: bool = False
    EVALUATION: dict[str, Any] = {}  # on the command line this is a part of the other parameters


def read_parameters(arguments: list[str]) -> Parameters:
    """Read arguments of the form NAME=VALUE, or NAME where the value is in the environment.

    The text None leaves a parameter to the notebook.

    Raises:
        ValueError: if there is no such parameter, or if the value is empty or not allowed.
    """
    texts = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        text = text if equals else os.environ.get(name, "")
        if name not in Parameters.model_fields:
            known = ", ".join(Parameters.model_fields)
            raise ValueError(f"There is no parameter {name}. The parameters are {known}.")
        if not text.strip():
            raise ValueError(
                f"{name} has no value. Write {name}=value, or leave {name} out to take the default."
            )
        if texts.get(name, text) != text:
            raise ValueError(f"{name} has two values, {texts[name]} and {text}. Give it once.")
        texts[name] = text
    texts = {name: text for name, text in texts.items() if text != "None"}
    try:
        return Parameters(**texts)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def check(**parameters: Any) -> None:
    """Refuse parameters of a notebook that are empty or of another type than they must be.

    Those that `settings.training` and `settings.evaluation` take are checked there.

    Args:
        parameters: the values by name.

    Raises:
        ValueError: if a value is not allowed. The message says what to write.
    """
    try:
        _OfNotebook(**parameters)
    except ValidationError as error:
        remedy = ""
        name = error.errors()[0]["loc"][0]
        if error.errors()[0]["type"] == "bool_type":
            remedy = (
                f" Write {name} = True or {name} = False, without quotes. For papermill write "
                f"-y '{name}: true' or -y '{name}: false'."
            )
        raise ValueError(_explain(error) + remedy) from None


def _explain(error: ValidationError) -> str:
    """Explain the first value that is not allowed: its name, the value, and the reason."""
    first = error.errors()[0]
    return f"{first['loc'][0]} = {first['input']!r}: {first['msg']}."
