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


def set_folder(trainer: "Trainer", folder: Path) -> None:
    """Let the tracker of a trainer keep its files in a folder.

    Trackio is left out: all its projects lie in one folder, where its dashboard looks for them.

    Args:
        trainer: a trainer before its training.
        folder: the folder of the model's curves. A training of another model has another one.
    """
    from transformers.integrations import TensorBoardCallback

    os.environ["WANDB_DIR"] = str(folder)
    if "wandb" in trainer.args.report_to:
        # Without the folder W&B uses a temporary one.
        processes.on_main(folder.mkdir, parents=True, exist_ok=True)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)


def finish(trainer: "Trainer") -> None:
    """End the run of W&B, so that the next training starts one of its own.

    The other trackers end theirs by themselves.
    """
    if processes.is_main() and "wandb" in trainer.args.report_to:
        import wandb

        wandb.finish()
