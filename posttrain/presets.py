"""The settings of a run: each with its type, its bounds and its reason; the presets; choosing one; their tables."""

import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pandas as pd
import torch
from pandas.io.formats.style import Styler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PRESETS = ("demo", "small", "quick", "full", "paper")
OPT, HH = "facebook/opt-350m", "Anthropic/hh-rlhf"
JUDGE = "OpenAssistant/reward-model-deberta-v3-large-v2"
SEED = {"ge": 0, "lt": 2**32}
S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """What all settings share: they do not change, and only those of a preset's table are known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    INDIFFERENT: ClassVar[set[str]]  # no result depends on these, or it does by what they name, not by the name

    preset: str = Field(description="its name")

    def decisive(self) -> dict[str, Any]:
        """Return the settings that results depend on, for what they are made from."""
        return self.model_dump(exclude=self.INDIFFERENT | {"preset"})


class Training(Settings):
    """The settings of main.ipynb; the defaults are those of `full`."""

    base_model: str = Field(OPT, description="the study's model")
    dataset: str = Field(HH, description="as in the study")
    subsets: Literal["base", "all"] = Field("all", description="base: the two measured; all: as in the study")
    max_pairs: int | None = Field(None, ge=2, description="training and held-out together; None: all")
    validation_pairs: int = Field(2000, ge=1, description="at most a tenth of all; n leave an error of 50 / sqrt(n)")
    max_length: int = Field(512, ge=16, description="tokens of prompt and reply, as in the study")
    dropout: float = Field(0.0, ge=0, lt=1, description="0.1 is OPT's own; under it DPO's policy and reference differ")
    sft_method: Literal["lora", "full"] = Field("lora", description="full: all weights, loss on every token")
    sft_epochs: int = Field(2, ge=1, description="as in the study, where there is time")
    sft_learning_rate: float = Field(2e-4, gt=0, description="more than for all weights; see docs/real-model.md")
    dpo_epochs: int = Field(1, ge=1, description="as in the study")
    dpo_learning_rate: float = Field(5e-5, gt=0, description="TRL's example with LoRA: 5e-6; see docs/real-model.md")
    beta: float = Field(0.1, gt=0, description="as in the study and in arXiv 2305.18290")
    batch_size: int = Field(16, ge=1, description="pairs in an optimiser step")
    lora_layers: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="all linear layers of the blocks, whatever they are called; the study's two by name")
    lora_r: int = Field(16, ge=1, description="rank")
    lora_alpha: int = Field(32, ge=1, description="twice the rank, as is usual")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="acts in SFT alone: TRL switches it off in DPO")
    precision: Literal["auto", "fp32"] = Field("auto", description="auto: bf16 where the device is fast in it, fp16 on "
                                                                   "older GPUs; a tiny model gains nothing by it")
    save_minutes: float = Field(10, ge=0, description="between checkpoints: what an interruption costs at most")
    max_new_tokens: int = Field(80, ge=1, description="of the answers shown at the end")
    seed: int = Field(0, **SEED, description="any will do")

    INDIFFERENT = {"base_model", "dataset", "save_minutes", "max_new_tokens"}
    PRESETS = {
        "demo": {"base_model": "demo/hub/opt", "dataset": "demo/hub/hh-rlhf", "subsets": "base", "max_pairs": 2000,
                 "validation_pairs": 200, "sft_epochs": 1, "sft_learning_rate": 2e-3, "dpo_learning_rate": 5e-4,
                 "precision": "fp32", "save_minutes": 0.01, "max_new_tokens": 48},
        "small": {"base_model": "facebook/opt-125m", "subsets": "base", "max_pairs": 800, "validation_pairs": 80,
                  "sft_epochs": 1, "sft_learning_rate": 1e-3, "dpo_learning_rate": 2e-4},  # see docs/real-model.md
        "quick": {"subsets": "base", "max_pairs": 20_000, "validation_pairs": 500, "sft_epochs": 1},
        "full": {},
        "paper": {"dropout": 0.1, "sft_method": "full", "sft_learning_rate": 2e-5, "dpo_learning_rate": 2e-5,
                  "batch_size": 8, "lora_layers": ("q_proj", "v_proj"), "lora_r": 8, "lora_alpha": 16,
                  "lora_dropout": 0.05, "max_new_tokens": 50}}


class Evaluation(Settings):
    """The settings of eval.ipynb; the defaults are those of `full`."""

    dataset: str = Field(HH, description="as in the study")
    reward_model: str = Field(JUDGE, description="the study's judge")
    harmless_from: float = Field(-3.0, description="as in the study")
    helpful_above: float = Field(-2.0, description="as in the study")
    protocol: Literal["default", "paper"] = Field("default", description="paper: asked and stopped as the study did")
    n_prompts: int | None = Field(None, ge=1, description="of each kind, 50 as in the study; None: all there are")
    max_new_tokens: int = Field(128, ge=1, description="room for a whole reply; protocol paper takes 50")
    batch_size: int = Field(32, ge=1, description="prompts answered at once")
    judge_length: int = Field(512, ge=16, description="tokens of question and answer that the judge was trained for")
    judge_tokens: int = Field(16384, ge=512, description="tokens judged at once, padding counted in; a CPU likes few")
    draws: int = Field(10_000, ge=100, description="of the bootstrap")
    seed: int = Field(0, **SEED, description="any will do; protocol paper draws prompts with the study's 100")

    INDIFFERENT = {"dataset", "reward_model", "harmless_from", "helpful_above", "batch_size", "judge_tokens", "draws"}
    PRESETS = {
        "demo": {"dataset": "demo/hub/hh-rlhf", "reward_model": "demo/hub/reward-model", "max_new_tokens": 48,
                 "batch_size": 16, "judge_tokens": 512},
        "small": {"batch_size": 16, "judge_tokens": 512},
        "quick": {}, "full": {}, "paper": {"protocol": "paper", "max_new_tokens": 50}}


def resolve(preset: str, trains: bool = True) -> str:
    """Return the name of the preset to take: `auto` is demo without an accelerator, else quick, and says so.

    Raises ValueError for an unknown name, RuntimeError for one that trains on an accelerator where none is visible.
    """
    cuda = torch.cuda.is_available()
    if preset == "auto":
        preset = "quick" if cuda else "demo"
        print(f"PRESET = 'auto' takes {preset}: there is {'an' if cuda else 'no'} accelerator that torch can use.")
        if not cuda and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
            print(f"This machine has an NVIDIA device, but torch {torch.__version__} cannot use it: its driver may be "
                  "too old, or this torch made for CPUs alone (see https://pytorch.org).")
    if preset not in PRESETS:
        raise ValueError(f"PRESET = {preset!r} is unknown. Choose auto, {', '.join(PRESETS)}.")
    if trains and preset in ("quick", "full", "paper") and not cuda:
        raise RuntimeError(f"PRESET = {preset!r} needs a CUDA accelerator and none is visible. In Colab choose Runtime "
                           "> Change runtime type > GPU; without one take demo or small.")
    return preset


def choose(kind: type[S], preset: str, settings: dict[str, Any] | None = None, **parameters: Any) -> S:
    """Return a preset's settings, with the given `settings` and every parameter (UPPER_CASE) that is not None.

    Raises ValueError, naming the parameter or setting, what was found and what is allowed.
    """
    if preset not in PRESETS:
        raise ValueError(f"PRESET = {preset!r} is unknown. Choose auto, {', '.join(PRESETS)}.")
    if strange := sorted(set(settings or {}) - set(kind.model_fields) | {"preset"} & set(settings or {})):
        raise ValueError(f"SETTINGS: {', '.join(strange)} is no setting here. There are "
                         f"{', '.join(name for name in kind.model_fields if name != 'preset')}.")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in (settings or {}).items()}
    asked = {parameter.lower(): str(value) if isinstance(value, Path) else value
             for parameter, value in parameters.items() if value is not None}
    if twice := [name for name in asked.keys() & given if asked[name] != given[name]]:
        name = min(twice)
        raise ValueError(f"{name.upper()} = {asked[name]!r}, and in SETTINGS it is {given[name]!r}: give it once, as "
                         f"the parameter {name.upper()}.")
    given |= asked
    own = kind.PRESETS[preset]
    if given.get("protocol") == "paper":  # a protocol brings its limit of responses with it
        own = own | kind.PRESETS["paper"]
    elif given.get("protocol") == "default" and preset == "paper":
        own = {}
    try:
        return kind(**{"preset": preset} | own | given)
    except ValidationError as error:
        wrong = error.errors()[0]
        why = " or: ".join(one["msg"] for one in error.errors() if one["loc"][0] == wrong["loc"][0])
        raise ValueError(f"{str(wrong['loc'][0]).upper()} = {wrong['input']!r}: {why}. None takes the preset's "
                         "value.") from None


def table(chosen: Settings) -> Styler:
    """Return a table of the settings that were chosen, beside those of all presets, each with its reason."""
    return _table({"this run": chosen} | {name: choose(type(chosen), name) for name in PRESETS})


def differences(kind: type[Settings], first: str, second: str) -> Styler:
    """Return a table of the settings in which two presets differ, each with its reason."""
    return _table({name: choose(kind, name) for name in (first, second)}, only_different=True)


def _table(settings: dict[str, Settings], only_different: bool = False) -> Styler:
    """Return a table: a row a setting, a column each of `settings`, and the reasons."""
    fields = type(next(iter(settings.values()))).model_fields
    rows = {name: [getattr(one, name) for one in settings.values()] + [field.description]
            for name, field in fields.items() if name != "preset"}
    if only_different:
        rows = {name: row for name, row in rows.items() if row[0] != row[1]}
    found = pd.DataFrame(rows, index=[*settings, "why"], dtype=object).T
    found = found.map(lambda value: " ".join(value) if isinstance(value, tuple) else str(value))
    return found.style.set_table_styles([{"selector": "th, td", "props": "text-align: left"}])
