"""Callbacks that watch a training: they check its losses and report its progress."""

import math
import re
import time

import torch
from torch.nn import Module
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from trl import DPOTrainer, KTOTrainer

from posttrain.architecture import read_dropout
from posttrain.losses import sum_first_losses

LONGEST_SILENCE = 60  # seconds between two lines of progress


def expected_first_loss(trainer: Trainer) -> float | None:
    """Compute the loss that a DPO or KTO trainer must have at its first step.

    There the policy still equals its reference, so all margins are 0 and the loss is a constant.

    Args:
        trainer: a trainer that has been built and not yet trained.

    Returns:
        The loss, or None where it is not known: if the trainer is another one, if its reference is
        another model, if its loss is the notebook's own or depends on the model (`sft`, the loss of
        a router), or if it weighs the pairs.
    """
    if not isinstance(trainer, DPOTrainer | KTOTrainer) or trainer.ref_model is not None:
        return None
    kind, args = type(trainer), trainer.args
    modules = (kind.compute_loss.__module__, kind._compute_loss.__module__)
    is_own = not all(module.startswith(("trl.", "posttrain.")) for module in modules)
    if is_own or trainer.aux_loss_enabled:
        return None
    if isinstance(trainer, KTOTrainer):  # both of its losses are 1 - σ(0), times their weights
        return 0.5 if args.desirable_weight == args.undesirable_weight == 1 else None
    if args.use_weighting:
        return None
    return sum_first_losses(
        trainer.loss_types, trainer.loss_weights, args.beta, args.label_smoothing
    )


class FirstLoss(TrainerCallback):
    """Stop a training whose first loss shows that policy and reference are not the same model."""

    def __init__(self, expected: float | None):
        self.expected = expected

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        """Compare the loss of the first step with the expected one."""
        if self.expected is None or state.global_step != 1 or "loss" not in logs:
            return
        # On a GPU the kernels with and without gradients may differ by about 2e-3 at a loss of
        # ln 2 = 0.693. Dropout changes that loss to 0.60 or 0.70.
        tolerance = 1e-2 if args.device.type == "cuda" else 1e-3
        if abs(logs["loss"] - self.expected) < tolerance * max(1.0, self.expected):
            return
        rates = {name: rate for name, rate in read_dropout(model.config).items() if rate}
        reason = (
            "The base has no dropout, so the reference may be another model, or the loss may have "
            "a part of its own."
        )
        if rates:
            reason = f"The base has dropout ({rates}). Load it with dropout 0."
        raise RuntimeError(
            f"The first loss is {logs['loss']:.4f}, not {self.expected:.4f}, so the policy and the "
            f"reference differ before any training. {reason} If the loss is meant to begin "
            "elsewhere, call train with check_first_loss=False."
        )


def require_equal_reference(model: Module) -> None:
    """Refuse a DPO trainer whose reference is not a copy of the adapter that it trains further.

    TRL copies the weights of linear layers, but not those of an embedding's adapter.

    Args:
        model: the model of a trainer that has been built and not yet trained.

    Raises:
        ValueError: if a weight of the reference differs.
    """
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        name_of_trained = re.sub(r"\.ref(?=\.|$)", ".default", name)
        trained = weights.get(name_of_trained)
        if name != name_of_trained and trained is not None and not torch.equal(weight, trained):
            layer = name.split(".lora_")[0].rsplit(".", 1)[-1]
            raise ValueError(
                f"The reference of this DPO trainer is not the model that it starts from: TRL has "
                f"not copied the adapter of {layer}. Leave {layer} out of the layers that LoRA "
                "adapts (target_modules)."
            )


class NotFiniteError(RuntimeError):
    """The error of a training that computes numbers that are NaN or infinite."""


class FiniteLoss(TrainerCallback):
    """Stop a training at the first step whose loss, or whose weights, are NaN or infinite.

    No later weight would be a number. The weights are checked after every step, before a checkpoint
    is written. In fp16 an optimizer step with such gradients is skipped, so that they stay finite.
    """

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Check the trained weights, which are NaN after a step whose loss was."""
        weights = [weight.detach() for weight in model.parameters() if weight.requires_grad]
        if not torch.nn.utils.get_total_norm(weights).isfinite():
            self._stop(state, "the trained weights are no finite numbers any more")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Check every loss that is logged, that of the held-out pairs included."""
        for name, of in (("loss", ""), ("eval_loss", " of the held-out pairs")):
            if not math.isfinite(logs.get(name, 0.0)):
                self._stop(state, f"the loss{of} is {logs[name]}")

    def _stop(self, state, what: str):
        """Raise the error that ends the training."""
        raise NotFiniteError(
            f"At step {state.global_step} of {state.max_steps} {what}, so the training was "
            "stopped. Nothing was saved of this model. A lower learning rate may help, or the "
            "precision fp32."
        )


# ---- progress


class Progress(TrainerCallback):
    """Show a progress bar, and print a line at every validation and at least once a minute."""

    def __init__(self, name: str):
        self.name = name
        self.loss = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock and show the progress bar."""
        self.first = state.global_step
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, leave=False, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        """Print a line if the next step would end more than a minute after the last line."""
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
            f"{seconds:.1f} s per step, {minutes:.0f} minutes left"
        )

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep the newest loss."""
        self.loss = logs.get("loss", self.loss)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Print the measures on the held-out pairs."""
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
        """Remove the progress bar."""
        self.bar.close()
