"""Several processes that train and evaluate a run together, as torchrun starts them.

All processes execute the same notebooks. The main process decides and writes, and `on_main` lets
the others hear its results. Each of the others trains on its part of every step and answers its
part of the prompts. With a single process, every function here does its work directly.
"""

import functools
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

T = TypeVar("T")

PACKAGE = Path(__file__).parent
TIMEOUT = "PROCESS_TIMEOUT"  # the variable and parameter that sets how long processes wait
MINUTES = 30.0  # its default
# What torch says in a process whose connection to another one is lost
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|socket .*(closed|shut)", re.I)
TIMED_OUT = re.compile(r"timed? ?out", re.I)
GRACE = 5  # seconds after which an error is printed that another process may be about to explain
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}

_deciding = False  # whether this process is executing what the main process alone does


# ---- which process this is


def count() -> int:
    """Return the number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process, from 0 on."""
    return int(os.environ.get("RANK", 0))


def count_on_this_machine() -> int:
    """Return the number of processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Tell whether this is the main process, which has the number 0."""
    return rank() == 0


def state() -> "PartialState":
    """Return accelerate's description of the processes, and connect them when it is first asked.

    The first call must come before any model is loaded. A process that waits longer for another
    one than PROCESS_TIMEOUT minutes stops with an error.
    """
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized():
        return PartialState()
    devices = torch.cuda.device_count()
    if torch.cuda.is_available() and count_on_this_machine() > devices:
        raise ValueError(
            f"{count_on_this_machine()} processes were started on a machine where torch sees "
            f"{devices} GPUs, and every process needs one of its own."
        )
    return PartialState(
        cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=read_timeout())
    )


@functools.cache
def _connection() -> "torch.distributed.ProcessGroup":
    """Connect the processes for objects, which are sent through the CPU on GPUs, too.

    There a process that waits for a decision then leaves its GPU alone, and a time-out is an error
    that can be explained.
    """
    import torch.distributed

    state()
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(minutes=read_timeout()))


def read_timeout() -> float:
    """Read how many minutes a process waits for another one.

    Raises:
        ValueError: if the variable is no positive number.
    """
    text = os.environ.get(TIMEOUT, str(MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise ValueError(f"{TIMEOUT} = {text!r} must be a positive number of minutes.")
    return minutes


def require_replicas() -> None:
    """Refuse launchers that split one model over several processes.

    Raises:
        ValueError: if FSDP, DeepSpeed or Megatron-LM was chosen.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise ValueError(
                f"The launcher asks for {name} ({variable} is set), which splits a model over "
                "several processes. Here every process holds the whole model, which is faster for "
                "models that fit into one GPU. Start the processes with make run PROCESSES=..., or "
                "see docs/processes.md."
            )


def require_number(wanted: int | None) -> None:
    """Refuse a number of processes that is not the number that torchrun has started.

    Args:
        wanted: the parameter PROCESSES.

    Raises:
        ValueError: if it is another number.
    """
    if wanted is not None and wanted != count():
        raise ValueError(
            f"PROCESSES = {wanted}, but torchrun has started {count()}. Leave PROCESSES out."
        )


def quiet_others() -> None:
    """Let only the main process print, show progress bars and warn; errors of all are seen."""
    if count() > 1:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends all without a traceback of each
        threading.Thread(target=_end_with_launcher, args=[os.getppid()], daemon=True).start()
    if is_main():
        return
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    warnings.simplefilter("ignore")


def _end_with_launcher(launcher: int) -> None:
    """End this process when the one that started it has been killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


# ---- the main process decides, and all hear


def on_main(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Execute a function on the main process alone, and return its result on all.

    All processes must make the same calls in the same order. Within the function, calls of
    `on_main` are executed directly.

    Args:
        function: the function, whose result is sent to the other processes.
        args: its arguments.
        kwargs: its named arguments.

    Raises:
        Exception: on all processes, if the function raises it on the main one.
    """
    global _deciding
    if count() == 1 or _deciding:
        return function(*args, **kwargs)
    result, error = None, None
    if is_main():
        _deciding = True
        try:
            result = function(*args, **kwargs)
        except Exception as raised:
            error = raised
        finally:
            _deciding = False
    result, heard = _broadcast((result, _portable(error)))
    if error is not None:
        raise error
    if heard is not None:
        heard.is_of_main = True  # which says it, so that it is said once
        raise heard
    return result


def decided_by_main(function: Callable[..., T]) -> Callable[..., T]:
    """Let a function be executed by the main process alone, as `on_main` does."""

    @functools.wraps(function)
    def decide(*args: Any, **kwargs: Any) -> T:
        return on_main(function, *args, **kwargs)

    return decide


def _broadcast(value: T) -> T:
    """Send an object from the main process to all."""
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=_connection())
    return values[0]


def _portable(error: Exception | None) -> Exception | None:
    """Make an error that can be sent to other processes, of the same class where possible."""
    if error is None:
        return None
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  whatever an error's class may raise when it is built again
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if str(copy) == str(error) else RuntimeError(f"{type(error).__name__}: {error}")


# ---- all agree


def gather(value: T) -> list[T]:
    """Collect a value of every process, in the order of their numbers, on all processes."""
    if count() == 1 or _deciding:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value, group=_connection())
    return values


def wait() -> None:
    """Wait until all processes have come here."""
    import torch.distributed

    if count() > 1 and not _deciding:
        torch.distributed.barrier(group=_connection())


# ---- the end


class CellError(RuntimeError):
    """The error of a notebook's cell; its cause is what the cell has raised."""


def end() -> None:
    """Close the connection to the other processes at the end of the work."""
    if count() > 1:
        wait()
        state().destroy_process_group()


def stop(error: BaseException) -> NoReturn:
    """Say why this process stops, as `say_failure` does, and end it with the status 1."""
    if count() == 1:
        sys.exit(str(error))
    say_failure(error)
    sys.stdout.flush()
    os._exit(1)  # the libraries' own ends would wait for the other processes


def say_failure(error: BaseException) -> None:
    """Print why a process stops, once for all processes.

    An error of the main process is printed by it. Another process waits before it prints its own,
    because the main one may be about to say the same. torchrun ends it meanwhile.

    Args:
        error: the error that ends this process.
    """
    cause = error.__cause__ if isinstance(error, CellError) else error
    is_of_connection = _is_of_connection(cause)
    if not is_main():
        time.sleep(2 * GRACE + min(rank(), GRACE))
        if getattr(cause, "is_of_main", False):
            return
    elif is_of_connection:
        time.sleep(GRACE)
    text = str(error)
    if is_of_connection:
        text = (
            "Another process of this run has ended, or its connection was lost, so this one "
            f"stops, too. ({_first_line(cause)})"
        )
        if TIMED_OUT.search(str(cause)):
            text = (
                f"The processes have waited for each other for {read_timeout():g} minutes "
                f"({TIMEOUT}), so one of them is stuck or far behind. {_first_line(cause)}"
            )
    else:
        places = traceback.extract_tb(cause.__traceback__)
        if isinstance(error, CellError) and not _explains_itself(cause, places):
            print("".join(traceback.format_list(places)), end="", file=sys.stderr)
        if not is_main():
            text = f"Process {rank()}: {text}"
    print(text, file=sys.stderr, flush=True)


def _explains_itself(error: BaseException, places: list[traceback.FrameSummary]) -> bool:
    """Tell whether an error is one of this package, whose message says what to do."""
    is_for_people = isinstance(error, ValueError | RuntimeError | OSError)
    return is_for_people and bool(places) and str(PACKAGE) in places[-1].filename


def _is_of_connection(error: BaseException) -> bool:
    """Tell whether an error says no more than that another process has ended or is stuck."""
    import torch.distributed

    text = str(error)
    is_of_torch = isinstance(error, torch.distributed.DistError) or "gloo" in text.lower()
    is_lost = LOST.search(text) or TIMED_OUT.search(text)
    return isinstance(error, RuntimeError) and is_of_torch and is_lost is not None


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
