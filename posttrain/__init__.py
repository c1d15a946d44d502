"""The package behind the notebooks: settings, the folder of a run, training and measuring.

Three things must be settled before torch and the hub's client are imported. TRL reports every
training to a web service unless it is told not to, and it refuses to work where several devices
are visible to one process. So reporting is switched off, and only the first device is visible
unless CUDA_VISIBLE_DEVICES names another one, or torchrun has started a process for each. And
launchers leave variables in the environment that change how a model is trained, without a trace in
its record. So they are dropped. Jupyter and the libraries also need a home directory, so one is
made where there is none.
"""

import os
import re
import tempfile
import warnings

# Variables of accelerate's launcher and of MPI, and those that let the libraries behind torch
# compute float32 in a lower precision than the record says. (NVIDIA's containers set
# TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.) accelerate, transformers and torch read all of them.
_CHANGING_THE_TRAINING = (
    r"(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
    r"|MPI_LOCAL(RANKID|NRANKS)|FORK_LAUNCHED|XLA_USE_BF16|XLA_DOWNCAST_BF16"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|(DNNL|ONEDNN)_DEFAULT_FPMATH_MODE"
)
# Variables that say which of several processes this is. Without torchrun it is the only one.
_OF_SEVERAL_PROCESSES = (
    r"((LOCAL|GROUP|ROLE|NODE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|MASTER_(ADDR|PORT)"
)
# Variables that split a model over processes, which `processes.require_replicas` refuses
_SHARDING = r"ACCELERATE_USE_(FSDP|DEEPSPEED|MEGATRON_LM)"


def _drop_variables_of_launchers() -> None:
    """Drop the variables from the environment, which kernels inherit, and print their names."""
    # torchrun sets the first in every process that it starts.
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"
    dropped = _CHANGING_THE_TRAINING
    if not is_launched:
        dropped += f"|{_OF_SEVERAL_PROCESSES}"
    kept = _SHARDING if is_launched else ""
    found = [
        name
        for name in sorted(os.environ)
        if re.fullmatch(dropped, name) and not re.fullmatch(kept, name)
    ]
    for name in found:
        del os.environ[name]
    if found and os.environ.get("RANK", "0") == "0":
        print(
            f"Ignored in the environment, since the settings alone decide how a model is trained: "
            f"{', '.join(found)}."
        )


def _make_home() -> None:
    """Make a folder for the caches of the libraries where this user has no home directory."""
    os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")
    print(
        f"HOME is not set and this user has no home directory. Downloads are kept in "
        f"{os.environ['HOME']}. To keep them elsewhere, set HOME."
    )


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_drop_variables_of_launchers()
FIRST_DEVICE_CHOSEN = not {"CUDA_VISIBLE_DEVICES", "WORLD_SIZE"} & set(os.environ)
if FIRST_DEVICE_CHOSEN:
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
if not os.path.isabs(os.path.expanduser("~")):  # as in a container with a user of no name
    _make_home()
# The first warning is about layers that main.ipynb excludes and that a base need not have. The
# second is about a deprecated name that peft still uses.
warnings.filterwarnings("ignore", message="You have passed exclude_modules")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
