"""Variables of the environment that change a training without a trace in its record."""

import os
import re
import shutil
import subprocess
import sys

import pytest
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
    launched = CHANGING | {"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}
    said, names = run_python(NAMES, launched)
    kept = {name for name in CHANGING if re.search("RANK|WORLD_SIZE|MASTER_|USE_FSDP", name)}
    kept = kept - {"OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MPI_LOCALRANKID"}
    kept |= {"ACCELERATE_USE_DEEPSPEED"}  # refused later, by name
    assert set(names.split()) & set(CHANGING) == kept
    assert said.endswith(f"{', '.join(sorted(set(CHANGING) - kept))}.")
    (names,) = run_python(NAMES, launched | {"RANK": "1"})  # the main process alone says it
    assert set(names.split()) & set(CHANGING) == kept


def test_a_single_process_of_torchrun_is_like_one_without_it():
    launched = CHANGING | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1", "RANK": "0"}
    _, names = run_python(NAMES, launched)
    assert not set(CHANGING) & set(names.split())


@pytest.mark.slow
def test_trainer_computes_as_its_settings_say_whatever_the_environment_says():
    *_, computes = run_python(COMPUTING, CHANGING)
    assert computes == "computes: 1 no no NO NO False"


def test_user_without_a_home_gets_a_folder_for_caches_and_is_told(tmp_path):
    # As in a container that was started with the number of a user who has no name there.
    kept = "+dac_override,+dac_read_search"  # so that this user can read the installed packages
    nobody = ["setpriv", "--reuid", "54321", "--inh-caps", kept, "--ambient-caps", kept]
    code = "import posttrain, pathlib; print(pathlib.Path.home().is_dir())"
    variables = {name: value for name, value in os.environ.items() if name != "HOME"}
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user, with setpriv")
    done = subprocess.run(
        [*nobody, sys.executable, "-B", "-c", code],
        cwd=ROOT,
        env=variables | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said, found = done.stdout.splitlines()
    (home,) = tmp_path.iterdir()
    assert f"Downloads are kept in {home}. To keep them elsewhere, set HOME." in said
    assert found == "True"
