"""The package behind the notebooks: settings, the folder of a run, training and measuring.

Two things must be settled before torch and the hub's client are imported. TRL reports every
training to a web service unless it is told not to, and it refuses to work where several devices
are visible. So reporting is switched off, and only the first device is visible unless
CUDA_VISIBLE_DEVICES names another one.
"""

import os
import warnings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
# The first warning is about layers that main.ipynb excludes and that a base need not have. The
# second is about a deprecated name that peft still uses.
warnings.filterwarnings("ignore", message="You have passed exclude_modules")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
