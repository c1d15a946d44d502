"""Start several processes with torchrun's engine, each of which executes the same command."""

import logging
import os
import signal
import sys

import posttrain
from posttrain.parameters import Parameters
from posttrain.processes import TIMEOUT

KEPT = "Everything that was finished before is intact. Run the command again to continue."
SHARED = ("run", "seeds", "sweep", "reask", "rejudge")  # commands whose work can be shared


def launch(command: str, arguments: list[str], parameters: Parameters) -> None:
    """Execute a command in several processes of this machine, and wait for their end.

    Args:
        command: the name of a command.
        arguments: its parameters as they were given.
        parameters: the same, as they were read.

    Raises:
        ValueError: if the command's work cannot be shared, or there are fewer GPUs.
        SystemExit: if a process fails. The others are ended, and what is finished is kept.
    """
    require_launchable(command, parameters)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    number = parameters.PROCESSES
    # Without it torchrun gives each process a single thread, and says so.
    threads = max(1, len(os.sched_getaffinity(0)) // number) if _has_affinity() else 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Each process says why it stops. What torchrun would add is about its own code.
    logging.disable()
    options = ["--standalone", "--nproc-per-node", str(number), "-m", "posttrain"]
    try:
        run(parse_args([*options, command, *arguments]))
    except ChildFailedError as error:
        for process, failure in sorted(error.failures.items()):
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # which ends others
                print(_describe_kill(process, -failure.exitcode), file=sys.stderr)
        sys.exit(1)
    except SignalException as error:
        print(f"Stopped by {signal.Signals(error.sigval).name}. {KEPT}", file=sys.stderr)
        sys.exit(128 + error.sigval)


def require_launchable(command: str, parameters: Parameters) -> None:
    """Refuse to start processes that could not share the work of a command.

    Raises:
        ValueError: if that is so.
    """
    number = parameters.PROCESSES
    if command not in SHARED:
        raise ValueError(
            f"PROCESSES: {command} does its work in one process. Leave PROCESSES out. The commands "
            f"whose work can be shared are {', '.join(SHARED)}."
        )
    if posttrain.FIRST_DEVICE_CHOSEN:  # each process takes a device of its own
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    import torch

    if torch.cuda.is_available() and number > torch.cuda.device_count():
        raise ValueError(
            f"PROCESSES = {number}, but torch sees {torch.cuda.device_count()} GPUs, and every "
            "process needs one of its own."
        )
    if not torch.cuda.is_available() and number > (os.cpu_count() or number):
        raise ValueError(
            f"PROCESSES = {number}, but this machine has no GPU and only {os.cpu_count()} cores."
        )


def _has_affinity() -> bool:
    """Tell whether this system says which cores the process may use."""
    return hasattr(os, "sched_getaffinity")


def _describe_kill(process: int, number: int) -> str:
    """Say that a process was ended by a signal, and why this may have happened."""
    name = signal.Signals(number).name
    reason = ""
    if name == "SIGKILL":
        reason = " The system does this where memory runs out."
    if name == "SIGABRT":
        reason = (
            f" On GPUs this happens where processes wait for each other longer than {TIMEOUT} "
            "minutes."
        )
    return f"Process {process} was ended by {name}.{reason} The others were ended, too. {KEPT}"
