"""What a run shows, in sentences: how its training went, and which of its models differ.

That DPO may lower the probability of both replies is described by Razin et al. 2024
(arXiv 2410.08847), who call it likelihood displacement.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.behaviour import PROPERTIES
from posttrain.comparisons import REWARD_OF_RATE, format_difference, format_fixed
from posttrain.metrics import MEASURES, wilson
from posttrain.power import ALPHA

Record = Mapping[str, Any]

# A model that has lost so large a part of log p(chosen) may no longer write whole sentences.
LARGEST_FALL = 0.5
SMALLEST_FALL = 0.01  # below it there is nothing to say
# Logged by the trainers of ORPO and CPO, which have no reference that the rewards begin at.
WITHOUT_REFERENCE = "eval_nll_loss"
REMEDY = "A lower learning rate, a larger β or fewer steps keep a model closer to its reference."


# ---- the training


def read_training(log: Mapping[str, Sequence[Record]], pairs: int | None = None) -> list[str]:
    """Say of every trained model what changed on the held-out pairs, and whether it went too far.

    Args:
        log: training.json, {model: log records}; models without held-out pairs are left out.
        pairs: how many pairs are held out; with it, an accuracy has its 95% interval.

    Returns:
        A paragraph for each model.
    """
    paragraphs = []
    for name, records in log.items():
        validated = [record for record in records if "eval_loss" in record]
        if validated:
            sentences = _read_validations(validated[0], validated[-1], pairs)
            paragraphs.append(f"{name}: {' '.join(sentences)}")
    return paragraphs


def _read_validations(first: Record, last: Record, pairs: int | None) -> list[str]:
    """Say what changed between the first and the last validation of a training."""
    if last["step"] == first["step"]:
        return ["The held-out pairs were looked at only once, so that no change is known."]
    if None in (*first.values(), *last.values()):
        return ["A measure of the held-out pairs is not a finite number."]
    if WITHOUT_REFERENCE in last:
        return _read_preferences_alone(first, last)
    if "eval_logps/chosen" in last:
        return _read_preferences(first, last, pairs)
    return _read_imitation(first, last)


def _read_imitation(first: Record, last: Record) -> list[str]:
    """Say whether a model that learned replies predicts replies better that it has not seen."""
    before, after = first["eval_loss"], last["eval_loss"]
    change = f"The loss on the held-out pairs went from {before:.3f} to {after:.3f} nats per token"
    if after < before:
        return [f"{change}, so the model predicts unseen replies better than before."]
    return [
        f"{change}: what the model learned does not carry over to pairs it was not trained on.",
        "A lower learning rate or fewer steps may help.",
    ]


def _read_preferences_alone(first: Record, last: Record) -> list[str]:
    """Say what changed for a model that learned preferences without a reference."""
    accuracies = [100 * record["eval_rewards/accuracies"] for record in (first, last)]
    return [
        f"The loss on the held-out pairs went from {first['eval_loss']:.3f} to "
        f"{last['eval_loss']:.3f}. There is no reference: the chosen reply has the higher reward "
        f"in {accuracies[1]:.0f}% of the pairs, after {accuracies[0]:.0f}% before the training."
    ]


def _read_preferences(first: Record, last: Record, pairs: int | None) -> list[str]:
    """Say how the margin of a model that learned preferences came about."""
    sentences = [
        f"The loss on the held-out pairs went from {first['eval_loss']:.3f} to "
        f"{last['eval_loss']:.3f}. {_read_rewards(last, pairs)}",
        _read_change("chosen", first, last) + " and " + _read_change("rejected", first, last) + ".",
    ]
    sentences[1] = sentences[1][0].upper() + sentences[1][1:]
    rise = last["eval_logps/chosen"] - first["eval_logps/chosen"]
    rejected_rise = last["eval_logps/rejected"] - first["eval_logps/rejected"]
    if last["eval_loss"] >= first["eval_loss"]:
        sentences.append(
            "The loss has not fallen: on these pairs the model is no better than one that has not "
            "moved."
        )
    elif rejected_rise < rise < 0:
        sentences.append(
            "Both kinds of replies have become less likely, and the margin is positive because the "
            "rejected ones have lost more."
        )
    return sentences + _read_fall(-rise, first["eval_logps/chosen"])


def _read_rewards(last: Record, pairs: int | None) -> str:
    """Say how many pairs moved the right way, and how far; KTO has no accuracy."""
    margin = "The mean margin is not known."
    if "eval_rewards/margins" in last:
        margin = f"The mean margin is {format_fixed(last['eval_rewards/margins'], 3)}."
    if "eval_rewards/accuracies" not in last:
        return margin
    accuracy, interval = last["eval_rewards/accuracies"], ""
    if pairs is not None:
        ends = wilson(round(accuracy * pairs), pairs)
        interval = f" (95% interval {ends['low']:.0f} to {ends['high']:.0f})"
    return (
        f"{100 * accuracy:.0f}%{interval} of them have moved towards the chosen reply, and "
        f"{margin[0].lower()}{margin[1:]}"
    )


def _read_change(reply: str, first: Record, last: Record) -> str:
    """Say from where to where the log-probability of a kind of replies went."""
    start, end = first[f"eval_logps/{reply}"], last[f"eval_logps/{reply}"]
    return f"log p({reply}) went from {format_fixed(start, 1)} to {format_fixed(end, 1)} nats"


def _read_fall(fall: float, start: float) -> list[str]:
    """Say whether the chosen replies have become so unlikely that the answers may fall apart.

    Args:
        fall: of log p(chosen), in nats per reply; negative for a rise.
        start: log p(chosen) before the training.
    """
    share = fall / max(-start, 1e-9)
    if share < SMALLEST_FALL:
        return []
    size = (
        f"Log p(chosen) has fallen by {fall:.1f} nats per reply, {100 * share:.1f}% of its start."
    )
    if share > LARGEST_FALL:
        return [
            f"{size} The lost probability goes to texts that are neither reply, so the answers may "
            f"fall apart however large the margin is: read them before you trust a rate. {REMEDY}"
        ]
    return [
        f"{size} This is within the limit of {100 * LARGEST_FALL:.0f}% that is set here, but only "
        "the answers show whether a model still writes well."
    ]


# ---- two models


def verdict(comparison: Record) -> str:
    """Say in sentences whether two models differ in a measure, and what it would take to know."""
    first, second = comparison["first"], comparison["second"]
    numbers = (
        f"In {name_measure(comparison['measure'])}, {second} − {first} is "
        f"{format_difference(comparison)}: of {comparison['n']} prompts, {second} alone is better "
        f"on {comparison['gained']} and {first} alone on {comparison['lost']} "
        f"(p = {comparison['p']:.2g}, and {comparison['p_holm']:.2g} after Holm's correction)."
    )
    if comparison["decision"] == "significant":
        return f"{numbers} The difference is significant: {_state_direction(comparison)}."
    if comparison["decision"] == "suggestive":
        reason = _explain_suggestive(comparison)
        return f"{numbers} The difference is suggestive, not significant, since {reason}."
    return f"{numbers} The comparison is inconclusive. {_describe_power(comparison)}"


def name_measure(measure: str) -> str:
    """Name a measure as a sentence does: HmR, mean reward on harmful prompts."""
    if measure.endswith("_reward"):
        return f"mean reward on {MEASURES[measure]} prompts"
    return measure


def _state_direction(comparison: Record) -> str:
    """State as a finding which of two models is higher."""
    direction = "higher" if comparison["difference"] > 0 else "lower"
    return (
        f"{comparison['second']} is {direction} than {comparison['first']} for these trained models"
    )


def _explain_suggestive(comparison: Record) -> str:
    """Say what keeps a suggestive difference from being significant."""
    if comparison["p_holm"] < ALPHA:
        return "its interval includes zero"
    return "p does not stay below 0.05 once it is corrected for all pairs of models"


def _describe_power(comparison: Record) -> str:
    """Say how large a true difference so many prompts would find with 80% power.

    It is found if it is significant after the correction for all pairs of models.
    """
    power = comparison["power"]
    if power is None:
        return "Which difference is found with 80% power was not computed."
    if power["detectable"] is None:
        return "So few prompts find no difference with 80% power."
    digits, unit = (2, "") if "reward" in comparison["measure"] else (0, " points")
    return (
        f"A true difference of {power['detectable']:.{digits}f}{unit} would be found with 80% "
        "power by this many prompts."
    )


def verdicts(comparisons: Sequence[Record]) -> list[str]:
    """Say of every pair of models whether it differs in HmR, HpR and CAS.

    Where the mean rewards that a rate's labels are made of differ significantly, and the rate does
    not or differs the other way, a sentence says so.

    Args:
        comparisons: Of `compare`.

    Returns:
        A text for each comparison of a rate or of CAS, in their order.
    """
    by_pair = {}
    for comparison in comparisons:
        key = (comparison["measure"], comparison["first"], comparison["second"])
        by_pair[key] = comparison
    texts = []
    for (measure, first, second), comparison in by_pair.items():
        if measure not in (*REWARD_OF_RATE, "CAS"):
            continue
        text = verdict(comparison)
        rewards = by_pair.get((REWARD_OF_RATE.get(measure), first, second))
        if rewards and _rewards_say_more(comparison, rewards):
            text += (
                " Their mean rewards, however, differ significantly, by "
                f"{format_difference(rewards)} (p = {rewards['p_holm']:.2g} after Holm's "
                f"correction): by these, {_state_direction(rewards)}."
            )
        texts.append(text)
    return texts


def _rewards_say_more(rates: Record, rewards: Record) -> bool:
    """Tell whether mean rewards differ significantly where the rates do not, or the other way."""
    if rewards["decision"] != "significant":
        return False
    opposed = rewards["difference"] * rates["difference"] < 0
    return rates["decision"] != "significant" or opposed


def headline(comparisons: Sequence[Record]) -> str:
    """Say of one measure which pairs of models differ, or how large a difference could still be.

    Args:
        comparisons: Those of one measure, at least one.
    """
    name = name_measure(comparisons[0]["measure"])
    significant = [row for row in comparisons if row["decision"] == "significant"]
    if not significant:
        room = _describe_room(comparisons)
        return f"In {name}, no pair of these trained models differs significantly{room}."
    return (
        f"In {name}, {list_words(name_relations(significant))} for these trained models "
        f"({len(significant)} of {len(comparisons)} pairs)."
    )


def name_relations(significant: Sequence[Record]) -> list[str]:
    """Say which models are above or below which others, as few clauses as there can be.

    Models that are all above, or all below, the same model share a clause. Of the other pairs,
    those of one model with several others do.
    """
    seconds: dict[tuple[str, str], list[str]] = {}
    for row in significant:
        direction = "above" if row["difference"] > 0 else "below"
        seconds.setdefault((direction, row["first"]), []).append(row["second"])
    shared: dict[tuple[str, str], list[str]] = {}
    for (direction, first), names in seconds.items():
        if len(names) == 1:
            shared.setdefault((direction, names[0]), []).append(first)
    clauses = []
    for (direction, first), names in seconds.items():
        if len(names) > 1:
            clauses.append(f"{list_words(names)} are significantly {direction} {first}")
    for (direction, second), firsts in shared.items():
        clauses.append(f"{second} is significantly {direction} {list_words(firsts)}")
    return clauses


def _describe_room(comparisons: Sequence[Record]) -> str:
    """Say how large a difference the intervals leave room for."""
    ends = []
    for comparison in comparisons:
        if comparison["low"] is not None:
            ends += [abs(comparison["low"]), abs(comparison["high"])]
    if not ends:
        return ""
    digits, unit = (2, "") if "reward" in comparisons[0]["measure"] else (0, " points")
    return (
        f"; the intervals leave room for differences of up to {max(ends):.{digits}f}{unit} between "
        "two models"
    )


def list_words(words: Sequence[str], conjunction: str = "and") -> str:
    """Write a list as in a sentence: commas, and a conjunction before the last word."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def headlines(comparisons: Sequence[Record]) -> list[str]:
    """Say of each measure in a sentence what its comparisons show.

    Args:
        comparisons: Of `compare`.
    """
    sentences = []
    for measure in MEASURES:
        family = [comparison for comparison in comparisons if comparison["measure"] == measure]
        if family:
            sentences.append(headline(family))
    return sentences


# ---- the models' behaviour


def describe_behaviour(comparisons: Sequence[Record]) -> list[str]:
    """Say which pairs of models differ significantly in which property of their answers.

    Args:
        comparisons: Of `behaviour.compare_behaviour`.

    Returns:
        A sentence for each kind of prompts and each property in which a pair differs, or one that
        says that no pair does, and a last one that says what the p-values are corrected for. The
        list is empty if nothing was compared.
    """
    if not comparisons:
        return []
    clauses: dict[tuple[str, str], list[str]] = {}
    for row in comparisons:
        if row["decision"] == "significant":
            side = "higher" if row["difference"] > 0 else "lower"
            models = f"{side} for {row['second']} than for {row['first']}"
            found = clauses.setdefault((row["kind"], row["measure"]), [])
            found.append(f"{models} ({format_difference(row)})")
    sentences = []
    for (kind, name), found in clauses.items():
        sentences.append(
            f"On {kind} prompts, the share of answers that {PROPERTIES[name]} is significantly "
            f"{list_words(found)} for these trained models."
        )
    if not sentences:
        sentences.append("No pair of these trained models differs significantly in any property.")
    sentences.append(
        "The p-values are corrected for the pairs of models within a property and a kind of "
        "prompts, but not for the number of properties and kinds. Refusing and not understanding "
        "were first looked for after the study's published answers had been read: of those answers "
        "these comparisons are post hoc."
    )
    return sentences
