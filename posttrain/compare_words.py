"""What several runs show, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.compare import Evaluated, are_sample, common_models, differing
from posttrain.comparisons import format_signed
from posttrain.conclusions import list_words
from posttrain.metrics import models_of


def describe_runs(runs: Sequence[Evaluated]) -> list[str]:
    """Say in sentences what the runs can tell, and which models not all of them have.

    Args:
        runs: the runs, from `load_runs`.
    """
    if are_sample(runs):
        sentences = [
            f"The {len(runs)} runs differ only in the seed of their training, so they are a sample "
            "of trainings."
        ]
    else:
        names = list(differing(runs).index)
        origin = f"differ in {list_words(names)}" if names else "come from elsewhere"
        sentences = [
            f"The {len(runs)} runs {origin}, so they are no sample of trainings, and there is no "
            "interval over them."
        ]
    common = common_models(runs)
    for run in runs:
        others = [name for name in models_of(run.answers) if name not in common]
        if others:
            sentences.append(
                f"Not all runs have {list_words(others)} of {run.name}, so nothing below is about "
                "them."
            )
    return sentences


def conclude(records: Sequence[dict[str, Any]], runs: Sequence[Evaluated]) -> list[str]:
    """Say in sentences what the runs show about each pair of models in CAS.

    Only runs that differ by their seed are a sample, for which an interval over runs has a meaning.

    Args:
        records: the records of `differences_across`.
        runs: the runs, from `load_runs`.

    Returns:
        A paragraph for each pair of models, and a last one that says what is not claimed.
    """
    paragraphs = []
    for record in records:
        if record["measure"] == "CAS":
            paragraphs.append(_describe_pair(record))
    if are_sample(runs):
        return [
            *paragraphs,
            "The intervals are not corrected for the number of pairs. The decision of a single run "
            "is for its trained models and says nothing about other seeds.",
        ]
    return [
        *paragraphs,
        "There is one training for each of these runs, so the effect of what they differ in cannot "
        "be told from that of another seed. Which differences between runs of the same model are "
        "more than chance is not claimed. The decision of a run is for its trained models.",
    ]


def _describe_pair(record: Mapping[str, Any]) -> str:
    """Say what the runs show about a pair of models, with intervals if they are a sample."""
    values, decisions = record["values"], record["decisions"]
    above = sum(value > 0 for value in values)
    alone = sum(decision == "significant" for decision in decisions)
    shown = ", ".join(format_signed(value, 1) for value in values)
    text = (
        f"{record['second']} − {record['first']} in CAS: {format_signed(record['mean'], 1)} points "
        f"on average over {len(values)} runs ({shown}), above zero in {above} of them and "
        f"significant by its own test in {alone}."
    )
    if record["averaged_low"] is None:  # the runs are no sample
        return text
    if record["both_low"] is None:
        return f"{text} All runs give the same difference, so there is no interval over them."
    verb = "includes" if record["both_low"] <= 0 <= record["both_high"] else "excludes"
    both, runs_alone = _write_ends(record, "both_"), _write_ends(record, "")
    return (
        f"{text} The 95% interval for other trainings and other prompts, {both}, {verb} zero. For "
        f"other trainings alone it is {runs_alone}, for other prompts alone "
        f"{_write_ends(record, 'averaged_')}."
    )


def _write_ends(record: Mapping[str, Any], prefix: str) -> str:
    """Write an interval of a record, whose ends' names begin with a prefix."""
    low, high = record[f"{prefix}low"], record[f"{prefix}high"]
    return f"[{format_signed(low, 1)}, {format_signed(high, 1)}]"
