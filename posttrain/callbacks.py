"""What watches a training: its first loss, whether its losses are numbers, and its progress."""

import math
import time

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer

LONGEST_SILENCE = 60  # seconds between two lines of progress


def expected_first_loss(trainer: Trainer) -> float | None:
    """Give the loss of a DPO trainer whose policy still is its reference, so that margins are 0.

    Args:
        trainer: built, not yet trained.

    Returns:
        The loss, None where it is not known: another trainer, another reference, a loss of the
        notebook's own, several losses, or weights on them.
    """
    if not isinstance(trainer, DPOTrainer) or trainer.ref_model is not None:
        return None
    kind, args = type(trainer), trainer.args
    modules = (kind.compute_loss.__module__, kind._compute_loss.__module__)
    is_own = not all(module.startswith(("trl.", "posttrain.")) for module in modules)
    is_weighted = args.loss_weights or args.use_weighting or trainer.aux_loss_enabled
    if is_own or is_weighted or len(trainer.loss_types) != 1:
        return None
    losses = {
        "sigmoid": math.log(2),
        "robust": math.log(2),
        "aot": math.log(2),
        "aot_unpaired": math.log(2),
        "sigmoid_norm": math.log(2),
        "hinge": 1.0,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "discopop": (1 + math.log(2)) / 2,
        "nca_pair": 2 * math.log(2),
        "bco_pair": 2 * math.log(2),
        "ipo": 1 / (2 * args.beta) ** 2,
        "sppo_hard": 1 / (2 * args.beta**2),
    }
    return losses.get(trainer.loss_types[0])


class FirstLoss(TrainerCallback):
    """Stop a training whose first loss shows that policy and reference are not the same model."""

    def __init__(self, expected: float | None):
        self.expected = expected

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Compare the loss of the first step."""
        if self.expected is None or state.global_step != 1 or "loss" not in logs:
            return
        # On a GPU the kernels with and without gradients may differ by some 2e-3 of ln 2; dropout
        # makes 0.60 or 0.70 of it.
        tolerance = 1e-2 if args.device.type == "cuda" else 1e-3
        if not abs(logs["loss"] - self.expected) < tolerance * max(1.0, self.expected):
            raise RuntimeError(
                f"The first loss is {logs['loss']:.4f}, not {self.expected:.4f}: policy and "
                "reference differ before any training. Is dropout on (load the model with dropout "
                "0), or is the reference another model? A loss that is meant to begin elsewhere "
                "needs check_first_loss=False."
            )


class FiniteLoss(TrainerCallback):
    """Stop a training whose loss is no number any more: all later weights would be none either."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at every logged loss."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RuntimeError(
                f"At step {state.global_step} the loss is {logs['loss']}. Nothing was saved of "
                "this model. A lower learning rate, or precision fp32, may help."
            )


# ---- progress


class Progress(TrainerCallback):
    """A bar, and lines: at every validation, and at least once a minute."""

    def __init__(self, name: str):
        self.name = name
        self.loss = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to count."""
        self.first = state.global_step
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, leave=False, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        """Say how far it is before the next step would make the silence too long."""
        self.bar.update(state.global_step - self.bar.n)
        now = time.monotonic()
        seconds = (now - self.start) / (state.global_step - self.first)
        if now - self.last_line + seconds < LONGEST_SILENCE:
            return
        self.last_line = now
        loss = "" if self.loss is None else f"loss {self.loss:.3f}, "
        minutes = (state.max_steps - state.global_step) * seconds / 60
        tqdm.write(
            f"{self.name}: step {state.global_step} of {state.max_steps}, {loss}"
            f"{seconds:.1f} s a step, {minutes:.0f} minutes left"
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the newest loss."""
        self.loss = logs.get("loss", self.loss)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Say what the held-out pairs give."""
        names = {
            "eval_loss": "loss",
            "eval_rewards/accuracies": "accuracy",
            "eval_rewards/margins": "margin",
        }
        values = [f"{names[key]} {metrics[key]:.3f}" for key in names if key in metrics]
        tqdm.write(
            f"{self.name}: step {state.global_step} of {state.max_steps}, held-out pairs: "
            f"{', '.join(values)}"
        )

    def on_train_end(self, args, state, control, **kwargs):
        """Take the bar away."""
        self.bar.close()
