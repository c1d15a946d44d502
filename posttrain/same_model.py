"""The same model in two runs that differ in a setting other than the seed of the training.

Runs of `make reask` share their trained models, so that a difference between them is the effect of
the setting on these models. Runs that were trained with two values of a setting have two trainings,
whose difference includes what another seed alone would have changed.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from posttrain.compare import (
    JUDGE,
    THRESHOLDS,
    Evaluated,
    are_sample,
    common_models,
    differing,
)
from posttrain.comparisons import compare, decide_family
from posttrain.metrics import KINDS, MEASURES

Record = dict[str, Any]

# Settings that may change the reward or the label of an answer, but no answer.
JUDGING = (JUDGE, *THRESHOLDS, "evaluation's judge_length")


# ---- what runs have in common


def have_same_weights(first: Evaluated, other: Evaluated, model: str) -> bool:
    """Tell whether a model has the same weights in two runs, as far as their records say.

    Args:
        first: a run.
        other: another run.
        model: the name of a model that both have.
    """
    if first.record.imported or other.record.imported:  # nobody knows where the answers come from
        return False
    return _identify(first, model) == _identify(other, model)


def _identify(run: Evaluated, model: str) -> tuple[Any, ...]:
    """Name what a model of a run consists of: its base, and what was trained, if it was."""
    (row,) = [row for row in run.record.models if row.name == model]
    base = run.record.sources.get("base_model", {})
    trained = run.record.artifacts.get(row.adapter or row.base)
    return base.get("commit"), base.get("sha256"), None if trained is None else trained.sha256


def share_models(runs: Sequence[Evaluated]) -> bool:
    """Tell whether runs have the same models, as a run and those that `make reask` makes of it.

    Args:
        runs: the runs, from `compare.load_runs`.
    """
    for model in common_models(runs):
        if not all(have_same_weights(runs[0], other, model) for other in runs[1:]):
            return False
    return True


def share_answers(runs: Sequence[Evaluated]) -> bool:
    """Tell whether all models have given the same answers in all runs, word for word.

    Args:
        runs: the runs, from `compare.load_runs`.
    """
    for model in common_models(runs):
        if not all(_answered_alike(runs[0], other, model) for other in runs[1:]):
            return False
    return True


def _answered_alike(first: Evaluated, other: Evaluated, model: str) -> bool:
    """Tell whether a model has given the same answers in two runs, as far as they are known."""
    ours, theirs = _select_answers(first, model), _select_answers(other, model)
    return bool(ours["response"].notna().all()) and ours["response"].equals(theirs["response"])


def _select_answers(run: Evaluated, model: str) -> pd.DataFrame:
    """Select the answers of one model, by their prompts."""
    return run.answers[run.answers["model"] == model].set_index("id").sort_index()


# ---- the comparison


def explain_absence(runs: Sequence[Evaluated]) -> str | None:
    """Say why the same model is not compared between runs; None if it is.

    Args:
        runs: the runs, from `compare.load_runs`.
    """
    if are_sample(runs):
        return (
            "The same model is not compared between these runs: they differ in the seed alone, so "
            "they are a sample of trainings, and sections 2 and 3 say how much they vary."
        )
    varied = list(differing(runs).index)
    if not varied:
        return (
            "The same model is not compared between these runs, because their records do not say "
            "in which setting they differ."
        )
    if set(varied) <= set(THRESHOLDS):
        return (
            "The same model is not compared between these runs: they differ in a threshold alone, "
            "which changes all labels in one direction, so there is nothing to test. Section 2 "
            "has the rates at each threshold."
        )
    return None


def compare_same_model(runs: Sequence[Evaluated]) -> list[Record]:
    """Compare every model in each later run with the same model in the first run.

    Both have answered the same prompts, so that the comparison of a pair of models applies. Holm's
    correction is over the models and runs of a measure. A model is left out where its answers
    cannot differ or do not: whether answers differ is known without the direction in which they do,
    and all tests are conditional on it, so that they keep their level.

    Args:
        runs: the runs, from `compare.load_runs`.

    Returns:
        A record for each measure, model and later run: measure, model, first and second (the names
        of the two runs), one_training (whether both runs have the same weights or answers of the
        model, so that no second training is behind the difference), difference (second minus
        first), low, high, gained, lost, n, test, p, p_holm and decision, as in
        `comparisons.compare`. Mean rewards are left out if the judges differ, whose rewards have no
        common scale. There is none for runs of which `explain_absence` says why.
    """
    if explain_absence(runs):
        return []
    first = runs[0]
    varied = list(differing(runs).index)
    families: dict[str, list[Record]] = {}
    for model in common_models(runs):
        for other in runs[1:]:
            if _can_differ(first, other, model, varied):
                for record in _compare_two(first, other, model):
                    families.setdefault(record["measure"], []).append(record)
    records = []
    for measure, family in families.items():
        if JUDGE in varied and measure.endswith("_reward"):
            continue
        kinds = [MEASURES[measure]] if MEASURES[measure] else KINDS
        prompts = min(_count_prompts(first, kind) for kind in kinds)
        decide_family(family, prompts)
        records.extend(family)
    return records


def _can_differ(first: Evaluated, other: Evaluated, model: str, varied: Sequence[str]) -> bool:
    """Tell whether the results of a model can differ between two runs, and its answers do."""
    in_training = not any(name.startswith("evaluation's ") for name in varied)
    if in_training and have_same_weights(first, other, model):
        return False
    ours, theirs = _select_answers(first, model), _select_answers(other, model)
    judged = ["reward", "label"]
    if ours[judged].equals(theirs[judged]):
        return False
    return bool(set(varied) & set(JUDGING)) or not _answered_alike(first, other, model)


def _compare_two(first: Evaluated, other: Evaluated, model: str) -> list[Record]:
    """Compare the answers of a model in two runs in every measure, as those of two models."""
    answers = []
    for name, run in (("first", first), ("second", other)):
        answers.append(run.answers[run.answers["model"] == model].assign(model=name))
    bootstrap = first.metrics["bootstrap"]
    same_weights = have_same_weights(first, other, model)
    one_training = same_weights or _answered_alike(first, other, model)
    records = []
    for found in compare(pd.concat(answers), bootstrap["draws"], bootstrap["seed"], power=False):
        record = {"measure": found["measure"], "model": model}
        record |= {"first": first.name, "second": other.name}
        record["one_training"] = one_training
        for name in ("difference", "low", "high", "gained", "lost", "n", "test", "p"):
            record[name] = found[name]
        records.append(record)
    return records


def _count_prompts(run: Evaluated, kind: str) -> int:
    """Count the prompts of a kind that a run was asked."""
    return run.answers.loc[run.answers["kind"] == kind, "id"].nunique()
