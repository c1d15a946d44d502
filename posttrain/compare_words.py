"""What several runs show, in sentences and in tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from posttrain.compare import JUDGE, THRESHOLDS, Evaluated, are_sample, common_models, differing
from posttrain.comparisons import format_difference, format_signed
from posttrain.conclusions import list_words
from posttrain.metrics import models_of
from posttrain.same_model import explain_absence, share_answers, share_models
from posttrain.tables import HEADINGS, IN_PERCENT, rates_across_runs

Record = Mapping[str, Any]

OF_EVALUATION = "evaluation's "  # how the name of a setting of eval.ipynb begins


# ---- the runs


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
        sentences = [
            f"The {len(runs)} runs {_describe_origin(runs)}, so they are no sample of trainings, "
            "and there is no interval over them."
        ]
    common = common_models(runs)
    for run in runs:
        others = [name for name in models_of(run.answers) if name not in common]
        if others:
            left_out = "it is left out" if len(others) == 1 else "they are left out"
            sentences.append(
                f"{run.name} also has {list_words(others)}, which other runs lack; {left_out} "
                "below."
            )
    return sentences


def _describe_origin(runs: Sequence[Evaluated]) -> str:
    """Say what runs that are no sample have in common, and in what they differ."""
    if not len(differing(runs)):
        return "come from elsewhere"
    shared = ""
    if share_answers(runs):
        shared = "contain the same answers and "
    elif share_models(runs):
        shared = "share their trained models and "
    return f"{shared}differ in {_name_varied(runs)}"


def _name_varied(runs: Sequence[Evaluated]) -> str:
    """Name the settings in which runs differ; a judge's thresholds belong to it."""
    names = list(differing(runs).index)
    if JUDGE in names:
        return "the judge and its thresholds" if set(names) & set(THRESHOLDS) else "the judge"
    words = []
    for name in names:
        stage = "evaluation" if name.startswith(OF_EVALUATION) else "training"
        words.append(f"the {stage}'s setting {name.removeprefix(OF_EVALUATION)}")
    return list_words(words)


def tabulate_rates(records: Sequence[Record], runs: Sequence[Evaluated]) -> pd.DataFrame:
    """Write every model's HmR, HpR and CAS in all runs, with mean and deviation over a sample.

    Args:
        records: the records of `rates_across`.
        runs: the runs, from `load_runs`.
    """
    if are_sample(runs):
        return rates_across_runs(records)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if record["measure"] in IN_PERCENT:
            row = rows.setdefault(record["model"], {"model": record["model"]})
            values = " ".join(f"{value:.0f}" for value in record["values"])
            row[HEADINGS[record["measure"]]] = values
    return pd.DataFrame(rows.values())


# ---- the same model in two runs


def label_models(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Put the model before the runs' names, for a table of decisions: "SFT: two − one".

    Args:
        records: the records of `compare_same_model`.
    """
    return [{**record, "second": f"{record['model']}: {record['second']}"} for record in records]


def describe_same_model(records: Sequence[Record], runs: Sequence[Evaluated]) -> list[str]:
    """Say in sentences what the differences of the same model between runs mean and show.

    Args:
        records: the records of `compare_same_model`.
        runs: the runs, from `load_runs`.
    """
    reason = explain_absence(runs)
    if reason:
        return [reason]
    paragraphs = []
    if records:
        paragraphs += [_explain_difference(records, runs), _list_significant(records)]
    compared = [(record["model"], record["second"]) for record in records]
    for run in runs[1:]:
        alike = [name for name in common_models(runs) if (name, run.name) not in compared]
        if alike:
            paragraphs.append(
                f"Left out between {run.name} and {runs[0].name}: {list_words(alike)}, whose "
                "results are the same in both or could only differ by a rounding error."
            )
    return paragraphs


def _explain_difference(records: Sequence[Record], runs: Sequence[Evaluated]) -> str:
    """Say of what the differences between two runs are the effect."""
    varied = _name_varied(runs)
    models = dict.fromkeys(record["model"] for record in records)
    trained = dict.fromkeys(record["model"] for record in records if not record["one_training"])
    shared = [name for name in models if name not in trained]
    sentences = []
    if shared:
        sentences.append(
            f"{list_words(shared)}: both runs have the same model, or the same answers of it, so a "
            f"difference is the effect of {varied} on this very model. Its interval speaks of "
            "other prompts."
        )
    if trained:
        sentences.append(
            f"{list_words(list(trained))}: the records show no weights that the runs share, so a "
            "difference is one between two models. It includes what another seed alone would have "
            f"changed in a training, and if it is significant, this does not show that {varied} "
            "is the cause. Its interval speaks of other prompts for these two models."
        )
    if JUDGE in differing(runs).index:
        sentences.append("Mean rewards of two judges have no common scale and are not compared.")
    return " ".join(sentences)


def _list_significant(records: Sequence[Record]) -> str:
    """List the significant differences, and say of how many differences they are."""
    found = []
    for record in records:
        if record["decision"] == "significant":
            measure = record["measure"]
            if measure not in IN_PERCENT:
                measure = HEADINGS[measure]
            found.append(
                f"{record['model']} in {measure}, {record['second']} − {record['first']}: "
                f"{format_difference(record)}"
            )
    if not found:
        return (
            f"None of the {len(records)} differences is significant, which does not show that "
            "there are none."
        )
    verb = "is" if len(found) == 1 else "are"
    return f"Of {len(records)} differences {len(found)} {verb} significant: {'; '.join(found)}."


# ---- pairs of models


def conclude(records: Sequence[dict[str, Any]], runs: Sequence[Evaluated]) -> list[str]:
    """Say in sentences what the runs show about each pair of models in CAS.

    Only runs that differ by their seed are a sample, for which an interval over runs has a meaning.

    Args:
        records: the records of `differences_across`.
        runs: the runs, from `load_runs`.

    Returns:
        A paragraph for each pair of models, and a last one that says what is not claimed.
    """
    measures = [record["measure"] for record in records]
    # Of answers to one kind of prompts there is no CAS, but their rate.
    described = [measure for measure in ("CAS", "HmR", "HpR") if measure in measures][:1]
    paragraphs = []
    for record in records:
        if record["measure"] in described:
            paragraphs.append(_describe_pair(record))
    if are_sample(runs):
        return [
            *paragraphs,
            "The intervals are not corrected for the number of pairs. The decision of a single run "
            "is for its trained models and says nothing about other seeds.",
        ]
    last = (
        "The decision of a run is for its trained models. A difference that is significant in one "
        "run and not in another has not been shown to change between them."
    )
    if not share_models(runs) and not share_answers(runs):
        last = (
            "There is one training for each of these runs, so the effect of what they differ in "
            f"cannot be told from that of another seed. {last}"
        )
    return [*paragraphs, last]


def _describe_pair(record: Mapping[str, Any]) -> str:
    """Say what the runs show about a pair of models, with intervals if they are a sample."""
    values, decisions = record["values"], record["decisions"]
    above = sum(value > 0 for value in values)
    alone = sum(decision == "significant" for decision in decisions)
    shown = ", ".join(format_signed(value, 1) for value in values)
    pair = f"{record['second']} − {record['first']} in {record['measure']}"
    counts = f"above zero in {above} of them and significant by its own test in {alone}."
    if record["averaged_low"] is None:  # the runs are no sample
        return f"{pair}: {shown} points in the {len(values)} runs, {counts}"
    mean = format_signed(record["mean"], 1)
    text = f"{pair}: {mean} points on average over {len(values)} runs ({shown}), {counts}"
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
