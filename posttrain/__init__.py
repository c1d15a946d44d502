"""What the two notebooks stand on: settings, a run's folder, the data, models, statistics, figures and tables.

Two things must be settled before torch and the hub's client are imported. TRL reports every training to a web service
unless told not to. And TRL refuses several visible devices, so one is visible: the first, unless another is named.
"""

import os
import warnings

MODELS = ("Base", "SFT", "DPO", "SFT+DPO")  # always in this order, in files, tables and figures

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
warnings.filterwarnings("ignore", message="You have passed exclude_modules")  # a base without what is excluded
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)  # an old name, in peft
