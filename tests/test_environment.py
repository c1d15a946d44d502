"""Variables of the environment that change a training without a trace in its record."""

import os
import subprocess
import sys

from conftest import ROOT

# Started with a variable, each of these makes another model, stops, or waits for other processes.
CHANGING = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "PMI_SIZE": "2",
    "OMPI_COMM_WORLD_SIZE": "2",
    "MV2_COMM_WORLD_RANK": "1",
    "MPI_LOCALRANKID": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
}
HARMLESS = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "OMPI_MCA_btl": "tcp", "HF_HUB_OFFLINE": "1"}
NAMES = "import os, posttrain; print(*sorted(os.environ))"
# What a trainer would compute with, and on how many processes.
COMPUTING = """
import posttrain
import torch
from accelerate import Accelerator
from trl import SFTConfig
args = SFTConfig(use_cpu=True, bf16=False)
accelerator = Accelerator(cpu=True)
print("computes:", args.world_size, args.mixed_precision, accelerator.mixed_precision,
      accelerator.state.dynamo_plugin.backend.value, accelerator.distributed_type.value,
      torch.backends.cuda.matmul.allow_tf32)
"""


def run_python(code, variables):
    """Run code in a process of its own, and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_variables_of_launchers_are_dropped_and_named_in_one_sentence():
    said, names = run_python(NAMES, CHANGING | HARMLESS)
    assert said.startswith("Ignored in the environment, since the settings alone decide how")
    assert said.endswith(f"{', '.join(sorted(CHANGING))}.")
    assert not set(CHANGING) & set(names.split())
    assert set(HARMLESS) <= set(names.split())


def test_processes_that_are_started_then_say_nothing():
    code = (
        "import subprocess, sys, posttrain; "
        "subprocess.run([sys.executable, '-c', 'import posttrain'], check=True)"
    )
    assert len(run_python(code, CHANGING)) == 1


def test_nothing_is_said_where_there_are_none():
    assert len(run_python(NAMES, HARMLESS)) == 1


def test_variables_of_torchrun_are_kept_where_it_started_the_process():
    (names,) = run_python(NAMES, CHANGING | {"TORCHELASTIC_RUN_ID": "none"})
    assert set(CHANGING) <= set(names.split())


def test_trainer_computes_as_its_settings_say_whatever_the_environment_says():
    *_, computes = run_python(COMPUTING, CHANGING)
    assert computes == "computes: 1 no no NO NO False"
