"""Checkpoints from which an interrupted training continues exactly as if it had not stopped."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, set_seed

from posttrain import processes
from posttrain.run import Run

LONGEST_WAIT = 90  # seconds; a checkpoint that is not whole by then is not used later


class Checkpoints(TrainerCallback):
    """Make a training resumable; on a CPU the result is the same to the bit.

    The checkpoints are those of transformers, written at multiples of `logging_steps`. Each of them
    is entered into the run's record, and only the two newest are kept.
    """

    def __init__(self, run: Run, place: str, inputs: Mapping[str, Any], validation: str):
        """Prepare the checkpoints of one training.

        Args:
            run: the run that the trained model belongs to.
            place: the folder of the checkpoints, relative to the run's folder.
            inputs: everything that the trained model follows from, for the record.
            validation: when the held-out pairs are evaluated: "epoch", "steps" or "no".
        """
        self.run = run
        self.place = place
        self.inputs = inputs
        self.validation = validation

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Compute the number of steps in an epoch and between two checkpoints."""
        self.epoch_steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        log_steps = state.logging_steps if args.logging_strategy == "steps" else 1
        state.save_steps = log_steps * math.ceil(state.save_steps / log_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the random state, which decides the order of an epoch's texts.

        The sampler that groups texts by length would otherwise depend on all random numbers that
        were drawn before, and a resumed training has not drawn those.
        """
        set_seed(args.seed + state.global_step // self.epoch_steps)

    def restore(
        self, trainer: Trainer, load: Callable[[str | None], None], checkpoint: str | None
    ) -> None:
        """Restore the random state of a checkpoint, unless an epoch begins after it.

        There `on_epoch_begin` has just set the state, and the order of the epoch's texts is drawn
        from it. The checkpoint's state is another one if nothing was validated at that step, and a
        process that was not there has none.

        Args:
            trainer: the trainer that continues.
            load: the function of transformers that restores the state.
            checkpoint: the folder of the checkpoint.
        """
        load(checkpoint)
        if trainer.state.global_step % self.epoch_steps == 0:
            self.on_epoch_begin(trainer.args, trainer.state, trainer.control)

    def on_evaluate(self, args, state, control, **kwargs):
        """Set the random state, since a resumed training does not repeat earlier validations."""
        if state.global_step % self.epoch_steps == 0:
            # The checkpoint of an epoch's last step is written after its validation, and what is
            # restored from it decides the order of the next epoch.
            self.on_epoch_begin(args, state, control)
        else:
            set_seed(args.seed + state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Validate at an epoch's last step, not after it, so that its checkpoint has the result."""
        is_last = state.global_step == state.max_steps
        ends_epoch = is_last or state.global_step % self.epoch_steps == 0
        if (self.validation == "epoch" and ends_epoch) or (self.validation == "steps" and is_last):
            control.should_evaluate = True
        if is_last:
            control.should_save = False  # the finished model is saved instead
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Log at every checkpoint, since a checkpoint lacks the sums behind the next mean."""
        control.should_log = control.should_log or control.should_save

    def on_save(self, args, state, control, **kwargs):
        """Enter a checkpoint into the record, and remove all but the two newest."""
        processes.wait()  # every process writes its random state into the checkpoint
        processes.on_main(self._keep, state.global_step)

    def _keep(self, step: int) -> None:
        """Enter the checkpoint of a step into the record, and remove all but the two newest."""
        _await_states(self.run.path(f"{self.place}/checkpoint-{step}"))
        self.run.seal(f"{self.place}/checkpoint-{step}", self.inputs)
        for old in list_checkpoints(self.run.path(self.place))[2:]:
            self.run.forget(f"{self.place}/{old.name}")


def _await_states(folder: Path) -> None:
    """Wait until the random states of all processes are visible, which takes time on NFS."""
    if processes.count() == 1:
        return
    names = [f"rng_state_{rank}.pth" for rank in range(processes.count())]
    end = time.monotonic() + LONGEST_WAIT
    while not all((folder / name).exists() for name in names) and time.monotonic() < end:
        time.sleep(0.1)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, newest first."""
    return sorted(folder.glob("checkpoint-[0-9]*"), key=lambda path: -int(path.name.split("-")[1]))


@processes.decided_by_main
def last_checkpoint(
    run: Run, place: str, inputs: Mapping[str, Any], computing: Mapping[str, Any]
) -> Path | None:
    """Find the newest complete checkpoint; incomplete ones are reported and removed.

    Args:
        run: the run that the trained model belongs to.
        place: the folder of the model's checkpoints, relative to the run's folder.
        inputs: everything that the training follows from.
        computing: the precision, device and number of processes. A checkpoint can only be
            continued with the same precision and device.

    Returns:
        The checkpoint's folder, or None if there is no complete checkpoint.

    Raises:
        ValueError: if the checkpoint was made from other inputs, or with other computing.
    """
    for path in list_checkpoints(run.path(place)):
        name = f"{place}/{path.name}"
        if not run.is_whole(name):
            print(f"{path} is incomplete or was changed. The training continues without it.")
            run.forget(name)
            continue
        then = dict(run.record.artifacts[name].inputs["computing"])
        if then["processes"] != computing["processes"]:
            print(_describe_change(path, then["processes"], computing["processes"], inputs))
        for key, value in computing.items():
            if then[key] != value and key != "processes":
                raise ValueError(
                    f"{path} was trained with {key} = {then[key]!r}, but here {key} is {value!r}. "
                    "Continue this training where it was begun and with the version of this "
                    f"repository that began it, or remove the folder {path.parent}, and the "
                    "training will start over."
                )
        run.require_same(name, {**inputs, "computing": then})
        return path
    return None


def _describe_change(path: Path, then: int, now: int, inputs: Mapping[str, Any]) -> str:
    """Say that a training continues with another number of processes, and what this changes."""
    text = (
        f"{path.parent.name} was begun with {_count(then)} and continues with {_count(now)}. Every "
        "step has the same pairs, and only rounding differs."
    )
    settings = {**inputs["model_config"], **(inputs["adapter_config"] or {})}
    rates = [value for name, value in settings.items() if "dropout" in name]
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        text += " This model has dropout, which is drawn anew, so the result cannot be reproduced."
    return text


def _count(number: int) -> str:
    """Write a number of processes."""
    return "1 process" if number == 1 else f"{number} processes"
