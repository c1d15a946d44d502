"""What the log of a training says, in sentences: what moved, and what to do where it went too far.

That DPO may lower the probability of both replies is described by Razin et al. 2024
(arXiv 2410.08847), who call it likelihood displacement.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# A model that has lost so large a part of log p(chosen) may no longer write whole sentences.
LARGEST_FALL = 0.5
REMEDY = "A lower learning rate, a larger β or fewer steps keep a model closer to its reference."


def read_training(log: Mapping[str, Sequence[Record]]) -> list[str]:
    """Say of every trained model what changed on the held-out pairs, and whether it went too far.

    Args:
        log: training.json, {model: log records}; models without held-out pairs are left out.

    Returns:
        A paragraph for each model.
    """
    paragraphs = []
    for name, records in log.items():
        validated = [record for record in records if "eval_loss" in record]
        if len(validated) < 2:
            continue
        first, last = validated[0], validated[-1]
        if "eval_logps/chosen" in last:
            sentences = _read_preferences(first, last)
        else:
            sentences = _read_imitation(first, last)
        paragraphs.append(f"{name}: {' '.join(sentences)}")
    return paragraphs


def _read_imitation(first: Record, last: Record) -> list[str]:
    """Say whether a model that learned replies predicts replies better that it has not seen."""
    before, after = first["eval_loss"], last["eval_loss"]
    change = f"The loss on the held-out pairs went from {before:.3f} to {after:.3f} nats per token"
    if after < before:
        return [f"{change}, so the model predicts replies better that it was not trained on."]
    return [
        f"{change}: what the model learned does not carry over to pairs it was not trained on.",
        "A lower learning rate or fewer steps may help.",
    ]


def _read_preferences(first: Record, last: Record) -> list[str]:
    """Say how the margin of a model that learned preferences came about."""
    chosen = first["eval_logps/chosen"], last["eval_logps/chosen"]
    rejected = first["eval_logps/rejected"], last["eval_logps/rejected"]
    sentences = [
        f"{100 * last['eval_rewards/accuracies']:.0f}% of the held-out pairs have moved towards "
        f"the chosen reply, and the mean margin is {_signed(last['eval_rewards/margins'])}.",
        f"Log p(chosen) went from {_signed(chosen[0], 1)} to {_signed(chosen[1], 1)} nats and "
        f"log p(rejected) from {_signed(rejected[0], 1)} to {_signed(rejected[1], 1)}.",
    ]
    rise = chosen[1] - chosen[0]
    if rise >= 0:
        sentences.append(
            "The chosen replies have become likelier, so the margin does not come from unlearning."
        )
        return sentences
    if rejected[1] - rejected[0] < rise:
        sentences.append(
            "Both kinds of replies have become less likely, and the margin grows because the "
            "rejected ones have lost more."
        )
    fall = rise / chosen[0]
    if fall > LARGEST_FALL:
        sentences.append(
            f"Log p(chosen) has fallen by {100 * fall:.0f}% of its start. The lost probability "
            "goes to texts that are neither reply, so the answers may fall apart however large "
            f"the margin is: read them before you trust a rate. {REMEDY}"
        )
    else:
        sentences.append(
            f"Log p(chosen) has fallen by {100 * fall:.0f}% of its start, which is no sign that "
            "the model is unlearning how to write."
        )
    return sentences


def _signed(value: float, digits: int = 3) -> str:
    """Write a number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")
