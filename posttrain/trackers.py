"""Trackers of training curves: TensorBoard, Weights & Biases (W&B) and Trackio."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain import processes

if TYPE_CHECKING:
    from transformers import Trainer


def require_tracker(name: str) -> None:
    """Refuse a tracker that would stop the first training: one not installed, or W&B without login.

    Args:
        name: the name of the tracker's package.

    Raises:
        ValueError: if the tracker cannot be used. The message says what to do.
    """
    package = importlib.util.find_spec(name)
    # A folder of this name, such as the one in which W&B leaves its files, has no origin.
    if package is None or package.origin is None:
        raise ValueError(
            f"it is not installed. Install it with {sys.executable} -m pip install {name}"
        )
    if name == "wandb":
        _require_login()


def _require_login() -> None:
    """Refuse W&B where it would send curves to its server and knows no valid key for it."""
    import wandb

    if wandb.setup().settings.mode != "online":
        return
    reason = "you are not logged in to W&B"
    try:
        if wandb.login(prompt=False):
            return
    except wandb.Error as error:
        reason = f"W&B's login failed ({error})"
    raise ValueError(
        f"{reason}. Log in with {sys.executable} -m wandb login, or set WANDB_MODE=offline in the "
        "environment to keep the curves on this machine"
    )


def start(trainer: "Trainer", folder: Path) -> None:
    """Let the tracker of a trainer keep its files in a folder. `finish` must follow.

    Trackio is left out: all its projects lie in one folder, where its dashboard looks for them.

    Args:
        trainer: a trainer before its training.
        folder: the folder of the model's curves. A training of another model has another one.
    """
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
    if processes.is_main() and "wandb" in trainer.args.report_to:
        import wandb

        # W&B reads the environment only once in a process, so WANDB_DIR could not name a folder
        # for each model. The trainer's callback goes on with a run that is open.
        folder.mkdir(parents=True, exist_ok=True)  # otherwise W&B uses a temporary one
        project = os.environ.get("WANDB_PROJECT", "huggingface")  # as the callback has it
        wandb.init(project=project, name=trainer.args.run_name, dir=str(folder))


def finish(trainer: "Trainer") -> None:
    """End the run of W&B, so that the next training starts one of its own.

    The other trackers end theirs by themselves.
    """
    if processes.is_main() and "wandb" in trainer.args.report_to:
        import wandb

        wandb.finish()
