"""The losses of TRL's DPO trainer: their names, their first values, and some of their formulas."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

LossName = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(LossName)
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # those that read label_smoothing
DOCUMENTATION = "https://huggingface.co/docs/trl/dpo_trainer#loss-functions"

# {loss: its source, its formula, and what has to be said about it}
FORMULAS = {
    "sigmoid": (
        "equation 7 of [arXiv 2305.18290](https://arxiv.org/abs/2305.18290)",
        r"L = -\log \sigma\big(r(x, y_{chosen}) - r(x, y_{rejected})\big)",
        r"Here $\sigma$ is the logistic function, so this is a logistic regression on the "
        "difference of two rewards.",
    ),
    "ipo": (
        "equation 17 of [arXiv 2310.12036](https://arxiv.org/abs/2310.12036), whose τ is β here",
        r"L = \left(\frac{1}{|y_{chosen}|} \log \frac{\pi(y_{chosen}|x)}{\pi_{ref}(y_{chosen}|x)} "
        r"- \frac{1}{|y_{rejected}|} \log \frac{\pi(y_{rejected}|x)}{\pi_{ref}(y_{rejected}|x)} "
        r"- \frac{1}{2 \beta}\right)^2",
        "The log-ratio of a reply is divided by its number of tokens $|y|$, which the paper does "
        "not mention. TRL says that its authors confirmed it. The loss has its minimum at a fixed "
        "distance between the two replies and grows again beyond it.",
    ),
    "hinge": (
        "the normalized hinge loss of [arXiv 2309.06657](https://arxiv.org/abs/2309.06657), after "
        "[arXiv 2305.10425](https://arxiv.org/abs/2305.10425)",
        r"L = \max\big(0,\ 1 - (r(x, y_{chosen}) - r(x, y_{rejected}))\big)",
        "A pair whose rewards differ by more than 1 has no loss and no gradient.",
    ),
}  # fmt: skip


def list_losses(loss_type: str | Sequence[str]) -> list[str]:
    """List the names in a setting that is the name of a loss or several names."""
    return [loss_type] if isinstance(loss_type, str) else list(loss_type)


def require_fitting_loss(
    loss_type: str | Sequence[str], weights: Sequence[float] | None, label_smoothing: float
) -> None:
    """Refuse weights and a label smoothing that do not fit the losses.

    Args:
        loss_type: the name of a loss, or several.
        weights: a weight for each of the losses; None weighs each by 1.
        label_smoothing: from 0 to 1.

    Raises:
        ValueError: if they do not fit. The message says what would.
    """
    losses = list_losses(loss_type)
    if weights is not None and len(weights) != len(losses):
        raise ValueError(
            f"SETTINGS: loss_weights = {list(weights)} does not have one weight for each loss in "
            f"loss_type, {', '.join(losses)}. Give as many weights as losses, in the same order, "
            "or leave loss_weights out."
        )
    if "robust" in losses and label_smoothing >= 0.5:
        raise ValueError(
            f"SETTINGS: label_smoothing = {label_smoothing}, but the loss robust takes the share "
            "of pairs whose labels are wrong, which must be below 0.5."
        )
    if "exo_pair" in losses and label_smoothing == 0:
        raise ValueError(
            "SETTINGS: label_smoothing = 0, but the loss exo_pair takes its logarithm. Set it "
            "above 0; its paper recommends 0.001."
        )


def first_losses(beta: float, label_smoothing: float) -> dict[str, float | None]:
    """Compute the value of each loss before any training.

    There the policy equals its reference, so that the log-ratio of every reply is 0.

    Args:
        beta: DPO's β.
        label_smoothing: the share ε of pairs whose labels are taken to be wrong.

    Returns:
        {loss: value}, or None where the value depends on the model.
    """
    ln2 = math.log(2)
    of_exo_pair = None
    if 0 < label_smoothing < 1:  # the divergence of (1/2, 1/2) from (1 - ε, ε)
        of_exo_pair = -ln2 - math.log(label_smoothing * (1 - label_smoothing)) / 2
    return {
        "sigmoid": ln2,
        "hinge": 1.0,
        "ipo": 1 / (2 * beta) ** 2,
        "exo_pair": of_exo_pair,
        "nca_pair": 2 * ln2,
        "robust": ln2,
        "bco_pair": 2 * ln2,
        "sppo_hard": 1 / (2 * beta**2),
        "aot": ln2,
        "aot_unpaired": ln2,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "discopop": (1 + ln2) / 2,
        "sft": None,
        "sigmoid_norm": ln2,
    }


def sum_first_losses(
    losses: Sequence[str], weights: Sequence[float] | None, beta: float, label_smoothing: float
) -> float | None:
    """Compute the weighted sum of some losses before any training; None where one is not known.

    Args:
        losses: the names of the losses.
        weights: a weight for each of them; None weighs each by 1.
        beta: DPO's β.
        label_smoothing: as in `first_losses`.
    """
    known = first_losses(beta, label_smoothing)
    values = [known.get(loss) for loss in losses]
    if None in values:
        return None
    factors = weights or [1.0] * len(losses)
    return sum(factor * value for factor, value in zip(factors, values))


def explain_loss(
    loss_type: str | Sequence[str],
    weights: Sequence[float] | None,
    beta: float,
    label_smoothing: float,
) -> str:
    """Explain in Markdown which loss a run has, with its formula if it is a usual one.

    Args:
        loss_type: the name of a loss, or several.
        weights: a weight for each of them; None weighs each by 1.
        beta: DPO's β.
        label_smoothing: as in `first_losses`.
    """
    losses = list_losses(loss_type)
    parts = []
    for loss in losses:
        if loss in FORMULAS:
            source, formula, remark = FORMULAS[loss]
            parts.append(f"The loss `{loss}` is {source}:\n\n$${formula}$$\n\n{remark}")
        else:
            parts.append(f"[TRL's documentation]({DOCUMENTATION}) describes the loss `{loss}`.")
    if len(losses) > 1:
        factors = ", ".join(f"{weight:g}" for weight in weights or [1.0] * len(losses))
        parts.append(f"The losses are added up with the weights {factors}.")
    if label_smoothing and not set(losses) & set(SMOOTHED):
        parts.append(
            f"The setting `label_smoothing` has no effect here: only {', '.join(SMOOTHED)} read it."
        )
    first = sum_first_losses(losses, weights, beta, label_smoothing)
    if first is None:
        parts.append("Its value before the first step is not known in advance.")
    else:
        parts.append(f"Before the first step, with β = {beta:g}, its value is {first:.4f}.")
    return "\n\n".join(parts)
