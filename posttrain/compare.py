"""Compare several evaluated runs that differ in one setting, such as the seed of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from posttrain.across import UNKNOWN, intervals_of_mean, read_labelled_answers
from posttrain.comparisons import has_measure
from posttrain.files import read_json
from posttrain.metrics import MEASURES, models_of
from posttrain.record import ABSENT, Record, list_differences
from posttrain.run import STAND_INS, Run
from posttrain.settings import Evaluation, Training

KINDS_OF_SETTINGS = {"training": Training, "evaluation": Evaluation}
# Settings that no result depends on.
INDIFFERENT = {
    "training": ("preset", "checkpoint_share", "report_to", "max_new_tokens"),
    "evaluation": ("preset", "batch_size", "judge_tokens", "second_judge"),
}
# Inputs of a trainer that follow from a setting of another name.
ARGUMENTS = {
    "batch_size": ("pairs_in_a_step", "pairs_in_a_pass"),
    "dpo_epochs": ("num_train_epochs",),
    "dpo_learning_rate": ("learning_rate",),
    "dropout": ("share_prompts",),
    "lora_layers": ("target_modules", "tensors", "sha256_of_names"),
    "lora_r": ("r", "sha256_of_names"),
    "loss_type": ("pairs_in_a_pass",),
    "sft_epochs": ("num_train_epochs",),
    "sft_learning_rate": ("learning_rate",),
}
# Settings that change nearly all inputs of a trainer.
FAR_REACHING = ("base_model", "sft_method")
# Inputs that follow from other inputs: the pairs that are drawn, and the model that is continued.
DERIVED = ("base_model", "goes_on_from", "train_dataset", "eval_dataset")
# For each source of a run, the settings that its content may depend on.
SETTINGS_OF_SOURCES = {
    "base_model": ("base_model",),
    "dataset": ("dataset", "subsets"),
    "test_dataset": ("dataset", "evaluation's dataset"),
    "reward_model": ("evaluation's reward_model",),
}
JUDGE = "evaluation's reward_model"
THRESHOLDS = ("evaluation's harmless_from", "evaluation's helpful_above")
PARTS = ("thresholds", "models", "comparisons", "bootstrap", "sha256")  # of metrics.json, as needed
# {beginning of the names of an interval's ends: what of `across.intervals_of_mean` it is}
INTERVALS = {"": "runs", "averaged_": "prompts", "both_": "both"}


@dataclass(frozen=True)
class Evaluated:
    """An evaluated run: its name, its record, the content of metrics.json, and its answers.

    The answers are the table of `across.read_labelled_answers`.
    """

    name: str
    record: Record
    metrics: dict[str, Any]
    answers: pd.DataFrame

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that its results depend on; names of eval.ipynb's have a prefix.

        A setting that did not exist yet when the run was made has the value that it had then, which
        is its default.
        """
        settings = {}
        for stage, values in self.record.settings.items():
            defaults = {}
            for name, field in KINDS_OF_SETTINGS[stage].model_fields.items():
                defaults[name] = field.default
            for name, value in (defaults | values).items():
                if name not in INDIFFERENT.get(stage, ()):
                    settings[name if stage == "training" else f"evaluation's {name}"] = value
        return settings


class Comparison(Run):
    """The folder of a comparison, whose figures name the runs that are compared."""

    def __init__(
        self,
        runs: Sequence[Evaluated],
        results: str | Path,
        name: str | None = None,
        figures: str | Path | None = None,
        labelled: bool = True,
    ):
        """Open the folder of a comparison.

        Args:
            runs: the runs, from `load_runs`.
            results: the folder of all runs.
            name: the comparison's name; None takes the name of the first run and "-compared".
            figures: the folder of all runs' figures, as in `Run`.
            labelled: whether figures say which runs they show, as in `Run`.
        """
        super().__init__(results, name or f"{runs[0].name}-compared", figures, labelled)
        self.runs = runs

    @property
    def label(self) -> str:
        """The line below every figure, which says which runs are compared."""
        text = f"{self.name}: {', '.join(run.name for run in self.runs)}"
        is_demo = any(run.record.preset == "demo" for run in self.runs)
        return text + (STAND_INS if is_demo else "")


def load_runs(results: str | Path, names: Sequence[str]) -> list[Evaluated]:
    """Load evaluated runs, and make sure that they can be compared.

    Args:
        results: the folder of all runs.
        names: the names of the runs, in the order in which they will be shown.

    Returns:
        The runs.

    Raises:
        ValueError: if there are fewer than two runs, one has not been evaluated, or not as
            eval.ipynb does it today, a file of it was changed since, they differ in more than one
            setting, they were asked different prompts, or they have fewer than two models in
            common.
        FileNotFoundError: if a run does not exist.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise ValueError('RUNS: name two or more runs, such as "quick-seed0 quick-seed1".')
    runs = []
    for name in names:
        run = Run(results, name, must_exist=True)
        if not run.path("metrics.json").exists():
            raise ValueError(
                f"RUNS: {run.folder} has not been evaluated. Run eval.ipynb with RUN = {name!r}."
            )
        metrics = read_json(run.path("metrics.json"), dict[str, Any])
        missing = [part for part in PARTS if part not in metrics]
        if missing:
            raise ValueError(
                f"RUNS: {run.path('metrics.json')} lacks {', '.join(missing)}, so it is from "
                f"another version of eval.ipynb. Run eval.ipynb with RUN = {name!r} again, which "
                "keeps the answers and rewards."
            )
        answers = read_labelled_answers(run.folder, metrics["sha256"])
        runs.append(Evaluated(name, run.record, metrics, answers))
    _require_comparable(runs)
    _require_common_models(runs)
    return runs


def _require_common_models(runs: Sequence[Evaluated]) -> None:
    """Refuse runs that do not share two models, between which there would be a difference."""
    common = common_models(runs)
    if len(common) < 2:
        lists = []
        for run in runs:
            lists.append(f"{run.name} has {', '.join(models_of(run.answers))}")
        raise ValueError(
            f"RUNS: these runs have {'only ' + common[0] if common else 'no model'} in common, so "
            f"there is no difference between models to compare: {'; '.join(lists)}. Name runs with "
            "the same models."
        )


def _require_comparable(runs: Sequence[Evaluated]) -> None:
    """Refuse runs whose differences could not be attributed to one setting."""
    first = runs[0]
    varied = list(differing(runs).index)
    settings = varied
    if "format" in varied:
        raise ValueError(
            "RUNS: these runs differ in format, so even Base was asked in another way in each of "
            "them. Read their final tables next to each other."
        )
    if JUDGE in varied:  # thresholds belong to their judge
        settings = [name for name in varied if name not in THRESHOLDS]
    if len(settings) > 1:
        raise ValueError(
            f"RUNS: these runs differ in {len(settings)} settings, {', '.join(settings)}, so a "
            "difference between their results could not be attributed to one of them. Name runs "
            "that differ in one setting."
        )
    for other in runs[1:]:
        if other.metrics["sha256"]["prompts.json"] != first.metrics["sha256"]["prompts.json"]:
            raise ValueError(
                f"RUNS: {other.name} and {first.name} were asked different prompts, so they cannot "
                "be compared prompt by prompt. Read their final tables next to each other, as "
                "docs/faults.md says."
            )
        same_thresholds = other.metrics["thresholds"] == first.metrics["thresholds"]
        if not same_thresholds and not set(varied) & set(THRESHOLDS):
            raise ValueError(
                f"RUNS: {other.name} and {first.name} were labelled with different thresholds. Run "
                "eval.ipynb for both with the same HARMLESS_FROM and HELPFUL_ABOVE."
            )
        differences = _differing_sources(first.record, other.record, varied)
        differences += _differing_inputs(first.record, other.record, varied)
        if differences:
            settings_differ = "have the same settings"
            if varied:
                settings_differ = f"differ in {', '.join(varied)}"
            raise ValueError(
                f"RUNS: {other.name} and {first.name} {settings_differ}, but they were also made "
                f"with different inputs: {', '.join(differences)}. Compare runs that differ in one "
                "setting."
            )
    if not varied and not any(run.record.imported for run in runs):
        raise ValueError(
            "RUNS: these runs have the same settings, so they repeat one training. Name runs that "
            "differ in a setting, such as SEED."
        )


def _differing_sources(first: Record, other: Record, varied: Sequence[str]) -> list[str]:
    """List the sources whose content differs although the settings are the same."""
    names = []
    for role, settings in SETTINGS_OF_SOURCES.items():
        ours, theirs = first.sources.get(role), other.sources.get(role)
        if ours is None or theirs is None or set(settings) & set(varied):
            continue
        if (ours["commit"], ours["sha256"]) != (theirs["commit"], theirs["sha256"]):
            names.append(role)
    return names


def _differing_inputs(first: Record, other: Record, varied: Sequence[str]) -> list[str]:
    """List the inputs that differ between the trainers of two runs, by the last part of their name.

    Differences that follow from the settings in `varied` are left out.
    """
    if set(varied) & set(FAR_REACHING):
        return []
    expected = [*varied, *DERIVED]
    for name in varied:
        expected += ARGUMENTS.get(name, ())
    names = []
    for model in other.models:
        place = model.adapter or model.base
        ours, theirs = first.artifacts.get(place), other.artifacts.get(place)
        if ours is not None and theirs is not None:
            for difference in list_differences(ours.inputs, theirs.inputs):
                name = difference.name.rsplit(".", 1)[-1]
                is_rate = "dropout" in varied and "drop" in name  # as architecture.read_dropout
                if name not in expected and name not in names and not is_rate:
                    names.append(name)
    return names


def differing(runs: Sequence[Evaluated]) -> pd.DataFrame:
    """Tabulate the settings in which runs differ.

    Args:
        runs: the runs, from `load_runs`.

    Returns:
        A table with a row for each such setting and a column for each run.
    """
    names: list[str] = []
    for run in runs:
        names += [name for name in run.settings if name not in names]
    rows = {}
    for name in names:
        values = [run.settings.get(name, ABSENT) for run in runs]
        if any(value != values[0] for value in values):
            rows[name] = values
    return pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in runs])


def common_models(runs: Sequence[Evaluated]) -> list[str]:
    """List the models that all runs have, in the order of the first run."""
    common = [row["model"] for row in runs[0].metrics["models"]]
    for run in runs[1:]:
        names = [row["model"] for row in run.metrics["models"]]
        common = [name for name in common if name in names]
    return common


def rates_across(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Collect the measures of every model over the runs.

    Args:
        runs: the runs, from `load_runs`.

    Returns:
        A record for each measure and model: measure, model, values (one per run), mean, and sd, the
        sample standard deviation (with n - 1). Mean and sd are None if the runs are no sample of
        trainings.
    """
    sampled = are_sample(runs)
    tables = []
    for run in runs:
        tables.append({row["model"]: row for row in run.metrics["models"]})
    records = []
    for measure in MEASURES:
        for model in common_models(runs):
            if not all(has_measure(table[model], measure) for table in tables):
                continue
            values = [table[model][measure] for table in tables]
            record = {"measure": measure, "model": model, "values": values}
            record["mean"] = float(np.mean(values)) if sampled else None
            record["sd"] = float(np.std(values, ddof=1)) if sampled else None
            records.append(record)
    return records


def are_sample(runs: Sequence[Evaluated]) -> bool:
    """Tell whether runs are a sample of trainings, which is so if only their seeds differ."""
    return list(differing(runs).index) == ["seed"]


def differences_across(runs: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Collect the difference between every two models over the runs, with its intervals.

    Args:
        runs: the runs, from `load_runs`.

    Returns:
        A record for each measure and pair of models: measure, first, second, values (second minus
        first, one per run), mean, the ends of three 95% intervals of the mean (low and high for
        other trainings and the same prompts, averaged_low and averaged_high for the same models and
        other prompts, both_low and both_high for other trainings and other prompts), prompts_low
        and prompts_high (the ends of each run's own 95% interval over prompts) and decisions (each
        run's own). The ends of the three intervals are None where the runs are no sample of
        trainings, or where a spread is unknown because all values are equal.
    """
    sampled = are_sample(runs)
    tables = []
    for run in runs:
        rows = run.metrics["comparisons"]
        tables.append({(row["measure"], row["first"], row["second"]): row for row in rows})
    records = []
    for key in tables[0]:
        if not all(key in table for table in tables):
            continue
        rows = [table[key] for table in tables]
        values = [row["difference"] for row in rows]
        record = dict(zip(("measure", "first", "second"), key))
        record |= {"values": values, "mean": float(np.mean(values))}
        intervals = {}
        if sampled:
            intervals = intervals_of_mean([run.answers for run in runs], *key)
        for prefix, name in INTERVALS.items():
            interval = intervals.get(name, UNKNOWN)
            record |= {f"{prefix}low": interval["low"], f"{prefix}high": interval["high"]}
        record["prompts_low"] = [row["low"] for row in rows]
        record["prompts_high"] = [row["high"] for row in rows]
        record["decisions"] = [row["decision"] for row in rows]
        records.append(record)
    return records
