"""What the study's answers say, as markdown tables: by search patterns, and by labels of a reader.

The labels are in docs/behaviour_labels.json, with the rule by which they were given.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from docs.benchmark_tables import ROOT
from docs.study_tables import (
    KIND_AND_MODEL,
    format_p,
    read_answers,
    write_estimates,
    write_list,
    write_records,
)
from posttrain import conclusions
from posttrain.behaviour import PROPERTIES, classify_response, compare_property
from posttrain.files import read_json
from posttrain.metrics import models_of, pivot, wilson
from posttrain.tables import BEHAVIOUR, interval, split_difference

LABELS = ROOT / "docs" / "behaviour_labels.json"
SAID = {"refuses": "refuse", "not_understood": "do not understand"}  # {label: in a heading}
# {how an answer came into the sample: in words}. Those that were "found" are labelled as well, but
# only for the precision over all answers.
DRAWN = {"apology": "begin with an apology", "random": "drawn from the others"}

Record = Mapping[str, Any]


# ---- the sample that was read and labelled


def read_sample(published: Path) -> pd.DataFrame:
    """Read the answers that were labelled by a reader.

    Args:
        published: the folder with the study's results.

    Returns:
        A row for each of these answers, with the columns of `read_answers`, of which `label` is the
        judge's, and with `by_hand` and `by_pattern` (refuses, not_understood or neither) and
        `drawn` (apology, random or found).
    """
    records = read_json(LABELS, dict)["labels"]
    labels = pd.DataFrame(records).rename(columns={"label": "by_hand"})
    sample = read_answers(published).merge(labels, on=["id", "model"], validate="one_to_one")
    return sample.assign(by_pattern=sample["response"].map(classify_response))


def read_apologies(published: Path) -> pd.DataFrame:
    """Read the labelled answers to harmful prompts that begin with an apology, which are all."""
    sample = read_sample(published)
    return sample[(sample["kind"] == "harmful") & (sample["drawn"] == "apology")]


def check_patterns(sample: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare what the patterns find in labelled answers with their labels.

    Args:
        sample: answers with `by_hand` and `by_pattern`.

    Returns:
        A record for each of the two labels: `label`, the number of answers that have it `by_hand`
        and `by_pattern`, the number of those that have it by `both`, and `precision` and `recall`
        in percent with the ends of their 95% Wilson intervals. Precision or recall is None if
        there is no answer of which it could be a share.
    """
    records = []
    for label in SAID:
        by_hand = sample["by_hand"] == label
        by_pattern = sample["by_pattern"] == label
        both = int((by_hand & by_pattern).sum())
        record = {"label": label, "both": both}
        shares = {"precision": ("by_pattern", by_pattern), "recall": ("by_hand", by_hand)}
        for name, (column, has_label) in shares.items():
            n = int(has_label.sum())
            ends = wilson(both, n) if n else {"low": None, "high": None}
            record[column] = n
            record[name] = 100 * both / n if n else None
            record |= {f"{name}_low": ends["low"], f"{name}_high": ends["high"]}
        records.append(record)
    return records


def write_patterns(published: Path) -> str:
    """Write precision and recall of the patterns on the labelled answers.

    Args:
        published: the folder with the study's results.
    """
    sample = read_sample(published)
    parts = {words: sample[sample["drawn"] == drawn] for drawn, words in DRAWN.items()}
    rows = []
    for words, part in parts.items():
        for record in check_patterns(part):
            cells = [str(record[name]) for name in ("by_hand", "by_pattern", "both")]
            shares = [_write_share(record, name) for name in ("precision", "recall")]
            rows.append([f"{words} ({len(part)})", SAID[record["label"]], *cells, *shares])
    words = f"all ({len(read_answers(published))})"
    # All that the patterns find are labelled, but not all that they may have missed.
    for record in check_patterns(sample):
        cells = ["–", str(record["by_pattern"]), str(record["both"])]
        shares = [_write_share(record, "precision"), "–"]
        rows.append([words, SAID[record["label"]], *cells, *shares])
    columns = [
        "answers", "property", "by the reader", "by the patterns", "by both",
        "precision (%) [95%]", "recall (%) [95%]",
    ]  # fmt: skip
    return write_estimates(columns, rows)


def _write_share(record: Record, name: str) -> str:
    """Write precision or recall with its interval in whole percent; a dash if it is undefined."""
    if record[name] is None:
        return "–"
    return f"{record[name]:.0f} [{record[f'{name}_low']:.0f}, {record[f'{name}_high']:.0f}]"


# ---- what the answers say


def write_apologies(published: Path) -> str:
    """Write what the answers to harmful prompts that begin with an apology say, by their labels.

    Args:
        published: the folder with the study's results.
    """
    answers = read_answers(published)
    answers = answers[answers["kind"] == "harmful"]
    apologies = read_apologies(published)
    keys = pd.MultiIndex.from_frame(apologies[["id", "model"]])
    others = answers[~pd.MultiIndex.from_frame(answers[["id", "model"]]).isin(keys)]
    rows = []
    for model in [*models_of(answers), "together"]:
        of_model = _select_model(apologies, model)
        says = of_model["by_hand"].value_counts()
        cells = [str(says.get(label, 0)) for label in (*SAID, "neither")]
        harmless = str(int((of_model["label"] == "harmless").sum()))
        # Together, four answers to a prompt are not independent, so there is no interval.
        rate = "" if model == "together" else write_hmr(_select_model(others, model))
        rows.append([model, str(len(of_model)), *cells, harmless, rate])
    columns = [
        "model", "answers that begin with an apology", "of these refuse",
        "of these do not understand", "of these do neither", "of these judged harmless",
        "HmR of all other answers (%)",
    ]  # fmt: skip
    return write_estimates(columns, rows)


def write_harmless(published: Path) -> str:
    """Write how many harmless answers refuse, do not understand, or do neither, by their labels.

    Args:
        published: the folder with the study's results.
    """
    answers = read_what_is_said(published)
    rows = []
    for model in [*models_of(answers), "together"]:
        of_model = _select_model(answers, model)
        harmless = of_model[of_model["label"] == "harmless"]
        says = harmless["says"].value_counts()
        cells = [str(says.get(label, 0)) for label in (*SAID, "neither")]
        rest = of_model[of_model["says"] == "neither"]
        rate = "" if model == "together" else write_hmr(rest)
        rows.append([model, str(len(harmless)), *cells, rate])
    columns = [
        "model", "answers judged harmless", "of these refuse", "of these do not understand",
        "of these do neither", "HmR of all answers that do neither (%)",
    ]  # fmt: skip
    return write_estimates(columns, rows)


def read_what_is_said(published: Path) -> pd.DataFrame:
    """Read the answers to harmful prompts, with what they say by their labels in a column `says`.

    Args:
        published: the folder with the study's results.

    Returns:
        The answers. One that was not labelled says neither: the patterns find nothing in it.
    """
    answers = read_answers(published)
    sample = read_sample(published)[["id", "model", "by_hand"]]
    answers = answers[answers["kind"] == "harmful"].merge(sample, on=["id", "model"], how="left")
    return answers.assign(says=answers["by_hand"].fillna("neither"))


def _select_model(answers: pd.DataFrame, model: str) -> pd.DataFrame:
    """Select the answers of a model, or those of all models together."""
    return answers if model == "together" else answers[answers["model"] == model]


def write_hmr(answers: pd.DataFrame) -> str:
    """Write which percentage of some answers the judge calls harmless, with its 95% interval."""
    harmless = int((answers["label"] == "harmless").sum())
    ends = wilson(harmless, len(answers))
    record = {
        "rate": 100 * harmless / len(answers),
        "rate_low": ends["low"],
        "rate_high": ends["high"],
    }
    return interval(record, "rate")


# ---- rates of all models


def write_behaviour(metrics: Record) -> str:
    """Write the rates of all properties that are known, with their intervals.

    Args:
        metrics: the study's metrics.json.
    """
    columns = dict(KIND_AND_MODEL)
    for name in PROPERTIES:
        if all(name in record for record in metrics["behaviour"]):
            columns[BEHAVIOUR[name]] = partial(_write_share, name=name)
    return write_records(metrics["behaviour"], columns)


def write_behaviour_differences(metrics: Record) -> str:
    """List the properties in which pairs of models differ significantly.

    Args:
        metrics: the study's metrics.json.
    """
    return write_list(conclusions.describe_behaviour(metrics["behaviour_comparisons"]))


def compare_labels(published: Path) -> list[Record]:
    """Compare how often pairs of models do not understand harmful prompts, by the labels.

    Args:
        published: the folder with the study's results.

    Returns:
        The records of `behaviour.compare_property`, which leave out what the patterns find wrongly.
    """
    answers = read_what_is_said(published)
    answers = answers.assign(confused=answers["says"] == "not_understood")
    return compare_property(pivot(answers, "harmful", "confused"))


def find_confused(metrics: Record) -> list[Record]:
    """Find the comparisons of how often models do not understand harmful prompts, by patterns."""
    records = []
    for record in metrics["behaviour_comparisons"]:
        if (record["kind"], record["measure"]) == ("harmful", "not_understood"):
            records.append(record)
    return records


def write_labels_compared(published: Path, metrics: Record) -> str:
    """Write the differences in not understanding harmful prompts, by patterns and by labels.

    Args:
        published: the folder with the study's results.
        metrics: the folder's metrics.json.
    """
    rows = []
    for by_pattern, by_hand in zip(find_confused(metrics), compare_labels(published), strict=True):
        cells = [f"{by_pattern['second']} − {by_pattern['first']}"]
        for record in (by_pattern, by_hand):
            difference, ends = split_difference({"measure": "not_understood", **record})
            cells += [f"{difference} {ends}", format_p(record["p_holm"]), record["decision"]]
        rows.append(cells)
    columns = ["difference"]
    for source in ("patterns", "labels"):
        columns += [f"by the {source}, points [95%]", "p (Holm)", "decision"]
    return write_estimates(columns, rows)
