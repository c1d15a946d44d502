"""What the notebooks stand on: a run's settings and folder, training, measuring.

Two things must be settled before torch and the hub's client are imported. TRL reports every
training to a web service unless it is told not to. And TRL refuses several visible devices, so one
is visible: the first, unless another is named.
"""

import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
# A base without the layers to be excluded is no mistake; the second is an old name in peft.
warnings.filterwarnings("ignore", message="You have passed exclude_modules")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
