"""What the settings of both notebooks share: the presets' names, and types of values."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from posttrain.transcripts import CONVERSION

PRESETS = ("demo", "small", "quick", "full", "paper")
HH = "Anthropic/hh-rlhf"

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Source = Annotated[str, Field(min_length=1)]


def is_hh(dataset: str) -> bool:
    """Tell whether a dataset is taken for HH-RLHF: by its name, or as a folder of its layout.

    A folder that `make data` has made has another origin, which its report names. A folder that is
    no longer there, although a run names it, is taken for HH-RLHF's layout.
    """
    folder = Path(os.path.expanduser(dataset))
    if folder.is_dir():
        return not (folder / CONVERSION).exists()
    is_name_on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset) is not None
    return dataset == HH or not is_name_on_hub


class Settings(BaseModel):
    """What the settings of both notebooks share: they are frozen, and unknown names are refused.

    `PRESET_VALUES` lists the values in which each preset differs from the defaults. The defaults
    are the values of the preset `full`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    PRESET_VALUES: ClassVar[dict[str, dict[str, Any]]]

    preset: str = Field(description="the preset that the other values come from")
