"""The package behind the notebooks: settings, the folder of a run, training and measuring.

Three things must be settled before torch and the hub's client are imported. TRL reports every
training to a web service unless it is told not to, and it refuses to work where several devices
are visible. So reporting is switched off, and only the first device is visible unless
CUDA_VISIBLE_DEVICES names another one. And launchers of several processes leave variables in the
environment that change how a model is trained, without a trace in its record. So they are dropped.
Jupyter and the libraries also need a home directory, so one is made where there is none.
"""

import os
import re
import tempfile
import warnings

# Variables of accelerate's launcher, of torchrun and of MPI, and those that let the libraries
# behind torch compute float32 in a lower precision than the record says. (NVIDIA's containers set
# TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.) accelerate, transformers and torch read all of them.
_CHANGING_THE_TRAINING = re.compile(
    r"(ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
    r"|((LOCAL|GROUP|ROLE|NODE)_)?RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|MASTER_(ADDR|PORT)"
    r"|MPI_LOCAL(RANKID|NRANKS)|FORK_LAUNCHED|XLA_USE_BF16|XLA_DOWNCAST_BF16"
    r"|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|(DNNL|ONEDNN)_DEFAULT_FPMATH_MODE"
)


def _drop_variables_of_launchers() -> None:
    """Drop the variables from the environment, which kernels inherit, and print their names."""
    found = sorted(filter(_CHANGING_THE_TRAINING.fullmatch, os.environ))
    for name in found:
        del os.environ[name]
    if found:
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
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
if "TORCHELASTIC_RUN_ID" not in os.environ:  # which torchrun sets in the processes that it starts
    _drop_variables_of_launchers()
if not os.path.isabs(os.path.expanduser("~")):  # as in a container with a user of no name
    _make_home()
# The first warning is about layers that main.ipynb excludes and that a base need not have. The
# second is about a deprecated name that peft still uses.
warnings.filterwarnings("ignore", message="You have passed exclude_modules")
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
