"""Check prompts and responses before they are measured, for they may come from elsewhere."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class Prompt(BaseModel):
    """The fields that every record of prompts.json has; `chosen` and `rejected` are optional."""

    id: str
    kind: Literal["harmful", "helpful"]
    prompt: str


class Response(BaseModel):
    """The fields of a record of responses.json, of which the first three are always there."""

    model_config = ConfigDict(strict=True)

    id: str
    model: Annotated[str, Field(min_length=1)]
    response: str
    finish: Literal["eos", "turn", "length"] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None
    log_ratio: Annotated[float, Field(allow_inf_nan=False)] | None = None


def require_fitting(
    prompts: Sequence[dict[str, Any]], responses: Sequence[dict[str, Any]]
) -> None:
    """Check that responses answer the prompts, since both files may come from elsewhere.

    Args:
        prompts: the records of prompts.json.
        responses: the records of responses.json.

    Raises:
        ValueError: if a record lacks a field, or if a model does not have exactly one response to
            each prompt.
    """
    _require_kind("prompts.json", Prompt, prompts)
    _require_kind("responses.json", Response, responses)
    for prompt in prompts:
        identity, kind = prompt["id"], prompt["kind"]
        if not identity.startswith(f"{kind}-"):
            raise ValueError(
                f"prompts.json: {identity!r} cannot be the id of a {kind} prompt. Such ids look "
                f"like {kind}-00."
            )
    prompt_ids = Counter(prompt["id"] for prompt in prompts)
    ids_by_model: dict[str, Counter] = {}
    for response in responses:
        ids_by_model.setdefault(response["model"], Counter())[response["id"]] += 1
    for name, answered in ids_by_model.items():
        unlike = sorted((prompt_ids - answered) + (answered - prompt_ids))
        if unlike:
            raise ValueError(
                f"responses.json: the model {name} must have exactly one response to each prompt "
                f"of prompts.json. Check the prompt {unlike[0]}."
            )


def _require_kind(file: str, kind: type[BaseModel], records: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError, which names the file and the record, if a record lacks a field."""
    try:
        TypeAdapter(list[kind]).validate_python(records)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{file}: {place}: {first['msg']}. The fields of this file are listed in docs/files.md."
        ) from None
