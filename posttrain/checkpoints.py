"""Checkpoints of a training: whole, few, bound to what they were made from, exact to go on from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from posttrain.run import Run


class Checkpoints(TrainerCallback):
    """Make a training resumable, to the bit on a CPU.

    Checkpoints are transformers' own, written at steps that are multiples of `logging_steps`; each
    is entered into the run's record, and the two newest are kept.
    """

    def __init__(self, run: Run, place: str, inputs: Mapping[str, Any], validation: str):
        """Take note of what belongs to all checkpoints.

        Args:
            run: the run that is trained.
            place: the checkpoints' folder in it.
            inputs: what they are made from.
            validation: when held-out pairs are looked at: "epoch", "steps" or "no".
        """
        self.run = run
        self.place = place
        self.inputs = inputs
        self.validation = validation

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Settle the steps of an epoch, and those between two checkpoints."""
        self.epoch_steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        log_steps = state.logging_steps if args.logging_strategy == "steps" else 1
        state.save_steps = log_steps * math.ceil(state.save_steps / log_steps)

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the random state, on which an epoch's order hangs in the length-grouping sampler.

        It would hang on all that was drawn before, which a resumed training has not drawn.
        """
        set_seed(args.seed + state.global_step // self.epoch_steps)

    def on_evaluate(self, args, state, control, **kwargs):
        """Set the random state again: a validation that a resumed training skips has drawn some."""
        set_seed(args.seed + state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        """Validate with an epoch's last step, not after it, so that its checkpoint holds that."""
        is_last = state.global_step == state.max_steps
        ends_epoch = is_last or state.global_step % self.epoch_steps == 0
        if (self.validation == "epoch" and ends_epoch) or (self.validation == "steps" and is_last):
            control.should_evaluate = True
        if is_last:
            control.should_save = False  # the end is saved as a model
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Log with every checkpoint: the sums behind a logged mean are not saved."""
        control.should_log = control.should_log or control.should_save

    def on_save(self, args, state, control, **kwargs):
        """Enter a checkpoint into the record, and remove those before the last two."""
        folder = Path(args.output_dir)
        name = f"checkpoint-{state.global_step}"
        self.run.seal(f"{self.place}/{name}", self.inputs)
        for old in list_checkpoints(folder)[2:]:
            self.run.forget(f"{self.place}/{old.name}")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, the newest first."""
    return sorted(
        folder.glob("checkpoint-[0-9]*"), key=lambda path: -int(path.name.split("-")[1])
    )


def last_checkpoint(
    run: Run, place: str, inputs: Mapping[str, Any], computing: Mapping[str, Any]
) -> Path | None:
    """Find the newest checkpoint that is whole; name and remove those that are not.

    Args:
        run: the run that is trained.
        place: the folder of the model's checkpoints in it.
        inputs: what the training consumes.
        computing: precision, device and processes, which a checkpoint is bound to.

    Returns:
        The checkpoint's folder, None without one.

    Raises:
        ValueError: it was made from something else, or computed in another way.
    """
    for path in list_checkpoints(run.path(place)):
        name = f"{place}/{path.name}"
        if not run.is_whole(name):
            print(f"{path} is not whole. Training goes on without it.")
            run.forget(name)
            continue
        then = dict(run.record.artifacts[name].inputs["computing"])
        for key, value in computing.items():
            if then[key] != value:
                raise ValueError(
                    f"{path} was trained with {key} = {then[key]!r}, and here it is {value!r}. Go "
                    f"on with this model where it was begun, or remove {path.parent}: its training "
                    "then begins anew."
                )
        run.require_same(name, {**inputs, "computing": then})
        return path
    return None
