"""The settings of main.ipynb, and how the settings of both notebooks are chosen.

A notebook needs this module only. It builds on `evaluation_settings`, which has those of
eval.ipynb, and on `presets`, which has what both share.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from posttrain import trackers
from posttrain.accelerators import (
    is_accelerator_visible,
    is_apple_gpu_visible,
    require_kernels,
)
from posttrain.evaluation_settings import Evaluation
from posttrain.losses import LossName, require_fitting_loss
from posttrain.presets import HH, PRESETS, Seed, Settings, Source, is_hh

__all__ = [
    "PRESETS",
    "Evaluation",
    "Settings",
    "Training",
    "choose",
    "evaluation",
    "resolve",
    "training",
]

NEED_ACCELERATOR = ("quick", "full", "paper")
OPT = "facebook/opt-350m"

S = TypeVar("S", bound="Settings")


class Training(Settings):
    """The settings of main.ipynb."""

    base_model: Source = Field(OPT, description="a hub name or a folder; the study uses OPT-350M")
    dataset: Source = Field(HH, description="a hub name or a folder; the study uses HH-RLHF")
    format: Literal["transcript", "chat"] = Field(
        "transcript",
        description='how conversations are written: with HH-RLHF\'s markers, as in the study, or '
        'by the base\'s own chat template ("chat")',
    )
    subsets: Literal["base", "all"] = Field(
        "all", description='"all": four subsets, as in the study; "base": the two that are measured'
    )
    max_pairs: int | None = Field(
        None, ge=2, description="number of pairs, held-out pairs included; None takes all of them"
    )
    validation_pairs: int = Field(
        2000, ge=1,
        description="pairs held out to watch the training, at most a tenth of all; the standard "
        "error of an accuracy over n pairs is at most 50/sqrt(n) points",
    )  # fmt: skip
    max_length: int = Field(512, ge=16, description="tokens of prompt and reply; the study has 512")
    dropout: float = Field(
        0.0, ge=0, lt=1,
        description="dropout rate of the base; OPT's own is 0.1, but with dropout DPO's policy and "
        "reference differ before any training",
    )  # fmt: skip
    sft_method: Literal["lora", "full"] = Field(
        "lora", description='"lora" trains an adapter, "full" all weights, as the study does'
    )
    sft_loss: Literal["reply", "transcript"] = Field(
        "reply", description='tokens with a loss: "transcript" takes all of them, as the study does'
    )
    sft_epochs: int = Field(2, ge=1, description="passes of SFT over its data; the study makes two")
    sft_learning_rate: float = Field(
        2e-4, gt=0, description="LoRA needs a higher one than full fine-tuning (docs/real-model.md)"
    )
    dpo_epochs: int = Field(1, ge=1, description="passes of DPO over its data; the study makes one")
    dpo_learning_rate: float = Field(
        5e-5, gt=0, description="TRL's example with LoRA uses 5e-6; see docs/real-model.md"
    )
    beta: float = Field(0.1, gt=0, description="pull towards DPO's reference; the study uses 0.1")
    loss_type: LossName | Annotated[tuple[LossName, ...], Field(min_length=1)] = Field(
        "sigmoid", description="DPO's loss by TRL's name, or a list of losses that are added up"
    )
    loss_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="a weight for each loss of the list; None weighs each by 1"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1,
        description="share of the pairs whose labels are taken to be wrong; of DPO's losses only "
        "robust, exo_pair, aot and aot_unpaired read it",
    )  # fmt: skip
    batch_size: int = Field(16, ge=1, description="pairs in one optimizer step")
    lora_layers: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="layers that get an adapter; the study names q_proj and v_proj"
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapters")
    lora_alpha: int = Field(32, ge=1, description="scale of the adapters, usually twice the rank")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1,
        description="dropout rate in the adapters; only SFT uses it, since TRL switches dropout "
        "off in DPO",
    )  # fmt: skip
    precision: Literal["auto", "fp32"] = Field(
        "auto",
        description='"auto" computes in bf16 where the device is fast in it, in fp16 on older GPUs '
        "and in fp32 elsewhere",
    )
    checkpoint_share: float = Field(
        0.1, gt=0, le=1, description="share of all steps between two checkpoints"
    )
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="tracker that records the training curves; it must be installed"
    )
    max_new_tokens: int = Field(80, ge=1, description="limit of the answers shown here, in tokens")
    seed: Seed = Field(0, description="seed of the chosen pairs, the adapters and the data's order")

    PRESET_VALUES = {
        "demo": {
            "base_model": "demo/hub/opt",
            "dataset": "demo/hub/hh-rlhf",
            "subsets": "base",
            "max_pairs": 2000,
            "validation_pairs": 96,  # which 2, 4 and 8 processes can share
            "sft_epochs": 1,
            "sft_learning_rate": 2e-3,
            "dpo_learning_rate": 2.5e-4,
            "beta": 0.3,  # so few parameters are moved far by every step
            "precision": "fp32",  # a lower precision saves nothing in a tiny model
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
            "validation_pairs": 496,
            "sft_epochs": 1,
        },
        "full": {},
        "paper": {
            "dropout": 0.1,
            "sft_method": "full",
            "sft_loss": "transcript",
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
    def _can_be_used(cls, tracker: str) -> str:
        """Refuse a tracker that cannot be used before any data is read."""
        if tracker != "none":
            trackers.require_tracker(tracker)
        return tracker

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        """Refuse weights or a label smoothing that do not fit the losses."""
        require_fitting_loss(self.loss_type, self.loss_weights, self.label_smoothing)
        return self


def training(preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any) -> Training:
    """Choose the settings of a training.

    Args:
        preset: the name of a preset, or "auto", which takes demo without an accelerator and quick
            with one.
        changes: {setting: value} of those that replace the preset's.
        parameters: the notebook's parameters (UPPER_CASE); None takes the preset's value.

    Returns:
        The settings.

    Raises:
        ValueError: if a name is unknown or a value is not allowed. The message says which.
        RuntimeError: if the preset needs an accelerator and none is visible, or if torch has no
            kernels for the one that is.
    """
    preset = resolve(preset)
    if is_accelerator_visible():
        require_kernels()
    elif preset in NEED_ACCELERATOR:
        raise RuntimeError(
            f"PRESET = {preset!r} needs a CUDA accelerator and none is visible. In Colab choose "
            "Runtime > Change runtime type > GPU. To run without one, choose PRESET = 'demo' or "
            "'small'."
        )
    return choose(Training, preset, changes, **parameters)


def evaluation(
    preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any
) -> Evaluation:
    """Choose the settings of an evaluation, as `training` does; no preset needs an accelerator."""
    return choose(Evaluation, resolve(preset), changes, **parameters)


def resolve(preset: str) -> str:
    """Replace "auto" by the preset that suits this machine, and print which one that is.

    Raises:
        ValueError: if there is no preset of this name.
    """
    if preset == "auto":
        visible = is_accelerator_visible()
        preset = "quick" if visible else "demo"
        reason = "torch sees an accelerator" if visible else "torch sees no accelerator"
        if not visible and is_apple_gpu_visible():
            reason = "the GPU of a Mac is not used yet, so everything is computed on its CPU"
        print(f"PRESET = 'auto' takes {preset}: {reason}.")
        if not visible and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
            print(
                "This machine has an NVIDIA device that torch cannot use. Its driver may be too "
                "old, or the installed torch may be built for CPUs only (see https://pytorch.org)."
            )
    if preset not in PRESETS:
        names = ", ".join(PRESETS[:-1])
        raise ValueError(f"PRESET = {preset!r} is unknown. Choose auto, {names} or {PRESETS[-1]}.")
    return preset


def choose(
    kind: type[S], preset: str, changes: Mapping[str, Any] | None = None, **parameters: Any
) -> S:
    """Take a preset's settings and apply changes to them.

    Args:
        kind: Training or Evaluation.
        preset: the name of a preset, other than "auto".
        changes: {setting: value} of those that replace the preset's.
        parameters: the notebook's parameters (UPPER_CASE); None takes the preset's value.

    Returns:
        The settings.

    Raises:
        ValueError: if a name is unknown or given two values, or if a value is not allowed.
    """
    if not isinstance(changes, Mapping | None):
        raise ValueError(
            f"SETTINGS = {changes!r} is not a dictionary. Write it as {{'beta': 0.2}}, or for "
            "papermill as -y 'SETTINGS: {beta: 0.2}'."
        )
    changes = dict(changes or {})
    known = [name for name in kind.model_fields if name != "preset"]
    unknown = sorted(str(name) for name in changes if name not in known)
    if unknown:
        raise ValueError(
            f"SETTINGS: this notebook has no setting {', '.join(unknown)}. Its settings are "
            f"{', '.join(known)}."
        )
    for parameter, value in parameters.items():
        if value is None:
            continue
        name = parameter.lower()
        value = str(value) if isinstance(value, Path) else value
        if name in changes and changes[name] != value:
            raise ValueError(
                f"{parameter} = {value!r}, but SETTINGS has {name} = {changes[name]!r}. Give it "
                f"once, as the parameter {parameter}."
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
    """Look up a preset's values; a protocol that is asked for brings its own ones.

    The study's keywords are for HH-RLHF: of another dataset a preset takes all harmful prompts.
    """
    values = kind.PRESET_VALUES[preset]
    protocol = changes.get("protocol")
    if protocol == "paper":
        return values | kind.PRESET_VALUES["paper"]
    if protocol == "default" and preset == "paper":
        return {}
    dataset = changes.get("dataset", values.get("dataset", HH))
    if "protocol" not in values and not is_hh(str(dataset)):
        return {name: value for name, value in values.items() if name != "harmful_prompts"}
    return values


def _explain(error: ValidationError, parameters: Mapping[str, Any]) -> str:
    """Explain the first value that is not allowed: its name, the value, and what is allowed."""
    first = error.errors()[0]
    if not first["loc"]:  # settings that do not fit together explain themselves
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    reasons: dict[str, None] = {}
    for item in error.errors():
        if item["loc"][0] == name:
            reasons[item["msg"].removeprefix("Value error, ")] = None
    way_out = "None takes" if name.upper() in parameters else "Leave it out to take"
    return (
        f"{name.upper()} = {first['input']!r}: {' or: '.join(reasons)}. {way_out} the preset's "
        "value."
    )
