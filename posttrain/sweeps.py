"""Read the values of a setting of the training that `make sweep` varies, and name their runs."""

import ast
import re
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from posttrain.parameters import Parameters
from posttrain.settings import Evaluation, Training

# Settings that decide what is evaluated, too, so that not the training alone would vary.
SHARED = ("base_model", "dataset", "format")
LAYERS = "lora_layers"  # whose value is "all-linear" or a list of names


def read_values(parameters: Parameters) -> list[Any]:
    """Read VALUES as values of the setting that SETTING names.

    Args:
        parameters: the parameters of the command line. In VALUES, blanks stand between the values,
            and commas between the items of a list.

    Returns:
        Two or more different values, in the order in which they are given.

    Raises:
        ValueError: if the setting cannot be varied or has a value elsewhere, or if the values are
            too few, equal or not allowed.
    """
    setting = parameters.SETTING
    varied = _list_settings()
    if not setting:
        raise ValueError(
            "SETTING: name a setting of the training and its values, such as SETTING=beta "
            f'VALUES="0.03 0.1 0.3". The settings that can be varied are {", ".join(varied)}.'
        )
    if setting not in varied:
        raise ValueError(_explain_refusal(setting, varied))
    _require_once(parameters, setting)
    texts = (parameters.VALUES or "").split()
    if len(texts) < 2:
        raise ValueError(
            f"VALUES: give two or more values of {setting} with blanks between them, such as "
            'VALUES="0.03 0.1 0.3" for beta.'
        )
    values = [_read_value(setting, text) for text in texts]
    for i, value in enumerate(values):
        if any(_is_same(setting, value, other) for other in values[:i]):
            raise ValueError(
                f"VALUES: {_write_value(value)} is given twice. Give every value of {setting} once."
            )
    return values


def name_run(run: str, setting: str, value: Any) -> str:
    """Name the run of one value, such as "quick-beta0.1"."""
    return f"{run}-{setting}{_write_value(value)}"


def name_comparison(run: str, setting: str) -> str:
    """Name the folder in which the runs are compared: "quick-seeds", or else "quick-beta"."""
    return f"{run}-seeds" if setting == "seed" else f"{run}-{setting}"


def _list_settings() -> list[str]:
    """List the settings of the training that can be varied."""
    from posttrain.compare import INDIFFERENT  # with it pandas and scipy, which take long to import

    left_out = (*INDIFFERENT["training"], *SHARED)
    return [name for name in Training.model_fields if name not in left_out]


def _explain_refusal(setting: str, varied: list[str]) -> str:
    """Explain why a setting cannot be varied, and name those that can."""
    if setting == "preset":
        reason = (
            "SETTING: a preset is a choice of many settings, and here one setting varies. Train a "
            "run of each preset with make run."
        )
    elif setting in SHARED:
        reason = (
            f"SETTING: with another {setting} the prompts or Base itself would change as well, and "
            "not the training alone. Train such runs with make run, and read their final tables "
            "next to each other."
        )
    elif setting in Training.model_fields:
        reason = f"SETTING: no result depends on the training's {setting}."
        if setting in Evaluation.model_fields:
            reason += _point_to_evaluation(setting)
    elif setting == "second_judge":
        reason = (
            "SETTING: a second judge is no setting of the training. To add one, run eval.ipynb "
            "again with SECOND_JUDGE, which scores the answers that are there."
        )
    elif setting == "judge_tokens":
        reason = "SETTING: no result depends on the evaluation's judge_tokens."
    elif setting in Evaluation.model_fields:
        reason = f"SETTING: {setting} is a setting of the evaluation, and this command varies the "
        reason += "training." + _point_to_evaluation(setting)
    else:
        reason = f"SETTING: there is no setting {setting}."
    return f"{reason} The settings that can be varied are {', '.join(varied)}."


def _point_to_evaluation(setting: str) -> str:
    """Say how a setting of the evaluation is changed without training again."""
    if setting in ("harmless_from", "helpful_above", "draws"):
        return f" To change {setting}, run eval.ipynb again, which measures the same rewards anew."
    if setting in ("reward_model", "judge_length"):
        return (
            f" To change {setting}, use make reask, in whose new run the same models give the same "
            "answers and all of them are judged anew."
        )
    return (
        f" To change the evaluation's {setting}, let trained models answer once more with "
        "make reask, which trains nothing."
    )


def _require_once(parameters: Parameters, setting: str) -> None:
    """Refuse a setting that has a value beside those in VALUES."""
    if setting in parameters.SETTINGS:
        raise ValueError(f"SETTINGS: {setting} has its values in VALUES. Leave it out of SETTINGS.")
    parameter = setting.upper()
    if parameters.given().get(parameter) is not None:
        raise ValueError(f"{parameter}: {setting} has its values in VALUES. Leave {parameter} out.")


def _read_value(setting: str, text: str) -> Any:
    """Read a value as the setting's type; whether it fits the other settings is checked later."""
    if setting == LAYERS:
        value = _read_layers(text)
    elif setting == "loss_type":
        value = tuple(text.split(",")) if "," in text else text
    else:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
            value = text
    field = Training.model_fields[setting]
    config = ConfigDict(strict=True, allow_inf_nan=False)  # as those of `presets.Settings`
    reader = TypeAdapter(Annotated[field.annotation, field], config=config)
    try:
        value = reader.validate_python(value)
    except ValidationError as error:
        reasons = " or: ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        raise ValueError(f"VALUES: {text!r} is no value of {setting}. {reasons}.") from None
    return list(value) if isinstance(value, tuple) else value


def _read_layers(text: str) -> str | tuple[str, ...]:
    """Read the names of layers with commas between them, of which there may be one."""
    if text == "all-linear":
        return text
    names = text.split(",")
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"VALUES: {text!r} has {name!r} for the name of a layer. Write all-linear, or "
                "names with commas and no blanks between them, such as q_proj,v_proj."
            )
    return tuple(names)


def _is_same(setting: str, value: Any, other: Any) -> bool:
    """Tell whether two values train the same; the order of layers makes no difference."""
    if setting == LAYERS and isinstance(value, list) and isinstance(other, list):
        return set(value) == set(other)
    return _write_value(value) == _write_value(other)


def _write_value(value: Any) -> str:
    """Write a value as a part of a run's name: 0.1, 2e-05, transcript, or q_proj,v_proj."""
    if isinstance(value, list):
        return ",".join(_write_value(item) for item in value)
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
