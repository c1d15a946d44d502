"""The settings of a run, each with its type, bounds and reason; the presets; choosing one."""

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

PRESETS = ("demo", "small", "quick", "full", "paper")
NEED_ACCELERATOR = ("quick", "full", "paper")
OPT = "facebook/opt-350m"
HH = "Anthropic/hh-rlhf"
JUDGE = "OpenAssistant/reward-model-deberta-v3-large-v2"

Seed = Annotated[int, Field(ge=0, lt=2**32)]
S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """What all settings share: they do not change, and only those that are declared are known.

    `PRESET_VALUES` holds what a preset sets otherwise than the defaults, which are those of `full`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    PRESET_VALUES: ClassVar[dict[str, dict[str, Any]]]

    preset: str = Field(description="its name")


class Training(Settings):
    """The settings of main.ipynb."""

    base_model: str = Field(OPT, description="the study's model")
    dataset: str = Field(HH, description="as in the study")
    subsets: Literal["base", "all"] = Field(
        "all", description="base: the two that are measured; all: as in the study"
    )
    max_pairs: int | None = Field(
        None, ge=2, description="pairs, the held-out ones among them; None takes all"
    )
    validation_pairs: int = Field(
        2000, ge=1, description="held out, at most a tenth; n of them leave an error of 50/sqrt(n)"
    )
    max_length: int = Field(512, ge=16, description="tokens of prompt and reply, as in the study")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="OPT's own is 0.1; with it DPO's policy and reference differ"
    )
    sft_method: Literal["lora", "full"] = Field(
        "lora", description="full: all weights are trained, with a loss on every token"
    )
    sft_epochs: int = Field(2, ge=1, description="as in the study, where there is time")
    sft_learning_rate: float = Field(
        2e-4, gt=0, description="LoRA takes more than full fine-tuning; see docs/real-model.md"
    )
    dpo_epochs: int = Field(1, ge=1, description="as in the study")
    dpo_learning_rate: float = Field(
        5e-5, gt=0, description="TRL's example with LoRA takes 5e-6; see docs/real-model.md"
    )
    beta: float = Field(0.1, gt=0, description="as in the study and in arXiv 2305.18290")
    batch_size: int = Field(16, ge=1, description="pairs in an optimizer step")
    lora_layers: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="all linear layers of the blocks; the study names two"
    )
    lora_r: int = Field(16, ge=1, description="rank")
    lora_alpha: int = Field(32, ge=1, description="twice the rank, as is usual")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="acts in SFT alone, since TRL switches it off in DPO"
    )
    precision: Literal["auto", "fp32"] = Field(
        "auto", description="auto: bf16 where the device is fast in it, fp16 on older GPUs"
    )
    checkpoint_share: float = Field(
        0.1, gt=0, le=1, description="of a training between two checkpoints, lost at most"
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="a tracker, where it is installed"
    )
    max_new_tokens: int = Field(80, ge=1, description="of the answers shown between trainings")
    seed: Seed = Field(0, description="any will do")

    PRESET_VALUES = {
        "demo": {
            "base_model": "demo/hub/opt",
            "dataset": "demo/hub/hh-rlhf",
            "subsets": "base",
            "max_pairs": 2000,
            "validation_pairs": 200,
            "sft_epochs": 1,
            "sft_learning_rate": 2e-3,
            "dpo_learning_rate": 5e-4,
            "beta": 0.3,  # so few parameters are moved far by every step
            "precision": "fp32",  # a tiny model gains nothing by less
            "max_new_tokens": 48,
        },
        "small": {  # see docs/real-model.md
            "base_model": "facebook/opt-125m",
            "subsets": "base",
            "max_pairs": 800,
            "validation_pairs": 80,
            "sft_epochs": 1,
            "sft_learning_rate": 1e-3,
            "dpo_learning_rate": 2e-4,
        },
        "quick": {
            "subsets": "base",
            "max_pairs": 20_000,
            "validation_pairs": 500,
            "sft_epochs": 1,
        },
        "full": {},
        "paper": {
            "dropout": 0.1,
            "sft_method": "full",
            "sft_learning_rate": 2e-5,
            "dpo_learning_rate": 2e-5,
            "batch_size": 8,
            "lora_layers": ("q_proj", "v_proj"),
            "lora_r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.05,
            "max_new_tokens": 50,
        },
    }

    @field_validator("report_to")
    @classmethod
    def _is_installed(cls, tracker: str) -> str:
        """Refuse a tracker that is not installed, before anything is trained."""
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise ValueError(f"it is not installed: pip install {tracker}")
        return tracker


class Evaluation(Settings):
    """The settings of eval.ipynb."""

    dataset: str = Field(HH, description="as in the study")
    reward_model: str = Field(JUDGE, description="the study's judge")
    harmless_from: float = Field(-3.0, description="as in the study")
    helpful_above: float = Field(-2.0, description="as in the study")
    protocol: Literal["default", "paper"] = Field(
        "default", description="paper: asked and stopped as the study did, faults included"
    )
    n_prompts: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        50, description="of each kind, as in the study; all: as many as there are"
    )
    max_new_tokens: int = Field(
        128, ge=1, description="room for a whole reply; protocol paper takes 50"
    )
    batch_size: int = Field(32, ge=1, description="prompts answered at once")
    judge_length: int = Field(
        512, ge=16, description="tokens of question and answer that the judge was trained for"
    )
    judge_tokens: int = Field(
        16384, ge=512, description="tokens judged at once, padding counted in; a CPU likes few"
    )
    draws: int = Field(10_000, ge=100, description="of the bootstrap")
    seed: Seed = Field(0, description="any will do; protocol paper draws with the study's 100")

    PRESET_VALUES = {
        "demo": {
            "dataset": "demo/hub/hh-rlhf",
            "reward_model": "demo/hub/reward-model",
            "max_new_tokens": 48,
            "batch_size": 16,
            "judge_tokens": 512,
        },
        "small": {"batch_size": 16, "judge_tokens": 512},
        "quick": {},
        "full": {},
        "paper": {"protocol": "paper", "max_new_tokens": 50},
    }


def training(preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any) -> Training:
    """Choose the settings of a training.

    Args:
        preset: a preset's name, or auto: demo without an accelerator, else quick.
        changes: settings by their names, in place of the preset's.
        parameters: the notebook's parameters (UPPER_CASE); None takes the preset's value.

    Returns:
        The settings.

    Raises:
        ValueError: a name is unknown or a value is not allowed; both are named.
        RuntimeError: the preset trains on an accelerator and none is visible.
    """
    preset = resolve(preset)
    if preset in NEED_ACCELERATOR and not _accelerator_is_visible():
        raise RuntimeError(
            f"PRESET = {preset!r} needs a CUDA accelerator and none is visible. In Colab choose "
            "Runtime > Change runtime type > GPU; without one take demo or small."
        )
    return choose(Training, preset, changes, **parameters)


def evaluation(
    preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any
) -> Evaluation:
    """Choose the settings of an evaluation; as `training`, but no preset needs an accelerator."""
    return choose(Evaluation, resolve(preset), changes, **parameters)


def resolve(preset: str) -> str:
    """Settle which preset `auto` takes, and say so.

    Raises:
        ValueError: there is no preset of this name.
    """
    if preset == "auto":
        visible = _accelerator_is_visible()
        preset = "quick" if visible else "demo"
        article = "an" if visible else "no"
        print(f"PRESET = 'auto' takes {preset}: torch sees {article} accelerator.")
        if not visible and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
            print(
                "This machine has an NVIDIA device that torch cannot use: its driver may be too "
                "old, or this torch made for CPUs alone (see https://pytorch.org)."
            )
    if preset not in PRESETS:
        raise ValueError(f"PRESET = {preset!r} is unknown. Choose auto, {', '.join(PRESETS)}.")
    return preset


def _accelerator_is_visible() -> bool:
    """Tell whether torch can use a GPU; torch is loaded only where that is asked."""
    import torch

    return torch.cuda.is_available()


def choose(
    kind: type[S], preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any
) -> S:
    """Fill a preset's settings with changes.

    Args:
        kind: Training or Evaluation.
        preset: a preset's name.
        changes: settings by their names, in place of the preset's.
        parameters: the notebook's parameters (UPPER_CASE); None takes the preset's value.

    Returns:
        The settings.

    Raises:
        ValueError: a name is unknown, given twice, or a value is not allowed.
    """
    if not isinstance(changes or {}, Mapping):
        raise ValueError(f"SETTINGS = {changes!r}: write a table, such as {{'beta': 0.2}}.")
    changes = dict(changes or {})
    known = [name for name in kind.model_fields if name != "preset"]
    unknown = sorted(str(name) for name in changes if name not in known)
    if unknown:
        raise ValueError(
            f"SETTINGS: {', '.join(unknown)} is no setting here. There are {', '.join(known)}."
        )
    for parameter, value in parameters.items():
        if value is None:
            continue
        name = parameter.lower()
        value = str(value) if isinstance(value, Path) else value
        if name in changes and changes[name] != value:
            raise ValueError(
                f"{parameter} = {value!r}, and in SETTINGS it is {changes[name]!r}: give it once, "
                f"as the parameter {parameter}."
            )
        changes[name] = value
    for name, value in changes.items():
        if isinstance(value, list):
            changes[name] = tuple(value)
    values = {"preset": preset, **_preset_values(kind, preset, changes), **changes}
    try:
        return kind(**values)
    except ValidationError as error:
        raise ValueError(_explain(error, parameters)) from None


def _preset_values(kind: type[Settings], preset: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give a preset's own values; a protocol that is asked for brings its limit of tokens along."""
    values = kind.PRESET_VALUES[preset]
    protocol = changes.get("protocol")
    if protocol == "paper":
        return values | kind.PRESET_VALUES["paper"]
    if protocol == "default" and preset == "paper":
        return {}
    return values


def _explain(error: ValidationError, parameters: Mapping[str, Any]) -> str:
    """Word the first value that is not allowed: its name, the value, and what would be."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    reasons = [item["msg"] for item in error.errors() if item["loc"][0] == name]
    way_out = "None takes" if name.upper() in parameters else "Leave it out to take"
    return (
        f"{name.upper()} = {first['input']!r}: {' or: '.join(reasons)}. {way_out} the preset's "
        "value."
    )
